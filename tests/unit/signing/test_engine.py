"""Steps of the pipeline that no caller can see from outside."""

import hashlib
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from signer.audit.format.record import Record, RecordError, RecordKind
from signer.audit.write.inbox import AuditUnavailable, Entry
from signer.clock import SystemClock
from signer.errors import CallError, Failure, Reason
from signer.event_loop import THREADS_OF_ONE
from signer.hsm.front.chunks import Signed
from signer.hsm.front.pool import Admission
from signer.key_index import KeyIndex
from signer.model import Format, KeyName, KeyState, KeyVersion, Suspended
from signer.signing.engine import WORTH_A_LOOK
from signer.signing.messages import Messages
from signer.signing.request import BatchRequest
from tests.stand_ins import key_version
from tests.unit.signing.stage import CLIENT, ID, Stage

POLICY = """
roles: {operator: []}
profiles:
  records: {formats: [MESSAGE], algorithms: [ES256], max_batch_items: 100, quotas: ["10 per day"]}
facilities:
  "a": {profile: records, clients: ["spiffe://x/issuer"]}
"""
KEY = KeyName("a", "k")
VERSION = key_version(key=KEY, cka_id=b"1")


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    made = Stage(tmp_path, POLICY, [VERSION])
    yield made
    made.close()


def request(items: int = 4, seconds: float = 30) -> BatchRequest:
    deadline = SystemClock().monotonic() + seconds
    return BatchRequest(CLIENT, KEY, None, Format.MESSAGE, [b"m"] * items, deadline)


def test_what_is_signed_is_charged(stage: Stage) -> None:
    assert not stage.sign(request()).failures
    assert (stage.hsm.signed, stage.left("a")) == (4, 6)


def test_an_hsm_that_does_not_serve_costs_no_quota(stage: Stage) -> None:
    stage.hsm.refusal = Failure(Reason.HSM_UNAVAILABLE, "down", retry_after=5.0)
    result = stage.sign(request())
    assert result.failures == dict.fromkeys(range(4), stage.hsm.refusal)
    assert list(result.outputs) == [b""] * 4
    assert (stage.hsm.signed, stage.left("a")) == (0, 10)


def test_a_full_queue_costs_no_quota(stage: Stage) -> None:
    stage.hsm.refusal = CallError(Reason.OVERLOADED, "full")
    with pytest.raises(CallError):
        stage.sign(request())
    assert (stage.hsm.signed, stage.left("a")) == (0, 10)


