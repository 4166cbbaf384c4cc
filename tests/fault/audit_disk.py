"""Disks that fail: at a chosen system call, or by losing power."""

import errno
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from signer.audit.write.disk import Disk


class FaultyDisk(Disk):
    """Fails every call named ``call`` from the moment it is armed, and counts what is tried.

    ``code`` is an errno, or None for a write that takes only the half.
    """

    def __init__(self, call: str, code: int | None) -> None:
        self.armed = False
        self.tried: list[str] = []
        self._call = call
        self._code = code

    def _attempt(self, call: str) -> None:
        if self.armed:
            self.tried.append(call)
            if call == self._call and self._code is not None:
                raise OSError(self._code, errno.errorcode[self._code])

    def create(self, path: Path) -> int:
        self._attempt("create")
        return super().create(path)

    def write(self, descriptor: int, data: bytes) -> int:
        self._attempt("write")
        short = self.armed and self._call == "write" and self._code is None
        return super().write(descriptor, data[: len(data) // 2] if short else data)

    def sync(self, descriptor: int) -> None:
        self._attempt("sync")
        super().sync(descriptor)

    def open(self, path: Path) -> int:
        self._attempt("open")
        return super().open(path)

    def forget(self, descriptor: int) -> None:
        self._attempt("forget")
        super().forget(descriptor)

    def truncate(self, descriptor: int, size: int) -> None:
        self._attempt("truncate")
        super().truncate(descriptor, size)

    def close(self, descriptor: int) -> None:
        super().close(descriptor)  # the kernel closes it in any case
        self._attempt("close")

    def rename(self, path: Path, target: Path) -> None:
        self._attempt("rename")
        super().rename(path, target)

    def remove(self, path: Path) -> None:
        self._attempt("remove")
        super().remove(path)

    def reserve(self, path: Path, size: int) -> None:
        self._attempt("reserve")
        super().reserve(path, size)

    def sync_directory(self, path: Path) -> None:
        self._attempt("sync_directory")
        super().sync_directory(path)

    def free_bytes(self, path: Path) -> int:
        self._attempt("free_bytes")
        return super().free_bytes(path)


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
        self._undo: list[Callable[[], None]] = []

    def create(self, path: Path) -> int:
        self._call()
        descriptor = super().create(path)
        self._paths[descriptor] = path
        self._files[path] = _File()
        self._undo.append(lambda: self._forget(path))
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
        self._undo.append(lambda: self._move(target, path))
        self._survive()

    def remove(self, path: Path) -> None:
        self._call()
        if path.exists():
            content = path.read_bytes()
            super().remove(path)
            self._undo.append(lambda: self._revive(path, content))
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

    def _forget(self, path: Path) -> None:
        path.unlink()

    def _move(self, path: Path, target: Path) -> None:
        path.rename(target)

    def _revive(self, path: Path, content: bytes) -> None:
        path.write_bytes(content)

    def _call(self) -> None:
        """Counts a call; when the power is off it is not carried out."""
        self._survive()
        self.calls += 1

    def _survive(self) -> None:
        """Raises where the power went during this call."""
        if self.off:
            raise PowerLossError("the power is off")
