"""One token, opened: its session, its private keys and their session copies.

An inspection opens none: it shows what a module shows, and what is known of a PIN.
``_load`` is the only function that loads a PKCS#11 module. Errors are TokenFailures,
whose kind shows the front process and the operator what to do.
"""

import ctypes
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pkcs11
from pkcs11 import Attribute, ObjectClass
from pkcs11 import exceptions as errors
from pkcs11.exceptions import PKCS11Error

from signer.errors import OperatorError
from signer.files import daemon_user
from signer.hsm.latch import latch_of, shared_start_lock, start_lock
from signer.hsm.spec import FailureKind, PinState, TokenFailure, TokenSpec
from signer.hsm.worker.cryptoki import private_keys
from signer.hsm.worker.login import log_in, named, read_pin
from signer.model import TokenObject

MAX_COPIES = 1024  # session copies a worker keeps; one costs about as much as one signature
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
"""The token refused one thing, and its session goes on. Unknown errors are fatal."""
_LOST = (
    errors.DeviceRemoved,
    errors.SessionClosed,
    errors.SessionHandleInvalid,
    errors.TokenNotPresent,
    errors.UserNotLoggedIn,
)


class _KeyEntry(NamedTuple):
    key: Any  # an object of python-pkcs11
    label: str


class PrivateKeys:
    """The private keys of one token by CKA_ID, each with its label; no two share either."""

    def __init__(self, token: str) -> None:
        """Takes the token's label, for texts."""
        self._token = token
        self._entries: dict[bytes, _KeyEntry] = {}
        self._ids: dict[int, bytes] = {}
        self._labels: set[str] = set()

    def __contains__(self, cka_id: object) -> bool:
        return cka_id in self._entries

    def find(self, cka_id: bytes) -> Any | None:
        """Returns the object, None if there is none."""
        entry = self._entries.get(cka_id)
        return None if entry is None else entry.key

    def has_label(self, label: str) -> bool:
        return label in self._labels

    def label(self, cka_id: bytes) -> str:
        """Returns the label of a key; raises KeyError if there is none."""
        return self._entries[cka_id].label

    def listed(self) -> list[TokenObject]:
        """Returns every key, in the order of the enumeration."""
        return [TokenObject(cka_id, entry.label) for cka_id, entry in self._entries.items()]

    @property
    def handles(self) -> AbstractSet[int]:
        return self._ids.keys()

    def add(self, key: Any, cka_id: bytes, label: str) -> None:
        """Adds a key.

        Raises TokenFailure where another key has its id or its label, so that a name is
        ambiguous. Many keys may have an empty label.
        """
        if cka_id in self._entries or (label and label in self._labels):
            raise TokenFailure(
                FailureKind.AMBIGUOUS,
                f"token {self._token} holds two private keys with the CKA_ID {cka_id.hex()} or "
                "with its label: remove or rename one with the HSM's own tool",
            )
        self._entries[cka_id] = _KeyEntry(key, label)
        self._ids[key.handle] = cka_id
        if label:
            self._labels.add(label)

    def remove(self, cka_id: bytes) -> None:
        """Removes a key, if it is there."""
        if (entry := self._entries.pop(cka_id, None)) is not None:
            del self._ids[entry.key.handle]
            self._labels.discard(entry.label)

    def retain(self, present: AbstractSet[int]) -> list[bytes]:
        """Removes the keys whose handle is not among those present; returns their ids."""
        gone = [cka_id for handle, cka_id in self._ids.items() if handle not in present]
        for cka_id in gone:
            self.remove(cka_id)
        return gone


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
        """Adds the private keys that are new on the token, and removes those that are gone.

        Where none is new, only handles are read. Raises TokenFailure where two keys
        share an id or a label, CryptokiError if the search fails.
        """
        present = private_keys(self.spec.module, self.session.handle)
        for cka_id in self.keys.retain(present):
            self.drop(cka_id)
        if present <= self.keys.handles:
            return
        template = {Attribute.CLASS: ObjectClass.PRIVATE_KEY, Attribute.TOKEN: True}
        with self.doing("list its private keys"):
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
                # Where the module refuses copies, sign with the token's objects from now on;
                # a key that was destroyed meanwhile does not show that.
                self._copies_wanted = isinstance(error, _GONE)
                return int(key.handle)
            self._copies[cka_id] = copy
            if len(self._copies) > MAX_COPIES:
                self._copies.popitem(last=False)[1].destroy()
        else:
            self._copies.move_to_end(cka_id)
        return int(copy.handle)

    def drop(self, cka_id: bytes) -> None:
        """Destroys the session copy of a key, if there is one."""
        if (copy := self._copies.pop(cka_id, None)) is not None:
            copy.destroy()

    def drop_all(self) -> None:
        """Destroys all session copies; a key that still signs is copied again."""
        while self._copies:
            self._copies.popitem()[1].destroy()

    @contextmanager
    def doing(self, what: str) -> Iterator[None]:
        """Turns what PKCS#11 raises into a TokenFailure: it could not do ``what``.

        ``leave`` is set where its session may not go on.
        """
        try:
            yield
        except PKCS11Error as error:
            text = f"token {self.spec.label} cannot {what}: {named(error)}"
            if isinstance(error, errors.DeviceMemory):
                remedy = "it is full; destroy unused keys or give it more room"
                raise TokenFailure(FailureKind.BUSY, f"{text}: {remedy}, then repeat") from error
            lost = isinstance(error, _LOST)
            kind = FailureKind.SESSION_LOST if lost else FailureKind.MODULE_FATAL
            raise TokenFailure(
                kind,
                text,
                leave=not isinstance(error, _REFUSALS),
                unsupported=isinstance(error, errors.MechanismInvalid),
            ) from error


