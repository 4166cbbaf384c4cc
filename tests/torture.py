"""What only ``make torture`` runs: more of what ``make test`` has."""

from typing import Any

import pytest


def long(*values: object) -> list[Any]:
    """Values of a parameter, or tuples of several, that only ``make torture`` has."""
    return [
        pytest.param(*(value if isinstance(value, tuple) else (value,)), marks=pytest.mark.torture)
        for value in values
    ]
