"""Checks signatures with ``cryptography``, and takes messages apart without our code."""

import base64
import json
import zlib
from pathlib import Path
from typing import Any

import cbor2
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa, utils
from cryptography.hazmat.primitives.serialization import load_pem_public_key

_BASE45 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ $%*+-./:"


def check_raw(key: dict[str, Any], signature: bytes, message: bytes) -> None:
    """Raises InvalidSignature; ``key`` is an entry of dev.json."""
    public = load_pem_public_key(Path(key["public_key"]).read_bytes())
    sha256 = hashes.SHA256()
    if isinstance(public, ec.EllipticCurvePublicKey):
        assert len(signature) == 64
        r, s = (int.from_bytes(part, "big") for part in (signature[:32], signature[32:]))
        public.verify(utils.encode_dss_signature(r, s), message, ec.ECDSA(sha256))
    elif isinstance(public, ed25519.Ed25519PublicKey):
        public.verify(signature, message)
    elif isinstance(public, rsa.RSAPublicKey):
        pss = padding.PSS(padding.MGF1(sha256), 32)
        pad = pss if key["algorithm"] == "PS256" else padding.PKCS1v15()
        public.verify(signature, message, pad, sha256)
    else:
        raise TypeError(type(public))


def check_jws(key: dict[str, Any], output: bytes, payload: bytes) -> None:
    """Checks a compact JWS over exactly this payload."""
    signed, _, signature = output.rpartition(b".")
    header, _, body = signed.partition(b".")
    assert json.loads(_unpadded(header))["alg"] == key["algorithm"]
    assert _unpadded(body) == payload
    check_raw(key, _unpadded(signature), signed)


def check_cose(key: dict[str, Any], output: bytes, payload: bytes | None = None) -> bytes:
    """Checks a COSE_Sign1, over exactly this payload where given; returns the payload."""
    tagged = cbor2.loads(output)
    assert tagged.tag == 18
    protected, unprotected, body, signature = tagged.value
    assert unprotected == {}
    if payload is not None:
        assert body == payload
    check_raw(key, signature, cbor2.dumps(["Signature1", protected, b"", body]))
    return bytes(body)


def check_hcert(key: dict[str, Any], output: bytes) -> dict[str, Any]:
    """Checks the text of a QR code; returns the DCC in it."""
    text = output.decode("ascii")
    assert text.startswith("HC1:")
    claims = cbor2.loads(check_cose(key, zlib.decompress(_base45(text[4:]))))
    assert claims[1] == "VN"
    dcc: dict[str, Any] = claims[-260][1]
    return dcc


def _unpadded(text: bytes) -> bytes:
    return base64.urlsafe_b64decode(text + b"=" * (-len(text) % 4))


def _base45(text: str) -> bytes:
    """RFC 9285."""
    decoded = bytearray()
    for start in range(0, len(text), 3):
        digits = [_BASE45.index(character) for character in text[start : start + 3]]
        number = sum(digit * 45**place for place, digit in enumerate(digits))
        decoded += number.to_bytes(len(digits) - 1, "big")
    return bytes(decoded)
