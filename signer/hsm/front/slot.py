"""The slot of one worker: starts it, reads its answers, starts another when it has gone.

A slot is a coroutine on the event loop. Only the start of a process may block: that is done
in a thread. Its link reads from and writes to the worker's socket as the loop permits.
"""

import asyncio
import contextlib
import itertools
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from signer.clock import Clock
from signer.event_loop import in_thread
from signer.hsm.frames import (
    LOGGED_IN,
    FrameError,
    FrameKind,
    FrameReader,
    ResultFrame,
    pack_frame,
    pack_ids,
    pack_sign,
    unpack_json,
    unpack_result,
)
from signer.hsm.front.chunks import Chunk
from signer.hsm.front.process import REAP_SECONDS, WorkerProcess
from signer.hsm.spec import FailureKind, TokenSpec

LEAVE_SECONDS = 3.0
"""How long a worker that is opening its token may take to leave by itself. One that is killed
in its login may leave SoftHSM's token unreadable, with all of its keys: that module rewrites
a file of the token at each login."""
_REAP_POLLS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1)  # the last one again and again
_PAUSES = (0.0, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0)
"""Seconds before the next start, by how many workers in a row signed nothing."""
READ_BYTES = 256 * 1024
"""What is read at once: more than a worker's socket buffer holds."""


class WorkerEnd(NamedTuple):
    """How a worker ended. ``served``: it had opened its token."""

    cause: FailureKind
    text: str
    served: bool = False

    @property
    def at_once(self) -> bool:
        """Whether the worker is killed at once: it hangs, or has its login behind it."""
        return self.served or self.cause is FailureKind.HANG


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
    """The owner of the chunks; called on the loop."""

    def logged_in(self, failed: FailureKind | None) -> None:
        """A worker has tried to log in; ``failed``: why it has ended before it was."""

    def ready(self, slot: "Slot") -> None: ...
    def result(self, slot: "Slot", result: ResultFrame) -> None: ...
    def lost(self, slot: "Slot") -> None: ...
    def left(self, slot: "Slot", end: WorkerEnd, failed_starts: int) -> None: ...


