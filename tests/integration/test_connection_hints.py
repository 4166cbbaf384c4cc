"""A command that cannot reach the appliance says where it fails, beside gRPC's own words."""

import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from signer.tools.dev import pki
from tests.commands import Run


@pytest.fixture
def client(appliance: Any, tmp_path: Path) -> Any:
    """Writes a client file, the operator's but for some members; returns its path."""
    described = appliance.dev["clients"]["operator"]

    def write(**changed: object) -> Path:
        members = {
            "address": appliance.dev["address"],
            "server_name": appliance.dev["server_name"],
            "ca": appliance.dev["ca"],
            "certificate": described["cert"],
            "key": described["key"],
            **changed,
        }
        path = tmp_path / "client.yaml"
        path.write_text(yaml.safe_dump({name: str(value) for name, value in members.items()}))
        return path

    return write


def told(run: Run, file: Path) -> str:
    """The last line of what a command says of a call that failed."""
    done = run("health", "--client", str(file))
    assert (done.code, done.out) == (1, "")
    assert "UNAVAILABLE" in done.err
    return done.err.strip().splitlines()[-1].strip()


def test_all_is_well(run: Run, client: Any) -> None:
    assert run("health", "--client", str(client())).out.strip() == "SERVING"


@pytest.mark.parametrize("variable", ["grpc_proxy", "https_proxy", "http_proxy"])
def test_a_proxy_that_does_not_answer(
    run: Run, client: Any, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    monkeypatch.setenv(variable, f"http://me:secret@127.0.0.1:{port}")
    text = told(run, client())
    assert text.startswith(f"the call went to the proxy in `{variable}`: does it let you reach 127")
    assert text.endswith("To call without it, add 127.0.0.1 to `no_proxy`")
    assert "secret" not in text
    monkeypatch.setenv("no_proxy", "example.org, 127.0.0.1")
    assert run("health", "--client", str(client())).out.strip() == "SERVING"


def test_nothing_listens(run: Run, client: Any) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    text = told(run, client(address=f"127.0.0.1:{port}"))
    assert text.startswith(f"nothing listens at 127.0.0.1:{port}: is the daemon running")


def test_the_name_has_no_address(run: Run, client: Any) -> None:
    text = told(run, client(address="nowhere.invalid:7443"))
    assert text.startswith("the name nowhere.invalid has no address")


@contextmanager
def cutting() -> Iterator[int]:
    """A server that accepts connections and closes each; yields its port."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.listen()
        server.settimeout(0.2)
        end = Event()

        def serve() -> None:
            while not end.is_set():
                try:
                    server.accept()[0].close()
                except TimeoutError:
                    continue

        thread = Thread(target=serve)
        thread.start()
        try:
            yield server.getsockname()[1]
        finally:
            end.set()
            thread.join()


def test_what_listens_is_no_appliance(run: Run, client: Any) -> None:
    with cutting() as port:
        text = told(run, client(address=f"127.0.0.1:{port}"))
    assert f"127.0.0.1:{port} does not speak TLS as an appliance does" in text or "was cut" in text


def test_the_name_of_the_server_is_another(run: Run, client: Any) -> None:
    text = told(run, client(server_name="signer.example"))
    assert text.startswith(
        "the server's certificate does not name signer.example: set `server_name`"
    )


def test_the_authority_of_the_server_is_another(run: Run, client: Any, tmp_path: Path) -> None:
    pki.authority(tmp_path, "other", "Other")
    text = told(run, client(ca=tmp_path / "other.pem"))
    assert f"is not from an authority in {tmp_path / 'other.pem'}: is `ca` right?" in text


def test_the_client_is_from_another_authority(run: Run, client: Any, tmp_path: Path) -> None:
    other = pki.authority(tmp_path, "other", "Other")
    pki.client(tmp_path, other, "stranger", "spiffe://dev.signer.example/operator")
    text = told(run, client(certificate=tmp_path / "stranger.pem", key=tmp_path / "stranger.key"))
    assert text.startswith(f"the appliance refuses the certificate {tmp_path / 'stranger.pem'}")
    assert "is its authority in `client_ca` there?" in text


@pytest.mark.parametrize(
    ("begins", "ends", "expected"), [(-2, -1, "ended on"), (1, 2, "is this machine's clock right?")]
)
def test_the_client_is_not_valid_now(
    run: Run, client: Any, tmp_path: Path, appliance: Any, begins: int, ends: int, expected: str
) -> None:
    folder = Path(appliance.dev["ca"]).parent
    described = appliance.dev["clients"]["operator"]
    now = datetime.now(UTC)
    authority = pki.authority(folder, "client-ca", "")
    key = load_pem_private_key(Path(described["key"]).read_bytes(), None)
    old = x509.load_pem_x509_certificate(Path(described["cert"]).read_bytes())
    builder = x509.CertificateBuilder(
        issuer_name=authority.certificate.subject,
        subject_name=old.subject,
        public_key=key.public_key(),  # type: ignore[arg-type]
        serial_number=5,
        not_valid_before=now + timedelta(days=begins),
        not_valid_after=now + timedelta(days=ends),
    )
    for extension in old.extensions:
        builder = builder.add_extension(extension.value, extension.critical)
    certificate = builder.sign(authority.key, hashes.SHA256())
    file = tmp_path / "old.pem"
    file.write_bytes(certificate.public_bytes(Encoding.PEM))
    text = told(run, client(certificate=file))
    assert text.startswith(f"your certificate {file} ")
    assert expected in text
