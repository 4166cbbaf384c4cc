"""The whole verification: what it counts, what it says, and what it asks of checkpoints."""

import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from signer.audit.format.checkpoint import Checkpoint
from signer.audit.format.merkle import Frontier, root
from signer.audit.format.record import FIRST_CHAIN, Column, Record, RecordKind, Value, frame
from signer.audit.format.segments import Header, Segment, list_segments
from signer.audit.read.reader import Reader
from signer.audit.read.verify import verify_log, verify_part
from signer.audit.write.log import Listener
from tests.stand_ins import small_log

ORIGIN = "signer.example/log"
INTENT = Record(0, 5, RecordKind.INTENT, {"now": 1})
OUTCOME = Record(1, 5, RecordKind.OUTCOME, {"intent": 0})
PEAK = INTENT.leaf_hash()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log of 20 signed batches of 3, in segments that begin with snapshots."""
    path = tmp_path_factory.mktemp("verify") / "audit"
    log = small_log(
        path, origin=ORIGIN, segment_bytes=2000, listeners=[Listener(lambda _: None, snapshot=dict)]
    )
    log.append(RecordKind.START, {})
    for number in range(20):
        intent = log.append(RecordKind.INTENT, {"now": number}, Column(32, bytes(96)))
        log.append(RecordKind.OUTCOME, {"intent": intent, "attempts": 1}, Column(64, bytes(192)))
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
    assert report.kinds == {RecordKind.START: 1, RecordKind.INTENT: 20, RecordKind.OUTCOME: 20}
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
    assert report.problems == (
        "two checkpoints of 7 records have different roots: the audit key has signed two logs",
        "a checkpoint of 7 records has another root than the log",
    )


@pytest.mark.parametrize("size", [3, 10_000])
def test_a_fork_is_told_where_nothing_here_can_be_compared(
    folder: Path, tmp_path: Path, size: int
) -> None:
    _, *middle, _ = list_segments(folder)
    for segment in middle:
        (tmp_path / segment.path.name).write_bytes(segment.path.read_bytes())
    two = [Checkpoint(ORIGIN, size, bytes([number] * 32)) for number in (1, 2)]
    known = [checkpoint(folder, middle[0].first + 1), *two]
    report = verify_log(tmp_path, ORIGIN, known, beginning_elsewhere=True, end_elsewhere=True)
    [problem] = report.problems
    assert f"two checkpoints of {size} records have different roots" in problem


@pytest.mark.parametrize("name", ["empty", "absent"])
def test_a_directory_without_a_log_is_no_log(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    [problem] = verify_log(tmp_path / name, ORIGIN, []).problems
    assert "contains no segment" in problem


def test_the_end_of_a_log_verifies_only_as_such(folder: Path, tmp_path: Path) -> None:
    last = list_segments(folder)[-1]
    (tmp_path / last.path.name).write_bytes(last.path.read_bytes())
    known = checkpoint(folder)
    missing = f"the records before {last.first} are missing"
    assert verify_log(tmp_path, ORIGIN, [known]).problems == (missing,)
    report = verify_log(tmp_path, ORIGIN, [known], beginning_elsewhere=True)
    assert report.problems == ()
    assert (report.first, report.records) == (last.first, known.size)
    [unproven] = verify_log(tmp_path, ORIGIN, [], beginning_elsewhere=True).problems
    assert "no checkpoint proves" in unproven


def test_archived_segments_verify_where_they_are(folder: Path, tmp_path: Path) -> None:
    *archived, last = list_segments(folder)
    for segment in archived:
        (tmp_path / segment.path.name).write_bytes(segment.path.read_bytes())
    report = verify_log(tmp_path, ORIGIN, [checkpoint(folder, last.first)])
    assert report.whole
    assert report.records == last.first


def test_an_archive_may_end_early_but_only_where_that_is_said(folder: Path, tmp_path: Path) -> None:
    *archived, last = list_segments(folder)
    for segment in archived:
        (tmp_path / segment.path.name).write_bytes(segment.path.read_bytes())
    known = [checkpoint(folder, 7), checkpoint(folder)]
    [problem] = verify_log(tmp_path, ORIGIN, known).problems
    assert f"ends after {last.first} records, but a checkpoint covers {known[1].size}" in problem
    report = verify_log(tmp_path, ORIGIN, known, end_elsewhere=True)
    assert (report.problems, report.records, report.covered) == ((), last.first, 7)
    lie = Checkpoint(ORIGIN, 8, bytes(32))
    [problem] = verify_log(tmp_path, ORIGIN, [*known, lie], end_elsewhere=True).problems
    assert "another root" in problem
    [problem] = verify_log(tmp_path, ORIGIN, known[1:], end_elsewhere=True).problems
    assert problem == "no checkpoint proves any of these records"


def test_a_part_from_the_middle_verifies_by_itself(folder: Path) -> None:
    _, *middle, last = list_segments(folder)
    known = [checkpoint(folder, middle[0].first + 1), checkpoint(folder)]
    report = verify_part(middle, ORIGIN, known)
    assert (report.problems, report.first, report.records) == ((), middle[0].first, last.first)
    [problem] = verify_part(middle, ORIGIN, known[1:]).problems
    assert "which no checkpoint proves" in problem


# Segments that are read at once: whatever is wrong at their seams is found as ever


def written(directory: Path, *segments: list[Record], first: int = 0) -> None:
    """Writes segments that continue each other's chain, whatever their records say."""
    directory.mkdir(exist_ok=True)
    chain = FIRST_CHAIN
    for records in segments:
        data, chain = Header(ORIGIN, first, chain).frame()
        for record in records:
            framed, chain = frame(chain, record.body())
            data += framed
        Segment.named(directory, first).path.write_bytes(data)
        first += len(records)