class Slot:
    """One worker after another, one at a time. Everything but ``status`` is for the loop."""

    def __init__(
        self,
        spec: TokenSpec,
        owner: SlotOwner,
        *,
        start_seconds: float,
        hang_seconds: float,
        clock: Clock,
        spare: WorkerProcess | None = None,
    ) -> None:
        """Takes how long one call of the module may take at a start and afterwards.

        ``spare`` is a worker that was spawned already and waits for its token: the first one.
        """
        self.state = "starting"
        self.reason = ""
        self.starts = 0
        self.items = 0
        self.since = clock.monotonic()  # when it started, last went on, or got a chunk while idle
        self.in_flight: dict[int, Chunk] = {}
        self.inventory = b""  # digest of the keys in the index of the last worker
        self.process: WorkerProcess | None = None
        self.link: Link | None = None
        self._spec, self._spare = spec, spare
        self._owner = owner
        self._start_seconds, self._hang_seconds = start_seconds, hang_seconds
        self._clock = clock
        self._closing = asyncio.Event()
        self._logging_in = False  # this worker has called C_Login, and has not reported success
        self._ready = False  # this worker has opened its token
        self._missed: set[bytes] = set()  # keys that changed while it did
        self._beats = 0  # the heartbeat when it was last looked at
        self._report: WorkerEnd | None = None  # why it leaves, as it said itself
        self._end: asyncio.Future[WorkerEnd] | None = None
        self._reaping: set[asyncio.Task[None]] = set()

    @property
    def pid(self) -> int:
        """Process id of the worker; 0 while none runs."""
        process = self.process
        return process.process.pid if process else 0

    def status(self) -> WorkerStatus:
        return WorkerStatus(
            self._spec.label, self.pid, self.state, self.starts, self.items, self.reason
        )

    def close(self) -> None:
        """Ends the worker, and ``keep`` once it has gone."""
        self._closing.set()
        self._finish(WorkerEnd(FailureKind.DIED, ""))

    def send(self, kind: FrameKind, *parts: bytes) -> bool:
        """Sends a frame; False if no worker gets it."""
        return self.link is not None and self.link.send(kind, *parts)

    def send_chunk(self, number: int, chunk: Chunk) -> None:
        """Sends a chunk; the worker answers under this number.

        A chunk of a worker that has gone is requeued by ``SlotOwner.lost``.
        """
        if not self.in_flight:
            self.since = self._clock.monotonic()
        self.in_flight[number] = chunk
        chunk.delivered = self.send(
            FrameKind.SIGN, *pack_sign(chunk.frame(number, self._spec.label))
        )

    def keys_changed(self, ids: Iterable[bytes]) -> None:
        """Makes the worker look up keys again, when it next uses them.

        One that is still starting may have missed them: it does so when it is ready.
        """
        if self._ready:
            self.send(FrameKind.KEYS, pack_ids(ids))
        else:
            self._missed.update(ids)

    def check(self) -> None:
        """Kills a worker of which one call of the module does not return."""
        if self.link is None or self.process is None:
            return
        now, beats = self._clock.monotonic(), self.process.heartbeat.count
        if beats != self._beats:
            self._beats, self.since = beats, now
        starting = self.state == "starting"
        limit = self._start_seconds if starting else self._hang_seconds
        if not (starting or self.in_flight) or now - self.since <= limit:
            return
        if self.link.catch_up():
            self.since = now
            return
        self._finish(WorkerEnd(FailureKind.HANG, "the worker hung and was killed"))

    async def keep(self) -> None:
        """Keeps a worker running until ``close``."""
        useless = failed_starts = 0
        while not self._closing.is_set():
            self.state, self.starts = "starting", self.starts + 1
            items = self.items
            end = await self._run_worker()
            if self._closing.is_set():
                break
            useless = 0 if self.items > items else useless + 1
            failed_starts = 0 if end.served else failed_starts + 1
            self._owner.left(self, end, failed_starts)
            pause = _PAUSES[min(useless, len(_PAUSES) - 1)]
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._closing.wait(), pause)
        self.state = "stopping"

    async def _run_worker(self) -> WorkerEnd:
        """Runs one worker until it has ended and is reaped."""
        self._ready = self._logging_in = False
        self._missed.clear()
        self._report, self._beats = None, 0
        try:
            process = await in_thread("worker-start", self._start)
        except OSError as error:
            self.state = "failed"
            return WorkerEnd(FailureKind.DIED, f"no worker can be started: {error.strerror}")
        loop = asyncio.get_running_loop()
        self.since = self._clock.monotonic()
        self._end = loop.create_future()
        self.process = process
        self.link = link = Link(loop, process.channel.socket, self)
        try:
            if self._closing.is_set():
                self._finish(WorkerEnd(FailureKind.DIED, ""))
            end = await self._end
        except BaseException:  # the loop ends
            process.kill()
            raise
        finally:
            self.link = None
            link.close()
            process.channel.close()
        reaping = loop.create_task(_reap(process))
        self._reaping.add(reaping)
        reaping.add_done_callback(self._reaping.discard)
        if not end.at_once:
            await asyncio.wait([reaping], timeout=LEAVE_SECONDS)
        process.kill()
        await asyncio.wait([reaping], timeout=REAP_SECONDS)
        self.process = None
        return end if end.text else end._replace(text=f"the worker {process.fate}")

    def _start(self) -> WorkerProcess:
        """Starts a worker, in a thread; raises OSError."""
        spare, self._spare = self._spare, None
        if spare is None:
            return WorkerProcess.start(self._spec)
        spare.configure(self._spec)
        return spare

    def _finish(self, end: WorkerEnd) -> None:
        """Ends the service of the present worker: at once, not when it is reaped."""
        if self._end is None or self._end.done():
            return
        self.state = "failed"
        end = end._replace(served=self._ready)
        self._end.set_result(end)
        self._ready = False
        if self._logging_in:
            self._owner.logged_in(end.cause)
        if self.link is not None:
            self.link.close()
        if self.process is not None and end.at_once:
            self.process.kill()
        self._owner.lost(self)

    # --- what the link reports -------------------------------------------------------------

    def frame(self, kind: FrameKind, body: memoryview) -> None:
        """Takes a frame of the worker; raises FrameError."""
        self.since = self._clock.monotonic()
        try:
            if kind is FrameKind.RESULT:
                self._owner.result(self, unpack_result(body))
            elif kind is FrameKind.LOGIN:
                self._logging_in = body != LOGGED_IN
                if not self._logging_in:
                    self._owner.logged_in(None)
            elif kind is FrameKind.READY:
                self.inventory = bytes(body)
                self._introduce()
            elif kind is FrameKind.FATAL:
                report = unpack_json(body)
                self._report = WorkerEnd(FailureKind(report["kind"]), str(report["text"]))
            else:
                raise FrameError(f"an unexpected {kind.name}")
        except (ValueError, KeyError) as error:
            raise FrameError(str(error)) from error

    def ended(self, error: FrameError | None) -> None:
        """Ends the worker: it has closed its side, or sent something wrong."""
        end = self._report or WorkerEnd(FailureKind.DIED, "")
        if error is not None:
            end = WorkerEnd(FailureKind.DIED, f"the worker sent {error}")
        self._finish(end)

    def _introduce(self) -> None:
        """Reports a worker that is ready; it hears first what changed while it started."""
        self._ready = True
        if self._missed:
            self.keys_changed(self._missed)
            self._missed.clear()
        self._owner.ready(self)


