"""Records of the audit log: what they hold, their canonical bytes, and how they follow each other.

A record is a head, one deterministic CBOR map (RFC 8949 section 4.2.1), and optionally
a column: items of one width, packed, whose count, width and Merkle root are in the head. The
leaves of a column's tree are up to 16 neighbouring items each; in version 1 of the log one.
A record's leaf in the log's tree is the hash of its head alone, so that a head can be
shown with the path of a few items and without all others.

The fields of INTENT, OUTCOME and INDETERMINATE, and the log's own fields of SNAPSHOT, are
written and read here and nowhere else.
"""

import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from typing import TypeVar

from signer import cbor
from signer.audit.format import failures, merkle
from signer.model import HcertTerms

T = TypeVar("T")

Value = int | str | bytes | bool | None | Sequence["Value"] | Mapping[str, "Value"]
"""The value of a field. Sequences are read as lists; integers have 64 bits and a sign."""

Fields = Mapping[str, Value]

MAX_BODY = 8 << 20
"""Bytes of a record's body at most."""

MAX_DEPTH = 8
"""Maps and lists inside each other at most, the head included."""

HASH_SIZE = 32
LENGTH_SIZE = 4

FIRST_CHAIN = bytes(HASH_SIZE)
"""The chain hash before the first frame of a log."""

LEAF_ITEMS = 16
"""Items in a leaf of a column's tree; the last leaf may have fewer."""

COLUMN_NAMES = frozenset({"count", "width", "root", "leaf_items"})
_NUMBERED = frozenset({"seq", "time", "kind"})
_RESERVED = _NUMBERED | COLUMN_NAMES


class RecordError(Exception):
    """Bytes that are not a record, or a record that cannot be written. Never quotes values."""


class RecordKind(enum.StrEnum):
    """What a record is about. A new kind is a new format: older versions refuse the whole log."""

    __hash__ = str.__hash__  # an enum's own is slow, and kinds are keys for every record

    START = "start"
    STOP = "stop"
    INTENT = "intent"
    OUTCOME = "outcome"
    INDETERMINATE = "indeterminate"
    DENIALS = "denials"
    POLICY = "policy"
    TOKEN = "token"  # noqa: S105  # a kind of record, not a secret
    WORKER = "worker"
    KEYS = "keys"
    OFFICERS = "officers"
    PROPOSAL = "proposal"
    APPROVAL = "approval"
    REJECTION = "rejection"
    EXECUTION = "execution"
    EXECUTED = "executed"
    ACT = "act"
    CLOCK = "clock"
    SNAPSHOT = "snapshot"
    RECOVERY = "recovery"
    OVERRIDE = "override"


@dataclass(frozen=True, slots=True)
class Column:
    """Items of ``width`` bytes each, packed one after the other into ``data``.

    ``leaf_items`` neighbouring items are one leaf of its tree: LEAF_ITEMS, in version 1 one.
    """

    width: int
    data: bytes
    leaf_items: int = LEAF_ITEMS

    def __post_init__(self) -> None:
        if self.width < 1 or len(self.data) % self.width:
            raise RecordError(
                f"a column of {len(self.data)} bytes does not hold items of {self.width}"
            )

    @property
    def count(self) -> int:
        return len(self.data) // self.width

    def item(self, index: int) -> bytes:
        """Returns one item; raises IndexError."""
        if not 0 <= index < self.count:
            raise IndexError(f"item {index} is not in a column of {self.count}")
        return self.data[index * self.width : (index + 1) * self.width]

    def leaf(self, index: int) -> bytes:
        """Returns the items of the leaf that holds item ``index``; raises IndexError."""
        first, stop = leaf_range(index, self.count, self.leaf_items)
        return self.data[first * self.width : stop * self.width]

    def leaf_hashes(self) -> list[bytes]:
        """Returns SHA-256(0x00 ‖ items) of every leaf."""
        data, size, hashed = self.data, self.leaf_items * self.width, sha256
        return [
            hashed(b"\x00" + data[start : start + size]).digest()
            for start in range(0, len(data), size)
        ]

    def root(self) -> bytes:
        """Returns the root of the RFC 6962 tree of the leaves."""
        if 0 < len(self.data) <= self.leaf_items * self.width:  # mostly: one leaf is the tree
            return merkle.leaf_hash(self.data)
        return merkle.root(self.leaf_hashes())


def leaf_range(index: int, count: int, leaf_items: int) -> tuple[int, int]:
    """Returns the items [first, stop) of the leaf that holds item ``index`` of ``count``.

    Raises IndexError.
    """
    if not 0 <= index < count:
        raise IndexError(f"item {index} is not in a column of {count}")
    first = index - index % leaf_items
    return first, min(first + leaf_items, count)


