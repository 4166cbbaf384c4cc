"""Lets the tests of this folder import ``edge`` and ``outputs``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # importlib mode adds no folder itself

import edge


@pytest.fixture(scope="module")
def issuer(appliance: Any) -> Iterator[edge.Stubs]:
    """The session's appliance, as its issuing system sees it."""
    with edge.connect(appliance.dev) as stubs:
        yield stubs


@pytest.fixture(scope="module")
def operator(appliance: Any) -> Iterator[edge.Stubs]:
    """The session's appliance, as its operator sees it."""
    with edge.connect(appliance.dev, "operator") as stubs:
        yield stubs
