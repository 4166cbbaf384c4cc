"""The log in the daemon: what it refuses to start with, and what it reports."""

import errno
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from signer.algorithms import Algorithm
from signer.audit.format import checkpoint as notes
from signer.audit.format.checkpoint import Checkpoint, NoteVerifier
from signer.audit.format.merkle import root
from signer.audit.format.record import Column, RecordKind, Value
from signer.audit.format.segments import CHECKPOINTS, list_segments
from signer.audit.read.ledger import Ledger
from signer.audit.read.reader import Reader
from signer.audit.read.verify import verify_log
from signer.audit.write.disk import Disk
from signer.audit.write.inbox import AuditUnavailable
from signer.audit.write.log import SLOW_SECONDS, Listener
from signer.audit.write.recovery import AuditRefused
from signer.config.models import AuditConfig
from signer.daemon.audit_log import DaemonLog, open_log
from signer.daemon.sealing import Sealing
from signer.errors import OperatorError
from signer.event_loop import EventLoop
from signer.events import AuditCommitted, AuditProblem, AuditSlow, AuditStopped, WorkerLeft
from signer.hsm.front.chunks import Signed, SignJob
from signer.model import AUDIT_KEY
from tests.stand_ins import ManualClock, Recorder, key_version, small_log

ORIGIN = "test.example/log"
KEY = Ed25519PrivateKey.from_private_bytes(bytes(32))
SPKI = KEY.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
VERIFIER = NoteVerifier.from_spki(ORIGIN, SPKI)
VERSION = key_version(
    key=AUDIT_KEY, algorithm=Algorithm.EDDSA, cka_id=b"1", spki=SPKI, kid=b"", thumbprint=""
)
INTENT: dict[str, Value] = {
    "principal": "a",
    "facility": "f",
    "key_version": "k",
    "request_id": "",
    "now": 1,
}
DIGESTS = Column(32, bytes(32))


class Token:
    """Signs checkpoints."""

    async def sign_now(self, job: SignJob) -> Signed:
        return Signed([KEY.sign(data) for data in job.inputs], {})


@pytest.fixture
def config(tmp_path: Path) -> AuditConfig:
    """A log of six records, with a checkpoint of four beside it and one of six in the mirror."""
    written = {
        "origin": ORIGIN,
        "mirror": "mirror",
        "low_disk_bytes": 1 << 20,
        "ballast_bytes": 1 << 20,
    }
    made = AuditConfig.model_validate(written, context={"directory": tmp_path})
    log = small_log(made.directory, origin=ORIGIN)
    for number in range(6):
        if number == 4:
            put(made.directory / CHECKPOINTS / "newest", Checkpoint(ORIGIN, *log.tree_head()))
        log.append(RecordKind.WORKER, {"number": number})
    put(tmp_path / "mirror" / "newest", Checkpoint(ORIGIN, *log.tree_head()))
    log.close()
    return made


def put(path: Path, checkpoint: Checkpoint) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(notes.sign(checkpoint, VERIFIER, KEY.sign))


class Opened:
    """The log of a daemon, opened, with the parts that write to it."""

    def __init__(
        self,
        config: AuditConfig,
        recorder: Recorder | None = None,
        *,
        clock: ManualClock | None = None,
        override: bool = False,
    ) -> None:
        events, clock, ledger = (recorder or Recorder()).events, clock or ManualClock(), Ledger()
        self.stops: list[str] = []
        self.log = open_log(
            config,
            VERSION,
            clock,
            events,
            folds=[ledger],
            confirmed=lambda _: True,
            on_stop=lambda: self.stops.append(self.log.refusal),
            override=override,
        )
        self.daemon = DaemonLog(self.log, ledger, config.directory, clock, events)
        self.loop = EventLoop()
        self.sealing = Sealing(
            config,
            self.log,
            VERSION,
            hsm=cast("Any", Token()),
            loop=self.loop,
            clock=clock,
            events=events,
        )

    def tick(self) -> None:
        self.daemon.tick()
        self.sealing.tick()

    def close(self) -> None:
        self.daemon.close()
        self.sealing.close()
        self.loop.close()


