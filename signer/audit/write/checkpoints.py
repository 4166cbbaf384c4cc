"""Checkpoints of a growing log: made soon, kept beside it, and sent where its operator is not.

The log's tree is signed at most a second or 10,000 items after they were
written, whichever is sooner. Every checkpoint becomes the file ``newest`` of a
directory beside the log and a line of the ordinary log; the first of every hour
also stays under its size, 16 digits, for whoever wants an older one. A second
directory, elsewhere, gets the same files.

Nothing here stops signing. What fails is counted, told and tried again, and the
time of the last checkpoint, which is watched, tells the rest.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable, Iterator
from itertools import count
from pathlib import Path
from typing import NamedTuple

from signer.audit.format.checkpoint import MAX_NOTE, Checkpoint, CheckpointError
from signer.audit.write.disk import Disk, replace_durably
from signer.audit.write.log import Growth
from signer.clock import Clock
from signer.events import (
    CheckpointFailed,
    CheckpointMade,
    CheckpointShipped,
    Events,
    ShippingFailed,
)

NEWEST = "newest"
MAX_ITEMS_BEHIND = 10_000
INTERVAL = 0.5
"""Seconds that a checkpoint waits for more to cover: the rest of its second is for the token."""

_KEEP_EVERY = 3600
_RETRY_SECONDS = (1.0, 2.0, 5.0, 15.0, 60.0)
_NUMBERED = re.compile(r"[0-9]{16}")


class Folder:
    """A directory of checkpoints. Every method raises OSError."""

    def __init__(self, path: Path, clock: Clock, disk: Disk | None = None) -> None:
        self.path = path
        self._clock = clock
        self._disk = disk or Disk()
        self._hour = -1

    def put(self, checkpoint: Checkpoint, note: str) -> None:
        """Makes a checkpoint the newest, durably; whoever reads sees the old one or the new."""
        self.path.mkdir(parents=True, exist_ok=True)
        hour = int(self._clock.now() // _KEEP_EVERY)
        if hour != self._hour:
            replace_durably(self._disk, self.path / f"{checkpoint.size:016d}", note.encode())
        replace_durably(self._disk, self.path / NEWEST, note.encode())
        self._hour = hour


class Shipper:
    """Puts the newest checkpoint into a folder that may be slow, full or away.

    It has a thread of its own, so that a hanging file server holds up nothing
    else. A checkpoint that waits gives way to the next: the newest covers all.
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
        """Takes a checkpoint that is newer than all before; does not wait."""
        with self._changed:
            self._waiting = checkpoint, note
            self._changed.notify_all()

    def close(self, timeout: float) -> None:
        """Tries what waits once more and ends, after ``timeout`` seconds in any case."""
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
        try:
            self._folder.put(checkpoint, note)
        except OSError as error:
            text = (
                f"checkpoint {checkpoint.size} could not be written to {self._folder.path}: "
                f"{error.strerror or error}; it is tried again"
            )
            self._events.emit(ShippingFailed(text))
            return False
        self._events.emit(CheckpointShipped(checkpoint.size))
        return True

    def _put_back(self, taken: tuple[Checkpoint, str], seconds: float) -> None:
        """Waits, and lets a newer one pass; on the way out there is one more try, at once."""
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
    ) -> None:
        self.newest: tuple[Checkpoint, str] | None = None
        self._growth, self._head = growth, head
        self._seal = seal
        self._folder = folder
        self._shippers = tuple(shippers)
        self._events = events
        self._thread = threading.Thread(target=self._run, name="checkpoints", daemon=True)

    def start(self) -> None:
        """Begins with a checkpoint of what is there."""
        for shipper in self._shippers:
            shipper.start()
        self._growth.add(1)
        self._thread.start()

    def close(self, timeout: float) -> None:
        """Makes and ships the last checkpoint; call it when the log writes no more.

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
        """Makes one checkpoint; False where it has to be tried again."""
        try:
            checkpoint = self._head()
            note = self._seal(checkpoint)
        except Exception as error:  # noqa: BLE001  whatever the token does, signing goes on
            text = f"the log could not be signed: {error}; tried again"
            self._events.emit(CheckpointFailed(text))
            return False
        self.newest = checkpoint, note
        self._events.emit(CheckpointMade(checkpoint.size, note))
        for shipper in self._shippers:
            shipper.offer(checkpoint, note)
        try:
            self._folder.put(checkpoint, note)
        except OSError as error:
            text = (
                f"checkpoint {checkpoint.size} could not be written to {self._folder.path}: "
                f"{error.strerror or error}; tried again"
            )
            self._events.emit(CheckpointFailed(text))
            return False
        return True


class Known(NamedTuple):
    """The newest checkpoint that verifies, its note, and what else was found, in words.

    ``newest`` are those of the largest size of each directory: what a log must
    bear out. Two of one size that differ are both among them.
    """

    checkpoint: Checkpoint | None
    note: str
    newest: frozenset[Checkpoint]
    problems: tuple[str, ...]


def read_newest(directories: Iterable[Path], parse: Callable[[str], Checkpoint]) -> Known:
    """Returns the checkpoint with the largest size that verifies, of all directories.

    ``parse`` verifies a note and raises CheckpointError. A directory that is
    absent and a file that does not verify are problems, told and passed over:
    neither must keep an appliance from starting, nor be able to hide a newer one.
    """
    notes: dict[Checkpoint, str] = {}
    newest: set[Checkpoint] = set()
    problems: list[str] = []
    for directory in directories:
        found = dict(_verified(directory, parse, problems))
        largest = max((each.size for each in found), default=0)
        newest |= {each for each in found if each.size == largest}
        notes |= found
    best = max(newest, key=lambda each: each.size, default=None)
    note = notes[best] if best else ""
    return Known(best, note, frozenset(newest), tuple(problems))


def _verified(
    directory: Path, parse: Callable[[str], Checkpoint], problems: list[str]
) -> Iterator[tuple[Checkpoint, str]]:
    """The checkpoint named newest, and the numbered one with the largest number that verifies."""
    for path in checkpoint_files(directory, problems):
        try:
            note = read_note(path)
            yield parse(note), note
        except (OSError, UnicodeDecodeError, CheckpointError) as error:
            problems.append(f"{path} is no checkpoint of this log: {error}")
            continue
        if path.name != NEWEST:
            return  # those with lower numbers are older


def set_aside(
    directory: Path,
    parse: Callable[[str], Checkpoint],
    borne_out: Callable[[Checkpoint], bool],
) -> list[str]:
    """Renames the checkpoints that the log does not bear out, up to the first that it does.

    For an override only: the log goes on in spite of them. They stay as evidence,
    ``SIZE.overridden``, but no start is measured by them again. Returns their old
    names. Raises OSError.
    """
    names = []
    for path in checkpoint_files(directory, []):
        try:
            checkpoint = parse(read_note(path))
        except (UnicodeDecodeError, CheckpointError):
            continue  # no start is measured by it anyway
        if not borne_out(checkpoint):
            _put_away(path, checkpoint.size)
            names.append(path.name)
        elif path.name != NEWEST:
            break  # those with lower numbers are older
    return names


def _put_away(path: Path, size: int) -> None:
    for number in count():
        target = path.with_name(f"{size:016d}{f'-{number}' if number else ''}.overridden")
        if not target.exists() or target.read_bytes() == path.read_bytes():
            path.rename(target)
            return


def checkpoint_files(directory: Path, problems: list[str]) -> Iterator[Path]:
    """Yields the newest checkpoint of a directory and the numbered ones, the largest first.

    A directory that cannot be read has none and is one more of the problems.
    """
    try:
        names = sorted((path.name for path in directory.iterdir()), reverse=True)
    except OSError as error:
        problems.append(f"{directory} cannot be read: {error.strerror}")
        return
    if NEWEST in names:
        yield directory / NEWEST
    yield from (directory / name for name in names if _NUMBERED.fullmatch(name))


def read_note(path: Path) -> str:
    """Returns the text of a checkpoint's file; raises OSError, UnicodeDecodeError."""
    with path.open("rb") as file:
        return file.read(MAX_NOTE + 1).decode()