@dataclass(frozen=True, slots=True)
class Shape:
    """The column of a record as its head describes it."""

    count: int
    width: int
    root: bytes
    leaf_items: int

    @property
    def leaves(self) -> int:
        """How many leaves the column's tree has."""
        return -(-self.count // self.leaf_items)


@dataclass(frozen=True, slots=True)
class Record:
    """One record. ``seq`` counts from 0 and is the index of its leaf in the log's tree.

    ``time_us`` is microseconds since the epoch, UTC. Names of fields are ASCII and differ
    from those of the head itself (seq, time, kind, count, width, root, leaf_items).
    """

    seq: int
    time_us: int
    kind: RecordKind
    fields: Fields
    column: Column | None = None

    def head(self) -> bytes:
        """Returns the head's canonical bytes; raises RecordError."""
        return _head(self.seq, self.time_us, self.kind, self.fields, _shape(self.column))

    def body(self) -> bytes:
        """Returns the record's canonical bytes; raises RecordError."""
        return _body(self.head(), self.column)

    def leaf_hash(self) -> bytes:
        """Returns the record's leaf in the log's tree: SHA-256(0x00 ‖ head)."""
        return merkle.leaf_hash(self.head())


def encode(
    seq: int,
    time_us: int,
    kind: RecordKind,
    fields: Fields,
    column: Column | None = None,
    *,
    root: bytes | None = None,
) -> tuple[bytes, bytes]:
    """Returns a record's body and leaf hash; ``root`` is the column's, if already computed.

    Raises RecordError for fields that a record cannot hold.
    """
    head = _head(seq, time_us, kind, fields, _shape(column, root))
    return _body(head, column), merkle.leaf_hash(head)


def chain_hash(previous: bytes, body: bytes) -> bytes:
    """Returns the chain hash after a frame, SHA-256(previous ‖ body)."""
    chain = sha256(previous)
    chain.update(body)  # not joined: a body may have megabytes
    return chain.digest()


def frame(previous: bytes, body: bytes) -> tuple[bytes, bytes]:
    """Returns the bytes of a frame and its chain hash.

    A frame is the body's length (4 bytes, big-endian), the body, the chain hash.
    """
    chain = chain_hash(previous, body)
    return len(body).to_bytes(LENGTH_SIZE, "big") + body + chain, chain


DOUBTFUL = "machine_time"
"""The field of records that were made while the machine's clock was in doubt.

It has the time of that clock in microseconds; the record's own time is the appliance's.
"""


def wrong_from(fields: Fields) -> int:
    """Returns the number of the first record of which a CLOCK says that its time is wrong.

    So are the times of all records from it to the CLOCK; 0: none is wrong. Raises RecordError.
    """
    return number(fields, "wrong_from", 0)


# --- what records of signing hold ------------------------------------------------------------

CLOSING = frozenset({RecordKind.OUTCOME, RecordKind.INDETERMINATE})
"""Records that close an intent; ``intent`` is its sequence number."""


def _reader(kind: type[T], what: str) -> Callable[..., T]:
    """Returns a reader of fields of one type."""

    def read(fields: Fields, name: str, default: T | None = None) -> T:
        """Returns the field ``name``; ``default`` if it is missing. Raises RecordError."""
        value = fields.get(name, default)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise RecordError(f"{name} is not {what}")
        return value

    return read


text = _reader(str, "text")
number = _reader(int, "a number")
octets = _reader(bytes, "a byte string")


@dataclass(frozen=True, slots=True)
class IntentRecord:
    """An INTENT: what is about to be signed, for whom, and under which rule.

    Its column holds the digests of the items that go to the HSM. ``payload_hash`` is the
    hash of the whole request, ``asked`` its number of payloads, ``now`` the time in messages
    (seconds since the epoch), ``policy`` a SHA-256. ``failed`` has the items that were
    refused before and their reasons, by their index among the payloads; those of version 1
    have a message, too: ``REASON: message``.
    """

    principal: str
    request_id: str
    call_id: str
    payload_hash: bytes
    key_version: str
    kid: bytes
    format: str
    rule: str
    policy: bytes
    facility: str
    group: str
    now: int
    hcert: HcertTerms | None
    asked: int
    failed: Mapping[int, str]

    def to_fields(self) -> dict[str, Value]:
        hcert = self.hcert
        return {
            "principal": self.principal,
            "request_id": self.request_id,
            "call_id": self.call_id,
            "payload_hash": self.payload_hash,
            "key_version": self.key_version,
            "kid": self.kid,
            "format": self.format,
            "rule": self.rule,
            "policy": self.policy,
            "facility": self.facility,
            "group": self.group,
            "now": self.now,
            "hcert": None if hcert is None else [hcert.issuer, hcert.validity],
            "asked": self.asked,
            "failed": failures.pack(self.failed),
        }

    @classmethod
    def from_fields(cls, fields: Fields) -> "IntentRecord":
        """Reads the fields; those that a proof does not show may be missing."""
        policy = octets(fields, "policy")
        if len(policy) != HASH_SIZE:
            raise RecordError("policy is not a SHA-256")
        hcert = None
        match fields.get("hcert"):
            case [str(issuer), int(validity)]:
                hcert = HcertTerms(issuer, validity)
        return cls(
            principal=text(fields, "principal"),
            request_id=text(fields, "request_id", ""),
            call_id=text(fields, "call_id", ""),
            payload_hash=octets(fields, "payload_hash", b""),
            key_version=text(fields, "key_version"),
            kid=octets(fields, "kid", b""),
            format=text(fields, "format"),
            rule=text(fields, "rule"),
            policy=policy,
            facility=text(fields, "facility", ""),
            group=text(fields, "group", ""),
            now=number(fields, "now", 0),
            hcert=hcert,
            asked=number(fields, "asked", 0),
            failed=reasons(fields, "failed"),
        )


@dataclass(frozen=True, slots=True)
class OutcomeRecord:
    """An OUTCOME: what became of an intent.

    Its column holds a signature for each digest of the intent, zeros for those in
    ``failures``, which has their reasons as ``IntentRecord.failed`` does, by their index
    there. ``attempts`` is how often the HSM was asked.
    """

    intent: int
    attempts: int
    failures: Mapping[int, str]

    def to_fields(self) -> dict[str, Value]:
        return {
            "intent": self.intent,
            "attempts": self.attempts,
            "failures": failures.pack(self.failures),
        }

    @classmethod
    def from_fields(cls, fields: Fields) -> "OutcomeRecord":
        return cls(
            number(fields, "intent"), number(fields, "attempts", 0), reasons(fields, "failures")
        )


def indeterminate(intent: int, reason: str = "") -> dict[str, Value]:
    """Returns the fields of an INDETERMINATE: nothing of the intent is released.

    ``reason`` is empty if a start closes what an earlier process has left open.
    """
    return {"intent": intent, "reason": reason} if reason else {"intent": intent}


def reasons(fields: Fields, name: str) -> dict[int, str]:
    """Returns the reasons of failed items by their index; none if the field is missing.

    Raises RecordError.
    """
    packed = fields.get(name, {})
    if not isinstance(packed, Mapping):
        raise RecordError(f"{name} is not a map")
    try:
        return failures.unpack(packed)
    except ValueError as error:
        raise RecordError(f"{name} {error}") from None


# --- encoding ----------------------------------------------------------------------------------


def _shape(column: Column | None, root: bytes | None = None) -> Shape | None:
    if column is None:
        return None
    return Shape(column.count, column.width, root or column.root(), column.leaf_items)


def _head(seq: int, time_us: int, kind: RecordKind, fields: Fields, shape: Shape | None) -> bytes:
    named: dict[str, Value] = {
        "seq": count_of(seq, "seq"),
        "time": count_of(time_us, "time"),
        "kind": str(kind),
        **fields,
    }
    of_column: dict[str, Value] = {}
    if shape is not None:
        of_column = {"count": shape.count, "width": shape.width, "root": shape.root}
        if shape.leaf_items > 1:  # version 1 did not say it
            of_column["leaf_items"] = shape.leaf_items
        named |= of_column
    try:
        return cbor.encode_members(named, _in_order(tuple(fields), tuple(of_column)), MAX_DEPTH)
    except cbor.CborError as error:
        raise RecordError(f"a record cannot hold {error}") from None


@lru_cache(maxsize=64)
def _in_order(fields: tuple[object, ...], of_column: tuple[str, ...]) -> tuple[str, ...]:
    """Returns the names of a head in their order: records of a kind have the same fields.

    Raises RecordError and CborError.
    """
    if not _RESERVED.isdisjoint(fields):
        raise RecordError("a field has a name that is reserved for the head")
    return tuple(cbor.record_names((*_NUMBERED, *fields, *of_column)))


def _body(head: bytes, column: Column | None) -> bytes:
    # An array of two: the head, and the column's items or null (RFC 8949 section 3).
    items = cbor.byte_string(column.data) if column else b"\xf6"
    body = b"\x82" + cbor.byte_string(head) + items
    if len(body) > MAX_BODY:
        raise RecordError(f"a record of {len(body)} bytes is longer than the limit of {MAX_BODY}")
    return body


def count_of(value: object, name: str) -> int:
    if type(value) is not int or value < 0:
        raise RecordError(f"{name} is not a number from 0 on")
    return value
