import hashlib
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, utils
from cryptography.hazmat.primitives.serialization import Encoding, load_der_public_key

from signer.cli.keys import keys
from signer.config import Config, load_config
from signer.dev import provision
from signer.errors import OperatorError
from signer.hsm.admin import open_admin
from signer.keys.operations import NewKey, cka_id, create_key
from signer.keys.registry import Registry
from signer.model import Algorithm, KeyName

RECORDS = "facilities/01-001/keys/records"
SUBJECT = "CN=DCC signer 1,O=Ministry of Health,C=VN"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys") / "appliance"
    provision(folder)
    return folder


@pytest.fixture(scope="module")
def config(home: Path) -> Config:
    return load_config(home / "signer.yaml")


def run(home: Path, *arguments: str) -> Result:
    return CliRunner().invoke(keys, [*arguments, "--config", str(home / "signer.yaml")])


def answer(home: Path, *arguments: str) -> Any:
    result = run(home, *arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def refusal(home: Path, *arguments: str) -> str:
    result = run(home, *arguments)
    assert result.exit_code == 1
    assert isinstance(result.exception, OperatorError)
    return str(result.exception)


@pytest.mark.parametrize("algorithm", Algorithm)
def test_a_key_is_made_in_the_hsm_and_signs(config: Config, algorithm: Algorithm) -> None:
    rsa = algorithm in (Algorithm.RS256, Algorithm.PS256)
    new = NewKey(KeyName("new", algorithm.lower()), algorithm, 2048 if rsa else 0)
    digest = hashlib.new(algorithm.hash_name or "sha256", b"message").digest()
    with (
        Registry.open(config.registry) as registry,
        open_admin(config.tokens[0], config.state) as admin,
    ):
        version = create_key(registry, admin, new, 1.0)
        assert registry.versions(new.name) == [version]
        [signature] = admin.sign(algorithm, version.cka_id, version.spki, [digest])
    check(algorithm, version.spki, signature, digest)


def check(algorithm: Algorithm, spki: bytes, signature: bytes, data: bytes) -> None:
    key: Any = load_der_public_key(spki)
    if algorithm is Algorithm.EDDSA:
        key.verify(signature, data)
    elif algorithm in (Algorithm.ES256, Algorithm.ES384):
        half = len(signature) // 2
        r, s = (int.from_bytes(part, "big") for part in (signature[:half], signature[half:]))
        hashed = hashes.SHA256() if half == 32 else hashes.SHA384()
        key.verify(utils.encode_dss_signature(r, s), data, ec.ECDSA(utils.Prehashed(hashed)))
    else:
        pss = padding.PSS(padding.MGF1(hashes.SHA256()), 32)
        pad = pss if algorithm is Algorithm.PS256 else padding.PKCS1v15()
        key.verify(signature, data, pad, utils.Prehashed(hashes.SHA256()))


def test_a_key_that_a_crash_left_on_the_token_is_found(config: Config) -> None:
    name = KeyName("crashed", "records")
    with (
        Registry.open(config.registry) as registry,
        open_admin(config.tokens[0], config.state) as admin,
    ):
        left = admin.generate(Algorithm.ES256, 0, cka_id(name, 1), f"{name}/versions/1")
        with pytest.raises(OperatorError, match=f"{name} is not made"):
            create_key(registry, admin, NewKey(name, Algorithm.EDDSA), 1.0)
        assert registry.versions(name) == []
        assert create_key(registry, admin, NewKey(name, Algorithm.ES256), 1.0).spki == left


def test_create_list_and_show(home: Path) -> None:
    name = "facilities/01-002/keys/second"
    made = answer(home, "create", name, "--algorithm", "ES256", "--token", "signer-dev")
    assert made["name"] == f"{name}/versions/1"
    assert (made["state"], made["token"]) == ("ACTIVE", "signer-dev")
    listed = answer(home, "list", "--facility", "01-002")
    assert [(key["name"], key["primary"]) for key in listed] == [
        ("facilities/01-002/keys/records/versions/1", True),
        (f"{name}/versions/1", True),
    ]
    assert answer(home, "show", name) == made
    assert answer(home, "show", f"{name}/versions/1") == made
    assert run(home, "show", name, "--pem").stdout == made["public_key"]


def test_texts_for_people_name_the_key(home: Path) -> None:
    created = run(home, "create", "facilities/a/keys/b", "--algorithm", "EdDSA")
    assert created.stdout == "made facilities/a/keys/b/versions/1 on token signer-dev\n"
    listed = run(home, "list").stdout.splitlines()
    assert len([line for line in listed if f"* {RECORDS}/versions/1 " in line]) == 1
    shown = run(home, "show", "facilities/moh/keys/dcc").stdout
    assert "1.3.6.1.4.1.1847.2021.1.2" in shown
    assert "BEGIN" not in shown


def test_what_cannot_be_made_is_refused(home: Path) -> None:
    assert "exists" in refusal(home, "create", RECORDS, "--algorithm", "ES256")
    assert "bits" in refusal(home, "create", "facilities/a/keys/c", "--algorithm", "RS256")
    text = refusal(home, "create", "facilities/a/keys/c", "--algorithm", "ES256", "--token", "x")
    assert "no token x; it has signer-dev" in text
    assert "has no facilities/a/keys/c" in refusal(home, "show", "facilities/a/keys/c")


@pytest.mark.parametrize(
    "arguments",
    [
        ("create", "records", "--algorithm", "ES256"),
        ("create", RECORDS),
        ("create", RECORDS, "--algorithm", "HS256"),
        ("show", f"{RECORDS}/versions/0"),
        ("csr", RECORDS),
    ],
)
def test_wrong_usage_ends_with_2(home: Path, arguments: tuple[str, ...]) -> None:
    assert run(home, *arguments).exit_code == 2


def test_a_request_leads_to_a_certificate(home: Path, tmp_path: Path) -> None:
    name = "facilities/moh/keys/next"
    answer(home, "create", name, "--algorithm", "PS256", "--bits", "2048")
    printed = run(home, "csr", name, "--subject", SUBJECT).stdout
    request = x509.load_pem_x509_csr(printed.encode())
    assert request.is_signature_valid
    file = tmp_path / "certificate.pem"
    file.write_bytes(issue(request))
    changed = answer(home, "import-certificate", name, str(file))
    der = x509.load_pem_x509_certificate(file.read_bytes()).public_bytes(Encoding.DER)
    assert changed["kid"] == hashlib.sha256(der).hexdigest()[:16]
    assert changed["certificate"]["subject"] == SUBJECT
    assert answer(home, "show", name) == changed

    file.write_bytes(issue(request))
    assert "--replace" in refusal(home, "import-certificate", name, str(file))
    assert answer(home, "import-certificate", name, str(file), "--replace")["kid"] != changed["kid"]
    assert "not accepted" in refusal(home, "import-certificate", RECORDS, str(file))


def issue(request: x509.CertificateSigningRequest) -> bytes:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(request.subject)
        .issuer_name(x509.Name.from_rfc4514_string("CN=outside,C=VN"))
        .public_key(request.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=730))
        .sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
        .public_bytes(Encoding.PEM)
    )


def test_reading_commands_make_no_registry(home: Path, tmp_path: Path) -> None:
    text = (home / "signer.yaml").read_text()
    (tmp_path / "signer.yaml").write_text(text)
    assert "no registry at" in refusal(tmp_path, "list")
    assert [path.name for path in tmp_path.iterdir()] == ["signer.yaml"]


@pytest.mark.parametrize("command", ["create", "list", "show", "csr", "import-certificate"])
def test_help_teaches_by_example(command: str) -> None:
    shown = CliRunner().invoke(keys, [command, "--help"]).output
    assert f"signer keys {command}" in shown
