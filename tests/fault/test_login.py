"""One attempt of a PIN that has never worked, whatever the token returns; a few of one that has."""

import shutil
from functools import partial
from pathlib import Path

import pytest

from signer.errors import OperatorError
from signer.events import LoginEnded
from signer.hsm.front.admin import AdminWorkers
from signer.hsm.latch import MAX_FAILED_LOGINS, release
from signer.hsm.spec import FailureKind
from signer.tools.dev import softhsm
from tests.daemon import Daemon, until
from tests.fault.shim import Action, Shim
from tests.integration.hsm_token import Record, SoftToken
from tests.stand_ins import Recorder
from tests.torture import long

AMBIGUOUS = (0x005, 0x006, 0x030, 0x102, 0x80000001)
"""Codes that some HSMs return for a wrong PIN: general error, function failed, device error,
PIN not initialised, a vendor's own."""
AWAY = (0x032, 0x0E0, 0x0B3)
"""CKR_DEVICE_REMOVED, CKR_TOKEN_NOT_PRESENT, CKR_SESSION_HANDLE_INVALID: no PIN was looked at."""
COUNT_LOW, FINAL_TRY, LOCKED, TO_BE_CHANGED, SO_LOCKED = (
    0x10000,
    0x20000,
    0x40000,
    0x80000,
    1 << 22,
)
"""CKF_USER_PIN_COUNT_LOW and so on."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, shim_module: Path) -> SoftToken:
    token = SoftToken(tmp_path_factory.mktemp("hsm"))
    token.settings = token.settings.model_copy(update={"module": shim_module})
    return token


@pytest.fixture
def token(made: SoftToken, shim: Shim) -> SoftToken:
    """A token on which no PIN has been tried."""
    environment = {**made.settings.environment, **shim.environment}
    made.settings = made.settings.model_copy(update={"environment": environment})
    shutil.rmtree(made.state)
    made.state.mkdir()
    return made


def works(token: SoftToken) -> None:
    """Has the PIN work once."""
    with token.pool():
        pass


def latched(record: Record, times: int = 1) -> bool:
    return sum(cause == FailureKind.PIN_LATCHED for cause, _ in record.left) >= times


def counted(record: Record, shim: Shim, before: int = 0) -> bool:
    """Whether every attempt has been reported once."""
    return len(record.logins) == shim.calls["C_Login"] - before


# --- a PIN that has never worked ------------------------------------------------------------


@pytest.mark.parametrize(
    "code",
    [
        *(0x005, 0x80000001, 0x0E0, 0x0A0),
        *long(0x006, 0x030, 0x102, 0x032, 0x0B3, 0x002, 0x007, 0x050, 0x100, 0x190, 0x0A4, 0x7777),
    ],
)
def test_a_first_login_is_tried_once_whatever_it_returns(
    token: SoftToken, shim: Shim, code: int
) -> None:
    shim.on("C_Login", code=code)
    with token.pool(workers=2, serving=False) as (pool, record):
        until(lambda: latched(record, 2), "workers start again")
        assert pool.pin_latched
        assert shim.calls["C_Login"] == 1
        verdict = FailureKind.PIN_REJECTED if 0xA0 <= code <= 0xA4 else FailureKind.LOGIN_FAILED
        assert record.logins == [verdict]
        [text] = [text for cause, text in record.left if cause == verdict]
        assert f"C_Login returned {code:#010x}" in text
        shim.clear()
        assert release(token.state, softhsm.LABEL)
        until(lambda: pool.serving, "it serves")
        assert counted(record, shim)


@pytest.mark.parametrize("action", [Action.SEGFAULT, *long(Action.ABORT, Action.HANG)])
def test_a_worker_that_does_not_return_from_its_first_login_has_tried(
    token: SoftToken, shim: Shim, action: Action
) -> None:
    shim.on("C_Login", action=action)
    with token.pool(start=10.0, serving=False) as (_, record):
        until(lambda: latched(record, 2), "workers start again")
        assert shim.calls["C_Login"] == 1
        assert record.logins == [FailureKind.LOGIN_FAILED]


@pytest.mark.parametrize("times", [2, pytest.param(20, marks=pytest.mark.torture)])
@pytest.mark.parametrize("code", [None, 0x005, *long(0x006, 0x030, 0x80000001)])
def test_no_restart_tries_a_wrong_pin_again(
    token: SoftToken, shim: Shim, code: int | None, times: int
) -> None:
    pin = token.settings.pin_file.read_text()
    if code is None:
        token.settings.pin_file.write_text("wrong-0123")
    else:
        shim.on("C_Login", code=code)
    for _ in range(times):
        with token.pool(workers=2, serving=False) as (_, record):
            until(partial(latched, record), "workers start")
    assert shim.calls["C_Login"] == 1
    token.settings.pin_file.write_text(pin)
    shim.clear()
    release(token.state, softhsm.LABEL)
    works(token)  # or the token goes on counting a wrong one


def test_what_fails_before_the_login_tries_no_pin(token: SoftToken, shim: Shim) -> None:
    shim.on("C_OpenSession", times=2, code=0x030)
    with token.pool() as (_, record):
        assert [cause for cause, _ in record.left] == [FailureKind.MODULE_FATAL] * 2
        assert record.logins == ["ok"]
    assert shim.calls["C_Login"] == 1


# --- a PIN that has worked ------------------------------------------------------------------


@pytest.mark.parametrize("code", [0x005, *long(*AMBIGUOUS[1:], *AWAY)])
def test_a_pin_that_has_worked_survives_a_few_failures(
    token: SoftToken, shim: Shim, code: int
) -> None:
    works(token)
    before = shim.calls["C_Login"]
    shim.on("C_Login", times=3, code=code)
    with token.pool() as (_, record):
        assert record.logins == [FailureKind.LOGIN_FAILED] * 3 + ["ok"]
        assert counted(record, shim, before)


def test_a_pin_that_has_worked_is_tried_a_bounded_number_of_times(
    token: SoftToken, shim: Shim
) -> None:
    works(token)
    before = shim.calls["C_Login"]
    shim.on("C_Login", code=0x005)
    with token.pool(workers=2, serving=False) as (pool, record):
        until(lambda: latched(record, 2), "the PIN is latched")
        assert shim.calls["C_Login"] - before == MAX_FAILED_LOGINS
        assert release(token.state, softhsm.LABEL)
        until(lambda: shim.calls["C_Login"] - before > MAX_FAILED_LOGINS, "one more attempt")
        seen = len(record.left)
        until(lambda: latched(record, 4) and len(record.left) > seen + 1, "and not two")
        assert shim.calls["C_Login"] - before == MAX_FAILED_LOGINS + 1
        shim.clear()
        assert release(token.state, softhsm.LABEL)
        until(lambda: pool.serving, "it serves")
        assert counted(record, shim, before)


@pytest.mark.parametrize("action", [Action.SEGFAULT, *long(Action.ABORT)])
def test_a_worker_that_dies_in_a_login_has_tried_a_pin_that_has_worked(
    token: SoftToken, shim: Shim, action: Action
) -> None:
    works(token)
    before = shim.calls["C_Login"]
    shim.on("C_Login", action=action)
    with token.pool(serving=False) as (pool, record):
        until(lambda: latched(record), "the PIN is latched")
        assert shim.calls["C_Login"] - before == MAX_FAILED_LOGINS
        shim.clear()
        assert release(token.state, softhsm.LABEL)
        until(lambda: pool.serving, "it serves")
        assert counted(record, shim, before)


def test_a_token_that_is_away_costs_no_attempt_of_a_pin_that_has_worked(
    token: SoftToken, shim: Shim
) -> None:
    works(token)
    rule = shim.on("C_Login", code=0x0E0)
    with token.pool(serving=False) as (pool, record):
        until(lambda: rule.acted > MAX_FAILED_LOGINS, "it is tried more often")
        assert not latched(record)
        shim.clear()
        until(lambda: pool.serving, "it serves by itself")


# --- flags ----------------------------------------------------------------------------------


@pytest.mark.parametrize("worked", [False, True])
@pytest.mark.parametrize("flag", [LOCKED, FINAL_TRY])
def test_a_token_at_its_last_try_is_left_alone(
    token: SoftToken, shim: Shim, flag: int, worked: bool
) -> None:
    if worked:
        works(token)
    before = shim.calls["C_Login"]
    shim.on("C_GetTokenInfo", action=Action.TOKEN_FLAGS, value=flag)
    with token.pool(serving=False) as (pool, record):
        until(lambda: len(record.left) >= 2, "workers start again")
        assert {cause for cause, _ in record.left} == {FailureKind.PIN_LOCKED}
        release(token.state, softhsm.LABEL)  # no operator can allow it here
        seen = len(record.left)
        until(lambda: len(record.left) > seen, "workers start again")
        assert shim.calls["C_Login"] == before
        shim.clear()
        until(lambda: pool.serving, "it serves when the flag is gone")


def test_a_token_that_counts_a_wrong_pin_gets_one_that_has_worked_or_is_confirmed(
    token: SoftToken, shim: Shim
) -> None:
    shim.on("C_GetTokenInfo", action=Action.TOKEN_FLAGS, value=COUNT_LOW)
    with token.pool(serving=False) as (pool, record):
        until(lambda: len(record.left) >= 2, "workers start again")
        assert {cause for cause, _ in record.left} == {FailureKind.PIN_DOUBTFUL}
        assert shim.calls["C_Login"] == 0
    shim.clear()
    works(token)
    shim.on("C_GetTokenInfo", action=Action.TOKEN_FLAGS, value=COUNT_LOW)
    with token.pool() as (pool, record):
        assert record.left == []
    shutil.rmtree(token.state)
    token.state.mkdir()
    with token.pool(serving=False) as (pool, record):
        shim.clear()
        shim.on("C_Login", times=1, code=0x005)
        until(lambda: latched(record), "a first attempt is latched")
        shim.on("C_GetTokenInfo", action=Action.TOKEN_FLAGS, value=COUNT_LOW)
        assert release(token.state, softhsm.LABEL)
        until(lambda: pool.serving, "an operator has confirmed one attempt")


@pytest.mark.parametrize("flag", [TO_BE_CHANGED, SO_LOCKED])
def test_other_flags_forbid_no_login(token: SoftToken, shim: Shim, flag: int) -> None:
    shim.on("C_GetTokenInfo", action=Action.TOKEN_FLAGS, value=flag)
    with token.pool() as (_, record):
        assert record.logins == ["ok"]


# --- every attempt is counted ---------------------------------------------------------------


def test_the_logins_of_administrative_workers_are_counted(token: SoftToken, shim: Shim) -> None:
    recorder = Recorder()
    admins = AdminWorkers([token.settings], token.state, recorder.events)
    with admins.open(softhsm.LABEL) as admin:
        assert admin.inventory() == []
    for rule in ({"code": 0x005}, {"action": Action.SEGFAULT}):
        shim.on("C_Login", times=1, **rule)
        with pytest.raises(OperatorError), admins.open(softhsm.LABEL):
            pytest.fail("it opened")
        shim.clear()
    failed = FailureKind.LOGIN_FAILED
    assert [each.result for each in recorder.of(LoginEnded)] == ["ok", failed, failed]
    assert shim.calls["C_Login"] == 3


def test_the_metric_of_a_daemon_counts_every_call(
    daemon: Daemon, shim_module: Path, shim: Shim
) -> None:
    shutil.rmtree(daemon.folder / "state")
    daemon.configure(token={"module": str(shim_module), "environment": shim.environment})
    shim.on("C_Login", code=0x80000001)
    daemon.start(ready=False)
    until(lambda: daemon.metric("signer_pin_latched") == 1, "the PIN is latched")
    assert "unlatch" in daemon.reason()
    assert daemon.metric("signer_login_attempts_total", result="login_failed") == 1
    assert shim.calls["C_Login"] == 1
    shim.clear()
    assert daemon.run("token", "unlatch").code == 0
    until(lambda: not daemon.reason(), "it serves")
    assert daemon.sign() == {"ok": 3}
    until(
        lambda: daemon.metric("signer_login_attempts_total") == shim.calls["C_Login"],
        "every attempt is counted",
    )
