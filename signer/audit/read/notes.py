"""Reads and verifies checkpoints in directories."""

import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from signer.audit.format.checkpoint import MAX_NOTE, Checkpoint, CheckpointError

NEWEST = "newest"
"""The file of the newest checkpoint; older ones are named after their size."""

_NUMBERED = re.compile(r"[0-9]{16}")


class KnownCheckpoints(NamedTuple):
    """The newest checkpoint that verifies, its note, and texts about the others.

    ``newest`` are those of the largest size in each directory, which a log must confirm. Two
    of one size that differ are both included.
    """

    checkpoint: Checkpoint | None
    note: str
    newest: frozenset[Checkpoint]
    problems: tuple[str, ...]


def read_newest(
    directories: Iterable[Path], parse: Callable[[str], Checkpoint]
) -> KnownCheckpoints:
    """Returns the checkpoint with the largest size that verifies, of all directories.

    ``parse`` verifies a note and raises CheckpointError. A missing directory and a file that
    does not verify are only listed as problems: neither may prevent a start, nor hide a
    newer checkpoint.
    """
    notes: dict[Checkpoint, str] = {}
    newest: set[Checkpoint] = set()
    problems: list[str] = []
    for directory in directories:
        verified = dict(_verified(directory, parse, problems))
        largest = max((checkpoint.size for checkpoint in verified), default=0)
        newest |= {checkpoint for checkpoint in verified if checkpoint.size == largest}
        notes |= verified
    best = max(newest, key=lambda checkpoint: checkpoint.size, default=None)
    note = notes[best] if best else ""
    return KnownCheckpoints(best, note, frozenset(newest), tuple(problems))


def _verified(
    directory: Path, parse: Callable[[str], Checkpoint], problems: list[str]
) -> Iterator[tuple[Checkpoint, str]]:
    """Yields the checkpoint named newest, and the valid one with the largest number."""
    for path in checkpoint_files(directory, problems):
        try:
            note = read_note(path)
            yield parse(note), note
        except (OSError, UnicodeDecodeError, CheckpointError) as error:
            problems.append(f"{path} is not a checkpoint of this log: {error}")
            continue
        if path.name != NEWEST:
            return  # files with lower numbers are older


def checkpoint_files(directory: Path, problems: list[str]) -> Iterator[Path]:
    """Yields the newest checkpoint of a directory and the numbered ones, the largest first.

    A directory that cannot be read yields none and is added to the problems.
    """
    try:
        names = sorted((path.name for path in directory.iterdir()), reverse=True)
    except OSError as error:
        problems.append(f"{directory} cannot be read: {error.strerror}")
        return
    if NEWEST in names:
        yield directory / NEWEST
    yield from (directory / name for name in names if _NUMBERED.fullmatch(name))


def read_note(path: Path) -> str:
    """Returns the text of a checkpoint file; raises OSError, UnicodeDecodeError."""
    with path.open("rb") as file:
        return file.read(MAX_NOTE + 1).decode()
