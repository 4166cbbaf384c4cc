"""The files that ``signer audit`` reads: a log, its public key and its checkpoints."""

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import click
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

from signer.audit.format.checkpoint import Checkpoint, CheckpointError, NoteVerifier
from signer.audit.format.proof import ProofError
from signer.audit.format.record import Record, RecordError, RecordKind
from signer.audit.format.segments import CHECKPOINTS, KEY_FILE, Segment, list_segments, open_segment
from signer.audit.read.filters import Wanted
from signer.audit.read.notes import checkpoint_files, read_newest, read_note
from signer.audit.read.reader import Reader
from signer.audit.read.search import SearchError
from signer.cli.options import FILE, FOLDER
from signer.cli.progress import progress
from signer.errors import OperatorError

T = TypeVar("T")


class LogFiles(NamedTuple):
    """A log's directory, and the file of the public audit key. Methods raise OperatorError."""

    directory: Path
    key: Path

    def segments(self) -> list[Segment]:
        """Returns the files of the log, which may be damaged; at least one."""
        segments = list_segments(self.directory)
        if not segments:
            raise OperatorError(
                f"{self.directory} contains no audit log: give the directory of one with --dir"
            )
        return segments

    def reader(self) -> tuple[Reader, int]:
        """Returns the records of the log, and the number of the first one."""
        segments = self.segments()
        return Reader(segments), segments[0].first

    def origin(self) -> str:
        """Returns the name of the log, under which its checkpoints are signed."""
        segment = self.segments()[0]
        try:
            with open_segment(segment) as (header, _):
                return header.origin
        except RecordError as error:
            raise OperatorError(
                f"{segment.path.name}: {error}, so the name of the log is not known: give it "
                "with --origin"
            ) from error

    def newest_checkpoint(self, files: Sequence[Path], origin: str) -> tuple[Checkpoint, str]:
        """Returns the largest checkpoint of ``files``, else the newest in the log's directory."""
        verifier = NoteVerifier.from_spki(origin, spki_of(self.key))
        given = [(verifier.parse(note), note) for note in map(read_note, files)]
        if given:
            return max(given, key=lambda pair: pair[0].size)
        known = read_newest([self.directory / CHECKPOINTS], verifier.parse)
        if known.checkpoint is None:
            problems = "; ".join(known.problems) or f"{self.directory / CHECKPOINTS} has none"
            raise OperatorError(f"no checkpoint of the log: {problems}; give one with --checkpoint")
        return known.checkpoint, known.note

    def checkpoints(self, files: Sequence[Path], origin: str) -> tuple[list[Checkpoint], list[str]]:
        """Returns all checkpoints in the log's directory and in ``files``, and their problems."""
        verifier = NoteVerifier.from_spki(origin, spki_of(self.key))
        problems: list[str] = []
        checkpoints: list[Checkpoint] = []
        wrong: dict[Path, Exception] = {}
        for path in (*checkpoint_files(self.directory / CHECKPOINTS, problems), *files):
            try:
                checkpoints.append(verifier.parse(read_note(path)))
            except (OSError, UnicodeDecodeError, CheckpointError) as error:
                wrong[path] = error
        if len(wrong) > 1 and not checkpoints:  # one cause, and not that of each file
            path, cause = next(iter(wrong.items()))
            none = f"none of {len(wrong)} checkpoints is of this log by the key {self.key}"
            key = "the right key is in the file that `signer init` wrote beside the log"
            return [], [*problems, f"{none}: {path}: {cause}; {key}"]
        not_ours = "is not a checkpoint of this log"
        return checkpoints, [
            *problems,
            *(f"{path} {not_ours}: {error}" for path, error in wrong.items()),
        ]


def log_options(command: Callable[..., T]) -> Callable[..., T]:
    """Adds ``--config``, ``--dir`` and ``--key``; the command gets the ``log`` that they name."""

    @log_or_key_options
    @functools.wraps(command)
    def wrapped(*, log: LogFiles | None, key_file: Path | None, **options: Any) -> T:
        del key_file  # it is part of the log
        return command(log=needed(log), **options)

    return wrapped


