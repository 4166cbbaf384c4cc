"""The front's side of the socket to one worker, on the event loop: nothing here waits."""

import asyncio
import contextlib
import socket
from typing import Protocol

from signer.hsm.frames import FrameError, FrameKind, FrameReader, pack_frame

READ_BYTES = 256 * 1024
"""What is read at once: more than a worker's socket buffer holds."""


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
        """Reads and writes no more."""
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
