"""Makes checkpoints while the log grows, and writes them to one or two directories.

The log's tree is signed at most a second or 10,000 items after they were written. Every
checkpoint becomes the file ``newest`` in a directory beside the log, and a line of the
daemon's ordinary log; the first of every hour is also kept under its size, 16 digits. A
second directory, on another machine, gets the same files.

Nothing here stops signing. Failures are reported and retried; an alert watches the time of
the last checkpoint.
"""

import threading
from collections.abc import Callable, Iterable
from itertools import count
from pathlib import Path

from signer.audit.format.checkpoint import Checkpoint, CheckpointError
from signer.audit.read.notes import NEWEST, checkpoint_files, read_note
from signer.audit.write.disk import Disk, replace_durably
from signer.audit.write.inbox import Growth
from signer.clock import Clock
from signer.events import (
    CheckpointFailed,
    CheckpointMade,
    CheckpointShipped,
    Events,
    LastingFailures,
    ShippingFailed,
)

MAX_ITEMS_BEHIND = 10_000
INTERVAL = 0.5
"""Seconds that a checkpoint waits for more records: the rest of its second is for the token."""

_KEEP_EVERY = 3600
_RETRY_SECONDS = (1.0, 2.0, 5.0, 15.0, 60.0)


class Folder:
    """A directory of checkpoints."""

    def __init__(self, path: Path, clock: Clock, disk: Disk | None = None) -> None:
        self.path = path
        self._clock = clock
        self._disk = disk or Disk()
        self._hour = -1

    def put(self, checkpoint: Checkpoint, note: str) -> None:
        """Makes a checkpoint the newest, durably; readers see it or the old one. Raises OSError."""
        self.path.mkdir(parents=True, exist_ok=True)
        hour = int(self._clock.now() // _KEEP_EVERY)
        if hour != self._hour:
            replace_durably(self._disk, self.path / f"{checkpoint.size:016d}", note.encode())
        replace_durably(self._disk, self.path / NEWEST, note.encode())
        self._hour = hour

    def try_put(self, checkpoint: Checkpoint, note: str) -> str:
        """Does the same as ``put``; returns the text of a failure instead of raising it."""
        try:
            self.put(checkpoint, note)
        except OSError as error:
            reason = error.strerror or error
            return f"checkpoint {checkpoint.size} could not be written to {self.path}: {reason}"
        return ""


class Shipper:
    """Writes the newest checkpoint to a folder that may be slow, full or unreachable.

    It has a thread of its own, so that only that thread waits for a file server. A waiting
    checkpoint is replaced by the next one, which covers it.
    """

    def __init__(self, folder: Folder, events: Events) -> None:
        self._folder = folder
        self._events = events
        self._changed = threading.Condition()
        self._waiting: tuple[Checkpoint, str] | None = None
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="ship-checkpoints", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def offer(self, checkpoint: Checkpoint, note: str) -> None:
        """Takes a checkpoint that is newer than all before, without waiting."""
        with self._changed:
            self._waiting = checkpoint, note
            self._changed.notify_all()

    def close(self, timeout: float) -> None:
        """Tries the waiting checkpoint once more; returns after ``timeout`` seconds at most."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(timeout)

    def _run(self) -> None:
        failures = 0
        while (taken := self._take()) is not None:
            failures = 0 if self._ship(*taken) else failures + 1
            if failures:
                self._put_back(taken, _RETRY_SECONDS[min(failures, len(_RETRY_SECONDS)) - 1])

    def _take(self) -> tuple[Checkpoint, str] | None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting is not None or self._closing)
            taken, self._waiting = self._waiting, None
            return taken

    def _ship(self, checkpoint: Checkpoint, note: str) -> bool:
        if failure := self._folder.try_put(checkpoint, note):
            self._events.emit(ShippingFailed(f"{failure}; it is tried again"))
        else:
            self._events.emit(CheckpointShipped(checkpoint.size))
        return not failure

    def _put_back(self, taken: tuple[Checkpoint, str], seconds: float) -> None:
        """Waits before the next try, unless it is the last; a newer checkpoint replaces this."""
        with self._changed:
            was_closing = self._closing
            self._changed.wait_for(lambda: self._closing, seconds)
            if not was_closing:
                self._waiting = self._waiting or taken


class Checkpointer:
    """Makes checkpoints while the log grows.

    ``growth`` says when a log has something to cover; ``head`` returns the log as far as it
    is durable; ``seal`` makes the signed note of a checkpoint and may raise anything that a
    token can cause.
    """

    def __init__(
        self,
        growth: Growth,
        head: Callable[[], Checkpoint],
        seal: Callable[[Checkpoint], str],
        folder: Folder,
        *,
        shippers: Iterable[Shipper],
        events: Events,
        clock: Clock,
    ) -> None:
        self.newest: tuple[Checkpoint, str] | None = None
        self._growth, self._head = growth, head
        self._seal = seal
        self._folder = folder
        self._shippers = tuple(shippers)
        self._events = events
        self._failures = LastingFailures(clock.monotonic)
        self._thread = threading.Thread(target=self._run, name="checkpoints", daemon=True)

    def start(self) -> None:
        """Starts with a checkpoint of the present log."""
        for shipper in self._shippers:
            shipper.start()
        self._growth.add(1)
        self._thread.start()

    def close(self, timeout: float) -> None:
        """Makes and ships the last checkpoint; call it once the log is closed.

        Returns after about ``timeout`` seconds in any case.
        """
        self._growth.close()
        self._thread.join(timeout)
        for shipper in self._shippers:
            shipper.close(timeout)

    def _run(self) -> None:
        # What is recorded while a checkpoint is made may miss it, so it counts for the next.
        while self._growth.take(MAX_ITEMS_BEHIND, INTERVAL):
            if not self._make():
                if self._growth.closed:
                    return
                self._growth.add(1)

    def _make(self) -> bool:
        """Makes one checkpoint; False if it has to be tried again."""
        try:
            checkpoint = self._head()
            note = self._seal(checkpoint)
        except Exception as error:  # noqa: BLE001  whatever the token does, signing goes on
            self._report(f"the log could not be signed: {error}; tried again")
            return False
        self.newest = checkpoint, note
        self._events.emit(CheckpointMade(checkpoint.size, note))
        for shipper in self._shippers:
            shipper.offer(checkpoint, note)
        if failure := self._folder.try_put(checkpoint, note):
            self._report(f"{failure}; tried again")
            return False
        self._failures.over()
        return True

    def _report(self, failure: str) -> None:
        if self._failures.is_news(failure):
            self._events.emit(CheckpointFailed(failure))


def set_aside(
    directory: Path, parse: Callable[[str], Checkpoint], confirmed: Callable[[Checkpoint], bool]
) -> list[str]:
    """Renames the checkpoints that the log does not confirm, up to the first that it does.

    For an override only. The files are kept as evidence, ``SIZE.overridden``, but no start
    compares the log with them again. Returns their old names. Raises OSError.
    """
    names = []
    for path in checkpoint_files(directory, []):
        try:
            checkpoint = parse(read_note(path))
        except (UnicodeDecodeError, CheckpointError):
            continue  # no start compares the log with it anyway
        if not confirmed(checkpoint):
            _put_away(path, checkpoint.size)
            names.append(path.name)
        elif path.name != NEWEST:
            break  # files with lower numbers are older
    return names


def _put_away(path: Path, size: int) -> None:
    for number in count():
        target = path.with_name(f"{size:016d}{f'-{number}' if number else ''}.overridden")
        if not target.exists() or target.read_bytes() == path.read_bytes():
            path.rename(target)
            return
