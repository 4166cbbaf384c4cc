"""The algorithms in terms of PKCS#11, and the check of a signature.

Numbers are those of PKCS#11 v3.1; ECDSA signatures are r||s (section 6.3.1).
"""

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed, encode_dss_signature
from cryptography.hazmat.primitives.serialization import load_der_public_key

from signer.algorithms import RSA_BITS, Algorithm

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


@dataclass(frozen=True, slots=True)
class Mechanism:
    """The PKCS#11 mechanism of one algorithm.

    ``prefix`` precedes each digest; ``order`` is that of the curve where the signature
    is r||s.
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
    """Returns the signature r||s with the smaller of the two valid s.

    Returns what cannot be a signature as it is: the check finds it wrong.
    """
    middle = len(signature) // 2
    s = int.from_bytes(signature[middle:])
    if not order // 2 < s < order or len(signature) != (order.bit_length() + 7) // 8 * 2:
        return signature
    return signature[:middle] + (order - s).to_bytes(middle)


class Verifier:
    """Checks raw signatures of one public key in software, independent of the HSM."""

    def __init__(self, algorithm: Algorithm, spki: bytes) -> None:
        """Loads the pinned public key; raises ValueError if it does not fit the algorithm."""
        self.signature_length, self._verify = _scheme(algorithm, load_der_public_key(spki))

    def correct(self, message: bytes, signature: bytes) -> bool:
        """Whether the signature over this input (digest, or message for EdDSA) is correct."""
        if len(signature) != self.signature_length:
            return False
        try:
            self._verify(signature, message)
        except InvalidSignature:
            return False
        return True


_Verify = Callable[[bytes, bytes], None]


def _scheme(algorithm: Algorithm, key: object) -> tuple[int, _Verify]:
    """Returns the length of signatures in bytes, and the function that raises for a wrong one.

    It makes once for each key all that does not depend on the signature.
    """
    match algorithm, key:
        case Algorithm.ES256, ec.EllipticCurvePublicKey(curve=ec.SECP256R1()):
            return 64, _ecdsa(key, ec.ECDSA(Prehashed(hashes.SHA256())))
        case Algorithm.ES384, ec.EllipticCurvePublicKey(curve=ec.SECP384R1()):
            return 96, _ecdsa(key, ec.ECDSA(Prehashed(hashes.SHA384())))
        case Algorithm.EDDSA, ed25519.Ed25519PublicKey():
            return 64, key.verify
        case Algorithm.RS256, rsa.RSAPublicKey(key_size=bits) if bits in RSA_BITS:
            return bits // 8, _rsa(key, padding.PKCS1v15())
        case Algorithm.PS256, rsa.RSAPublicKey(key_size=bits) if bits in RSA_BITS:
            return bits // 8, _rsa(key, padding.PSS(padding.MGF1(hashes.SHA256()), 32))
    raise ValueError(f"the pinned public key does not fit {algorithm}")


def _ecdsa(key: ec.EllipticCurvePublicKey, scheme: ec.ECDSA) -> _Verify:
    def verify(signature: bytes, digest: bytes) -> None:
        middle = len(signature) // 2
        r, s = int.from_bytes(signature[:middle]), int.from_bytes(signature[middle:])
        key.verify(encode_dss_signature(r, s), digest, scheme)

    return verify


def _rsa(key: rsa.RSAPublicKey, scheme: padding.PKCS1v15 | padding.PSS) -> _Verify:
    prehashed = Prehashed(hashes.SHA256())

    def verify(signature: bytes, digest: bytes) -> None:
        key.verify(signature, digest, scheme, prehashed)

    return verify
