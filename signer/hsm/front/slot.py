"""The slot of one worker: starts it, reads its answers, starts another when it has gone."""

import contextlib
import threading
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from signer.clock import Clock
from signer.hsm.frames import (
    Closed,
    FrameError,
    FrameKind,
    ResultFrame,
    SignFrame,
    pack_sign,
    unpack_json,
    unpack_result,
)
from signer.hsm.front.process import WorkerProcess
from signer.hsm.front.scheduler import Chunk
from signer.hsm.spec import FailureKind, TokenSpec

START_SECONDS = 60.0  # how long a worker may take to open its token
_PAUSES = (0.0, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0)
"""Seconds before the next start, by how many workers in a row signed nothing."""


class WorkerEnd(NamedTuple):
    """How a worker ended. ``served``: it had opened its token."""

    cause: FailureKind
    text: str
    served: bool = False


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """One worker as operators see it; ``state`` is starting, serving, stopping or failed."""

    token: str
    pid: int
    state: str
    starts: int
    items: int
    reason: str


class SlotOwner(Protocol):
    """The owner of the chunks; called in the slot's own thread."""

    def ready(self, slot: "Slot") -> None: ...
    def result(self, slot: "Slot", result: ResultFrame) -> None: ...
    def left(self, slot: "Slot", end: WorkerEnd, failed_starts: int) -> None: ...


class Slot:
    """One worker after another, one at a time.

    ``state`` (starting, serving, failed, stopping), ``in_flight`` and ``since``
    are guarded by the owner's lock.
    """

    def __init__(
        self, number: int, spec: TokenSpec, owner: SlotOwner, hang_seconds: float, clock: Clock
    ) -> None:
        self.state = "starting"
        self.reason = ""
        self.starts = 0
        self.items = 0
        self.since = clock.monotonic()  # when it started, answered, or got a chunk while idle
        self.in_flight: dict[int, Chunk] = {}
        self.inventory = b""  # digest of the keys that the last worker found at its start
        self._spec = spec
        self._owner = owner
        self._hang_seconds = hang_seconds
        self._clock = clock
        self.process: WorkerProcess | None = None
        self._closing = threading.Event()
        self._refreshing = threading.Lock()
        self._introduced = False
        self._stale = False
        self._hung: WorkerProcess | None = None
        name = f"{spec.label}-{number}"
        self._threads = (
            threading.Thread(target=self._keep, name=f"worker-{name}", daemon=True),
            threading.Thread(target=self._watch, name=f"watchdog-{name}", daemon=True),
        )

    @property
    def pid(self) -> int:
        """Process id of the worker; 0 while none runs."""
        process = self.process
        return process.process.pid if process else 0

    def status(self) -> WorkerStatus:
        return WorkerStatus(
            self._spec.label, self.pid, self.state, self.starts, self.items, self.reason
        )

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Makes the worker leave; ``join`` waits for it."""
        self._closing.set()
        if (process := self.process) is not None:
            process.channel.end()

    def join(self) -> None:
        """Waits until the worker has gone. A start that was refused may have begun no thread."""
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()

    def send(self, kind: FrameKind, *parts: bytes) -> None:
        _send(self.process, kind, *parts)

    def send_chunk(self, process: WorkerProcess | None, number: int, chunk: Chunk) -> None:
        """Sends a chunk to this worker and no other; it answers under this number.

        A chunk of a worker that has gone is requeued by ``SlotOwner.left``.
        """
        job = chunk.batch.job
        version, inputs = job.version, job.inputs[chunk.start : chunk.stop]
        frame = SignFrame(
            number, version.algorithm, job.check_every, version.cka_id, version.spki, inputs
        )
        _send(process, FrameKind.SIGN, *pack_sign(frame))

    def refresh(self) -> None:
        """Makes the worker look for new keys; one that is still starting does so when ready."""
        with self._refreshing:
            self._stale = not self._introduced
            if self._introduced:
                self.send(FrameKind.REFRESH)

    def _introduce(self) -> None:
        """Reports a worker that is ready, and repeats a refresh that came while it started."""
        with self._refreshing:
            self._introduced = True
            if self._stale:
                self.send(FrameKind.REFRESH)
        self._owner.ready(self)

    def _keep(self) -> None:
        useless = failed_starts = 0
        while not self._closing.is_set():
            self.state, self.starts = "starting", self.starts + 1
            items = self.items
            end = self._run_worker()
            if self._closing.is_set():
                break
            useless = 0 if self.items > items else useless + 1
            failed_starts = 0 if end.served else failed_starts + 1
            self._owner.left(self, end, failed_starts)
            self._closing.wait(_PAUSES[min(useless, len(_PAUSES) - 1)])
        self.state = "stopping"

    def _run_worker(self) -> WorkerEnd:
        """Runs one worker until it has ended and is reaped."""
        with self._refreshing:
            self._introduced = self._stale = False
        self.since = self._clock.monotonic()
        try:
            self.process = process = WorkerProcess.start(self._spec)
        except OSError as error:
            return WorkerEnd(FailureKind.DIED, f"no worker can be started: {error.strerror}")
        if self._closing.is_set():
            process.channel.end()  # close() may have come before this process
        try:
            end = self._converse(process)
        finally:
            self.process = None
            process.kill()
            process.end()
        if self._hung is process:
            return end._replace(cause=FailureKind.HANG, text="the worker hung and was killed")
        return end if end.text else end._replace(text=f"the worker {process.fate}")

    def _converse(self, process: WorkerProcess) -> WorkerEnd:
        """Reads a worker's frames until it has gone; the text is empty where it gave no reason."""
        end = WorkerEnd(FailureKind.DIED, "")
        try:
            while True:
                kind, body = process.channel.receive()
                if kind is FrameKind.RESULT:
                    self._owner.result(self, unpack_result(body))
                elif kind is FrameKind.READY:
                    end = end._replace(served=True)
                    self.inventory = bytes(body)
                    self._introduce()
                elif kind is FrameKind.FATAL:
                    report = unpack_json(body)
                    cause = FailureKind(report["kind"])
                    end = end._replace(cause=cause, text=str(report["text"]))
                else:
                    raise FrameError(f"an unexpected {kind.name}")  # noqa: TRY301 - one exit for all
        except Closed:
            return end
        except (FrameError, ValueError, KeyError) as error:
            return end._replace(cause=FailureKind.DIED, text=f"the worker sent {error}")

    def _watch(self) -> None:
        """Kills a worker that hangs: PKCS#11 has no time-outs."""
        while not self._closing.wait(0.25):
            # ``since`` is read last: a chunk that comes after the second line resets it.
            process, starting = self.process, self.state == "starting"
            owes = starting or bool(self.in_flight)
            silent = self._clock.monotonic() - self.since
            if process and owes and silent > (START_SECONDS if starting else self._hang_seconds):
                self._hung = process
                process.kill()


def _send(process: WorkerProcess | None, kind: FrameKind, *parts: bytes) -> None:
    """Sends a frame; where the worker has gone, the thread that reads from it handles that."""
    if process is not None:
        with contextlib.suppress(Closed):
            process.channel.send(kind, *parts)
