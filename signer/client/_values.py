"""What the client returns, and the reading of it from the API's messages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple

from google.protobuf.timestamp_pb2 import Timestamp

from signer.client._errors import ItemError
from signer.model import Algorithm
from signer.v1 import control_pb2, evidence_pb2, keys_pb2, signing_pb2


@dataclass(frozen=True, slots=True)
class ItemResult:
    """What became of one payload.

    ``index`` counts from 0 in the order given. ``signature`` is the finished
    output of the format (text formats as ASCII), b"" where ``error`` is set.
    ``key_version`` is the version that signed, "" where the call failed.
    """

    index: int
    signature: bytes
    key_version: str
    error: ItemError | None = None

    @property
    def ok(self) -> bool:
        """Whether there is a signature."""
        return self.error is None


class KeyVersion(NamedTuple):
    """One version. ``public_key`` (SPKI) and ``certificate`` are DER; times are UTC.

    ``algorithm`` and ``state`` are the names of ``signer.model.Algorithm`` and
    ``KeyState``, or a newer server's own. ``certification_request`` (PEM, "" where
    none was made) comes only from ``get_key_version``; ``token`` is its label, for
    officers, auditors and operators; ``primary``: it is the one that signs for its key;
    ``compromised``: it was marked so, whatever became of it since.
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


class Quota(NamedTuple):
    """``remaining`` of ``limit`` signatures are left in a window of ``window_seconds``."""

    limit: int
    window_seconds: int
    remaining: int


class Key(NamedTuple):
    """A key and what this caller may do with it.

    ``formats`` is empty and ``max_batch_items`` 0 for readers who may not sign;
    ``primary`` is None where no version is active.
    """

    name: str
    algorithm: str
    primary: KeyVersion | None
    formats: tuple[str, ...]
    max_batch_items: int
    quotas: tuple[Quota, ...]


class Worker(NamedTuple):
    """One worker process; ``pid`` is 0 while none runs."""

    token: str
    pid: int
    state: str
    starts: int
    items: int
    reason: str


class Usage(NamedTuple):
    """Items of one facility: accepted since the start, and waiting now."""

    facility: str
    items: int
    queued_items: int


class Status(NamedTuple):
    """How the daemon is; ``reasons`` says why it is not ready.

    ``differences`` are those between registry and tokens, as found at the start.
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
    """One record of the audit log, as the appliance shows it.

    ``leaf_hash`` is its leaf in the log's tree, SHA-256(0x00 ‖ ``head``); ``head``
    is deterministic CBOR and holds ``seq``, ``time`` (UTC) and ``kind``, too, and
    count, width and Merkle root of ``items``, which are packed one after the
    other. ``omitted_bytes`` of head and items were left out.
    """

    seq: int
    time: datetime
    kind: str
    leaf_hash: bytes
    head: bytes
    items: bytes
    omitted_bytes: int


class Reloaded(NamedTuple):
    """What a reload changed; ``restart_needed`` names settings that take a restart."""

    policy_sha256: str
    policy_changed: bool
    certificate_changed: bool
    log_level: str
    log_level_changed: bool
    restart_needed: Sequence[str]


def read_time(stamp: Timestamp, present: bool) -> datetime | None:
    return stamp.ToDatetime(tzinfo=UTC) if present else None


def _name(enum_name: str, prefix: str) -> str:
    """``FORMAT_JWS`` → ``JWS``; the algorithm EdDSA keeps its JOSE spelling."""
    short = enum_name.removeprefix(prefix)
    return Algorithm.EDDSA.value if short == Algorithm.EDDSA.name else short


def read_enum(wrapper: object, number: int, prefix: str) -> str:
    """The short name of an enum value, or its number where it is a newer server's."""
    values = wrapper.DESCRIPTOR.values_by_number  # type: ignore[attr-defined] # not in the stubs
    return _name(values[number].name, prefix) if number in values else str(number)


def read_key_version(message: keys_pb2.KeyVersion) -> KeyVersion:
    return KeyVersion(
        message.name,
        read_enum(keys_pb2.Algorithm, message.algorithm, "ALGORITHM_"),
        read_enum(keys_pb2.KeyState, message.state, "KEY_STATE_"),
        message.public_key,
        message.certificate or None,
        message.kid,
        message.jwk_thumbprint,
        read_time(message.create_time, message.HasField("create_time")),
        read_time(message.activate_time, message.HasField("activate_time")),
        read_time(message.sign_until_time, message.HasField("sign_until_time")),
        read_time(message.deactivate_time, message.HasField("deactivate_time")),
        read_time(message.destroy_time, message.HasField("destroy_time")),
        message.certification_request,
        message.token,
        message.primary,
        message.compromised,
    )


def read_key(message: keys_pb2.Key) -> Key:
    return Key(
        message.name,
        read_enum(keys_pb2.Algorithm, message.algorithm, "ALGORITHM_"),
        read_key_version(message.primary) if message.HasField("primary") else None,
        tuple(read_enum(signing_pb2.Format, number, "FORMAT_") for number in message.formats),
        message.max_batch_items,
        tuple(Quota(q.limit, q.window_seconds, q.remaining) for q in message.quotas),
    )


def read_log_record(message: evidence_pb2.LogRecord) -> LogRecord:
    return LogRecord(
        message.seq,
        message.record_time.ToDatetime(tzinfo=UTC),
        message.kind,
        message.leaf_hash,
        message.head,
        message.items,
        message.omitted_bytes,
    )


def read_status(message: control_pb2.GetStatusResponse) -> Status:
    return Status(
        message.version,
        read_time(message.start_time, message.HasField("start_time")),
        message.ready,
        tuple(message.reasons),
        message.policy_sha256,
        message.facilities,
        message.key_versions,
        message.queued_items,
        tuple(
            Worker(w.token, w.pid, w.state, w.starts, w.items, w.reason) for w in message.workers
        ),
        tuple(Usage(u.facility, u.items, u.queued_items) for u in message.busiest),
        tuple(message.differences),
    )
