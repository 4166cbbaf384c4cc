"""The package as pip makes it holds the whole program, which works where there is no checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from signer.tools.dev.appliance import DevAppliance

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The content of the wheel, as it lies in site-packages."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        source.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "signer", source / "signer")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-index", "--no-deps"]
    subprocess.run(
        [*pip, "--no-build-isolation", "--wheel-dir", str(folder), str(source)], check=True
    )
    [wheel] = folder.glob("signer-*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "site")
    return folder / "site"


def test_it_holds_the_package_and_nothing_else(site: Path) -> None:
    ours = {
        path.relative_to(ROOT)
        for path in (ROOT / "signer").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    packed = {path.relative_to(site) for path in (site / "signer").rglob("*") if path.is_file()}
    assert packed == ours
    assert Path("signer/py.typed") in packed
    [data] = [path for path in site.iterdir() if path.name != "signer"]
    assert data.name.endswith(".dist-info")


def test_it_works_away_from_the_checkout(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(site))
    where = [sys.executable, "-c", "import signer; print(signer.__file__)"]
    done = subprocess.run(where, capture_output=True, text=True, check=True)
    assert Path(done.stdout.strip()) == site / "signer" / "__init__.py"
    made = DevAppliance(tmp_path / "dev", environment=dict(os.environ))
    made.init()  # the migrations of the registry, workers, the token's keys, the log
    assert len(made.dev["keys"]) == 9
