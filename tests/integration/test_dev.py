import json
import re
import select
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509 import verification

from signer.cli.dev import dev
from signer.config.client_file import load_client
from signer.config.models import load_config
from signer.config.policy_documents import load_policy
from signer.errors import OperatorError
from signer.hsm.front.admin import open_admin
from signer.keys.registry import Registry
from signer.model import AUDIT_KEY, Format, KeyName
from signer.tools.dev import provision, softhsm
from signer.x509 import extended_key_usages

CLIENTS = {
    "issuer",
    "issuer-b",
    "issuer-c",
    "stranger",
    "officer-a",
    "officer-b",
    "auditor",
    "operator",
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A provisioned folder; tests that change it take a copy of their own."""
    folder = tmp_path_factory.mktemp("dev") / "appliance"
    provision(folder, facilities=2)
    return folder


@pytest.fixture(scope="module")
def described(home: Path) -> Any:
    return json.loads((home / "dev.json").read_text())


def everything(folder: Path) -> dict[str, bytes]:
    """All files, but for the lock file and generation counters of SoftHSM."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix not in (".lock", "-wal", "-shm")
    }


def test_dev_json_has_what_others_rely_on(described: Any, home: Path) -> None:
    assert described.keys() == {
        "address",
        "server_name",
        "metrics",
        "ca",
        "config",
        "clients",
        "keys",
    }
    assert re.fullmatch(r"127\.0\.0\.1:\d+", described["address"])
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+", described["metrics"])
    assert described["config"] == str(home / "signer.yaml")
    assert described["clients"].keys() == CLIENTS
    for client in described["clients"].values():
        assert client.keys() == {"cert", "key", "principal"}
    for key in described["keys"]:
        assert key.keys() == {"name", "algorithm", "formats", "public_key", "certificate"}


def test_the_keys_are_those_of_the_contract(described: Any) -> None:
    keys = {key["name"]: (key["algorithm"], set(key["formats"])) for key in described["keys"]}
    records, dcc = {"JWS", "MESSAGE", "COSE_SIGN1"}, {"HCERT"}
    assert keys == {
        "facilities/01-001/keys/records": ("ES256", records),
        "facilities/01-002/keys/records": ("ES256", records),
        "facilities/01-001/keys/records-rsa": ("PS256", records),
        "facilities/01-001/keys/records-rs256": ("RS256", records),
        "facilities/01-001/keys/records-ed25519": ("EdDSA", records),
        "facilities/strict/keys/records": ("ES256", records),
        "facilities/moh/keys/dcc": ("ES256", dcc),
        "facilities/moh/keys/dcc-rsa": ("PS256", dcc),
        "facilities/moh/keys/dcc-cosigned": ("ES256", dcc),
        "facilities/moh/keys/cards": ("ES256", {"SHC"}),
        "facilities/moh/keys/digest": ("ES256", {"DIGEST"}),
        "facilities/moh/keys/documents": ("ES256", {"CMS", "CMS_DIGEST"}),
        "facilities/moh/keys/tsa": ("ES256", {"TIMESTAMP"}),
        "facilities/l-00001/keys/records": ("ES256", records),
        "facilities/l-00002/keys/records": ("ES256", records),
    }


def test_public_keys_are_those_of_the_registry(described: Any, home: Path) -> None:
    with Registry.open(load_config(home / "signer.yaml").registry) as registry:
        pinned = {str(version.key): version.spki for version in registry.snapshot()}
    files = {
        key["name"]: subprocess.run(
            ["openssl", "pkey", "-pubin", "-in", key["public_key"], "-outform", "DER"],
            check=True,
            capture_output=True,
        ).stdout
        for key in described["keys"]
    }
    assert files == pinned


def test_keys_have_certificates_for_what_they_sign(described: Any) -> None:
    certified = {key["name"]: key for key in described["keys"] if key["certificate"]}
    usages = {
        "facilities/moh/keys/dcc": ["1.3.6.1.4.1.1847.2021.1.2"],
        "facilities/moh/keys/dcc-rsa": ["1.3.6.1.4.1.1847.2021.1.2"],
        "facilities/moh/keys/dcc-cosigned": ["1.3.6.1.4.1.1847.2021.1.2"],
        "facilities/moh/keys/documents": [],
        "facilities/moh/keys/tsa": ["1.3.6.1.5.5.7.3.8"],
    }
    assert certified.keys() == usages.keys()
    for name, key in certified.items():
        certificate = x509.load_pem_x509_certificate(Path(key["certificate"]).read_bytes())
        assert list(extended_key_usages(certificate)) == usages[name]
        pem = certificate.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        assert pem == Path(key["public_key"]).read_bytes()


