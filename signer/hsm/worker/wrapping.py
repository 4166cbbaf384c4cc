"""Wrapping keys and the keys that they wrap: made on the token, as ADMIN frames order.

A key that is to be wrapped is a key pair of the session, extractable by wrapping alone. It is
wrapped at once and destroyed; what is returned has been unwrapped and has signed before.
"""

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

from pkcs11 import Attribute, KeyType, MechanismFlag, ObjectClass

from signer.algorithms import PROPERTIES, Algorithm
from signer.hsm.frames import PackedWrapped
from signer.hsm.mechanisms import MECHANISMS, Verifier
from signer.hsm.spec import FailureKind, HeldWrappingKey, TokenFailure
from signer.hsm.worker.cryptoki import WRAP_MECHANISMS, HotLoop
from signer.hsm.worker.pairs import (
    STRICT,
    generate_pair,
    mechanism_checked,
    public_key,
    wrong_attributes,
)
from signer.hsm.worker.return_values import CryptokiError, ErrorClass
from signer.hsm.worker.token import Token
from signer.hsm.worker.unwrapping import NotOneKey
from signer.model import WrapMechanism

_TO_WRAP = STRICT | {Attribute.TOKEN: False, Attribute.EXTRACTABLE: True}
_UNWRAPPED = STRICT | {Attribute.TOKEN: False}
_WRAPPING = {
    Attribute.TOKEN: True,
    Attribute.PRIVATE: True,
    Attribute.SENSITIVE: True,
    Attribute.EXTRACTABLE: False,
    Attribute.UNWRAP: True,
    Attribute.ENCRYPT: False,
    Attribute.DECRYPT: False,
    Attribute.SIGN: False,
    Attribute.VERIFY: False,
    Attribute.DERIVE: False,
}
"""Attributes of a wrapping key: it unwraps. A copy of it in an operation's session wraps."""
_KEPT_INSIDE = {Attribute.NEVER_EXTRACTABLE: True}
"""What a token reports of a key of which nobody can have a copy."""
_CANARY = b"signer.v1 unwrapped key"


def _make_wrapping_key(token: Token, cka_id: str, label: str) -> dict[str, bool]:
    """Creates a wrapping key, AES-256, or finds the one that an interrupted attempt left.

    Returns its attributes. Where a module lets no copy of it wrap, the key itself may wrap.
    """
    identifier = bytes.fromhex(cka_id)
    with token.doing(f"create the wrapping key {label}"):
        _check_mechanism(token)
        found = _secret_keys(token, identifier)
        key = found[0] if found else _generate_key(token, identifier, label, wraps=False)
        if len(found) > 1 or key[Attribute.LABEL] != label:
            raise TokenFailure(
                FailureKind.AMBIGUOUS,
                f"token {token.spec.label} holds another key with the CKA_ID {cka_id}: remove it"
                " with the HSM's own tool",
            )
        if not key[Attribute.WRAP] and not _copy_wraps(token, key.handle):
            key.destroy()
            key = _generate_key(token, identifier, label, wraps=True)
        _check_wrapping_key(token, key)
        shown = _WRAPPING | _KEPT_INSIDE | {Attribute.WRAP: True}
        return {attribute.name.lower(): bool(key[attribute]) for attribute in shown}


def _generate_key(token: Token, cka_id: bytes, label: str, *, wraps: bool) -> Any:
    token.beat()
    uses = MechanismFlag.UNWRAP | MechanismFlag.WRAP if wraps else MechanismFlag.UNWRAP
    template = {**_WRAPPING, Attribute.WRAP: wraps}
    return token.session.generate_key(
        KeyType.AES, 256, id=cka_id, label=label, store=True, capabilities=uses, template=template
    )


def _copy_wraps(token: Token, handle: int) -> bool:
    """Returns whether the module makes a copy of a wrapping key that may wrap."""
    try:
        token.objects.destroy(token.objects.copy_to_wrap(handle))
    except CryptokiError as error:
        if error.error_class is not ErrorClass.REFUSED:
            raise
        return False
    return True


def _check_wrapping_key(token: Token, key: Any) -> None:
    """Raises TokenFailure for a key that does not keep to itself what it wraps."""
    if wrong := wrong_attributes(token, key.handle, _WRAPPING | _KEPT_INSIDE):
        raise TokenFailure(
            FailureKind.CONFIGURATION,
            f"token {token.spec.label} has a wrapping key whose {', '.join(wrong)} is not as"
            " demanded: nothing is wrapped by it",
        )


