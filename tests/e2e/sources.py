"""Who signs for the verifiers of others: a real appliance, and keys in software for the rest.

A development appliance has no key for ES384 and one key for documents and for time-stamps each.
What it lacks is signed by the same code of the formats with a key of the test.
"""

import dataclasses
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from signer.algorithms import Algorithm
from signer.format_terms import FormatContext, HcertTerms
from signer.formats import FORMATS
from signer.model import Format
from signer.x509 import cose_kid, jwk_thumbprint, public_key_pem
from tests.commands import signer
from tests.e2e.forgeries import Signed
from tests.unit.formats.conftest import (
    NOW,
    TIME_STAMPING,
    TSA,
    YEAR,
    PrivateKey,
    SoftKey,
    certify,
    soft_key,
)


class Trust(NamedTuple):
    """What a verifier of others trusts, in files of PEM and a JWK Set.

    ``at``: when the certificates are valid, in epoch seconds; None: now.
    """

    algorithm: str
    public_key: Path
    certificate: Path | None
    roots: Path
    jwks: Path | None = None
    at: int | None = None


class Source(NamedTuple):
    """Signs payloads of a format, and what its signatures are verified with."""

    sign: Callable[[str, Sequence[bytes]], list[bytes]]
    trust: Trust

    def signed(self, message_format: str, documents: Sequence[bytes]) -> list[Signed]:
        """Signs documents, as what the format takes: themselves, digests, requests."""
        payloads = [_PAYLOADS.get(message_format, bytes)(each) for each in documents]
        made = self.sign(message_format, payloads)
        return [Signed(*pair) for pair in zip(documents, made, strict=True)]


def sign(appliance: Any, key: str, message_format: str, payloads: Sequence[bytes]) -> list[bytes]:
    """Has an appliance that serves sign payloads, all of which it must accept."""
    with appliance.client() as client:
        results = list(client.sign(key, message_format, payloads, batch_items=5))
    assert [result.error for result in results] == [None] * len(payloads)
    return [result.signature for result in results]


def of_appliance(appliance: Any, short: str, folder: Path) -> Source:
    """Returns a key of an appliance that serves."""
    key, jwks = appliance.key(short), folder / "jwks.json"
    if "SHC" in key["formats"]:
        whose = ("--facility", short.partition("/")[0], "--client", appliance.client_file())
        done = signer("keys", "export", "--form", "jwks", *whose, "--out", jwks)
        assert done.code == 0, done.err

    certificate = key["certificate"]
    roots = appliance.dir / "pki" / "dcc-ca.pem"
    files = (Path(key["public_key"]), Path(certificate) if certificate else None, roots, jwks)
    return Source(partial(sign, appliance, key["name"]), Trust(key["algorithm"], *files))


def in_software(
    algorithm: Algorithm, folder: Path, *, stamping: bool = False, now: int = NOW
) -> Source:
    """Returns a key of the test, which signs at this time; its certificate signs itself.

    ``stamping``: it is one for time-stamps.
    """
    private: PrivateKey
    if algorithm is Algorithm.EDDSA:
        private = ed25519.Ed25519PrivateKey.generate()
    elif algorithm.startswith("ES"):
        curves: dict[str, ec.EllipticCurve] = {"ES256": ec.SECP256R1(), "ES384": ec.SECP384R1()}
        private = ec.generate_private_key(curves[algorithm])
    else:
        private = rsa.generate_private_key(65537, 2048)
    key = soft_key(algorithm, private)
    der, spki = _certified(private, now, stamping=stamping), key.version.spki
    version = dataclasses.replace(
        key.version, certificate=der, kid=cose_kid(spki, der), thumbprint=jwk_thumbprint(spki)
    )
    key = SoftKey(private, version)
    public_key, certificate = folder / "key.pem", folder / "certificate.pem"
    public_key.write_text(public_key_pem(spki))
    pem = x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM)
    certificate.write_bytes(pem)

    def make(message_format: str, payloads: Sequence[bytes]) -> list[bytes]:
        form = FORMATS[Format(message_format)]
        context = FormatContext(
            key.version, now, HcertTerms("VN", YEAR), timestamp=TSA, call_id="a call"
        )
        prepared = form.prepare(payloads, context)
        assert not prepared.failures
        return form.finish(prepared, [key.sign(each) for each in prepared.to_sign], context)

    return Source(make, Trust(algorithm, public_key, certificate, certificate, at=now))


def _certified(private: PrivateKey, now: int, *, stamping: bool) -> bytes:
    usages = [TIME_STAMPING] if stamping else []
    return certify(private, usages, now - YEAR, now + 2 * YEAR, critical=stamping)


def _request(document: bytes) -> bytes:
    with tempfile.NamedTemporaryFile() as file:
        file.write(document)
        file.flush()
        command = ["openssl", "ts", "-query", "-data", file.name, "-sha256", "-cert"]
        return subprocess.run(command, capture_output=True, check=True).stdout


def _digest(document: bytes) -> bytes:
    return sha256(document).digest()


_PAYLOADS = {"DIGEST": _digest, "CMS_DIGEST": _digest, "TIMESTAMP": _request}
