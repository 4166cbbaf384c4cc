"""Files with public keys that a user trusts: what `signer keys export` writes, PEM and DER."""

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_der_public_key, load_pem_public_key

from signer.algorithms import PROPERTIES, Algorithm
from signer.hsm.mechanisms import Verifier
from signer.x509 import fits, jwk_thumbprint, spki_of, spki_of_jwk

_PEM = re.compile(
    rb"(?:^# ([^\r\n]+)\r?\n)?(-----BEGIN ([A-Z0-9 ]+)-----.+?-----END \3-----)",
    re.MULTILINE | re.DOTALL,
)


class KeysError(ValueError):
    """A text has no public keys that can be used; it says why."""


class TrustedKey(NamedTuple):
    """A public key in DER with a name for people; ``kid`` is that of a JWK Set, or ``""``.

    Without ``algorithm`` it is accepted for each one that fits it.
    """

    name: str
    spki: bytes
    algorithm: Algorithm | None = None
    certificate: bytes | None = None
    kid: str = ""

    def correct(self, algorithm: Algorithm, data: bytes, signature: bytes) -> bool:
        """Whether the signature over this input (digest, or message for EdDSA) is correct."""
        if self.algorithm not in {None, algorithm} or not fits(self.spki, algorithm):
            return False
        return Verifier(algorithm, self.spki).correct(data, signature)


def read_keys(content: bytes) -> Iterator[TrustedKey]:
    """Yields the keys of a file; raises KeysError."""
    try:
        if content.lstrip()[:1] in {b"{", b"["}:
            yield from _read_json(json.loads(content))
        elif b"-----BEGIN" in content:
            yield from _read_pem(content)
        else:
            yield _read_der(content)
    except KeysError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, UnsupportedAlgorithm) as error:
        raise KeysError(f"its keys cannot be read: {str(error)[:200]}") from None


def _read_json(document: Any) -> Iterator[TrustedKey]:
    """Reads a JWK, a JWK Set, or a trust list as verifiers of health certificates load it."""
    if isinstance(document, list):
        for item in document:
            yield _certified(base64.b64decode(item["rawData"]))
        return
    for jwk in document.get("keys", [document]):
        if "d" in jwk:
            raise KeysError("it has a private key: give public keys only")
        if jwk.get("use", "sig") == "sig" and jwk.get("alg", Algorithm.ES256) in PROPERTIES:
            spki = spki_of_jwk(jwk)
            algorithm = Algorithm(jwk["alg"]) if "alg" in jwk else None
            kid = str(jwk.get("kid", ""))
            yield TrustedKey(f"key {kid or jwk_thumbprint(spki)}", spki, algorithm, kid=kid)


def _read_pem(content: bytes) -> Iterator[TrustedKey]:
    for name, block, kind in _PEM.findall(content):
        if kind == b"CERTIFICATE":
            der = base64.b64decode(block.split(b"-----")[2])
            yield _certified(der, name.decode(errors="replace"))
        elif b"PRIVATE" in kind:
            raise KeysError("it has a private key: give public keys or certificates only")
        else:
            yield _public(spki_of(load_pem_public_key(block)))


def _read_der(content: bytes) -> TrustedKey:
    try:
        return _certified(content)
    except ValueError:
        pass
    try:
        return _public(spki_of(load_der_public_key(content)))
    except ValueError:
        raise KeysError(
            "it must be a JWK Set or a trust list (JSON), or certificates or public keys in PEM"
            " or DER"
        ) from None


def _certified(der: bytes, name: str = "") -> TrustedKey:
    certificate = x509.load_der_x509_certificate(der)
    shown = name or f"certificate {certificate.subject.rfc4514_string()}"
    return TrustedKey(shown, spki_of(certificate.public_key()), certificate=der)


def _public(spki: bytes) -> TrustedKey:
    return TrustedKey(f"key {hashlib.sha256(spki).hexdigest()[:16]}", spki)