def test_secrets_are_the_owners_alone(home: Path) -> None:
    secret = [home / "pin", *(home / "pki").glob("*.key")]
    assert len(secret) == 1 + 4 + len(CLIENTS)  # three authorities and the server
    assert {path.stat().st_mode & 0o777 for path in secret} == {0o600}
    for folder in (home, home / "token", home / "pki", home / "state"):
        assert folder.stat().st_mode & 0o777 == 0o700


def test_certificates_verify_with_their_authorities(described: Any, home: Path) -> None:
    def read(path: str | Path) -> x509.Certificate:
        return x509.load_pem_x509_certificate(Path(path).read_bytes())

    servers = verification.PolicyBuilder().store(verification.Store([read(described["ca"])]))
    servers.build_server_verifier(x509.DNSName(described["server_name"])).verify(
        read(home / "pki" / "server.pem"), []
    )
    clients = verification.PolicyBuilder().store(
        verification.Store([read(home / "pki" / "client-ca.pem")])
    )
    for name, client in described["clients"].items():
        verified = clients.build_client_verifier().verify(read(client["cert"]), [])
        assert verified.subjects == [x509.UniformResourceIdentifier(client["principal"])], name


def test_the_policy_allows_what_dev_json_says_and_nothing_to_the_stranger(
    described: Any, home: Path
) -> None:
    policy = load_policy(load_config(home / "signer.yaml").policy)
    principals = {name: client["principal"] for name, client in described["clients"].items()}
    for key in described["keys"]:
        name = KeyName.parse(key["name"])
        terms = policy.terms_of(name)
        assert terms is not None
        assert {Format(f) for f in key["formats"]} == terms.formats
        assert key["algorithm"] in terms.algorithms
        assert terms.max_batch_items == 4096
        assert min(quota.limit for quota in terms.quotas) >= 1_000_000
        sampled = key["algorithm"] in ("ES256", "EdDSA") and name.facility != "strict"
        assert terms.check_every == (64 if sampled else 1)
        greedy = {"01-002": {"issuer-b"}, "strict": {"issuer-c"}}.get(name.facility, set())
        clients = {principals[each] for each in {"issuer", *greedy}}
        assert policy.facilities[name.facility].clients == clients
    assert principals["stranger"] not in policy.roles
    others = {principals[name] for name in ("stranger", "officer-a", "officer-b")}
    assert set(principals.values()) - set(policy.roles) == others  # officers: the registry's


def test_client_files_name_the_daemon_and_files_that_exist(described: Any, home: Path) -> None:
    for name in CLIENTS:
        client = load_client(home / f"client-{name}.yaml")
        assert str(client.address) == described["address"]
        assert str(client.certificate) == described["clients"][name]["cert"]
        assert client.ca.is_file()
        assert client.key.is_file()


def test_a_second_run_finds_everything(home: Path) -> None:
    before = everything(home)
    provision(home)
    assert everything(home) == before


def test_more_facilities_and_other_workers_are_added_to_what_is_there(tmp_path: Path) -> None:
    first = provision(tmp_path / "a")
    made: list[tuple[int, int]] = []
    second = provision(
        tmp_path / "a", facilities=3, workers=5, progress=lambda *step: made.append(step)
    )
    assert made == [(1, 3), (2, 3), (3, 3)]
    assert second["keys"][: len(first["keys"])] == first["keys"]
    assert {key: second[key] for key in first if key != "keys"} == {
        key: first[key] for key in first if key != "keys"
    }
    config = load_config(tmp_path / "a" / "signer.yaml")
    assert [token.workers for token in config.tokens] == [5]
    assert "l-00003" in load_policy(config.policy).facilities


