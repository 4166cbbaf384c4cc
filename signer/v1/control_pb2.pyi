import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ReloadRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ReloadResponse(_message.Message):
    __slots__ = ("policy_sha256", "policy_changed", "certificate_changed", "log_level", "log_level_changed", "restart_needed")
    POLICY_SHA256_FIELD_NUMBER: _ClassVar[int]
    POLICY_CHANGED_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_CHANGED_FIELD_NUMBER: _ClassVar[int]
    LOG_LEVEL_FIELD_NUMBER: _ClassVar[int]
    LOG_LEVEL_CHANGED_FIELD_NUMBER: _ClassVar[int]
    RESTART_NEEDED_FIELD_NUMBER: _ClassVar[int]
    policy_sha256: str
    policy_changed: bool
    certificate_changed: bool
    log_level: str
    log_level_changed: bool
    restart_needed: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, policy_sha256: _Optional[str] = ..., policy_changed: _Optional[bool] = ..., certificate_changed: _Optional[bool] = ..., log_level: _Optional[str] = ..., log_level_changed: _Optional[bool] = ..., restart_needed: _Optional[_Iterable[str]] = ...) -> None: ...

class GetStatusRequest(_message.Message):
    __slots__ = ("busiest",)
    BUSIEST_FIELD_NUMBER: _ClassVar[int]
    busiest: int
    def __init__(self, busiest: _Optional[int] = ...) -> None: ...

class WorkerStatus(_message.Message):
    __slots__ = ("token", "pid", "state", "starts", "items", "reason")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    STARTS_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    token: str
    pid: int
    state: str
    starts: int
    items: int
    reason: str
    def __init__(self, token: _Optional[str] = ..., pid: _Optional[int] = ..., state: _Optional[str] = ..., starts: _Optional[int] = ..., items: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class FacilityUsage(_message.Message):
    __slots__ = ("facility", "items", "queued_items", "last_minute", "last_hour")
    FACILITY_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    QUEUED_ITEMS_FIELD_NUMBER: _ClassVar[int]
    LAST_MINUTE_FIELD_NUMBER: _ClassVar[int]
    LAST_HOUR_FIELD_NUMBER: _ClassVar[int]
    facility: str
    items: int
    queued_items: int
    last_minute: int
    last_hour: int
    def __init__(self, facility: _Optional[str] = ..., items: _Optional[int] = ..., queued_items: _Optional[int] = ..., last_minute: _Optional[int] = ..., last_hour: _Optional[int] = ...) -> None: ...

class GetStatusResponse(_message.Message):
    __slots__ = ("version", "start_time", "ready", "reasons", "policy_sha256", "facilities", "key_versions", "queued_items", "workers", "busiest", "differences")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    REASONS_FIELD_NUMBER: _ClassVar[int]
    POLICY_SHA256_FIELD_NUMBER: _ClassVar[int]
    FACILITIES_FIELD_NUMBER: _ClassVar[int]
    KEY_VERSIONS_FIELD_NUMBER: _ClassVar[int]
    QUEUED_ITEMS_FIELD_NUMBER: _ClassVar[int]
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    BUSIEST_FIELD_NUMBER: _ClassVar[int]
    DIFFERENCES_FIELD_NUMBER: _ClassVar[int]
    version: str
    start_time: _timestamp_pb2.Timestamp
    ready: bool
    reasons: _containers.RepeatedScalarFieldContainer[str]
    policy_sha256: str
    facilities: int
    key_versions: int
    queued_items: int
    workers: _containers.RepeatedCompositeFieldContainer[WorkerStatus]
    busiest: _containers.RepeatedCompositeFieldContainer[FacilityUsage]
    differences: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, version: _Optional[str] = ..., start_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., ready: _Optional[bool] = ..., reasons: _Optional[_Iterable[str]] = ..., policy_sha256: _Optional[str] = ..., facilities: _Optional[int] = ..., key_versions: _Optional[int] = ..., queued_items: _Optional[int] = ..., workers: _Optional[_Iterable[_Union[WorkerStatus, _Mapping]]] = ..., busiest: _Optional[_Iterable[_Union[FacilityUsage, _Mapping]]] = ..., differences: _Optional[_Iterable[str]] = ...) -> None: ...
