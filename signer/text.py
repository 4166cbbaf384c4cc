"""Texts for people: numbers of things, members of documents, times, texts from elsewhere."""

from collections.abc import Sequence
from datetime import UTC, datetime

IS_UNKNOWN = "is not known here; check the spelling"
IS_MISSING = "is missing"
IS_NOT_TEXT = "should be text: put it in quotes"


def count(number: int, one: str, many: str = "") -> str:
    """Returns a number with its noun: ``count(1, "officer")`` is "1 officer", of 2 "2 officers".

    ``many`` is the form for all numbers but 1; by default ``one`` with an "s". Both may
    contain a verb: ``count(left, "officer is left", "officers are left")``.
    """
    return f"{number} {one if number == 1 else many or one + 's'}"


def dotted(path: str, parts: Sequence[str | int]) -> str:
    """Returns a dotted path: ``open`` and 0 below ``hours`` give ``hours.open[0]``."""
    for part in parts:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else part
    return path


def duration(seconds: int) -> str:
    """Returns a duration in its largest whole unit: "7 days", "90 seconds"."""
    for unit, one in ((86400, "day"), (3600, "hour"), (60, "minute")):
        if seconds and seconds % unit == 0:
            return count(seconds // unit, one)
    return count(seconds, "second")


def size(number: float) -> str:
    """Returns a number of bytes in the largest unit that it fills: "16.9 MiB", "4.66 GiB"."""
    for unit, one in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if number >= one:
            return (
                f"{number / one:,.3g} {unit}"
                if number < 1000 * one
                else f"{number / one:,.0f} {unit}"
            )
    return f"{number:.0f} bytes"


def brief(text: str, most: int = 100) -> str:
    """Returns a text from elsewhere as an error quotes it: of a long one only its beginning."""
    return text if len(text) <= most else f"{text[:most]}..."


def plain(text: str) -> str:
    """Returns a text from elsewhere in one line, with "?" for what controls a terminal.

    These are the characters that Unicode does not call printable: control characters, line
    breaks, marks that change the direction of writing, halves of surrogate pairs.
    """
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else "?" for character in text)


def plain_lines(text: str) -> str:
    """Returns each line of a text as ``plain`` does."""
    return "\n".join(map(plain, text.split("\n")))


def utc(time: float) -> str:
    """Returns a time in seconds since the epoch as ``2030-01-01T00:00:00Z``."""
    return f"{datetime.fromtimestamp(time, UTC):%Y-%m-%dT%H:%M:%SZ}"
