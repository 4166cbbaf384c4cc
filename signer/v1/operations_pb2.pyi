import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from signer.v1 import keys_pb2 as _keys_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class OperationState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    OPERATION_STATE_UNSPECIFIED: _ClassVar[OperationState]
    OPERATION_STATE_PROPOSED: _ClassVar[OperationState]
    OPERATION_STATE_APPROVED: _ClassVar[OperationState]
    OPERATION_STATE_EXECUTING: _ClassVar[OperationState]
    OPERATION_STATE_WAITING: _ClassVar[OperationState]
    OPERATION_STATE_DONE: _ClassVar[OperationState]
    OPERATION_STATE_FAILED: _ClassVar[OperationState]
    OPERATION_STATE_REJECTED: _ClassVar[OperationState]
    OPERATION_STATE_EXPIRED: _ClassVar[OperationState]
OPERATION_STATE_UNSPECIFIED: OperationState
OPERATION_STATE_PROPOSED: OperationState
OPERATION_STATE_APPROVED: OperationState
OPERATION_STATE_EXECUTING: OperationState
OPERATION_STATE_WAITING: OperationState
OPERATION_STATE_DONE: OperationState
OPERATION_STATE_FAILED: OperationState
OPERATION_STATE_REJECTED: OperationState
OPERATION_STATE_EXPIRED: OperationState

class OfficerSignature(_message.Message):
    __slots__ = ("officer", "signature", "sign_time")
    OFFICER_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    SIGN_TIME_FIELD_NUMBER: _ClassVar[int]
    officer: str
    signature: bytes
    sign_time: _timestamp_pb2.Timestamp
    def __init__(self, officer: _Optional[str] = ..., signature: _Optional[bytes] = ..., sign_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class Operation(_message.Message):
    __slots__ = ("id", "kind", "state", "proposer", "propose_time", "expire_time", "officers", "signatures", "content", "difference", "done", "total", "note", "result", "change_time", "target")
    ID_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    PROPOSER_FIELD_NUMBER: _ClassVar[int]
    PROPOSE_TIME_FIELD_NUMBER: _ClassVar[int]
    EXPIRE_TIME_FIELD_NUMBER: _ClassVar[int]
    OFFICERS_FIELD_NUMBER: _ClassVar[int]
    SIGNATURES_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    DIFFERENCE_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    NOTE_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    CHANGE_TIME_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    id: str
    kind: str
    state: OperationState
    proposer: str
    propose_time: _timestamp_pb2.Timestamp
    expire_time: _timestamp_pb2.Timestamp
    officers: int
    signatures: _containers.RepeatedCompositeFieldContainer[OfficerSignature]
    content: bytes
    difference: _containers.RepeatedScalarFieldContainer[str]
    done: int
    total: int
    note: str
    result: str
    change_time: _timestamp_pb2.Timestamp
    target: str
    def __init__(self, id: _Optional[str] = ..., kind: _Optional[str] = ..., state: _Optional[_Union[OperationState, str]] = ..., proposer: _Optional[str] = ..., propose_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., expire_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., officers: _Optional[int] = ..., signatures: _Optional[_Iterable[_Union[OfficerSignature, _Mapping]]] = ..., content: _Optional[bytes] = ..., difference: _Optional[_Iterable[str]] = ..., done: _Optional[int] = ..., total: _Optional[int] = ..., note: _Optional[str] = ..., result: _Optional[str] = ..., change_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., target: _Optional[str] = ...) -> None: ...

class PrepareOperationRequest(_message.Message):
    __slots__ = ("kind", "arguments", "attachment")
    KIND_FIELD_NUMBER: _ClassVar[int]
    ARGUMENTS_FIELD_NUMBER: _ClassVar[int]
    ATTACHMENT_FIELD_NUMBER: _ClassVar[int]
    kind: str
    arguments: str
    attachment: bytes
    def __init__(self, kind: _Optional[str] = ..., arguments: _Optional[str] = ..., attachment: _Optional[bytes] = ...) -> None: ...

class PrepareOperationResponse(_message.Message):
    __slots__ = ("content", "difference", "problems")
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    DIFFERENCE_FIELD_NUMBER: _ClassVar[int]
    PROBLEMS_FIELD_NUMBER: _ClassVar[int]
    content: bytes
    difference: _containers.RepeatedScalarFieldContainer[str]
    problems: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, content: _Optional[bytes] = ..., difference: _Optional[_Iterable[str]] = ..., problems: _Optional[_Iterable[str]] = ...) -> None: ...

