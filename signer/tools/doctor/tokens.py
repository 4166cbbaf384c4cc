"""Modules and tokens, through a process that does not log in: no PIN attempt is used."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from signer.config.models import TokenConfig
from signer.errors import OperatorError
from signer.files import daemon_user
from signer.hsm.front.admin import inspect
from signer.hsm.spec import PinState, SeenToken
from signer.tools.doctor.file_checks import secret_problem
from signer.tools.doctor.finding import Finding, ok, warning, wrong

_UNLATCH = "`signer token unlatch --config FILE`"


def examine_token(token: TokenConfig, state: Path) -> Iterator[Finding]:
    """Judges one configured token, and what is known about its PIN."""
    try:
        inspection = inspect(token, state)
    except OperatorError as error:
        remedy = f"check {token.module}, its own configuration and `environment`"
        yield wrong(f"token {token.label}", str(error), remedy)
        return
    found = [
        each
        for each in inspection.tokens
        if each.label == token.label and token.serial in (None, each.serial)
    ]
    yield judge_presence(token.label, token.serial, found, inspection.tokens)
    if len(found) == 1 and secret_problem(token.pin_file, daemon_user(state)) is None:
        yield judge_pin(token.label, found[0].flags, inspection.pin, inspection.pin_problem)


def judge_presence(
    label: str, serial: str | None, found: Sequence[SeenToken], shown: Sequence[SeenToken]
) -> Finding:
    """Judges whether exactly one token of a module matches the configuration."""
    check = f"token {label}"
    wanted = f"label {label!r}" + (f" and serial {serial}" if serial else "")
    if not found:
        others = ", ".join(f"{each.label!r} ({each.serial})" for each in shown) or "none"
        return wrong(
            check,
            f"no token with {wanted} is present; the module lists: {others}",
            "connect the token, or correct `label`, `serial` or `environment` of the token",
        )
    if len(found) > 1:
        serials = ", ".join(each.serial for each in found)
        return wrong(
            check,
            f"{len(found)} tokens with {wanted} are present: {serials}",
            "give `serial` in the configuration",
        )
    [token] = found
    if "WRITE_PROTECTED" in token.flags:
        return warning(
            check,
            f"serial {token.serial} is present and write-protected",
            "it signs; to create keys, remove the protection with the HSM's own tool",
        )
    return ok(check, f"serial {token.serial} is present")


def judge_pin(label: str, flags: frozenset[str], pin: PinState, problem: str) -> Finding:
    """Judges whether the next start will log in, by the rules of ``signer.hsm.worker.login``."""
    check, low = f"pin {label}", "USER_PIN_COUNT_LOW" in flags
    known = pin in (PinState.ACCEPTED, PinState.CONFIRMED)
    reset = "reset the PIN with the HSM's own tool, then correct the PIN file"
    obstacles = (
        (problem, problem, "correct the file"),
        ("USER_PIN_INITIALIZED" not in flags, "the token has no user PIN", reset),
        (
            pin is PinState.REJECTED,
            "the token has rejected this PIN: it is latched and not tried again",
            f"correct the PIN file; only if the fault was the token's: {_UNLATCH}",
        ),
        (
            flags & {"USER_PIN_LOCKED", "USER_PIN_FINAL_TRY"},
            "the user PIN is locked, or the next wrong attempt locks it",
            reset,
        ),
        (
            low and not known,
            "the token counts a wrong PIN, and this PIN has never worked here",
            f"check the PIN file, then allow one attempt: {_UNLATCH}",
        ),
    )
    for applies, seen, remedy in obstacles:
        if applies:
            return wrong(check, seen, remedy)
    if low:
        remedy = "find out which program tried it; the next login resets the count"
        return warning(check, "the token counts a wrong PIN", remedy)
    return ok(check, _PIN_TEXTS[pin])


_PIN_TEXTS = {
    PinState.ACCEPTED: "it worked at the last login",
    PinState.CONFIRMED: "an operator allowed one attempt: the next start uses it",
    PinState.UNTRIED: "not tried yet: the first start tries it once",
    PinState.UNKNOWN: "nothing is known about it",
}
