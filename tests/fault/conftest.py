"""Daemons that tests may hurt: each in a folder of its own, and none of them outlives its test."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from signer.bench.process import DevAppliance

sys.path.insert(0, str(Path(__file__).parent))  # importlib mode adds no folder itself

from daemon import Daemon


@pytest.fixture(scope="session")
def provisioned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A development appliance that nobody starts: what daemons are copied from."""
    made = DevAppliance(tmp_path_factory.mktemp("provisioned") / "dev")
    made.init()
    return made.dir


@pytest.fixture
def daemon(provisioned: Path, tmp_path: Path) -> Iterator[Daemon]:
    """A daemon of the test's own, not started; it must end cleanly if it still lives."""
    folder = tmp_path / "dev"
    shutil.copytree(provisioned, folder)
    for name in ("dev.json", "softhsm2.conf"):  # the only files that name the folder
        path = folder / name
        path.write_text(path.read_text().replace(str(provisioned), str(folder)))
    made = Daemon(folder)
    yield made
    if made.process is not None and made.process.poll() is None:
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
