"""One token, opened: the only place that loads a PKCS#11 module.

Runs in worker processes only. What goes wrong here is a TokenFailure with a kind
that tells the supervisor, and through it the operator, what to do.
"""

from __future__ import annotations

import ctypes
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pkcs11
from pkcs11 import Attribute, KeyType, MechanismFlag, ObjectClass, TokenFlag
from pkcs11 import exceptions as errors
from pkcs11.exceptions import PKCS11Error
from pkcs11.util.ec import encode_named_curve_parameters

from signer.errors import OperatorError
from signer.hsm.latch import PinLatch, latch_of, start_lock
from signer.hsm.spec import FailureKind, TokenFailure, TokenSpec
from signer.hsm.worker import spki
from signer.hsm.worker.cryptoki import private_keys
from signer.hsm.worker.login import pin_to_try
from signer.hsm.worker.objects import PrivateKeys
from signer.model import Algorithm

MAX_COPIES = 1024
"""Session copies a worker keeps; one costs about as much as one signature."""
_PIN_ERRORS = (
    errors.PinIncorrect,
    errors.PinInvalid,
    errors.PinLenRange,
    errors.PinExpired,
    errors.PinLocked,
)
_GONE = (errors.ObjectHandleInvalid, errors.KeyHandleInvalid)
_REFUSALS = (
    *_GONE,
    errors.AttributeReadOnly,
    errors.AttributeSensitive,
    errors.AttributeTypeInvalid,
    errors.AttributeValueInvalid,
    errors.DomainParamsInvalid,
    errors.FunctionNotSupported,
    errors.FunctionRejected,
    errors.KeySizeRange,
    errors.KeyTypeInconsistent,
    errors.MechanismInvalid,
    errors.MechanismParamInvalid,
    errors.SessionReadOnly,
    errors.TemplateIncomplete,
    errors.TemplateInconsistent,
    errors.TokenWriteProtected,
)
"""The token judged what it was asked, and its session goes on. Unknown errors are fatal."""
_LOST = (
    errors.DeviceRemoved,
    errors.SessionClosed,
    errors.SessionHandleInvalid,
    errors.TokenNotPresent,
    errors.UserNotLoggedIn,
)


