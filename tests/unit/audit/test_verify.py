"""The whole verification: what it counts, what it says, and what it asks of checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from signer.audit.checkpoint import Checkpoint
from signer.audit.log import AuditLog
from signer.audit.merkle import root
from signer.audit.record import FIRST_CHAIN, Column, Kind, Record, frame
from signer.audit.segments import Header, Reader, Segment, list_segments
from signer.audit.verify import verify_log
from signer.clock import SystemClock

ORIGIN = "signer.example/log"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log of 20 signed batches of 3, in segments that begin with snapshots."""
    path = tmp_path_factory.mktemp("verify") / "audit"
    log = AuditLog.open(
        path,
        origin=ORIGIN,
        clock=SystemClock(),
        segment_bytes=2000,
        low_disk_bytes=0,
        ballast_bytes=0,
        snapshot=dict,
    )
    log.append(Kind.START, {})
    for number in range(20):
        intent = log.append(Kind.INTENT, {"now": number}, Column(32, bytes(96)))
        log.append(Kind.OUTCOME, {"intent": intent, "attempts": 1}, Column(64, bytes(192)))
    log.close()
    return path


def checkpoint(folder: Path, size: int | None = None) -> Checkpoint:
    reader = Reader(list_segments(folder))
    size = reader.size if size is None else size
    return Checkpoint(ORIGIN, size, root(reader.leaf_hashes(0, size)))


def test_it_counts_what_is_there(folder: Path) -> None:
    known = checkpoint(folder)
    report = verify_log(folder, ORIGIN, [known])
    assert report.whole
    assert report.problems == ()
    assert report.kinds == {Kind.START: 1, Kind.INTENT: 20, Kind.OUTCOME: 20}
    assert report.items == 60
    assert report.first == report.open_intents == 0
    assert (report.records, report.root, report.covered) == (known.size, known.root, known.size)
    reader = Reader(list_segments(folder))
    [last] = reader.records(reader.size - 1, reader.size)
    assert report.time_us == last.time_us


def test_progress_ends_at_all_bytes(folder: Path) -> None:
    told: list[tuple[int, int]] = []
    verify_log(folder, ORIGIN, [], lambda done, total: told.append((done, total)))
    size = sum(segment.path.stat().st_size for segment in list_segments(folder))
    assert told[-1] == (size, size)
    assert told == sorted(told)


def test_many_checkpoints_are_compared(folder: Path) -> None:
    sizes = [0, 1, 7, 20, 41]
    report = verify_log(folder, ORIGIN, [checkpoint(folder, size) for size in sizes])
    assert report.whole
    assert report.covered == 41


def test_one_checkpoint_that_lies_is_told(folder: Path) -> None:
    lie = Checkpoint(ORIGIN, 7, bytes(32))
    report = verify_log(folder, ORIGIN, [checkpoint(folder), lie])
    assert report.problems == ("a checkpoint of 7 records has another root than the log",)
    assert not report.whole


def test_two_checkpoints_of_one_size_cannot_both_be_true(folder: Path) -> None:
    true = checkpoint(folder, 7)
    report = verify_log(folder, ORIGIN, [true, Checkpoint(ORIGIN, 7, bytes(32))])
    assert report.problems == ("a checkpoint of 7 records has another root than the log",)


