"""Records of the audit log: canonical bytes, what they hash to, and their frames on disk.

A record is one deterministic CBOR map (RFC 8949 section 4.2.1), its head, and
perhaps a column: items of one width, packed, of which the head holds count,
width and Merkle root. A record's leaf in the log's tree is the hash of its
head alone, so that a head can be shown with one item's path and no other item.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from mmap import mmap
from typing import Any, NamedTuple, NoReturn

from signer import cbor
from signer.audit.format import merkle

Value = int | str | bytes | bool | None | Sequence["Value"] | Mapping[str, "Value"]
"""What a field holds. Sequences come back as lists; integers have at most 64 bits and a sign."""

MAX_BODY = 8 << 20
"""Bytes of a record's body."""

MAX_DEPTH = 8
"""Maps and lists inside each other, the head included."""

HASH_SIZE = 32
LENGTH_SIZE = 4

FIRST_CHAIN = bytes(HASH_SIZE)
"""What the first frame of a log continues."""

_COLUMN_NAMES = frozenset({"count", "width", "root"})
_RESERVED = frozenset({"seq", "time", "kind"}) | _COLUMN_NAMES


class RecordError(Exception):
    """Bytes that are no record, or a record that cannot be written. Never quotes values."""


class NewerError(RecordError):
    """An intact record of a kind that a later version of signer has made."""


class FrameError(RecordError):
    """Frames end here: ``offset`` is where the first bytes lie that are no frame."""

    def __init__(self, offset: int, text: str) -> None:
        super().__init__(text)
        self.offset = offset


class TornTail(FrameError):  # noqa: N818  # a finding that recovery handles, not a fault
    """No intact frame follows ``offset``: what an interrupted write leaves."""


class BrokenFrame(FrameError):  # noqa: N818  # the counterpart of TornTail
    """Intact frames follow the bytes at ``offset``: no interruption explains that."""


class NewerFrame(FrameError):  # noqa: N818  # neither torn nor broken, and not ours to cut
    """The frame at ``offset`` is intact, and of a format that a later version has made."""


NEWER = "was written by a newer version of signer: read it with that version, or a later one"


class RecordKind(enum.StrEnum):
    """What a record is about. A new kind is a new format: older versions refuse the whole log."""

    START = "start"
    STOP = "stop"
    INTENT = "intent"
    OUTCOME = "outcome"
    INDETERMINATE = "indeterminate"
    DENIALS = "denials"
    POLICY = "policy"
    TOKEN = "token"  # noqa: S105  # a kind of record, no secret
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
    """What a head says about its column."""

    count: int
    width: int
    root: bytes


class Head(NamedTuple):
    """A record without the items of its column."""

    seq: int
    time_us: int
    kind: RecordKind
    fields: Mapping[str, Value]
    shape: Shape | None


@dataclass(frozen=True, slots=True)
class Record:
    """One record. ``seq`` counts from 0 and is the index of its leaf in the log's tree.

    ``time_us`` is microseconds since the epoch, UTC. Names of fields are ASCII
    and never those of the head itself (seq, time, kind, count, width, root).
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
    """Returns a record's body and leaf hash, with the column's root where the caller has it.

    Raises RecordError for what a record cannot hold.
    """
    head = _head(seq, time_us, kind, fields, _shape(column, root))
    return _body(head, column), merkle.leaf_hash(head)


def parse(body: bytes) -> Record:
    """Reads a record from its canonical bytes, and only from those; raises RecordError.

    The column is checked against the root, count and width of the head.
    """
    return parse_with_leaf(body)[0]


def parse_with_leaf(body: bytes) -> tuple[Record, bytes]:
    """As ``parse``, with the record's leaf hash beside it."""
    parts = _decode(body, "record")
    if type(parts) is not list or len(parts) != 2 or type(parts[0]) is not bytes:
        raise RecordError("the record is not a head and a column")
    encoded, data = parts
    seq, time_us, kind, fields, shape = parse_head(encoded)
    column = None
    if shape is not None:
        if type(data) is not bytes or len(data) != shape.count * shape.width:
            raise RecordError("the record's column does not have the size that its head says")
        column = Column(shape.width, data)
        if column.root() != shape.root:
            raise RecordError("the record's column does not have the root that its head says")
    elif data is not None:
        raise RecordError("the record has a column that its head does not know")
    return Record(seq, time_us, kind, fields, column), merkle.leaf_hash(encoded)


