"""The kind policy: a text put in force by its hash."""

from hashlib import sha256
from typing import Any

import pytest

from signer.config.policy_files import PolicyFile, policy_text
from signer.errors import CallError
from signer.events import PolicyFilesDiffer
from signer.officers.kinds.policy_change import WRITTEN
from signer.officers.store import OperationState
from tests.unit.officers.opstage import POLICY, Stage
from tests.unit.officers.people import A


def draft(stage: Stage, old: str, new: str) -> None:
    assert old in POLICY
    (stage.policy / "policy.yaml").write_text(POLICY.replace(old, new))


def test_a_policy_is_put_in_force(stage: Stage) -> None:
    draft(stage, "200 per second", "300 per second")
    before = stage.snapshot.policy.sha256
    shown = stage.prepare("policy").difference
    assert "~ facility 01-001: quotas 200 per second becomes 300 per second" in shown
    operation = stage.done("policy")
    assert stage.snapshot.policy.sha256 == (operation.result or {})["policy_sha256"]
    assert operation.proposal.details["replaces"] == before
    assert stage.log.control.policy.hex() == stage.snapshot.policy.sha256


def test_a_policy_that_says_the_same_in_other_words(stage: Stage) -> None:
    draft(stage, "profiles:", "# a remark\nprofiles:")
    assert stage.prepare("policy").difference == ["  the rules have the same effect as before"]
    stage.done("policy")


def test_a_policy_is_refused(stage: Stage) -> None:
    assert "in force already" in stage.problems("policy")[0]
    draft(stage, "[JWS, MESSAGE]", "[JWS, RECEIPT]")
    assert "profiles.clinic.formats" in "\n".join(stage.problems("policy"))
    draft(stage, "clients: [spiffe://signer.example/ministry]", f"clients: [{A}]")
    assert f"{A} is a client in the policy" in stage.problems("policy")[0]
    draft(stage, "200 per second", "300 per second")
    [problem] = stage.problems("policy", policy_sha256="0" * 64)
    assert "the appliance's files hold" in problem
    assert "is not the text of a policy" in stage.problems("policy", b"x")[0]
    for text in (b"1:a,1:b,", b"6:a.yaml,1:b,"):
        assert stage.problems("policy", text)


def sent(*replaced: str, name: str = "policy.yaml") -> bytes:
    old, new = replaced
    assert old in POLICY
    return policy_text([PolicyFile(name, POLICY.replace(old, new).encode())])


def test_a_policy_comes_from_the_desk(stage: Stage) -> None:
    """Nobody touches the appliance's files: they follow what officers put in force."""
    text = sent("200 per second", "300 per second")
    shown = stage.prepare("policy", text).difference
    assert shown[0] == "~ facility 01-001: quotas 200 per second becomes 300 per second"
    assert not any(line.startswith("!") for line in shown)
    operation = stage.done("policy", text)
    assert stage.snapshot.policy.sha256 == sha256(text).hexdigest()
    assert "300 per second" in (stage.policy / "policy.yaml").read_text()
    assert operation.result == {"policy_sha256": sha256(text).hexdigest(), "policy_files": WRITTEN}
    assert stage.proposals.get(operation.id)[1] == shown
    assert stage.proposals.policy().text == text
    assert "in force already" in stage.problems("policy", text)[0]


def test_a_policy_from_the_desk_leaves_a_draft_alone_and_says_so(stage: Stage) -> None:
    draft(stage, "200 per second", "900 per second")
    text = sent("200 per second", "300 per second")
    assert any(
        line.startswith("! the appliance's own files stay as they are") and "holds a draft" in line
        for line in stage.prepare("policy", text).difference
    )
    operation = stage.done("policy", text)
    assert "holds a draft" in (operation.result or {})["policy_files"]
    assert "900 per second" in (stage.policy / "policy.yaml").read_text()
    assert str(stage.snapshot.policy.facilities["01-001"].terms.quotas[0]) == "300 per second"


