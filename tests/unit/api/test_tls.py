import shutil
from pathlib import Path

import pytest
from cryptography import x509

from signer.api.tls import Certificates
from signer.config.models import TlsConfig
from signer.errors import ConfigError
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
    assert Certificates(files).expiries() == expected


def test_a_handshake_is_answered_anew_only_after_a_change(files: TlsConfig) -> None:
    certificates = Certificates(files)
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
        ("client_ca", None, "tls.client_ca", "cannot be read: No such file"),
    ],
)
def test_files_that_are_wrong_change_nothing(
    files: TlsConfig, name: str, content: bytes | None, field: str, text: str
) -> None:
    certificates = Certificates(files)
    certificates.credentials()
    path: Path = getattr(files, name)
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    for attempt in (certificates.read, lambda: Certificates(files)):
        with pytest.raises(ConfigError) as caught:
            attempt()
        [problem] = caught.value.problems
        assert problem.field == field
        assert text in problem.description
    assert certificates._fetch() is None


def test_a_key_of_another_certificate(files: TlsConfig) -> None:
    shutil.copy(files.key.with_name("other.key"), files.key)
    with pytest.raises(ConfigError, match="is not the key of the first certificate"):
        Certificates(files)
