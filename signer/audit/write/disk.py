"""The system calls of the log's writer: one small object, so that tests make each of them fail."""

from __future__ import annotations

import os
from pathlib import Path

_MODE = 0o640


class Disk:
    """Files as the log writes them. Every method raises OSError.

    What is written is durable only after ``sync``; a name that appears, changes
    or goes is durable only after ``sync_directory``.
    """

    def create(self, path: Path) -> int:
        """Makes a new file and returns its descriptor; what is written goes to its end."""
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        return os.open(path, flags, _MODE)

    def open(self, path: Path) -> int:
        """Opens a file that exists; what is written goes to its end."""
        return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)

    def write(self, descriptor: int, data: bytes) -> int:
        """Returns how many bytes were taken: fewer than given where the disk is full."""
        return os.write(descriptor, data)

    def sync(self, descriptor: int) -> None:
        os.fdatasync(descriptor)

    def forget(self, descriptor: int) -> None:
        """Has the next reading of a synced file come from the disk, not from the page cache."""
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)

    def truncate(self, descriptor: int, size: int) -> None:
        os.ftruncate(descriptor, size)

    def close(self, descriptor: int) -> None:
        os.close(descriptor)

    def rename(self, path: Path, target: Path) -> None:
        path.rename(target)

    def remove(self, path: Path) -> None:
        path.unlink(missing_ok=True)

    def sync_directory(self, path: Path) -> None:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def reserve(self, path: Path, size: int) -> None:
        """Makes a file that occupies ``size`` bytes."""
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, _MODE)
        try:
            os.posix_fallocate(descriptor, 0, size)
        finally:
            os.close(descriptor)

    def free_bytes(self, path: Path) -> int:
        """Returns what a process without privileges can still write beside ``path``."""
        status = os.statvfs(path)
        return status.f_bavail * status.f_frsize


def write_whole(disk: Disk, descriptor: int, data: bytes) -> None:
    """Writes all of ``data`` by one call; a short write is an error. Raises OSError."""
    written = disk.write(descriptor, data)
    if written != len(data):
        raise OSError(f"only {written} of {len(data)} bytes were written")


def write_file(disk: Disk, path: Path, data: bytes) -> None:
    """Makes a new file with this content, durable but for its name. Raises OSError."""
    descriptor = disk.create(path)
    try:
        write_whole(disk, descriptor, data)
        disk.sync(descriptor)
    finally:
        disk.close(descriptor)


def replace_durably(disk: Disk, path: Path, data: bytes) -> None:
    """Replaces ``path`` durably: readers see the old content or the new. Raises OSError."""
    draft = path.with_name(f"{path.name}.draft")
    disk.remove(draft)
    write_file(disk, draft, data)
    disk.rename(draft, path)
    disk.sync_directory(path.parent)