def test_a_batch_for_which_there_is_no_time_is_refused_before_it_is_prepared(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At three times the capacity two of three batches are refused: that must cost little."""

    async def prepare(*_: object) -> None:
        pytest.fail("the payloads are read")

    monkeypatch.setattr(Messages, "prepare", prepare)
    stage.hsm.refusal = CallError(Reason.OVERLOADED, "full")
    with pytest.raises(CallError, match="full"):
        stage.sign(request(items=WORTH_A_LOOK + 1))
    assert (stage.hsm.signed, stage.left("a")) == (0, 10)


def test_too_little_time_costs_no_quota_and_asks_no_hsm(stage: Stage) -> None:
    with pytest.raises(CallError) as caught:
        stage.sign(request(seconds=0.004))
    assert caught.value.reason is Reason.DEADLINE_TOO_SHORT
    assert (stage.hsm.signed, stage.left("a")) == (0, 10)


def test_an_answer_that_could_be_too_large_asks_no_hsm(tmp_path: Path) -> None:
    stage = Stage(tmp_path, POLICY, [VERSION], answer_bytes=1000)
    with pytest.raises(CallError) as caught:
        stage.sign(request())
    assert caught.value.reason is Reason.FIELD_INVALID
    assert stage.hsm.signed == 0
    stage.close()


# --- the audit log -----------------------------------------------------------------------------


def test_intent_and_outcome_stand_around_the_signing(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[RecordKind]] = []
    sign = stage.hsm.sign

    async def watched(admission: Admission) -> Signed:
        seen.append(stage.kinds)
        return await sign(admission)

    monkeypatch.setattr(stage.hsm, "sign", watched)
    outputs = stage.sign(request()).outputs
    assert seen == [[RecordKind.INTENT]]
    assert stage.kinds == [RecordKind.INTENT, RecordKind.OUTCOME]
    intent, outcome = stage.log.records(0, 2)
    assert intent.column is not None
    assert outcome.column is not None
    assert intent.column.item(0) == hashlib.sha256(b"m").digest()
    assert (intent.column.count, outcome.column.data) == (4, b"".join(outputs))
    assert intent.fields["principal"] == CLIENT
    assert intent.fields["rule"]
    assert outcome.fields["intent"] == 0


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (CallError(Reason.DEADLINE_TOO_SHORT, "late"), "DEADLINE_TOO_SHORT"),
        (ValueError("a defect"), "INTERNAL"),
    ],
)
def test_an_intent_that_came_to_nothing_is_closed_and_its_id_is_free(
    stage: Stage, error: Exception, reason: str
) -> None:
    stage.hsm.error = error
    asked = request()._replace(request_id=ID)
    with pytest.raises(type(error)):
        stage.sign(asked)
    stage.wait_for([RecordKind.INTENT, RecordKind.INDETERMINATE])
    assert stage.log.records(1, 1)[0].fields == {"intent": 0, "reason": reason}
    stage.hsm.error = None
    assert not stage.sign(asked).failures
    assert (stage.hsm.signed, stage.left("a")) == (4, 2)


def test_signatures_that_no_record_holds_are_not_released_and_the_id_is_free(stage: Stage) -> None:
    stage.hsm.length = 63
    asked = request()._replace(request_id=ID)
    with pytest.raises(RecordError):
        stage.sign(asked)
    stage.wait_for([RecordKind.INTENT, RecordKind.INDETERMINATE])
    stage.hsm.length = 64
    outputs = stage.sign(asked).outputs
    assert stage.sign(asked).outputs == outputs
    assert stage.hsm.signed == 8  # the repetition asked for nothing


def test_a_repetition_asks_no_hsm_and_charges_nothing(stage: Stage) -> None:
    asked = request()._replace(request_id=ID)
    first = stage.sign(asked)
    assert stage.sign(asked) == first
    assert (stage.hsm.signed, stage.left("a")) == (4, 6)
    with pytest.raises(CallError) as caught:
        stage.sign(asked._replace(payloads=[b"other"]))
    assert caught.value.reason is Reason.REQUEST_ID_REUSED
    # Another principal's id is another id.
    assert stage.sign(request()).version is VERSION
    assert stage.hsm.signed == 8


@pytest.mark.parametrize(
    "now",
    [
        key_version(state=KeyState.SUSPENDED),
        key_version(state=KeyState.COMPROMISED),
        key_version(state=KeyState.DESTROY_SCHEDULED),
        key_version(sign_until=1.0, destroy_at=4e9),
        key_version(state=KeyState.DESTROYED),
        key_version(state=KeyState.PRE_ACTIVE),
    ],
    ids=lambda now: f"{now.state}-{now.state_at(1e9)}",
)
def test_what_was_stopped_is_not_given_out_again(stage: Stage, now: KeyVersion) -> None:
    asked = request()._replace(request_id=ID)
    stage.sign(asked)
    serve(stage, replace(now, key=KEY))
    with pytest.raises(CallError, match="not given out again") as caught:
        stage.sign(asked)
    assert caught.value.reason is Reason.KEY_VERSION_NOT_ACTIVE
    # Under the name of the version as well, and though another one signs now.
    serve(stage, replace(now, key=KEY), key_version(key=KEY, number=2))
    with pytest.raises(CallError, match="not given out again"):
        stage.sign(asked)
    assert stage.hsm.signed == 4


@pytest.mark.parametrize(
    "suspended", [Suspended("all of it"), Suspended(facilities={"a": "the facility"})], ids=str
)
def test_under_a_suspension_nothing_is_given_out_again(stage: Stage, suspended: Suspended) -> None:
    asked = request()._replace(request_id=ID)
    first = stage.sign(asked)
    before = stage.served.snapshot
    stage.served.snapshot = replace(before, suspended=suspended)
    with pytest.raises(CallError) as caught:
        stage.sign(asked)
    assert caught.value.reason is Reason.KEY_VERSION_NOT_ACTIVE
    stage.served.snapshot = before
    assert stage.sign(asked) == first


def test_after_a_rotation_the_same_is_given_out_again(stage: Stage) -> None:
    asked = request()._replace(request_id=ID)
    first = stage.sign(asked)
    old = replace(VERSION, state=KeyState.DEACTIVATED)
    serve(stage, old, key_version(key=KEY, number=2))
    again = stage.sign(asked)
    assert (again.outputs, again.version.number, stage.hsm.signed) == (first.outputs, 1, 4)


def test_a_stop_while_a_repetition_waits_holds_for_it(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = request()._replace(request_id=ID)
    stage.sign(asked)
    records = stage.log.records

    def stopped_meanwhile(start: int, limit: int) -> list[Record]:
        serve(stage, replace(VERSION, state=KeyState.COMPROMISED))
        return records(start, limit)

    monkeypatch.setattr(stage.log, "records", stopped_meanwhile)
    with pytest.raises(CallError, match="not given out again"):
        stage.sign(asked)


@pytest.mark.parametrize("step", ["prepare", "finish"])
def test_a_stop_while_the_messages_of_a_repetition_are_made_holds_for_it(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Both take turns with other principals, and so may last."""
    asked = request()._replace(request_id=ID)
    stage.sign(asked)
    made = getattr(Messages, step)

    async def stopped_meanwhile(*arguments: Any) -> Any:
        messages = await made(*arguments)
        serve(stage, replace(VERSION, state=KeyState.COMPROMISED))
        return messages

    monkeypatch.setattr(Messages, step, stopped_meanwhile)
    with pytest.raises(CallError, match="not given out again"):
        stage.sign(asked)


def test_a_log_that_is_read_slowly_ends_a_repetition_at_its_deadline(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = request()._replace(request_id=ID)
    first = stage.sign(asked)
    hangs, records = threading.Event(), stage.log.records

    def slow(start: int, limit: int) -> list[Record]:
        assert hangs.wait(30)
        return records(start, limit)

    with monkeypatch.context() as changed:
        changed.setattr(stage.log, "records", slow)
        # Each holds a thread as long as its disk hangs, and a client has few.
        for _ in range(THREADS_OF_ONE + 2):
            with pytest.raises(CallError, match="repeat it later") as caught:
                stage.sign(asked._replace(deadline=SystemClock().monotonic() + 0.05))
            assert caught.value.reason is Reason.DEADLINE_TOO_SHORT
        assert stage.loop.call(lambda: stage.threads._running[CLIENT]) == THREADS_OF_ONE
        hangs.set()
    assert stage.sign(asked) == first
    assert not stage.loop.call(lambda: stage.threads._waiting)


def serve(stage: Stage, *versions: KeyVersion) -> None:
    keys = KeyIndex(versions, 2)
    stage.served.snapshot = replace(stage.served.snapshot, keys=keys)


@pytest.mark.parametrize("failing", [RecordKind.INTENT, RecordKind.OUTCOME])
def test_nothing_is_signed_or_released_without_the_log(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, failing: RecordKind
) -> None:
    submit = stage.log.submit

    def submitted(entries: list[Entry]) -> list[Entry]:
        refused = [entry for entry in entries if entry.kind is failing]
        for entry in refused:
            entry.error = AuditUnavailable("the disk is gone")
        return refused + submit(entry for entry in entries if entry.kind is not failing)

    monkeypatch.setattr(stage.log, "submit", submitted)
    with pytest.raises(CallError) as caught:
        stage.sign(request())
    assert caught.value.reason is Reason.AUDIT_UNAVAILABLE
    assert caught.value.retry_after
    assert stage.hsm.signed == (0 if failing is RecordKind.INTENT else 4)


def test_of_too_many_ids_the_latest_are_remembered(tmp_path: Path) -> None:
    stage = Stage(tmp_path, POLICY, [VERSION], capacity=4)
    hsm = stage.hsm
    asked = [request(1)._replace(request_id=f"{ID[:-1]}{number}") for number in range(4)]
    first = [stage.sign(batch) for batch in asked]
    assert [record.fields["request_id"] for record in stage.log.records(0, 8)[::2]] == [
        batch.request_id for batch in asked
    ]
    assert stage.ledger.forgotten == 2
    assert [stage.sign(batch) for batch in asked[2:]] == first[2:]
    assert hsm.signed == 4
    stage.sign(asked[0])  # forgotten: signed anew
    assert hsm.signed == 5
    stage.close()
