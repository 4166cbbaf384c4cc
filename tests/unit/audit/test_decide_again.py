"""Every intent is decided once more from the kept text of its policy."""

from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from signer.audit.format.batch_records import IntentRecord
from signer.audit.format.record import Column, Record, RecordKind
from signer.audit.read.decide_again import DecidedPart, DecisionFold
from signer.audit.read.ledger import Ledger
from signer.config.policy_files import PolicyFile, policy_text
from signer.format_terms import HcertTerms

ISSUER, STRANGER = "spiffe://signer.example/issuer", "spiffe://signer.example/stranger"
MONDAY = 1_767_571_200  # 2026-01-05T00:00:00Z
POLICY = b"""
groups:
  "01": {name: Province, clients: [spiffe://signer.example/province]}
profiles:
  records:
    formats: [JWS, MESSAGE]
    algorithms: [ES256]
    max_batch_items: 10
    quotas: [12 per minute]
    delegation: true
    hours:
      time_zone: UTC
      open: [{days: mon-fri, from: "08:00", to: "17:00"}]
  certificates:
    formats: [HCERT]
    algorithms: [ES256]
    max_batch_items: 10
    hcert: {issuer: VN, validity_days: 365}
  few:
    formats: [JWS]
    algorithms: [ES256]
    max_batch_items: 10
    lifetime_signatures: 12
facilities:
  01-001: {profile: records, group: "01", clients: [spiffe://signer.example/issuer]}
  few: {profile: few, clients: [spiffe://signer.example/issuer]}
  moh: {profile: certificates, clients: [spiffe://signer.example/issuer]}
"""
TEXT = policy_text([PolicyFile("policy.yaml", POLICY)])
OPEN = MONDAY + 9 * 3600
ASKED = IntentRecord(
    principal=ISSUER,
    request_id="",
    call_id="",
    payload_hash=b"",
    key_version="facilities/01-001/keys/records/versions/3",
    kid=b"",
    format="JWS",
    rule="facilities.01-001.clients",
    policy=sha256(TEXT).digest(),
    facility="01-001",
    group="01",
    now=OPEN,
    hcert=None,
    asked=2,
    failed={},
)
HCERT: dict[str, Any] = {
    "key_version": "facilities/moh/keys/dcc/versions/1",
    "format": "HCERT",
    "facility": "moh",
    "group": "",
    "hcert": HcertTerms("VN", 365 * 86_400),
}


@pytest.fixture
def log(tmp_path: Path) -> Path:
    (tmp_path / "policies").mkdir()
    (tmp_path / "policies" / sha256(TEXT).hexdigest()).write_bytes(TEXT)
    return tmp_path


def record(seq: int = 0, items: int = 2, **changes: Any) -> Record:
    intent = ASKED._replace(asked=items, **changes)
    column = Column(32, bytes(32 * items))
    return Record(seq, intent.now * 1_000_000, RecordKind.INTENT, intent.to_fields(), column)


def decided(log: Path, *parts: list[Record]) -> DecisionFold:
    fold = DecisionFold(log)
    for records in parts:
        part = fold.part()
        for each in records:
            part.take(each)
        fold.join(part)
    return fold


@pytest.mark.parametrize(
    "changes", [{}, {"format": "MESSAGE"}, {"principal": "spiffe://signer.example/province"}, HCERT]
)
def test_what_the_policy_allows_has_no_problem(log: Path, changes: dict[str, Any]) -> None:
    fold = decided(log, [record(**changes)])
    assert (fold.problems, fold.decided) == ([], 1)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"principal": STRANGER}, f"denies {STRANGER} to sign JWS with facilities/01-001/keys"),
        ({"key_version": "facilities/moh/keys/x/versions/1"}, "JWS is not allowed with this key"),
        ({"key_version": "facilities/no/keys/x/versions/1"}, "no rule of the policy lets"),
        ({"format": "HCERT"}, "HCERT is not allowed with this key (profiles.records.formats)"),
        ({"now": MONDAY}, "closed now"),
        ({"items": 11}, "it has 11 items, and its policy allows 10"),
        ({"facility": "moh"}, "it is charged to ('moh', '01') and belongs to ('01-001', '01')"),
        ({"group": "02"}, "belongs to ('01-001', '01')"),
        ({**HCERT, "hcert": HcertTerms("VN", 9**9)}, "it issues certificates as"),
        ({"format": "PDF"}, "it cannot be decided: 'PDF' is not a format"),
        ({"key_version": "x"}, "it cannot be decided: expected facilities/"),
        ({"policy": sha256(b"x").digest()}, "cannot be decided: the text of policy 2d711642"),
    ],
)
def test_what_the_policy_does_not_allow_is_a_problem(
    log: Path, changes: dict[str, Any], text: str
) -> None:
    [problem] = decided(log, [record(7, **changes)]).problems
    assert problem.startswith("record 7: ")
    assert text in problem


