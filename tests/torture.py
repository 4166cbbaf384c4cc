"""What only ``make torture`` runs: more of what ``make test`` has."""

from collections.abc import Iterable
from typing import Any

import pytest


def long(*values: object) -> list[Any]:
    """Values of a parameter, or tuples of several, that only ``make torture`` has."""
    return [
        pytest.param(*(value if isinstance(value, tuple) else (value,)), marks=pytest.mark.torture)
        for value in values
    ]


def every(number: int, values: Iterable[object]) -> list[Any]:
    """Values of a parameter, of which ``make test`` has the first and each so many after it."""
    return [value if place % number == 0 else long(value)[0] for place, value in enumerate(values)]
