"""The Dockerfile as data."""

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]


class Line(NamedTuple):
    """One instruction, its continued lines put together."""

    word: str
    rest: str


def instructions(text: str) -> list[Line]:
    """Reads a Dockerfile without its comments."""
    text = re.sub(r"(?m)^\s*#.*\n", "", text).replace("\\\n", " ")
    return [Line(*line.split(maxsplit=1)) for line in text.splitlines() if line.strip()]


def stages(text: str) -> dict[str, list[Line]]:
    """Returns the instructions of each stage by its name, FROM among them."""
    found: dict[str, list[Line]] = {}
    for line in instructions(text):
        if line.word == "FROM":
            found[line.rest.split()[-1]] = []
        found[list(found)[-1]].append(line)
    return found


STAGES = stages((ROOT / "Dockerfile").read_text())