class ProposeOperationRequest(_message.Message):
    __slots__ = ("content", "signature", "attachment")
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    ATTACHMENT_FIELD_NUMBER: _ClassVar[int]
    content: bytes
    signature: bytes
    attachment: bytes
    def __init__(self, content: _Optional[bytes] = ..., signature: _Optional[bytes] = ..., attachment: _Optional[bytes] = ...) -> None: ...

class ProposeOperationResponse(_message.Message):
    __slots__ = ("operation",)
    OPERATION_FIELD_NUMBER: _ClassVar[int]
    operation: Operation
    def __init__(self, operation: _Optional[_Union[Operation, _Mapping]] = ...) -> None: ...

class ApproveOperationRequest(_message.Message):
    __slots__ = ("id", "signature")
    ID_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    id: str
    signature: bytes
    def __init__(self, id: _Optional[str] = ..., signature: _Optional[bytes] = ...) -> None: ...

class ApproveOperationResponse(_message.Message):
    __slots__ = ("operation",)
    OPERATION_FIELD_NUMBER: _ClassVar[int]
    operation: Operation
    def __init__(self, operation: _Optional[_Union[Operation, _Mapping]] = ...) -> None: ...

class RejectOperationRequest(_message.Message):
    __slots__ = ("id", "reason")
    ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    id: str
    reason: str
    def __init__(self, id: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class RejectOperationResponse(_message.Message):
    __slots__ = ("operation",)
    OPERATION_FIELD_NUMBER: _ClassVar[int]
    operation: Operation
    def __init__(self, operation: _Optional[_Union[Operation, _Mapping]] = ...) -> None: ...

class RetryOperationRequest(_message.Message):
    __slots__ = ("id",)
    ID_FIELD_NUMBER: _ClassVar[int]
    id: str
    def __init__(self, id: _Optional[str] = ...) -> None: ...

class RetryOperationResponse(_message.Message):
    __slots__ = ("operation",)
    OPERATION_FIELD_NUMBER: _ClassVar[int]
    operation: Operation
    def __init__(self, operation: _Optional[_Union[Operation, _Mapping]] = ...) -> None: ...

class GetOperationRequest(_message.Message):
    __slots__ = ("id", "attachment")
    ID_FIELD_NUMBER: _ClassVar[int]
    ATTACHMENT_FIELD_NUMBER: _ClassVar[int]
    id: str
    attachment: bool
    def __init__(self, id: _Optional[str] = ..., attachment: _Optional[bool] = ...) -> None: ...

class GetOperationResponse(_message.Message):
    __slots__ = ("operation", "attachment")
    OPERATION_FIELD_NUMBER: _ClassVar[int]
    ATTACHMENT_FIELD_NUMBER: _ClassVar[int]
    operation: Operation
    attachment: bytes
    def __init__(self, operation: _Optional[_Union[Operation, _Mapping]] = ..., attachment: _Optional[bytes] = ...) -> None: ...

class ListOperationsRequest(_message.Message):
    __slots__ = ("state", "page_size", "page_token")
    STATE_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    state: OperationState
    page_size: int
    page_token: str
    def __init__(self, state: _Optional[_Union[OperationState, str]] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListOperationsResponse(_message.Message):
    __slots__ = ("operations", "next_page_token")
    OPERATIONS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    operations: _containers.RepeatedCompositeFieldContainer[Operation]
    next_page_token: str
    def __init__(self, operations: _Optional[_Iterable[_Union[Operation, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class ImportCertificatesRequest(_message.Message):
    __slots__ = ("id", "certificates")
    ID_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATES_FIELD_NUMBER: _ClassVar[int]
    id: str
    certificates: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, id: _Optional[str] = ..., certificates: _Optional[_Iterable[bytes]] = ...) -> None: ...

class ImportCertificatesResponse(_message.Message):
    __slots__ = ("operation",)
    OPERATION_FIELD_NUMBER: _ClassVar[int]
    operation: Operation
    def __init__(self, operation: _Optional[_Union[Operation, _Mapping]] = ...) -> None: ...

class GetPolicyRequest(_message.Message):
    __slots__ = ("page_token",)
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    page_token: str
    def __init__(self, page_token: _Optional[str] = ...) -> None: ...

class PolicyFile(_message.Message):
    __slots__ = ("name", "content")
    NAME_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    name: str
    content: bytes
    def __init__(self, name: _Optional[str] = ..., content: _Optional[bytes] = ...) -> None: ...

class GetPolicyResponse(_message.Message):
    __slots__ = ("policy_sha256", "files", "next_page_token")
    POLICY_SHA256_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    policy_sha256: str
    files: _containers.RepeatedCompositeFieldContainer[PolicyFile]
    next_page_token: str
    def __init__(self, policy_sha256: _Optional[str] = ..., files: _Optional[_Iterable[_Union[PolicyFile, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class ListOfficersRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Officer(_message.Message):
    __slots__ = ("principal", "certificate")
    PRINCIPAL_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    principal: str
    certificate: bytes
    def __init__(self, principal: _Optional[str] = ..., certificate: _Optional[bytes] = ...) -> None: ...

class ListOfficersResponse(_message.Message):
    __slots__ = ("officers", "needed", "origin")
    class NeededEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    OFFICERS_FIELD_NUMBER: _ClassVar[int]
    NEEDED_FIELD_NUMBER: _ClassVar[int]
    ORIGIN_FIELD_NUMBER: _ClassVar[int]
    officers: _containers.RepeatedCompositeFieldContainer[Officer]
    needed: _containers.ScalarMap[str, int]
    origin: str
    def __init__(self, officers: _Optional[_Iterable[_Union[Officer, _Mapping]]] = ..., needed: _Optional[_Mapping[str, int]] = ..., origin: _Optional[str] = ...) -> None: ...

class SuspendKeyRequest(_message.Message):
    __slots__ = ("name", "reason")
    NAME_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    name: str
    reason: str
    def __init__(self, name: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class SuspendKeyResponse(_message.Message):
    __slots__ = ("key_versions",)
    KEY_VERSIONS_FIELD_NUMBER: _ClassVar[int]
    key_versions: _containers.RepeatedCompositeFieldContainer[_keys_pb2.KeyVersion]
    def __init__(self, key_versions: _Optional[_Iterable[_Union[_keys_pb2.KeyVersion, _Mapping]]] = ...) -> None: ...

class SuspendFacilityRequest(_message.Message):
    __slots__ = ("facility", "reason")
    FACILITY_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    facility: str
    reason: str
    def __init__(self, facility: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class SuspendFacilityResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class SuspendGroupRequest(_message.Message):
    __slots__ = ("group", "reason")
    GROUP_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    group: str
    reason: str
    def __init__(self, group: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class SuspendGroupResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class SuspendEverythingRequest(_message.Message):
    __slots__ = ("reason",)
    REASON_FIELD_NUMBER: _ClassVar[int]
    reason: str
    def __init__(self, reason: _Optional[str] = ...) -> None: ...

class SuspendEverythingResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class MarkKeyCompromisedRequest(_message.Message):
    __slots__ = ("name", "reason")
    NAME_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    name: str
    reason: str
    def __init__(self, name: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class MarkKeyCompromisedResponse(_message.Message):
    __slots__ = ("key_versions",)
    KEY_VERSIONS_FIELD_NUMBER: _ClassVar[int]
    key_versions: _containers.RepeatedCompositeFieldContainer[_keys_pb2.KeyVersion]
    def __init__(self, key_versions: _Optional[_Iterable[_Union[_keys_pb2.KeyVersion, _Mapping]]] = ...) -> None: ...

class ListSuspensionsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Suspension(_message.Message):
    __slots__ = ("scope", "name", "begin_time", "officer", "reason")
    SCOPE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    BEGIN_TIME_FIELD_NUMBER: _ClassVar[int]
    OFFICER_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    scope: str
    name: str
    begin_time: _timestamp_pb2.Timestamp
    officer: str
    reason: str
    def __init__(self, scope: _Optional[str] = ..., name: _Optional[str] = ..., begin_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., officer: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class ListSuspensionsResponse(_message.Message):
    __slots__ = ("suspensions",)
    SUSPENSIONS_FIELD_NUMBER: _ClassVar[int]
    suspensions: _containers.RepeatedCompositeFieldContainer[Suspension]
    def __init__(self, suspensions: _Optional[_Iterable[_Union[Suspension, _Mapping]]] = ...) -> None: ...
