"""Fixtures of the end-to-end tests."""

import pytest

from tests.e2e.samples import vaccinations as read_vaccinations


@pytest.fixture(scope="session")
def vaccinations() -> dict[str, bytes]:
    """Vaccination payloads by name."""
    return read_vaccinations()
