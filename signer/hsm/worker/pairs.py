"""Key pairs as a token makes them: templates, attributes and public keys."""

import ctypes
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from pkcs11 import Attribute, Mechanism

from signer.algorithms import PROPERTIES, RSA_BITS, Algorithm
from signer.hsm.spec import TokenFailure
from signer.hsm.worker.cryptoki import Objects
from signer.hsm.worker.token import Token

STRICT = {
    Attribute.TOKEN: True,
    Attribute.PRIVATE: True,
    Attribute.SENSITIVE: True,
    Attribute.EXTRACTABLE: False,
    Attribute.SIGN: True,
    Attribute.SIGN_RECOVER: False,
    Attribute.DECRYPT: False,
    Attribute.UNWRAP: False,
    Attribute.DERIVE: False,
}
"""Attributes of a private key that we create: it signs, and it does not leave the token."""

MADE_HERE = {Attribute.LOCAL: True, Attribute.NEVER_EXTRACTABLE: True}
"""What the token itself reports of a key that was created in it and never left it."""

_VERIFIES = {Attribute.VERIFY: True, Attribute.ENCRYPT: False, Attribute.WRAP: False}
"""Attributes of the public key beside it."""

_P256, _P384 = bytes.fromhex("06082a8648ce3d030107"), bytes.fromhex("06052b81040022")
_ED25519 = bytes.fromhex("06032b6570")
_CURVES = {
    Algorithm.ES256: (Mechanism.EC_KEY_PAIR_GEN, _P256),  # 1.2.840.10045.3.1.7
    Algorithm.ES384: (Mechanism.EC_KEY_PAIR_GEN, _P384),  # 1.3.132.0.34
    Algorithm.EDDSA: (Mechanism.EC_EDWARDS_KEY_PAIR_GEN, _ED25519),  # 1.3.101.112
}
"""Of each algorithm with a curve: what creates its keys, and CKA_EC_PARAMS, the OID in DER."""
_EXPONENT = b"\1\0\1"  # of RSA keys: 65537, in the order of CKA_PUBLIC_EXPONENT
_ULONG_BYTES = ctypes.sizeof(ctypes.c_ulong)

_POINT_BYTES = {Algorithm.ES256: 65, Algorithm.ES384: 97, Algorithm.EDDSA: 32}
"""Lengths of points as modules of PKCS#11 3 may give them: uncompressed, without DER."""


@contextmanager
def mechanism_checked(token: Token, algorithm: Algorithm) -> Iterator[None]:
    """Marks a refusal as ``unsupported`` where the token's list lacks the mechanism.

    Tokens refuse with various codes besides CKR_MECHANISM_INVALID.
    """
    try:
        yield
    except TokenFailure as failure:
        if not failure.leave:
            mechanism = Mechanism[PROPERTIES[algorithm].mechanism]
            failure.unsupported |= mechanism not in token.session.token.slot.get_mechanisms()
        raise


def generate_pair(
    objects: Objects,
    algorithm: Algorithm,
    bits: int,
    cka_id: bytes,
    label: str,
    *,
    template: Mapping[Attribute, bool],
) -> tuple[int, int]:
    """Creates a key pair whose private key has these attributes; returns both handles.

    The public key's comes first. Both are objects of the token, or of the session, as the template
    says. Raises CryptokiError.
    """
    names = {int(Attribute.ID): cka_id, int(Attribute.LABEL): label.encode()}
    public = {Attribute.TOKEN: template[Attribute.TOKEN], **_VERIFIES}
    if algorithm in _CURVES:
        mechanism, curve = _CURVES[algorithm]
        kind = {int(Attribute.EC_PARAMS): curve}
    else:
        mechanism = Mechanism.RSA_PKCS_KEY_PAIR_GEN
        kind = {
            int(Attribute.MODULUS_BITS): bits.to_bytes(_ULONG_BYTES, sys.byteorder),
            int(Attribute.PUBLIC_EXPONENT): _EXPONENT,
        }
    return objects.generate_pair(
        int(mechanism), names | _packed(public) | kind, names | _packed(template)
    )


def _packed(flags: Mapping[Attribute, bool]) -> dict[int, bytes]:
    return {int(attribute): bytes((value,)) for attribute, value in flags.items()}


def wrong_attributes(token: Token, handle: int, wanted: Mapping[Attribute, bool]) -> list[str]:
    """Returns the names of a key's attributes that are not as we demand them.

    One call reads all of them. Raises CryptokiError.
    """
    values = token.objects.flags(handle, [int(attribute) for attribute in wanted])
    pairs = zip(wanted.items(), values, strict=True)
    return [attribute.name for (attribute, value), read in pairs if read is not value]


def public_key(objects: Objects, algorithm: Algorithm, handle: int) -> bytes:
    """Returns the SPKI in DER of a public key on the token; one call reads it.

    Raises ValueError if it does not fit the algorithm, and CryptokiError.
    """
    if algorithm in _CURVES:
        [point] = objects.octets(handle, [int(Attribute.EC_POINT)])
        return spki_of_point(algorithm, point)
    numbers = [int(Attribute.MODULUS), int(Attribute.PUBLIC_EXPONENT)]
    return spki_of_rsa(*objects.octets(handle, numbers))


def spki_of_point(algorithm: Algorithm, ec_point: bytes) -> bytes:
    """Returns the SPKI in DER of CKA_EC_POINT: the point, or a DER OCTET STRING with it.

    Raises ValueError if it is neither, or not a point of the curve.
    """
    point = bytes(ec_point)
    # Only the length tells them apart: an uncompressed point begins as an OCTET STRING does.
    if len(point) != _POINT_BYTES[algorithm]:
        # Points of our curves are shorter than 128 bytes: DER gives their length in one byte.
        length = len(point) - 2
        if not 0 <= length < 128 or point[:2] != bytes((0x04, length)):
            raise ValueError("CKA_EC_POINT is neither a point nor a DER OCTET STRING")
        point = point[2:]
    if algorithm is Algorithm.EDDSA:
        return _der(ed25519.Ed25519PublicKey.from_public_bytes(point))
    curve = ec.SECP256R1() if algorithm is Algorithm.ES256 else ec.SECP384R1()
    return _der(ec.EllipticCurvePublicKey.from_encoded_point(curve, point))


def spki_of_rsa(modulus: bytes, exponent: bytes) -> bytes:
    """Returns the SPKI in DER of CKA_MODULUS and CKA_PUBLIC_EXPONENT.

    Raises ValueError if they are not an RSA key of a length that we use.
    """
    key = rsa.RSAPublicNumbers(int.from_bytes(exponent), int.from_bytes(modulus)).public_key()
    if key.key_size not in RSA_BITS:
        raise ValueError(f"an RSA modulus of {key.key_size} bits")
    return _der(key)


def _der(key: ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey | rsa.RSAPublicKey) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
