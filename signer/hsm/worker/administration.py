"""Key pairs on the token: created, read and destroyed, as ADMIN frames order.

An order is a JSON object: the name of its ``operation``, from the table
below, and its ``arguments``; bytes are hexadecimal. The answer has the ``result``, or
``error`` and ``unsupported`` (as in OperatorError) where the token could not do it.
"""

from collections.abc import Callable, Mapping
from typing import Any

import pkcs11
from pkcs11 import Attribute, ObjectClass

from signer.algorithms import Algorithm
from signer.hsm.frames import FrameError, Verdict
from signer.hsm.spec import FailureKind, TokenFailure
from signer.hsm.worker.pairs import (
    MADE_HERE,
    STRICT,
    generate_pair,
    mechanism_checked,
    public_key,
    wrong_attributes,
)
from signer.hsm.worker.token import Token
from signer.hsm.worker.unwrapping import NotOneKey
from signer.hsm.worker.wrapping import WRAPPING_ORDERS
from signer.model import TokenObject


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
    with token.doing(f"read the attributes of key {cka_id}"):
        found = _private_keys(token, bytes.fromhex(cka_id))
        if len(found) != 1:
            raise TokenFailure(
                FailureKind.AMBIGUOUS if found else FailureKind.CONFIGURATION,
                f"token {token.spec.label} holds {len(found) or 'no'} private "
                f"{'keys' if found else 'key'} with the CKA_ID {cka_id}",
            )
        kinds = [*STRICT, *MADE_HERE]
        values = token.objects.flags(found[0].handle, [int(kind) for kind in kinds])
    return {
        kind.name.lower(): value
        for kind, value in zip(kinds, values, strict=True)
        if value is not None
    }


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
    with mechanism_checked(token, wanted), token.doing(f"create {wanted} key {label}"):
        if _exists(token, identifier):
            return _existing(token, wanted, identifier, label).hex()
        if token.keys.has_label(label):
            raise TokenFailure(
                FailureKind.AMBIGUOUS,
                f"token {token.spec.label} holds another private key with the label {label}: "
                "remove or rename it with the HSM's own tool",
            )
        public, private = generate_pair(
            token.objects, wanted, bits, identifier, label, template=STRICT
        )
        if wrong := wrong_attributes(token, private, STRICT | MADE_HERE):
            for half in (private, public):
                token.objects.destroy(half)
            raise TokenFailure(
                FailureKind.MODULE_FATAL,
                f"token {token.spec.label} created a key whose {', '.join(wrong)} is not as "
                "demanded: it was destroyed; this module must not hold signing keys",
            )
        token.keys.add(private, TokenObject(identifier, label))
        return public_key(token.objects, wanted, public).hex()


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
    if (
        private[Attribute.LABEL] != label
        or len(publics) != 1
        or wrong_attributes(token, private.handle, STRICT | MADE_HERE)
    ):
        raise TokenFailure(
            FailureKind.AMBIGUOUS,
            f"token {token.spec.label} holds a private key with the CKA_ID {cka_id.hex()} that "
            f"was not created for {label}: remove it with the HSM's own tool",
        )
    try:
        return public_key(token.objects, algorithm, publics[0].handle)
    except ValueError as error:
        raise TokenFailure(
            FailureKind.AMBIGUOUS,
            f"token {token.spec.label} holds a key for {label} that does not fit {algorithm}: "
            "create it for its own algorithm, or remove it with the HSM's own tool",
        ) from error


OPERATIONS: dict[str, Callable[..., Any]] = {
    "describe": _describe,
    "handles": _handles,
    "names": _names,
    "attributes": _attributes,
    "destroy": _destroy,
    "generate": _generate,
    **WRAPPING_ORDERS,
}
LISTING = {name: OPERATIONS[name] for name in ("handles", "names", "wrapping_keys")}
"""Those of a worker in the mode LIST."""
