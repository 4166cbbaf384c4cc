"""The login: whether a PIN may be tried on a token, and the one attempt."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pkcs11 import TokenFlag
from pkcs11.exceptions import PKCS11Error

from signer.files import is_private, private_mode
from signer.hsm.frames import LOGGED_IN
from signer.hsm.latch import PinLatch
from signer.hsm.spec import FailureKind, TokenFailure, TokenSpec
from signer.hsm.worker.cryptoki import login
from signer.hsm.worker.return_values import ErrorClass, error_class

_PIN_VALUES = range(0x0A0, 0x0A5)
"""CKR_PIN_INCORRECT, _INVALID, _LEN_RANGE, _EXPIRED, _LOCKED: the token's verdict on the PIN."""
_AWAY = (ErrorClass.SESSION_LOST, ErrorClass.BUSY)
"""The token was not there, or had no room: the PIN was not looked at."""


def log_in(
    token: Any, session: Any, spec: TokenSpec, latch: PinLatch, report: Callable[[bytes], None]
) -> None:
    """Logs a session in by one call of C_Login, none if that could lock the token.

    ``report`` is called with nothing before the call, and with LOGGED_IN after its success.
    Raises TokenFailure.
    """
    locked = token.flags & (TokenFlag.USER_PIN_LOCKED | TokenFlag.USER_PIN_FINAL_TRY)
    doubtful = token.flags & TokenFlag.USER_PIN_COUNT_LOW
    pin = pin_to_try(spec, latch, locked=bool(locked), doubtful=bool(doubtful))
    latch.attempt(pin)
    report(b"")
    value = login(spec.module, session.handle, pin)
    if value:
        raise _failed(spec, latch, pin, value)
    latch.accept(pin)
    report(LOGGED_IN)


def _failed(spec: TokenSpec, latch: PinLatch, pin: str, value: int) -> TokenFailure:
    """Records what a failed login says of the PIN; returns what to raise."""
    name, code = f"token {spec.label}", f"0x{value:08x}"
    if value in _PIN_VALUES:
        latch.reject(pin)
        return TokenFailure(
            FailureKind.PIN_REJECTED,
            f"{name} rejects the PIN in {spec.pin_file} (C_Login returned {code}): "
            "it is latched; correct the file",
        )
    if latch.accepted(pin) and error_class(value) in _AWAY:
        latch.undo()
    if not latch.rejected(pin):
        return TokenFailure(
            FailureKind.LOGIN_FAILED,
            f"{name}: C_Login returned {code}; the PIN has worked before and is tried again",
        )
    return TokenFailure(
        FailureKind.LOGIN_FAILED,
        f"{name}: C_Login returned {code}, which may be its answer to a wrong PIN: the PIN in "
        f"{spec.pin_file} is latched; check it and the HSM, then run `signer token unlatch`",
    )


def named(error: PKCS11Error) -> str:
    return " ".join([type(error).__name__, *map(str, error.args)])


def pin_to_try(spec: TokenSpec, latch: PinLatch, *, locked: bool, doubtful: bool) -> str:
    """Returns the PIN that may be tried once.

    ``locked``: the token reports that its user PIN is locked, or one failed attempt
    before that. ``doubtful``: it has counted a wrong PIN. Raises TokenFailure where an
    attempt could lock the token.
    """
    pin = read_pin(Path(spec.pin_file), os.geteuid())
    name = f"token {spec.label}"
    if latch.rejected(pin):
        raise TokenFailure(
            FailureKind.PIN_LATCHED,
            f"{name} has rejected this PIN before and it is not tried again: correct "
            f"{spec.pin_file}, or run `signer token unlatch` if the token was at fault",
        )
    if locked:
        raise TokenFailure(
            FailureKind.PIN_LOCKED,
            f"{name} has its user PIN locked or one try before that: no login is tried; "
            "reset the PIN with the HSM's own tool",
        )
    if doubtful and not (latch.accepted(pin) or latch.confirmed):
        raise TokenFailure(
            FailureKind.PIN_DOUBTFUL,
            f"{name} counts a wrong PIN already and this one has never worked here: check "
            f"{spec.pin_file}, then confirm one attempt with `signer token unlatch`",
        )
    return pin


def read_pin(path: Path, user: int) -> str:
    """Reads a PIN from a file that only ``user`` may be able to read; raises TokenFailure."""
    try:
        if not is_private(found := path.stat(), user):
            mode = private_mode(found.st_uid, user)
            raise TokenFailure(
                FailureKind.CONFIGURATION,
                f"{path} is readable by others: chmod {mode:o} it (and change the PIN)",
            )
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise TokenFailure(
            FailureKind.CONFIGURATION, f"the PIN file {path} cannot be read: {type(error).__name__}"
        ) from error
    pin = text.removesuffix("\n").removesuffix("\r")
    if odd := _odd_in_pin(pin):
        raise TokenFailure(
            FailureKind.CONFIGURATION,
            f"the PIN file {path} {odd}: it must have the PIN alone, in one line;"
            " the PIN was not tried",
        )
    return pin


def _odd_in_pin(pin: str) -> str:
    """Returns what editors leave in a file and no PIN has, "" if there is none of it."""
    if not pin:
        return "is empty"
    if pin.startswith("\ufeff"):
        return "begins with a byte order mark"
    if len(pin.splitlines()) > 1:
        return "has more than one line"
    if pin != pin.strip():
        return "has blanks around the PIN"
    if not pin.isprintable():
        return "has characters that cannot be printed"
    return ""
