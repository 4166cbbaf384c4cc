"""What the examination of a machine says: one finding for each thing that was looked at."""

from __future__ import annotations

import enum
from typing import NamedTuple

from signer.errors import ConfigError


class Level(enum.StrEnum):
    """How bad it is."""

    OK = "ok"
    WARNING = "warning"
    WRONG = "wrong"


class Finding(NamedTuple):
    """``check`` names what was looked at, ``seen`` is what is so, ``remedy`` what to do."""

    check: str
    level: Level
    seen: str
    remedy: str = ""


def ok(check: str, seen: str) -> Finding:
    return Finding(check, Level.OK, seen)


def warning(check: str, seen: str, remedy: str) -> Finding:
    """It works, and will not for ever, or hides something."""
    return Finding(check, Level.WARNING, seen, remedy)


def wrong(check: str, seen: str, remedy: str) -> Finding:
    """The daemon does not start or does not serve like this, or cannot be trusted to."""
    return Finding(check, Level.WRONG, seen, remedy)


def refused(check: str, error: ConfigError) -> Finding:
    """Files that are refused as a whole, with all that is wrong in them."""
    told = "; ".join(f"{each.field}: {each.description}".lstrip(": ") for each in error.problems)
    return wrong(check, f"{error.source}: {told}", "correct it; `signer check` tells the same")
