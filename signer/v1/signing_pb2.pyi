import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.rpc import status_pb2 as _status_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Format(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FORMAT_UNSPECIFIED: _ClassVar[Format]
    FORMAT_DIGEST: _ClassVar[Format]
    FORMAT_MESSAGE: _ClassVar[Format]
    FORMAT_JWS: _ClassVar[Format]
    FORMAT_COSE_SIGN1: _ClassVar[Format]
    FORMAT_HCERT: _ClassVar[Format]
    FORMAT_CMS: _ClassVar[Format]
    FORMAT_TIMESTAMP: _ClassVar[Format]
    FORMAT_SHC: _ClassVar[Format]
    FORMAT_CMS_DIGEST: _ClassVar[Format]
FORMAT_UNSPECIFIED: Format
FORMAT_DIGEST: Format
FORMAT_MESSAGE: Format
FORMAT_JWS: Format
FORMAT_COSE_SIGN1: Format
FORMAT_HCERT: Format
FORMAT_CMS: Format
FORMAT_TIMESTAMP: Format
FORMAT_SHC: Format
FORMAT_CMS_DIGEST: Format

class SignBatchRequest(_message.Message):
    __slots__ = ("key", "format", "payloads", "request_id", "cosignatures", "revocation")
    KEY_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    PAYLOADS_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    COSIGNATURES_FIELD_NUMBER: _ClassVar[int]
    REVOCATION_FIELD_NUMBER: _ClassVar[int]
    key: str
    format: Format
    payloads: _containers.RepeatedScalarFieldContainer[bytes]
    request_id: str
    cosignatures: _containers.RepeatedScalarFieldContainer[bytes]
    revocation: bool
    def __init__(self, key: _Optional[str] = ..., format: _Optional[_Union[Format, str]] = ..., payloads: _Optional[_Iterable[bytes]] = ..., request_id: _Optional[str] = ..., cosignatures: _Optional[_Iterable[bytes]] = ..., revocation: _Optional[bool] = ...) -> None: ...

class SignBatchResponse(_message.Message):
    __slots__ = ("key_version", "signatures", "failures", "audit_record", "request_id", "revocation")
    class FailuresEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: int
        value: _status_pb2.Status
        def __init__(self, key: _Optional[int] = ..., value: _Optional[_Union[_status_pb2.Status, _Mapping]] = ...) -> None: ...
    KEY_VERSION_FIELD_NUMBER: _ClassVar[int]
    SIGNATURES_FIELD_NUMBER: _ClassVar[int]
    FAILURES_FIELD_NUMBER: _ClassVar[int]
    AUDIT_RECORD_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    REVOCATION_FIELD_NUMBER: _ClassVar[int]
    key_version: str
    signatures: _containers.RepeatedScalarFieldContainer[bytes]
    failures: _containers.MessageMap[int, _status_pb2.Status]
    audit_record: int
    request_id: str
    revocation: RevocationHandles
    def __init__(self, key_version: _Optional[str] = ..., signatures: _Optional[_Iterable[bytes]] = ..., failures: _Optional[_Mapping[int, _status_pb2.Status]] = ..., audit_record: _Optional[int] = ..., request_id: _Optional[str] = ..., revocation: _Optional[_Union[RevocationHandles, _Mapping]] = ...) -> None: ...

class RevocationHandles(_message.Message):
    __slots__ = ("uvci", "country_uvci", "signature")
    UVCI_FIELD_NUMBER: _ClassVar[int]
    COUNTRY_UVCI_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    uvci: bytes
    country_uvci: bytes
    signature: bytes
    def __init__(self, uvci: _Optional[bytes] = ..., country_uvci: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

class SignStreamRequest(_message.Message):
    __slots__ = ("tag", "batch", "timeout")
    TAG_FIELD_NUMBER: _ClassVar[int]
    BATCH_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    tag: int
    batch: SignBatchRequest
    timeout: _duration_pb2.Duration
    def __init__(self, tag: _Optional[int] = ..., batch: _Optional[_Union[SignBatchRequest, _Mapping]] = ..., timeout: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class SignStreamResponse(_message.Message):
    __slots__ = ("tag", "batch", "error")
    TAG_FIELD_NUMBER: _ClassVar[int]
    BATCH_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    tag: int
    batch: SignBatchResponse
    error: _status_pb2.Status
    def __init__(self, tag: _Optional[int] = ..., batch: _Optional[_Union[SignBatchResponse, _Mapping]] = ..., error: _Optional[_Union[_status_pb2.Status, _Mapping]] = ...) -> None: ...
