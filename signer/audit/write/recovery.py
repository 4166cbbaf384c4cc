"""Opens the log: the lock, free space on the disk, and recovery from an interrupted write.

Data that cannot be read is cut off, kept in another file and recorded. That file is named
after the number of the first record after the cut, which is the record about it. So a crash
between the cut and its record loses nothing: the next start finds the file and records it.
"""

import fcntl
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from itertools import count
from pathlib import Path

from signer.audit.format.batch_records import indeterminate
from signer.audit.format.checkpoint import Checkpoint
from signer.audit.format.record import Fields, Record, RecordKind, Tip, Value
from signer.audit.format.segments import Segment, list_segments
from signer.audit.read.replay import Replay, Unreadable, forks, starting_point
from signer.audit.write.disk import Disk, Tail, write_file
from signer.audit.write.inbox import AuditUnavailable
from signer.audit.write.log import BALLAST, AuditLog, Listener, LogHooks, by_kind
from signer.clock import Clock
from signer.errors import OperatorError
from signer.files import open_lock

SEGMENT_BYTES = 64 << 20
LOW_DISK_BYTES = 256 << 20
BALLAST_BYTES = 64 << 20
NO_HOOKS = LogHooks()


class AuditRefused(OperatorError):  # the decision not to open, not an error in it
    """The log is not opened: the text says what is wrong and what to do."""


def open_audit_log(
    directory: Path,
    *,
    origin: str,
    clock: Clock,
    segment_bytes: int = SEGMENT_BYTES,
    low_disk_bytes: int = LOW_DISK_BYTES,
    ballast_bytes: int = BALLAST_BYTES,
    checkpoints: Iterable[Checkpoint] = (),
    override: bool = False,
    listeners: Sequence[Listener] = (),
    hooks: LogHooks = NO_HOOKS,
    disk: Disk | None = None,
    confirmed: Callable[[Record], bool] = lambda _: True,
) -> AuditLog:
    """Verifies the log from the newest snapshot on that all ``checkpoints`` cover, and opens it.

    The records must confirm every checkpoint, so the smallest decides how much is read. A
    directory without a log gets a new one, unless there is a checkpoint of an earlier one.
    A torn tail is cut, kept and recorded; intents without an outcome are closed as
    INDETERMINATE. ``override`` opens a log that is not whole: the unreadable part is cut and
    kept, too, and an OVERRIDE record holds the problems.

    Intents are refused when the disk has less than ``low_disk_bytes`` free; the ballast of
    ``ballast_bytes`` is then removed, so that outcomes can still be recorded.

    ``confirmed`` returns whether officers have confirmed a CLOCK that the listeners got: another
    one, which somebody has appended, does not move the time back.

    Raises AuditRefused; if the log is not whole, nothing has been changed.
    """
    disk, checkpoints = disk or Disk(), tuple(checkpoints)
    replay = _replay(origin, checkpoints, listeners, confirmed)
    with _locked(directory, disk) as lock:
        free_bytes = _provide_space(directory, disk, low_disk_bytes, ballast_bytes)
        tail, problems = _recover(directory, disk, replay, origin, checkpoints, override=override)
        firsts = _firsts(disk, directory, tail.tip, problems)
    try:
        return AuditLog(
            directory,
            disk,
            tail,
            clock,
            lock=lock,
            free_bytes=free_bytes,
            firsts=firsts,
            overridden=tail.tip.size if problems else None,
            segment_bytes=segment_bytes,
            low_disk_bytes=low_disk_bytes,
            listeners=listeners,
            hooks=hooks,
        )
    except AuditUnavailable as error:
        raise AuditRefused(str(error)) from None


def _replay(
    origin: str,
    checkpoints: Sequence[Checkpoint],
    listeners: Sequence[Listener],
    confirmed: Callable[[Record], bool],
) -> Replay:
    """Returns what reads the log, and gives the listeners its records."""
    listeners_of = by_kind(listeners)

    def on_record(record: Record) -> None:
        for listener in listeners_of[record.kind]:
            listener(record)

    def on_seam(snapshot: Record) -> None:
        for listener in listeners:
            listener.check(snapshot)

    return Replay(origin, checkpoints, on_record, on_seam, confirmed)


def _recover(
    directory: Path,
    disk: Disk,
    replay: Replay,
    origin: str,
    checkpoints: Sequence[Checkpoint],
    *,
    override: bool,
) -> tuple[Tail, list[str]]:
    """Reads the log and cuts what is torn; returns its end, and the problems overridden."""
    segments = list_segments(directory)
    _sync_last(disk, segments)
    # With an override even the checkpoints, which prove snapshots, may be wrong.
    smallest = min(checkpoints, key=lambda checkpoint: checkpoint.size, default=None)
    unreadable = replay.run(starting_point(segments, None if override else smallest))
    if unreadable is not None and unreadable.newer:
        raise AuditRefused(  # records of a later version, which must not be cut
            f"the audit log in {directory} is not opened: {unreadable.text}, or restore the "
            "backup from before the upgrade. Nothing was changed, and no override applies"
        )
    problems = [*forks(checkpoints), *replay.contradictions]
    if unreadable is not None and not unreadable.torn:
        problems.append(unreadable.text)
    if problems and not override:
        raise AuditRefused(
            f"the audit log in {directory} is not whole: {'; '.join(problems)}. Nothing was "
            "changed. Restore the missing files, or start once with "
            "`signer serve --override-audit-log`, which continues without them and is recorded"
        )
    if unreadable is not None:
        segments = cut(disk, segments, unreadable, replay.tip.size)
    tip = replay.tip if segments else Tip()  # without any segment left, a new log begins
    tail = Tail(disk, directory, origin, tip=tip, segments=segments, index=replay.index)
    return tail, problems


