"""A call that does not return: in one worker, which is killed while others go on, and in all."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from signer.algorithms import Algorithm
from signer.errors import Reason
from signer.hsm.latch import start_lock
from signer.hsm.spec import FailureKind, KeyLookup
from signer.model import KeyVersion
from tests.daemon import until
from tests.fault.shim import Action, Shim
from tests.integration.hsm_token import SoftToken, all_correct, inputs_for, job, sign

SPANS = {"one": 1, "all": 2}
"""How many of two workers hang."""
LIMIT = 2.0
"""Seconds after which a call of this test counts as hung."""


@pytest.fixture
def token(tmp_path: Path, shim_module: Path, shim: Shim) -> SoftToken:
    made = SoftToken(tmp_path / "hsm")
    environment = {**made.settings.environment, **shim.environment}
    made.settings = made.settings.model_copy(
        update={"module": shim_module, "environment": environment}
    )
    return made


@pytest.fixture
def key(token: SoftToken) -> KeyVersion:
    [made] = token.make((Algorithm.ES256, 0))
    return made


@pytest.mark.parametrize(
    ("function", "span"),
    [
        pytest.param(function, span, marks=() if function == "C_Sign" else pytest.mark.torture)
        for function in ("C_SignInit", "C_Sign", "C_CopyObject", "C_DestroyObject")
        for span in SPANS
    ],
)
def test_a_hang_on_the_way_of_a_chunk(
    token: SoftToken, key: KeyVersion, shim: Shim, function: str, span: str
) -> None:
    inputs = inputs_for(key, 200)
    with token.pool(workers=2, hang=LIMIT) as (pool, record):
        for _ in range(4):
            assert all_correct(key, inputs, sign(pool, job(key, inputs)).signatures)
        rule = shim.on(function, times=SPANS[span], action=Action.HANG)
        if function in {"C_CopyObject", "C_DestroyObject"}:
            pool.drop([key])
        signed = sign(pool, job(key, inputs))
        if span == "one":
            assert all_correct(key, inputs, signed.signatures)
        for failure in signed.failures.values():
            assert failure.reason is Reason.HSM_UNAVAILABLE
        until(lambda: rule.acted, "a call hangs")
        shim.clear()
        until(lambda: pool.serving == 2, "both serve")
        assert all_correct(key, inputs, sign(pool, job(key, inputs)).signatures)
        assert {cause for cause, _ in record.left} <= {FailureKind.HANG}
        if span == "one":
            assert len(record.left) <= 1


def test_what_a_hanging_worker_does_not_read_keeps_nobody_waiting(
    token: SoftToken, key: KeyVersion, shim: Shim
) -> None:
    """Messages far beyond the buffer of its socket wait for it, until it is killed."""
    [large] = token.make((Algorithm.EDDSA, 0))
    messages = [bytes([number]) * (2 << 20) for number in range(6)]
    with (
        token.pool(workers=2, hang=60.0) as (pool, record),
        ThreadPoolExecutor(len(messages)) as threads,
    ):
        assert all_correct(
            key, inputs_for(key, 20), sign(pool, job(key, inputs_for(key, 20))).signatures
        )
        rule = shim.on("C_Sign", times=1, action=Action.HANG)
        calls = [threads.submit(sign, pool, job(large, [message])) for message in messages]
        until(lambda: rule.acted, "one worker hangs")
        for _ in range(50):
            one = inputs_for(key, 1)
            assert all_correct(key, one, sign(pool, job(key, one)).signatures)
        assert not record.left, "the worker hangs all the time"
        assert not all(call.done() for call in calls)
        shim.clear()
        for message, call in zip(messages, calls, strict=True):
            assert all_correct(large, [message], call.result().signatures)


@pytest.mark.parametrize(
    ("function", "span"),
    [
        pytest.param(function, span, marks=pytest.mark.torture)
        for function in (
            "C_Initialize",
            "C_GetSlotList",
            "C_GetTokenInfo",
            "C_OpenSession",
            "C_Login",
            "C_FindObjectsInit",
            "C_FindObjects",
            "C_GetAttributeValue",
        )
        for span in SPANS
    ],
)
def test_a_hang_of_a_start(
    token: SoftToken, key: KeyVersion, shim: Shim, function: str, span: str
) -> None:
    inputs = inputs_for(key, 50)
    with token.pool(workers=2, start=10.0, key_lookup=KeyLookup.INDEX) as (pool, record):
        rule = shim.on(function, times=SPANS[span], action=Action.HANG)
        workers = pool._dispatcher.slots if span == "all" else pool._dispatcher.slots[:1]
        with start_lock(token.state, token.settings.label):
            for each in workers:
                assert each.process is not None
                each.process.kill()
        until(lambda: rule.acted, "a call hangs")
        if span == "one":
            signed = sign(pool, job(key, inputs))
            assert all_correct(key, inputs, signed.signatures), "the other one signs"
        until(
            lambda: [cause for cause, _ in record.left].count(FailureKind.HANG) >= SPANS[span],
            "they are killed for it",
        )
        shim.clear()
        until(lambda: pool.serving == 2, "both serve")
        assert all_correct(key, inputs, sign(pool, job(key, inputs)).signatures)