def snapshot(seq: int, time_us: int, before: list[Record], intents: list[int]) -> Record:
    frontier = Frontier()
    for record in before:
        frontier.append(record.leaf_hash())
    fields: dict[str, Value] = {"frontier": frontier.to_list(), "open": intents}
    return Record(seq, time_us, RecordKind.SNAPSHOT, fields)


def test_a_seam_that_fits_is_passed(tmp_path: Path) -> None:
    seam = snapshot(1, 5, [INTENT], [0])
    written(tmp_path, [INTENT], [seam, Record(2, 5, RecordKind.OUTCOME, {"intent": 0})])
    assert verify_log(tmp_path, ORIGIN, []).whole


@pytest.mark.parametrize(
    ("seam", "text"),
    [
        pytest.param(lambda: snapshot(1, 5, [INTENT], []), "differs from the records", id="open"),
        pytest.param(
            lambda: snapshot(1, 5, [INTENT], [0, 1]), "differs from the records", id="more"
        ),
        pytest.param(lambda: snapshot(1, 5, [OUTCOME], [0]), "differs from the records", id="tree"),
        pytest.param(lambda: snapshot(1, 4, [INTENT], [0]), "the time goes back", id="time"),
        pytest.param(
            lambda: snapshot(2, 5, [INTENT, OUTCOME], []),
            "in the position of record 1",
            id="number",
        ),
    ],
)
@pytest.mark.parametrize("processes", [1, 2])
def test_a_seam_that_lies_is_told(
    tmp_path: Path, seam: Callable[[], Record], text: str, processes: int
) -> None:
    """All that follows agrees with the lie, so that the second segment is right by itself."""
    lie = seam()
    written(tmp_path, [INTENT], [lie, Record(lie.seq + 1, 9, RecordKind.START, {})])
    [problem] = verify_log(tmp_path, ORIGIN, [], processes=processes).problems
    assert problem.startswith("0000000000000001.log: at ")
    assert text in problem


def test_a_segment_of_another_chain_or_after_a_gap_is_told(tmp_path: Path) -> None:
    seam = snapshot(1, 5, [INTENT], [0])
    written(tmp_path / "log", [INTENT], [seam])
    written(tmp_path / "other", [Record(0, 6, RecordKind.INTENT, {"now": 2})], [seam])
    second = Segment.named(tmp_path / "log", 1).path
    second.write_bytes((tmp_path / "other" / second.name).read_bytes())
    [problem] = verify_log(tmp_path / "log", ORIGIN, []).problems
    assert problem == f"{second.name}: the segment does not continue the chain of the one before"
    written(tmp_path / "gap", [INTENT])
    written(tmp_path / "gap", [snapshot(2, 5, [INTENT, OUTCOME], [])], first=2)
    [problem] = verify_log(tmp_path / "gap", ORIGIN, []).problems
    assert problem.endswith("the segment begins with record 2 instead of 1")


