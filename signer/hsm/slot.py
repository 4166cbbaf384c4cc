"""The place of one worker: starts it, reads its answers, starts another when it has gone."""

from __future__ import annotations

import threading
from typing import Protocol

from signer.clock import Clock
from signer.hsm.frames import (
    Closed,
    FrameError,
    Kind,
    ResultFrame,
    unpack_json,
    unpack_result,
)
from signer.hsm.process import WorkerProcess
from signer.hsm.scheduler import Chunk
from signer.hsm.spec import FailureKind, TokenSpec

START_SECONDS = 60.0
"""How long a worker may take to open its token."""
_LONGEST_PAUSE = 5.0


class Keeper(Protocol):
    """Who has the chunks: told from the slot's own thread."""

    def ready(self, slot: Slot) -> None: ...
    def result(self, slot: Slot, result: ResultFrame) -> None: ...
    def left(self, slot: Slot, cause: FailureKind, text: str, failures: int) -> None: ...


class Slot:
    """One worker after another, one at a time.

    ``state`` (starting, serving, failed, stopping), ``in_flight`` and ``since``
    belong to the keeper's lock.
    """

    def __init__(
        self, number: int, spec: TokenSpec, keeper: Keeper, hang_seconds: float, clock: Clock
    ) -> None:
        self.state = "starting"
        self.reason = ""
        self.starts = 0
        self.items = 0
        self.since = clock.monotonic()
        """When it last started, answered, or got a chunk while idle."""
        self.in_flight: dict[int, Chunk] = {}
        self._spec = spec
        self._keeper = keeper
        self._hang_seconds = hang_seconds
        self._clock = clock
        self._process: WorkerProcess | None = None
        self._send_lock = threading.Lock()
        self._closing = threading.Event()
        self._stale = False
        self._hung = False
        name = f"{spec.label}-{number}"
        self._threads = (
            threading.Thread(target=self._keep, name=f"worker-{name}", daemon=True),
            threading.Thread(target=self._watch, name=f"watchdog-{name}", daemon=True),
        )

    @property
    def pid(self) -> int:
        """Process id of the worker; 0 while none runs."""
        process = self._process
        return process.process.pid if process else 0

    def start(self) -> None:
        """Starts the first worker in the background."""
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Has the worker leave; ``join`` waits for it."""
        self._closing.set()
        process = self._process
        if process is not None:
            process.channel.close()

    def join(self) -> None:
        """Waits until the worker has gone."""
        for thread in self._threads:
            thread.join()

    def send(self, kind: Kind, *parts: bytes) -> None:
        """Sends in order. Where the worker has gone, its reader sees to the consequences."""
        process = self._process
        if process is None:
            return
        with self._send_lock:
            try:
                process.channel.send(kind, *parts)
            except Closed:
                return

    def refresh(self) -> None:
        """Has the worker look for new keys; one that is still starting does so when ready."""
        if self.state == "serving":
            self.send(Kind.REFRESH)
        else:
            self._stale = True

    def _keep(self) -> None:
        failures = 0
        while not self._closing.is_set():
            self.state, self.starts = "starting", self.starts + 1
            cause, text, served = self._one_life()
            if self._closing.is_set():
                break
            failures = 1 if served else failures + 1
            self._keeper.left(self, cause, text, failures)
            self._closing.wait(0.0 if served else min(_LONGEST_PAUSE, 0.1 * 2**failures))
        self.state = "stopping"

    def _one_life(self) -> tuple[FailureKind, str, bool]:
        """Runs one worker to its end, reaped; returns cause, text and whether it served."""
        served, self._stale, self._hung = False, False, False
        self.since = self._clock.monotonic()
        self._process = process = WorkerProcess.start(self._spec)
        if self._closing.is_set():
            process.channel.close()  # close() may have come before this process
        cause, text = FailureKind.DIED, "the worker died"
        try:
            while True:
                kind, body = process.channel.receive()
                if kind is Kind.RESULT:
                    self._keeper.result(self, unpack_result(body))
                elif kind is Kind.READY:
                    served = True
                    if self._stale:
                        self.send(Kind.REFRESH)
                    self._keeper.ready(self)
                elif kind is Kind.FATAL:
                    report = unpack_json(body)
                    cause, text = FailureKind(report["kind"]), str(report["text"])
                else:
                    cause, text = FailureKind.DIED, f"the worker sent an unexpected {kind.name}"
                    break
        except Closed:
            pass
        except (FrameError, ValueError, KeyError) as error:
            text = f"the worker sent {error}"
        finally:
            self._process = None
            process.kill()
            process.end()
        if self._hung:
            cause, text = FailureKind.HANG, "the worker hung and was killed"
        return cause, text, served

    def _watch(self) -> None:
        """Kills a worker that hangs: PKCS#11 has no time-outs."""
        while not self._closing.wait(0.25):
            starting = self.state == "starting"
            limit = START_SECONDS if starting else self._hang_seconds
            silent = self._clock.monotonic() - self.since
            process = self._process
            if process and (starting or self.in_flight) and silent > limit:
                self._hung = True
                process.kill()
