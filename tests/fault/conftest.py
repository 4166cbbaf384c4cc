"""Daemons that tests may hurt: each in a folder of its own, and none of them outlives its test."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.appliances import Appliance
from tests.daemon import Daemon
from tests.fault.shim import Shim, compiled


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    """A daemon of the test's own, not started; it must end cleanly if it still lives."""
    appliance = Appliance(tmp_path / "dev")
    appliance.init()
    appliance.set_workers(1)
    made = Daemon(appliance.dir / "signer.yaml")
    yield made
    if made.running:
        code = made.stop()
        assert code == 0, f"the daemon ended with {code}:\n{made.log.read_text()[-4000:]}"


@pytest.fixture
def two_workers(daemon: Daemon) -> None:
    """Gives it a second one."""
    daemon.configure(token={"workers": 2})


@pytest.fixture(scope="session")
def shim_module(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """shim.c, compiled."""
    return compiled(tmp_path_factory.mktemp("shim"))


@pytest.fixture
def shim(tmp_path: Path) -> Iterator[Shim]:
    """Rules for the workers of the test; what a rule holds goes on in the end."""
    made = Shim(tmp_path / "shim")
    yield made
    made.clear()
