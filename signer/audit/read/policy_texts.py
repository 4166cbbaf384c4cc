"""The texts of policies that are kept beside a log, each in a file named after its SHA-256."""

import re
from collections.abc import Iterable, Iterator
from hashlib import file_digest
from pathlib import Path

from signer.audit.format.segments import POLICIES

_NAME = re.compile(r"[0-9a-f]{64}")


def text_problems(directory: Path, policies: Iterable[bytes]) -> Iterator[str]:
    """Yields what is wrong with the texts beside the log in ``directory``.

    Every policy that records put in force, by its SHA-256, must have its text, and every
    text the hash that its name says. Raises OSError if a file cannot be read.
    """
    folder = directory / POLICIES
    kept = {path.name: path for path in folder.iterdir()} if folder.is_dir() else {}
    for name, path in sorted(kept.items()):
        if not _NAME.fullmatch(name):
            continue  # what an interruption has left
        with path.open("rb") as file:
            if file_digest(file, "sha256").hexdigest() != name:
                yield f"{POLICIES}/{name} is not the policy that its name says: it was changed"
    for policy in sorted(policies):
        if policy.hex() not in kept:
            yield (
                f"{POLICIES}/{policy.hex()} is missing: nobody can read the policy that was in"
                " force under this hash"
            )