def wrapping_keys(token: Token, cka_ids: list[str]) -> list[HeldWrappingKey]:
    """Returns what a token holds under the CKA_ID of each wrapping key."""
    seen = []
    with token.doing("read the attributes of its wrapping keys"):
        for cka_id in cka_ids:
            found = _secret_keys(token, bytes.fromhex(cka_id))
            wrong: list[str] = []
            if len(found) == 1:
                wrong = wrong_attributes(token, found[0].handle, _WRAPPING | _KEPT_INSIDE)
            seen.append(HeldWrappingKey(len(found), tuple(wrong)))
    return seen


def _secret_keys(token: Token, cka_id: bytes) -> list[Any]:
    token.beat()
    template = {
        Attribute.CLASS: ObjectClass.SECRET_KEY,
        Attribute.TOKEN: True,
        Attribute.ID: cka_id,
    }
    return list(token.session.get_objects(template))


def wrap_mechanism(token: Token) -> WrapMechanism | None:
    """Returns the mechanism by which a token wraps private keys, None if it has none."""
    token.beat()
    offered = {int(mechanism) for mechanism in token.session.token.slot.get_mechanisms()}
    return next((each for each, number in WRAP_MECHANISMS.items() if number in offered), None)


def _check_mechanism(token: Token) -> WrapMechanism:
    """Returns the mechanism by which a token wraps; raises TokenFailure if it has none."""
    if (mechanism := wrap_mechanism(token)) is not None:
        return mechanism
    raise TokenFailure(
        FailureKind.CONFIGURATION,
        f"token {token.spec.label} has neither CKM_AES_KEY_WRAP_KWP nor CKM_AES_KEY_WRAP_PAD:"
        " it cannot hold wrapped keys",
        unsupported=True,
    )


def _generate_wrapped(
    token: Token, algorithm: str, bits: int, cka_id: str, wrapping_key: str
) -> dict[str, str]:
    """Creates a key pair and wraps its private key; returns SPKI, blob and mechanism.

    Nothing of it stays on the token.
    """
    wanted, identifier = Algorithm(algorithm), bytes.fromhex(cka_id)
    what = f"create a wrapped {wanted} key"
    with mechanism_checked(token, wanted), token.doing(what):
        mechanism, wraps = _to_wrap(token, bytes.fromhex(wrapping_key))
        pair = generate_pair(token.objects, wanted, bits, identifier, "", template=_TO_WRAP)
        try:
            spki = public_key(token.objects, wanted, pair[0])
            blob = _wrapped(token, mechanism, wraps, wanted, pair[1])
        finally:
            for half in pair:
                token.objects.destroy(half)
        made = _packed(mechanism, wrapping_key, blob)
        _try_out(token, wanted, identifier, made, spki)
    return {"spki": spki.hex(), "blob": blob.hex(), "mechanism": mechanism}


def _wrapped(
    token: Token, mechanism: WrapMechanism, wraps: int, algorithm: Algorithm, key: int
) -> bytes:
    """Wraps a key, both by their handles; raises TokenFailure where the token wraps no such key."""
    try:
        return token.objects.wrap(mechanism, wraps, key)
    except CryptokiError as error:
        if not error.not_wrappable:
            raise
        raise TokenFailure(
            FailureKind.CONFIGURATION,
            f"token {token.spec.label} does not wrap keys for {algorithm} ({error}): use another"
            " algorithm, or a profile with `storage: token`",
            unsupported=True,
        ) from error


def _packed(mechanism: WrapMechanism, wrapping_key: str, blob: bytes) -> PackedWrapped:
    return PackedWrapped(
        mechanism, bytes.fromhex(wrapping_key), hashlib.sha256(blob).digest(), blob
    )


