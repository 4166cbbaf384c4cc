"""Certification requests (PKCS #10, RFC 2986) that a key in an HSM signs.

The library's builder wants the private key itself; ours is out of reach, so
the few DER structures around its signature are put together here.
"""

from __future__ import annotations

import hashlib

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding

from signer.algorithms import PROPERTIES
from signer.errors import OperatorError
from signer.model import Algorithm, KeyVersion, TokenAdmin

_SEQUENCE, _BIT_STRING, _ATTRIBUTES = 0x30, 0x03, 0xA0
_VERSION_1 = bytes.fromhex("020100")

_ALGORITHM_IDENTIFIERS = {
    # ecdsa-with-SHA256 and -SHA384: RFC 5758 section 3.2
    Algorithm.ES256: bytes.fromhex("300a06082a8648ce3d040302"),
    Algorithm.ES384: bytes.fromhex("300a06082a8648ce3d040303"),
    # sha256WithRSAEncryption: RFC 8017 appendix C
    Algorithm.RS256: bytes.fromhex("300d06092a864886f70d01010b0500"),
    # id-RSASSA-PSS with SHA-256, MGF1 with SHA-256, salt of 32: RFC 4055 section 3.1
    Algorithm.PS256: bytes.fromhex(
        "304106092a864886f70d01010a3034"
        "a00f300d06096086480165030402010500"
        "a11c301a06092a864886f70d010108300d06096086480165030402010500"
        "a203020120"
    ),
    # id-Ed25519: RFC 8410 section 3
    Algorithm.EDDSA: bytes.fromhex("300506032b6570"),
}


def make_request(admin: TokenAdmin, version: KeyVersion, subject: str) -> bytes:
    """Returns a certification request in PEM for a key version.

    ``subject`` is a distinguished name as in RFC 4514, ``CN=...,O=...,C=VN``.
    Raises OperatorError if it does not parse or the token does not sign.
    """
    try:
        name = x509.Name.from_rfc4514_string(subject).public_bytes()
    except ValueError:
        raise OperatorError(
            "the subject is no distinguished name of RFC 4514; write it like"
            " 'CN=DCC signer 1,O=Ministry of Health,C=VN'"
        ) from None
    info = _der(_SEQUENCE, _VERSION_1, name, version.spki, _der(_ATTRIBUTES))
    hash_name = PROPERTIES[version.algorithm].hash_name
    to_sign = hashlib.new(hash_name, info).digest() if hash_name else info
    [signature] = admin.sign(version.algorithm, version.cka_id, version.spki, [to_sign])
    if version.algorithm in (Algorithm.ES256, Algorithm.ES384):
        half = len(signature) // 2
        r, s = (int.from_bytes(part, "big") for part in (signature[:half], signature[half:]))
        signature = encode_dss_signature(r, s)
    der = _der(
        _SEQUENCE,
        info,
        _ALGORITHM_IDENTIFIERS[version.algorithm],
        _der(_BIT_STRING, b"\x00", signature),  # no unused bits
    )
    request = x509.load_der_x509_csr(der)
    if not request.is_signature_valid:
        raise OperatorError(
            f"the token's signature for {version.name} is not by the key that the registry pins:"
            " do not use this key before you know why"
        )
    return request.public_bytes(Encoding.PEM)


def _der(tag: int, *parts: bytes) -> bytes:
    """Encodes one value with its length in the shortest form (X.690 section 10.1)."""
    content = b"".join(parts)
    size = len(content)
    if size < 0x80:
        return bytes((tag, size)) + content
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(length))) + length + content
