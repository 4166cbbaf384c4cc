"""The wheel alone is the client, and with [server] the appliance; neither needs a checkout."""

import importlib.metadata
import shutil
import subprocess
import sys
import venv
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.appliances import Appliance
from tests.synthetic import as_csv, people

ROOT = Path(__file__).parents[2]
CLIENT = {
    "cbor2",
    "cffi",
    "click",
    "cryptography",
    "googleapis-common-protos",
    "grpcio",
    "grpcio-status",
    "markdown-it-py",
    "mdurl",
    "protobuf",
    "pycparser",
    "pygments",
    "pyyaml",
    "rich",
    "typing-extensions",
}
"""All that `pip install signer-appliance` brings: 15 packages, 58 MB in 2026."""
KEY = "facilities/01-001/keys/records"
COSIGNED = "facilities/moh/keys/dcc-cosigned"


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


def needed(site: Path, extras: set[str]) -> set[str]:
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
            waiting += _requirements(found, requirement.extras)
    return names


def _requirements(
    distribution: importlib.metadata.Distribution, extras: set[str]
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
            source, link = Path(str(file.locate())), target / file
            if file.parts[0] != ".." and source.exists():  # with its bytecode, if there is some
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(source)
    return folder / "bin" / "python"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The content of the wheel, as it is in site-packages."""
    return build(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def appliance(site: Path) -> Iterator[Appliance]:
    """A development appliance, run by `signer-appliance[server]` as installed."""
    python = install(site, needed(site, {"server"}), site.parent / "server")
    away = {"PYTHONSAFEPATH": "1"}  # the checkout is not on its path
    with Appliance(site.parent / "dev", environment=away, python=python) as made:
        yield made


@pytest.fixture(scope="module")
def signer(site: Path) -> Callable[..., str]:
    """Runs `signer` as `pip install signer-appliance` gives it; returns what it prints."""
    python = install(site, needed(site, set()), site.parent / "client")

    def run(*words: object, code: int = 0) -> str:
        done = subprocess.run(
            [python, "-P", "-m", "signer", *map(str, words)],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == code, done.stderr
        return done.stdout if code == 0 else done.stderr

    return run


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


def test_the_client_brings_few_packages(site: Path) -> None:
    assert needed(site, set()) == CLIENT


def test_commands_that_call_an_appliance_need_the_client_alone(
    appliance: Appliance, signer: Callable[..., str], tmp_path: Path
) -> None:
    """This is also the test that an appliance works as `[server]` installs it."""
    issuer, first, second, operator = (
        appliance.dir / f"client-{name}.yaml"
        for name in ("issuer", "officer-a", "officer-b", "operator")
    )
    record = tmp_path / "record.json"
    record.write_text("{}")
    signer("sign", "--client", issuer, "--key", KEY, "--format", "JWS", record)
    token = tmp_path / "record.json.jws"
    assert token.read_text().count(".") == 2
    keys = tmp_path / "keys.json"
    signer("keys", "export", "--form", "jwks", "--client", issuer, "--out", keys)
    assert "valid JWS, ES256" in signer("verify", "--keys", keys, token)

    records = tmp_path / "records.csv"
    records.write_text(as_csv(people(3)))
    job = ("issue", "--client", issuer, "--key", COSIGNED, "--out", tmp_path / "out", records)
    assert "3 records: 3 issued" in signer(*job)
    assert "pip install 'signer-appliance[issue]'" in signer(*job, "--pages", "a4", code=1)

    wanted = ("--activate-at", "+1d", "--overlap", "1d", "--yes", "--id")
    identity = signer("keys", "rotate", KEY, *wanted, "--client", first).strip()
    done = signer("operations", "approve", identity, "--yes", "--wait", "--client", second)
    assert f"operation {identity} (rotate) is DONE" in done
    assert f"{KEY}/versions/2" in signer("keys", "list", "--client", first)
    assert signer("health", "--client", operator).strip() == "SERVING"
    signer("reload", "--client", operator)
    signer("top", "--client", operator)

    log = appliance.dir / "audit"
    key = log / "audit.pub.pem"
    signer("audit", "checkpoint", "--client", appliance.dir / "client-auditor.yaml", "--key", key)
    signer("audit", "verify", "--dir", log, "--key", key)
    assert '"signature"' in signer("audit", "find", "--json", "--dir", log, "--file", token)


def test_a_command_of_the_server_says_what_to_install(signer: Callable[..., str]) -> None:
    said = signer("check", "--config", "signer.yaml", code=1)
    assert "pip install 'signer-appliance[server]'" in said
