"""Lets the tests of this folder import its modules, as the demo does."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # importlib mode adds no folder itself


@pytest.fixture(scope="session")
def vaccinations() -> dict[str, bytes]:
    """Vaccination payloads by name."""
    from samples import vaccinations as read  # noqa: PLC0415  found by the line above

    return read()