def size_in(path: Path) -> int:
    return int(path.read_text().splitlines()[1])


# --- checkpoints that contradict ---------------------------------------------------------------


def test_a_log_that_bears_out_all_checkpoints_is_opened(config: AuditConfig) -> None:
    recorder = Recorder()
    opened = Opened(config, recorder)
    opened.daemon.close()
    assert recorder.of(AuditProblem) == []


@pytest.mark.parametrize(
    ("where", "size", "found"),
    [
        ("audit/checkpoints/newest", 4, "a checkpoint of 4 records has another root"),
        ("audit/checkpoints/newest", 6, "two checkpoints of 6 records have different roots"),
        ("mirror/newest", 3, "a checkpoint of 3 records has another root"),
        ("mirror/newest", 4, "two checkpoints of 4 records have different roots"),
        ("mirror/0000000000000006", 6, "two checkpoints of 6 records have different roots"),
        ("mirror/newest", 7, "the log ends after 6 records, but a checkpoint covers 7"),
    ],
)
def test_a_checkpoint_that_contradicts_refuses_the_start_until_it_is_overridden(
    config: AuditConfig, tmp_path: Path, where: str, size: int, found: str
) -> None:
    put(tmp_path / where, Checkpoint(ORIGIN, size, bytes(32)))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.suffix == ".log"}
    with pytest.raises(AuditRefused, match=found) as refused:
        Opened(config)
    assert "--override-audit-log" in str(refused.value)
    assert {path: path.read_bytes() for path in before} == before

    overridden = Opened(config, override=True)
    records = overridden.log.records(6, 9)
    [override] = [record for record in records if record.kind is RecordKind.OVERRIDE]
    assert found in str(override.fields["problems"])
    overridden.sealing.start()
    overridden.close()

    # What contradicts is kept under another name, and no start is measured by it again.
    kept = list(tmp_path.rglob("*.overridden"))
    assert size in map(size_in, kept)
    again = Opened(config)
    head = Checkpoint(ORIGIN, *again.log.tree_head())
    again.close()
    assert verify_log(config.directory, ORIGIN, [head]).problems == ()


def test_a_fork_is_reported_though_the_log_has_neither(config: AuditConfig, tmp_path: Path) -> None:
    put(tmp_path / "mirror" / "newest", Checkpoint(ORIGIN, 9, bytes(32)))
    put(config.directory / CHECKPOINTS / "newest", Checkpoint(ORIGIN, 9, bytes([1] * 32)))
    with pytest.raises(AuditRefused, match="the audit key has signed two logs"):
        Opened(config)


def test_an_override_keeps_the_checkpoints_that_the_log_bears_out(
    config: AuditConfig, tmp_path: Path
) -> None:
    put(tmp_path / "mirror" / "newest", Checkpoint(ORIGIN, 5, bytes(32)))
    Opened(config, override=True).daemon.close()
    assert size_in(config.directory / CHECKPOINTS / "newest") == 4
    assert [path.parent.name for path in tmp_path.rglob("*.overridden")] == ["mirror"]


def test_a_second_override_of_a_whole_log_changes_nothing(
    config: AuditConfig, tmp_path: Path
) -> None:
    put(tmp_path / "mirror" / "newest", Checkpoint(ORIGIN, 7, bytes(32)))
    first = Opened(config, override=True)
    first.sealing.start()
    first.close()
    before = {
        path: path.read_bytes()
        for path in tmp_path.rglob("*")
        if path.parent.is_dir() and path.is_file() and path.suffix != ".log"
    }
    again = Opened(config, override=True)
    assert again.log.overridden is None
    again.log.close()
    assert {path: path.read_bytes() for path in before} == before


