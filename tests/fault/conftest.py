"""Daemons that tests may hurt: each in a folder of its own, and none of them outlives its test."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.appliances import Appliance
from tests.daemon import Daemon


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    """A daemon of the test's own, not started; it must end cleanly if it still lives."""
    appliance = Appliance(tmp_path / "dev")
    appliance.init()
    made = Daemon(appliance.dir / "signer.yaml")
    yield made
    if made.running:
        code = made.stop()
        assert code == 0, f"the daemon ended with {code}:\n{made.log.read_text()[-4000:]}"


@pytest.fixture(scope="session")
def shim_module(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """shim.c, compiled."""
    made = tmp_path_factory.mktemp("shim") / "shim.so"
    source = Path(__file__).with_name("shim.c")
    compiler = ["cc", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    subprocess.run([*compiler, "-o", str(made), str(source), "-ldl"], check=True)
    return made
