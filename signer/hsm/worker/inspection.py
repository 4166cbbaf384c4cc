"""What a module shows of its tokens, and what is known of a PIN, without a login.

The PIN is compared with the record of rejected ones and not tried: an inspection
costs no attempt.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from signer.errors import OperatorError
from signer.files import daemon_user
from signer.hsm.latch import latch_of, shared_start_lock
from signer.hsm.spec import PinState, TokenFailure, TokenSpec
from signer.hsm.worker.login import read_pin
from signer.hsm.worker.token import load


def inspect(spec: TokenSpec) -> dict[str, Any]:
    """Returns the initialised tokens as ``[label, serial, flags]``, and what is known of the PIN.

    Raises TokenFailure where the module shows no tokens.
    """
    state = Path(spec.state)
    with shared_start_lock(state, spec.label):
        shown = [_shown(token) for token in load(spec.module).get_tokens()]
    tokens = [token for token in shown if "TOKEN_INITIALIZED" in token[2]]
    pin, problem = PinState.UNKNOWN, ""
    try:
        for label, serial, _ in tokens:
            if label == spec.label and spec.serial in (None, serial):
                pin = _pin_state(spec, serial)
    except (TokenFailure, OperatorError) as error:
        problem = str(error)
    return {"tokens": tokens, "pin": pin, "pin_problem": problem}


def _shown(token: Any) -> tuple[str, str, list[str]]:
    flags = token.flags
    names = [flag.name for flag in type(flags) if flag in flags]
    return token.label.strip(), token.serial.decode(errors="replace").strip(), names


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
