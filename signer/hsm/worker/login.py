"""The login: whether a PIN may be tried on a token, and the one attempt."""

import os
from pathlib import Path
from typing import Any

from pkcs11 import TokenFlag
from pkcs11 import exceptions as errors
from pkcs11.exceptions import PKCS11Error

from signer.files import is_private, private_mode
from signer.hsm.latch import PinLatch
from signer.hsm.spec import FailureKind, TokenFailure, TokenSpec, WorkerMode

_PIN_ERRORS = (
    errors.PinIncorrect,
    errors.PinInvalid,
    errors.PinLenRange,
    errors.PinExpired,
    errors.PinLocked,
)


def log_in(token: Any, spec: TokenSpec, latch: PinLatch) -> Any:
    """Opens a session with one attempt of the PIN, none if that could lock the token.

    Raises TokenFailure.
    """
    locked = token.flags & (TokenFlag.USER_PIN_LOCKED | TokenFlag.USER_PIN_FINAL_TRY)
    doubtful = token.flags & TokenFlag.USER_PIN_COUNT_LOW
    pin = pin_to_try(spec, latch, locked=bool(locked), doubtful=bool(doubtful))
    name = f"token {spec.label}"
    latch.attempt(pin)
    try:
        session = token.open(rw=spec.mode == WorkerMode.ADMINISTER, user_pin=pin)
    except _PIN_ERRORS as error:
        latch.reject(pin)
        raise TokenFailure(
            FailureKind.PIN_REJECTED,
            f"{name} rejects the PIN in {spec.pin_file} ({named(error)}): it is latched; "
            "correct the file",
        ) from error
    except PKCS11Error as error:
        latch.withdraw(pin)
        raise TokenFailure(
            FailureKind.MODULE_FATAL, f"{name}: opening a session failed: {named(error)}"
        ) from error
    latch.accept(pin)
    return session


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
        pin = path.read_text().strip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise TokenFailure(
            FailureKind.CONFIGURATION, f"the PIN file {path} cannot be read: {type(error).__name__}"
        ) from error
    if not pin:
        raise TokenFailure(FailureKind.CONFIGURATION, f"the PIN file {path} is empty")
    return pin
