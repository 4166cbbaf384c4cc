"""Key pairs on the token: created, read and destroyed, as ADMIN frames order.

An order is a JSON object: the name of its ``operation``, from the table
below, and its ``arguments``; bytes are hexadecimal. The answer has the ``result``, or
``error`` and ``unsupported`` (as in OperatorError) where the token could not do it.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pkcs11
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from pkcs11 import Attribute, KeyType, Mechanism, MechanismFlag, ObjectClass
from pkcs11 import exceptions as errors
from pkcs11.exceptions import PKCS11Error

from signer.algorithms import PROPERTIES, RSA_BITS, Algorithm
from signer.hsm.frames import FrameError, Verdict
from signer.hsm.spec import FailureKind, TokenFailure
from signer.hsm.worker.token import NotOneKey, Token
from signer.model import TokenObject

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

_MADE_HERE = {Attribute.LOCAL: True, Attribute.NEVER_EXTRACTABLE: True}
"""What the token itself reports of a key that was created in it and never left it."""

# Of each algorithm with a curve, the type of its keys and CKA_EC_PARAMS: the curve's OID in DER.
_CURVES = {
    Algorithm.ES256: (KeyType.EC, bytes.fromhex("06082a8648ce3d030107")),  # 1.2.840.10045.3.1.7
    Algorithm.ES384: (KeyType.EC, bytes.fromhex("06052b81040022")),  # 1.3.132.0.34
    Algorithm.EDDSA: (KeyType.EC_EDWARDS, bytes.fromhex("06032b6570")),  # 1.3.101.112
}

_POINT_BYTES = {Algorithm.ES256: 65, Algorithm.ES384: 97, Algorithm.EDDSA: 32}
"""Lengths of points as modules of PKCS#11 3 may give them: uncompressed, without DER."""


def carry_out(
    token: Token, order: Mapping[str, Any], operations: Mapping[str, Callable[..., Any]]
) -> dict[str, Any]:
    """Carries out one order, which is one of these operations; returns the answer.

    Raises TokenFailure if the session is in doubt afterwards, FrameError if the
    operation is unknown.
    """
    name = order.get("operation", "")
    operation = operations.get(name)
    if operation is None:
        raise FrameError("an order that is not for this worker")
    token.beat()
    try:
        return {"result": operation(token, **order["arguments"])}
    except TokenFailure as failure:
        if failure.leave:
            raise
        return {"error": str(failure), "unsupported": failure.unsupported}


def _describe(token: Token) -> dict[str, str]:
    """Returns what the token and its module report; versions as ``major.minor``."""
    shown, library = token.session.token, pkcs11.lib(token.spec.module)
    fields = {
        "label": shown.label,
        "serial": shown.serial.decode(errors="replace"),
        "model": shown.model,
        "manufacturer": shown.manufacturer_id,
        "hardware_version": _dotted(shown.hardware_version),
        "firmware_version": _dotted(shown.firmware_version),
        "library": library.library_description,
        "library_version": _dotted(library.library_version),
    }
    return {name: text.strip(" \0") for name, text in fields.items()}


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))


def _handles(token: Token) -> list[int]:
    """Returns the handle of every private key."""
    with token.doing("list its private keys"):
        return token.objects.find({})


def _names(token: Token, handles: list[int]) -> list[list[str]]:
    """Returns the CKA_ID and the label of keys; without those that have gone."""
    with token.doing("read the names of its private keys"):
        names = [token.objects.names(handle) for handle in handles]
    return [[key.cka_id.hex(), key.label] for key in names if key is not None]


def _private_keys(token: Token, cka_id: bytes) -> list[Any]:
    """Returns the private keys of an id as objects of python-pkcs11."""
    template = {
        Attribute.CLASS: ObjectClass.PRIVATE_KEY,
        Attribute.TOKEN: True,
        Attribute.ID: cka_id,
    }
    return list(token.session.get_objects(template))


def _attributes(token: Token, cka_id: str) -> dict[str, bool]:
    """Returns the attributes of a private key that the token knows."""
    values = {}
    with token.doing(f"read the attributes of key {cka_id}"):
        found = _private_keys(token, bytes.fromhex(cka_id))
        if len(found) != 1:
            raise TokenFailure(
                FailureKind.AMBIGUOUS if found else FailureKind.CONFIGURATION,
                f"token {token.spec.label} holds {len(found) or 'no'} private "
                f"{'keys' if found else 'key'} with the CKA_ID {cka_id}",
            )
        for attribute in STRICT | _MADE_HERE:
            token.beat()
            try:
                values[attribute.name.lower()] = bool(found[0][attribute])
            except errors.AttributeTypeInvalid:
                continue
    return values


def _destroy(token: Token, cka_id: str, label: str) -> None:
    """Destroys a key pair, the private half first; a half that is already gone is ignored.

    Destroys nothing if another key has this CKA_ID.
    """
    identifier = bytes.fromhex(cka_id)
    with token.doing(f"destroy key {label}"):
        objects = list(token.session.get_objects({Attribute.ID: identifier, Attribute.TOKEN: True}))
        pairs = [(item, item[Attribute.CLASS]) for item in objects]
        privates = [item for item, kind in pairs if kind == ObjectClass.PRIVATE_KEY]
        publics = [item for item, kind in pairs if kind == ObjectClass.PUBLIC_KEY]
        labels = {item[Attribute.LABEL] for item in privates + publics}
        if labels - {label} or len(privates) > 1:
            raise TokenFailure(
                FailureKind.AMBIGUOUS,
                f"token {token.spec.label} holds another key than {label} with the CKA_ID "
                f"{cka_id}: nothing was destroyed; examine it with the HSM's own tool",
            )
        for item in privates + publics:
            token.beat()
            item.destroy()
            token.forget([identifier])