def test_an_override_that_cannot_put_checkpoints_aside_closes_the_log(
    config: AuditConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    put(tmp_path / "mirror" / "newest", Checkpoint(ORIGIN, 9, bytes(32)))
    with monkeypatch.context() as patched:
        patched.setattr("signer.daemon.audit_log.set_aside", full)
        with pytest.raises(OperatorError, match="cannot be put aside"):
            Opened(config, override=True)
    with pytest.raises(AuditRefused, match="a checkpoint covers 9"):  # and not: it is open
        Opened(config)


def archived(config: AuditConfig) -> tuple[Path, Checkpoint]:
    """A log of which only the last segment is here; returns that, and its checkpoint."""
    log = small_log(
        config.directory,
        origin=ORIGIN,
        segment_bytes=400,
        listeners=[Listener(lambda _: None, snapshot=lambda: Ledger().snapshot())],
    )
    for number in range(20):
        log.append(RecordKind.WORKER, {"number": number})
    log.close()
    *older, last = list_segments(config.directory)
    reader = Reader([*older, last])
    hashes = reader.leaf_hashes(0, reader.size)
    for segment in older:
        segment.path.unlink()
    for path in config.directory.parent.rglob("newest"):
        path.unlink()
    newest = Checkpoint(ORIGIN, len(hashes), root(hashes))
    put(config.directory / CHECKPOINTS / "newest", newest)
    return last.path, newest


def test_an_override_keeps_what_an_archived_log_bears_out(
    config: AuditConfig, tmp_path: Path
) -> None:
    _, newest = archived(config)
    put(tmp_path / "mirror" / "newest", Checkpoint(ORIGIN, newest.size + 5, bytes(32)))
    Opened(config, override=True).log.close()
    assert size_in(config.directory / CHECKPOINTS / "newest") == newest.size
    Opened(config).log.close()


def test_a_log_whose_only_snapshot_is_damaged_begins_anew_under_an_override(
    config: AuditConfig,
) -> None:
    path, _ = archived(config)
    data = bytearray(path.read_bytes())
    data[200] ^= 1  # in the snapshot, behind the header
    path.write_bytes(data)
    with pytest.raises(AuditRefused):
        Opened(config)
    overridden = Opened(config, override=True)
    assert overridden.log.overridden == 0
    for number in range(30):
        overridden.log.append(RecordKind.WORKER, {"number": number})
    assert overridden.log.records(0, 1)[0].seq == 0
    overridden.log.close()
    assert [segment.first for segment in list_segments(config.directory)] == [0]
    again = Opened(config)
    assert again.log.size >= 30
    again.log.close()


def test_a_record_that_the_ledger_refuses_is_cut_whole(config: AuditConfig) -> None:
    log = small_log(config.directory, origin=ORIGIN)
    log.append(RecordKind.INTENT, {name: INTENT[name] for name in INTENT if name != "now"}, DIGESTS)
    log.close()
    with pytest.raises(AuditRefused):
        Opened(config)
    overridden = Opened(config, override=True)
    assert overridden.log.overridden == 6
    overridden.log.close()
    Opened(config).log.close()


# --- records that nobody signs -----------------------------------------------------------------


def test_records_that_no_checkpoint_covers_are_seen_though_none_follow(config: AuditConfig) -> None:
    clock, began = ManualClock(), 2_000_000_000.0
    made = Opened(config, clock=clock)
    size = made.log.size

    def since(covered: int, seconds: float) -> float:
        made.sealing._checkpointer.newest = Checkpoint(ORIGIN, covered, bytes(32)), ""
        clock.time = began + seconds
        made.tick()
        return made.sealing.unsigned_since

    assert since(size, 0) == 0
    made.log.append(RecordKind.WORKER, {})
    assert since(size, 1) == began + 1
    assert since(size, 60) == began + 1  # nothing else was recorded, and nothing signed
    made.log.append(RecordKind.WORKER, {})
    assert since(size + 1, 61) == began + 61  # a busy log: the checkpoint has left one behind
    assert since(size + 1, 62) == began + 61
    assert since(size + 2, 63) == 0
    made.close()


def test_a_log_that_is_signed_waits_for_nothing(config: AuditConfig) -> None:
    made, looked = Opened(config), threading.Event()
    made.tick()
    assert made.sealing.unsigned_since > 0  # nothing is signed yet
    made.sealing.start()
    for _ in range(3000):
        made.tick()
        if made.sealing.unsigned_since == 0:
            break
        looked.wait(0.01)
    assert made.sealing.unsigned_since == 0
    made.close()


# --- a disk that fails, or is slow -------------------------------------------------------------


class Gate:
    """In the place of ``Disk.sync``: waits, or fails."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.open, self.waiting = threading.Event(), threading.Event()
        self.open.set()
        self.failing = False
        sync = Disk.sync

        def gated(disk: Disk, descriptor: int) -> None:
            if self.failing:
                raise OSError(errno.EIO, "EIO")
            if not self.open.is_set():
                self.waiting.set()
                assert self.open.wait(30)
            sync(disk, descriptor)

        monkeypatch.setattr(Disk, "sync", gated)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    return Gate(monkeypatch)


def test_health_learns_of_a_failure_before_any_call_is_refused(
    config: AuditConfig, gate: Gate
) -> None:
    recorder = Recorder()
    made = Opened(config, recorder)
    gate.failing = True
    with pytest.raises(AuditUnavailable) as refused:
        made.log.append(RecordKind.INTENT, INTENT, DIGESTS)
    assert made.stops == [str(refused.value)]
    assert len(recorder.of(AuditStopped)) == 1
    made.close()


def test_a_commit_that_hangs_is_reported_once(config: AuditConfig, gate: Gate) -> None:
    clock, recorder = ManualClock(), Recorder()
    made = Opened(config, recorder, clock=clock)
    made.tick()
    gate.open.clear()
    clock.time = 2_000_000_000.0
    made.daemon.handlers[WorkerLeft](WorkerLeft("t", "died", ""))
    assert gate.waiting.wait(30)
    assert made.log.committing_since == clock.time
    began = clock.time
    for seconds in (0.5, SLOW_SECONDS, 2.0, 60.0):
        clock.time = began + seconds
        made.tick()
        assert len(recorder.of(AuditSlow)) == (seconds >= SLOW_SECONDS)
    assert recorder.of(AuditSlow) == [AuditSlow(began)]
    assert made.log.refusal == ""
    gate.open.set()
    made.close()
    made.tick()
    assert made.log.committing_since == 0
    assert len(recorder.of(AuditSlow)) == 1


def test_the_end_of_a_slow_commit_is_reported_with_its_seconds(
    config: AuditConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder()
    clock = ManualClock()
    made = Opened(config, recorder, clock=clock)
    ticks = iter([100.0, 100.0, 100.0 + 2 * SLOW_SECONDS])  # the second: is the disk full?
    monkeypatch.setattr(clock, "monotonic", lambda: next(ticks, 200.0))
    made.daemon.handlers[WorkerLeft](WorkerLeft("t", "died", ""))
    made.log.close()
    assert AuditCommitted(1, 2 * SLOW_SECONDS) in recorder.seen


def test_callers_record_in_between_of_many_changes(tmp_path: Path) -> None:
    """A commit has few of them: their folds take a while, and callers wait for a commit."""
    written: list[str] = []
    log: Any = SimpleNamespace(
        note=lambda *_: written.append("noted"), append=lambda *_: written.append("durable")
    )
    ledger: Any = SimpleNamespace(forgotten=0)
    clock, events = ManualClock(), Recorder().events
    daemon_log = DaemonLog(log, ledger, tmp_path, clock, events)
    daemon_log.account([(RecordKind.KEYS, {"n": number}) for number in range(10)])
    assert written == [*(["noted"] * 3 + ["durable"]) * 2, "noted", "noted"]
