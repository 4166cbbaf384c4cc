"""Every return code at every call of a worker: once, three times, always, through a real pool.

Whatever one returns, items end signed or with the right failure, no more logins
happen than are allowed, and the pool serves again when the module does.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from signer.algorithms import Algorithm
from signer.errors import Code, Reason
from signer.hsm.front.chunks import Signed
from signer.hsm.front.dispatcher import NOT_SERVING
from signer.hsm.front.pool import Pool
from signer.hsm.latch import start_lock
from signer.hsm.spec import FailureKind
from signer.model import KeyVersion
from tests.daemon import until
from tests.fault.shim import ALWAYS, Shim
from tests.integration.hsm_token import Record, SoftToken, all_correct, inputs_for, job, sign

LOST, BUSY, FATAL = FailureKind.SESSION_LOST, FailureKind.BUSY, FailureKind.MODULE_FATAL
CODES = {
    0x002: BUSY,  # CKR_HOST_MEMORY
    0x005: FATAL,  # CKR_GENERAL_ERROR
    0x006: FATAL,  # CKR_FUNCTION_FAILED
    0x007: FATAL,  # CKR_ARGUMENTS_BAD
    0x020: FATAL,  # CKR_DATA_INVALID
    0x021: FATAL,  # CKR_DATA_LEN_RANGE
    0x030: FATAL,  # CKR_DEVICE_ERROR
    0x031: BUSY,  # CKR_DEVICE_MEMORY
    0x032: LOST,  # CKR_DEVICE_REMOVED
    0x050: FATAL,  # CKR_FUNCTION_CANCELED
    0x090: FATAL,  # CKR_OPERATION_ACTIVE
    0x091: FATAL,  # CKR_OPERATION_NOT_INITIALIZED
    0x0B0: LOST,  # CKR_SESSION_CLOSED
    0x0B1: BUSY,  # CKR_SESSION_COUNT
    0x0B3: LOST,  # CKR_SESSION_HANDLE_INVALID
    0x0E0: LOST,  # CKR_TOKEN_NOT_PRESENT
    0x101: LOST,  # CKR_USER_NOT_LOGGED_IN
    0x150: FATAL,  # CKR_BUFFER_TOO_SMALL
    0x190: FATAL,  # CKR_CRYPTOKI_NOT_INITIALIZED
    0x7777: FATAL,  # of no version of the standard
    0x80000001: FATAL,  # a vendor's own
}
"""Codes, and why a worker leaves that meets one of them."""
REFUSED = (0x62, 0x63, 0x68, 0x70, 0x71)
"""Codes by which C_SignInit refuses one key, and the session goes on."""
STALE = (0x60, 0x82)
"""Codes by which C_SignInit says that the handle is not valid: the key is found again, once."""
SPANS = {"once": 1, "thrice": 3, "always": ALWAYS}
STARTS = (
    "C_Initialize",
    "C_GetSlotList",
    "C_GetSlotInfo",
    "C_GetTokenInfo",
    "C_OpenSession",
    "C_FindObjectsInit",
    "C_FindObjects",
    "C_GetAttributeValue",
)
"""Calls that a worker makes when it opens its token, beside C_Login."""
START_CODES = (0x002, 0x005, 0x030, 0x032, 0x0B3, 0x0E0, 0x101, 0x80000001)
AWAY = ("C_GetSlotList", "C_GetSlotInfo", "C_GetTokenInfo")
"""Where CKR_TOKEN_NOT_PRESENT hides the token before it is opened."""


def cases(functions: Sequence[str], codes: Iterable[int], quick: Collection[int]) -> list[Any]:
    """Every code at every function for every span; what is not quick is for ``make torture``."""
    return [
        pytest.param(
            function,
            code,
            span,
            marks=() if span == "once" and code in quick else pytest.mark.torture,
            id=f"{function}-{code:#x}-{span}",
        )
        for function in functions
        for code in codes
        for span in SPANS
    ]


class Stage(NamedTuple):
    """A pool of one worker behind the shim, and its key."""

    pool: Pool
    record: Record
    shim: Shim
    token: SoftToken
    key: KeyVersion

    def sign(self, count: int = 2) -> Signed:
        """Signs; whatever has a signature has the right one, whatever has none a failure."""
        inputs = inputs_for(self.key, count)
        signed = sign(self.pool, job(self.key, inputs))
        good = [index for index in range(count) if index not in signed.failures]
        assert all_correct(
            self.key, [inputs[index] for index in good], [signed.signatures[i] for i in good]
        )
        for failure in signed.failures.values():
            assert failure.reason is Reason.HSM_UNAVAILABLE
            assert failure.reason.code is Code.UNAVAILABLE
            assert failure.retry_after
        return signed

    def serves(self) -> bool:
        return self.pool.serving == 1 and not self.sign().failures

    def restart(self) -> None:
        """Kills the worker, not in its login, and waits until it has gone."""
        [slot] = self.pool._dispatcher.slots
        before = len(self.record.left)
        with start_lock(self.token.state, self.token.settings.label):
            assert slot.process is not None
            slot.process.kill()
        until(lambda: len(self.record.left) > before, "it is gone")

    def causes(self, since: int) -> list[str]:
        """Why workers have left, but for the one that was killed."""
        return [cause for cause, _ in self.record.left[since:] if cause != FailureKind.DIED]


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory, shim_module: Path) -> Iterator[Stage]:
    shim = Shim(tmp_path_factory.mktemp("rules") / "shim")
    token = SoftToken(tmp_path_factory.mktemp("hsm"), key_lookup="index")
    environment = {**token.settings.environment, **shim.environment}
    token.settings = token.settings.model_copy(
        update={"module": shim_module, "environment": environment}
    )
    [key] = token.make((Algorithm.ES256, 0))
    with token.pool() as (pool, record):
        yield Stage(pool, record, shim, token, key)


@pytest.fixture
def stage(serving: Stage) -> Iterator[Stage]:
    """It serves, and has to serve again when the rules are gone."""
    until(serving.serves, "it serves")
    yield serving
    serving.shim.clear()
    until(serving.serves, "it serves again")


def logins(stage: Stage) -> int:
    return stage.shim.calls["C_Login"]


# --- the way of a chunk ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "code", "span"), cases(("C_SignInit", "C_Sign"), CODES, (0x30, 0xB3, 0x80000001))
)
def test_a_code_that_ends_the_session_costs_no_signed_item(
    stage: Stage, function: str, code: int, span: str
) -> None:
    since, tried = len(stage.record.left), logins(stage)
    rule = stage.shim.on(function, code=code, times=SPANS[span])
    signed = stage.sign()
    assert bool(signed.failures) == (span != "once"), "two workers may die over an item"
    # One, where the machine is so busy that no other worker has started within seconds; more,
    # where a canary met the code before the rule was gone.
    deaths = 2 - (NOT_SERVING in signed.failures.values())
    assert rule.acted == 1 if span == "once" else rule.acted >= deaths
    stage.shim.clear()
    until(stage.serves, "it serves again")
    seen = stage.causes(since)
    assert set(seen) == {CODES[code]}
    assert len(seen) == logins(stage) - tried == rule.acted


@pytest.mark.parametrize(
    ("function", "code", "span"), cases(("C_SignInit",), (*REFUSED, *STALE), (0x63, 0x60))
)
def test_a_refused_key_ends_no_session(stage: Stage, function: str, code: int, span: str) -> None:
    since, tried = len(stage.record.left), logins(stage)
    stage.shim.on(function, code=code, times=SPANS[span])
    found_again = code in STALE and span == "once"
    assert bool(stage.sign().failures) != found_again
    stage.shim.clear()
    assert not stage.sign().failures
    assert stage.causes(since) == []
    assert logins(stage) == tried


@pytest.mark.parametrize(
    ("function", "code", "span"), cases(("C_CopyObject",), [*CODES, 0x60, 0x82, 0x54], (0x31, 0x30))
)
def test_a_copy_that_cannot_be_made_costs_no_item(
    stage: Stage, function: str, code: int, span: str
) -> None:
    since, tried = len(stage.record.left), logins(stage)
    stage.pool.drop([stage.key])
    rule = stage.shim.on(function, code=code, times=SPANS[span])
    signed = stage.sign()
    ends = CODES.get(code, BUSY) is not BUSY
    assert rule.acted
    # A handle that is not valid is the key's own: that is found again, once.
    assert bool(signed.failures) == ((ends or code in STALE) and span != "once")
    stage.shim.clear()
    until(stage.serves, "it serves again")
    assert set(stage.causes(since)) == ({CODES[code]} if ends else set())
    assert logins(stage) - tried == len(stage.causes(since))
    if code not in CODES:
        stage.restart()  # a module that does not copy is not asked again


@pytest.mark.parametrize(
    ("function", "code", "span"), cases(("C_DestroyObject",), [*CODES, 0x60, 0x82], (0x82, 0xB3))
)
def test_a_copy_that_cannot_be_destroyed_ends_with_its_session(
    stage: Stage, function: str, code: int, span: str
) -> None:
    since = len(stage.record.left)
    until(lambda: not stage.sign().failures, "it has a copy")
    rule = stage.shim.on(function, code=code, times=SPANS[span])
    stage.pool.drop([stage.key])
    until(lambda: rule.acted, "it is dropped")
    if code in CODES:
        until(lambda: stage.causes(since), "the worker leaves")
        assert stage.causes(since) == [CODES[code]]
    stage.shim.clear()
    until(stage.serves, "it serves again")
    assert len(stage.causes(since)) == (code in CODES)


# --- the start ------------------------------------------------------------------------------


@pytest.mark.parametrize(("function", "code", "span"), cases(STARTS, START_CODES, (0x30,)))
def test_a_start_that_fails_is_tried_again(
    stage: Stage, function: str, code: int, span: str
) -> None:
    since, tried = len(stage.record.left), logins(stage)
    rule = stage.shim.on(function, code=code, times=SPANS[span])
    stage.restart()
    failed = 1 if span == "once" else 3
    if function == "C_GetTokenInfo" and span == "thrice":
        failed = 2  # it is called for both slots of SoftHSM
    until(lambda: rule.acted >= min(SPANS[span], 3), "the calls fail")
    until(lambda: len(stage.causes(since)) >= failed, "starts fail")
    if span == "always":
        until(lambda: stage.sign().failures, "items fail at once")
        until(lambda: stage.pool.reason, "it says why")
    stage.shim.clear()
    until(stage.serves, "it serves again")
    expected = CODES[code]
    if code == 0x0E0 and function == "C_GetTokenInfo":
        expected = FailureKind.TOKEN_ABSENT
    if function == "C_Initialize":
        expected = FATAL
    assert set(stage.causes(since)) <= {expected}
    # A start that fails after its login has logged in; the last one serves.
    assert logins(stage) - tried <= len(stage.causes(since)) + 1