def open_token(spec: TokenSpec) -> Token:
    """Loads the module, finds the token, logs in once and indexes its keys.

    Raises TokenFailure. A lock file serialises initialisation and login over all
    processes: modules race there, and only one process may try a wrong PIN.
    """
    state = Path(spec.state)
    with start_lock(state, spec.label):
        token = _find(_load(spec.module).get_tokens(), spec)
        try:
            latch = latch_of(state, spec.label, _names(token)[1])
        except OperatorError as error:
            raise TokenFailure(FailureKind.CONFIGURATION, str(error)) from error
        session = log_in(token, spec, latch)
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
            FailureKind.MODULE_FATAL, f"C_Initialize of {module} failed: {named(error)}"
        ) from error


def _find(tokens: Iterable[Any], spec: TokenSpec) -> Any:
    """Chooses by label, and by serial where one is given; never by slot."""
    found = [token for token in tokens if _is_meant(spec, *_names(token))]
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


def _names(token: Any) -> tuple[str, str]:
    """Returns the label and the serial number of a token, without padding."""
    return token.label.strip(), token.serial.decode(errors="replace").strip()


def _is_meant(spec: TokenSpec, label: str, serial: str) -> bool:
    return label == spec.label and spec.serial in (None, serial)


def inspect(spec: TokenSpec) -> dict[str, Any]:
    """Returns the initialised tokens as ``[label, serial, flags]``, and what is known of the PIN.

    The PIN is compared with the record of rejected ones and not tried: an inspection costs
    no attempt. Raises TokenFailure if the module shows no tokens.
    """
    state = Path(spec.state)
    with shared_start_lock(state, spec.label):
        shown = [
            (*_names(token), [flag.name for flag in type(token.flags) if flag in token.flags])
            for token in _load(spec.module).get_tokens()
        ]
    tokens = [token for token in shown if "TOKEN_INITIALIZED" in token[2]]
    pin, problem = PinState.UNKNOWN, ""
    try:
        for label, serial, _ in tokens:
            if _is_meant(spec, label, serial):
                pin = _pin_state(spec, serial)
    except (TokenFailure, OperatorError) as error:
        problem = str(error)
    return {"tokens": tokens, "pin": pin, "pin_problem": problem}


def _pin_state(spec: TokenSpec, serial: str) -> PinState:
    """Returns what the record of rejected PINs says of the PIN in its file."""
    state = Path(spec.state)
    pin = read_pin(Path(spec.pin_file), daemon_user(state))
    latch = latch_of(state, spec.label, serial)
    if latch.rejected(pin):
        return PinState.REJECTED
    if latch.accepted(pin):
        return PinState.ACCEPTED
    return PinState.CONFIRMED if latch.confirmed else PinState.UNTRIED
