"""The files of the log as its writer sees them: the system calls, and the growing end.

``Disk`` is one object with all system calls, so that tests can make each of them fail.
"""

import errno
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TypeVar

from signer.audit.format.record import (
    HASH_SIZE,
    LENGTH_SIZE,
    Column,
    Fields,
    Record,
    RecordError,
    RecordKind,
    Tip,
    chain_hash,
    earliest,
    encode,
)
from signer.audit.format.segments import VERSION, Header, Segment, open_segment
from signer.audit.read.reader import INDEX_ENTRY, Index

T = TypeVar("T")

PASSING = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})
"""Errors of a file that is opened: no descriptor or memory at the moment, and nothing was done."""
PATIENCE_SECONDS = 10.0
"""How long what cannot be left for later is tried again after such an error."""
_MODE = 0o640
_WRITING = os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
"""No link is followed: what is written stays in the log's own folders."""


class Disk:
    """The system calls. Every method raises OSError.

    Data is durable only after ``sync``; a new, changed or removed name is durable only after
    ``sync_directory``.
    """

    def create(self, path: Path) -> int:
        """Creates a file and returns its descriptor; data is written to its end."""
        flags = os.O_APPEND | os.O_CREAT | os.O_EXCL
        return os.open(path, flags | _WRITING, _MODE)

    def open(self, path: Path) -> int:
        """Opens a file that exists; data is written to its end."""
        return os.open(path, os.O_APPEND | _WRITING)

    @contextmanager
    def opened(self, path: Path) -> Iterator[int]:
        """Yields the descriptor of a file that exists, and closes it."""
        descriptor = self.open(path)
        try:
            yield descriptor
        finally:
            self.close(descriptor)

    def write(self, descriptor: int, data: bytes) -> int:
        """Returns how many bytes were written: fewer than given if the disk is full."""
        return os.write(descriptor, data)

    def sync(self, descriptor: int) -> None:
        os.fdatasync(descriptor)

    def forget(self, descriptor: int) -> None:
        """Makes the next read of a synced file come from the disk, not from the page cache."""
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
        """Creates a file that occupies ``size`` bytes."""
        descriptor = os.open(path, os.O_CREAT | _WRITING, _MODE)
        try:
            os.posix_fallocate(descriptor, 0, size)
        finally:
            os.close(descriptor)

    def identity(self, descriptor: int) -> tuple[int, int]:
        """Returns by which numbers of device and inode a file is known."""
        status = os.fstat(descriptor)
        return status.st_dev, status.st_ino

    def status(self, path: Path) -> os.stat_result:
        """Returns what is at a path now."""
        return path.stat()

    def free_bytes(self, path: Path) -> int:
        """Returns the bytes that a process without privileges can still write beside ``path``."""
        status = os.statvfs(path)
        return status.f_bavail * status.f_frsize


def patiently(act: Callable[[], T]) -> T:
    """Does something that opens a file, and again for a while if it cannot at the moment.

    Raises OSError.
    """
    until = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            return act()
        except OSError as error:
            if error.errno not in PASSING or time.monotonic() >= until:
                raise
            time.sleep(0.02)


class OpenFile(NamedTuple):
    """The file that is written: what must be found at its path, with so many bytes or more."""

    path: Path
    identity: tuple[int, int]
    size: int

    def problem(self, disk: Disk) -> str:
        """Returns why auditors would not find the records at its path; "" if they would."""
        try:
            status = disk.status(self.path)
        except FileNotFoundError:
            return f"{self.path.name} was removed or renamed"
        except OSError as error:
            passing = error.errno in PASSING
            return "" if passing else f"{self.path.name} cannot be seen: {error.strerror}"
        if (status.st_dev, status.st_ino) != self.identity:
            return f"{self.path.name} was replaced by another file"
        if status.st_size < self.size:
            return f"{self.path.name} has {status.st_size} bytes; {self.size} were written"
        return ""


def write_whole(disk: Disk, descriptor: int, data: bytes) -> None:
    """Writes all of ``data`` by one call; raises OSError, also for a short write."""
    written = disk.write(descriptor, data)
    if written != len(data):
        raise OSError(f"only {written} of {len(data)} bytes were written")


def write_file(disk: Disk, path: Path, data: bytes) -> None:
    """Creates a file with this content, durable except for its name. Raises OSError."""
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