def test_quotas_are_counted_anew_over_all_parts(log: Path) -> None:
    within = [record(0, 10), record(1, 2)]
    assert decided(log, within).problems == []
    [problem] = decided(log, [*within, record(2, 1)]).problems
    assert "its 1 item exceeds the quota of 12 per minute of facility 01-001" in problem
    ledger = Ledger()
    for each in within:
        ledger.apply(each)
    seam = Record(2, within[1].time_us, RecordKind.SNAPSHOT, ledger.snapshot())
    assert decided(log, within, [seam, record(3, 1)]).problems == [
        problem.replace("record 2", "record 3")
    ]
    assert decided(log, within, [seam, record(3, 1, now=OPEN + 60)]).problems == []


FEW = {"key_version": "facilities/few/keys/k/versions/1", "facility": "few", "group": ""}


def test_lifetimes_are_counted_anew_over_all_parts(log: Path) -> None:
    within = [record(0, 10, **FEW), record(1, 2, **FEW, now=OPEN + 86_400)]
    assert decided(log, within).problems == []
    [problem] = decided(log, [*within, record(2, 1, **FEW)]).problems
    assert problem == (
        "record 2: its 1 item exceeds the lifetime of 12 signatures of its version"
        " (profiles.few.lifetime_signatures)"
    )
    ledger = Ledger()
    for each in within:
        ledger.apply(each)
    seam = Record(2, within[1].time_us, RecordKind.SNAPSHOT, ledger.snapshot())
    late = record(3, 1, **FEW, now=OPEN + 10 * 86_400)
    assert decided(log, within, [seam, late]).problems == [problem.replace("record 2", "record 3")]
    second = {**FEW, "key_version": "facilities/few/keys/k/versions/2"}
    assert decided(log, within, [seam, record(3, 10, **second)]).problems == []


@pytest.mark.parametrize(("later", "wrong"), [(-5, 0), (300, 0), (-6, 1), (301, 1), (10**9, 1)])
def test_a_decision_is_of_the_time_of_its_record(log: Path, later: int, wrong: int) -> None:
    """Otherwise whoever appends an intent would choose the opening hours for it."""
    intent = record()._replace(time_us=(OPEN + later) * 1_000_000)
    problems = decided(log, [intent]).problems
    assert len(problems) == wrong
    assert all(f"of the time {OPEN}, and its" in problem for problem in problems)


@pytest.mark.parametrize("text", [b"other", POLICY.replace(b"JWS", b"PDF")])
def test_a_text_that_is_no_policy_or_another_one_is_told_once(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "policies").mkdir()
    (tmp_path / "policies" / sha256(TEXT).hexdigest()).write_bytes(text)
    fold = decided(tmp_path, [record(seq) for seq in range(3)])
    [problem] = fold.problems
    assert "record 0: it and those after it cannot be decided" in problem
    assert fold.decided == 0


def test_problems_are_counted_beyond_the_first(log: Path) -> None:
    part = DecidedPart(log)
    for seq in range(150):
        part.take(record(seq, principal=STRANGER))
    assert (len(part.problems), part.unlisted) == (100, 50)
    fold = DecisionFold(log)
    fold.join(part)
    assert fold.problems[-1] == "and 50 more about decisions"