@pytest.mark.parametrize("damage", [None, 1, 3])
def test_several_processes_say_what_one_says(
    folder: Path, tmp_path: Path, damage: int | None
) -> None:
    shutil.copytree(folder, tmp_path / "log")
    if damage is not None:
        path = list_segments(tmp_path / "log")[damage].path
        data = bytearray(path.read_bytes())
        data[-50] ^= 1
        path.write_bytes(data)
    known = [checkpoint(folder), Checkpoint(ORIGIN, 5, bytes(32)), checkpoint(folder, 30)]
    one, two = (verify_log(tmp_path / "log", ORIGIN, known, processes=each) for each in (1, 2))
    assert one == two
    assert len(one.problems) == (1 if damage is None else 3)


def test_a_process_that_is_killed_ends_the_reading(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("signer.audit.read.verify._leave_interrupts", partial(os._exit, 9))
    with pytest.raises(OSError, match="was killed"):
        verify_log(folder, ORIGIN, [], processes=2)


def test_what_a_writer_is_just_writing_is_not_torn(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
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


def test_a_segment_that_is_just_begun_is_nothing_yet(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    known = checkpoint(folder)
    Segment.named(tmp_path, known.size).path.touch()
    report = verify_log(tmp_path, ORIGIN, [known])
    assert (report.problems, report.records) == ((), known.size)
    # Only the last file may be empty.
    list_segments(tmp_path)[1].path.write_bytes(b"")
    [problem, *_] = verify_log(tmp_path, ORIGIN, [known]).problems
    assert "is empty" in problem


def test_a_tail_that_stays_torn_is_told(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    with list_segments(tmp_path)[-1].path.open("ab") as file:
        file.write(b"torn")
    [problem] = verify_log(tmp_path, ORIGIN, [checkpoint(folder)]).problems
    assert "are not a frame" in problem


# Records that follow the chain, but not each other


@pytest.mark.parametrize(
    ("records", "text"),
    [
        ([INTENT, Record(2, 5, RecordKind.START, {})], "record 2 is in the position of record 1"),
        ([INTENT, INTENT], "record 0 is in the position of record 1"),
        (
            [INTENT, Record(1, 4, RecordKind.CLOCK, {"wrong_from": 0, "right_until": 3})],
            "the time goes back",
        ),
        (
            [INTENT, Record(1, 2, RecordKind.CLOCK, {"wrong_from": 1, "right_until": 3})],
            "the time goes back",
        ),
        ([INTENT, Record(1, 4, RecordKind.START, {})], "the time goes back"),
        ([Record(0, 5, RecordKind.OUTCOME, {"intent": 0})], "closes an intent that is not open"),
        (
            [INTENT, OUTCOME, Record(2, 5, RecordKind.OUTCOME, {"intent": 0})],
            "closes an intent that is not open",
        ),
        (
            [INTENT, OUTCOME, Record(2, 5, RecordKind.INDETERMINATE, {"intent": 0})],
            "closes an intent that is not open",
        ),
        (
            [INTENT, Record(1, 5, RecordKind.SNAPSHOT, {"frontier": [bytes(32)], "open": [0]})],
            "differs from the records before it",
        ),
        (
            [INTENT, Record(1, 5, RecordKind.SNAPSHOT, {"frontier": [PEAK], "open": []})],
            "differs from the records before it",
        ),
    ],
)
def test_records_that_do_not_follow_are_told(
    tmp_path: Path, records: list[Record], text: str
) -> None:
    written(tmp_path, records)
    [problem] = verify_log(tmp_path, ORIGIN, []).problems
    assert text in problem


def test_a_snapshot_that_says_the_truth_verifies(tmp_path: Path) -> None:
    written(tmp_path, [INTENT, snapshot(1, 5, [INTENT], [0])])
    assert verify_log(tmp_path, ORIGIN, []).whole
