"""What the client returns, and how it is read from the API's messages."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from operator import methodcaller
from typing import Any, NamedTuple, TypeVar

from google.protobuf.descriptor import EnumDescriptor
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from signer.algorithms import Algorithm
from signer.client._errors import ItemError
from signer.format_terms import Handles
from signer.model import Placement
from signer.v1 import control_pb2, evidence_pb2, keys_pb2, operations_pb2

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ItemResult:
    """The result of one payload.

    ``index`` counts from 0 in the order given. ``signature`` is the finished
    output of the format (text formats as ASCII), b"" if ``error`` is set.
    ``key_version`` is the version that signed, "" if the call failed. ``audit_record`` is
    the number of the batch's intent in the appliance's audit log, None if it has none.
    ``revocation`` are the handles of a health certificate, where the call asked for them.
    """

    index: int
    signature: bytes
    key_version: str
    error: ItemError | None = None
    audit_record: int | None = None
    revocation: Handles | None = None

    @property
    def ok(self) -> bool:
        """Whether there is a signature."""
        return self.error is None


class Wrapping(NamedTuple):
    """How a private key is wrapped: the id of the wrapping key, and the mechanism's name."""

    wrapping_key: str
    mechanism: str


class KeyVersion(NamedTuple):
    """One version. ``public_key`` (SPKI) and ``certificate`` are DER; times are UTC.

    ``algorithm`` and ``state`` are the names of ``signer.algorithms.Algorithm`` and
    ``KeyState``, or of a newer server. ``certification_request`` (PEM, "" if there is
    none) comes only from ``get_key_version``; ``token``, on which it was made, and ``placements``,
    where its private key is, are shown to officers, auditors and operators; ``primary``: it is the
    version that signs for its key; ``compromised``: it was once marked as compromised, in
    whatever state it is now; ``suspension`` says why it signs nothing whatever its state is, "" if
    neither its facility, nor its group, nor everything is suspended; ``wrapping``, for those who
    see placements: how its private key is wrapped, None if tokens hold it; ``signatures_used``:
    the items that this appliance was ever asked to sign with it, of ``lifetime_signatures`` that
    the policy allows it, 0 if it has no such bound.
    """

    name: str
    algorithm: str
    state: str
    public_key: bytes
    certificate: bytes | None
    kid: bytes
    jwk_thumbprint: str
    created: datetime | None
    activate_at: datetime | None
    sign_until: datetime | None
    deactivate_at: datetime | None
    destroy_at: datetime | None
    certification_request: str
    token: str
    primary: bool
    compromised: bool = False
    placements: tuple[Placement, ...] = ()
    suspension: str = ""
    wrapping: Wrapping | None = None
    signatures_used: int = 0
    lifetime_signatures: int = 0


class WrappingKey(NamedTuple):
    """A wrapping key and the labels of the ``tokens`` that hold it.

    ``created`` (UTC) is None if only key versions name it; ``newest_on`` are the tokens that
    wrap new private keys by it; ``key_versions`` counts those that it has wrapped.
    """

    id: str
    cka_id: bytes
    created: datetime | None
    tokens: tuple[str, ...]
    newest_on: tuple[str, ...]
    destroyed: bool
    key_versions: int


class Quota(NamedTuple):
    """``remaining`` of ``limit`` items are left in a window of ``window_seconds``."""

    limit: int
    window_seconds: int
    remaining: int


class Key(NamedTuple):
    """A key and what this caller may do with it.

    ``formats`` is empty and ``max_batch_items`` 0 for readers who may not sign;
    ``primary`` is None if no version is active. ``needs_cosignatures``: it signs HCERT only beside
    a signed record for each payload.
    """

    name: str
    algorithm: str
    primary: KeyVersion | None
    formats: tuple[str, ...]
    max_batch_items: int
    quotas: tuple[Quota, ...]
    needs_cosignatures: bool = False

    @property
    def most_items(self) -> int:
        """Items that a call may have, by the policy and by the smallest quota; 0: not known."""
        limits = (self.max_batch_items, *(quota.limit for quota in self.quotas))
        return min((limit for limit in limits if limit), default=0)


class Worker(NamedTuple):
    """One worker process; ``pid`` is 0 while it does not run."""

    token: str
    pid: int
    state: str
    starts: int
    items: int
    reason: str


class Usage(NamedTuple):
    """Items of one facility: accepted since the log began, waiting now, accepted of late."""

    facility: str
    items: int
    queued_items: int
    last_minute: int = 0
    last_hour: int = 0


class Status(NamedTuple):
    """The state of the daemon; ``reasons`` says why it is not ready.

    ``differences`` are those between registry and tokens, found at the start.
    """

    version: str
    started: datetime | None
    ready: bool
    reasons: tuple[str, ...]
    policy_sha256: str
    facilities: int
    key_versions: int
    queued_items: int
    workers: tuple[Worker, ...]
    busiest: tuple[Usage, ...]
    differences: tuple[str, ...] = ()


class LogRecord(NamedTuple):
    """One record of the audit log.

    ``leaf_hash`` is its leaf in the log's tree, SHA-256(0x00 ‖ ``head``); ``head``
    is deterministic CBOR with ``seq``, ``time`` (UTC) and ``kind`` again, and with
    count, width and Merkle root of ``items``, which are packed one after the
    other (see docs/auditing.md). ``omitted_bytes`` of head and items were left out.
    """

    seq: int
    time: datetime
    kind: str
    leaf_hash: bytes
    head: bytes
    items: bytes
    omitted_bytes: int


class Reloaded(NamedTuple):
    """What a reload changed; ``restart_needed`` names changed settings that need a restart."""

    policy_sha256: str
    policy_changed: bool
    certificate_changed: bool
    log_level: str
    log_level_changed: bool
    restart_needed: tuple[str, ...]


