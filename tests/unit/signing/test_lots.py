"""Small calls that come together: signed as one lot, and each answered by itself."""

import asyncio
import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from signer.audit.format.record import RecordError, RecordKind
from signer.clock import SystemClock
from signer.errors import CallError, Failure, Reason
from signer.event_loop import FIRST_ITEMS
from signer.events import QuotaRefused, StagesEnded
from signer.hsm.front.chunks import LATE, Signed, SignJob
from signer.hsm.front.pool import Admission
from signer.model import Format, KeyName
from signer.signing import lots
from signer.signing.lots import MOST_CALLS, Call
from signer.signing.messages import Messages
from signer.signing.request import BatchRequest, BatchResult
from tests.stand_ins import key_version
from tests.unit.signing.stage import CLIENT, ID, Stage

POLICY = """
roles: {operator: []}
profiles:
  records:
    {formats: [MESSAGE, JWS], algorithms: [ES256], max_batch_items: 3, quotas: ["40 per day"]}
facilities:
  "a": {profile: records, clients: ["spiffe://x/issuer", "spiffe://x/other"]}
  "b": {profile: records, clients: ["spiffe://x/issuer"]}
"""
KEY = KeyName("a", "k")
KEYS = [key_version(key=KEY, cka_id=b"1"), key_version(key=KeyName("b", "k"), cka_id=b"2")]
Ended = list[BatchResult | BaseException]


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    made = Stage(tmp_path, POLICY, KEYS)
    yield made
    made.close()


