"""Finds signatures in a log, proves them, and shows records as JSON.

Only the log's files are needed, so this works on any machine with a copy. A search reads
every record once: an index by digest would be a second store to trust and to protect.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any, NamedTuple

from signer.audit.format import proof
from signer.audit.format.batch_records import reasons
from signer.audit.format.checkpoint import Checkpoint
from signer.audit.format.record import (
    CLOSING,
    Column,
    Record,
    RecordError,
    RecordKind,
    Value,
    number,
)
from signer.audit.read.reader import Reader
from signer.audit.read.subtrees import Subtrees
from signer.text import count

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FAILED = {RecordKind.INTENT: {"failed"}, RecordKind.OUTCOME: {"failures"}}


class SearchError(Exception):
    """The log has no answer; the text says why."""


class Match(NamedTuple):
    """One item: its intent, its index in the batch, and its outcome, if there is one."""

    intent: int
    item: int
    outcome: int | None


def find_items(records: Iterable[Record], wanted: frozenset[bytes]) -> Iterator[Match]:
    """Yields the items whose digest, or whose raw signature's SHA-256, is wanted.

    ``records`` are in the order of the log. An item is yielded when its outcome is reached;
    without an outcome, or closed as INDETERMINATE, it has None. Raises RecordError.
    """
    waiting: dict[int, list[int]] = {}
    for record in records:
        if record.kind is RecordKind.INTENT:
            if digests := _digests(record.column, wanted):
                waiting[record.seq] = digests
        elif record.kind in CLOSING:
            intent = number(record.fields, "intent")
            indices = {*waiting.pop(intent, ()), *_signatures(record.column, wanted)}
            outcome = record.seq if record.kind is RecordKind.OUTCOME else None
            for index in sorted(indices):
                yield Match(intent, index, outcome)
    for intent, unanswered in waiting.items():
        for index in unanswered:
            yield Match(intent, index, None)


def locate(reader: Reader, seq: int, index: int) -> Match:
    """Returns the item ``index`` of the intent or outcome ``seq``; raises SearchError."""
    try:
        record = reader.record(seq)
    except LookupError as error:
        raise SearchError(str(error.args[0])) from None
    if record.column is not None and 0 <= index < record.column.count:
        if record.kind is RecordKind.INTENT:
            return Match(seq, index, _outcome_of(reader, seq))
        if record.kind is RecordKind.OUTCOME:
            return Match(number(record.fields, "intent"), index, seq)
    raise SearchError(f"record {seq} is not an intent or outcome with an item {index}")


def prove_item(reader: Reader, match: Match, checkpoint: Checkpoint, note: str) -> str:
    """Returns the proof of one item as JSON, for ``proof.verify``.

    ``note`` is the signed text of the checkpoint. Raises SearchError if the item has no
    outcome or the checkpoint does not cover it, and ProofError.
    """
    if match.outcome is None:
        raise SearchError(
            f"item {match.item} of intent {match.intent} has no outcome: nothing was released"
        )
    if match.outcome >= checkpoint.size:
        raise SearchError(
            f"the checkpoint covers {count(checkpoint.size, 'record')} and the outcome is record "
            f"{match.outcome}: use a newer checkpoint"
        )
    try:
        tree = Subtrees(reader.leaf_hashes, reader.record(reader.first))
        return proof.build(
            reader.record(match.intent),
            reader.record(match.outcome),
            match.item,
            intent_path=tree.inclusion_proof(match.intent, checkpoint.size),
            outcome_path=tree.inclusion_proof(match.outcome, checkpoint.size),
            checkpoint_note=note,
        )
    except LookupError as error:
        raise SearchError(
            f"{error.args[0]}: put all segments of the log into one directory"
        ) from None


def describe(record: Record) -> dict[str, Any]:
    """Returns a record as JSON values: bytes in hex, the time in RFC 3339, UTC.

    The ``content`` of an operation is the text that officers have signed. Failed items are
    shown by their index.
    """
    described: dict[str, Any] = {
        "seq": record.seq,
        "time": utc(record.time_us),
        "kind": str(record.kind),
        "fields": _plain(record.fields),
    }
    content = record.fields.get("content")
    if isinstance(content, bytes) and content.isascii():
        described["fields"]["content"] = content.decode()
    for name in record.fields.keys() & _FAILED.get(record.kind, set()):
        with suppress(RecordError):
            failed = reasons(record.fields, name)
            described["fields"][name] = {str(index): failed[index] for index in sorted(failed)}
    if record.column is not None:
        column = record.column
        described["items"] = [column.item(index).hex() for index in range(column.count)]
    return described


def utc(time_us: int) -> str:
    """Returns microseconds since the epoch in RFC 3339."""
    time = _EPOCH + timedelta(microseconds=time_us)
    return time.isoformat(timespec="microseconds").replace("+00:00", "Z")


def _plain(value: Value) -> Any:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, str | int | None):
        return value
    if isinstance(value, Sequence):
        return [_plain(member) for member in value]
    return {name: _plain(member) for name, member in value.items()}


def _digests(column: Column | None, wanted: frozenset[bytes]) -> list[int]:
    # Searching the packed bytes first is a hundred times faster than separating the items.
    if column is None or not any(digest in column.data for digest in wanted):
        return []
    return [index for index in range(column.count) if column.item(index) in wanted]


def _signatures(column: Column | None, wanted: frozenset[bytes]) -> list[int]:
    if column is None:
        return []
    data, width = column.data, column.width
    return [
        start // width
        for start in range(0, len(data), width)
        if sha256(data[start : start + width]).digest() in wanted
    ]


def _outcome_of(reader: Reader, intent: int) -> int | None:
    later = reader.records(intent + 1, reader.size)
    closing = next((record for record in later if record.fields.get("intent") == intent), None)
    return closing.seq if closing and closing.kind is RecordKind.OUTCOME else None
