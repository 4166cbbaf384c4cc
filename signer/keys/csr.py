"""Certification requests (PKCS #10, RFC 2986) that a key in an HSM signs."""

import hashlib
from collections.abc import Mapping
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, load_der_public_key

from signer.algorithms import PROPERTIES, Algorithm
from signer.distinguished_name import parse_name
from signer.errors import OperatorError
from signer.keys.lifecycle import TokenAdmin
from signer.model import KeyVersion


class _TokenKey:
    """A private key as the library's builder uses one: it has the token sign."""

    def __init__(self, admin: TokenAdmin, version: KeyVersion) -> None:
        self._admin, self._version = admin, version

    def public_key(self) -> PublicKeyTypes:
        return load_der_public_key(self._version.spki)

    def sign(self, data: bytes, *_: object) -> bytes:
        """Signs with the version's algorithm; the builder is given the same one."""
        version = self._version
        name = PROPERTIES[version.algorithm].hash_name
        to_sign = hashlib.new(name, data).digest() if name else data
        [signature] = self._admin.sign(
            version.algorithm, version.cka_id, version.spki, [to_sign], version.wrapped
        )
        if isinstance(self, ec.EllipticCurvePrivateKey):
            half = len(signature) // 2
            r, s = (int.from_bytes(part, "big") for part in (signature[:half], signature[half:]))
            return encode_dss_signature(r, s)
        return signature


# The builder tells kinds of keys apart by these classes of the library.
@ec.EllipticCurvePrivateKey.register
class _EcKey(_TokenKey): ...


@rsa.RSAPrivateKey.register
class _RsaKey(_TokenKey): ...


@ed25519.Ed25519PrivateKey.register
class _Ed25519Key(_TokenKey): ...


_PSS = padding.PSS(padding.MGF1(hashes.SHA256()), salt_length=32)
_BUILDER: Mapping[Algorithm, tuple[Any, Any, Any]] = {  # key, hash and padding for the builder
    Algorithm.ES256: (_EcKey, hashes.SHA256(), None),
    Algorithm.ES384: (_EcKey, hashes.SHA384(), None),
    Algorithm.RS256: (_RsaKey, hashes.SHA256(), padding.PKCS1v15()),
    Algorithm.PS256: (_RsaKey, hashes.SHA256(), _PSS),
    Algorithm.EDDSA: (_Ed25519Key, None, None),
}


def make_request(admin: TokenAdmin, version: KeyVersion, subject: str) -> bytes:
    """Returns a certification request in PEM for a key version.

    ``subject`` is a distinguished name as in RFC 4514, ``CN=...,O=...,C=VN``.
    Raises ValueError if it is not one, OperatorError if the token does not sign.
    """
    name = parse_name(subject)
    key, hashed, padded = _BUILDER[version.algorithm]
    builder = x509.CertificateSigningRequestBuilder().subject_name(name)
    request = builder.sign(key(admin, version), hashed, rsa_padding=padded)
    if not request.is_signature_valid:
        raise OperatorError(
            f"the token's signature for {version.name} is not by the key that the registry pins:"
            " do not use this key before you know why"
        )
    return request.public_bytes(Encoding.PEM)
