"""A caller that leaves in each of the three waits of its request."""

import asyncio
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from signer.audit.format.record import RecordKind
from signer.clock import SystemClock
from signer.hsm.front.chunks import Signed
from signer.hsm.front.pool import Admission
from signer.model import Format, KeyName
from signer.signing.request import BatchRequest
from tests.stand_ins import key_version
from tests.unit.signing.stage import CLIENT, ID, Stage

POLICY = """
roles: {operator: []}
profiles:
  records: {formats: [MESSAGE], algorithms: [ES256], max_batch_items: 100, quotas: ["90 per day"]}
facilities:
  "a": {profile: records, clients: ["spiffe://x/issuer"]}
"""
KEY = KeyName("a", "k")
GONE = {"intent": 0, "reason": "CALLER_GONE"}
CLOSED = [RecordKind.INTENT, RecordKind.INDETERMINATE]
SIGNED = [RecordKind.INTENT, RecordKind.OUTCOME]


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    made = Stage(tmp_path, POLICY, [key_version(key=KEY, cka_id=b"1")])
    yield made
    made.close()


def request() -> BatchRequest:
    deadline = SystemClock().monotonic() + 30
    batch = BatchRequest(CLIENT, KEY, None, Format.MESSAGE, [b"m"] * 4, deadline)
    return batch._replace(request_id=ID)


def begun(stage: Stage) -> "Future[Any]":
    """A call in progress; cancelling it is what gRPC does when its caller leaves."""
    return asyncio.run_coroutine_threadsafe(stage.engine.sign_batch(request()), stage.loop.loop)


def test_while_the_intent_is_written_it_is_closed_and_nothing_is_signed(stage: Stage) -> None:
    stage.disk.gate.clear()
    call = begun(stage)
    assert stage.disk.waiting.wait(30)
    call.cancel()
    stage.loop.run(asyncio.sleep(0.01))
    stage.disk.gate.set()
    stage.wait_for(CLOSED)
    assert stage.log.records(1, 1)[0].fields == GONE
    assert stage.hsm.signed == 0
    assert not stage.sign(request()).failures
    assert stage.hsm.signed == 4


def test_while_the_intent_waits_for_the_disk_it_is_withdrawn(stage: Stage) -> None:
    stage.disk.gate.clear()
    first = begun(stage)
    assert stage.disk.waiting.wait(30)
    other = asyncio.run_coroutine_threadsafe(
        stage.engine.sign_batch(request()._replace(request_id="")), stage.loop.loop
    )
    stage.loop.run(asyncio.sleep(0.01))
    other.cancel()
    stage.loop.run(asyncio.sleep(0.01))
    stage.disk.gate.set()
    assert not first.result(30).failures
    stage.wait_for(SIGNED)
    assert stage.hsm.signed == 4


def test_while_the_hsm_signs_what_is_unsigned_is_dropped_and_the_log_says_so(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    dropped: list[Admission] = []

    async def hang(admission: Admission) -> Signed:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            dropped.append(admission)
            raise
        raise AssertionError

    monkeypatch.setattr(stage.hsm, "sign", hang)
    call = begun(stage)
    stage.wait_for([RecordKind.INTENT])
    stage.loop.run(asyncio.sleep(0.01))
    call.cancel()
    stage.wait_for(CLOSED)
    assert stage.log.records(1, 1)[0].fields == GONE
    assert len(dropped) == 1
    monkeypatch.undo()
    assert not stage.sign(request()).failures


def test_while_the_outcome_is_written_it_stays_and_a_repetition_finds_it(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    sign = stage.hsm.sign

    async def slow(admission: Admission) -> Signed:
        stage.disk.waiting.clear()
        stage.disk.gate.clear()
        return await sign(admission)

    monkeypatch.setattr(stage.hsm, "sign", slow)
    call = begun(stage)
    assert stage.disk.waiting.wait(30)
    call.cancel()
    monkeypatch.undo()
    repeated = begun(stage)  # while the outcome is not durable yet
    stage.loop.run(asyncio.sleep(0.01))
    assert not repeated.done()
    stage.disk.gate.set()
    again = repeated.result(30)
    assert (len(again.outputs), stage.hsm.signed) == (4, 4)
    assert stage.kinds == SIGNED


def test_the_end_waits_until_what_was_cut_off_is_on_record(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = asyncio.Event()

    async def slow(_: Admission) -> Signed:
        try:
            await asyncio.Event().wait()
        finally:
            await late.wait()  # the call takes a while to end
        raise AssertionError

    monkeypatch.setattr(stage.hsm, "sign", slow)
    call = begun(stage)
    stage.wait_for([RecordKind.INTENT])
    stage.loop.run(asyncio.sleep(0.01))
    call.cancel()
    stage.loop.run(stage.engine.settle(0.05))  # not for longer than it may
    assert stage.kinds == [RecordKind.INTENT]
    settled = asyncio.run_coroutine_threadsafe(stage.engine.settle(30), stage.loop.loop)
    stage.loop.call(late.set)
    settled.result(30)
    stage.log.close()  # nothing that comes later would be recorded
    assert stage.kinds == CLOSED
    stage.loop.run(stage.engine.settle(30))
