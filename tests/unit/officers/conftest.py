from collections.abc import Iterator
from pathlib import Path

import pytest

from signer.events import OperationBug, Unaccounted
from tests.unit.officers.opstage import Stage, empty_registry
from tests.unit.officers.people import Authority


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty registry to copy."""
    return empty_registry(tmp_path_factory.mktemp("template") / "empty.sqlite")


@pytest.fixture
def stage(tmp_path: Path, template: Path) -> Iterator[Stage]:
    made = Stage(tmp_path / "stage", template)
    yield made
    made.close()
    assert made.log.control.problems == ()
    assert made.log.standings.problems == []
    assert made.seen.of(OperationBug) == []
    assert made.seen.of(Unaccounted) == [], "operations and acts account for all that was served"


@pytest.fixture(scope="session")
def authority() -> Authority:
    return Authority()