def test_a_second_token_holds_the_same_keys_also_those_that_come_later(tmp_path: Path) -> None:
    home = tmp_path / "a"
    provision(home)
    provision(home, tokens=2, workers=3)
    second = provision(home, facilities=2)
    config = load_config(home / "signer.yaml")
    assert [(t.label, t.workers) for t in config.tokens] == [("signer-dev", 3), ("signer-dev-2", 3)]
    with Registry.open(config.registry) as registry:
        versions = [*registry.snapshot(), *registry.versions(AUDIT_KEY)]
    assert len(versions) == len(second["keys"]) + 1
    for token in config.tokens:
        with open_admin(token, config.state) as admin:
            held = {key.cka_id for key in admin.inventory()}
        assert held == {version.cka_id_on(token.label) for version in versions}
    with pytest.raises(OperatorError, match="has two tokens"):
        provision(home, tokens=1)


def test_the_pin_is_on_no_command_line_and_in_no_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    run = subprocess.run

    def recorded(command: list[str], **options: Any) -> Any:
        calls.append(f"{command} {options.get('env')}")
        return run(command, **options)

    monkeypatch.setattr(subprocess, "run", recorded)
    provision(tmp_path / "a")
    pin = (tmp_path / "a" / "pin").read_text().strip()
    assert len(pin) == 32
    assert [call for call in calls if "--init-token" in call]
    assert not [call for call in calls if pin in call]


def test_a_folder_of_somebody_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").touch()
    with pytest.raises(OperatorError, match="contains other files"):
        provision(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def changed_copy(home: Path, target: Path, old: str, new: str) -> Path:
    shutil.copytree(home, target)
    path = target / "signer.yaml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    return target


def test_a_configuration_with_another_token_is_refused(home: Path, tmp_path: Path) -> None:
    copy = changed_copy(home, tmp_path / "a", "label: signer-dev", "label: production")
    with pytest.raises(OperatorError, match="only its own tokens signer-dev and"):
        provision(copy)


def test_a_module_other_than_softhsm_is_refused(home: Path, tmp_path: Path) -> None:
    module = str(softhsm.find_module())
    copy = changed_copy(home, tmp_path / "a", module, "/opt/vendor/libvendor.so")
    with pytest.raises(OperatorError, match="SoftHSM only"):
        provision(copy)


def test_a_module_that_only_bears_softhsms_name_is_refused(tmp_path: Path) -> None:
    conf = tmp_path / "softhsm2.conf"
    conf.write_text(f"directories.tokendir = {tmp_path}\n")
    impostor = tmp_path / softhsm.LIBRARY
    impostor.write_bytes(b"no library")
    with pytest.raises(OperatorError, match="softhsm2-util"):
        softhsm.find_token(impostor, conf)


def test_a_lost_token_is_not_replaced(tmp_path: Path) -> None:
    provision(tmp_path / "a")
    shutil.rmtree(tmp_path / "a" / "token")
    with pytest.raises(OperatorError, match="start again"):
        provision(tmp_path / "a")


def test_init_on_the_command_line(tmp_path: Path) -> None:
    result = CliRunner().invoke(dev, ["init", str(tmp_path / "a"), "--json", "--workers", "1"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == json.loads((tmp_path / "a" / "dev.json").read_text())
    assert "created 13 of 13 keys" in result.stderr


def test_up_prints_ready_and_nothing_else_and_ends_when_told(tmp_path: Path) -> None:
    log = tmp_path / "stderr"
    command = [sys.executable, "-m", "signer", "dev", "up", str(tmp_path / "a"), "--workers", "1"]
    with (
        log.open("wb") as stderr,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr) as process,
    ):
        try:
            assert process.stdout is not None
            readable, _, _ = select.select([process.stdout], [], [], 60)
            assert readable, log.read_text()
            assert process.stdout.readline() == b"ready\n", log.read_text()
            process.send_signal(signal.SIGTERM)
            rest, _ = process.communicate(timeout=60)
        finally:
            process.kill()
    assert rest == b""
    assert process.returncode == 0
    described = json.loads((tmp_path / "a" / "dev.json").read_text())
    told = log.read_text()
    assert f"at {described['address']}, its status page is {described['metrics']}" in told
    assert "client-issuer.yaml" in told
