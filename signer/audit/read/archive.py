"""Moving closed segments elsewhere: which may go, and how none is lost on the way."""

from __future__ import annotations

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
    """Why nothing was moved; the text says what to do."""


def movable(
    segments: Sequence[Segment], checkpoints: Iterable[Checkpoint], before_us: int
) -> Sequence[Segment]:
    """Returns the oldest segments that the appliance does not read any more.

    A start reads from the newest snapshot under all ``checkpoints`` on; records
    from ``before_us`` (microseconds since the epoch) on may be asked for by who
    repeats a request. What stays begins with a snapshot, so it verifies by itself.
    Raises RecordError, OSError.
    """
    smallest = min(checkpoints, key=lambda each: each.size, default=None)
    closed = len(segments) - len(starting_point(segments, smallest))
    going = 0
    for place in range(1, closed + 1):
        following = first_record(segments[place])
        # Time never goes back in the log, so all before this record is as old.
        if following is None or following.time_us > before_us:
            break
        if following.kind is RecordKind.SNAPSHOT:
            going = place
    return segments[:going]


def keep_copy(source: Path, target: Path, disk: Disk) -> None:
    """Sees to a durable copy of a file, which has been read back and compared.

    A copy that is there is only compared; one that is not whole never has its
    final name. Raises ArchiveError where the two differ, and OSError.
    """
    copied = target
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        copied = target.with_name(f"{target.name}.draft")
        shutil.copyfile(source, copied)
    descriptor = disk.open(copied)
    try:
        disk.sync(descriptor)
        # What is compared below comes from the disk, not from what was just written.
        disk.forget(descriptor)
    finally:
        disk.close(descriptor)
    if not filecmp.cmp(source, copied, shallow=False):
        raise ArchiveError(
            f"{copied} differs from {source}: nothing was removed. Find out which of the two is "
            "right (`signer audit verify` knows), move the other away, then archive again"
        )
    if copied != target:
        disk.rename(copied, target)
    disk.sync_directory(target.parent)


def remove(segments: Sequence[Segment], disk: Disk) -> None:
    """Removes segments whose copies are kept, the oldest first, so that no gap can be left."""
    for segment in segments:
        disk.remove(segment.index_path)
        disk.remove(segment.path)
        disk.sync_directory(segment.path.parent)
