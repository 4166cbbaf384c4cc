"""The ordinary log: one JSON object a line, on stderr.

Adding a line only queues it: a thread formats and writes what is queued, many lines with
one system call. So a stderr that blocks or fails delays no call and fails none. If it takes
lines too slowly, lines are dropped and counted.
"""

import atexit
import json
import logging
import os
import queue
import select
import sys
import threading
import warnings
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from time import sleep, time
from types import TracebackType
from typing import Any, NamedTuple, TextIO

from signer.config.models import LEVELS

QUEUED_LINES = 10_000
"""How many lines may wait; those of faults may wait beyond that."""
FAULT_LINES = 1_000
"""How many lines of faults may wait beyond ``QUEUED_LINES``."""
CLOSE_SECONDS = 1.0
"""How long the end waits for a slow stderr."""

DEBUG, INFO, WARNING, ERROR = LEVELS
_BATCH_LINES = 1_000  # written with one system call
_SLICE_LINES = 16  # formatted before another thread gets the interpreter
_GATHER_SECONDS = 0.01  # between two batches: lines of several calls come together
_encode = json.JSONEncoder(default=repr).encode


class LogLine(NamedTuple):
    """A line before it is formatted; ``time`` is in seconds since the epoch."""

    time: float
    level: str
    event: str
    fields: Mapping[str, object]

    def format(self) -> str:
        """Returns the line as JSON, with its end."""
        at = datetime.fromtimestamp(self.time, UTC).isoformat().replace("+00:00", "Z")
        named = {"level": self.level, "time": at, "event": self.event}
        try:
            return _encode({**self.fields, **named}) + "\n"
        except (TypeError, ValueError, RecursionError) as error:
            return _encode({"unprintable": type(error).__name__, **named}) + "\n"


def write_to_stderr(data: bytes) -> None:
    """Writes all of ``data``, and waits as long as stderr blocks; raises OSError."""
    # Not through the text file, whose lock a blocked thread would hold when the process ends.
    if sys.__stderr__ is None:
        raise OSError("the process was started without stderr: its number may be another file's")
    descriptor, left = sys.__stderr__.fileno(), memoryview(data)
    while left:
        try:
            left = left[os.write(descriptor, left) :]
        except BlockingIOError:  # another process has made it non-blocking
            select.select([], [descriptor], [])


class LogLines:
    """Queues lines, and writes them in a daemon thread that the first line starts."""

    def __init__(
        self,
        level: str,
        on_dropped: Callable[[int], object] = lambda _: None,
        write: Callable[[bytes], object] = write_to_stderr,
    ) -> None:
        """Lines below ``level`` are not written. ``on_dropped`` gets a number of lines."""
        self._rank = LEVELS.index(level)
        self._on_dropped, self._write = on_dropped, write
        self._queue: queue.SimpleQueue[LogLine | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def set_level(self, level: str) -> None:
        """Writes lines of this level and above from now on."""
        self._rank = LEVELS.index(level)

    def add(
        self, level: str, event: str, fields: Mapping[str, object], *, fault: bool = True
    ) -> None:
        """Queues a line with the present time; ``fields`` must not change any more.

        Below level warning, and unless it is a ``fault``, it is dropped earlier.
        """
        rank = LEVELS.index(level)
        if rank < self._rank:
            return
        kept = QUEUED_LINES + (FAULT_LINES if fault and rank > 1 else 0)
        if self._queue.qsize() >= kept:
            self._on_dropped(1)
            return
        self._queue.put(LogLine(time(), level, event, fields))
        if self._thread is None:
            self._start()

    def close(self) -> None:
        """Writes what is queued, for ``CLOSE_SECONDS`` at most, and ends the thread."""
        with self._lock:
            thread, self._thread = self._thread, None
        if thread is not None:
            atexit.unregister(self.close)
            self._queue.put(None)
            thread.join(CLOSE_SECONDS)

    def _start(self) -> None:
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="log-lines", daemon=True)
                self._thread.start()
                atexit.register(self.close)  # a start that is refused has lines, too

    def _run(self) -> None:
        pause = threading.Event().wait
        ended = False
        while not ended:
            lines, ended = self._take()
            try:
                if lines:
                    self._write("".join(_formatted(lines)).encode())
            except Exception:  # noqa: BLE001 - observers never decide
                self._on_dropped(len(lines))
            if not ended:
                pause(_GATHER_SECONDS)

    def _take(self) -> tuple[list[LogLine], bool]:
        """Waits for lines; returns them, and whether they are the last."""
        lines: list[LogLine] = []
        line = self._queue.get()
        while line is not None:
            lines.append(line)
            if len(lines) == _BATCH_LINES:
                return lines, False
            try:
                line = self._queue.get_nowait()
            except queue.Empty:
                return lines, False
        return lines, True


class LibraryMessages(logging.Handler):
    """Writes what libraries log as lines: who says it, where, and which error, but no text.

    Their texts could quote what a caller has sent.
    """

    def __init__(self, lines: LogLines) -> None:
        super().__init__(logging.WARNING)
        self._lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info and record.exc_info[0]
        place = f"{Path(record.pathname).name}:{record.lineno}"
        self._add(record.name, place, error.__name__ if error else "")

    def capture(self) -> None:
        """Takes everything that Python itself or a library would write to stderr from now on.

        It would wait there for a stderr that is not read, and not write a line of JSON.
        """
        logging.getLogger().handlers = [self]

        def warned(  # noqa: PLR0917 - as Python calls it
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> None:
            del message, file, line
            self._add("warnings", f"{Path(filename).name}:{lineno}", category.__name__)

        def raised(where: str, error: Any) -> None:
            self._raised(where, error.exc_type, error.exc_traceback)

        warnings.showwarning = warned
        threading.excepthook = partial(raised, "thread")
        sys.unraisablehook = partial(raised, "unraisable")

    def _raised(self, where: str, kind: type[BaseException], trace: TracebackType | None) -> None:
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        file = trace.tb_frame.f_code.co_filename if trace else ""
        self._add(where, f"{Path(file).name}:{trace.tb_lineno if trace else 0}", kind.__name__)

    def _add(self, library: str, place: str, error: str) -> None:
        fields = {"library": library, "place": place, "error": error}
        self._lines.add(WARNING, "library", fields, fault=False)


def _formatted(lines: list[LogLine]) -> list[str]:
    formatted: list[str] = []
    for number, line in enumerate(lines, 1):
        formatted.append(line.format())
        if not number % _SLICE_LINES:
            sleep(0)  # another thread gets the interpreter
    return formatted
