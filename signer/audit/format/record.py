"""Records of the audit log: their canonical bytes and hashes, and their frames on disk.

A record is a head, one deterministic CBOR map (RFC 8949 section 4.2.1), and optionally
a column: items of one width, packed, whose count, width and Merkle root are in the head.
A record's leaf in the log's tree is the hash of its head alone, so that a head can be
shown with the path of one item and without the other items.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, NamedTuple

from signer import cbor
from signer.audit.format import merkle

Value = int | str | bytes | bool | None | Sequence["Value"] | Mapping[str, "Value"]
"""The value of a field. Sequences are read as lists; integers have 64 bits and a sign."""

MAX_BODY = 8 << 20
"""Bytes of a record's body at most."""

MAX_DEPTH = 8
"""Maps and lists inside each other at most, the head included."""

HASH_SIZE = 32
LENGTH_SIZE = 4

FIRST_CHAIN = bytes(HASH_SIZE)
"""The chain hash before the first frame of a log."""

_COLUMN_NAMES = frozenset({"count", "width", "root"})
_RESERVED = frozenset({"seq", "time", "kind"}) | _COLUMN_NAMES


class RecordError(Exception):
    """Bytes that are not a record, or a record that cannot be written. Never quotes values."""


class NewerError(RecordError):
    """An intact record of a kind that only a later version of signer knows."""


NEWER = "was written by a newer version of signer: read it with that version or a later one"


class RecordKind(enum.StrEnum):
    """What a record is about. A new kind is a new format: older versions refuse the whole log."""

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
    SNAPSHOT = "snapshot"
    RECOVERY = "recovery"
    OVERRIDE = "override"


_KINDS = {str(kind): kind for kind in RecordKind}


@dataclass(frozen=True, slots=True)
class Column:
    """Items of ``width`` bytes each, packed one after the other into ``data``."""

    width: int
    data: bytes

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

    def leaf_hashes(self) -> list[bytes]:
        """Returns SHA-256(0x00 ‖ item) of every item."""
        data, width, hashed = self.data, self.width, sha256
        return [
            hashed(b"\x00" + data[start : start + width]).digest()
            for start in range(0, len(data), width)
        ]

    def root(self) -> bytes:
        """Returns the root of the RFC 6962 tree that has each item as a leaf."""
        if len(self.data) == self.width:  # the most frequent column: one item is its own tree
            return merkle.leaf_hash(self.data)
        return merkle.root(self.leaf_hashes())


@dataclass(frozen=True, slots=True)
class Shape:
    """The column of a record as its head describes it."""

    count: int
    width: int
    root: bytes


class RecordHead(NamedTuple):
    """A record without the items of its column."""

    seq: int
    time_us: int
    kind: RecordKind
    fields: Mapping[str, Value]
    shape: Shape | None


@dataclass(frozen=True, slots=True)
class Record:
    """One record. ``seq`` counts from 0 and is the index of its leaf in the log's tree.

    ``time_us`` is microseconds since the epoch, UTC. Names of fields are ASCII and differ
    from those of the head itself (seq, time, kind, count, width, root).
    """

    seq: int
    time_us: int
    kind: RecordKind
    fields: Mapping[str, Value]
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
    fields: Mapping[str, Value],
    column: Column | None = None,
    *,
    root: bytes | None = None,
) -> tuple[bytes, bytes]:
    """Returns a record's body and leaf hash; ``root`` is the column's, if already computed.

    Raises RecordError for fields that a record cannot hold.
    """
    head = _head(seq, time_us, kind, fields, _shape(column, root))
    return _body(head, column), merkle.leaf_hash(head)


def parse(body: bytes) -> Record:
    """Reads a record from its canonical bytes; raises RecordError for any other bytes.

    The column is compared with the count, width and root in the head.
    """
    return parse_with_leaf(body)[0]


