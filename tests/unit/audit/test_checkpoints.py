import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from signer.audit.format.checkpoint import MAX_NOTE, Checkpoint, CheckpointError
from signer.audit.read.notes import read_newest
from signer.audit.write import checkpoints as shipping
from signer.audit.write.checkpoints import (
    MAX_ITEMS_BEHIND,
    Checkpointer,
    Folder,
    Shipper,
    set_aside,
)
from signer.audit.write.disk import Disk
from signer.audit.write.inbox import Growth
from signer.events import (
    REPORT_SECONDS,
    CheckpointFailed,
    CheckpointMade,
    CheckpointShipped,
    ShippingFailed,
)
from tests.daemon import until
from tests.stand_ins import Recorder, SetClock

ORIGIN = "signer.example/test"
DEADLINE = 20.0  # seconds; only a hanging test waits so long


class FailingDisk(Disk):
    """Fails while ``failing``; counts its attempts."""

    def __init__(self, failing: bool = True) -> None:
        self.failing = failing
        self.attempts = 0

    def rename(self, path: Path, target: Path) -> None:
        self.attempts += 1
        if self.failing:
            raise OSError(28, "No space left on device")
        super().rename(path, target)


class Checkpoints(Recorder):
    """What became of checkpoints."""

    @property
    def made(self) -> list[int]:
        for event in self.of(CheckpointMade):
            assert event.note == seal(checkpoint_of(event.size))
        return [event.size for event in self.of(CheckpointMade)]

    @property
    def shipped(self) -> list[int]:
        return [event.size for event in self.of(CheckpointShipped)]

    @property
    def failures(self) -> list[str]:
        return [event.text for event in self.of(CheckpointFailed)]

    @property
    def shipping_failures(self) -> list[str]:
        return [event.text for event in self.of(ShippingFailed)]


class Log:
    """A log of which only the size matters."""

    def __init__(self, size: int = 0) -> None:
        self.size = size
        self.growth = Growth()

    def head(self) -> Checkpoint:
        return checkpoint_of(self.size)


def checkpoint_of(size: int, root: bytes = b"") -> Checkpoint:
    return Checkpoint(ORIGIN, size, root or size.to_bytes(32, "big"))


def seal(checkpoint: Checkpoint) -> str:
    return f"{ORIGIN}\n{checkpoint.size}\n{checkpoint.root.hex()}\n\nsealed\n"


def parse(note: str) -> Checkpoint:
    lines = note.split("\n")
    if len(lines) != 6 or lines[4] != "sealed":
        raise CheckpointError("the seal is wrong")
    return Checkpoint(lines[0], int(lines[1]), bytes.fromhex(lines[2]))


@contextmanager
def running(
    log: Log,
    folder: Folder,
    reports: Checkpoints,
    ship_to: Folder | None = None,
    seal_with: Callable[[Checkpoint], str] = seal,
    clock: SetClock | None = None,
) -> Iterator[Checkpointer]:
    shippers = [Shipper(ship_to, reports.events)] if ship_to else []
    checkpointer = Checkpointer(
        log.growth,
        log.head,
        seal_with,
        folder,
        shippers=shippers,
        events=reports.events,
        clock=clock or SetClock(),
    )
    checkpointer.start()
    yield checkpointer
    checkpointer.close(DEADLINE)


@pytest.fixture
def reports() -> Checkpoints:
    return Checkpoints()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shipping, "INTERVAL", 0.01)
    monkeypatch.setattr(shipping, "_RETRY_SECONDS", (0.01,))