@contextmanager
def _locked(directory: Path, disk: Disk) -> Iterator[int]:
    """Takes the lock of the log, which stays held unless the block fails.

    Raises AuditRefused for an OSError of the block, too.
    """
    try:
        lock = _lock(directory, disk)
        try:
            yield lock
        except BaseException:
            os.close(lock)
            raise
    except OSError as error:
        raise AuditRefused(
            f"the audit log in {directory} cannot be opened ({error}): repair the disk, then "
            "start again"
        ) from error


def _lock(directory: Path, disk: Disk) -> int:
    if not directory.is_dir():
        directory.mkdir(mode=0o750, parents=True)
        disk.sync_directory(directory.parent)
    lock = open_lock(directory / "lock", 0o640)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise AuditRefused(
            f"the audit log in {directory} is open in another process: stop that process first"
        ) from None
    return lock


def _sync_last(disk: Disk, segments: Sequence[Segment]) -> None:
    """Makes the next read of the last segment come from the disk; raises OSError.

    Only the last segment can have bytes that are not durable. The sync makes the data durable
    that a killed writer left in the page cache. After a sync that failed, the cache may hold
    data as clean that the disk does not have: it must not be read again.
    """
    for segment in segments[-1:]:
        with disk.opened(segment.path) as descriptor:
            disk.sync(descriptor)
            disk.forget(descriptor)


def _provide_space(directory: Path, disk: Disk, low: int, ballast: int) -> int:
    """Creates the ballast; returns the free bytes beside it. Raises AuditRefused, OSError."""
    if ballast:
        disk.reserve(directory / BALLAST, ballast)
    free = disk.free_bytes(directory)
    if free < low:
        raise AuditRefused(
            f"the disk of the audit log in {directory} has {free} bytes free, {low} are "
            "needed: make room, then start again"
        )
    return free


def _firsts(
    disk: Disk, directory: Path, tip: Tip, problems: Sequence[str]
) -> list[tuple[RecordKind, Fields]]:
    """Returns the records to append first: the cut bytes, the problems, the open intents."""
    firsts: list[tuple[RecordKind, Fields]] = []
    if kept := kept_aside(disk, directory, tip.size):
        firsts.append((RecordKind.RECOVERY, {"cut": kept}))
    if problems:
        firsts.append((RecordKind.OVERRIDE, {"problems": problems}))
    firsts += [(RecordKind.INDETERMINATE, indeterminate(intent)) for intent in sorted(tip.open)]
    return firsts


def cut(
    disk: Disk, segments: Sequence[Segment], unreadable: Unreadable, size: int
) -> list[Segment]:
    """Cuts the unreadable part off, after ``size`` intact records; raises OSError.

    Returns the segments that remain. Data is deleted only when its copy is durable.
    """
    position = segments.index(unreadable.segment)
    kept, later = list(segments[:position]), segments[position + 1 :]
    # From the end, so that a crash in between leaves no gap.
    for segment in reversed(later):
        _set_aside(disk, segment, size)
    # Without its first record, a snapshot, the rest of the segment cannot be continued.
    if unreadable.offset == 0 or unreadable.segment.first > size:
        _set_aside(disk, unreadable.segment, size)
        return kept
    _cut_tail(disk, unreadable.segment, unreadable.offset, size)
    return [*kept, unreadable.segment]


def kept_aside(disk: Disk, directory: Path, size: int) -> list[Value]:
    """Returns name, size and hash of each file that was cut off after ``size`` records.

    The files are made durable first: an interrupted writer may not have synced them, and the
    record about them must stay true after a loss of power. Raises OSError.
    """
    kept: list[Value] = []
    for path in sorted(directory.glob(f"{size:016d}-*.torn")):
        with disk.opened(path) as descriptor:
            disk.sync(descriptor)
        data = path.read_bytes()
        kept.append({"file": path.name, "bytes": len(data), "sha256": sha256(data).digest()})
    return kept


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
    with disk.opened(segment.path) as descriptor:
        disk.truncate(descriptor, offset)
        disk.sync(descriptor)


def _free_name(directory: Path, size: int) -> Path:
    names = (directory / f"{size:016d}-{number}.torn" for number in count())
    return next(name for name in names if not name.exists())
