"""Moving closed segments: what may go, and that nothing is removed whose copy is not kept."""

from collections.abc import Callable
from pathlib import Path

import pytest

from signer.audit.format.checkpoint import Checkpoint
from signer.audit.format.record import Column, RecordKind
from signer.audit.format.segments import Segment, list_segments
from signer.audit.read.reader import Reader
from signer.audit.write.disk import Disk
from signer.audit.write.log import AuditLog, Listener
from signer.cli.audit.archive import keep_copy, movable, remove
from signer.errors import OperatorError
from tests.stand_ins import small_log

ORIGIN = "signer.example/log"
DAY_US = 86_400 * 1_000_000


class Days:
    """A clock on which every reading is a day later."""

    def __init__(self) -> None:
        self.day = 0

    def now(self) -> float:
        self.day += 1
        return self.day * 86_400.0

    def monotonic(self) -> float:
        return 0.0

    def machine(self) -> float:
        return self.day * 86_400.0

    def doubt(self) -> str:
        return ""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "audit"


@pytest.fixture
def log(folder: Path) -> AuditLog:
    return make(folder)


def make(folder: Path, snapshot: Callable[[], dict[str, int]] | None = dict) -> AuditLog:
    """A log of ten segments, one batch each; not closed."""
    log = small_log(
        folder,
        origin=ORIGIN,
        clock=Days(),
        segment_bytes=1000,
        listeners=[Listener(lambda _: None, snapshot=snapshot)],
    )
    while len(list_segments(folder)) < 10:
        intent = log.append(RecordKind.INTENT, {"now": 1}, Column(32, bytes(640)))
        log.append(RecordKind.OUTCOME, {"intent": intent}, Column(64, bytes(1280)))
    return log


def checkpoint(size: int) -> Checkpoint:
    return Checkpoint(ORIGIN, size, bytes(32))


def days_of(segment: Segment) -> list[int]:
    """The days of a segment's records."""
    reader = Reader(list_segments(segment.path.parent))
    firsts = [*(each.first for each in list_segments(segment.path.parent)), reader.size]
    stop = firsts[firsts.index(segment.first) + 1]
    return [record.time_us // DAY_US for record in reader.records(segment.first, stop)]


def test_what_the_next_start_reads_stays(log: AuditLog, folder: Path) -> None:
    log.close()
    segments = list_segments(folder)
    for place, segment in enumerate(segments):
        for size in (segment.first + 1, segment.first + 2):
            assert movable(segments, [checkpoint(size)], 1 << 62) == segments[:place]
    newest, mirrored = checkpoint(segments[7].first + 1), checkpoint(segments[3].first + 1)
    assert movable(segments, [newest, mirrored], 1 << 62) == segments[:3]
    assert movable(segments, [], 1 << 62) == []
    assert movable([], [newest], 1 << 62) == []


def test_what_may_be_repeated_stays(log: AuditLog, folder: Path) -> None:
    log.close()
    segments = list_segments(folder)
    known = [checkpoint(segments[-1].first + 1)]
    for day in range(days_of(segments[-1])[-1] + 1):
        going = movable(segments, known, day * DAY_US)
        assert all(max(days_of(segment)) <= day for segment in going)
        # Nor does anything stay that is older, up to the record that the next one begins with.
        assert len(going) >= sum(max(days_of(each)) < day - 1 for each in segments[:-1])
    assert movable(segments, known, 0) == []


def test_what_stays_begins_with_a_snapshot(folder: Path) -> None:
    make(folder, snapshot=None).close()
    segments = list_segments(folder)
    assert movable(segments, [checkpoint(segments[-1].first + 1)], 1 << 62) == []


class Watched(Disk):
    """Notes what becomes of which file."""

    def __init__(self) -> None:
        self.done: list[tuple[str, str]] = []
        self._paths: dict[int, str] = {}

    def open(self, path: Path) -> int:
        descriptor = super().open(path)
        self._paths[descriptor] = path.name
        return descriptor

    def sync(self, descriptor: int) -> None:
        super().sync(descriptor)
        self.done.append(("sync", self._paths[descriptor]))

    def rename(self, path: Path, target: Path) -> None:
        super().rename(path, target)
        self.done.append(("rename", target.name))

    def sync_directory(self, path: Path) -> None:
        super().sync_directory(path)
        self.done.append(("sync", path.name))

    def remove(self, path: Path) -> None:
        super().remove(path)
        self.done.append(("remove", path.name))


def test_a_copy_is_durable_before_it_has_its_name(tmp_path: Path) -> None:
    source, target, disk = tmp_path / "a.log", tmp_path / "there" / "a.log", Watched()
    source.write_bytes(b"evidence")
    keep_copy(source, target, disk)
    assert target.read_bytes() == b"evidence"
    assert disk.done == [("sync", "a.log.draft"), ("rename", "a.log"), ("sync", "there")]
    again = Watched()
    keep_copy(source, target, again)
    assert again.done == [("sync", "a.log"), ("sync", "there")]


def test_what_an_interruption_left_is_copied_anew(tmp_path: Path) -> None:
    source, target = tmp_path / "a.log", tmp_path / "there" / "a.log"
    source.write_bytes(b"evidence")
    target.parent.mkdir()
    target.with_name("a.log.draft").write_bytes(b"evi and something longer")
    keep_copy(source, target, Disk())
    assert [path.name for path in target.parent.iterdir()] == ["a.log"]
    assert target.read_bytes() == b"evidence"


@pytest.mark.parametrize("there", [b"evidencf", b"evidenc", b""])
def test_another_file_of_the_name_is_never_overwritten(tmp_path: Path, there: bytes) -> None:
    source, target = tmp_path / "a.log", tmp_path / "b.log"
    source.write_bytes(b"evidence")
    target.write_bytes(there)
    with pytest.raises(OperatorError, match="differs"):
        keep_copy(source, target, Disk())
    assert (source.read_bytes(), target.read_bytes()) == (b"evidence", there)


class Decaying(Disk):
    """What is synced comes to the disk with one bit turned."""

    def sync(self, descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
        super().sync(descriptor)


def test_a_copy_that_reads_back_otherwise_gets_no_name(tmp_path: Path) -> None:
    source, target = tmp_path / "a.log", tmp_path / "there" / "a.log"
    source.write_bytes(b"evidence")
    with pytest.raises(OperatorError, match="differs"):
        keep_copy(source, target, Decaying())
    assert not target.exists()


def test_the_oldest_go_first(log: AuditLog, folder: Path) -> None:
    log.close()
    going, disk = list_segments(folder)[:3], Watched()
    remove(going, disk)
    removed = [name for what, name in disk.done if what == "remove" and name.endswith(".log")]
    assert removed == [segment.path.name for segment in going]
    assert disk.done[-1] == ("sync", "audit")
    assert not any(each.path.exists() or each.index_path.exists() for each in going)


def test_a_log_that_is_open_goes_on_without_what_was_archived(log: AuditLog, folder: Path) -> None:
    going = list_segments(folder)[:3]
    stays = list_segments(folder)[3].first
    log.records(0, 1)  # its index is in memory now
    assert log.first == 0
    remove(going, Disk())
    assert log.first == stays
    for first in (0, going[2].first):
        with pytest.raises(LookupError, match="archived"):
            log.records(first, 1)
    with pytest.raises(LookupError, match="archived"):
        log.leaf_hashes(going[2].first, stays + 1)
    assert log.records(stays, 1)[0].kind is RecordKind.SNAPSHOT
    seq = log.append(RecordKind.START, {})
    assert log.records(seq, 1)[0].seq == seq
    log.close()
