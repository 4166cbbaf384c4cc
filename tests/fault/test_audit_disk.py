"""The log's writer under failures of each of its system calls, and under slow and full disks."""

import errno
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from signer.audit.format.checkpoint import Checkpoint
from signer.audit.format.record import Column, RecordKind
from signer.audit.format.segments import list_segments
from signer.audit.read.verify import verify_log
from signer.audit.write.disk import PASSING, Disk
from signer.audit.write.inbox import AuditUnavailable
from signer.audit.write.log import AuditLog, LogHooks
from signer.audit.write.recovery import AuditRefused
from tests.fault.audit_disk import FaultyDisk
from tests.stand_ins import small_log

ORIGIN = "signer.example/log"
DIGESTS = Column(32, bytes(32))
CODES = [errno.EIO, errno.ENOSPC, errno.EROFS]
FAULTS = [
    *[("write", code) for code in CODES],
    ("write", None),  # a short write
    *[("sync", code) for code in CODES],
    *[("free_bytes", code) for code in CODES],
]
ROTATION_FAULTS = [(call, code) for call in ("create", "sync_directory", "close") for code in CODES]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "audit"


def open_log(folder: Path, disk: Disk | None = None, segment_bytes: int = 1 << 20) -> AuditLog:
    return small_log(folder, origin=ORIGIN, disk=disk, segment_bytes=segment_bytes)


