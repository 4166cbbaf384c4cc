import signal
from pathlib import Path

import pytest

from signer.hsm.frames import FrameKind
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
