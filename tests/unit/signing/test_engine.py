"""Steps of the pipeline that no caller can see from outside."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from signer.audit.format.record import RecordError, RecordKind
from signer.audit.write.inbox import AuditUnavailable
from signer.audit.write.log import AuditLog, Listener
from signer.clock import SystemClock
from signer.config.policy_documents import load_policy
from signer.errors import CallError, Failure, Reason
from signer.hsm.front.pool import Admission
from signer.keys.index import KeyIndex
from signer.model import Algorithm, Format, KeyName, KeyState, KeyVersion, Signed, SignJob
from signer.policy.usage import Usage
from signer.signing.engine import Engine
from signer.signing.evidence import Evidence
from signer.signing.request import BatchRequest, Served, Snapshot

POLICY = """
roles: {operator: []}
profiles:
  records: {formats: [MESSAGE], algorithms: [ES256], max_batch_items: 100, quotas: ["10 per day"]}
facilities:
  "a": {profile: records, clients: ["spiffe://x/issuer"]}
"""
KEY = KeyName("a", "k")
VERSION = KeyVersion(
    KEY, 1, Algorithm.ES256, KeyState.ACTIVE, "t", b"1", b"spki", None, b"kid", "thumb", 0, 0, None
)


class Observer:
    forgotten = 0

    def stage(self, name: str, began: float, seconds: float) -> None:
        """Nobody counts here."""

    def items(self, group: str, requested: Format, algorithm: Any, reasons: Counter[str]) -> None:
        """Nobody counts here."""

    def requests_forgotten(self, count: int) -> None:
        self.forgotten += count

    def quota_rejected(self, group: str, window: str) -> None:
        """Nobody counts here."""


class Hsm:
    """An HSM that signs, is down, or is full."""

    def __init__(self) -> None:
        self.refusal: Failure | CallError | None = None
        self.error: Exception | None = None
        self.signed = 0
        self.length = 64

    def admit(self, job: SignJob) -> Admission:
        refusal = self.refusal if job.inputs else None
        if isinstance(refusal, CallError):
            raise refusal
        return Admission(job, refusal)

    def sign(self, admission: Admission) -> Signed:
        job = admission.job
        if self.error is not None:
            raise self.error
        self.signed += len(job.inputs)
        return Signed([bytes(self.length)] * len(job.inputs), {})


@pytest.fixture
def hsm() -> Hsm:
    return Hsm()


@pytest.fixture
def log(tmp_path: Path, evidence: Evidence) -> Iterator[AuditLog]:
    opened = AuditLog.open(
        tmp_path / "audit",
        origin="test",
        clock=SystemClock(),
        low_disk_bytes=0,
        ballast_bytes=0,
        listeners=[Listener(evidence.recorded)],
    )
    evidence.attach(opened, Usage())
    yield opened
    opened.close()


@pytest.fixture
def evidence() -> Evidence:
    return Evidence(SystemClock(), Observer())


@pytest.fixture
def engine(tmp_path: Path, hsm: Hsm, evidence: Evidence, log: AuditLog) -> Engine:  # noqa: ARG001  the open log
    path = tmp_path / "policy.yaml"
    path.write_text(POLICY)
    snapshot = Snapshot(load_policy(path), KeyIndex([VERSION], 1))
    return make(snapshot, hsm, evidence, 4 << 20)


def make(snapshot: Snapshot, hsm: Hsm, evidence: Evidence, answer_bytes: int) -> Engine:
    return Engine(
        Served(snapshot),
        hsm,
        evidence,
        usage=Usage(),
        observer=Observer(),
        clock=SystemClock(),
        answer_bytes=answer_bytes,
    )


def request(items: int = 4, seconds: float = 30) -> BatchRequest:
    deadline = SystemClock().monotonic() + seconds
    return BatchRequest("spiffe://x/issuer", KEY, None, Format.MESSAGE, [b"m"] * items, deadline)


def kinds(log: AuditLog) -> list[RecordKind]:
    return [record.kind for record in log.records(0, 100)]


def left(engine: Engine) -> int:
    terms = engine._served.snapshot.policy.facilities["a"].terms
    [remaining] = engine._usage.remaining("a", terms.quotas, SystemClock().now())
    return remaining


def test_what_is_signed_is_charged(engine: Engine, hsm: Hsm) -> None:
    assert not engine.sign_batch(request()).failures
    assert (hsm.signed, left(engine)) == (4, 6)


def test_an_hsm_that_does_not_serve_costs_no_quota(engine: Engine, hsm: Hsm) -> None:
    hsm.refusal = Failure(Reason.HSM_UNAVAILABLE, "down", retry_after=5.0)
    result = engine.sign_batch(request())
    assert result.failures == dict.fromkeys(range(4), hsm.refusal)
    assert list(result.outputs) == [b""] * 4
    assert (hsm.signed, left(engine)) == (0, 10)


def test_a_full_queue_costs_no_quota(engine: Engine, hsm: Hsm) -> None:
    hsm.refusal = CallError(Reason.OVERLOADED, "full")
    with pytest.raises(CallError):
        engine.sign_batch(request())
    assert (hsm.signed, left(engine)) == (0, 10)


def test_too_little_time_costs_no_quota_and_asks_no_hsm(engine: Engine, hsm: Hsm) -> None:
    with pytest.raises(CallError) as caught:
        engine.sign_batch(request(seconds=0.004))
    assert caught.value.reason is Reason.DEADLINE_TOO_SHORT
    assert (hsm.signed, left(engine)) == (0, 10)


def test_what_gives_too_large_an_answer_asks_no_hsm(
    tmp_path: Path, hsm: Hsm, evidence: Evidence
) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(POLICY)
    snapshot = Snapshot(load_policy(path), KeyIndex([VERSION], 1))
    small = make(snapshot, hsm, evidence, 1000)
    with pytest.raises(CallError) as caught:
        small.sign_batch(request())
    assert caught.value.reason is Reason.FIELD_INVALID
    assert hsm.signed == 0


# --- the audit log -----------------------------------------------------------------------------

ID = "6a9b7d3e-0000-4000-8000-000000000001"


def test_intent_and_outcome_stand_around_the_signing(
    engine: Engine, hsm: Hsm, log: AuditLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[RecordKind]] = []
    sign = hsm.sign

    def watched(admission: Admission) -> Signed:
        seen.append(kinds(log))
        return sign(admission)

    monkeypatch.setattr(hsm, "sign", watched)
    engine.sign_batch(request())
    assert seen == [[RecordKind.INTENT]]
    assert kinds(log) == [RecordKind.INTENT, RecordKind.OUTCOME]
    intent, outcome = log.records(0, 2)
    assert intent.column is not None
    assert outcome.column is not None
    assert intent.column.item(0) == hashlib.sha256(b"m").digest()
    assert (intent.column.count, outcome.column.data) == (4, bytes(4 * 64))
    assert intent.fields["principal"] == "spiffe://x/issuer"
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
    engine: Engine, hsm: Hsm, log: AuditLog, error: Exception, reason: str
) -> None:
    hsm.error = error
    asked = replace(request(), request_id=ID)
    with pytest.raises(type(error)):
        engine.sign_batch(asked)
    assert kinds(log) == [RecordKind.INTENT, RecordKind.INDETERMINATE]
    assert log.records(1, 1)[0].fields == {"intent": 0, "reason": reason}
    hsm.error = None
    assert not engine.sign_batch(asked).failures
    assert (hsm.signed, left(engine)) == (4, 2)


def test_signatures_that_no_record_holds_are_not_released_and_the_id_is_free(
    engine: Engine, hsm: Hsm, log: AuditLog
) -> None:
    hsm.length = 63
    asked = replace(request(), request_id=ID)
    with pytest.raises(RecordError):
        engine.sign_batch(asked)
    assert kinds(log) == [RecordKind.INTENT, RecordKind.INDETERMINATE]
    hsm.length = 64
    outputs = engine.sign_batch(asked).outputs
    assert engine.sign_batch(asked).outputs == outputs
    assert hsm.signed == 8  # the repetition asked for nothing


def test_a_repetition_asks_no_hsm_and_charges_nothing(engine: Engine, hsm: Hsm) -> None:
    asked = replace(request(), request_id=ID)
    first = engine.sign_batch(asked)
    assert engine.sign_batch(asked) == first
    assert (hsm.signed, left(engine)) == (4, 6)
    with pytest.raises(CallError) as caught:
        engine.sign_batch(replace(asked, payloads=[b"other"]))
    assert caught.value.reason is Reason.REQUEST_ID_REUSED
    # Another principal's id is another id.
    assert engine.sign_batch(request()).version is VERSION
    assert hsm.signed == 8


def test_a_failed_item_fails_again_alike(
    engine: Engine, hsm: Hsm, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = Failure(Reason.HSM_UNAVAILABLE, "two workers died", 1.0)

    def sign(admission: Admission) -> Signed:
        return Signed([b"", *[bytes([7]) * 64] * (len(admission.job.inputs) - 1)], {0: lost})

    monkeypatch.setattr(hsm, "sign", sign)
    asked = replace(request(), request_id=ID)
    first = engine.sign_batch(asked)
    assert first.failures == {0: lost}
    monkeypatch.undo()
    assert engine.sign_batch(asked) == first


@pytest.mark.parametrize("failing", [RecordKind.INTENT, RecordKind.OUTCOME])
def test_nothing_is_signed_or_released_without_the_log(
    engine: Engine, hsm: Hsm, log: AuditLog, monkeypatch: pytest.MonkeyPatch, failing: RecordKind
) -> None:
    def append(kind: RecordKind, *_: object) -> int:
        if kind is failing:
            raise AuditUnavailable("the disk is gone")
        return 0

    monkeypatch.setattr(log, "append", append)
    with pytest.raises(CallError) as caught:
        engine.sign_batch(request())
    assert caught.value.reason is Reason.AUDIT_UNAVAILABLE
    assert caught.value.retry_after
    assert hsm.signed == (0 if failing is RecordKind.INTENT else 4)


def test_of_too_many_ids_the_latest_are_remembered(
    tmp_path: Path, engine: Engine, hsm: Hsm
) -> None:
    counted = Observer()
    evidence = Evidence(SystemClock(), counted, capacity=4)
    log = AuditLog.open(
        tmp_path / "small",
        origin="test",
        clock=SystemClock(),
        low_disk_bytes=0,
        ballast_bytes=0,
        listeners=[Listener(evidence.recorded)],
    )
    evidence.attach(log, Usage())
    small = make(engine._served.snapshot, hsm, evidence, 4 << 20)
    asked = [replace(request(1), request_id=f"{ID[:-1]}{number}") for number in range(4)]
    first = [small.sign_batch(each) for each in asked]
    assert [record.fields["request_id"] for record in log.records(0, 8)[::2]] == [
        each.request_id for each in asked
    ]
    assert counted.forgotten == 2
    assert [small.sign_batch(each) for each in asked[2:]] == first[2:]
    assert hsm.signed == 4
    small.sign_batch(asked[0])  # forgotten: signed anew
    assert hsm.signed == 5
    log.close()