class Callers:
    """Threads that append until they are refused; ``answered`` are the numbers they got."""

    def __init__(self, log: AuditLog, threads: int) -> None:
        self.answered: list[int] = []
        self.refused: list[str] = []
        self.some = threading.Event()
        self._log = log
        self._threads = [threading.Thread(target=self._work) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    def _work(self) -> None:
        try:
            while True:
                intent = self._log.append(RecordKind.INTENT, {"principal": "a"}, DIGESTS)
                self.answered.append(intent)
                outcome = self._log.append(RecordKind.OUTCOME, {"intent": intent, "attempts": 1})
                self.answered.append(outcome)
                self.some.set()
        except AuditUnavailable as error:
            self.refused.append(str(error))

    def join(self) -> None:
        for thread in self._threads:
            thread.join(30)
            assert not thread.is_alive()


@pytest.mark.parametrize(("call", "code"), FAULTS)
def test_a_failed_call_stops_everybody_until_a_restart(
    folder: Path, call: str, code: int | None
) -> None:
    stopped = threading.Event()
    disk = FaultyDisk(call, code)
    log = small_log(
        folder, origin=ORIGIN, disk=disk, hooks=LogHooks(on_stop=lambda _: stopped.set())
    )
    callers = Callers(log, 8)
    assert callers.some.wait(30)
    disk.armed = True
    callers.join()
    assert stopped.is_set()

    # Every one of them was told why, and what to do.
    assert callers.refused == [log.refusal] * 8
    assert "restarted" in log.refusal
    assert (errno.errorcode[code] if code else "bytes were written") in log.refusal

    # The disk works again, but nothing is tried again: no second sync, no write.
    assert disk.tried.count(call) == 1
    disk.armed = False
    tried = len(disk.tried)
    for kind in (RecordKind.INTENT, RecordKind.TOKEN):
        with pytest.raises(AuditUnavailable):
            log.append(kind, {})
        with pytest.raises(AuditUnavailable):
            log.note(RecordKind.DENIALS, {})
    log.close()
    assert len(disk.tried) == tried

    # A restart resumes, and whoever was answered finds his record.
    durable, head = log.size, log.tree_head()
    assert len(set(callers.answered)) == len(callers.answered)
    assert all(seq < durable for seq in callers.answered)
    log = open_log(folder)
    assert log.records(max(callers.answered), 1)[0].seq == max(callers.answered)
    assert log.append(RecordKind.START, {}) == log.size - 1
    assert log.open_intents == 0
    log.close()
    known = [Checkpoint(ORIGIN, *head), Checkpoint(ORIGIN, *log.tree_head())]
    assert verify_log(folder, ORIGIN, known).problems == ()


@pytest.mark.parametrize(("call", "code"), ROTATION_FAULTS)
def test_a_segment_that_cannot_begin_stops_the_log(folder: Path, call: str, code: int) -> None:
    disk = FaultyDisk(call, code)
    log = open_log(folder, disk, segment_bytes=5000)
    callers = Callers(log, 4)
    assert callers.some.wait(30)
    disk.armed = True
    callers.join()
    assert errno.errorcode[code] in log.refusal
    log.close()
    log = open_log(folder)
    assert log.records(max(callers.answered), 1)[0].seq == max(callers.answered)
    log.close()
    assert verify_log(folder, ORIGIN, [Checkpoint(ORIGIN, *log.tree_head())]).problems == ()


@pytest.mark.parametrize("call", ["create", "write", "sync", "sync_directory", "free_bytes"])
@pytest.mark.parametrize("code", CODES)
def test_a_disk_that_fails_from_the_start_refuses_the_start(
    folder: Path, call: str, code: int
) -> None:
    disk = FaultyDisk(call, code)
    disk.armed = True
    with pytest.raises(AuditRefused, match=errno.errorcode[code]):
        open_log(folder, disk)
    open_log(folder).close()  # the lock is free, and what is there can be opened


def test_a_recovery_that_cannot_be_written_refuses_the_start(folder: Path) -> None:
    log = open_log(folder)
    intent = log.append(RecordKind.INTENT, {"principal": "a"}, DIGESTS)
    log.close()
    disk = FaultyDisk("write", errno.ENOSPC)
    disk.armed = True
    with pytest.raises(AuditRefused, match="ENOSPC"):
        open_log(folder, disk)
    log = open_log(folder)
    assert log.records(1, 1)[0].fields == {"intent": intent}
    log.close()


def append_five(folder: Path) -> None:
    log = open_log(folder)
    for number in range(5):
        log.append(RecordKind.TOKEN, {"number": number})
    log.close()


RECOVERY_CALLS = ["open", "sync", "forget", "close", "create", "write", "remove", "sync_directory"]


@pytest.mark.parametrize("call", [*RECOVERY_CALLS, "truncate", "free_bytes", "reserve"])
@pytest.mark.parametrize("code", CODES)
def test_a_start_that_cannot_mend_a_torn_tail_refuses_and_loses_nothing(
    folder: Path, call: str, code: int
) -> None:
    append_five(folder)
    [segment] = list_segments(folder)
    segment.path.write_bytes(segment.path.read_bytes() + b"torn")
    refuse_and_mend(folder, FaultyDisk(call, code), code)


@pytest.mark.parametrize("call", [*RECOVERY_CALLS[:4], "rename", "remove", "sync_directory"])
@pytest.mark.parametrize("code", CODES)
def test_a_start_that_cannot_put_a_torn_segment_aside_refuses_and_loses_nothing(
    folder: Path, call: str, code: int
) -> None:
    append_five(folder)
    (folder / f"{5:016d}.log").write_bytes(b"\x00")  # a header that was not finished
    refuse_and_mend(folder, FaultyDisk(call, code), code)


def refuse_and_mend(folder: Path, disk: FaultyDisk, code: int) -> None:
    """A start on a failing disk is refused; the next one has all records and tells of the cut."""
    disk.armed = True
    with pytest.raises(AuditRefused, match=errno.errorcode[code]):
        small_log(folder, origin=ORIGIN, disk=disk, ballast_bytes=4096)
    log = open_log(folder)
    assert [record.fields.get("number") for record in log.records(0, 5)] == [0, 1, 2, 3, 4]
    assert log.records(5, 1)[0].kind is RecordKind.RECOVERY
    log.close()
    assert verify_log(folder, ORIGIN, [Checkpoint(ORIGIN, *log.tree_head())]).problems == ()


@pytest.mark.parametrize("code", CODES)
def test_a_ballast_that_cannot_be_given_up_stops_the_log(folder: Path, code: int) -> None:
    disk = FaultyDisk("remove", code)
    log = open_log(folder, disk)
    callers = Callers(log, 4)
    assert callers.some.wait(30)
    disk.armed = True
    log._low_disk_bytes = 1 << 62
    callers.join()
    assert errno.errorcode[code] in log.refusal
    log.close()
    log = open_log(folder)
    assert log.records(max(callers.answered), 1)[0].seq == max(callers.answered)
    log.close()


class SlowDisk(Disk):
    """A disk whose syncs take as long as a test likes."""

    def __init__(self) -> None:
        self.quick = threading.Event()
        self.quick.set()
        self.begun = threading.Event()

    def sync(self, descriptor: int) -> None:
        self.begun.set()
        assert self.quick.wait(30)
        super().sync(descriptor)


def test_a_slow_sync_is_back_pressure_only(folder: Path) -> None:
    disk = SlowDisk()
    log = open_log(folder, disk)
    disk.quick.clear()
    disk.begun.clear()
    callers = Callers(log, 16)
    assert disk.begun.wait(30)
    assert not callers.some.wait(0.2)  # nobody is answered before the sync returns
    assert (callers.answered, callers.refused) == ([], [])
    assert log.refusal == ""
    disk.quick.set()
    assert callers.some.wait(30)
    log.close()
    callers.join()
    assert log.refusal == ""
    assert callers.refused == ["the audit log is closed"] * 16
    assert set(callers.answered) == set(range(log.size))
    assert verify_log(folder, ORIGIN, [Checkpoint(ORIGIN, *log.tree_head())]).problems == ()


FULL_DISK = """
import resource
import sys
from pathlib import Path
from signer.audit.write.inbox import AuditUnavailable
from signer.audit.write.recovery import open_audit_log
from signer.audit.format.record import RecordKind
from signer.clock import SystemClock

resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
log = open_audit_log(
    Path(sys.argv[1]), origin="signer.example/log", clock=SystemClock(),
    low_disk_bytes=0, ballast_bytes=0,
)
try:
    while True:
        print(log.append(RecordKind.TOKEN, {"padding": bytes(1000)}), flush=True)
except AuditUnavailable:
    print("refused", flush=True)
"""


def test_a_real_short_write_by_the_kernel(folder: Path) -> None:
    """A file size limit makes the kernel itself take only a part, then fail with EFBIG."""
    child = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(folder)], capture_output=True, check=True, text=True
    )
    *answered, last = child.stdout.split()
    assert last == "refused"
    assert len(answered) > 40
    [segment] = list_segments(folder)
    assert segment.path.stat().st_size == 50_000  # torn in the middle of a record
    log = open_log(folder)
    assert [record.seq for record in log.records(0, len(answered))] == [int(n) for n in answered]
    assert log.records(len(answered), 1)[0].kind is RecordKind.RECOVERY
    log.close()


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
def test_a_segment_that_cannot_be_begun_at_the_moment_is_begun_later(
    tmp_path: Path, code: int
) -> None:
    """Nothing was done, so nothing is unknown: the segment before takes the records."""
    assert code in PASSING
    disk = FaultyDisk("create", code)
    told: list[str] = []
    hooks = LogHooks(on_problem=told.append)
    log = small_log(tmp_path, origin=ORIGIN, segment_bytes=1 << 10, disk=disk, hooks=hooks)
    disk.armed = True
    for _ in range(8):
        log.append(RecordKind.DENIALS, {"padding": bytes(900)})
    assert (log.refusal, len(list_segments(tmp_path)), len(told)) == ("", 1, 1)
    disk.armed = False
    end = time.monotonic() + 30
    while len(list_segments(tmp_path)) < 2 and time.monotonic() < end:
        log.append(RecordKind.DENIALS, {})
    assert len(list_segments(tmp_path)) == 2
    log.close()
    assert verify_log(tmp_path, ORIGIN, []).problems == ()


def test_a_name_that_cannot_be_synced_at_the_moment_is_synced_soon(tmp_path: Path) -> None:
    disk = FaultyDisk("sync_directory", errno.EMFILE)
    log = open_log(tmp_path, disk, 1 << 10)
    disk.armed = True
    threading.Timer(0.2, lambda: setattr(disk, "armed", False)).start()
    for _ in range(2):
        log.append(RecordKind.DENIALS, {"padding": bytes(900)})
    log.append(RecordKind.DENIALS, {})
    assert disk.tried.count("sync_directory") > 1
    assert log.refusal == ""
    assert len(list_segments(tmp_path)) > 1
    log.close()
