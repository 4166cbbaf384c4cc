"""The wheel alone is the client, and with [server] the appliance; neither needs a checkout."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from signer.tools.dev.appliance import DevAppliance
from tests.packaging import site as sites
from tests.packaging.site import ROOT

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


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The content of the wheel, as it is in site-packages."""
    return sites.build(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def appliance(site: Path) -> Iterator[DevAppliance]:
    """A development appliance, run by `signer-appliance[server]` as installed."""
    server = frozenset({"server"})
    python = sites.install(site, sites.needed(site, server), site.parent / "server")
    away = {"PYTHONSAFEPATH": "1"}  # the checkout is not on its path
    with DevAppliance(site.parent / "dev", environment=away, python=python) as made:
        yield made


@pytest.fixture(scope="module")
def signer(site: Path) -> Callable[..., str]:
    """Runs `signer` as `pip install signer-appliance` gives it; returns what it prints."""
    python = sites.install(site, sites.needed(site, frozenset()), site.parent / "client")

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
    assert sites.needed(site, frozenset()) == CLIENT


def test_commands_that_call_an_appliance_need_the_client_alone(
    appliance: DevAppliance, signer: Callable[..., str], tmp_path: Path
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
