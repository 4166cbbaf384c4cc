"""Reads records from their canonical bytes, and only from those."""

from typing import Any, NamedTuple

from signer import cbor
from signer.audit.format.merkle import leaf_hash
from signer.audit.format.record import (
    COLUMN_NAMES,
    HASH_SIZE,
    LEAF_ITEMS,
    MAX_BODY,
    MAX_DEPTH,
    Column,
    Fields,
    Record,
    RecordError,
    RecordKind,
    Shape,
    count_of,
)

NEWER = "was written by a newer version of signer: read it with that version or a later one"

_KINDS = {str(kind): kind for kind in RecordKind}


class NewerError(RecordError):
    """An intact record of a kind that only a later version of signer knows."""


class RecordHead(NamedTuple):
    """A record without the items of its column."""

    seq: int
    time_us: int
    kind: RecordKind
    fields: Fields
    shape: Shape | None


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
        column = Column(shape.width, data, shape.leaf_items)
        if column.root() != shape.root:
            raise RecordError("the root of the record's column differs from its head")
    elif data is not None:
        raise RecordError("the record has a column, but its head describes none")
    return Record(seq, time_us, kind, fields, column), leaf_hash(encoded)


def parse_head(head: bytes) -> RecordHead:
    """Reads a head from its canonical bytes; raises RecordError for any other bytes."""
    fields = _decode(head, "head")
    if type(fields) is not dict:
        raise RecordError("the head is not a map")
    seq = count_of(fields.pop("seq", None), "seq")
    time_us = count_of(fields.pop("time", None), "time")
    name = fields.pop("kind", None)
    if type(name) is not str:
        raise RecordError("the head has no kind")
    if (kind := _KINDS.get(name)) is None:
        raise NewerError(f"a record of an unknown kind {NEWER}")
    shape = None
    if not COLUMN_NAMES.isdisjoint(fields):
        count = count_of(fields.pop("count", None), "count")
        width = count_of(fields.pop("width", None), "width")
        root, leaf_items = fields.pop("root", None), fields.pop("leaf_items", None)
        if type(root) is not bytes or len(root) != HASH_SIZE or not width:
            raise RecordError("the head has no root and width of its column")
        if leaf_items not in (None, LEAF_ITEMS):
            raise RecordError(f"the leaves of the column do not have {LEAF_ITEMS} items")
        shape = Shape(count, width, root, leaf_items or 1)
    return RecordHead(seq, time_us, kind, fields, shape)


def _decode(data: bytes, what: str) -> Any:
    if len(data) > MAX_BODY:
        raise RecordError(f"a {what} of {len(data)} bytes is longer than the limit of {MAX_BODY}")
    try:
        return cbor.decode_record(data, MAX_DEPTH)
    except cbor.CborError as error:
        raise RecordError(f"the {what} is not deterministic CBOR: it has {error}") from None
