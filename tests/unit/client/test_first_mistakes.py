"""What everyone does wrong once is refused at once, with what to do."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import grpc
import pytest

from signer.client import AsyncSignerClient, SignerClient
from signer.tools.dev import pki

PAYLOAD: Any = b"{}"
TEXT: Any = "{}"
ONE = "payloads must be a list of payloads, not bytes: for one payload call sign_one"


@pytest.fixture
def unused() -> Any:
    """A client whose appliance does not exist: no test here may call it."""
    with SignerClient(grpc.insecure_channel("127.0.0.1:1")) as client:
        yield client


def test_one_payload_is_not_a_list_of_payloads(unused: SignerClient) -> None:
    for call in (unused.sign, unused.sign_batch):
        with pytest.raises(TypeError, match=ONE):
            call("facilities/f/keys/k", "JWS", PAYLOAD)


def test_nor_is_it_on_a_loop() -> None:
    async def sign() -> None:
        async with AsyncSignerClient(grpc.aio.insecure_channel("127.0.0.1:1")) as client:
            with pytest.raises(TypeError, match=ONE):
                await client.sign_batch("facilities/f/keys/k", "JWS", PAYLOAD)
            with pytest.raises(TypeError, match=ONE):
                await anext(client.sign("facilities/f/keys/k", "JWS", PAYLOAD))

    asyncio.run(sign())


def test_text_is_not_a_payload(unused: SignerClient) -> None:
    with pytest.raises(TypeError, match=r"must be bytes, not text: encode it"):
        unused.sign_one("facilities/f/keys/k", "JWS", TEXT)
    with pytest.raises(TypeError, match=r"must be bytes, not text: encode it"):
        list(unused.sign("facilities/f/keys/k", "JWS", [TEXT], batch_items=1))


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("signer.example", "has no port: write host:port, as in signer.example:7443"),
        ("signer.example:", "has no port"),
        ("dns:///signer.example", "has no port"),
        ("https://signer.example:7443", "is a URL: write host:port"),
        ("http://signer.example", "is a URL"),
    ],
)
def test_an_address_has_a_port_and_no_scheme(folder: Path, address: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        SignerClient.from_files(address, **files(folder))


def files(folder: Path, **changes: Path) -> Mapping[str, Any]:
    return {"ca": folder / "ca.pem", "certificate": folder / "me.pem", "key": folder / "me.key"} | (
        changes
    )


def test_certificate_and_key_may_not_be_swapped(folder: Path) -> None:
    certificate, key = folder / "me.pem", folder / "me.key"
    with pytest.raises(ValueError, match=r"has no private key in PEM, but a certificate: are they"):
        SignerClient.from_files("h:1", **files(folder, certificate=key, key=certificate))
    with pytest.raises(ValueError, match=r"me.key has no certificate in PEM, but a private key"):
        SignerClient.from_files("h:1", **files(folder, certificate=key))


def test_they_belong_together(folder: Path, tmp_path: Path) -> None:
    pki.client(tmp_path, pki.authority(tmp_path, "ca", "ca"), "other", "spiffe://x/other")
    wrong = tmp_path / "other.key"
    with pytest.raises(ValueError, match=r"other.key is not the private key of the certificate"):
        SignerClient.from_files("h:1", **files(folder, key=wrong))


def test_a_file_without_a_certificate_is_named(folder: Path, tmp_path: Path) -> None:
    request = tmp_path / "me.csr"
    request.write_text("-----BEGIN CERTIFICATE REQUEST-----")
    with pytest.raises(ValueError, match=r"me.csr has no certificate in PEM"):
        SignerClient.from_files("h:1", **files(folder, certificate=request))