class LinkOwner(Protocol):
    """What a link reports to; called on the loop."""

    def frame(self, kind: FrameKind, body: memoryview) -> None:
        """A frame has come; ``body`` is valid during the call. May raise FrameError."""

    def ended(self, error: FrameError | None) -> None:
        """The worker has closed its side (None), or has sent what is not a frame."""


class Link:
    """Frames to and from one worker, in order. All methods are for the loop."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, sock: socket.socket, owner: LinkOwner
    ) -> None:
        """Reads from the socket from now on; its other owner closes it after ``close``."""
        self._loop = loop
        self._socket = sock
        self._owner = owner
        self._reader = FrameReader()
        self._buffer = memoryview(bytearray(READ_BYTES))
        self._unsent = bytearray()
        self._open = True
        sock.setblocking(False)
        loop.add_reader(sock.fileno(), self._read)

    def send(self, kind: FrameKind, *parts: bytes) -> bool:
        """Sends a frame, or keeps what the socket does not take at once.

        Returns False if the worker has gone: it does not get the frame.
        """
        if not self._open:
            return False
        frame = pack_frame(kind, *parts)
        if self._unsent:
            self._unsent += frame
            return True
        try:
            sent = self._socket.send(frame)
        except BlockingIOError:
            sent = 0
        except OSError:
            return False  # the reader reports the end
        if sent < len(frame):
            self._unsent += memoryview(frame)[sent:]
            self._loop.add_writer(self._socket.fileno(), self._write)
        return True

    def catch_up(self) -> bool:
        """Reads and writes all that is possible now; returns whether anything was.

        A loop that was stalled must not take a worker for silent.
        """
        moved = self._write()
        while self._read():
            moved = True
        return moved

    def close(self) -> None:
        """Stops reading and writing."""
        if self._open:
            self._open = False
            self._loop.remove_reader(self._socket.fileno())
            self._loop.remove_writer(self._socket.fileno())
            self._unsent.clear()

    def _read(self) -> bool:
        """Reads once and reports the frames; returns whether anything came."""
        if not self._open:
            return False
        try:
            count = self._socket.recv_into(self._buffer)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError:
            count = 0  # a worker that was killed may reset the connection
        if not count:
            self._owner.ended(None)
            return True
        try:
            for kind, body in self._reader.feed(self._buffer[:count]):
                self._owner.frame(kind, body)
                if not self._open:
                    break
        except FrameError as error:
            self._owner.ended(error)
        return True

    def _write(self) -> bool:
        """Writes what is kept; returns whether the socket took any of it."""
        if not self._open or not self._unsent:
            return False
        sent = 0
        with contextlib.suppress(OSError):  # it takes nothing now, or the reader reports the end
            sent = self._socket.send(self._unsent)
        del self._unsent[:sent]
        if not self._unsent:
            self._loop.remove_writer(self._socket.fileno())
        return bool(sent)


async def _reap(process: WorkerProcess) -> None:
    """Waits until a killed worker has left."""
    for pause in itertools.chain(_REAP_POLLS, itertools.repeat(_REAP_POLLS[-1])):
        if process.process.poll() is not None:
            return
        await asyncio.sleep(pause)
