"""Public keys as PKCS#11 tells them, turned into SubjectPublicKeyInfo in DER. Pure."""

from __future__ import annotations

from asn1crypto.core import OctetString
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from signer.model import Algorithm

_PublicKey = ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey | rsa.RSAPublicKey


def of_point(algorithm: Algorithm, ec_point: bytes) -> bytes:
    """Takes CKA_EC_POINT, a DER OCTET STRING; raises ValueError where it is no such point."""
    point = bytes(OctetString.load(ec_point))
    if algorithm is Algorithm.EDDSA:
        return _der(ed25519.Ed25519PublicKey.from_public_bytes(point))
    curve = ec.SECP256R1() if algorithm is Algorithm.ES256 else ec.SECP384R1()
    return _der(ec.EllipticCurvePublicKey.from_encoded_point(curve, point))


def of_rsa(modulus: bytes, exponent: bytes) -> bytes:
    """Takes CKA_MODULUS and CKA_PUBLIC_EXPONENT; raises ValueError where they are no key."""
    numbers = rsa.RSAPublicNumbers(int.from_bytes(exponent), int.from_bytes(modulus))
    return _der(numbers.public_key())


def _der(key: _PublicKey) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
