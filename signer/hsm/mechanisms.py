"""The closed list of algorithms in PKCS#11's terms, and the check of a signature.

Numbers are those of PKCS#11 v3.1; signatures are r||s for ECDSA (section 6.3.1).
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed, encode_dss_signature
from cryptography.hazmat.primitives.serialization import load_der_public_key

from signer.model import Algorithm

CKM_RSA_PKCS = 0x00000001
CKM_RSA_PKCS_PSS = 0x0000000D
CKM_SHA256 = 0x00000250
CKG_MGF1_SHA256 = 0x00000002
CKM_ECDSA = 0x00001041
CKM_EDDSA = 0x00001057

SHA256_DIGEST_INFO = bytes.fromhex("3031300d060960864801650304020105000420")
"""DER of DigestInfo for SHA-256 up to the digest (RFC 8017, section 9.2, note 1)."""

P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
P384_ORDER = int(
    "ffffffffffffffffffffffffffffffffffffffffffffffff"
    "c7634d81f4372ddf581a0db248b0a77aecec196accc52973",
    16,
)
RSA_BITS = range(2048, 4097)
"""Sizes of RSA keys that we sign with."""


@dataclass(frozen=True, slots=True)
class Mechanism:
    """How one algorithm is asked of a token.

    ``prefix`` goes before each digest; ``order`` is the curve's order where the
    signature is r||s.
    """

    number: int
    parameter: bytes = b""
    prefix: bytes = b""
    order: int | None = None


_ULONGS = struct.Struct("@3L")

MECHANISMS: Mapping[Algorithm, Mechanism] = {
    Algorithm.ES256: Mechanism(CKM_ECDSA, order=P256_ORDER),
    Algorithm.ES384: Mechanism(CKM_ECDSA, order=P384_ORDER),
    Algorithm.RS256: Mechanism(CKM_RSA_PKCS, prefix=SHA256_DIGEST_INFO),
    Algorithm.PS256: Mechanism(
        CKM_RSA_PKCS_PSS, parameter=_ULONGS.pack(CKM_SHA256, CKG_MGF1_SHA256, 32)
    ),
    Algorithm.EDDSA: Mechanism(CKM_EDDSA),
}


def low_s(signature: bytes, order: int) -> bytes:
    """Returns the signature r||s with the smaller of the two valid s."""
    middle = len(signature) // 2
    s = int.from_bytes(signature[middle:])
    if s <= order // 2:
        return signature
    return signature[:middle] + (order - s).to_bytes(middle)


class Verifier:
    """Checks raw signatures of one public key with software that is not the HSM's."""

    def __init__(self, algorithm: Algorithm, spki: bytes) -> None:
        """Loads the pin; raises ValueError where it does not suit the algorithm."""
        self._algorithm = algorithm
        self._key = load_der_public_key(spki)
        self.signature_length = self._length()

    def _length(self) -> int:
        match self._algorithm, self._key:
            case Algorithm.ES256, ec.EllipticCurvePublicKey(curve=ec.SECP256R1()):
                return 64
            case Algorithm.ES384, ec.EllipticCurvePublicKey(curve=ec.SECP384R1()):
                return 96
            case Algorithm.EDDSA, ed25519.Ed25519PublicKey():
                return 64
            case ((Algorithm.RS256 | Algorithm.PS256), rsa.RSAPublicKey(key_size=bits)) if (
                bits in RSA_BITS and bits % 8 == 0
            ):
                return bits // 8
        raise ValueError(f"the pinned public key does not suit {self._algorithm}")

    def correct(self, message: bytes, signature: bytes) -> bool:
        """Whether the signature over this input (digest, or message for EdDSA) is right."""
        if len(signature) != self.signature_length:
            return False
        key = self._key
        try:
            if isinstance(key, ec.EllipticCurvePublicKey):
                middle = len(signature) // 2
                r, s = int.from_bytes(signature[:middle]), int.from_bytes(signature[middle:])
                digest = hashes.SHA256() if self._algorithm is Algorithm.ES256 else hashes.SHA384()
                key.verify(encode_dss_signature(r, s), message, ec.ECDSA(Prehashed(digest)))
            elif isinstance(key, rsa.RSAPublicKey):
                pad = (
                    padding.PKCS1v15()
                    if self._algorithm is Algorithm.RS256
                    else padding.PSS(padding.MGF1(hashes.SHA256()), 32)
                )
                key.verify(signature, message, pad, Prehashed(hashes.SHA256()))
            elif isinstance(key, ed25519.Ed25519PublicKey):
                key.verify(signature, message)
        except InvalidSignature:
            return False
        return True


def digest_column(algorithm: Algorithm, messages: list[bytes]) -> list[bytes]:
    """Hashes a column of messages with the key's hash; EdDSA takes them as they are."""
    match algorithm.hash_name:
        case None:
            return messages
        case "sha256":
            sha256 = hashlib.sha256
            return [sha256(message).digest() for message in messages]
        case name:
            return [hashlib.new(name, message).digest() for message in messages]
