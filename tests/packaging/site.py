"""The wheel of this checkout, and environments that hold it and what it declares to need."""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
import sys
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]


def build(folder: Path) -> Path:
    """Builds the wheel; returns a folder with its content, as in site-packages."""
    source = folder / "source"
    source.mkdir(parents=True)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "signer", source / "signer")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-index", "--no-deps"]
    subprocess.run(
        [*pip, "--no-build-isolation", "--wheel-dir", str(folder), str(source)], check=True
    )
    [wheel] = folder.glob("signer_appliance-*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "site")
    return folder / "site"


def needed(site: Path, extras: frozenset[str]) -> set[str]:
    """Returns the names of the packages that pip would install with the wheel in ``site``."""
    [ours] = importlib.metadata.distributions(path=[str(site)])
    names: set[str] = set()
    waiting = list(_requirements(ours, extras))
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        if name not in names:
            names.add(name)
            found = importlib.metadata.distribution(name)
            waiting += _requirements(found, frozenset(requirement.extras))
    return names


def _requirements(
    distribution: importlib.metadata.Distribution, extras: frozenset[str]
) -> Iterator[Requirement]:
    for text in distribution.requires or ():
        requirement = Requirement(text)
        if requirement.marker is None or any(
            requirement.marker.evaluate({"extra": extra}) for extra in (extras or {""})
        ):
            yield requirement


def install(site: Path, names: set[str], folder: Path) -> Path:
    """Makes a virtual environment of the wheel and links to the files of installed packages.

    Returns its Python. Nothing else that is installed here can be imported there.
    """
    venv.create(folder, symlinks=True)
    target = folder / f"lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"
    shutil.copytree(site, target, dirs_exist_ok=True)
    for name in sorted(names):
        for file in importlib.metadata.distribution(name).files or ():
            if file.parts[0] != ".." and "__pycache__" not in file.parts:
                link = target / file
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(Path(str(file.locate())))
    return folder / "bin" / "python"
