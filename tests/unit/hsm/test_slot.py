"""Slots on the event loop: starts, changed keys, the watchdog and workers that do not end."""

import socket
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from signer import events
from signer.clock import SystemClock
from signer.event_loop import EventLoop
from signer.events import WorkerFailedAgain, WorkerLeft
from signer.hsm.frames import (
    Channel,
    Closed,
    FrameKind,
    ResultFrame,
    ResultPart,
    Verdict,
    pack_json,
    pack_result,
    unpack_ids,
    unpack_sign,
)
from signer.hsm.front import slot as slots
from signer.hsm.front.chunks import Signed, SignJob
from signer.hsm.front.pool import Pool
from signer.hsm.front.process import WorkerProcess
from signer.hsm.spec import FailureKind, TokenSpec
from tests.daemon import until
from tests.stand_ins import Recorder, key_version

HANG, START = 0.4, 30.0
SPEC = TokenSpec("t", None, "", "", "", session_copies=False, environment={})


class FakeProcess:
    """A process that ends when it is killed, or not even then."""

    def __init__(self, pid: int, *, stubborn: bool) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self.stubborn = stubborn

    def poll(self) -> int | None:
        return self.returncode


class FakeWorker:
    """What a slot starts; the test plays the worker, at the other end of the socket."""

    def __init__(self, pid: int, *, stubborn: bool) -> None:
        ours, theirs = socket.socketpair()
        theirs.settimeout(20)
        self.channel, self.own = Channel(ours), Channel(theirs)
        self.process = FakeProcess(pid, stubborn=stubborn)
        self.heartbeat = SimpleNamespace(count=0)
        self.killed = threading.Event()

    def kill(self) -> None:
        self.killed.set()
        if not self.process.stubborn:
            self.process.returncode = -9

    @property
    def fate(self) -> str:
        return "was ended by a test"

    # --- what the worker does ---

    def ready(self, digest: bytes = b"keys") -> None:
        self.own.send(FrameKind.READY, digest)

    def next_kind(self) -> FrameKind:
        return self.own.receive()[0]

    def answer(self) -> None:
        """Signs the next chunk."""
        kind, body = self.own.receive()
        assert kind is FrameKind.SIGN
        frame = unpack_sign(body)
        parts = [
            ResultPart(Verdict.SIGNED, 100, 0, 64, (), b"s" * 64 * len(part.inputs))
            for part in frame.parts
        ]
        self.own.send(FrameKind.RESULT, *pack_result(ResultFrame(frame.chunk, parts)))


