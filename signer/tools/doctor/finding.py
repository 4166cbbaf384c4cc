"""The result of a check: one finding for each thing that was examined."""

import enum
from typing import NamedTuple

from signer.errors import ConfigError


class Level(enum.StrEnum):
    """How serious a finding is."""

    OK = "ok"
    WARNING = "warning"
    WRONG = "wrong"


class Finding(NamedTuple):
    """``check`` names what was examined, ``seen`` what was found, ``remedy`` what to do."""

    check: str
    level: Level
    seen: str
    remedy: str = ""


def ok(check: str, seen: str) -> Finding:
    return Finding(check, Level.OK, seen)


def warning(check: str, seen: str, remedy: str) -> Finding:
    """It works now, but will stop working, or hides a problem."""
    return Finding(check, Level.WARNING, seen, remedy)


def wrong(check: str, seen: str, remedy: str) -> Finding:
    """The daemon does not start, does not serve, or cannot be relied on."""
    return Finding(check, Level.WRONG, seen, remedy)


def refused(check: str, error: ConfigError) -> Finding:
    """A file that is refused, with all problems in it."""
    problems = "; ".join(
        f"{each.field}: {each.description}".lstrip(": ") for each in error.problems
    )
    return wrong(
        check, f"{error.source}: {problems}", "correct it; `signer check` reports the same"
    )
