"""``signer audit archive``: moves old segments to another directory, beside a running daemon."""

from __future__ import annotations

import fcntl
import filecmp
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from signer.audit.format.checkpoint import Checkpoint, NoteVerifier
from signer.audit.format.record import RecordKind
from signer.audit.format.segments import CHECKPOINTS, KEY_FILE, POLICIES, Segment
from signer.audit.read.notes import read_newest
from signer.audit.read.replay import first_record, starting_point
from signer.audit.read.verify import verify_part
from signer.audit.write.disk import Disk
from signer.cli.audit.log_files import LogFiles, readable_errors, spki_of
from signer.cli.options import FOLDER, config_option, json_option
from signer.cli.output import print_values
from signer.cli.progress import progress
from signer.clock import SystemClock
from signer.errors import OperatorError
from signer.files import PUBLIC, create_file

if TYPE_CHECKING:
    from signer.config.models import AuditConfig


@click.command(short_help="Moves old files of the log to another directory.")
@config_option
@click.option(
    "--to",
    "target",
    metavar="DIR",
    type=FOLDER,
    required=True,
    help="The target: a directory that exists, preferably on another machine.",
)
@click.option(
    "--older-than",
    "days",
    metavar="DAYS",
    type=click.IntRange(min=1),
    default=30,
    show_default=True,
    help="Move only files whose records are all older.",
)
@json_option
def archive(*, config_file: Path, target: Path, days: int, as_json: bool) -> None:
    """Moves old files of the log to another directory, also while the daemon runs.

    Every file is copied, synced, read back and compared, and the copies are verified
    up to the first checkpoint that covers them all, before anything is removed here.
    Files that the next start reads stay. After an interruption, run it again. Exit
    code 1 if a check fails, but 0 if nothing is old enough.

    \b
      signer audit archive --config /etc/signer/signer.yaml --to /mnt/archive \\
        --older-than 90
      signer audit verify --dir /mnt/archive --beginning-elsewhere --end-elsewhere
    """
    from signer.config.models import load_config  # a server package: only this command needs it

    config = load_config(config_file).audit
    if target.resolve().is_relative_to(config.directory.resolve()):
        raise click.BadParameter("it must be outside the log's directory", param_hint="--to")
    with readable_errors(), _alone(config.directory):
        before_us = int((SystemClock().now() - days * 86_400) * 1_000_000)
        log = LogFiles(config.directory, config.directory / KEY_FILE)
        segments = log.segments()
        going = movable(segments, _newest(config), before_us)
        if going:
            _copy(config, going, target, Disk())
            _verify(log, config.origin, segments, len(going), target)
            remove(going, Disk())
        stays = segments[len(going)].first
        moved: dict[str, object] = {"moved": [segment.path.name for segment in going]}
        print_values({**moved, "to": str(target), "first": stays}, as_json)


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Lets one command at a time move files out of a directory."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise OperatorError(f"another command is archiving {directory}: wait for it") from None
    finally:
        os.close(descriptor)


def _newest(config: AuditConfig) -> frozenset[Checkpoint]:
    """Returns the checkpoints that a start compares the log with, here and in the mirror."""
    verifier = NoteVerifier.from_spki(config.origin, spki_of(config.directory / KEY_FILE))
    folders = [config.directory / CHECKPOINTS, *([config.mirror] if config.mirror else [])]
    known = read_newest(folders, verifier.parse)
    if known.problems:
        raise OperatorError(
            f"nothing was moved, because it is not known what the next start reads: "
            f"{'; '.join(known.problems)}"
        )
    return known.newest


def _copy(config: AuditConfig, going: Sequence[Segment], target: Path, disk: Disk) -> None:
    """Copies segments, and everything needed to verify and to read them there."""
    here = config.directory
    beside = [here / KEY_FILE, *(here / POLICIES).glob("*[0-9a-f]")]
    # A checkpoint of one size may have several signatures: an existing copy is enough.
    beside += [
        path
        for path in (here / CHECKPOINTS).glob("*[0-9]")
        if not (target / CHECKPOINTS / path.name).exists()
    ]
    paths = [*beside, *(segment.path for segment in going)]
    with progress("copying") as advance:
        for done, path in enumerate(paths, 1):
            keep_copy(path, target / path.relative_to(here), disk)
            advance(done, len(paths))


def _verify(
    log: LogFiles, origin: str, segments: Sequence[Segment], going: int, target: Path
) -> None:
    """Verifies the copies, and the remaining log up to a checkpoint; raises OperatorError."""
    checkpoints, problems = log.checkpoints((), origin)
    copies = [Segment.named(target, segment.first) for segment in segments[:going]]
    stays = segments[going:]
    covering = min((c.size for c in checkpoints if c.size > stays[0].first), default=0)
    stays = [segment for segment in stays if segment.first < covering]
    with progress("verifying") as advance:
        report = verify_part([*copies, *stays], origin, checkpoints, advance)
    problems += report.problems
    if not 0 < covering <= report.covered:
        problems.append(f"no checkpoint in {log.directory / CHECKPOINTS} covers all copies")
    if problems:
        raise OperatorError(f"nothing was removed, because the copies do not verify: {problems[0]}")


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
    OperatorError if the two differ, and OSError.
    """
    copied = target
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        copied = target.with_name(f"{target.name}.draft")
        copied.unlink(missing_ok=True)
        with source.open("rb") as whole, os.fdopen(create_file(copied, PUBLIC), "wb") as copy:
            shutil.copyfileobj(whole, copy)
    with disk.opened(copied) as descriptor:
        disk.sync(descriptor)
        # The comparison below reads from the disk, not from the page cache.
        disk.forget(descriptor)
    if not filecmp.cmp(source, copied, shallow=False):
        raise OperatorError(
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