@pytest.mark.parametrize("name", ["empty", "absent"])
def test_a_directory_without_a_log_is_no_log(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    [problem] = verify_log(tmp_path / name, ORIGIN, []).problems
    assert "holds no segment" in problem


def test_the_end_of_a_log_verifies_only_as_such(folder: Path, tmp_path: Path) -> None:
    last = list_segments(folder)[-1]
    (tmp_path / last.path.name).write_bytes(last.path.read_bytes())
    known = checkpoint(folder)
    missing = f"the records before {last.first} are missing"
    assert verify_log(tmp_path, ORIGIN, [known]).problems == (missing,)
    report = verify_log(tmp_path, ORIGIN, [known], archived=True)
    assert report.problems == ()
    assert (report.first, report.records) == (last.first, known.size)
    [unproven] = verify_log(tmp_path, ORIGIN, [], archived=True).problems
    assert "no checkpoint proves" in unproven


def test_archived_segments_verify_where_they_are(folder: Path, tmp_path: Path) -> None:
    *archived, last = list_segments(folder)
    for segment in archived:
        (tmp_path / segment.path.name).write_bytes(segment.path.read_bytes())
    report = verify_log(tmp_path, ORIGIN, [checkpoint(folder, last.first)])
    assert report.whole
    assert report.records == last.first


def test_what_a_writer_is_just_writing_is_not_torn(folder: Path, tmp_path: Path) -> None:
    for segment in list_segments(folder):
        (tmp_path / segment.path.name).write_bytes(segment.path.read_bytes())
    last = list_segments(tmp_path)[-1].path
    data = last.read_bytes()
    states = iter([data[:-20], data])

    def write_on(_done: int, _total: int) -> None:
        """Once in every reading, before the last segment is read."""
        if (state := next(states, None)) is not None:
            last.write_bytes(state)

    last.write_bytes(data[:-40])
    assert verify_log(tmp_path, ORIGIN, [checkpoint(folder)], _once_in_a_reading(write_on)).whole


def _once_in_a_reading(write_on: Callable[[int, int], None]) -> Callable[[int, int], None]:
    before = 0

    def progress(done: int, total: int) -> None:
        nonlocal before
        if before == 0 or done < before:
            write_on(done, total)
        before = done

    return progress


def test_a_tail_that_stays_torn_is_told(folder: Path, tmp_path: Path) -> None:
    for segment in list_segments(folder):
        (tmp_path / segment.path.name).write_bytes(segment.path.read_bytes())
    with list_segments(tmp_path)[-1].path.open("ab") as file:
        file.write(b"torn")
    [problem] = verify_log(tmp_path, ORIGIN, [checkpoint(folder)]).problems
    assert "no frame" in problem


# Records that follow the chain, but not each other

INTENT = Record(0, 5, Kind.INTENT, {"now": 1})
OUTCOME = Record(1, 5, Kind.OUTCOME, {"intent": 0})
PEAK = INTENT.leaf_hash()


@pytest.mark.parametrize(
    ("records", "text"),
    [
        ([INTENT, Record(2, 5, Kind.START, {})], "record 2 stands where record 1 belongs"),
        ([INTENT, INTENT], "record 0 stands where record 1 belongs"),
        ([INTENT, Record(1, 4, Kind.START, {})], "the time goes back"),
        ([Record(0, 5, Kind.OUTCOME, {"intent": 0})], "closes no open intent"),
        ([INTENT, OUTCOME, Record(2, 5, Kind.OUTCOME, {"intent": 0})], "closes no open intent"),
        (
            [INTENT, OUTCOME, Record(2, 5, Kind.INDETERMINATE, {"intent": 0})],
            "closes no open intent",
        ),
        (
            [INTENT, Record(1, 5, Kind.SNAPSHOT, {"frontier": [bytes(32)], "open": [0]})],
            "does not say what led to it",
        ),
        (
            [INTENT, Record(1, 5, Kind.SNAPSHOT, {"frontier": [PEAK], "open": []})],
            "does not say what led to it",
        ),
    ],
)
def test_records_that_do_not_follow_are_told(
    tmp_path: Path, records: list[Record], text: str
) -> None:
    written, chain = Header(ORIGIN, 0, FIRST_CHAIN).frame()
    for record in records:
        framed, chain = frame(chain, record.body())
        written += framed
    Segment.named(tmp_path, 0).path.write_bytes(written)
    [problem] = verify_log(tmp_path, ORIGIN, []).problems
    assert text in problem


def test_a_snapshot_that_says_the_truth_verifies(tmp_path: Path) -> None:
    written, chain = Header(ORIGIN, 0, FIRST_CHAIN).frame()
    for record in (INTENT, Record(1, 5, Kind.SNAPSHOT, {"frontier": [PEAK], "open": [0]})):
        framed, chain = frame(chain, record.body())
        written += framed
    Segment.named(tmp_path, 0).path.write_bytes(written)
    assert verify_log(tmp_path, ORIGIN, []).whole