class Token:
    """A logged-in session and an index of the token's private keys by CKA_ID (``keys``)."""

    def __init__(self, session: Any, spec: TokenSpec) -> None:
        self.session = session
        self.spec = spec
        self._copies_wanted = spec.session_copies
        self._copies: OrderedDict[bytes, Any] = OrderedDict()
        self.keys = PrivateKeys(spec.label)
        self.refresh()

    def refresh(self) -> None:
        """Takes in the private keys that are new on the token, forgets those that are gone.

        Where none is new, only handles are asked for. Raises TokenFailure where two
        keys share an id or a label, CryptokiError where the search fails.
        """
        present = private_keys(self.spec.module, self.session.handle)
        for cka_id in self.keys.keep(present):
            self.drop(cka_id)
        if present <= self.keys.handles:
            return
        template = {Attribute.CLASS: ObjectClass.PRIVATE_KEY, Attribute.TOKEN: True}
        with self._doing("list its private keys"):
            for key in self.session.get_objects(template):
                if key.handle not in self.keys.handles:
                    names = key.get_attributes([Attribute.ID, Attribute.LABEL])
                    cka_id = bytes(names.get(Attribute.ID, b""))
                    self.keys.add(key, cka_id, names.get(Attribute.LABEL, ""))

    def private_key(self, cka_id: bytes) -> int | None:
        """Returns the handle to sign with: a session copy where wanted, or None if absent."""
        key = self.keys.find(cka_id)
        if key is None or not self._copies_wanted:
            return None if key is None else int(key.handle)
        copy = self._copies.get(cka_id)
        if copy is None:
            try:
                copy = key.copy({Attribute.TOKEN: False})
            except PKCS11Error as error:
                # A key that was destroyed meanwhile says nothing about the others.
                # Where the module refuses copies: use token objects.
                self._copies_wanted = isinstance(error, _GONE)
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

    def drop_all(self) -> None:
        """Destroys all session copies; what still signs is copied again."""
        while self._copies:
            self._copies.popitem()[1].destroy()

    def describe(self) -> dict[str, str]:
        """Returns what the token and its module say of themselves; versions as ``major.minor``."""
        token, library = self.session.token, pkcs11.lib(self.spec.module)
        told = {
            "label": token.label,
            "serial": token.serial.decode(errors="replace"),
            "model": token.model,
            "manufacturer": token.manufacturer_id,
            "hardware_version": _dotted(token.hardware_version),
            "firmware_version": _dotted(token.firmware_version),
            "library": library.library_description,
            "library_version": _dotted(library.library_version),
        }
        return {name: text.strip(" \0") for name, text in told.items()}

    def attributes(self, cka_id: bytes) -> dict[str, bool]:
        """Returns what the token says of a private key, without what it does not know of.

        Raises TokenFailure.
        """
        key = self.keys.find(cka_id)
        if key is None:
            raise TokenFailure(
                FailureKind.CONFIGURATION,
                f"token {self.spec.label} holds no private key with the CKA_ID {cka_id.hex()}",
            )
        told = {}
        with self._doing(f"tell the attributes of key {cka_id.hex()}"):
            for attribute in _STRICT | _MADE_HERE:
                try:
                    told[attribute.name.lower()] = bool(key[attribute])
                except errors.AttributeTypeInvalid:
                    continue
        return told

    def destroy(self, cka_id: bytes, label: str) -> None:
        """Destroys a key pair, the private half first; what is gone already is done.

        Raises TokenFailure, and destroys nothing, where another key has this CKA_ID.
        """
        with self._doing(f"destroy key {label}"):
            found = self.session.get_objects({Attribute.ID: cka_id, Attribute.TOKEN: True})
            halves: dict[Any, list[Any]] = {ObjectClass.PRIVATE_KEY: [], ObjectClass.PUBLIC_KEY: []}
            for each in list(found):
                halves.get(each[Attribute.CLASS], []).append(each)
            privates, publics = halves.values()
            labels = {each[Attribute.LABEL] for each in privates + publics}
            if labels - {label} or len(privates) > 1:
                raise TokenFailure(
                    FailureKind.AMBIGUOUS,
                    f"token {self.spec.label} holds another key than {label} with the CKA_ID "
                    f"{cka_id.hex()}: nothing was destroyed; examine it with the HSM's own tool",
                )
            for each in privates:
                each.destroy()
                self.drop(cka_id)
                self.keys.remove(cka_id)
            for each in publics:
                each.destroy()

    @contextmanager
    def _doing(self, what: str) -> Iterator[None]:
        """Says what the token could not do, and whether its session may go on."""
        try:
            yield
        except PKCS11Error as error:
            text = f"token {self.spec.label} cannot {what}: {_named(error)}"
            if isinstance(error, errors.DeviceMemory):
                remedy = "it is full; destroy keys that nobody needs or give it more room"
                raise TokenFailure(FailureKind.BUSY, f"{text}: {remedy}, then repeat") from error
            lost = isinstance(error, _LOST)
            kind = FailureKind.SESSION_LOST if lost else FailureKind.MODULE_FATAL
            raise TokenFailure(kind, text, leave=not isinstance(error, _REFUSALS)) from error

    def generate(self, algorithm: Algorithm, bits: int, cka_id: bytes, label: str) -> bytes:
        """Makes a key pair on the token; returns its public key as SPKI in DER.

        A pair that an interrupted attempt left under this CKA_ID is found instead.
        The private key's attributes are read back: a module that ignores a
        template is refused, and what it made is destroyed again. Raises
        TokenFailure.
        """
        with self._doing(f"make {algorithm} key {label}"):
            if cka_id in self.keys:
                return self._found(algorithm, cka_id, label)
            if self.keys.has_label(label):
                raise TokenFailure(
                    FailureKind.AMBIGUOUS,
                    f"token {self.spec.label} holds another private key with the label {label}: "
                    "remove or rename it with the HSM's own tool",
                )
            public, private = self._generate_pair(algorithm, bits, cka_id, label)
            if loose := _loose(private):
                private.destroy()
                public.destroy()
                raise TokenFailure(
                    FailureKind.MODULE_FATAL,
                    f"token {self.spec.label} made a key whose {', '.join(loose)} is not as "
                    "demanded: it was destroyed; this module must not hold signing keys",
                )
            self.keys.add(private, cka_id, label)
            return _subject_public_key_info(algorithm, public)

    def _found(self, algorithm: Algorithm, cka_id: bytes, label: str) -> bytes:
        """Returns the public key of a pair that is there already and is as we make them."""
        private = self.keys.find(cka_id)
        template = {Attribute.CLASS: ObjectClass.PUBLIC_KEY, Attribute.ID: cka_id}
        publics = list(self.session.get_objects(template))
        if self.keys.label(cka_id) != label or len(publics) != 1 or _loose(private):
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
    if algorithm in _CURVES:
        return spki.of_point(algorithm, public[Attribute.EC_POINT])
    return spki.of_rsa(public[Attribute.MODULUS], public[Attribute.PUBLIC_EXPONENT])


def open_token(spec: TokenSpec) -> Token:
    """Loads the module, finds the token, logs in once and indexes its keys.

    Raises TokenFailure. Initialisation and login are serialised over all
    processes by a lock file: modules race there, and a wrong PIN must be tried
    by one of them only.
    """
    state = Path(spec.state)
    with start_lock(state, spec.label):
        token = _find(load(spec.module).get_tokens(), spec)
        serial = token.serial.decode(errors="replace").strip()
        try:
            latch = latch_of(state, spec.label, serial)
        except OperatorError as error:
            raise TokenFailure(FailureKind.CONFIGURATION, str(error)) from error
        session = _log_in(token, spec, latch)
    return Token(session, spec)


def load(module: str) -> Any:
    """Loads and initialises a PKCS#11 module; raises TokenFailure."""
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
    locked = token.flags & (TokenFlag.USER_PIN_LOCKED | TokenFlag.USER_PIN_FINAL_TRY)
    doubtful = token.flags & TokenFlag.USER_PIN_COUNT_LOW
    pin = pin_to_try(spec, latch, locked=bool(locked), doubtful=bool(doubtful))
    name = f"token {spec.label}"
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


def _named(error: PKCS11Error) -> str:
    return " ".join([type(error).__name__, *map(str, error.args)])


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))
