import signal
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest

from signer.hsm.frames import FrameKind
from signer.hsm.front import process as processes
from signer.hsm.front.process import WorkerProcess
from signer.hsm.spec import TokenSpec


@pytest.fixture
def spec(tmp_path: Path) -> TokenSpec:
    """A token whose module is absent: its worker starts, says so, and leaves."""
    return TokenSpec(
        label="none",
        serial=None,
        module=str(tmp_path / "absent.so"),
        pin_file=str(tmp_path / "pin"),
        state=str(tmp_path),
        session_copies=False,
        environment={},
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_worker_leaves_signals_alone_from_its_first_instruction_on(
    spec: TokenSpec, number: signal.Signals
) -> None:
    worker = WorkerProcess.start(spec)
    worker.process.send_signal(number)  # its interpreter is still starting
    kind, _ = worker.channel.receive()
    worker.end()
    assert kind is FrameKind.FATAL
    assert worker.process.returncode >= 0, worker.fate


def test_starting_a_worker_leaves_our_own_mask_as_it_was(spec: TokenSpec) -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, set())
    WorkerProcess.start(spec).end()
    assert signal.pthread_sigmask(signal.SIG_BLOCK, set()) == before


class Held:
    """A process that the kernel does not let go, until the test does."""

    def __init__(self) -> None:
        self.killed, self.free, self.reaped = (threading.Event() for _ in range(3))

    def kill(self) -> None:
        self.killed.set()

    def wait(self, timeout: float | None = None) -> int:
        if not self.free.wait(timeout):
            raise subprocess.TimeoutExpired("worker", timeout or 0)
        self.reaped.set()
        return -9


def test_nobody_waits_for_a_killed_worker_that_does_not_end(
    spec: TokenSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "REAP_SECONDS", 0.05)
    started = WorkerProcess.start(spec)
    held: Any = Held()
    stuck = WorkerProcess(held, started.channel, started.heartbeat)
    stuck.end(seconds=0.05)
    assert held.killed.is_set()
    assert not held.reaped.is_set()
    held.free.set()
    assert held.reaped.wait(20)
    started.end()


def test_a_worker_that_waits_for_its_token_opens_it_once_it_knows_it(spec: TokenSpec) -> None:
    worker = WorkerProcess.spawn(spec)
    worker.process.send_signal(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        worker.process.wait(0.1)
    worker.configure(spec)
    kind, body = worker.channel.receive()
    worker.end()
    assert kind is FrameKind.FATAL
    assert b"absent.so cannot be loaded" in bytes(body)


def test_a_worker_that_waits_leaves_with_its_front_process(spec: TokenSpec) -> None:
    worker = WorkerProcess.spawn(spec)
    worker.channel.close()
    assert worker.process.wait(60) == 0
