"""Records of the audit log: what they hold, their canonical bytes, and how they follow each other.

A record is a head, one deterministic CBOR map (RFC 8949 section 4.2.1), and optionally
a column: items of one width, packed, whose count, width and Merkle root are in the head. The
leaves of a column's tree are up to 16 neighbouring items each; in version 1 of the log one.
A record's leaf in the log's tree is the hash of its head alone, so that a head can be
shown with the path of a few items and without all others.

The log's own fields of SNAPSHOT are written and read here and nowhere else; those of INTENT,
OUTCOME and INDETERMINATE in batch_records.
"""

import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from typing import Any, NamedTuple, TypeVar

import cbor2

from signer import cbor
from signer.audit.format import merkle

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
_RESERVED = COLUMN_NAMES | {"seq", "time", "kind"}


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


class Record(NamedTuple):
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
        return _head(self.seq, self.time_us, self.kind, self.fields, _described(self.column))

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
    head = _head(seq, time_us, kind, fields, _described(column, root))
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


# --- fields, and how records follow each other ----------------------------------------------

CLOSING = frozenset({RecordKind.OUTCOME, RecordKind.INDETERMINATE})
"""Records that close an intent; ``intent`` is its sequence number."""

DOUBTFUL = "machine_time"
"""The field of records that were made while the machine's clock was in doubt.

It has the time of that clock in microseconds; the record's own time is the appliance's.
"""


def wrong_from(fields: Fields) -> int:
    """Returns the number of the first record of which a CLOCK says that its time is wrong.

    So are the times of all records from it to the CLOCK; 0: none is wrong. Raises RecordError.
    """
    return number(fields, "wrong_from", 0)


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


class Tip:
    """The end of the log: what the next record has to continue.

    ``chain`` is the chain hash of the last frame, ``time_us`` the log's time,
    ``frontier`` the tree so far, and ``open`` the numbers of intents without an outcome.

    The log's time is the latest of its records' times. Only a CLOCK that officers have confirmed
    moves it back; behind another one, ``last_us``, the time of the last record, is earlier.
    """

    def __init__(self) -> None:
        self.chain = FIRST_CHAIN
        self.time_us = self.last_us = 0
        self.frontier = merkle.Frontier()
        self.open: set[int] = set()

    @property
    def size(self) -> int:
        """How many records the log has: the sequence number of the next."""
        return self.frontier.size

    def check(self, kind: RecordKind, fields: Fields) -> None:
        """Raises RecordError if such a record may not be the next."""
        if kind in CLOSING:
            if fields.get("intent") not in self.open:
                raise RecordError(f"an {kind} closes an intent that is not open")
        elif kind is RecordKind.SNAPSHOT and any(
            fields.get(name) != value for name, value in self.snapshot().items()
        ):
            raise RecordError("a snapshot differs from the records before it")

    def check_time(self, record: Record) -> None:
        """Raises RecordError if the next record is earlier than the last one.

        Only a CLOCK may be, also one that nobody has confirmed: the log is whole with it.
        """
        if record.time_us < earliest(self.last_us, record.kind, record.fields):
            raise RecordError("the time goes back")

    def add(self, record: Record, leaf: bytes, *, confirmed: bool = True) -> None:
        """Adds the next record, which ``check`` has accepted.

        ``confirmed``: officers have confirmed it, if it is a CLOCK.
        """
        if record.kind is RecordKind.INTENT:
            self.open.add(record.seq)
        elif record.kind in CLOSING:
            self.open.remove(record.fields["intent"])  # type: ignore[arg-type]  # checked
        self.last_us = record.time_us
        sets = record.kind is RecordKind.CLOCK and confirmed
        self.time_us = record.time_us if sets else max(self.time_us, record.time_us)
        self.frontier.append(leaf)

    def snapshot(self) -> dict[str, Value]:
        """Returns the fields of a SNAPSHOT record that describe the log itself."""
        return {"frontier": self.frontier.to_list(), "open": sorted(self.open)}

    def continue_from(self, snapshot: Record) -> None:
        """Starts before a SNAPSHOT record that begins a segment; raises RecordError.

        The snapshot is unproven until a checkpoint beyond it has been compared: the
        checkpoint's root covers these subtrees and the snapshot's own leaf.
        """
        if snapshot.kind is not RecordKind.SNAPSHOT:
            raise RecordError("the log begins neither with record 0 nor with a snapshot")
        peaks = _list_of(bytes, snapshot.fields, "frontier")
        try:
            self.frontier = merkle.Frontier(snapshot.seq, peaks)
        except ValueError as error:
            raise RecordError(f"the snapshot is wrong: {error}") from None
        self.open = set(_list_of(int, snapshot.fields, "open"))
        self.time_us = self.last_us = snapshot.time_us


def earliest(time_us: int, kind: RecordKind, fields: Fields) -> int:
    """Returns the time before which the record after ``time_us`` may not be, in microseconds.

    Only a CLOCK that declares times wrong may go back, to the last time that was right. Raises
    RecordError.
    """
    if kind is RecordKind.CLOCK and wrong_from(fields):
        return min(time_us, number(fields, "right_until"))
    return time_us


def _list_of(kind: type, fields: Fields, name: str) -> list[Any]:
    values = fields.get(name)
    if not isinstance(values, list) or any(type(value) is not kind for value in values):
        raise RecordError(f"{name} of the snapshot is not a list of the expected kind")
    return values


# --- encoding ----------------------------------------------------------------------------------


def _described(column: Column | None, root: bytes | None = None) -> dict[str, Value]:
    """Returns what a head says of its column."""
    if column is None:
        return {}
    root = root or column.root()
    named: dict[str, Value] = {"count": column.count, "width": column.width, "root": root}
    if column.leaf_items > 1:  # version 1 did not say it
        named["leaf_items"] = column.leaf_items
    return named


def _head(
    seq: int, time_us: int, kind: RecordKind, fields: Fields, of_column: Mapping[str, Value]
) -> bytes:
    members: dict[str, Value] = {
        "seq": count_of(seq, "seq"),
        "time": count_of(time_us, "time"),
        "kind": str(kind),
        **fields,
        **of_column,
    }
    try:
        encoder = _encoder(tuple(fields), tuple(members), tuple(map(type, members.values())))
        return encoder.encode(members)
    except cbor.CborError as error:
        raise RecordError(f"a record cannot hold {error}") from None


@lru_cache(maxsize=64)
def _encoder(
    fields: tuple[object, ...], names: tuple[str, ...], kinds: tuple[type, ...]
) -> cbor.MapEncoder:
    """Returns what encodes a head: records of a kind have the same names and kinds of values.

    Raises RecordError and CborError.
    """
    if not _RESERVED.isdisjoint(fields):
        raise RecordError("a field has a name that is reserved for the head")
    return cbor.MapEncoder(names, kinds, MAX_DEPTH)


def _body(head: bytes, column: Column | None) -> bytes:
    # An array of two: the head, and the column's items or null.
    body = cbor2.dumps((head, column.data if column else None))
    if len(body) > MAX_BODY:
        raise RecordError(f"a record of {len(body)} bytes is longer than the limit of {MAX_BODY}")
    return body


def count_of(value: object, name: str) -> int:
    if type(value) is not int or value < 0:
        raise RecordError(f"{name} is not a number from 0 on")
    return value