def test_a_start_renews_an_outdated_copy_and_leaves_a_draft_alone(stage: Stage) -> None:
    """A crash may come in between a policy's coming into force and its files."""
    stage.done("policy", sent("200 per second", "300 per second"))
    file = stage.policy / "policy.yaml"
    file.write_text(POLICY)
    stage.start()
    assert "300 per second" in file.read_text()
    draft(stage, "200 per second", "900 per second")
    stage.start()
    assert "900 per second" in file.read_text()
    assert any("a draft" in event.text for event in stage.seen.of(PolicyFilesDiffer))


def test_a_policy_from_the_desk_is_refused_like_one_in_the_files(stage: Stage) -> None:
    wrong = stage.problems("policy", sent("[JWS, MESSAGE]", "[JWS, RECEIPT]"))
    assert any(text.startswith("profiles.clinic.formats: RECEIPT is not known") for text in wrong)
    text = sent("200 per second", "300 per second")
    [problem] = stage.problems("policy", text, policy_sha256="0" * 64)
    assert "the attachment is" in problem
    content = stage.prepare("policy", text).content
    with pytest.raises(CallError, match="attachment: is not the policy that the operation names"):
        stage.put(content, sent("200 per second", "301 per second"))
    with pytest.raises(CallError, match="neither stored nor in the files"):
        stage.put(content)


def test_what_is_put_in_force_is_what_was_proposed_whatever_the_files_say_then(
    stage: Stage,
) -> None:
    draft(stage, "200 per second", "300 per second")
    operation = stage.propose("policy")
    draft(stage, "200 per second", "900 per second")
    stage.approve(operation.id)
    assert stage.operation(operation.id).state is OperationState.DONE
    assert stage.snapshot.policy.sha256 == operation.proposal.details["policy_sha256"]
    assert str(stage.snapshot.policy.facilities["01-001"].terms.quotas[0]) == "300 per second"


def test_a_policy_that_was_put_in_force_since(stage: Stage) -> None:
    draft(stage, "200 per second", "300 per second")
    late = stage.propose("policy").id
    draft(stage, "200 per second", "400 per second")
    stage.done("policy")
    stage.approve(late)
    assert "another policy was put in force since" in stage.operation(late).note
    assert str(stage.snapshot.policy.facilities["01-001"].terms.quotas[0]) == "400 per second"


def document(stage: Stage) -> str:
    """Keeps a document that is no policy; a CSV of an enrolment is one."""
    with stage.registry.writing(counts=False) as write:
        return write.store(b"facility,group\n")


def unreadable(stage: Stage) -> str:
    """Keeps the text of a policy that this release refuses."""
    with stage.registry.writing(counts=False) as write:
        return write.store(policy_text([PolicyFile("x.yaml", b"rules: []\n")]))


@pytest.mark.parametrize("kept", [document, unreadable, lambda _: "0" * 64])
def test_what_an_officer_has_written_otherwise(stage: Stage, kept: Any) -> None:
    """A document that is kept for something else is no policy."""
    members = {"policy_sha256": kept(stage), "replaces": stage.snapshot.policy.sha256}
    with pytest.raises(CallError, match="OPERATION_REFUSED"):
        stage.put(stage.crafted("policy", **members))
    assert stage.proposals.page(None, 10, None) == []


def test_the_policy_in_force_cannot_be_put_back_by_an_old_approval(stage: Stage) -> None:
    first = stage.snapshot.policy.sha256
    draft(stage, "200 per second", "300 per second")
    old = stage.done("policy")
    (stage.policy / "policy.yaml").write_text(POLICY)
    stage.done("policy")
    assert stage.snapshot.policy.sha256 == first
    with pytest.raises(CallError, match=r"is proposed already|was put in force since"):
        stage.put(old.content)
    with pytest.raises(CallError, match="is DONE, not FAILED"):
        stage.proposals.retry(A, old.id)
    assert stage.snapshot.policy.sha256 == first
    assert sha256(stage.registry.document(first) or b"").hexdigest() == first
