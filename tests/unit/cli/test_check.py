import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from signer.cli.checks import check
from signer.tools.dev import pki

REPOSITORY = Path(__file__).parents[3]
BAD = REPOSITORY / "tests" / "unit" / "bad"


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tls")
    authority = pki.authority(folder, "clients-ca", "clients")
    pki.server(folder, authority)
    pki.client(folder, authority, "other", "spiffe://x/other")
    return folder


@pytest.fixture
def appliance(tls: Path, tmp_path: Path) -> Path:
    """Files as the sample configuration names them; returns its path."""
    text = (REPOSITORY / "config" / "signer.yaml").read_text()
    shutil.copytree(tls, tmp_path / "tls")
    for name in ("pin", "module.so"):
        file = tmp_path / name
        file.write_text("x")
        file.chmod(0o600)
    (tmp_path / "state").mkdir()
    (tmp_path / "policy").mkdir()
    policy = (REPOSITORY / "config" / "policy" / "policy.yaml").read_text()
    (tmp_path / "policy" / "policy.yaml").write_text(policy)
    file = tmp_path / "signer.yaml"
    file.write_text(text.replace("/usr/lib/softhsm/libsofthsm2.so", "module.so"))
    return file


def run(config: Path, *options: str) -> Result:
    return CliRunner().invoke(check, ["--config", str(config), *options])


def test_all_in_order(appliance: Path) -> None:
    result = run(appliance)
    assert result.exit_code == 0
    assert "is in order" in result.stdout
    assert "signer doctor examines tokens, PINs, registry and audit log" in result.stdout
    assert "stop    takes " in result.stdout
    assert "3 facilities" in result.stdout
    assert result.stderr == ""
    result = run(appliance, "--json")
    assert result.exit_code == 0
    described = json.loads(result.stdout)
    assert described["ok"] is True
    assert described["facilities"] == 3
    assert len(described["policy_sha256"]) == 64
    assert described["problems"] == []


def as_a_file(folder: Path) -> None:
    folder.rmdir()
    folder.touch()


@pytest.mark.parametrize(
    ("break_it", "path", "text"),
    [
        (lambda folder: (folder / "tls/server.pem").unlink(), "tls.certificate", "is not a file"),
        (lambda folder: (folder / "tls/server.key").chmod(0o640), "tls.key", "mode 0640"),
        (lambda folder: (folder / "pin").chmod(0o604), "tokens[0].pin_file", "mode 0604"),
        (lambda folder: (folder / "module.so").unlink(), "tokens[0].module", "is not a file"),
        (lambda folder: as_a_file(folder / "state"), "state", "is not a folder"),
    ],
)
def test_what_is_wrong_with_files(
    appliance: Path, break_it: Callable[[Path], None], path: str, text: str
) -> None:
    break_it(appliance.parent)
    result = run(appliance)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert f"  {path}: " in result.stderr
    assert text in result.stderr
    (problem,) = json.loads(run(appliance, "--json").stdout)["problems"]
    assert (problem["file"], problem["path"]) == (str(appliance), path)


@pytest.mark.parametrize(
    ("name", "content", "field", "text"),
    [
        ("server.pem", b"garbage", "tls.certificate", "contains no PEM certificate"),
        ("clients-ca.pem", b"", "tls.client_ca", "contains no PEM certificate"),
        ("server.key", b"garbage", "tls.key", "contains no unencrypted PEM private key"),
        ("server.key", None, "tls.key", "is not the key of the first certificate"),
    ],
)
def test_what_a_start_would_refuse_of_tls_files(
    appliance: Path, name: str, content: bytes | None, field: str, text: str
) -> None:
    """Which files that are, tests/unit/api/test_tls.py has in full: it is the same function."""
    folder = appliance.parent / "tls"
    (folder / name).write_bytes((folder / "other.key").read_bytes() if content is None else content)
    result = run(appliance)
    assert (result.exit_code, f"  {field}: {text}" in result.stderr) == (1, True)


def test_client_and_registry_are_looked_at(appliance: Path) -> None:
    text = appliance.read_text().replace("sqlite:///", "sqlite:///absent/")
    appliance.write_text(text + "client: client.yaml\n")
    result = run(appliance)
    assert result.exit_code == 1
    assert f"client: {appliance.parent}/client.yaml is not a file" in result.stderr
    assert f"registry: {appliance.parent}/absent is not a folder" in result.stderr


def test_policy_and_files_are_told_together(appliance: Path) -> None:
    bad = (BAD / "policy" / "wider-batch.yaml").read_text()
    (appliance.parent / "policy" / "policy.yaml").write_text(bad)
    (appliance.parent / "pin").chmod(0o644)
    result = run(appliance)
    assert result.exit_code == 1
    assert "tokens[0].pin_file" in result.stderr
    assert "facilities.01-001.max_batch_items: 101 is more than 100" in result.stderr
    problems = json.loads(run(appliance, "--json").stdout)["problems"]
    assert [problem["path"] for problem in problems] == [
        "tokens[0].pin_file",
        "facilities.01-001.max_batch_items",
    ]


def test_wrong_configuration_and_absent_file(tmp_path: Path) -> None:
    result = run(BAD / "config" / "workers-zero.yaml")
    assert result.exit_code == 1
    assert "tokens[0].workers" in result.stderr
    absent = run(tmp_path / "absent.yaml")
    assert absent.exit_code == 1
    assert "cannot be read" in absent.stderr
