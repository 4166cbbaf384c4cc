"""Snapshots say what the records before them come to: quotas and request ids."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from signer.audit.format.checkpoint import Checkpoint
from signer.audit.format.merkle import Frontier
from signer.audit.format.parse import parse
from signer.audit.format.record import FIRST_CHAIN, Column, Record, RecordKind, Value, frame
from signer.audit.format.segments import Header, Segment
from signer.audit.read.ledger import Ledger
from signer.audit.read.ledger_check import LedgerFold, LedgerPart
from signer.audit.read.verify import verify_log
from tests.unit.audit.test_ledger import MONDAY, closing, fold, intent

ORIGIN = "signer.example/log"
OUTCOME = RecordKind.OUTCOME


def history() -> list[Record]:
    """Requests of two facilities, some answered, one lost, one without an end."""
    records: list[Record] = []
    for number in range(8):
        time_us = (MONDAY + number) * 1_000_000
        asked = {"facility": f"01-00{number % 2}", "request_id": f"id-{number}", "items": 3}
        records.append(
            intent(len(records), time_us=time_us, now=MONDAY + number, **asked)  # type: ignore[arg-type]
        )
        if number % 4 != 3:
            kind = RecordKind.INDETERMINATE if number == 5 else OUTCOME
            records.append(closing(kind, len(records), len(records) - 1, time_us))
    return records


def snapshot_at(records: Sequence[Record], place: int, **changes: Value) -> Record:
    """The snapshot after so many records, as it comes back from the log."""
    fields = {**fold(records[:place]).snapshot(), **changes}
    seam = Record(place, records[place - 1].time_us, RecordKind.SNAPSHOT, fields)
    return parse(seam.body())


def joined(*parts: Sequence[Record]) -> list[str]:
    checked = LedgerFold()
    for records in parts:
        part = LedgerPart()
        for record in records:
            part.take(record)
        checked.join(part)
    return checked.problems


@pytest.mark.parametrize("place", range(1, len(history())))
def test_a_true_snapshot_has_no_problem(place: int) -> None:
    records = history()
    assert joined(records[:place], [snapshot_at(records, place), *records[place:]]) == []


LIES: list[Callable[[Record], dict[str, Value]]] = [
    lambda _: {"requests": b"", "used": {}, "versions": []},
    lambda _: {"requests": b""},
    lambda _: {"used": {}, "versions": []},
    lambda s: {"used": {n: [r[0], [0, 0, 0, 0], r[2]] for n, r in _used(s).items()}},
    lambda s: {
        "used": {n: [r[0], r[1], {"records": 1}] for n, r in _used(s).items()},
        "versions": [1] * len(_used(s)),
    },
    lambda _: {"versions": [2, 2]},
]


def _used(snapshot: Record) -> dict[str, Any]:
    used = snapshot.fields["used"]
    assert isinstance(used, dict)
    return used


@pytest.mark.parametrize("lie", LIES)
def test_a_snapshot_that_says_less_than_was_used_is_a_problem(
    lie: Callable[[Record], dict[str, Value]],
) -> None:
    records = history()
    place = len(records) - 2
    changes = lie(snapshot_at(records, place))
    [problem] = joined(records[:place], [snapshot_at(records, place, **changes), *records[place:]])
    assert problem.startswith(f"record {place}: ")
    assert "quotas or request ids were reset" in problem


def test_a_lie_is_told_once_and_what_follows_is_compared_with_it() -> None:
    records = history()
    lie = snapshot_at(records, 4, used={}, requests=b"", versions=[])
    second = [lie, *records[4:9]]
    third = Record(9, records[8].time_us, RecordKind.SNAPSHOT, fold(second, Ledger()).snapshot())
    assert len(joined(records[:4], second, [parse(third.body()), *records[9:]])) == 1


def test_snapshots_without_a_ledger_are_compared_with_nothing() -> None:
    records = history()
    bare = Record(4, records[3].time_us, RecordKind.SNAPSHOT, {})
    assert joined(records[:4], [bare, *records[4:8]], [snapshot_at(records, 8)]) == []


def test_an_intent_that_cannot_be_counted_is_a_problem_and_ends_the_comparison() -> None:
    records = history()
    fields = {name: value for name, value in records[2].fields.items() if name != "now"}
    records[2] = records[2]._replace(fields=fields)
    [problem] = joined(
        records[:4], [Record(4, 9, RecordKind.SNAPSHOT, {"requests": b"", "used": {}})]
    )
    assert problem.startswith("record 2: now is not a number")


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("lies", [False, True])
def test_a_log_is_compared_at_every_seam(tmp_path: Path, processes: int, lies: bool) -> None:
    ledger, frontier, written = Ledger(), Frontier(), 0
    chain = FIRST_CHAIN
    for segment in range(4):
        data, chain = Header(ORIGIN, written, chain).frame()
        records = []
        if segment:
            said = ledger.snapshot() if segment != 2 or not lies else Ledger().snapshot()
            fields = {**said, "frontier": frontier.to_list(), "open": []}
            records.append(Record(written, 9, RecordKind.SNAPSHOT, fields))
        for number in range(3):
            at = written + len(records)
            asked = intent(at, request_id=f"{segment} {number}", time_us=9)
            made = Column(64, bytes(64))
            records += [asked, closing(OUTCOME, at + 1, at, 9)._replace(column=made)]
        path = Segment.named(tmp_path, written).path
        for record in records:
            framed, chain = frame(chain, record.body())
            data += framed
            frontier.append(record.leaf_hash())
            if record.kind is not RecordKind.SNAPSHOT:
                ledger.apply(record)
            elif lies and segment == 2:
                ledger = Ledger()
            written += 1
        path.write_bytes(data)
    known = Checkpoint(ORIGIN, written, frontier.root())
    report = verify_log(tmp_path, ORIGIN, [known], folds=[LedgerFold], processes=processes)
    assert [text.partition(":")[0] for text in report.problems] == ["record 13"] * lies
