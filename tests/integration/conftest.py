"""The session's appliance as each role sees it."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.commands import run
from tests.integration import edge
from tests.integration.officers import Office

__all__ = ["issuer", "operator", "run"]


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


@pytest.fixture(scope="module")
def made(appliance: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """An appliance of the module's own."""
    with edge.own(appliance, tmp_path_factory.mktemp("own")) as one:
        yield one


@pytest.fixture(scope="module")
def office(made: Any) -> Office:
    """The officers of that appliance."""
    return Office(made.dev)