def _generate(token: Token, algorithm: str, bits: int, cka_id: str, label: str) -> str:
    """Creates a key pair on the token; returns its public key as SPKI in DER.

    A pair that an interrupted attempt left under this CKA_ID is returned instead. The
    private key's attributes are read back: if the module ignores the template, the
    key is destroyed again and refused.
    """
    wanted, identifier = Algorithm(algorithm), bytes.fromhex(cka_id)
    with _mechanism_checked(token, wanted), token.doing(f"create {wanted} key {label}"):
        if _exists(token, identifier):
            return _existing(token, wanted, identifier, label).hex()
        if token.keys.has_label(label):
            raise TokenFailure(
                FailureKind.AMBIGUOUS,
                f"token {token.spec.label} holds another private key with the label {label}: "
                "remove or rename it with the HSM's own tool",
            )
        public, private = generate_pair(token.session, wanted, bits, identifier, label)
        token.beat()
        if wrong := _wrong_attributes(private):
            private.destroy()
            public.destroy()
            raise TokenFailure(
                FailureKind.MODULE_FATAL,
                f"token {token.spec.label} created a key whose {', '.join(wrong)} is not as "
                "demanded: it was destroyed; this module must not hold signing keys",
            )
        token.keys.add(private.handle, TokenObject(identifier, label))
        return _public_key(wanted, public).hex()


@contextmanager
def _mechanism_checked(token: Token, algorithm: Algorithm) -> Iterator[None]:
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


def _exists(token: Token, cka_id: bytes) -> bool:
    """Returns whether there is a private key of an id; raises TokenFailure if there are two."""
    try:
        token.keys.find(cka_id)
    except NotOneKey as found:
        if found.verdict is Verdict.NO_KEY:
            return False
        raise TokenFailure(
            FailureKind.AMBIGUOUS,
            f"token {token.spec.label} holds two private keys with the CKA_ID {cka_id.hex()}: "
            "remove one with the HSM's own tool",
        ) from found
    return True


def _existing(token: Token, algorithm: Algorithm, cka_id: bytes, label: str) -> bytes:
    """Returns the public key of a pair that exists already and is as we make them."""
    [private] = _private_keys(token, cka_id)
    template = {Attribute.CLASS: ObjectClass.PUBLIC_KEY, Attribute.ID: cka_id}
    publics = list(token.session.get_objects(template))
    if private[Attribute.LABEL] != label or len(publics) != 1 or _wrong_attributes(private):
        raise TokenFailure(
            FailureKind.AMBIGUOUS,
            f"token {token.spec.label} holds a private key with the CKA_ID {cka_id.hex()} that "
            f"was not created for {label}: remove it with the HSM's own tool",
        )
    try:
        return _public_key(algorithm, publics[0])
    except (PKCS11Error, ValueError) as error:
        raise TokenFailure(
            FailureKind.AMBIGUOUS,
            f"token {token.spec.label} holds a key for {label} that does not fit {algorithm}: "
            "create it for its own algorithm, or remove it with the HSM's own tool",
        ) from error


def generate_pair(
    session: Any,
    algorithm: Algorithm,
    bits: int,
    cka_id: bytes,
    label: str,
    *,
    template: Mapping[Attribute, bool] = STRICT,
) -> tuple[Any, Any]:
    """Creates a key pair whose private key has these attributes; returns public and private key.

    Both are objects of the token, or of the session, as the template says. Raises PKCS11Error.
    """
    names = {
        "id": cka_id,
        "label": label,
        "store": template[Attribute.TOKEN],
        "capabilities": MechanismFlag.SIGN | MechanismFlag.VERIFY,
        "public_template": {Attribute.ENCRYPT: False, Attribute.WRAP: False},
        "private_template": dict(template),
    }
    if algorithm in _CURVES:
        key_type, curve = _CURVES[algorithm]
        parameters = {Attribute.EC_PARAMS: curve}
        domain = session.create_domain_parameters(key_type, parameters, local=True)
        public, private = domain.generate_keypair(**names)
    else:
        public, private = session.generate_keypair(KeyType.RSA, bits, **names)
    return public, private


def _wrong_attributes(private: Any) -> list[str]:
    """Returns the names of the attributes that are not as we demand them."""
    wanted = STRICT | _MADE_HERE
    return [attribute.name for attribute, value in wanted.items() if private[attribute] != value]


def _public_key(algorithm: Algorithm, public: Any) -> bytes:
    if algorithm in _CURVES:
        return spki_of_point(algorithm, public[Attribute.EC_POINT])
    return spki_of_rsa(public[Attribute.MODULUS], public[Attribute.PUBLIC_EXPONENT])


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


OPERATIONS: dict[str, Callable[..., Any]] = {
    "describe": _describe,
    "handles": _handles,
    "names": _names,
    "attributes": _attributes,
    "destroy": _destroy,
    "generate": _generate,
}
LISTING = {name: OPERATIONS[name] for name in ("handles", "names")}
"""Those of a worker in the mode LIST."""