class Stage:
    """A pool of one slot whose workers the test plays."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.started: list[FakeWorker] = []
        self.stubborn = False
        self.gate: threading.Event | None = None
        monkeypatch.setattr(WorkerProcess, "start", self._start)
        monkeypatch.setattr(slots, "LEAVE_SECONDS", 0.1)
        self.record = Recorder()
        self.loop = EventLoop()
        self.pool = Pool(
            SPEC,
            workers=1,
            start_seconds=START,
            hang_seconds=HANG,
            max_queued=1000,
            loop=self.loop,
            events=self.record.events,
            clock=SystemClock(),
        )
        [self.slot] = self.pool._dispatcher.slots

    def _start(self, _: TokenSpec) -> Any:
        if self.gate is not None:
            assert self.gate.wait(20)
        worker = FakeWorker(1000 + len(self.started), stubborn=self.stubborn)
        self.started.append(worker)
        return worker

    def worker(self, number: int = 0) -> FakeWorker:
        until(lambda: len(self.started) > number)
        return self.started[number]

    def serving(self, number: int = 0) -> FakeWorker:
        worker = self.worker(number)
        worker.ready()
        until(lambda: self.pool.serving)
        return worker

    def sign(self, count: int = 1) -> "Call":
        return Call(self.pool, count)

    @property
    def left(self) -> list[tuple[str, str]]:
        return [(event.cause, event.text) for event in self.record.of(WorkerLeft)]

    def close(self) -> None:
        for worker in self.started:
            worker.process.returncode = -9
        self.pool.close()
        self.loop.close()
        for worker in self.started:
            worker.own.close()


class Call:
    """A caller in a thread."""

    def __init__(self, pool: Pool, count: int) -> None:
        self.signed: Signed | None = None
        job = SignJob(key_version(), [bytes(32)] * count, "a", 1, 1, time.monotonic() + 20)
        self._thread = threading.Thread(target=self._sign, args=(pool, job))
        self._thread.start()

    def _sign(self, pool: Pool, job: SignJob) -> None:
        async def sign() -> Signed:
            with pool.admit(job) as admission:
                return await pool.sign(admission)

        self.signed = pool._loop.run(sign())

    def result(self) -> Signed:
        self._thread.join(20)
        assert self.signed is not None
        return self.signed


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    made = Stage(monkeypatch)
    yield made
    made.close()


def test_a_worker_serves_once_it_is_ready(stage: Stage) -> None:
    stage.pool.start()
    worker = stage.worker()
    until(lambda: stage.slot.pid)
    assert stage.pool.serving == 0
    call = stage.sign(3)
    worker.ready(b"inventory")
    worker.answer()
    assert call.result().failures == {}
    [status] = stage.pool.status()
    assert (status.pid, status.state, status.starts, status.items) == (1000, "serving", 1, 3)
    assert stage.pool.inventory == b"inventory"


def test_starting_a_process_does_not_hold_the_loop(stage: Stage) -> None:
    stage.gate = threading.Event()
    stage.pool.start()
    assert stage.loop.call(lambda: "free") == "free"
    assert stage.pool.status()[0].state == "starting"
    stage.gate.set()
    stage.serving()


def test_a_worker_that_dies_is_replaced_and_its_chunk_signed(stage: Stage) -> None:
    stage.pool.start()
    first = stage.serving()
    call = stage.sign()
    assert first.next_kind() is FrameKind.SIGN
    first.own.close()
    second = stage.serving(1)
    second.answer()
    assert (call.result().failures, call.result().attempts) == ({}, 2)
    assert first.killed.is_set()
    assert stage.left == [("died", "the worker was ended by a test")]


@pytest.mark.parametrize(
    ("kind", "body", "cause", "text"),
    [
        (FrameKind.FATAL, {"kind": "pin_locked", "text": "locked"}, "pin_locked", "locked"),
        (FrameKind.FATAL, {"kind": "unheard of", "text": "x"}, "died", "the worker sent 'unhear"),
        (FrameKind.FATAL, {"text": "x"}, "died", "the worker sent 'kind'"),
        (FrameKind.SIGN, {}, "died", "the worker sent an unexpected SIGN"),
        (FrameKind.RESULT, {}, "died", "the worker sent a result that is cut short"),
    ],
)
def test_what_a_worker_says_at_its_end(
    stage: Stage, kind: FrameKind, body: dict[str, str], cause: str, text: str
) -> None:
    stage.pool.start()
    worker = stage.worker()
    worker.own.send(kind, pack_json(body))
    worker.own.end()
    until(lambda: stage.left)
    assert stage.left[0][0] == cause
    assert stage.left[0][1].startswith(text)
    assert stage.pool.wait_for_outcome(20)[0] == FailureKind(cause)


def test_starts_that_fail_alike_are_reported_once_a_minute_and_all_counted(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A token that is away for a night would fill log, audit log and page."""
    monkeypatch.setattr(slots, "_PAUSES", (0.0,))

    def fails(number: int, text: str) -> None:
        worker = stage.worker(number)
        worker.own.send(FrameKind.FATAL, pack_json({"kind": "token_absent", "text": text}))
        worker.own.end()

    away = ("token_absent", "there is no token t")
    stage.pool.start()
    for number in range(4):
        fails(number, away[1])
    until(lambda: len(stage.record.of(WorkerFailedAgain)) == 3)
    assert stage.left == [away]
    fails(4, "another reason")
    fails(5, away[1])
    fails(6, "another reason")
    until(lambda: len(stage.record.of(WorkerFailedAgain)) == 5)
    assert stage.left == [away, ("token_absent", "another reason")]
    monkeypatch.setattr(events, "REPORT_SECONDS", 0.0)
    fails(7, away[1])
    until(lambda: len(stage.left) == 3)
    stage.serving(8).own.close()
    monkeypatch.setattr(events, "REPORT_SECONDS", 60.0)
    fails(9, away[1])
    until(lambda: len(stage.left) == 5)
    assert stage.left[3:] == [("died", "the worker was ended by a test"), away]
    assert {(event.token, event.cause) for event in stage.record.of(WorkerFailedAgain)} == {
        ("t", "token_absent")
    }


# --- keys that are created or destroyed --------------------------------------------------------


def test_a_changed_key_is_announced_before_every_later_chunk(stage: Stage) -> None:
    stage.pool.start()
    worker = stage.serving()
    stage.pool.keys_changed([b"new", b"gone"])
    call = stage.sign()
    kind, body = worker.own.receive()
    assert (kind, unpack_ids(body)) == (FrameKind.KEYS, [b"new", b"gone"])
    worker.answer()
    assert call.result().failures == {}


def test_what_changes_during_a_start_is_announced_once_before_the_first_chunk(stage: Stage) -> None:
    stage.gate = threading.Event()
    stage.pool.start()
    stage.pool.keys_changed([b"a"])  # no process runs yet
    stage.gate.set()
    worker = stage.worker()
    until(lambda: stage.slot.pid)
    stage.pool.keys_changed([b"b", b"a"])  # it is opening its token
    call = stage.sign()
    worker.ready()
    kind, body = worker.own.receive()
    assert (kind, set(unpack_ids(body))) == (FrameKind.KEYS, {b"a", b"b"})
    worker.answer()
    assert call.result().failures == {}
    stage.pool.drop([key_version()])
    assert worker.next_kind() is FrameKind.DROP, "no second announcement"


