"""How texts for people name numbers of things."""

from __future__ import annotations


def count(number: int, one: str, many: str = "") -> str:
    """Returns a number with its noun: ``count(1, "officer")`` is "1 officer", of 2 "2 officers".

    ``many`` is the form for all numbers but 1; by default ``one`` with an "s". Both may
    contain a verb: ``count(left, "officer is left", "officers are left")``.
    """
    return f"{number} {one if number == 1 else many or one + 's'}"
