"""A development appliance, and a database server, for tests that need the real thing.

``appliance`` is shared by the whole session: do not change its keys, policy or
configuration. ``make_appliance`` makes one of the test's own.

``postgres`` is the session's server, started for the first test that asks;
``postgres.database()`` is the URL of an empty database of the test's own.
"""

import gc
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tests import vectors
from tests.appliances import Appliance, serving
from tests.postgres import Postgres

gc.disable()  # until all tests are collected: nothing of them is garbage

# Where Python is told to keep no bytecode, every process of every run would compile all of
# signer and of the tests.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# No test asserts a time, Hypothesis's neither: the machine may be busy. `make torture` runs all
# tests of Hypothesis once more, in the profile "thorough".
settings.register_profile(
    "quick", deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=25
)
settings.register_profile("thorough", settings.get_profile("quick"), max_examples=100)
settings.load_profile("quick")


def pytest_addoption(parser: pytest.Parser) -> None:
    text = "how many facilities the test of thousands of wrapped keys enrols"
    parser.addoption("--wrapped-keys", type=int, default=15_000, metavar="N", help=text)


LONG = (
    "test_state_machine.py",
    "test_audit_kill.py",
    "test_wrapped_scale.py",
    "test_return_codes.py",
    "test_soak.py",
    "test_history.py",
    "test_workers.py",
)
"""The files of the long tests that take longest, the longest first."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begins with the files that take long: none may be the last to end, alone on its processor."""
    items.sort(key=_place)


def _place(item: pytest.Item) -> int:
    """Returns where a test comes: long tests first, the many short files of unit tests last."""
    name = item.path.name
    if name in LONG and (name == LONG[0] or item.get_closest_marker("torture")):
        return LONG.index(name)
    return len(LONG) + ("unit" in item.path.parts)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Says at the end, in red, what no test has compared."""
    if missing := list(vectors.left_out()):
        terminalreporter.section("NOT TESTED: THE VECTORS OF OTHERS", red=True, bold=True)
        for text in missing:
            terminalreporter.line(f"left out: {text}", red=True)


def pytest_collection_finish() -> None:
    """Spares what all tests are made of: no search for garbage goes through it again."""
    gc.freeze()
    gc.set_threshold(20_000)
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def appliance_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the appliance is that nobody starts and all others are copies of."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # then every process has its own below the run's
        folder = folder.parent
    Appliance.template = folder / "template"
    return Appliance.template


@pytest.fixture(scope="session")
def appliance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Appliance]:
    """An appliance that serves; it must end cleanly after the last test."""
    made = Appliance(tmp_path_factory.mktemp("appliance") / "dev")
    made.init()
    with serving(made):
        yield made


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL server. Whoever stops it starts it again."""
    server = Postgres()
    try:
        yield server
    finally:
        server.close()


@pytest.fixture
def make_appliance(tmp_path: Path) -> Iterator[Callable[..., Appliance]]:
    """Makes appliances that serve; whatever still lives at the end must end cleanly.

    ``make_appliance(workers=2, facilities=20, config={"limits": {"calls": 2}},
    policy=lambda policy: policy["facilities"].pop("moh"),
    environment={"NAME": "value"}, start=False)``: all are optional; there is one worker by
    default. ``config`` and ``policy`` are applied between provisioning and the start.
    """
    made: list[Appliance] = []

    def make(
        *,
        workers: int = 1,
        facilities: int | None = None,
        config: Mapping[str, Any] | None = None,
        policy: Callable[[dict[str, Any]], object] | None = None,
        environment: Mapping[str, str] | None = None,
        start: bool = True,
    ) -> Appliance:
        arguments = () if facilities is None else ("--facilities", str(facilities))
        one = Appliance(tmp_path / f"dev-{len(made)}", arguments, environment)
        made.append(one)
        one.init()
        one.set_workers(workers)
        if config is not None:
            one.configure(config)
        if policy is not None:
            one.edit_policy(policy)
        if start:
            one.start()
        return one

    yield make
    codes = {one: one.stop() for one in made if one.running}
    for one, code in codes.items():
        assert code == 0, f"the appliance ended with {code}:\n{one.log_end()}"