def sizes(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- one folder ------------------------------------------------------------------------------


def test_newest_is_replaced_and_the_first_of_an_hour_stays(tmp_path: Path) -> None:
    clock = SetClock()
    folder = Folder(tmp_path / "made", clock)
    for size in (1, 2, 3):
        folder.put(checkpoint_of(size), seal(checkpoint_of(size)))
    clock.time += 3600
    folder.put(checkpoint_of(4), seal(checkpoint_of(4)))
    assert sizes(folder.path) == [f"{1:016d}", f"{4:016d}", "newest"]
    assert parse((folder.path / "newest").read_text()) == checkpoint_of(4)
    assert parse((folder.path / f"{1:016d}").read_text()) == checkpoint_of(1)


def test_interrupted_put_leaves_the_old_newest_and_is_repeated(tmp_path: Path) -> None:
    disk = FailingDisk(failing=False)
    folder = Folder(tmp_path, SetClock(), disk)
    folder.put(checkpoint_of(1), seal(checkpoint_of(1)))
    disk.failing = True
    with pytest.raises(OSError, match="No space"):
        folder.put(checkpoint_of(2), seal(checkpoint_of(2)))
    assert read_newest([tmp_path], parse).checkpoint == checkpoint_of(1)
    disk.failing = False
    folder.put(checkpoint_of(3), seal(checkpoint_of(3)))
    assert read_newest([tmp_path], parse).checkpoint == checkpoint_of(3)


# --- making ----------------------------------------------------------------------------------


def test_a_start_makes_a_checkpoint_of_what_is_there(tmp_path: Path, reports: Checkpoints) -> None:
    with running(Log(7), Folder(tmp_path, SetClock()), reports) as checkpointer:
        reports.wait(lambda: reports.made == [7])
    assert checkpointer.newest == (checkpoint_of(7), seal(checkpoint_of(7)))
    assert read_newest([tmp_path], parse).checkpoint == checkpoint_of(7)


@pytest.mark.usefixtures("quick")
def test_an_idle_log_gets_no_new_checkpoints(tmp_path: Path, reports: Checkpoints) -> None:
    with running(Log(7), Folder(tmp_path, SetClock()), reports):
        reports.wait(lambda: bool(reports.made))
        time.sleep(0.1)  # ten intervals
    assert reports.made == [7]


@pytest.mark.usefixtures("quick")
def test_every_record_is_covered_in_the_end(tmp_path: Path, reports: Checkpoints) -> None:
    log = Log()
    with running(log, Folder(tmp_path, SetClock()), reports):
        for size in range(1, 51):
            log.size = size
            log.growth.add(1)
        reports.wait(lambda: reports.made[-1:] == [50])
    assert reports.made == sorted(set(reports.made))


def test_many_items_do_not_wait_for_the_interval(
    tmp_path: Path, reports: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shipping, "INTERVAL", 0.01)
    log = Log(1)
    with running(log, Folder(tmp_path, SetClock()), reports):
        reports.wait(lambda: bool(reports.made))
        monkeypatch.setattr(shipping, "INTERVAL", 10 * DEADLINE)
        log.size = 2
        log.growth.add(MAX_ITEMS_BEHIND // 2)
        log.growth.add(MAX_ITEMS_BEHIND // 2)
        reports.wait(lambda: reports.made == [1, 2])


def test_closing_covers_the_last_records_at_once(
    tmp_path: Path, reports: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = Log(1)
    with running(log, Folder(tmp_path, SetClock()), reports):
        reports.wait(lambda: bool(reports.made))
        monkeypatch.setattr(shipping, "INTERVAL", 10 * DEADLINE)
        log.size = 2
        log.growth.add(1)
    assert reports.made == [1, 2]
    assert read_newest([tmp_path], parse).checkpoint == checkpoint_of(2)


@pytest.mark.usefixtures("quick")
def test_a_token_that_fails_is_asked_again(tmp_path: Path, reports: Checkpoints) -> None:
    why, tries, clock = ["the token is away"], [0], SetClock()

    def seal_or_fail(checkpoint: Checkpoint) -> str:
        tries[0] += 1
        if why[0]:
            raise RuntimeError(why[0])
        return seal(checkpoint)

    def tried(more: int) -> None:
        wanted = tries[0] + more
        until(lambda: tries[0] >= wanted, "it is tried again")

    folder = Folder(tmp_path, SetClock())
    with running(Log(3), folder, reports, seal_with=seal_or_fail, clock=clock):
        tried(20)
        assert len(reports.failures) == 1, "a failure that goes on is reported once"
        why[0] = "the token is full"
        tried(20)
        assert len(reports.failures) == 2, "another one at once"
        clock.forward(REPORT_SECONDS)
        tried(20)
        assert len(reports.failures) == 3, "and again after a while"
        assert reports.made == []
        why[0] = ""
        reports.wait(lambda: reports.made == [3])
    assert "the token is away" in reports.failures[0]
    assert "the token is full" in reports.failures[2]


def test_a_token_that_fails_does_not_hold_up_the_stop(tmp_path: Path, reports: Checkpoints) -> None:
    def fail(_: Checkpoint) -> str:
        raise RuntimeError("the token is away")

    with running(Log(3), Folder(tmp_path, SetClock()), reports, seal_with=fail) as checkpointer:
        pass
    assert not checkpointer._thread.is_alive()
    assert reports.failures


@pytest.mark.usefixtures("quick")
def test_a_local_disk_that_fails_does_not_keep_it_from_being_shipped(
    tmp_path: Path, reports: Checkpoints
) -> None:
    disk = FailingDisk()
    local = Folder(tmp_path / "local", SetClock(), disk)
    with running(Log(3), local, reports, Folder(tmp_path / "far", SetClock())):
        reports.wait(lambda: bool(reports.failures) and bool(reports.shipped))
        disk.failing = False
    assert read_newest([tmp_path / "far"], parse).checkpoint == checkpoint_of(3)
    assert read_newest([tmp_path / "local"], parse).checkpoint == checkpoint_of(3)


# --- shipping --------------------------------------------------------------------------------


@pytest.mark.usefixtures("quick")
def test_shipping_that_fails_is_told_and_repeated_with_the_newest(
    tmp_path: Path, reports: Checkpoints
) -> None:
    disk = FailingDisk()
    log = Log(1)
    far = Folder(tmp_path / "far", SetClock(), disk)
    with running(log, Folder(tmp_path / "near", SetClock()), reports, far):
        reports.wait(lambda: len(reports.shipping_failures) >= 3)
        log.size = 2
        log.growth.add(1)
        reports.wait(lambda: reports.made == [1, 2])
        disk.failing = False
        reports.wait(lambda: reports.shipped[-1:] == [2])
    assert "No space left on device" in reports.shipping_failures[0]
    assert str(far.path) in reports.shipping_failures[0]
    assert reports.failures == []
    assert read_newest([far.path], parse).checkpoint == checkpoint_of(2)


@pytest.mark.usefixtures("quick")
def test_a_folder_that_hangs_holds_up_no_checkpoint(tmp_path: Path, reports: Checkpoints) -> None:
    release = threading.Event()

    class HangingDisk(Disk):
        def sync(self, descriptor: int) -> None:
            release.wait(DEADLINE)
            super().sync(descriptor)

    log = Log(1)
    far = Folder(tmp_path / "far", SetClock(), HangingDisk())
    with running(log, Folder(tmp_path / "near", SetClock()), reports, far):
        for size in (2, 3, 4):
            log.size = size
            log.growth.add(1)
            reports.wait(lambda: reports.made[-1:] == [log.size])
        assert reports.shipped == []
        release.set()
        reports.wait(lambda: reports.shipped[-1:] == [4])
    assert len(reports.shipped) <= 2  # the one that hung, and the newest


@pytest.mark.parametrize("back", [False, True])
def test_closing_tries_once_more_and_gives_up_if_the_folder_is_not_back(
    tmp_path: Path, reports: Checkpoints, monkeypatch: pytest.MonkeyPatch, back: bool
) -> None:
    monkeypatch.setattr(shipping, "_RETRY_SECONDS", (10 * DEADLINE,))
    disk = FailingDisk()
    shipper = Shipper(Folder(tmp_path / "far", SetClock(), disk), reports.events)
    shipper.start()
    shipper.offer(checkpoint_of(1), seal(checkpoint_of(1)))
    reports.wait(lambda: len(reports.shipping_failures) == 1)
    disk.failing = not back
    shipper.close(DEADLINE)
    assert not shipper._thread.is_alive()
    assert reports.shipped == [1] * back
    assert back or disk.attempts == 2


# --- reading ---------------------------------------------------------------------------------

FOUND = st.lists(
    st.tuples(
        st.integers(0, 1),  # which of two directories
        st.booleans(),  # newest, or under its number
        st.integers(1, 40),
        st.booleans(),  # whether it verifies
    ),
    max_size=12,
)


@given(FOUND)
def test_the_largest_that_verifies_is_the_newest(
    tmp_path_factory: pytest.TempPathFactory, found: list[tuple[int, bool, int, bool]]
) -> None:
    root = tmp_path_factory.mktemp("found")
    directories = [root / "0", root / "1"]
    written: dict[Path, Checkpoint | None] = {}
    for which, newest, size, good in found:
        directories[which].mkdir(exist_ok=True)
        path = directories[which] / ("newest" if newest else f"{size:016d}")
        text = seal(checkpoint_of(size))
        path.write_text(text if good else text.replace("sealed", "forged"))
        written[path] = checkpoint_of(size) if good else None
    known = read_newest(directories, parse)
    verified = [each for each in written.values() if each]
    assert known.checkpoint == max(verified, key=lambda each: each.size, default=None)
    if known.checkpoint:
        assert parse(known.note) == known.checkpoint
    absent = [directory for directory in directories if not directory.exists()]
    assert all(any(str(each) in text for text in known.problems) for each in absent)
    if not found:
        assert len(known.problems) == 2


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe", b"x" * (MAX_NOTE + 1), b"\x00" * 100, b"one line"]
)
def test_a_file_that_is_no_checkpoint_is_told_and_passed_over(
    tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "newest").write_bytes(content)
    (tmp_path / f"{3:016d}").write_text(seal(checkpoint_of(3)))
    known = read_newest([tmp_path], parse)
    assert known.checkpoint == checkpoint_of(3)
    assert len(known.problems) == 1
    assert str(tmp_path / "newest") in known.problems[0]


def put(folder: Path, *named: tuple[str, Checkpoint]) -> None:
    folder.mkdir(exist_ok=True)
    for name, checkpoint in named:
        (folder / name).write_text(seal(checkpoint))


def test_the_newest_of_each_directory_are_found(tmp_path: Path) -> None:
    near, far = tmp_path / "near", tmp_path / "far"
    put(near, ("newest", checkpoint_of(9)), (f"{4:016d}", checkpoint_of(4)))
    put(far, ("newest", checkpoint_of(7)), (f"{8:016d}", checkpoint_of(8)))
    known = read_newest([near, far, tmp_path / "absent"], parse)
    assert known.checkpoint == checkpoint_of(9)
    assert known.newest == {checkpoint_of(9), checkpoint_of(8)}


@pytest.mark.parametrize("together", [True, False])
def test_both_of_two_that_contradict_each_other_are_found(tmp_path: Path, together: bool) -> None:
    one, other = checkpoint_of(5, b"a" * 32), checkpoint_of(5, b"b" * 32)
    near, far = tmp_path / "near", tmp_path / "far"
    put(near, ("newest", one))
    put(near if together else far, (f"{5:016d}", other))
    known = read_newest([near] if together else [near, far], parse)
    assert known.newest == {one, other}
    assert known.problems == ()


def test_what_an_override_sets_aside_is_not_read_again(tmp_path: Path) -> None:
    clock = SetClock()
    folder = Folder(tmp_path, clock)
    for size in (10, 20):
        folder.put(checkpoint_of(size), seal(checkpoint_of(size)))
        clock.time += 3600
    (tmp_path / f"{30:016d}").write_text("no checkpoint")
    put_away = set_aside(tmp_path, parse, lambda checkpoint: checkpoint.size <= 15)
    assert sorted(put_away) == [f"{20:016d}", "newest"]
    assert read_newest([tmp_path], parse).checkpoint == checkpoint_of(10)
    assert parse((tmp_path / f"{20:016d}.overridden").read_text()) == checkpoint_of(20)
    assert set_aside(tmp_path / "absent", parse, lambda _: False) == []


def test_nothing_that_is_set_aside_replaces_anything(tmp_path: Path) -> None:
    roots = {b"a" * 32, b"b" * 32}
    names = ("newest", f"{5:016d}")
    for name, root in zip(names, roots, strict=True):
        put(tmp_path, (name, checkpoint_of(5, root)))
    set_aside(tmp_path, parse, lambda _: False)
    kept = [parse(path.read_text()).root for path in tmp_path.glob("*.overridden")]
    assert set(kept) == roots
    assert len(kept) == 2
