"""Opening the log: the lock, the room on the disk, and what an interrupted write left behind.

What cannot be read is cut off, kept aside and recorded. A file kept aside is
named after the record that tells of it: the number of the first record after the
cut. So a crash between the cut and its record loses nothing: the next start
finds the file and records it then.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Mapping, Sequence
from hashlib import sha256
from itertools import count
from pathlib import Path
from typing import NamedTuple

from signer.audit.format.checkpoint import Checkpoint
from signer.audit.format.entries import Tip
from signer.audit.format.record import RecordKind, Value
from signer.audit.format.segments import Segment, list_segments
from signer.audit.read.replay import OnRecord, Replay, Unreadable, forks, starting_point
from signer.audit.write.disk import Disk, write_file
from signer.audit.write.tail import Tail
from signer.errors import OperatorError

Fields = Mapping[str, Value]


class AuditRefused(OperatorError):  # noqa: N818  # what open() does, not a fault of it
    """The log is not opened: the text says what was found and what to do."""


class Space(NamedTuple):
    """How many bytes must be free to begin, beside the file that occupies so many."""

    low: int
    ballast: int


class Opened(NamedTuple):
    """A log that was read and mended: its end, and the records that must come first.

    ``lock`` is the descriptor that keeps other processes out.
    """

    directory: Path
    disk: Disk
    lock: int
    free_bytes: int
    tail: Tail
    firsts: list[tuple[RecordKind, Fields]]


def open_tail(
    directory: Path,
    disk: Disk,
    space: Space,
    *,
    origin: str,
    checkpoints: Sequence[Checkpoint],
    override: bool,
    on_record: OnRecord,
) -> Opened:
    """Locks the directory, sees to its room, reads the log and cuts what is torn.

    Raises AuditRefused.
    """
    lock = None
    try:
        lock = _lock(directory, disk)
        free_bytes = _provide_space(directory, disk, space)
        segments = list_segments(directory)
        _settle(disk, segments)
        replay = Replay(origin, checkpoints, on_record)
        # An override says that the checkpoints, which prove snapshots, may be void.
        smallest = min(checkpoints, key=lambda each: each.size, default=None)
        finding = replay.run(starting_point(segments, None if override else smallest))
        _refuse_newer(directory, finding)
        problems = _problems(replay, finding, checkpoints)
        if not override:
            _refuse(directory, problems)
        if finding is not None:
            segments = cut(disk, segments, finding, replay.tip.size)
        tip = replay.tip if segments else Tip()  # where nothing is left, a log begins
        firsts = _firsts(disk, directory, tip, problems)
        tail = Tail(disk, directory, origin, tip=tip, segments=segments, index=replay.index)
    except BaseException as error:
        if lock is not None:
            os.close(lock)
        if isinstance(error, OSError):
            raise AuditRefused(
                f"the audit log in {directory} cannot be opened ({error}): mend the disk, then "
                "start again"
            ) from error
        raise
    return Opened(directory, disk, lock, free_bytes, tail, firsts)


def ballast_path(directory: Path) -> Path:
    return directory / "ballast"


def _lock(directory: Path, disk: Disk) -> int:
    if not directory.is_dir():
        directory.mkdir(mode=0o750, parents=True)
        disk.sync_directory(directory.parent)
    lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise AuditRefused(
            f"the audit log in {directory} is open in another process: stop that one first"
        ) from None
    return lock


def _settle(disk: Disk, segments: Sequence[Segment]) -> None:
    """Has the last segment read as the disk has it; raises OSError.

    Only there can bytes be that never were durable. What a killed writer left to
    the page cache becomes so now. After a sync that failed the cache may hold, as
    if it were clean, what the disk has not: it must not be read again.
    """
    for segment in segments[-1:]:
        descriptor = disk.open(segment.path)
        try:
            disk.sync(descriptor)
            disk.forget(descriptor)
        finally:
            disk.close(descriptor)


def _provide_space(directory: Path, disk: Disk, space: Space) -> int:
    """Sees to the ballast; returns the free bytes beside it. Raises AuditRefused, OSError."""
    if space.ballast:
        disk.reserve(ballast_path(directory), space.ballast)
    free = disk.free_bytes(directory)
    if free < space.low:
        raise AuditRefused(
            f"the disk of the audit log in {directory} has {free} bytes free, {space.low} are "
            "needed: make room, then start again"
        )
    return free


def _problems(
    replay: Replay, finding: Unreadable | None, checkpoints: Sequence[Checkpoint]
) -> list[str]:
    """Returns what no interrupted write explains."""
    problems = [*forks(checkpoints), *replay.contradictions]
    if finding is not None and not finding.torn:
        problems.append(finding.text)
    return problems


def _refuse_newer(directory: Path, finding: Unreadable | None) -> None:
    """Cuts nothing that a later version can read, override or not; raises AuditRefused."""
    if finding is not None and finding.newer:
        raise AuditRefused(
            f"the audit log in {directory} is not opened: {finding.text}, or restore the backup"
            " of before it. Nothing was changed, and no override applies"
        )


def _refuse(directory: Path, problems: Sequence[str]) -> None:
    if problems:
        raise AuditRefused(
            f"the audit log in {directory} is not whole: {'; '.join(problems)}. Nothing was "
            "changed. Put back the missing files, or start once with "
            "`signer serve --override-audit-log`, which goes on without them and is recorded"
        )


def _firsts(
    disk: Disk, directory: Path, tip: Tip, problems: Sequence[str]
) -> list[tuple[RecordKind, Fields]]:
    """The records that must come first: what was cut, why in spite of what, what is not known."""
    firsts: list[tuple[RecordKind, Fields]] = []
    if aside := kept_aside(disk, directory, tip.size):
        firsts.append((RecordKind.RECOVERY, {"cut": aside}))
    if problems:
        firsts.append((RecordKind.OVERRIDE, {"problems": problems}))
    firsts += [(RecordKind.INDETERMINATE, {"intent": intent}) for intent in sorted(tip.open)]
    return firsts


def cut(disk: Disk, segments: Sequence[Segment], finding: Unreadable, size: int) -> list[Segment]:
    """Cuts the log where ``finding`` says, after ``size`` good records; raises OSError.

    Returns the segments that remain. Nothing is deleted before its copy is durable.
    """
    place = segments.index(finding.segment)
    kept, later = list(segments[:place]), segments[place + 1 :]
    # From the end, so that a crash midway leaves no gap.
    for segment in reversed(later):
        _set_aside(disk, segment, size)
    # Nothing of it was read: records before a snapshot that is lost cannot be continued.
    if finding.offset == 0 or finding.segment.first > size:
        _set_aside(disk, finding.segment, size)
        return kept
    _cut_tail(disk, finding.segment, finding.offset, size)
    return [*kept, finding.segment]


def kept_aside(disk: Disk, directory: Path, size: int) -> list[Value]:
    """Returns what a record says of the files that were cut off after ``size`` records.

    They are made durable first, for what is said of them must outlast a loss of
    power, and an interrupted writer may never have synced them. Raises OSError.
    """
    paths = sorted(directory.glob(f"{size:016d}-*.torn"))
    for path in paths:
        descriptor = disk.open(path)
        try:
            disk.sync(descriptor)
        finally:
            disk.close(descriptor)
    return [
        {"file": path.name, "bytes": path.stat().st_size, "sha256": _digest(path)} for path in paths
    ]


def _set_aside(disk: Disk, segment: Segment, size: int) -> None:
    disk.remove(segment.index_path)
    disk.rename(segment.path, _free_name(segment.path.parent, size))
    disk.sync_directory(segment.path.parent)


def _cut_tail(disk: Disk, segment: Segment, offset: int, size: int) -> None:
    directory = segment.path.parent
    disk.remove(segment.index_path)
    with segment.path.open("rb") as file:
        file.seek(offset)
        write_file(disk, _free_name(directory, size), file.read())
    disk.sync_directory(directory)
    descriptor = disk.open(segment.path)
    try:
        disk.truncate(descriptor, offset)
        disk.sync(descriptor)
    finally:
        disk.close(descriptor)


def _free_name(directory: Path, size: int) -> Path:
    names = (directory / f"{size:016d}-{number}.torn" for number in count())
    return next(name for name in names if not name.exists())


def _digest(path: Path) -> bytes:
    return sha256(path.read_bytes()).digest()