class Prepared(NamedTuple):
    """A prepared operation: the bytes to sign, and what it changes, one line each.

    ``content`` is b"" if there are ``problems``.
    """

    content: bytes
    difference: tuple[str, ...]
    problems: tuple[str, ...]


class OfficerSignature(NamedTuple):
    """One officer's signature over an operation; ``signed``: when the appliance received it."""

    officer: str
    signature: bytes
    signed: datetime | None


class Operation(NamedTuple):
    """One operation.

    ``state`` is PROPOSED, APPROVED, EXECUTING, WAITING (for certificates), DONE, FAILED,
    REJECTED or EXPIRED, or that of a newer server. ``officers`` is how many must sign, the
    proposer included. ``done`` counts the finished steps of ``total``, which is 0 before it
    begins. ``target`` is what it is about, "" if its kind says it. ``note`` says why it failed or
    was rejected, or what it waits for. ``content`` and ``difference`` come only from ``get``;
    ``result`` is None before its end.
    """

    id: str
    kind: str
    state: str
    proposer: str
    proposed: datetime | None
    expires: datetime | None
    officers: int
    signatures: tuple[OfficerSignature, ...]
    content: bytes
    difference: tuple[str, ...]
    done: int
    total: int
    note: str
    result: Mapping[str, Any] | None
    changed: datetime | None
    target: str = ""


class Officer(NamedTuple):
    """An officer, and the certificate (DER) whose key signs operations."""

    principal: str
    certificate: bytes


class Officers(NamedTuple):
    """The officers, how many each kind of operation needs, and the log's origin."""

    officers: tuple[Officer, ...]
    needed: Mapping[str, int]
    origin: str


class Suspension(NamedTuple):
    """What is stopped: ``scope`` is "everything", "group" or "facility"."""

    scope: str
    name: str
    since: datetime | None
    officer: str
    reason: str


def _enum_name(enum: EnumDescriptor, number: int) -> str:
    """Returns the short name of an enum value, or its number where a newer server sent it.

    ``FORMAT_JWS`` becomes ``JWS``; the algorithm EdDSA keeps its JOSE spelling.
    """
    if number not in enum.values_by_number:
        return str(number)
    prefix = enum.values_by_number[0].name.removesuffix("UNSPECIFIED")
    short = enum.values_by_number[number].name.removeprefix(prefix)
    return Algorithm.EDDSA.value if short == Algorithm.EDDSA.name else short


def _default(field: Any) -> Callable[[Any], Any]:
    if field.enum_type is not None:
        return partial(_enum_name, field.enum_type)
    if field.message_type is Timestamp.DESCRIPTOR:
        return methodcaller("ToDatetime", tzinfo=UTC)
    return lambda value: value


def _getter(field: Any, convert: Callable[[Any], Any]) -> Callable[[Any], Any]:
    name: str = field.name
    if field.is_repeated:
        return lambda message: tuple(map(convert, getattr(message, name)))
    if field.message_type is not None:
        return lambda message: convert(getattr(message, name)) if message.HasField(name) else None
    return lambda message: convert(getattr(message, name))


def reader(
    kind: type[T], message: type[Message], **special: str | Callable[[Any], Any]
) -> Callable[[Any], T]:
    """Returns the function that makes a ``kind`` (a NamedTuple) of an API message.

    Each field is read from the member of the same name, or of the name in ``special``; a
    function in ``special`` converts the member's value, of a repeated one each value.
    Times become UTC, and None if they are absent; enums become their short names.
    """
    names: tuple[str, ...] = kind._fields  # type: ignore[attr-defined] # of a NamedTuple
    getters = []
    for name in names:
        how = special.get(name, name)
        field = message.DESCRIPTOR.fields_by_name[how if isinstance(how, str) else name]
        getters.append(_getter(field, _default(field) if isinstance(how, str) else how))
    return lambda source: kind(*(get(source) for get in getters))


read_key_version = reader(
    KeyVersion,
    keys_pb2.KeyVersion,
    certificate=lambda der: der or None,
    created="create_time",
    activate_at="activate_time",
    sign_until="sign_until_time",
    deactivate_at="deactivate_time",
    destroy_at="destroy_time",
    placements=lambda at: Placement(at.token, at.cka_id),
    wrapping=reader(Wrapping, keys_pb2.Wrapping),
)
read_wrapping_key = reader(WrappingKey, keys_pb2.WrappingKey, created="create_time")
read_key = reader(Key, keys_pb2.Key, primary=read_key_version, quotas=reader(Quota, keys_pb2.Quota))
read_log_record = reader(LogRecord, evidence_pb2.LogRecord, time="record_time")
read_status = reader(
    Status,
    control_pb2.GetStatusResponse,
    started="start_time",
    workers=reader(Worker, control_pb2.WorkerStatus),
    busiest=reader(Usage, control_pb2.FacilityUsage),
)
read_reloaded = reader(Reloaded, control_pb2.ReloadResponse)
read_prepared = reader(Prepared, operations_pb2.PrepareOperationResponse)
read_operation = reader(
    Operation,
    operations_pb2.Operation,
    proposed="propose_time",
    expires="expire_time",
    signatures=reader(OfficerSignature, operations_pb2.OfficerSignature, signed="sign_time"),
    result=lambda text: json.loads(text) if text else None,
    changed="change_time",
)
read_suspension = reader(Suspension, operations_pb2.Suspension, since="begin_time")
_read_officer = reader(Officer, operations_pb2.Officer)


def read_officers(message: operations_pb2.ListOfficersResponse) -> Officers:
    return Officers(
        tuple(map(_read_officer, message.officers)), dict(message.needed), message.origin
    )
