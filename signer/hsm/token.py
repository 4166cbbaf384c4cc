"""One token, opened: the only place that loads a PKCS#11 module.

Runs in worker processes only. What goes wrong here is a TokenFailure with a kind
that tells the supervisor, and through it the operator, what to do.
"""

from __future__ import annotations

import ctypes
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pkcs11
from asn1crypto.core import OctetString
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from pkcs11 import Attribute, KeyType, MechanismFlag, ObjectClass, TokenFlag
from pkcs11.exceptions import (
    PinExpired,
    PinIncorrect,
    PinInvalid,
    PinLenRange,
    PinLocked,
    PKCS11Error,
)
from pkcs11.util.ec import encode_named_curve_parameters

from signer.errors import OperatorError
from signer.hsm.latch import PinLatch, latch_of, start_lock
from signer.hsm.spec import FailureKind, TokenSpec
from signer.model import Algorithm

MAX_COPIES = 1024
"""Session copies a worker keeps; one costs about as much as one signature."""
_PIN_ERRORS = (PinIncorrect, PinInvalid, PinLenRange, PinExpired, PinLocked)


class TokenFailure(Exception):  # noqa: N818 - it carries a kind of failure, not one error
    """The token cannot be used; ``kind`` says in which way."""

    def __init__(self, kind: FailureKind, text: str) -> None:
        self.kind = kind
        super().__init__(text)


class Token:
    """A logged-in session and an index of the token's private keys by CKA_ID."""

    def __init__(self, session: Any, spec: TokenSpec) -> None:
        self.session = session
        self.spec = spec
        self._copies_wanted = spec.session_copies
        self._copies: OrderedDict[bytes, Any] = OrderedDict()
        self._keys: dict[bytes, Any] = {}
        self._labels: set[str] = set()
        self._handles: set[int] = set()
        self.refresh()

    def refresh(self) -> None:
        """Enumerates the private keys once and reads the names of those not seen before.

        Raises TokenFailure where two of them share an id or a label: then nobody
        can say which one a name means.
        """
        template = {Attribute.CLASS: ObjectClass.PRIVATE_KEY, Attribute.TOKEN: True}
        for key in self.session.get_objects(template):
            if key.handle in self._handles:
                continue
            names = key.get_attributes([Attribute.ID, Attribute.LABEL])
            cka_id, label = bytes(names.get(Attribute.ID, b"")), names.get(Attribute.LABEL, "")
            if cka_id in self._keys or (label and label in self._labels):
                raise TokenFailure(
                    FailureKind.AMBIGUOUS,
                    f"token {self.spec.label} holds two private keys with the label {label!r} "
                    f"or the CKA_ID {cka_id.hex()}: remove or rename one with the HSM's own tool",
                )
            self._handles.add(key.handle)
            self._keys[cka_id] = key
            if label:
                self._labels.add(label)

    def private_key(self, cka_id: bytes) -> int | None:
        """Returns the handle to sign with: a session copy where wanted, or None if absent."""
        key = self._keys.get(cka_id)
        if key is None or not self._copies_wanted:
            return None if key is None else int(key.handle)
        copy = self._copies.get(cka_id)
        if copy is None:
            try:
                copy = key.copy({Attribute.TOKEN: False})
            except PKCS11Error:
                self._copies_wanted = False  # this module refuses copies: use token objects
                return int(key.handle)
            self._copies[cka_id] = copy
            if len(self._copies) > MAX_COPIES:
                self._copies.popitem(last=False)[1].destroy()
        else:
            self._copies.move_to_end(cka_id)
        return int(copy.handle)

    def drop(self, cka_id: bytes) -> None:
        """Destroys the session copy of a key that must not sign any more."""
        copy = self._copies.pop(cka_id, None)
        if copy is not None:
            copy.destroy()

    def generate(self, algorithm: Algorithm, bits: int, cka_id: bytes, label: str) -> bytes:
        """Makes a key pair on the token; returns its public key as SPKI in DER.

        A pair that an interrupted attempt left under this CKA_ID is found instead.
        The private key's attributes are read back: a module that ignores a
        template is refused, and what it made is destroyed again. Raises
        TokenFailure.
        """
        if cka_id in self._keys:
            return self._found(algorithm, cka_id, label)
        if label in self._labels:
            raise TokenFailure(
                FailureKind.AMBIGUOUS,
                f"token {self.spec.label} holds another private key with the label {label}: "
                "remove or rename it with the HSM's own tool",
            )
        try:
            public, private = self._generate_pair(algorithm, bits, cka_id, label)
            if loose := _loose(private):
                private.destroy()
                public.destroy()
                raise TokenFailure(
                    FailureKind.MODULE_FATAL,
                    f"token {self.spec.label} made a key whose {', '.join(loose)} is not as "
                    "demanded: it was destroyed; this module must not hold signing keys",
                )
            spki = _subject_public_key_info(algorithm, public)
        except PKCS11Error as error:
            raise TokenFailure(
                FailureKind.MODULE_FATAL,
                f"token {self.spec.label} cannot make {algorithm} key {label}: {_named(error)}",
            ) from error
        self._keys[cka_id] = private
        self._handles.add(private.handle)
        self._labels.add(label)
        return spki

    def _found(self, algorithm: Algorithm, cka_id: bytes, label: str) -> bytes:
        """Returns the public key of a pair that is there already and is as we make them."""
        private = self._keys[cka_id]
        template = {Attribute.CLASS: ObjectClass.PUBLIC_KEY, Attribute.ID: cka_id}
        publics = list(self.session.get_objects(template))
        if private[Attribute.LABEL] != label or len(publics) != 1 or _loose(private):
            raise TokenFailure(
                FailureKind.AMBIGUOUS,
                f"token {self.spec.label} holds a private key with the CKA_ID {cka_id.hex()} that "
                f"was not made for {label}: remove it with the HSM's own tool",
            )
        try:
            return _subject_public_key_info(algorithm, publics[0])
        except (PKCS11Error, ValueError) as error:
            raise TokenFailure(
                FailureKind.AMBIGUOUS,
                f"token {self.spec.label} holds a key for {label} that is none for {algorithm}: "
                "make it for the algorithm that it has, or remove it with the HSM's own tool",
            ) from error

    def _generate_pair(
        self, algorithm: Algorithm, bits: int, cka_id: bytes, label: str
    ) -> tuple[Any, Any]:
        names = {
            "id": cka_id,
            "label": label,
            "store": True,
            "capabilities": MechanismFlag.SIGN | MechanismFlag.VERIFY,
            "public_template": {Attribute.ENCRYPT: False, Attribute.WRAP: False},
            "private_template": dict(_STRICT),
        }
        if algorithm in _CURVES:
            key_type, curve = _CURVES[algorithm]
            parameters = {Attribute.EC_PARAMS: encode_named_curve_parameters(curve)}
            domain = self.session.create_domain_parameters(key_type, parameters, local=True)
            pair = domain.generate_keypair(**names)
        else:
            pair = self.session.generate_keypair(KeyType.RSA, bits, **names)
        public, private = pair
        return public, private


