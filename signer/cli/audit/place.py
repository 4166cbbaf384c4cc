"""What ``signer audit`` reads: a log's files, its public key and its checkpoints."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from signer.audit.format.segments import CHECKPOINTS, KEY_FILE
from signer.errors import OperatorError

if TYPE_CHECKING:
    from signer.audit.format.checkpoint import Checkpoint
    from signer.audit.format.record import Record
    from signer.audit.format.segments import Segment
    from signer.audit.read.reader import Reader

FILE = click.Path(path_type=Path, exists=True, dir_okay=False)


class Place(NamedTuple):
    """Where a log is: its directory, and the file of the public audit key."""

    directory: Path
    key: Path


def place_options(command: Callable[..., None]) -> Callable[..., None]:
    """Adds ``--config``, ``--dir`` and ``--key``; the command gets the ``place`` they name."""

    @click.option(
        "--config",
        "config_file",
        metavar="FILE",
        type=FILE,
        help="On the appliance: its configuration, which says where the log lies.",
    )
    @click.option(
        "--dir",
        "directory",
        metavar="DIR",
        type=click.Path(path_type=Path, exists=True, file_okay=False),
        help="The log's directory, or a copy of it.",
    )
    @click.option(
        "--key",
        "key_file",
        metavar="PEM",
        type=FILE,
        help=f"The public audit key; {KEY_FILE} in the log's directory without.",
    )
    @functools.wraps(command)
    def wrapped(
        *, config_file: Path | None, directory: Path | None, key_file: Path | None, **options: Any
    ) -> None:
        if directory is None and config_file is not None:
            from signer.config.loader import load_config

            directory = load_config(config_file).audit.directory
        place = None if directory is None else Place(directory, key_file or directory / KEY_FILE)
        with errors_told():
            command(place=place, key_file=key_file, **options)

    return wrapped


checkpoint_option = click.option(
    "--checkpoint",
    "checkpoint_files",
    metavar="FILE",
    type=FILE,
    multiple=True,
    help="A checkpoint from elsewhere, besides those in the log's directory.",
)
origin_option = click.option(
    "--origin", metavar="NAME", help="What the log must call itself; otherwise it is asked."
)


@contextmanager
def errors_told() -> Iterator[None]:
    from signer.audit.format.checkpoint import CheckpointError
    from signer.audit.format.proof import ProofError
    from signer.audit.format.record import RecordError
    from signer.audit.read.archive import ArchiveError
    from signer.audit.read.search import SearchError

    try:
        yield
    except OSError as error:
        raise OperatorError(f"{error.filename or 'the log'} failed: {error.strerror}") from error
    except LookupError as error:
        raise OperatorError(str(error.args[0])) from error
    except RecordError as error:
        raise OperatorError(f"the log is damaged: {error}; `signer audit verify` says more") from (
            error
        )
    except (ArchiveError, CheckpointError, ProofError, SearchError) as error:
        raise OperatorError(str(error)) from error


def needed(place: Place | None) -> Place:
    if place is None:
        raise click.UsageError("give --config FILE on the appliance, or --dir DIR for a copy")
    return place


def spki_of(path: Path) -> bytes:
    """The public key of a PEM file, as SubjectPublicKeyInfo in DER."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        PublicFormat,
        load_pem_public_key,
    )

    try:
        key = load_pem_public_key(path.read_bytes())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise OperatorError(f"{path} is no public key in PEM") from error
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def open_reader(place: Place) -> tuple[Reader, int]:
    """The records of a log, and the number of the first that is here."""
    from signer.audit.read.reader import Reader

    segments = segments_of(place)
    return Reader(segments), segments[0].first


def segments_of(place: Place) -> list[Segment]:
    """The files of a log, which may be damaged; there is at least one."""
    from signer.audit.format.segments import list_segments

    segments = list_segments(place.directory)
    if not segments:
        raise OperatorError(f"{place.directory} holds no log: give the directory of one with --dir")
    return segments


def origin_of(place: Place) -> str:
    """What the log calls itself. Its checkpoints are signed under that name."""
    from signer.audit.format.record import RecordError
    from signer.audit.format.segments import open_segment

    segment = segments_of(place)[0]
    try:
        with open_segment(segment) as (header, _):
            return header.origin
    except RecordError as error:
        raise OperatorError(
            f"{segment.path.name}: {error}, so it does not say what the log calls itself: "
            "give that with --origin"
        ) from error


def newest_checkpoint(
    place: Place, files: tuple[Path, ...], origin: str, spki: bytes
) -> tuple[Checkpoint, str]:
    """The largest of the checkpoints given, or else the newest in the log's directory."""
    from signer.audit.format.checkpoint import NoteVerifier, parse_note
    from signer.audit.read.notes import read_newest, read_note

    verifier = NoteVerifier.from_spki(origin, spki)
    given = [(parse_note(note, origin, verifier), note) for note in map(read_note, files)]
    if given:
        return max(given, key=lambda each: each[0].size)
    known = read_newest(
        [place.directory / CHECKPOINTS], lambda note: parse_note(note, origin, verifier)
    )
    if known.checkpoint is None:
        problems = "; ".join(known.problems) or "none is there"
        raise OperatorError(f"no checkpoint of the log: {problems}; give one with --checkpoint")
    return known.checkpoint, known.note


def all_checkpoints(
    place: Place, files: Sequence[Path], origin: str, spki: bytes
) -> tuple[list[Checkpoint], list[str]]:
    """Returns the checkpoints in the log's directory and those given, and what is wrong with them.

    A checkpoint that does not verify is a problem; one from elsewhere as much as ours.
    """
    from signer.audit.format.checkpoint import CheckpointError, NoteVerifier, parse_note
    from signer.audit.read.notes import checkpoint_files, read_note

    verifier = NoteVerifier.from_spki(origin, spki)
    problems: list[str] = []
    checkpoints = []
    for path in (*checkpoint_files(place.directory / CHECKPOINTS, problems), *files):
        try:
            checkpoints.append(parse_note(read_note(path), origin, verifier))
        except (OSError, UnicodeDecodeError, CheckpointError) as error:
            problems.append(f"{path} is no checkpoint of this log: {error}")
    return checkpoints, problems


def records(reader: Reader, start: int, stop: int, doing: str) -> Iterator[Record]:
    """Yields the records [start, stop) and shows on a terminal how far it is."""
    with progress(doing) as advance:
        for record in reader.records(start, stop):
            yield record
            advance(record.seq + 1 - start, stop - start)


@contextmanager
def progress(doing: str) -> Iterator[Callable[[int, int], None]]:
    """Gives what takes how much of how much is done: a bar on stderr where that is a terminal."""
    if not sys.stderr.isatty():
        yield lambda _done, _total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TimeRemainingColumn

    columns = (doing, BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task("", total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)
