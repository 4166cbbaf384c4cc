"""Fixtures of the end-to-end tests."""

from pathlib import Path

import pytest

from tests.e2e import node_programs
from tests.e2e.samples import vaccinations as read_vaccinations


@pytest.fixture(scope="session")
def vaccinations() -> dict[str, bytes]:
    """Vaccination payloads by name."""
    return read_vaccinations()


@pytest.fixture(scope="session")
def node() -> Path:
    """The folder of the programs for Node."""
    return node_programs.prepare()
