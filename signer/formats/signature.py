"""How long a key version's signatures are."""

from __future__ import annotations

from functools import lru_cache

from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_der_public_key

from signer.algorithms import PROPERTIES
from signer.model import KeyVersion


def signature_length(version: KeyVersion) -> int:
    """Returns the length in bytes of the raw signatures of a key version."""
    return PROPERTIES[version.algorithm].signature_bytes or _modulus_length(version.spki)


@lru_cache(maxsize=1024)
def _modulus_length(spki: bytes) -> int:
    """Length in bytes of an RSA modulus, and so of its signatures (RFC 8017 section 8)."""
    key = load_der_public_key(spki)
    if not isinstance(key, RSAPublicKey):
        raise TypeError("the pinned public key of an RS256 or PS256 key version is not RSA")
    return (key.key_size + 7) // 8
