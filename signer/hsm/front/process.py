"""One worker process as the front process sees it: started, connected, ended."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from signer.config.models import TokenConfig
from signer.hsm.frames import Channel, Closed, FrameKind, pack_json
from signer.hsm.heartbeat import Heartbeat, shared_counter
from signer.hsm.spec import KeyLookup, TokenSpec, WorkerMode

REAP_SECONDS = 5.0
"""How long is waited for a killed worker. One that the kernel does not let go (a driver that
hangs) is reaped in the background."""
_KEPT = ("PATH", "LANG", "LC_ALL", "TZ", "PYTHONPATH", "PYTHONWARNINGS", "COVERAGE_PROCESS_START")


_NO_INDEX = (WorkerMode.LIST, WorkerMode.MEASURE)  # they look for themselves


def token_spec(token: TokenConfig, state: Path, mode: WorkerMode = WorkerMode.SIGN) -> TokenSpec:
    """Returns what a worker needs to know of its token, and what it does with it."""
    shared = token.model_dump(
        mode="json", include={"label", "serial", "module", "pin_file", "environment"}
    )
    return TokenSpec(
        **shared,
        state=str(state),
        session_copies=token.session_copies and mode is WorkerMode.SIGN,
        key_lookup=KeyLookup.SEARCH if mode in _NO_INDEX else KeyLookup(token.key_lookup),
        mode=mode,
    )


@dataclass(frozen=True, slots=True)
class WorkerProcess:
    """A worker and the socket to it. The worker ends when the socket closes."""

    process: subprocess.Popen[bytes]
    channel: Channel
    heartbeat: Heartbeat

    @classmethod
    def start(cls, spec: TokenSpec, *, keeps: tuple[int, ...] = ()) -> "WorkerProcess":
        """Spawns a worker and sends it its token; see ``spawn``."""
        process = cls.spawn(spec, keeps=keeps)
        process.configure(spec)
        return process

    @classmethod
    def spawn(cls, spec: TokenSpec, *, keeps: tuple[int, ...] = ()) -> "WorkerProcess":
        """Spawns a worker (never forks: this process has threads), which waits for its token.

        The worker ``keeps`` these descriptors open until it ends. Raises OSError if
        the system has no room for another process.
        """
        ours, theirs = socket.socketpair()
        channel = Channel(ours)
        environment = {name: os.environ[name] for name in _KEPT if name in os.environ}
        try:
            with theirs, shared_counter() as counter, _signals_blocked():
                heartbeat = Heartbeat(counter)
                inherited = (theirs.fileno(), counter)
                process = subprocess.Popen(
                    [sys.executable, "-P", "-m", "signer.hsm.worker", *map(str, inherited)],
                    pass_fds=(*inherited, *keeps),
                    stdin=subprocess.DEVNULL,
                    stderr=sys.__stderr__,  # not descriptor 2, which libraries have
                    env=environment | dict(spec.environment),
                )
        except OSError:
            channel.close()
            raise
        return cls(process, channel, heartbeat)

    def configure(self, spec: TokenSpec) -> None:
        """Sends it its token, which it opens then."""
        with contextlib.suppress(Closed):  # it died at once: its reader reports that
            self.channel.send(FrameKind.CONFIGURE, pack_json(asdict(spec)))

    def kill(self) -> None:
        """Kills a hung worker; its reader sees the socket close."""
        self.process.kill()

    @property
    def fate(self) -> str:
        """How a worker ended: "was ended by SIGKILL", "exited with 1"."""
        code = self.process.returncode
        if code is None:
            return "was killed and does not end"
        return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"exited with {code}"

    def end(self, seconds: float = 5.0) -> None:
        """Closes the socket, waits for the worker to leave and reaps it.

        One that the kernel does not let go, though it is killed, is reaped in the background.
        """
        self.channel.close()
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            try:
                self.process.wait(REAP_SECONDS)
            except subprocess.TimeoutExpired:
                threading.Thread(target=self.process.wait, name="reap", daemon=True).start()


@contextlib.contextmanager
def _signals_blocked() -> Iterator[None]:
    """Blocks the signals that are meant for the front process, in what the block spawns.

    A terminal or a supervisor signals the whole process group, also a worker whose
    interpreter is still starting: it inherits the mask until it ignores them.
    """
    before = signal.pthread_sigmask(
        signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    )
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