_STRICT = {
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
"""What a private key of ours is: it signs, and it stays."""

_MADE_HERE = {Attribute.LOCAL: True, Attribute.NEVER_EXTRACTABLE: True}
"""What the token itself says of a key that was made in it and never left."""


def _loose(private: Any) -> list[str]:
    """The names of the attributes that are not as we demand them."""
    wanted = _STRICT | _MADE_HERE
    return [attribute.name for attribute, value in wanted.items() if private[attribute] != value]


_CURVES = {
    Algorithm.ES256: (KeyType.EC, "secp256r1"),
    Algorithm.ES384: (KeyType.EC, "secp384r1"),
    Algorithm.EDDSA: (KeyType.EC_EDWARDS, "1.3.101.112"),
}


def _subject_public_key_info(algorithm: Algorithm, public: Any) -> bytes:
    key: ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey | rsa.RSAPublicKey
    if algorithm in _CURVES:
        point = bytes(OctetString.load(public[Attribute.EC_POINT]))
        if algorithm is Algorithm.EDDSA:
            key = ed25519.Ed25519PublicKey.from_public_bytes(point)
        else:
            curve = ec.SECP256R1() if algorithm is Algorithm.ES256 else ec.SECP384R1()
            key = ec.EllipticCurvePublicKey.from_encoded_point(curve, point)
    else:
        modulus = int.from_bytes(public[Attribute.MODULUS])
        exponent = int.from_bytes(public[Attribute.PUBLIC_EXPONENT])
        key = rsa.RSAPublicNumbers(exponent, modulus).public_key()
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def open_token(spec: TokenSpec) -> Token:
    """Loads the module, finds the token, logs in once and indexes its keys.

    Raises TokenFailure. Initialisation and login are serialised over all
    processes by a lock file: modules race there, and a wrong PIN must be tried
    by one of them only.
    """
    state = Path(spec.state)
    with start_lock(state, spec.label):
        token = _find(_load(spec.module).get_tokens(), spec)
        serial = token.serial.decode(errors="replace").strip()
        try:
            latch = latch_of(state, spec.label, serial)
        except OperatorError as error:
            raise TokenFailure(FailureKind.CONFIGURATION, str(error)) from error
        session = _log_in(token, spec, latch)
    return Token(session, spec)


def _load(module: str) -> Any:
    try:
        _ = ctypes.CDLL(module).C_GetFunctionList
    except (AttributeError, OSError) as error:
        raise TokenFailure(
            FailureKind.CONFIGURATION, f"the PKCS#11 module {module} cannot be loaded: {error}"
        ) from error
    try:
        return pkcs11.lib(module)
    except PKCS11Error as error:
        raise TokenFailure(
            FailureKind.MODULE_FATAL, f"C_Initialize of {module} failed: {_named(error)}"
        ) from error


def _find(tokens: Iterable[Any], spec: TokenSpec) -> Any:
    """Chooses by label, and by serial where one is given; never by slot."""
    found = [
        token
        for token in tokens
        if token.label.strip() == spec.label
        and spec.serial in (None, token.serial.decode(errors="replace").strip())
    ]
    wanted = f"label {spec.label!r}" + (f" and serial {spec.serial}" if spec.serial else "")
    if not found:
        raise TokenFailure(
            FailureKind.TOKEN_ABSENT,
            f"no token with {wanted} is present: connect it or check tokens in the configuration",
        )
    if len(found) > 1:
        raise TokenFailure(
            FailureKind.AMBIGUOUS,
            f"{len(found)} tokens with {wanted} are present: give the serial in the configuration",
        )
    return found[0]


def _log_in(token: Any, spec: TokenSpec, latch: PinLatch) -> Any:
    """Tries the PIN at most once in its life, and not at all where that could lock the token."""
    pin = _read_pin(Path(spec.pin_file))
    name = f"token {spec.label}"
    if latch.rejected(pin):
        raise TokenFailure(
            FailureKind.PIN_LATCHED,
            f"{name} has rejected this PIN before and it is not tried again: correct "
            f"{spec.pin_file}, or run `signer token unlatch` if the token was at fault",
        )
    if token.flags & (TokenFlag.USER_PIN_LOCKED | TokenFlag.USER_PIN_FINAL_TRY):
        raise TokenFailure(
            FailureKind.PIN_LOCKED,
            f"{name} has its user PIN locked or one try before that: no login is tried; "
            "reset the PIN with the HSM's own tool",
        )
    doubtful = token.flags & TokenFlag.USER_PIN_COUNT_LOW
    if doubtful and not (latch.accepted(pin) or latch.confirmed):
        raise TokenFailure(
            FailureKind.PIN_DOUBTFUL,
            f"{name} counts a wrong PIN already and this one has never worked here: check "
            f"{spec.pin_file}, then confirm one attempt with `signer token unlatch`",
        )
    latch.attempt(pin)
    try:
        session = token.open(rw=spec.read_write, user_pin=pin)
    except _PIN_ERRORS as error:
        latch.reject(pin)
        raise TokenFailure(
            FailureKind.PIN_REJECTED,
            f"{name} rejects the PIN in {spec.pin_file} ({_named(error)}): it is latched; "
            "correct the file",
        ) from error
    except PKCS11Error as error:
        latch.withdraw(pin)
        raise TokenFailure(
            FailureKind.MODULE_FATAL, f"{name}: opening a session failed: {_named(error)}"
        ) from error
    latch.accept(pin)
    return session


def _read_pin(path: Path) -> str:
    try:
        if path.stat().st_mode & 0o077:
            raise TokenFailure(
                FailureKind.CONFIGURATION,
                f"{path} is readable by others: chmod 600 it (and change the PIN)",
            )
        pin = path.read_text().strip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise TokenFailure(
            FailureKind.CONFIGURATION, f"the PIN file {path} cannot be read: {type(error).__name__}"
        ) from error
    if not pin:
        raise TokenFailure(FailureKind.CONFIGURATION, f"the PIN file {path} is empty")
    return pin


def _named(error: PKCS11Error) -> str:
    return " ".join([type(error).__name__, *map(str, error.args)])