def parse_head(head: bytes) -> Head:
    """Reads a head from its canonical bytes, and only from those; raises RecordError."""
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
            raise RecordError("the head does not tell the root and width of its column")
        shape = Shape(count, width, root)
    return Head(seq, time_us, kind, fields, shape)


class Frame(NamedTuple):
    """One record on disk: where its frame begins, its body, and the chain's hash after it."""

    offset: int
    body: bytes
    chain: bytes

    @property
    def end(self) -> int:
        """Where the next frame begins."""
        return self.offset + LENGTH_SIZE + len(self.body) + HASH_SIZE


def frame(previous: bytes, body: bytes) -> tuple[bytes, bytes]:
    """Returns the bytes of a frame and its chain hash, SHA-256(previous ‖ body).

    A frame is the body's length (4 bytes, big-endian), the body, the chain hash.
    """
    chain = sha256(previous + body).digest()
    return len(body).to_bytes(LENGTH_SIZE, "big") + body + chain, chain


def read_frames(
    data: bytes | memoryview | mmap, previous: bytes, offset: int = 0
) -> Generator[Frame, None, None]:
    """Yields the frames from ``offset`` on; ``previous`` is the chain hash before them.

    Ends at the end of the data. Raises TornTail or BrokenFrame at the first
    bytes that are no frame of this chain. Bodies are not parsed.
    """
    size = len(data)
    while offset < size:
        one = _frame_at(data, previous, offset)
        if one is None:
            _refuse(data, offset)
        yield one
        previous = one.chain
        offset += LENGTH_SIZE + len(one.body) + HASH_SIZE


def _frame_at(data: bytes | memoryview | mmap, previous: bytes, offset: int) -> Frame | None:
    """The frame at ``offset``, or None where none that continues ``previous`` lies."""
    begin = offset + LENGTH_SIZE
    length = int.from_bytes(data[offset:begin], "big")
    end = begin + length
    if not 0 < length <= MAX_BODY or end + HASH_SIZE > len(data):
        return None
    body, chain = bytes(data[begin:end]), bytes(data[end : end + HASH_SIZE])
    return Frame(offset, body, chain) if sha256(previous + body).digest() == chain else None


def _refuse(data: bytes | memoryview | mmap, offset: int) -> NoReturn:
    """Tells a torn tail from a break: only after a break does an intact frame follow."""
    rest = bytes(data[offset:])
    budget = _SEARCH_BYTES
    # A frame is intact by itself: it continues the hash that stands before it.
    for candidate in _FRAME_BEGINNING.finditer(rest, HASH_SIZE):
        start = candidate.start()
        budget -= int.from_bytes(rest[start : start + LENGTH_SIZE], "big")
        if budget < 0 or _frame_at(rest, rest[start - HASH_SIZE : start], start) is not None:
            raise BrokenFrame(
                offset,
                f"the bytes at {offset} are no frame of this chain, but frames follow them",
            )
    raise TornTail(offset, f"the bytes from {offset} to the end are no frame of this chain")


_FRAME_BEGINNING = re.compile(rb"(?=[\x00][\x00-\x80]..\x82[\x58-\x5a])", re.DOTALL)
"""A length up to MAX_BODY, an array of two, a byte string as long as heads are (24 or more)."""

_SEARCH_BYTES = 1 << 30
"""Bytes hashed in search of an intact frame; beyond, a break is assumed: that refuses more."""


def _shape(column: Column | None, root: bytes | None = None) -> Shape | None:
    if column is None:
        return None
    return Shape(column.count, column.width, root or column.root())


def _head(
    seq: int, time_us: int, kind: RecordKind, fields: Mapping[str, Value], shape: Shape | None
) -> bytes:
    if not _RESERVED.isdisjoint(fields):
        raise RecordError("a field has a name that the head itself uses")
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
        raise RecordError(f"a record of {len(body)} bytes is longer than {MAX_BODY}")
    return body


def _encode(fields: Mapping[str, Value]) -> bytes:
    try:
        return cbor.encode_record(fields, MAX_DEPTH)
    except cbor.CborError as error:
        raise RecordError(f"a record cannot hold {error}") from None


def _decode(data: bytes, what: str) -> Any:
    if len(data) > MAX_BODY:
        raise RecordError(f"a {what} of {len(data)} bytes is longer than {MAX_BODY}")
    try:
        return cbor.decode_record(data, MAX_DEPTH)
    except cbor.CborError as error:
        raise RecordError(f"the {what} is not deterministic CBOR: it has {error}") from None


def _count(value: object, name: str) -> int:
    if type(value) is not int or value < 0:
        raise RecordError(f"{name} is not a count")
    return value