def log_or_key_options(command: Callable[..., T]) -> Callable[..., T]:
    """As ``log_options``, but ``log`` is None without a directory; adds ``key_file``."""

    @click.option(
        "--config",
        "config_file",
        type=FILE,
        help="On the appliance: its configuration, which names the log's directory.",
    )
    @click.option(
        "--dir",
        "directory",
        metavar="DIR",
        type=FOLDER,
        help="The log's directory, or a copy of it.",
    )
    @click.option(
        "--key",
        "key_file",
        metavar="PEM",
        type=FILE,
        help=f"The public audit key; by default {KEY_FILE} in the log's directory.",
    )
    @functools.wraps(command)
    def wrapped(
        *, config_file: Path | None, directory: Path | None, key_file: Path | None, **options: Any
    ) -> T:
        if directory is None and config_file is not None:
            # The only part that needs a server package.
            from signer.config.models import load_config

            directory = load_config(config_file).audit.directory
        log = None if directory is None else LogFiles(directory, key_file or directory / KEY_FILE)
        with readable_errors():
            return command(log=log, key_file=key_file, **options)

    return wrapped


def needed(log: LogFiles | None) -> LogFiles:
    if log is None:
        raise click.UsageError("give --config FILE on the appliance, or --dir DIR for a copy")
    return log


def filter_options(command: Callable[..., T]) -> Callable[..., T]:
    """Adds options that say which records are ``wanted``."""

    @click.option("--principal", default="", metavar="URI", help="Only what this one asked or did.")
    @click.option("--facility", default="", help="Only records about this facility.")
    @click.option("--key-name", default="", metavar="NAME", help="A key, or a version.")
    @click.option("--since", type=_MOMENT, help="From this time on, UTC unless it says otherwise.")
    @click.option("--until", type=_MOMENT, help="Before this time.")
    @functools.wraps(command)
    def wrapped(
        *,
        principal: str,
        facility: str,
        key_name: str,
        since: datetime | None,
        until: datetime | None,
        kinds: tuple[str, ...] = (),
        **options: Any,
    ) -> T:
        wanted = Wanted(
            principal,
            facility,
            key_name,
            frozenset(kinds),
            _microseconds(since),
            _microseconds(until),
        )
        return command(wanted=wanted, **options)

    return wrapped


_MOMENT = click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M:%S%z"])
_KINDS = list(map(str, RecordKind))
kind_option = click.option(
    "--kind",
    "kinds",
    type=click.Choice(_KINDS, case_sensitive=False),
    multiple=True,
    metavar="KIND",
    help=f"Only records of this kind; repeatable. One of {', '.join(_KINDS)}.",
)


def _microseconds(moment: datetime | None) -> int | None:
    if moment is None:
        return None
    zoned = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return int(zoned.timestamp() * 1_000_000)


checkpoint_option = click.option(
    "--checkpoint",
    "checkpoint_files",
    type=FILE,
    multiple=True,
    help="A checkpoint from elsewhere, in addition to those in the log's directory.",
)
origin_option = click.option(
    "--origin", metavar="NAME", help="The name of the log; by default the log states it."
)


@contextmanager
def readable_errors() -> Iterator[None]:
    """Turns the errors of ``signer.audit`` into OperatorError."""
    try:
        yield
    except OSError as error:
        raise OperatorError(f"{error.filename or 'the log'} failed: {error.strerror}") from error
    except LookupError as error:
        raise OperatorError(str(error.args[0])) from error
    except RecordError as error:
        raise OperatorError(
            f"the log is damaged: {error}; run `signer audit verify` for the details"
        ) from error
    except (CheckpointError, ProofError, SearchError) as error:
        raise OperatorError(str(error)) from error


def spki_of(path: Path) -> bytes:
    """Returns the public key of a PEM file, as SubjectPublicKeyInfo in DER."""
    try:
        key = load_pem_public_key(path.read_bytes())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise OperatorError(f"{path} is not a public key in PEM") from error
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def records(reader: Reader, start: int, stop: int, doing: str) -> Iterator[Record]:
    """Yields the records [start, stop) and shows the progress on a terminal."""
    with progress(doing) as advance:
        for record in reader.records(start, stop):
            yield record
            advance(record.seq + 1 - start, stop - start)
