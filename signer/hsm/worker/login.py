"""Whether a PIN may be tried on a token, before anything is tried. Runs in workers only."""

from __future__ import annotations

import os
from pathlib import Path

from signer.files import is_private, private_mode
from signer.hsm.latch import PinLatch
from signer.hsm.spec import FailureKind, TokenFailure, TokenSpec


def pin_to_try(spec: TokenSpec, latch: PinLatch, *, locked: bool, doubtful: bool) -> str:
    """Returns the PIN that may be tried once.

    ``locked``: the token says that its user PIN is locked or one try before
    that. ``doubtful``: it counts a wrong PIN already. Raises TokenFailure where a
    try could lock the token.
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
    """Reads a PIN that nobody but the daemon's user can read; raises TokenFailure."""
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
