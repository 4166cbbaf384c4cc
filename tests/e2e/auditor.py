"""The auditor: has a copy of the audit folder and the public key, and trusts nobody."""

import json
import re
import secrets
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from signer.audit.format.parse import parse
from signer.audit.format.record import Record, RecordKind
from signer.audit.format.segments import Frame, Segment, list_segments, open_segment


class Said(NamedTuple):
    """How a command ended and what it said."""

    code: int
    out: str
    errors: str


class Flipped(NamedTuple):
    """One bit that is no more what it was."""

    path: Path
    place: int
    bit: int
    where: str

    def mend(self) -> None:
        """Flips it back."""
        data = bytearray(self.path.read_bytes())
        data[self.place] ^= self.bit
        self.path.write_bytes(data)


def started(*arguments: object) -> Said:
    """Runs ``signer`` as a user does."""
    done = subprocess.run(
        [sys.executable, "-m", "signer", *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        text=True,
    )
    return Said(done.returncode, done.stdout, done.stderr)


class Auditor:
    """A folder with ``audit.pub.pem``, taken at ``signer init``, and a copy of the log.

    ``signer`` runs a command line.
    """

    def __init__(self, folder: Path, signer: Callable[..., Said] = started) -> None:
        self._signer = signer
        self.key, self.copy, self.proof = (
            folder / name for name in ("audit.pub.pem", "audit", "proof.json")
        )
        folder.mkdir(parents=True, exist_ok=True)

    def take_key(self, appliance: Path) -> None:
        shutil.copy(appliance / "audit" / "audit.pub.pem", self.key)

    def take_copy(self, appliance: Path) -> None:
        shutil.rmtree(self.copy, ignore_errors=True)
        shutil.copytree(appliance / "audit", self.copy)

    def find(self, message: Path) -> list[dict[str, Any]]:
        """What the log says of a message."""
        found: list[dict[str, Any]] = json.loads(self._log("find", "--file", message, "--json").out)
        return found

    def prove(self, message: Path) -> str:
        """Writes the proof of a message to ``proof``; returns its text."""
        done = self._log("prove", "--file", message, "--output", self.proof)
        if done.code:
            raise AssertionError(done.errors)
        return self.proof.read_text()

    def verify_proof(self) -> Said:
        """Has ``proof`` verified with nothing but the public key."""
        return self._signer("audit", "verify", "--proof", self.proof, "--key", self.key, "--json")

    def verify_log(self) -> Said:
        return self._log("verify")

    def flip_in_log(self) -> Flipped:
        """Flips a bit at a random place inside an intent or outcome in the middle of the log."""
        signings = [
            (segment.path, frame.offset, frame.end, record)
            for segment in list_segments(self.copy)
            for frame, record in _records(segment)
            if record.kind in {RecordKind.INTENT, RecordKind.OUTCOME}
        ]
        quarter = len(signings) // 4
        path, start, end, record = secrets.choice(signings[quarter : len(signings) - quarter])
        place = start + secrets.randbelow(end - start)
        return _flip(path, place, f"record {record.seq}, an {record.kind}")

    def flip_in_proof(self) -> Flipped:
        """Flips a bit at a random place of the proof: not of the newline at its end.

        Nor of the index, for the items of a leaf are proven together.
        """
        text = self.proof.read_text()
        index = re.search(r'"index":(\d+)', text)
        assert index is not None
        places = [*range(index.start(1)), *range(index.end(1), len(text.encode()) - 1)]
        place = secrets.choice(places)
        return _flip(self.proof, place, "the proof")

    def _log(self, command: str, *arguments: object) -> Said:
        return self._signer("audit", command, "--dir", self.copy, "--key", self.key, *arguments)


def _records(segment: Segment) -> list[tuple[Frame, Record]]:
    with open_segment(segment) as (_, frames):
        return [(frame, parse(frame.body)) for frame in frames]


def _flip(path: Path, place: int, where: str) -> Flipped:
    flipped = Flipped(path, place, 1 << secrets.randbelow(8), where)
    flipped.mend()  # what mends it also breaks it
    return flipped
