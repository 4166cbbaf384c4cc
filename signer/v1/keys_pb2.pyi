import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from signer.v1 import signing_pb2 as _signing_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Algorithm(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ALGORITHM_UNSPECIFIED: _ClassVar[Algorithm]
    ALGORITHM_ES256: _ClassVar[Algorithm]
    ALGORITHM_ES384: _ClassVar[Algorithm]
    ALGORITHM_RS256: _ClassVar[Algorithm]
    ALGORITHM_PS256: _ClassVar[Algorithm]
    ALGORITHM_EDDSA: _ClassVar[Algorithm]

class KeyState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    KEY_STATE_UNSPECIFIED: _ClassVar[KeyState]
    KEY_STATE_PRE_ACTIVE: _ClassVar[KeyState]
    KEY_STATE_ACTIVE: _ClassVar[KeyState]
    KEY_STATE_SUSPENDED: _ClassVar[KeyState]
    KEY_STATE_DEACTIVATED: _ClassVar[KeyState]
    KEY_STATE_COMPROMISED: _ClassVar[KeyState]
    KEY_STATE_DESTROY_SCHEDULED: _ClassVar[KeyState]
    KEY_STATE_DESTROYED: _ClassVar[KeyState]
ALGORITHM_UNSPECIFIED: Algorithm
ALGORITHM_ES256: Algorithm
ALGORITHM_ES384: Algorithm
ALGORITHM_RS256: Algorithm
ALGORITHM_PS256: Algorithm
ALGORITHM_EDDSA: Algorithm
KEY_STATE_UNSPECIFIED: KeyState
KEY_STATE_PRE_ACTIVE: KeyState
KEY_STATE_ACTIVE: KeyState
KEY_STATE_SUSPENDED: KeyState
KEY_STATE_DEACTIVATED: KeyState
KEY_STATE_COMPROMISED: KeyState
KEY_STATE_DESTROY_SCHEDULED: KeyState
KEY_STATE_DESTROYED: KeyState

class KeyVersion(_message.Message):
    __slots__ = ("name", "algorithm", "state", "public_key", "certificate", "kid", "jwk_thumbprint", "create_time", "activate_time", "sign_until_time", "deactivate_time", "destroy_time", "certification_request", "token", "primary", "compromised", "placements", "suspension", "wrapping", "signatures_used", "lifetime_signatures")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ALGORITHM_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    PUBLIC_KEY_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    KID_FIELD_NUMBER: _ClassVar[int]
    JWK_THUMBPRINT_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    ACTIVATE_TIME_FIELD_NUMBER: _ClassVar[int]
    SIGN_UNTIL_TIME_FIELD_NUMBER: _ClassVar[int]
    DEACTIVATE_TIME_FIELD_NUMBER: _ClassVar[int]
    DESTROY_TIME_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATION_REQUEST_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    PRIMARY_FIELD_NUMBER: _ClassVar[int]
    COMPROMISED_FIELD_NUMBER: _ClassVar[int]
    PLACEMENTS_FIELD_NUMBER: _ClassVar[int]
    SUSPENSION_FIELD_NUMBER: _ClassVar[int]
    WRAPPING_FIELD_NUMBER: _ClassVar[int]
    SIGNATURES_USED_FIELD_NUMBER: _ClassVar[int]
    LIFETIME_SIGNATURES_FIELD_NUMBER: _ClassVar[int]
    name: str
    algorithm: Algorithm
    state: KeyState
    public_key: bytes
    certificate: bytes
    kid: bytes
    jwk_thumbprint: str
    create_time: _timestamp_pb2.Timestamp
    activate_time: _timestamp_pb2.Timestamp
    sign_until_time: _timestamp_pb2.Timestamp
    deactivate_time: _timestamp_pb2.Timestamp
    destroy_time: _timestamp_pb2.Timestamp
    certification_request: str
    token: str
    primary: bool
    compromised: bool
    placements: _containers.RepeatedCompositeFieldContainer[Placement]
    suspension: str
    wrapping: Wrapping
    signatures_used: int
    lifetime_signatures: int
    def __init__(self, name: _Optional[str] = ..., algorithm: _Optional[_Union[Algorithm, str]] = ..., state: _Optional[_Union[KeyState, str]] = ..., public_key: _Optional[bytes] = ..., certificate: _Optional[bytes] = ..., kid: _Optional[bytes] = ..., jwk_thumbprint: _Optional[str] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., activate_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., sign_until_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., deactivate_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., destroy_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., certification_request: _Optional[str] = ..., token: _Optional[str] = ..., primary: _Optional[bool] = ..., compromised: _Optional[bool] = ..., placements: _Optional[_Iterable[_Union[Placement, _Mapping]]] = ..., suspension: _Optional[str] = ..., wrapping: _Optional[_Union[Wrapping, _Mapping]] = ..., signatures_used: _Optional[int] = ..., lifetime_signatures: _Optional[int] = ...) -> None: ...

class Wrapping(_message.Message):
    __slots__ = ("wrapping_key", "mechanism")
    WRAPPING_KEY_FIELD_NUMBER: _ClassVar[int]
    MECHANISM_FIELD_NUMBER: _ClassVar[int]
    wrapping_key: str
    mechanism: str
    def __init__(self, wrapping_key: _Optional[str] = ..., mechanism: _Optional[str] = ...) -> None: ...

class WrappingKey(_message.Message):
    __slots__ = ("id", "cka_id", "create_time", "tokens", "newest_on", "destroyed", "key_versions")
    ID_FIELD_NUMBER: _ClassVar[int]
    CKA_ID_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    NEWEST_ON_FIELD_NUMBER: _ClassVar[int]
    DESTROYED_FIELD_NUMBER: _ClassVar[int]
    KEY_VERSIONS_FIELD_NUMBER: _ClassVar[int]
    id: str
    cka_id: bytes
    create_time: _timestamp_pb2.Timestamp
    tokens: _containers.RepeatedScalarFieldContainer[str]
    newest_on: _containers.RepeatedScalarFieldContainer[str]
    destroyed: bool
    key_versions: int
    def __init__(self, id: _Optional[str] = ..., cka_id: _Optional[bytes] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., tokens: _Optional[_Iterable[str]] = ..., newest_on: _Optional[_Iterable[str]] = ..., destroyed: _Optional[bool] = ..., key_versions: _Optional[int] = ...) -> None: ...

class Placement(_message.Message):
    __slots__ = ("token", "cka_id")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    CKA_ID_FIELD_NUMBER: _ClassVar[int]
    token: str
    cka_id: bytes
    def __init__(self, token: _Optional[str] = ..., cka_id: _Optional[bytes] = ...) -> None: ...

class Quota(_message.Message):
    __slots__ = ("limit", "window_seconds", "remaining")
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    WINDOW_SECONDS_FIELD_NUMBER: _ClassVar[int]
    REMAINING_FIELD_NUMBER: _ClassVar[int]
    limit: int
    window_seconds: int
    remaining: int
    def __init__(self, limit: _Optional[int] = ..., window_seconds: _Optional[int] = ..., remaining: _Optional[int] = ...) -> None: ...

class Key(_message.Message):
    __slots__ = ("name", "algorithm", "primary", "formats", "max_batch_items", "quotas", "needs_cosignatures")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ALGORITHM_FIELD_NUMBER: _ClassVar[int]
    PRIMARY_FIELD_NUMBER: _ClassVar[int]
    FORMATS_FIELD_NUMBER: _ClassVar[int]
    MAX_BATCH_ITEMS_FIELD_NUMBER: _ClassVar[int]
    QUOTAS_FIELD_NUMBER: _ClassVar[int]
    NEEDS_COSIGNATURES_FIELD_NUMBER: _ClassVar[int]
    name: str
    algorithm: Algorithm
    primary: KeyVersion
    formats: _containers.RepeatedScalarFieldContainer[_signing_pb2.Format]
    max_batch_items: int
    quotas: _containers.RepeatedCompositeFieldContainer[Quota]
    needs_cosignatures: bool
    def __init__(self, name: _Optional[str] = ..., algorithm: _Optional[_Union[Algorithm, str]] = ..., primary: _Optional[_Union[KeyVersion, _Mapping]] = ..., formats: _Optional[_Iterable[_Union[_signing_pb2.Format, str]]] = ..., max_batch_items: _Optional[int] = ..., quotas: _Optional[_Iterable[_Union[Quota, _Mapping]]] = ..., needs_cosignatures: _Optional[bool] = ...) -> None: ...

class ListKeysRequest(_message.Message):
    __slots__ = ("parent", "page_size", "page_token")
    PARENT_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    parent: str
    page_size: int
    page_token: str
    def __init__(self, parent: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListKeysResponse(_message.Message):
    __slots__ = ("keys", "next_page_token")
    KEYS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    keys: _containers.RepeatedCompositeFieldContainer[Key]
    next_page_token: str
    def __init__(self, keys: _Optional[_Iterable[_Union[Key, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class GetKeyRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class GetKeyResponse(_message.Message):
    __slots__ = ("key",)
    KEY_FIELD_NUMBER: _ClassVar[int]
    key: Key
    def __init__(self, key: _Optional[_Union[Key, _Mapping]] = ...) -> None: ...

class GetKeyVersionRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class GetKeyVersionResponse(_message.Message):
    __slots__ = ("key_version",)
    KEY_VERSION_FIELD_NUMBER: _ClassVar[int]
    key_version: KeyVersion
    def __init__(self, key_version: _Optional[_Union[KeyVersion, _Mapping]] = ...) -> None: ...

class ListKeyVersionsRequest(_message.Message):
    __slots__ = ("parent", "page_size", "page_token")
    PARENT_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    parent: str
    page_size: int
    page_token: str
    def __init__(self, parent: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListKeyVersionsResponse(_message.Message):
    __slots__ = ("key_versions", "next_page_token")
    KEY_VERSIONS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    key_versions: _containers.RepeatedCompositeFieldContainer[KeyVersion]
    next_page_token: str
    def __init__(self, key_versions: _Optional[_Iterable[_Union[KeyVersion, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class ListWrappingKeysRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListWrappingKeysResponse(_message.Message):
    __slots__ = ("wrapping_keys",)
    WRAPPING_KEYS_FIELD_NUMBER: _ClassVar[int]
    wrapping_keys: _containers.RepeatedCompositeFieldContainer[WrappingKey]
    def __init__(self, wrapping_keys: _Optional[_Iterable[_Union[WrappingKey, _Mapping]]] = ...) -> None: ...
