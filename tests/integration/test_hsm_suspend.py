"""A facility is suspended while real workers sign for it."""

import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from signer.algorithms import Algorithm
from signer.errors import CallError, Reason
from signer.hsm.front.pool import Pool
from signer.model import KeyName, KeyVersion, Suspended
from tests.daemon import until
from tests.integration.hsm_token import SoftToken, all_correct, inputs_for, job, sign

HALTED = Suspended(facilities={"a": "a is suspended"})


@pytest.fixture(scope="module")
def token(tmp_path_factory: pytest.TempPathFactory) -> SoftToken:
    return SoftToken(Path(tmp_path_factory.mktemp("hsm")))


@pytest.fixture(scope="module")
def keys(token: SoftToken) -> dict[str, KeyVersion]:
    """One key of each facility."""
    made = token.make(*[(Algorithm.ES256, 0)] * 3)
    return {
        name: replace(key, key=KeyName(name, "k")) for name, key in zip("abc", made, strict=True)
    }


class Callers:
    """Threads that sign without end for facilities, and what became of it."""

    def __init__(self, pool: Pool, keys: dict[str, KeyVersion]) -> None:
        self._pool = pool
        self._keys = keys
        self._over = threading.Event()
        self.phase = 0  # odd while the facility is known to be suspended
        self.signed = dict.fromkeys(keys, 0)
        self.refused = dict.fromkeys(keys, 0)
        self.late: list[str] = []
        self.reasons: set[Reason] = set()

    def call(self, facility: str) -> None:
        key = self._keys[facility]
        inputs = inputs_for(key, 60)
        while not self._over.is_set():
            phase = self.phase
            try:
                signed = sign(self._pool, job(key, inputs, owner=facility, check_every=64))
            except CallError as error:
                self.reasons.add(error.reason)
                self.refused[facility] += 1
                continue
            self.reasons.update(failure.reason for failure in signed.failures.values())
            self.signed[facility] += sum(map(bool, signed.signatures))
            if phase % 2 and phase == self.phase and any(signed.signatures):
                self.late.append(facility)

    def end(self) -> None:
        self._over.set()

    def more(self, facility: str, counts: dict[str, int]) -> None:
        before = counts[facility]
        until(lambda: counts[facility] > before + 200, f"more of {facility}")


def test_under_load_nothing_leaves_of_it_and_others_go_on(
    token: SoftToken, keys: dict[str, KeyVersion]
) -> None:
    with token.pool(workers=2) as (pool, record), ThreadPoolExecutor(6) as threads:
        callers = Callers(pool, keys)
        calls = [threads.submit(callers.call, facility) for facility in "abcabc"]
        try:
            for _ in range(3):
                callers.more("a", callers.signed)
                pool.suspend(HALTED, [keys["a"]])
                callers.phase += 1
                callers.more("a", callers.refused)
                callers.more("b", callers.signed)
                callers.more("c", callers.signed)
                callers.phase += 1
                pool.suspend(Suspended(), [])
        finally:
            callers.end()
        for call in calls:
            call.result(30)
        assert set(callers.late) == {"b", "c"}, "they signed within a suspension, a did not"
        assert callers.reasons == {Reason.KEY_VERSION_NOT_ACTIVE}
        assert callers.refused["b"] == callers.refused["c"] == 0
        assert record.left == []


def test_what_the_worker_still_signs_is_not_released(
    token: SoftToken, keys: dict[str, KeyVersion]
) -> None:
    inputs = inputs_for(keys["a"], 20_000)
    with token.pool() as (pool, record), ThreadPoolExecutor(2) as threads:
        [slot] = pool._dispatcher.slots
        call = threads.submit(sign, pool, job(keys["a"], inputs, check_every=1000))
        until(lambda: record.counts["chunks"], "some of it has come back")
        os.kill(slot.pid, signal.SIGSTOP)
        until(lambda: len(slot.in_flight) == 2, "chunks are with the worker")
        batch = next(iter(slot.in_flight.values())).portions[0].batch
        before = record.counts["chunks"]
        pool.suspend(HALTED, [keys["a"]])
        left = list(batch.signatures)
        with_worker = len(slot.in_flight)
        os.kill(slot.pid, signal.SIGCONT)
        signed = call.result(30)
        until(lambda: record.counts["chunks"] >= before + with_worker, "they have come back")
        assert signed.signatures == left
        assert {failure.message for failure in signed.failures.values()} == {"a is suspended"}
        assert len(signed.failures) == left.count(b"") > 0
        done = [index for index, signature in enumerate(left) if signature]
        assert all_correct(keys["a"], [inputs[i] for i in done], [left[i] for i in done])
        other = inputs_for(keys["b"], 50)
        assert all_correct(keys["b"], other, sign(pool, job(keys["b"], other)).signatures)
        pool.suspend(Suspended(), [])
        assert all_correct(keys["a"], other, sign(pool, job(keys["a"], other)).signatures)
        assert record.left == []
