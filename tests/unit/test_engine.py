"""Steps of the pipeline that no caller can see from outside."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from signer.audit.log import AuditLog
from signer.clock import SystemClock
from signer.config import load_policy
from signer.engine import BatchRequest, Engine, Snapshot
from signer.errors import CallError, Failure, Reason
from signer.evidence import Evidence
from signer.keys.index import KeyIndex
from signer.model import Algorithm, Format, KeyName, KeyState, KeyVersion, Signed, SignJob
from signer.policy.usage import Usage

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
    def stage(self, name: str, seconds: float) -> None:
        """Nobody counts here."""

    def items(self, group: str, requested: Format, algorithm: Any, reasons: Counter[str]) -> None:
        """Nobody counts here."""

    def request_unremembered(self) -> None:
        """Nobody counts here."""

    def quota_rejected(self, group: str, window: str) -> None:
        """Nobody counts here."""


class Hsm:
    """An HSM that signs, is down, or is full."""

    def __init__(self) -> None:
        self.refusal: Failure | CallError | None = None
        self.signed = 0

    def admit(self, _job: SignJob) -> Failure | None:
        if isinstance(self.refusal, CallError):
            raise self.refusal
        return self.refusal

    def sign(self, job: SignJob) -> Signed:
        self.signed += len(job.inputs)
        return Signed([bytes(64)] * len(job.inputs), {})


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
        on_record=evidence.recorded,
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
        snapshot,
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


def left(engine: Engine) -> int:
    terms = engine.snapshot.policy.facilities["a"].terms
    [remaining] = engine.usage.remaining("a", terms.quotas, SystemClock().now())
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
