import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID

from signer.api.tls import Certificates
from signer.config.models import TlsConfig
from signer.errors import ConfigError
from signer.files import SECRET, replace_file
from signer.tools.dev import pki


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pki")
    authority = pki.authority(folder, "ca", "servers")
    pki.server(folder, authority)
    pki.client(folder, authority, "other", "spiffe://x/other")
    return folder


@pytest.fixture
def files(made: Path, tmp_path: Path) -> TlsConfig:
    shutil.copytree(made, tmp_path / "pki")
    folder = tmp_path / "pki"
    names = {"certificate": "server.pem", "key": "server.key", "client_ca": "ca.pem"}
    return TlsConfig.model_validate(names, context={"directory": folder})


def test_expiries_are_those_of_the_files(files: TlsConfig) -> None:
    expected = {
        name: x509.load_pem_x509_certificate(path.read_bytes()).not_valid_after_utc.timestamp()
        for name, path in (("server", files.certificate), ("client_ca", files.client_ca))
    }
    assert Certificates(files, time.time).expiries() == expected


def test_a_handshake_is_answered_anew_only_after_a_change(files: TlsConfig) -> None:
    certificates = Certificates(files, time.time)
    certificates.credentials()
    assert certificates._fetch() is None
    assert certificates.use(certificates.read()) is False
    assert certificates._fetch() is None
    files.certificate.write_bytes(files.certificate.read_bytes() + b"\n")
    assert certificates._fetch() is None  # nobody has asked for it yet
    assert certificates.use(certificates.read()) is True
    assert certificates._fetch() is not None
    assert certificates._fetch() is None


@pytest.mark.parametrize(
    ("name", "content", "field", "text"),
    [
        ("certificate", b"x", "tls.certificate", "contains no PEM certificate"),
        ("certificate", b"", "tls.certificate", "contains no PEM certificate"),
        ("key", b"x", "tls.key", "contains no unencrypted PEM private key"),
        ("client_ca", b"x", "tls.client_ca", "contains no PEM certificate"),
        ("client_ca", b"", "tls.client_ca", "contains no PEM certificate"),
        ("client_ca", None, "tls.client_ca", "cannot be read: No such file"),
    ],
)
def test_files_that_are_wrong_change_nothing(
    files: TlsConfig, name: str, content: bytes | None, field: str, text: str
) -> None:
    certificates = Certificates(files, time.time)
    certificates.credentials()
    path: Path = getattr(files, name)
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    for attempt in (certificates.read, lambda: Certificates(files, time.time)):
        with pytest.raises(ConfigError) as caught:
            attempt()
        [problem] = caught.value.problems
        assert problem.field == field
        assert text in problem.description
    assert certificates._fetch() is None


def key_pem(key: Any, password: bytes = b"", encoding: Encoding = Encoding.PEM) -> bytes:
    secret = BestAvailableEncryption(password) if password else NoEncryption()
    made: bytes = key.private_bytes(encoding, PrivateFormat.PKCS8, secret)
    return made


def marked(content: bytes) -> bytes:
    return b"\xef\xbb\xbf" + content


def other_key(key: Any) -> Callable[[bytes], bytes]:
    return lambda _: key_pem(key)


def der(content: bytes) -> bytes:
    return x509.load_pem_x509_certificate(content).public_bytes(Encoding.DER)


SHORT = rsa.generate_private_key(65537, 1024)  # noqa: S505  what is refused
UNUSABLE = "is a key that TLS cannot use here"
WRONG: dict[str, tuple[str, Callable[[bytes], bytes], str]] = {
    "marked CA": ("client_ca", marked, "begins with a byte order mark"),
    "marked": ("certificate", marked, "begins with a byte order mark"),
    "DER": ("certificate", der, "is DER, expected PEM"),
    "DER key": (
        "key",
        lambda content: key_pem(load_pem_private_key(content, None), encoding=Encoding.DER),
        "is DER, expected PEM",
    ),
    "encrypted": (
        "key",
        lambda content: key_pem(load_pem_private_key(content, None), b"secret"),
        "is encrypted",
    ),
    "Ed25519": ("key", other_key(ed25519.Ed25519PrivateKey.generate()), UNUSABLE),
    "P-521": ("key", other_key(ec.generate_private_key(ec.SECP521R1())), UNUSABLE),
    "RSA-1024": ("key", other_key(SHORT), "RSA from 2048 bits"),
}


@pytest.mark.parametrize("what", WRONG)
def test_files_with_which_nobody_could_connect_are_refused(files: TlsConfig, what: str) -> None:
    certificates = Certificates(files, time.time)
    name, change, text = WRONG[what]
    path: Path = getattr(files, name)
    path.write_bytes(change(path.read_bytes()))
    for attempt in (certificates.read, lambda: Certificates(files, time.time)):
        with pytest.raises(ConfigError) as caught:
            attempt()
        [problem] = caught.value.problems
        assert (problem.field, text in problem.description) == (f"tls.{name}", True)


def test_a_key_that_others_can_read_is_refused(files: TlsConfig) -> None:
    files.key.chmod(0o644)
    with pytest.raises(ConfigError, match="is accessible to other users: chmod 600"):
        Certificates(files, time.time)


def test_a_certificate_that_has_ended_is_refused(files: TlsConfig) -> None:
    end = x509.load_pem_x509_certificate(files.certificate.read_bytes()).not_valid_after_utc
    certificates = Certificates(files, lambda: end.timestamp() - 1)
    certificates._now = end.timestamp
    with pytest.raises(ConfigError, match=f"tls.certificate: ended on {end:%Y-%m-%d}"):
        certificates.read()
    authority = x509.load_pem_x509_certificate(files.client_ca.read_bytes()).not_valid_after_utc
    with pytest.raises(ConfigError, match=r"tls\.client_ca: ended on"):
        Certificates(files, authority.timestamp)


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1()], ids=lambda each: each.name)
def test_what_grpc_uses_is_accepted(tmp_path: Path, curve: ec.EllipticCurve) -> None:
    """And a handshake with it succeeds: another library than ours decides that."""
    authority = pki.authority(tmp_path, "ca", "servers")
    pki.client(tmp_path, authority, "caller", "spiffe://x/caller")
    key = ec.generate_private_key(curve)
    made = authority.issue(
        key.public_key(),
        x509.Name.from_rfc4514_string("CN=localhost"),
        ExtendedKeyUsageOID.SERVER_AUTH,
        [x509.DNSName("localhost")],
        1,
    )
    (tmp_path / "server.pem").write_bytes(made.public_bytes(Encoding.PEM))
    replace_file(tmp_path / "server.key", key_pem(key), SECRET)
    names = {"certificate": "server.pem", "key": "server.key", "client_ca": "ca.pem"}
    files = TlsConfig.model_validate(names, context={"directory": tmp_path})
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_secure_port("127.0.0.1:0", Certificates(files, time.time).credentials())
    server.start()
    try:
        mine = (
            (tmp_path / f"{name}").read_bytes() for name in ("ca.pem", "caller.key", "caller.pem")
        )
        credentials = grpc.ssl_channel_credentials(*mine)
        with grpc.secure_channel(f"localhost:{port}", credentials) as channel:
            grpc.channel_ready_future(channel).result(timeout=30)
    finally:
        server.stop(None).wait()


def test_a_key_of_another_certificate(files: TlsConfig) -> None:
    shutil.copy(files.key.with_name("other.key"), files.key)
    with pytest.raises(ConfigError, match="is not the key of the first certificate"):
        Certificates(files, time.time)