def _to_wrap(token: Token, cka_id: bytes) -> tuple[WrapMechanism, int]:
    """Returns mechanism and handle to wrap with: of a copy in the session, once for each."""
    if (known := token.wraps_with.get(cka_id)) is not None:
        return known
    try:
        handle = token.unwrapped.wrapping_key(cka_id)
    except NotOneKey as found:
        raise TokenFailure(
            FailureKind.CONFIGURATION,
            f"token {token.spec.label} does not hold, once, the wrapping key with the CKA_ID"
            f" {cka_id.hex()}: restore it there by the HSM's own means",
        ) from found
    [key] = _secret_keys(token, cka_id)
    _check_wrapping_key(token, key)
    if not key[Attribute.WRAP]:
        handle = token.objects.copy_to_wrap(handle)
    token.wraps_with[cka_id] = _check_mechanism(token), handle
    return token.wraps_with[cka_id]


def _try_out(
    token: Token, algorithm: Algorithm, cka_id: bytes, key: PackedWrapped, spki: bytes
) -> None:
    """Unwraps a key and signs with it; raises TokenFailure if it is not the one of the SPKI."""
    try:
        handle = token.unwrapped.unwrap_once(cka_id, algorithm, key)
    except NotOneKey as found:
        raise TokenFailure(
            FailureKind.MODULE_FATAL,
            f"token {token.spec.label} does not unwrap what it has wrapped ({found})",
        ) from found
    try:
        wrong = wrong_attributes(token, handle, _UNWRAPPED)
        name = PROPERTIES[algorithm].hash_name
        data = hashlib.new(name, _CANARY).digest() if name else _CANARY
        loop = HotLoop(token.spec.module, token.session.handle, token.heartbeat)
        [signature] = loop.sign(handle, MECHANISMS[algorithm], [data])
    finally:
        token.objects.destroy(handle)
    if wrong or not Verifier(algorithm, spki).correct(data, signature):
        fault = f"whose {', '.join(wrong)} is not as demanded" if wrong else "that signs wrongly"
        raise TokenFailure(
            FailureKind.MODULE_FATAL,
            f"token {token.spec.label} unwraps a key {fault}: it was not kept; this module must"
            " not hold wrapped keys",
        )


def _wrap_anew(
    token: Token,
    algorithm: str,
    cka_id: str,
    *,
    spki: str,
    wrapped: Mapping[str, str],
    wrapping_key: str,
) -> dict[str, str]:
    """Unwraps a key and wraps it by another wrapping key; returns blob and mechanism.

    ``wrapped`` has its blob, SHA-256, mechanism and wrapping key. In between it is an object of
    the session that cannot be read and signs nothing.
    """
    wanted, identifier = Algorithm(algorithm), bytes.fromhex(cka_id)
    before = PackedWrapped(
        WrapMechanism(wrapped["mechanism"]),
        bytes.fromhex(wrapped["wrapping_key"]),
        bytes.fromhex(wrapped["sha256"]),
        bytes.fromhex(wrapped["blob"]),
    )
    with token.doing("wrap a key anew"):
        mechanism, wraps = _to_wrap(token, bytes.fromhex(wrapping_key))
        try:
            handle = token.unwrapped.unwrap_once(identifier, wanted, before, to_sign=False)
        except NotOneKey as found:
            raise TokenFailure(
                FailureKind.CONFIGURATION,
                f"token {token.spec.label} does not unwrap the key ({found.verdict.name})",
            ) from found
        try:
            blob = _wrapped(token, mechanism, wraps, wanted, handle)
        finally:
            token.objects.destroy(handle)
        made = _packed(mechanism, wrapping_key, blob)
        _try_out(token, wanted, identifier, made, bytes.fromhex(spki))
    return {"blob": blob.hex(), "mechanism": mechanism}


def _destroy_wrapping_key(token: Token, cka_id: str, label: str) -> None:
    """Destroys a wrapping key, if it is there; another label is an error."""
    with token.doing(f"destroy the wrapping key {label}"):
        found = _secret_keys(token, bytes.fromhex(cka_id))
        if any(key[Attribute.LABEL] != label for key in found):
            raise TokenFailure(
                FailureKind.AMBIGUOUS,
                f"token {token.spec.label} holds another key than {label} with the CKA_ID"
                f" {cka_id}: nothing was destroyed",
            )
        for key in found:
            token.beat()
            key.destroy()


WRAPPING_ORDERS: dict[str, Callable[..., Any]] = {
    "wrapping_keys": wrapping_keys,
    "make_wrapping_key": _make_wrapping_key,
    "generate_wrapped": _generate_wrapped,
    "wrap_anew": _wrap_anew,
    "destroy_wrapping_key": _destroy_wrapping_key,
}
