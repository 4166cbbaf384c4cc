"""Moves closed segments to another directory: which ones may go, and safe copies of them."""

import filecmp
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from signer.audit.format.checkpoint import Checkpoint
from signer.audit.format.record import RecordKind
from signer.audit.format.segments import Segment
from signer.audit.read.replay import first_record, starting_point
from signer.audit.write.disk import Disk


class ArchiveError(Exception):
    """Nothing was moved; the text says why and what to do."""


def movable(
    segments: Sequence[Segment], checkpoints: Iterable[Checkpoint], before_us: int
) -> Sequence[Segment]:
    """Returns the oldest segments that the appliance no longer reads.

    A start reads from the newest snapshot on that all ``checkpoints`` cover; a repeated
    request reads records from ``before_us`` (microseconds since the epoch) on. The segments
    that stay begin with a snapshot, so that they verify by themselves. Raises RecordError,
    OSError.
    """
    smallest = min(checkpoints, key=lambda checkpoint: checkpoint.size, default=None)
    closed = len(segments) - len(starting_point(segments, smallest))
    going = 0
    for number in range(1, closed + 1):
        following = first_record(segments[number])
        # Time never goes back in the log, so all records before this one are as old.
        if following is None or following.time_us > before_us:
            break
        if following.kind is RecordKind.SNAPSHOT:
            going = number
    return segments[:going]


def keep_copy(source: Path, target: Path, disk: Disk) -> None:
    """Makes a durable copy of a file, reads it back and compares it.

    An existing copy is only compared. A copy gets its final name when it is whole. Raises
    ArchiveError if the two differ, and OSError.
    """
    copied = target
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        copied = target.with_name(f"{target.name}.draft")
        shutil.copyfile(source, copied)
    with disk.opened(copied) as descriptor:
        disk.sync(descriptor)
        # The comparison below reads from the disk, not from the page cache.
        disk.forget(descriptor)
    if not filecmp.cmp(source, copied, shallow=False):
        raise ArchiveError(
            f"{copied} differs from {source}: nothing was removed. Find out with `signer audit "
            "verify` which of the two is intact, move the other away, then archive again"
        )
    if copied != target:
        disk.rename(copied, target)
    disk.sync_directory(target.parent)


def remove(segments: Sequence[Segment], disk: Disk) -> None:
    """Removes segments that were copied, the oldest first: an interruption leaves no gap."""
    for segment in segments:
        disk.remove(segment.index_path)
        disk.remove(segment.path)
        disk.sync_directory(segment.path.parent)