def parse_with_leaf(body: bytes) -> tuple[Record, bytes]:
    """Does the same as ``parse``, and returns the record's leaf hash with the record."""
    parts = _decode(body, "record")
    if type(parts) is not list or len(parts) != 2 or type(parts[0]) is not bytes:
        raise RecordError("the record does not consist of a head and a column")
    encoded, data = parts
    seq, time_us, kind, fields, shape = parse_head(encoded)
    column = None
    if shape is not None:
        if type(data) is not bytes or len(data) != shape.count * shape.width:
            raise RecordError("the size of the record's column differs from its head")
        column = Column(shape.width, data)
        if column.root() != shape.root:
            raise RecordError("the root of the record's column differs from its head")
    elif data is not None:
        raise RecordError("the record has a column, but its head describes none")
    return Record(seq, time_us, kind, fields, column), merkle.leaf_hash(encoded)


def parse_head(head: bytes) -> RecordHead:
    """Reads a head from its canonical bytes; raises RecordError for any other bytes."""
    fields = _decode(head, "head")
    if type(fields) is not dict:
        raise RecordError("the head is not a map")
    seq = _count(fields.pop("seq", None), "seq")
    time_us = _count(fields.pop("time", None), "time")
    name = fields.pop("kind", None)
    if type(name) is not str:
        raise RecordError("the head has no kind")
    kind = _KINDS.get(name)
    if kind is None:
        raise NewerError(f"a record of an unknown kind {NEWER}")
    shape = None
    if not _COLUMN_NAMES.isdisjoint(fields):
        count = _count(fields.pop("count", None), "count")
        width = _count(fields.pop("width", None), "width")
        root = fields.pop("root", None)
        if type(root) is not bytes or len(root) != HASH_SIZE or not width:
            raise RecordError("the head has no root and width of its column")
        shape = Shape(count, width, root)
    return RecordHead(seq, time_us, kind, fields, shape)


def frame(previous: bytes, body: bytes) -> tuple[bytes, bytes]:
    """Returns the bytes of a frame and its chain hash, SHA-256(previous ‖ body).

    A frame is the body's length (4 bytes, big-endian), the body, the chain hash.
    """
    chain = sha256(previous + body).digest()
    return len(body).to_bytes(LENGTH_SIZE, "big") + body + chain, chain


def _shape(column: Column | None, root: bytes | None = None) -> Shape | None:
    if column is None:
        return None
    return Shape(column.count, column.width, root or column.root())


def _head(
    seq: int, time_us: int, kind: RecordKind, fields: Mapping[str, Value], shape: Shape | None
) -> bytes:
    if not _RESERVED.isdisjoint(fields):
        raise RecordError("a field has a name that is reserved for the head")
    named: dict[str, Value] = {
        "seq": _count(seq, "seq"),
        "time": _count(time_us, "time"),
        "kind": kind.value,
        **fields,
    }
    if shape is not None:
        named |= {"count": shape.count, "width": shape.width, "root": shape.root}
    return _encode(named)


def _body(head: bytes, column: Column | None) -> bytes:
    body = cbor.encode_record([head, column.data if column else None], 1)
    if len(body) > MAX_BODY:
        raise RecordError(f"a record of {len(body)} bytes is longer than the limit of {MAX_BODY}")
    return body


def _encode(fields: Mapping[str, Value]) -> bytes:
    try:
        return cbor.encode_record(fields, MAX_DEPTH)
    except cbor.CborError as error:
        raise RecordError(f"a record cannot hold {error}") from None


def _decode(data: bytes, what: str) -> Any:
    if len(data) > MAX_BODY:
        raise RecordError(f"a {what} of {len(data)} bytes is longer than the limit of {MAX_BODY}")
    try:
        return cbor.decode_record(data, MAX_DEPTH)
    except cbor.CborError as error:
        raise RecordError(f"the {what} is not deterministic CBOR: it has {error}") from None


def _count(value: object, name: str) -> int:
    if type(value) is not int or value < 0:
        raise RecordError(f"{name} is not a number from 0 on")
    return value