def test_the_next_worker_does_not_hear_what_the_last_one_heard(stage: Stage) -> None:
    stage.pool.start()
    first = stage.serving()
    stage.pool.keys_changed([b"a"])
    first.own.close()
    second = stage.serving(1)
    call = stage.sign()
    second.answer()
    assert call.result().failures == {}


# --- the watchdog ------------------------------------------------------------------------------


def test_a_silent_worker_with_a_chunk_is_killed_and_the_chunk_goes_on(stage: Stage) -> None:
    stage.pool.start()
    first = stage.serving()
    call = stage.sign()
    assert first.killed.wait(20)
    stage.serving(1).answer()
    assert call.result().failures == {}
    assert stage.left == [("hang", "the worker hung and was killed")]


def test_a_silent_worker_that_owes_nothing_is_left_alone(stage: Stage) -> None:
    stage.pool.start()
    worker = stage.serving()
    time.sleep(3 * HANG)
    assert not worker.killed.is_set()
    call = stage.sign()
    worker.answer()
    assert call.result().failures == {}


def test_a_worker_whose_heartbeat_moves_is_not_killed(stage: Stage) -> None:
    """However long its chunk takes: only one call can hang."""
    stage.pool.start()
    worker = stage.serving()
    call = stage.sign()
    until(lambda: stage.slot.in_flight)
    end = time.monotonic() + 3 * HANG
    while time.monotonic() < end:
        worker.heartbeat.count += 1
        time.sleep(HANG / 20)
    worker.answer()
    assert call.result().failures == {}
    assert not worker.killed.is_set()


def test_a_start_that_hangs_is_killed_and_a_slow_one_is_not(stage: Stage) -> None:
    stage.slot._start_seconds = 0.3
    stage.pool.start()
    worker = stage.worker()
    for _ in range(40):
        worker.heartbeat.count += 1
        time.sleep(0.02)
    assert not worker.killed.is_set(), "its calls return"
    assert worker.killed.wait(20)
    until(lambda: stage.left)
    assert stage.left[0][0] == "hang"


def test_a_stalled_loop_does_not_make_a_worker_hang(stage: Stage) -> None:
    stage.pool.start()
    worker = stage.serving()
    call = stage.sign()
    until(lambda: stage.slot.in_flight)

    def stall() -> None:
        worker.answer()  # into the socket, while the loop does nothing
        time.sleep(3 * HANG)
        stage.slot.check()

    stage.loop.call(stall)
    assert call.result().failures == {}
    assert not worker.killed.is_set()
    assert stage.left == []


def test_a_worker_that_does_not_end_neither_serves_nor_keeps_its_chunks(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slots, "REAP_SECONDS", 0.3)
    stage.stubborn = True
    stage.pool.start()
    first = stage.serving()
    call = stage.sign()
    stage.stubborn = False
    assert first.killed.wait(20)
    until(lambda: stage.pool.serving == 0 or len(stage.started) > 1)
    stage.serving(1).answer()
    assert call.result().failures == {}
    assert first.process.poll() is None, "the kernel has not let it go"
    assert [status.pid for status in stage.pool.status()] == [1001]


# --- the end -----------------------------------------------------------------------------------


def test_closing_ends_worker_and_callers(stage: Stage) -> None:
    stage.pool.start()
    worker = stage.serving()
    call = stage.sign()
    assert worker.next_kind() is FrameKind.SIGN
    stage.pool.close()
    assert {f.message for f in call.result().failures.values()} == {
        "the HSM does not serve now: try again later"
    }
    with pytest.raises(Closed):
        worker.own.receive()
    [status] = stage.pool.status()
    assert (status.state, status.pid, status.reason) == ("stopping", 0, "the daemon is stopping")
    assert stage.left == []
    assert stage.sign().result().failures


def test_a_worker_in_its_login_leaves_by_itself(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slots, "LEAVE_SECONDS", 20.0)
    stage.pool.start()
    worker = stage.worker()
    closing = threading.Thread(target=stage.pool.close)
    closing.start()
    with pytest.raises(Closed):
        worker.own.receive()
    assert not worker.killed.is_set(), "it could be writing to its token"
    worker.process.returncode = 0
    closing.join(20)
    assert not closing.is_alive()


def test_closing_during_a_start_ends_what_was_started(stage: Stage) -> None:
    stage.gate = threading.Event()
    stage.pool.start()
    closing = threading.Thread(target=stage.pool.close)
    closing.start()
    stage.gate.set()
    closing.join(20)
    assert not closing.is_alive()
    assert stage.worker().killed.is_set()


def test_a_pool_that_never_started_and_a_loop_that_has_ended_can_be_closed(stage: Stage) -> None:
    stage.pool.close()
    stage.loop.close()
    stage.pool.close()
    assert stage.pool.waiting() == []