@pytest.fixture
def jobs(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> list[SignJob]:
    """The jobs that the HSM has signed."""
    signed: list[SignJob] = []
    sign = stage.hsm.sign

    async def watched(admission: Admission) -> Signed:
        signed.append(admission.job)
        return await sign(admission)

    monkeypatch.setattr(stage.hsm, "sign", watched)
    return signed


DEADLINE = SystemClock().monotonic() + 3600


def request(number: int = 0, items: int = 1, **changed: Any) -> BatchRequest:
    payloads = [b"%d-%d" % (number, item) for item in range(items)]
    made = BatchRequest(CLIENT, KEY, None, Format.MESSAGE, payloads, DEADLINE)
    return made._replace(request_id=f"{ID[:-2]}{number:02d}", **changed)


def together(stage: Stage, *requests: BatchRequest) -> Ended:
    """Signs what comes in one round of the event loop."""

    async def all_of_them() -> Ended:
        calls = [stage.engine.sign_batch(each) for each in requests]
        return await asyncio.gather(*calls, return_exceptions=True)

    return stage.loop.run(all_of_them())


def results(ended: Ended) -> list[BatchResult]:
    return [each for each in ended if isinstance(each, BatchResult)]


def test_calls_that_are_alike_are_one_job_and_keep_their_own_records_and_answers(
    stage: Stage, jobs: list[SignJob]
) -> None:
    asked = [request(0), request(1, items=3), request(2, items=2)]
    signed = results(together(stage, *asked))
    [job] = jobs
    assert (len(job.inputs), job.cuts) == (6, [1, 4])
    assert [len(result.outputs) for result in signed] == [1, 3, 2]
    records = stage.log.records(0, 10)
    assert [record.kind for record in records] == [RecordKind.INTENT] * 3 + [RecordKind.OUTCOME] * 3
    for each, result, intent, outcome in zip(asked, signed, records, records[3:], strict=False):
        assert (intent.fields["request_id"], intent.fields["asked"]) == (
            each.request_id,
            len(each.payloads),
        )
        assert (result.audit_record, outcome.fields["intent"]) == (intent.seq, intent.seq)
        assert outcome.column is not None
        assert outcome.column.data == b"".join(result.outputs)
    assert stage.left("a") == 34
    # Repeated in another order, some with others that are new: the same bytes, and no new record.
    again = results(together(stage, asked[2], request(3), asked[0], asked[1]))
    assert [again[2].outputs, again[3].outputs, again[0].outputs] == [r.outputs for r in signed]
    assert stage.left("a") == 33


def test_what_differs_is_signed_apart(stage: Stage, jobs: list[SignJob]) -> None:
    asked = [
        request(0),
        request(1, key=KeyName("b", "k")),
        request(2, principal="spiffe://x/other"),
        request(3, version=1),
        request(4, format=Format.JWS, payloads=[b"{}"]),
        request(5, deadline=DEADLINE + 60),
        request(6, deadline=SystemClock().monotonic() + 0.5),
        request(7, payloads=[b"x" * 70_000]),
    ]
    assert len(results(together(stage, *asked))) == len(asked)
    assert [len(job.inputs) for job in jobs] == [1] * len(asked)


def test_large_lots_are_several(stage: Stage, jobs: list[SignJob]) -> None:
    assert len(results(together(stage, *map(request, range(MOST_CALLS + 3))))) == MOST_CALLS + 3
    assert sorted(len(job.inputs) for job in jobs) == [3, MOST_CALLS]


def test_one_id_that_comes_twice_is_signed_once(stage: Stage) -> None:
    first, second = results(together(stage, request(), request()))
    assert first == second
    assert stage.hsm.signed == 1
    ended = together(stage, request(1), request(1, payloads=[b"another"]))
    [refused] = [each for each in ended if isinstance(each, CallError)]
    assert refused.reason is Reason.REQUEST_ID_REUSED
    assert stage.hsm.signed == 2


def test_what_refuses_one_call_refuses_no_other(stage: Stage) -> None:
    ended = together(stage, request(0), request(1, items=4), request(2))
    assert [isinstance(each, BatchResult) for each in ended] == [True, False, True]
    assert stage.left("a") == 38
    bad = request(4, format=Format.JWS, payloads=[b"{}", b"not JSON", b"{}"])
    good = request(5, format=Format.JWS, payloads=[b"{}"])
    first, second = results(together(stage, bad, good))
    assert first.failures.keys() == {1}
    assert [bool(output) for output in first.outputs] == [True, False, True]
    assert (second.failures, len(second.outputs)) == ({}, 1)
    [intent, other] = [r for r in stage.log.records(4, 2) if r.kind is RecordKind.INTENT]
    assert (intent.fields["failed"], other.fields["failed"]) == ({"PAYLOAD_INVALID": b"\2"}, {})


def test_a_call_of_which_every_item_failed_has_no_record(stage: Stage) -> None:
    bad = request(0, format=Format.JWS, payloads=[b"-"])
    good = request(1, format=Format.JWS, payloads=[b"{}"])
    first, second = results(together(stage, bad, good))
    assert (first.audit_record, list(first.failures), first.outputs) == (None, [0], [b""])
    assert (second.audit_record, second.failures) == (0, {})


def test_a_quota_is_used_up_by_those_for_which_it_has_room(stage: Stage) -> None:
    results(together(stage, *(request(number, items=3) for number in range(12))))
    ended = together(stage, *(request(20 + number, items=2) for number in range(4)))
    refused = [each for each in ended if isinstance(each, CallError)]
    assert [each.reason for each in refused] == [Reason.QUOTA_EXCEEDED] * 2
    assert (stage.left("a"), stage.hsm.signed) == (0, 40)


def test_an_hsm_that_refuses_a_lot_may_take_some_of_its_calls(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    admit = stage.hsm.admit

    def one_item(job: SignJob) -> Admission:
        if len(job.inputs) > 1:
            raise CallError(Reason.OVERLOADED, "full", retry_after=1)
        return admit(job)

    monkeypatch.setattr(stage.hsm, "admit", one_item)
    ended = together(stage, request(0), request(1, items=2), request(2))
    assert [isinstance(each, BatchResult) for each in ended] == [True, False, True]


def test_failures_of_the_hsm_are_those_of_their_own_calls(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = Failure(Reason.HSM_UNAVAILABLE, "lost", 1.0)

    async def one_fails(_: Admission) -> Signed:
        return Signed([b"1" * 64, b"2" * 64, b"", b"4" * 64], {2: lost}, 2)

    monkeypatch.setattr(stage.hsm, "sign", one_fails)
    first, second = results(together(stage, request(0, items=2), request(1, items=2)))
    assert (first.failures, second.failures) == ({}, {0: lost})
    outcomes = [r for r in stage.log.records(0, 9) if r.kind is RecordKind.OUTCOME]
    assert [r.fields["failures"] for r in outcomes] == [{}, {"HSM_UNAVAILABLE": b"\1"}]


@pytest.mark.parametrize("error", [CallError(Reason.DEADLINE_TOO_SHORT, "late"), ValueError("bug")])
def test_a_lot_that_came_to_nothing_is_closed_and_its_ids_are_free(
    stage: Stage, error: Exception
) -> None:
    stage.hsm.error = error
    asked = [request(number) for number in range(3)]
    assert together(stage, *asked) == [error] * 3
    stage.wait_for([RecordKind.INTENT] * 3 + [RecordKind.INDETERMINATE] * 3)
    stage.hsm.error = None
    assert len(results(together(stage, *asked))) == 3


def test_where_one_caller_leaves_the_others_are_answered_and_it_finds_its_answer(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, sign = [request(number) for number in range(3)], stage.hsm.sign

    async def scenario() -> Ended:
        calls = [asyncio.ensure_future(stage.engine.sign_batch(each)) for each in asked]

        async def leaves(admission: Admission) -> Signed:
            calls[1].cancel()
            await asyncio.sleep(0)
            return await sign(admission)

        monkeypatch.setattr(stage.hsm, "sign", leaves)
        return await asyncio.gather(*calls, return_exceptions=True)

    ended = stage.loop.run(scenario())
    monkeypatch.undo()
    assert isinstance(ended[1], asyncio.CancelledError)
    stage.wait_for([RecordKind.INTENT] * 3 + [RecordKind.OUTCOME] * 3)
    again = results(together(stage, *asked))
    assert [again[0], again[2]] == results(ended)
    assert (again[1].audit_record, stage.hsm.signed) == (1, 3)


@pytest.mark.parametrize("step", ["intent", "signing"])
def test_where_all_callers_leave_nothing_more_is_signed(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    began = asyncio.Event()

    async def hang(_: Admission) -> Signed:
        began.set()
        await asyncio.Event().wait()
        raise AssertionError

    if step == "signing":
        monkeypatch.setattr(stage.hsm, "sign", hang)
    else:
        stage.disk.gate.clear()

    async def scenario() -> None:
        calls = [asyncio.ensure_future(stage.engine.sign_batch(request(n))) for n in range(3)]
        if step == "signing":
            await began.wait()
        else:
            assert await asyncio.to_thread(stage.disk.waiting.wait, 30)
        for call in calls:
            call.cancel()
        await asyncio.wait(calls)

    stage.loop.run(scenario())
    stage.disk.gate.set()
    stage.wait_for([RecordKind.INTENT] * 3 + [RecordKind.INDETERMINATE] * 3)
    closed = stage.log.records(3, 3)
    assert [record.fields["reason"] for record in closed] == ["CALLER_GONE"] * 3
    assert stage.hsm.signed == 0


def test_calls_that_come_while_the_log_writes_go_together(
    stage: Stage, jobs: list[SignJob], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lots, "LOG_WAIT", 30.0)  # the machine may be busy
    stage.disk.gate.clear()

    async def scenario() -> Ended:
        calls = [asyncio.ensure_future(stage.engine.sign_batch(request(0)))]
        assert await asyncio.to_thread(stage.disk.waiting.wait, 30)
        for number in range(1, 6):  # one by one
            calls.append(asyncio.ensure_future(stage.engine.sign_batch(request(number))))
            await asyncio.sleep(0.001)
        stage.disk.gate.set()
        return await asyncio.gather(*calls, return_exceptions=True)

    assert len(results(stage.loop.run(scenario()))) == 6
    assert [len(job.inputs) for job in jobs] == [1, 5]


def test_a_call_of_many_items_waits_for_no_other(stage: Stage, jobs: list[SignJob]) -> None:
    assert FIRST_ITEMS > 3  # or the policy here would allow no large call
    large = request(9, payloads=[b"x" * 30_000] * 3)
    assert len(results(together(stage, request(0), large, request(1)))) == 3
    assert sorted(len(job.inputs) for job in jobs) == [2, 3]


def test_the_wait_for_the_log_is_short(stage: Stage) -> None:
    """Who is denied, or has its answer already, hears it while a disk hangs."""
    first = stage.sign(request(0))
    stage.disk.gate.clear()

    async def scenario() -> Ended:
        signs = [asyncio.ensure_future(stage.engine.sign_batch(request(n))) for n in range(1, 4)]
        assert await asyncio.to_thread(stage.disk.waiting.wait, 30)
        answered = [
            stage.engine.sign_batch(request(0)),
            stage.engine.sign_batch(request(5, key=KeyName("unknown", "k"))),
            stage.engine.sign_batch(request(6, deadline=SystemClock().monotonic() + 1.2)),
        ]
        ended = await asyncio.gather(*answered, return_exceptions=True)
        stage.disk.gate.set()
        await asyncio.gather(*signs)
        return ended

    again, denied, late = stage.loop.run(scenario())
    assert again == first
    assert isinstance(denied, CallError)
    assert isinstance(late, CallError)
    assert late.reason is Reason.DEADLINE_TOO_SHORT


@pytest.mark.parametrize("refused", [False, True])
def test_calls_that_have_ended_are_held_by_nothing(stage: Stage, refused: bool) -> None:
    if refused:
        stage.hsm.refusal = CallError(Reason.OVERLOADED, "full", retry_after=1)
    gc.collect()
    before = [each for each in gc.get_objects() if isinstance(each, Call)]  # of other tests
    gc.disable()
    try:
        together(stage, *(request(number) for number in range(5)))
        together(stage, request(9, payloads=[b"x" * 70_000]))
        stage.loop.run(asyncio.sleep(0.05))  # a few rounds
        held = [each for each in gc.get_objects() if isinstance(each, Call)]
    finally:
        gc.enable()
    assert all(any(each is other for other in before) for each in held)


def test_what_was_signed_in_time_is_answered_beside_what_was_not(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def one_late(_: Admission) -> Signed:
        return Signed([b"1" * 64, b"", b"3" * 64], {1: LATE})

    monkeypatch.setattr(stage.hsm, "sign", one_late)
    first, late, third = together(stage, request(0), request(1), request(2))
    assert isinstance(late, CallError)
    assert late.reason is Reason.DEADLINE_TOO_SHORT
    assert [each.outputs for each in results([first, third])] == [[b"1" * 64], [b"3" * 64]]
    stage.wait_for([RecordKind.INTENT] * 3 + [RecordKind.INDETERMINATE] + [RecordKind.OUTCOME] * 2)
    assert stage.log.records(3, 1)[0].fields == {"intent": 1, "reason": "DEADLINE_TOO_SHORT"}


def test_a_defect_that_one_payload_meets_fails_its_call_alone(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare = Messages.prepare

    async def defective(self: Messages, *arguments: Any) -> Any:
        if any(b"defect" in payload for payload in arguments[2]):
            raise ValueError("defect")
        return await prepare(self, *arguments)

    monkeypatch.setattr(Messages, "prepare", defective)
    ended = together(stage, request(0), request(1, payloads=[b"defect"]), request(2))
    assert [isinstance(each, BatchResult) for each in ended] == [True, False, True]
    assert stage.left("a") == 38


def test_a_signature_of_a_wrong_length_fails_its_call_alone(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def one_short(_: Admission) -> Signed:
        return Signed([b"1" * 64, b"2" * 63, b"3" * 64], {})

    monkeypatch.setattr(stage.hsm, "sign", one_short)
    ended = together(stage, request(0), request(1), request(2))
    assert isinstance(ended[1], RecordError)
    assert len(results(ended)) == 2
    stage.wait_for([RecordKind.INTENT] * 3 + [RecordKind.INDETERMINATE] + [RecordKind.OUTCOME] * 2)


def test_an_intent_that_the_log_refuses_leaves_none_of_the_others_open(stage: Stage) -> None:
    ended = together(stage, request(0), request(1, call_id="\ud800"), request(2))
    assert [type(each) for each in ended] == [RecordError] * 3
    stage.wait_for([RecordKind.INTENT] * 2 + [RecordKind.INDETERMINATE] * 2)
    assert stage.hsm.signed == 0


def test_stages_are_counted_for_all_calls_also_where_one_caller_left_early(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(stage.engine._lots._events, "emit", seen.append)
    sign = stage.hsm.sign

    async def scenario() -> None:
        calls = [asyncio.ensure_future(stage.engine.sign_batch(request(n))) for n in range(3)]

        async def leaves(admission: Admission) -> Signed:
            calls[1].cancel()
            await asyncio.sleep(0)
            return await sign(admission)

        monkeypatch.setattr(stage.hsm, "sign", leaves)
        await asyncio.gather(*calls, return_exceptions=True)

    stage.loop.run(scenario())
    [ended] = [each for each in seen if isinstance(each, StagesEnded)]
    names = [name for name, _, _ in ended.work.stages]
    assert (ended.work.calls, names) == (
        3,
        ["authorise", "format", "audit", "hsm", "audit", "format"],
    )


def test_a_quota_that_refuses_one_call_says_so_once(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(stage.engine._events, "emit", seen.append)
    results(together(stage, *(request(number, items=3) for number in range(13))))
    ended = together(stage, request(20), request(21))
    assert len(results(ended)) == 1
    assert len([each for each in seen if isinstance(each, QuotaRefused)]) == 1


def test_stages_of_a_lot_that_was_divided_are_those_of_its_calls_alone(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(stage.engine._lots._events, "emit", seen.append)
    together(stage, request(0), request(1, items=4), request(2))
    ended = [each.work.calls for each in seen if isinstance(each, StagesEnded)]
    assert ended == [1, 1, 1]
