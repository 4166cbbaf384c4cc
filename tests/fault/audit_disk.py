"""Disks that fail: at a chosen system call, or by losing power."""

import errno
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from signer.audit.write.disk import Disk


class FaultyDisk(Disk):
    """Fails every call named ``call`` from the moment it is armed, and counts what is tried.

    ``code`` is an errno, or None for a write that takes only the half.
    """

    _BEFORE = (
        *("create", "open", "sync", "forget", "truncate"),
        *("rename", "remove", "reserve", "sync_directory", "free_bytes"),
    )

    def __init__(self, call: str, code: int | None) -> None:
        self.armed = False
        self.tried: list[str] = []
        self._call = call
        self._code = code

        for name in self._BEFORE:
            setattr(self, name, partial(self._after_attempt, getattr(self, name)))

    def _attempt(self, call: str) -> None:
        if self.armed:
            self.tried.append(call)
            if call == self._call and self._code is not None:
                raise OSError(self._code, errno.errorcode[self._code])

    def _after_attempt(self, method: Any, *arguments: Any) -> Any:
        self._attempt(method.__name__)
        return method(*arguments)

    def write(self, descriptor: int, data: bytes) -> int:
        self._attempt("write")
        short = self.armed and self._call == "write" and self._code is None
        return super().write(descriptor, data[: len(data) // 2] if short else data)

    def close(self, descriptor: int) -> None:
        super().close(descriptor)  # the kernel closes it in any case
        self._attempt("close")


class PowerLossError(OSError):
    """The machine is off: no call is answered any more."""


@dataclass
class _File:
    """What of a file is on the platter for sure."""

    durable: bytes = b""


Choose = Callable[[int], int]
"""Returns a number from 0 up to and without its argument."""


class PowerDisk(Disk):
    """A real folder of which it is known what a loss of power could take.

    The machine goes off at the call number ``off_at``: that call may have been
    carried out or not. ``lose`` then makes the folder what could be found at the
    next start: of every file any part of what was written since its last sync is
    dropped, torn or zeroed; names made, changed or removed since the last
    sync of the folder are as before, from any point on.
    """

    def __init__(self, off_at: int) -> None:
        self.calls = 0
        self._off_at = off_at
        self._paths: dict[int, Path] = {}
        self._files: dict[Path, _File] = {}
        self._undo: list[Callable[[], object]] = []

    def create(self, path: Path) -> int:
        self._call()
        descriptor = super().create(path)
        self._paths[descriptor] = path
        self._files[path] = _File()
        self._undo.append(path.unlink)
        self._survive()
        return descriptor

    def open(self, path: Path) -> int:
        descriptor = super().open(path)
        self._paths[descriptor] = path
        # Read at the start, so it was on the platter then.
        self._files.setdefault(path, _File(path.read_bytes()))
        return descriptor

    def write(self, descriptor: int, data: bytes) -> int:
        self._call()
        written = super().write(descriptor, data)
        self._survive()
        return written

    def sync(self, descriptor: int) -> None:
        self._call()
        self._survive()  # before: what a failed sync has written nobody knows
        path = self._paths[descriptor]
        self._files[path].durable = path.read_bytes()

    def truncate(self, descriptor: int, size: int) -> None:
        self._call()
        super().truncate(descriptor, size)
        self._survive()

    def rename(self, path: Path, target: Path) -> None:
        self._call()
        super().rename(path, target)
        moved = self._files.pop(path, None) or _File(target.read_bytes())
        self._files[target] = moved
        self._undo.append(lambda: target.rename(path))
        self._survive()

    def remove(self, path: Path) -> None:
        self._call()
        if path.exists():
            content = path.read_bytes()
            super().remove(path)
            self._files.pop(path, None)
            self._undo.append(lambda: path.write_bytes(content))
        self._survive()

    def sync_directory(self, path: Path) -> None:  # noqa: ARG002  # there is one folder
        self._call()
        self._survive()
        self._undo.clear()

    @property
    def off(self) -> bool:
        return self.calls > self._off_at

    def restart(self, off_at: int) -> None:
        """The process was killed, not the machine: all that was written is there, unsynced."""
        self._off_at, self.calls = off_at, 0

    def lose(self, choose: Choose) -> bool:
        """Takes what a loss of power could take; True where that left a hole.

        A hole: the disk wrote later bytes of a file before earlier ones.
        """
        holes = [self._damage(path, file, choose) for path, file in sorted(self._files.items())]
        for undo in reversed(self._undo[choose(len(self._undo) + 1) :]):
            undo()
        return any(holes)

    def _damage(self, path: Path, file: _File, choose: Choose) -> bool:
        now = path.read_bytes()
        if not now.startswith(file.durable):  # a cut that was never synced
            path.write_bytes(file.durable if choose(2) else now)
            return False
        pending = now[len(file.durable) :]
        kept = choose(len(pending) + 1)
        lost = pending[kept:]
        hole = 0
        match choose(4):
            case 0:  # dropped
                left = b""
            case 1:  # zeroed
                left = bytes(len(lost))
            case 2:  # torn
                left = bytes(choose(256) for _ in lost)
            case _:
                hole = choose(len(lost) + 1)
                left = bytes(hole) + lost[hole:]
        path.write_bytes(file.durable + pending[:kept] + left)
        return 0 < hole < len(lost)

    def _call(self) -> None:
        """Counts a call; when the power is off it is not carried out."""
        self._survive()
        self.calls += 1

    def _survive(self) -> None:
        """Raises where the power went during this call."""
        if self.off:
            raise PowerLossError("the power is off")
