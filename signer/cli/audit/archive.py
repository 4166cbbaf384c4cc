"""``signer audit archive``: moves old segments elsewhere, beside a running daemon."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from signer.audit.format.segments import CHECKPOINTS, KEY_FILE, POLICIES
from signer.cli.audit.place import (
    Place,
    all_checkpoints,
    errors_told,
    progress,
    segments_of,
    spki_of,
)
from signer.cli.options import config_option, json_option
from signer.cli.tables import print_values
from signer.errors import OperatorError

if TYPE_CHECKING:
    from signer.audit.format.checkpoint import Checkpoint
    from signer.audit.format.segments import Segment
    from signer.audit.write.disk import Disk
    from signer.config.models import AuditConfig


@click.command()
@config_option
@click.option(
    "--to",
    "target",
    metavar="DIR",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    required=True,
    help="Where to: a directory that exists, best on another machine.",
)
@click.option(
    "--older-than",
    "days",
    metavar="DAYS",
    type=click.IntRange(min=1),
    default=30,
    show_default=True,
    help="Only files of which every record is older.",
)
@json_option
def archive(*, config_file: Path, target: Path, days: int, as_json: bool) -> None:
    """Moves old files of the log to another directory. The daemon may go on.

    Every file is copied, synced, read back and compared, and the copies are verified
    up to the first checkpoint that covers them all, before anything is removed here.
    What the next start reads stays. Whoever is interrupted runs it again. Exit code 1
    if something stands against it, but 0 if nothing is old enough.

    \b
      signer audit archive --config /etc/signer/signer.yaml --to /mnt/archive --older-than 90
      signer audit verify --dir /mnt/archive --beginning-elsewhere --end-elsewhere
    """
    from signer.audit.read.archive import movable, remove
    from signer.audit.write.disk import Disk
    from signer.clock import SystemClock
    from signer.config.loader import load_config

    config = load_config(config_file).audit
    if target.resolve().is_relative_to(config.directory.resolve()):
        raise click.BadParameter("it must lie outside the log's directory", param_hint="--to")
    with errors_told(), _alone(config.directory):
        before_us = int((SystemClock().now() - days * 86_400) * 1_000_000)
        segments = segments_of(Place(config.directory, config.directory / KEY_FILE))
        going = movable(segments, _newest(config), before_us)
        if going:
            _copy(config, going, target, Disk())
            _verify(config, segments, len(going), target)
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
        raise OperatorError(f"{directory} is being archived by another command") from None
    finally:
        os.close(descriptor)


def _newest(config: AuditConfig) -> frozenset[Checkpoint]:
    """The checkpoints that a start compares the log with, here and in the mirror."""
    from signer.audit.format.checkpoint import NoteVerifier, parse_note
    from signer.audit.read.notes import read_newest

    verifier = NoteVerifier.from_spki(config.origin, spki_of(config.directory / KEY_FILE))
    folders = [config.directory / CHECKPOINTS, *([config.mirror] if config.mirror else [])]
    known = read_newest(folders, lambda note: parse_note(note, config.origin, verifier))
    if known.problems:
        raise OperatorError(
            f"nothing was moved, for it is not known what the next start reads: "
            f"{'; '.join(known.problems)}"
        )
    return known.newest


def _copy(config: AuditConfig, going: Sequence[Segment], target: Path, disk: Disk) -> None:
    """Copies segments and all that is needed to verify and to read them elsewhere."""
    from signer.audit.read.archive import keep_copy

    here = config.directory
    beside = [here / KEY_FILE, *(here / POLICIES).glob("*[0-9a-f]")]
    # A checkpoint of one size may be signed again, so one that is there already will do.
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


def _verify(config: AuditConfig, segments: Sequence[Segment], going: int, target: Path) -> None:
    """Verifies the copies, and what stays here up to a checkpoint; raises OperatorError."""
    from signer.audit.format.segments import Segment
    from signer.audit.read.verify import verify_part

    place = Place(config.directory, config.directory / KEY_FILE)
    checkpoints, problems = all_checkpoints(place, (), config.origin, spki_of(place.key))
    copies = [Segment.named(target, segment.first) for segment in segments[:going]]
    stays = segments[going:]
    covering = min((each.size for each in checkpoints if each.size > stays[0].first), default=0)
    stays = [segment for segment in stays if segment.first < covering]
    with progress("verifying") as advance:
        report = verify_part([*copies, *stays], config.origin, checkpoints, advance)
    problems += report.problems
    if not 0 < covering <= report.covered:
        problems.append(f"no checkpoint in {config.directory / CHECKPOINTS} covers them all")
    if problems:
        raise OperatorError(f"nothing was removed, for the copies do not verify: {problems[0]}")
