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


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory, template: Path) -> Iterator[Stage]:
    """A stage for what is only prepared, or refused: in the end it is as it was."""
    made = Stage(tmp_path_factory.mktemp("untouched") / "stage", template)
    before = made.registry.revision(), len(made.log.records)
    yield made
    assert (made.registry.revision(), len(made.log.records)) == before
    assert made.token.keys == {}
    made.close()


@pytest.fixture(scope="session")
def authority() -> Authority:
    return Authority()
