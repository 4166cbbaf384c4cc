"""What libraries in C write to stderr: failed TLS handshakes, counted by cause, and the rest.

gRPC's core, for instance, writes a line of its own to descriptor 2 for each failed TLS handshake.
Strangers, who can connect as often as they like, could fill the log with them, and a stderr that
nobody reads would stop gRPC's threads. So libraries get a descriptor 2 of their own, which is
read here; what it says is added up, and reported at most once in ``PAUSE_SECONDS``.
"""

import os
import re
import select
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import TextIO

from signer.events import Event, HandshakesFailed, LibraryLines
from signer.observe.catalogue import HANDSHAKE_CAUSES, OTHER

PAUSE_SECONDS = 5.0
MAX_KINDS = 50
"""Different lines that are reported at once; further ones are only counted."""
_LINE = re.compile(rb"[IWEF]\d{4} [\d:.]+ +\d+ ([\w.]{1,60}:\d{1,6})\] (.*)")
_HANDSHAKE = re.compile(rb"Handshake failed .*?OPENSSL_internal:([A-Z0-9_]{1,60})")
_LONGEST = 4096

_STDERR = 2

_Said = HandshakesFailed | LibraryLines


def event_of(line: bytes) -> _Said:
    """Returns what one line says: a failed handshake, or the place in a library."""
    said = _LINE.match(line)
    if said is None:
        return LibraryLines("", 1)
    if failed := _HANDSHAKE.match(said[2]):
        cause = HANDSHAKE_CAUSES.get(failed[1].decode(), OTHER)
        return HandshakesFailed(cause, 1)
    return LibraryLines(said[1].decode(), 1)


class NativeLines:
    """Reads what libraries write to stderr, in a thread, until ``close``."""

    def __init__(self, emit: Callable[[Event], None]) -> None:
        """Separates stderr; ``emit`` gets the events, each for several lines. Raises OSError."""
        self._emit = emit
        self._stderr, self._descriptor = separate()
        self._counted: Counter[tuple[type[_Said], str]] = Counter()
        self._thread = threading.Thread(target=self._run, name="native-lines", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Gives stderr back to libraries, and reports what is left."""
        with suppress(OSError):
            self._stderr.flush()
        os.dup2(self._stderr.fileno(), _STDERR)  # which ends what the thread reads
        self._thread.join(1.0)

    def _run(self) -> None:
        rest, reported = b"", 0.0
        while True:
            ready, _, _ = select.select([self._descriptor], [], [], PAUSE_SECONDS)
            read = os.read(self._descriptor, 65_536) if ready else b""
            *lines, rest = (rest + read).split(b"\n")
            rest = rest[:_LONGEST]
            for line in lines:
                self._count(event_of(line))
            ended = bool(ready) and not read
            if ended or time.monotonic() - reported >= PAUSE_SECONDS:
                reported = time.monotonic()
                self._report()
            if ended:
                os.close(self._descriptor)
                return

    def _count(self, event: _Said) -> None:
        kind: tuple[type[_Said], str] = type(event), event[0]
        if kind not in self._counted and len(self._counted) >= MAX_KINDS:
            kind = LibraryLines, ""
        self._counted[kind] += 1

    def _report(self) -> None:
        counted, self._counted = self._counted, Counter()
        for (kind, what), times in counted.items():
            self._emit(kind(what, times))


def separate() -> tuple[TextIO, int]:
    """Leaves descriptor 2 to libraries.

    Returns the file of the stderr with which the process was started, and the descriptor that
    reads what libraries write. They never wait: lines that find no room are lost. ``sys.stderr``
    and ``sys.__stderr__`` write where they wrote before. Raises OSError.
    """
    ours = os.fdopen(os.dup(_STDERR), "w", buffering=1)
    sys.stderr = sys.__stderr__ = ours  # type: ignore[misc]
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    os.dup2(writing, _STDERR)
    os.close(writing)
    return ours, reading