class Tail:
    """The open segment, and the ``tip`` that the next record continues. For one thread.

    ``older`` is the open segment's header if an earlier version of signer began it.
    ``without_snapshot`` says why the segment that was begun last lacks its snapshot.
    Records are staged, then written and synced by one ``commit``. After an OSError from
    ``commit`` or ``rotate`` the state of the file is unknown: neither may be called again.
    """

    def __init__(
        self,
        disk: Disk,
        directory: Path,
        origin: str,
        *,
        tip: Tip,
        segments: Sequence[Segment],
        index: Index,
    ) -> None:
        """Continues the last of ``segments``, whose index is ``index``, or begins the first one."""
        self._disk, self._directory, self._origin = disk, directory, origin
        self.tip = tip
        self.segments = tuple(segments)
        self.index = index
        self._staged: list[bytes] = []
        self._descriptor: int | None = None
        self.older: Header | None = None
        self.without_snapshot = ""
        if self.segments:
            path = self.segments[-1].path
            with open_segment(self.segments[-1]) as (header, _):
                self.older = header if header.version < VERSION else None
            self._end = path.stat().st_size
            descriptor = disk.open(path)
            self._use(descriptor)
            # A killed writer may have left data and the file's name in the page cache only.
            # From now on both must be durable.
            disk.sync(descriptor)
            disk.sync_directory(directory)
        elif not self.rotate(0, None):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        self._begin = 0

    def _use(self, descriptor: int) -> None:
        self._descriptor, self._identity = descriptor, self._disk.identity(descriptor)

    @property
    def file(self) -> OpenFile:
        """What the open segment's file must be once all that is staged was committed."""
        return OpenFile(self.segments[-1].path, self._identity, self._end)

    def due(self, segment_bytes: int) -> bool:
        """Returns whether the next segment has to begin.

        The open one is full, where its first snapshot does not count, or an earlier version
        of signer began it: a segment has records of one version.
        """
        if self.older is not None:
            return True
        return self.tip.size > self.segments[-1].first and self._end - self._begin >= segment_bytes

    def stage(
        self,
        time_us: int,
        kind: RecordKind,
        fields: Fields,
        column: Column | None = None,
        root: bytes | None = None,
    ) -> Record:
        """Adds a record after all others, with a time that is not before the log's.

        Only the time of a CLOCK may be, which the caller has confirmed. Raises RecordError; then
        nothing is staged.
        """
        tip = self.tip
        tip.check(kind, fields)
        at = max(time_us, earliest(tip.time_us, kind, fields))
        record = Record(tip.size, at, kind, fields, column)
        body, leaf = encode(record.seq, record.time_us, kind, fields, column, root=root)
        tip.chain = chain_hash(tip.chain, body)
        tip.add(record, leaf)
        self.index.grown += INDEX_ENTRY.pack(self._end, leaf)
        # The parts of a frame: they are joined once, with all that is written with them.
        self._staged += (len(body).to_bytes(LENGTH_SIZE, "big"), body, tip.chain)
        self._end += LENGTH_SIZE + len(body) + HASH_SIZE
        return record

    def commit(self) -> None:
        """Makes all staged records durable; raises OSError."""
        if self._descriptor is None:
            raise OSError("the segment is closed")
        write_whole(self._disk, self._descriptor, b"".join(self._staged))
        self._staged.clear()
        self._disk.sync(self._descriptor)

    def rotate(self, time_us: int, snapshot: Fields | None) -> bool:
        """Begins the next segment, with a snapshot if there is one; raises OSError.

        Header and name are durable before any record, so a segment with a torn header
        holds no record that was acknowledged. Returns False if its file cannot be created at
        the moment: then the segment before is still open.
        """
        segment = Segment.named(self._directory, self.tip.size)
        if self.older is not None and self.segments[-1] == segment:
            # It has no record, and the next one has its name: the log ends before it.
            self.close()
            self._disk.remove(segment.path)
            self.segments, self.tip.chain = self.segments[:-1], self.older.previous
        try:
            descriptor = self._disk.create(segment.path)
        except OSError as error:
            if error.errno in PASSING:
                return False
            raise
        if self._descriptor is not None:
            self.close()
            self.index.save(self.segments[-1])
        self.older = None
        framed, self.tip.chain = Header(self._origin, segment.first, self.tip.chain).frame()
        self._use(descriptor)
        self._staged, self._end, self.index = [framed], len(framed), Index()
        self.segments = (*self.segments, segment)
        self.without_snapshot = ""
        try:
            if snapshot is not None:
                self.stage(time_us, RecordKind.SNAPSHOT, {**snapshot, **self.tip.snapshot()})
        except RecordError as error:  # too large for a record: the next start is slower
            self.without_snapshot = str(error)
        self._begin = self._end
        self.commit()
        patiently(lambda: self._disk.sync_directory(self._directory))
        return True

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            # Once, even if it fails: the number may belong to another file by then.
            self._disk.close(descriptor)
