"""One token, opened: its session, its private keys and their session copies.

What another process does to the token is seen where a handle turns out to be dead, or where the
front process names the keys that were created or destroyed.

An inspection opens none: it shows what a module shows, and what is known of a PIN.
``_load`` is the only function that loads a PKCS#11 module. Errors are TokenFailures,
whose kind shows the front process and the operator what to do.
"""

import ctypes
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pkcs11
from pkcs11 import exceptions as errors
from pkcs11.exceptions import PKCS11Error

from signer.errors import OperatorError
from signer.files import daemon_user
from signer.hsm.heartbeat import Heartbeat
from signer.hsm.latch import latch_of, shared_start_lock, start_lock
from signer.hsm.spec import FailureKind, KeyLookup, PinState, TokenFailure, TokenSpec, WorkerMode
from signer.hsm.worker.cryptoki import Objects, is_shared
from signer.hsm.worker.login import log_in, named, read_pin
from signer.hsm.worker.lookup import IndexedKeys, KeyFinder, SearchedKeys
from signer.hsm.worker.return_values import CryptokiError, ErrorClass
from signer.hsm.worker.unwrapping import UnwrappedKeys
from signer.model import WrapMechanism

MAX_COPIES = 1024  # session copies a worker keeps; one costs about as much as one signature
_REFUSALS = (
    errors.ObjectHandleInvalid,
    errors.KeyHandleInvalid,
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
_FULL = "it is full; destroy unused keys or give it more room"
_BUSY = (errors.DeviceMemory, errors.HostMemory, errors.SessionCount)


class Token:
    """A logged-in session, and the token's private keys by CKA_ID.

    ``objects`` are the raw calls, ``keys`` finds a key, ``unwrapped`` has the wrapped ones,
    ``beat`` shows that a call of python-pkcs11 has returned.
    """

    def __init__(self, session: Any, spec: TokenSpec, heartbeat: Heartbeat) -> None:
        self.session = session
        self.spec = spec
        self.heartbeat = heartbeat
        self.beat = heartbeat.beat
        self.objects = Objects(spec.module, session.handle, heartbeat)
        indexed = spec.key_lookup == KeyLookup.INDEX
        self.keys: KeyFinder = IndexedKeys(self.objects) if indexed else SearchedKeys(self.objects)
        self._copies_wanted = spec.session_copies
        self._copies: OrderedDict[bytes, int] = OrderedDict()
        self.unwrapped = UnwrappedKeys(self.objects)
        self.wraps_with: dict[bytes, tuple[WrapMechanism, int]] = {}  # by a wrapping key's CKA_ID

    def private_key(self, cka_id: bytes) -> int:
        """Returns the handle to sign with: of a session copy where wanted.

        Raises NotOneKey, and CryptokiError; with ``dead_handle`` if the key was destroyed.
        """
        if (copy := self._copies.get(cka_id)) is not None:
            self._copies.move_to_end(cka_id)
            return copy
        handle = self.keys.find(cka_id)
        return self._copied(cka_id, handle) if self._copies_wanted else handle

    def _copied(self, cka_id: bytes, handle: int) -> int:
        try:
            copy = self.objects.copy(handle)
        except CryptokiError as error:
            if error.dead_handle:
                raise
            if error.error_class is ErrorClass.REFUSED:
                self._copies_wanted = False  # the module does not copy
            elif error.error_class is not ErrorClass.BUSY:  # there may be room again
                raise
            return handle
        self._copies[cka_id] = copy
        if len(self._copies) > MAX_COPIES:
            self.objects.destroy(self._copies.popitem(last=False)[1])
        return copy

    def look_for_itself(self) -> None:
        """Raises TokenFailure if the token is away.

        Some modules say so by no return code of a search, and by none of C_SignInit: they
        show no objects any more, also when the token is back.
        """
        with self.doing("be found any more"):
            self.session.token.slot.get_token()

    def is_key(self, handle: int, cka_id: bytes) -> bool:
        """Returns whether a handle is still that of the key: modules may use handles again."""
        names = self.objects.names(handle)
        return names is not None and names.cka_id == cka_id

    def forget(self, ids: Iterable[bytes]) -> None:
        """Looks up keys again that were created or destroyed, when they are next used."""
        ids = list(ids)
        self.drop(ids)
        self.keys.forget(ids)

    def drop(self, ids: Collection[bytes]) -> None:
        """Destroys session copies and unwrapped keys of keys that are stopped."""
        self.unwrapped.drop(ids)
        for cka_id in ids:
            if (copy := self._copies.pop(cka_id, None)) is not None:
                self.objects.destroy(copy)
        self.keys.release(ids)

    @contextmanager
    def doing(self, what: str) -> Iterator[None]:
        """Turns what PKCS#11 raises into a TokenFailure: it could not do ``what``."""
        with doing(self.spec.label, what):
            yield


@contextmanager
def doing(label: str, what: str) -> Iterator[None]:
    """Turns what PKCS#11 raises into a TokenFailure: the token could not do ``what``."""
    try:
        yield
    except CryptokiError as error:
        full = f": {_FULL}, then repeat" if error.full else ""
        raise TokenFailure(
            error.failure,
            f"token {label} cannot {what}: {error}{full}",
            leave=error.error_class is not ErrorClass.REFUSED and not error.full,
            unsupported=error.no_mechanism,
        ) from error
    except PKCS11Error as error:
        raise failure(label, what, error) from error


def failure(label: str, what: str, error: PKCS11Error) -> TokenFailure:
    """Returns what to raise if a token could not do ``what``.

    ``leave`` is set if its session may not go on.
    """
    text = f"token {label} cannot {what}: {named(error)}"
    if isinstance(error, errors.DeviceMemory):
        return TokenFailure(FailureKind.BUSY, f"{text}: {_FULL}, then repeat")
    kind = FailureKind.MODULE_FATAL
    if isinstance(error, _LOST):
        kind = FailureKind.SESSION_LOST
    elif isinstance(error, _BUSY):
        kind = FailureKind.BUSY
    return TokenFailure(
        kind,
        text,
        leave=not isinstance(error, _REFUSALS),
        unsupported=isinstance(error, errors.MechanismInvalid),
    )


def open_token(
    spec: TokenSpec, heartbeat: Heartbeat, report: Callable[[bytes], None] = lambda _: None
) -> Token:
    """Loads the module, finds the token and logs in once.

    ``report`` is called around the login, as in ``log_in``. Raises TokenFailure. A lock file
    serialises initialisation and login over all processes: modules race there, and only one
    process may try a wrong PIN.
    """
    state = Path(spec.state)
    with start_lock(state, spec.label, heartbeat.beat):
        heartbeat.beat()
        token = _find(spec, heartbeat.beat)
        heartbeat.beat()
        try:
            latch = latch_of(state, spec.label, _names(token)[1])
        except OperatorError as error:
            raise TokenFailure(FailureKind.CONFIGURATION, str(error)) from error
        with doing(spec.label, "open a session"):
            session = token.open(rw=spec.mode == WorkerMode.ADMINISTER)
        heartbeat.beat()
        log_in(token, session, spec, latch, report)
        heartbeat.beat()
    return Token(session, spec, heartbeat)


def _load(module: str) -> Any:
    try:
        _ = ctypes.CDLL(module).C_GetFunctionList
    except (AttributeError, OSError) as error:
        raise TokenFailure(
            FailureKind.CONFIGURATION, f"the PKCS#11 module {module} cannot be loaded: {error}"
        ) from error
    try:
        library = pkcs11.lib(module)
    except PKCS11Error as error:
        raise TokenFailure(
            FailureKind.MODULE_FATAL, f"C_Initialize of {module} failed: {named(error)}"
        ) from error
    if not is_shared(module):
        raise TokenFailure(
            FailureKind.CONFIGURATION,
            f"the PKCS#11 module {module} gives every caller of C_GetFunctionList a module of its"
            " own, as p11-kit does: name the HSM's own module instead",
        )
    return library


def _shown(
    spec: TokenSpec, beat: Callable[[], object] = lambda: None
) -> tuple[list[Any], PKCS11Error | None]:
    """Returns the tokens that the module shows, and why it could not show one of them.

    A slot that fails hides no other. Raises TokenFailure if there is no list of slots.
    """
    tokens, problem = [], None
    library = _load(spec.module)
    with doing(spec.label, "be found in the list of slots"):
        slots = library.get_slots()
    for slot in slots:
        beat()
        try:
            tokens.append(slot.get_token())
        except (errors.TokenNotPresent, errors.TokenNotRecognised):
            continue
        except PKCS11Error as error:
            problem = error
    return tokens, problem


def _find(spec: TokenSpec, beat: Callable[[], object]) -> Any:
    """Chooses by label, and by serial where one is given; never by slot."""
    tokens, problem = _shown(spec, beat)
    found = [token for token in tokens if _is_meant(spec, *_names(token))]
    wanted = f"label {spec.label!r}" + (f" and serial {spec.serial}" if spec.serial else "")
    if not found and problem is not None:
        raise failure(spec.label, "be found: a slot cannot be read", problem) from problem
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
            for token in _shown(spec)[0]
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
