"""An officer's signature over an operation's bytes, by a key that lies in a file."""

from __future__ import annotations

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key


def sign_operation(
    content: bytes, private_key_pem: bytes, *, password: bytes | None = None
) -> bytes:
    """Signs an operation's bytes as ``signer.officers.approval.check_signature`` accepts it.

    ECDSA with SHA-256 (DER), RSA PKCS #1 v1.5 with SHA-256, or Ed25519, as the key has
    it. Raises ValueError, which never quotes the key, where it cannot be read or is of
    another kind.
    """
    try:
        key = load_pem_private_key(private_key_pem, password)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        # Without its cause: that text may be of the key.
        raise ValueError("no private key in PEM, or its password is missing or wrong") from None
    match key:
        case ec.EllipticCurvePrivateKey():
            return key.sign(content, ec.ECDSA(hashes.SHA256()))
        case rsa.RSAPrivateKey():
            return key.sign(content, padding.PKCS1v15(), hashes.SHA256())
        case ed25519.Ed25519PrivateKey():
            return key.sign(content)
        case _:
            raise ValueError("the private key is none of ECDSA, RSA, Ed25519")
