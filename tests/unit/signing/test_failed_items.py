"""Items that fail: what they cost, what the log holds of them, and how they fail again."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from signer.audit.format.segments import list_segments
from signer.audit.read.reader import Reader
from signer.clock import SystemClock
from signer.config.policy_documents import load_policy
from signer.errors import CallError, Failure, Reason
from signer.hsm.front.chunks import Signed
from signer.hsm.front.pool import Admission
from signer.model import Format, KeyName
from signer.signing.repeat import ONLY_THE_REASON, read_answer
from signer.signing.request import BatchRequest
from tests.stand_ins import key_version
from tests.unit.signing.stage import CLIENT, ID, Stage
from tests.upgrade.make_log import INVALID, LOST

POLICY = """
roles: {operator: []}
profiles:
  records:
    formats: [JWS]
    algorithms: [ES256]
    max_batch_items: 4096
    quotas: ["QUOTA per day"]
    content: {required_members: [dose]}
facilities:
  "a": {profile: records, clients: ["spiffe://x/issuer"]}
"""
TEN, MANY = POLICY.replace("QUOTA", "10"), POLICY.replace("QUOTA", "9999")
KEY = KeyName("a", "k")
VERSION = key_version(key=KEY, cka_id=b"1")
GOOD, DENIED, WRONG = b'{"dose":1}', b'{"name":1}', b"no JSON"
LOG_1 = Path(__file__).parents[2] / "upgrade" / "log-1"


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    made = Stage(tmp_path, TEN, [VERSION])
    yield made
    made.close()


def request(*payloads: bytes, request_id: str = ID) -> BatchRequest:
    deadline = SystemClock().monotonic() + 30
    return BatchRequest(CLIENT, KEY, None, Format.JWS, payloads, deadline, request_id)


# --- quota -------------------------------------------------------------------------------------


def test_what_fails_costs_as_much_as_what_is_signed_also_after_a_restart(tmp_path: Path) -> None:
    stage = Stage(tmp_path, TEN, [VERSION])
    assert set(stage.sign(request(GOOD, DENIED, WRONG)).failures) == {1, 2}
    assert (stage.hsm.signed, stage.left("a")) == (1, 7)
    stage.close()
    again = Stage(tmp_path, TEN, [VERSION])
    assert again.ledger.totals() == {"a": {"k": 3}}
    again.close()


def test_a_batch_of_which_nothing_can_be_signed_costs_quota_and_no_record(stage: Stage) -> None:
    for left in (7, 4, 1):
        assert len(stage.sign(request(WRONG, WRONG, DENIED)).failures) == 3
        assert (stage.kinds, stage.left("a")) == ([], left)
    with pytest.raises(CallError) as caught:
        stage.sign(request(WRONG, WRONG))
    assert caught.value.reason is Reason.QUOTA_EXCEEDED


# --- the audit log -----------------------------------------------------------------------------


def test_failed_items_take_about_a_kilobyte_of_the_log(tmp_path: Path) -> None:
    stage = Stage(tmp_path, MANY, [VERSION])
    ends = [0]
    for failing in ([], [WRONG] * 4095, [WRONG, DENIED] * 2047):
        answer = stage.sign(request(GOOD, *failing, request_id=""))
        assert len(answer.failures) == len(failing)
        ends.append(list_segments(stage.folder)[0].path.stat().st_size)
    alone, one_reason, two_reasons = (end - begin for begin, end in pairwise(ends))
    assert one_reason - alone < 600
    assert two_reasons - alone < 1100
    stage.close()


def test_the_answer_names_its_record(stage: Stage) -> None:
    first, second = stage.sign(request(GOOD, request_id="")), stage.sign(request(GOOD, WRONG))
    assert (first.audit_record, second.audit_record) == (0, 2)
    assert stage.sign(request(GOOD, WRONG)).audit_record == 2
    assert stage.sign(request(WRONG, request_id="")).audit_record is None


# --- repetitions -------------------------------------------------------------------------------


def test_an_item_that_the_hsm_failed_fails_again(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = Failure(Reason.HSM_UNAVAILABLE, "two workers died", 1.0)

    async def sign(admission: Admission) -> Signed:
        return Signed([b"", *[bytes([7]) * 64] * (len(admission.job.inputs) - 1)], {0: lost})

    monkeypatch.setattr(stage.hsm, "sign", sign)
    asked = request(WRONG, GOOD, GOOD)
    first = stage.sign(asked)
    assert first.failures[1] == lost
    monkeypatch.undo()
    again = first.failures | {1: replace(lost, message=ONLY_THE_REASON)}
    assert stage.sign(asked) == first._replace(failures=again)


def test_a_payload_that_was_refused_is_refused_again_with_its_message(
    stage: Stage, tmp_path: Path
) -> None:
    asked = request(GOOD, DENIED, WRONG)
    first = stage.sign(asked)
    assert stage.sign(asked) == first
    file = tmp_path / "policy.yaml"
    file.write_text(TEN.replace("[dose]", "[name]"))
    stage.served.snapshot = replace(stage.served.snapshot, policy=load_policy(file))
    again = stage.sign(asked)
    # The reason stays. No rule that is in force now gives a message for it.
    denied = replace(first.failures[1], message=ONLY_THE_REASON, rule="")
    assert again == first._replace(failures=first.failures | {1: denied}, terms=again.terms)
    assert set(stage.sign(asked._replace(request_id="")).failures) == {0, 2}


def test_messages_of_version_1_of_the_log_are_said_again(tmp_path: Path) -> None:
    shutil.copytree(LOG_1, tmp_path / "log")
    intent, outcome = Reader(list_segments(tmp_path / "log" / "audit")).records(1, 3)
    earlier = read_answer(intent, outcome)
    said = Failure(Reason.PAYLOAD_INVALID, "payload is not JSON")
    lost = Failure(Reason.HSM_UNAVAILABLE, "two workers died over this item", 1.0)
    assert (earlier.failed, earlier.signed.failures) == ({INVALID: said}, {LOST: lost})
