"""The desk: what it hears, what it keeps, whose signatures it takes, what it lists."""

import json
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from signer.audit.format.record import RecordKind
from signer.config.models import OperationsConfig
from signer.errors import CallError
from signer.officers.approval import MAX_BYTES, Proposal, parse
from signer.officers.execution import KINDS
from signer.officers.store import OperationState, OperationStore, StoredOperation
from tests.unit.officers.opstage import CLINIC, DAY, LIFE, ORIGIN, START, Stage
from tests.unit.officers.people import OFFICERS, A, B, C, D, E, sign

KEY: dict[str, Any] = {"key": CLINIC, "algorithm": "ES256", "activate": True}


NO_OBJECTS = [
    *("{", "[]", "7", "null", "nul", "\0", '"x"', "\ufeff{}"),
    *("[" * 100_000, '{"a":' * 100_000, "9" * 5000),
    *('{"key": "\\ud800"}', '{"\\udfff": 1}'),
]
NONSENSE = [
    *("", "{}", '{"a": NaN}', '{"version": [[[[[[]]]]]]}', '{"at": 1e999}', '{"target": {}}'),
    '{"key": 7, "algorithm": null, "version": true, "activate_at": "x"}',
]


def key(stage: Stage, **changed: Any) -> StoredOperation:
    by = changed.pop("by", A)
    return stage.propose("create-key", by=by, **KEY | changed)


def heard(call: Callable[[], object]) -> CallError:
    with pytest.raises(CallError) as refused:
        call()
    return refused.value


# --- arguments ------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", NO_OBJECTS, ids=range(13))
def test_arguments_that_are_no_object(untouched: Stage, arguments: str) -> None:
    error = heard(lambda: untouched.proposals.prepare(A, "create-key", arguments, b""))
    assert error.message == "arguments: is not a JSON object"


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("arguments", NONSENSE, ids=range(7))
@pytest.mark.parametrize("attachment", [b"", b"\0\xff" * 50, b"[[]]"], ids=range(3))
def test_nonsense_is_told_for_every_kind(
    untouched: Stage, kind: str, arguments: str, attachment: bytes
) -> None:
    prepared = untouched.proposals.prepare(A, kind, arguments, attachment)
    needs_nothing = kind in ("officers", "create-wrapping-key") and not attachment
    assert prepared.problems or needs_nothing
    assert bool(prepared.content) is not bool(prepared.problems)


def test_the_same_proposal_twice_is_warned_of(stage: Stage) -> None:
    def warnings(**changed: Any) -> list[str]:
        shown = stage.prepare("create-key", **KEY | changed).difference
        return [line for line in shown if "is the same" in line]

    assert warnings() == []
    one = key(stage)
    text = f"! operation {one.id}, which waits for signatures, is the same: approve that one"
    assert warnings() == [text]
    assert warnings(activate=False) == []
    stage.proposals.reject(B, one.id, "not now")
    assert warnings() == []
    key(stage)
    stage.clock.forward(LIFE)
    assert warnings() == []


def test_a_kind_that_there_is_not(stage: Stage) -> None:
    error = heard(lambda: stage.proposals.prepare(A, "sign-anything", "{}", b""))
    assert "the kinds are activate, add-placement, clock, create-key, create-wrapping-key, " in (
        error.message
    )


def test_an_operation_that_is_too_long_to_read(stage: Stage) -> None:
    members: dict[str, Any] = {"version": "x" * MAX_BYTES}
    assert stage.problems("deactivate", **members)
    long: dict[str, Any] = {"version": CLINIC, "certificate": "a" * (2 * MAX_BYTES), "issuers": []}
    assert stage.problems("import-certificate", **long)


# --- proposing ------------------------------------------------------------------------------


def other(stage: Stage, **members: Any) -> bytes:
    now = int(stage.clock.now())
    good: dict[str, Any] = {
        "origin": ORIGIN,
        "id": str(uuid.uuid4()),
        "kind": "create-key",
        "proposer": A,
        "proposed_at": now,
        "expires_at": now + LIFE,
        "officers": 2,
        "details": KEY | {"token": "soft"},
        "deployment": stage.registry.state().deployment,
    }
    return Proposal(**good | members).canonical()


def test_what_is_prepared_is_what_is_proposed(stage: Stage) -> None:
    prepared = stage.prepare("create-key", **KEY)
    operation = stage.put(prepared.content)
    assert (operation.content, operation.state) == (prepared.content, OperationState.PROPOSED)
    assert stage.proposals.get(operation.id)[1] == prepared.difference
    [record] = stage.log.of(RecordKind.PROPOSAL)
    assert record.fields["content"] == prepared.content
    assert stage.put(other(stage)).state is OperationState.PROPOSED


@pytest.mark.parametrize(
    ("members", "told"),
    [
        ({"origin": "another.example/log"}, "it is for the log another.example/log"),
        ({"deployment": "0" * 32}, "is for another deployment"),
        ({"deployment": ""}, "is for another deployment (none)"),
        ({"proposer": B}, f"its proposer is {B}"),
        ({"officers": 3}, "it asks for 3 officers, create-key needs 2 here"),
        ({"officers": 1}, "needs at least 2 officers"),
        ({"proposed_at": int(START) - 2 * LIFE, "expires_at": int(START) - LIFE}, "too long ago"),
        ({"proposed_at": int(START) + 99, "expires_at": int(START) + 99 + LIFE}, "too long ago"),
        ({"expires_at": int(START) + 10 * LIFE}, "its expiry is not 24 h after its proposal"),
        ({"expires_at": int(START) + 60}, "its expiry is not 24 h after its proposal"),
        (
            {"kind": "sign-anything"},
            'no kind of operation "sign-anything"; the kinds are activate, ',
        ),
        ({"details": {}}, "key: is missing"),
        ({"details": KEY | {"token": "soft", "more": 1}}, "more: is not known"),
        ({"details": KEY | {"token": "soft", "bits": "0"}}, "whole number"),
    ],
)
def test_a_proposal_is_refused(stage: Stage, members: dict[str, Any], told: str) -> None:
    assert told in heard(lambda: stage.put(other(stage, **members))).message
    assert stage.proposals.page(None, 10, None) == []
    assert stage.log.of(RecordKind.PROPOSAL) == []


def test_a_signature_of_somebody_else_proposes_nothing(stage: Stage) -> None:
    content = stage.prepare("create-key", **KEY).content
    for signature in (sign(B, content), sign(A, content)[:-1], b"", b"x" * 2000):
        error = heard(lambda: stage.proposals.propose(A, content, signature, b""))
        assert error.reason == "APPROVAL_INVALID"
    error = heard(lambda: key(stage, by=D))
    assert f"{D} is not an officer" in error.message


@pytest.mark.parametrize("end", ["proposed", "done", "rejected", "expired"])
def test_a_proposal_cannot_be_made_again(stage: Stage, end: str) -> None:
    operation = key(stage)
    if end == "done":
        stage.approve(operation.id)
    if end == "rejected":
        stage.proposals.reject(A, operation.id, "no")
    if end == "expired":
        stage.clock.forward(LIFE)
    with pytest.raises(CallError, match=r"proposed already|too long ago|exists"):
        stage.put(operation.content)
    assert len(stage.log.of(RecordKind.PROPOSAL)) == 1


def test_an_attachment_is_for_kinds_that_take_one(stage: Stage) -> None:
    assert "takes no attachment" in stage.problems("create-key", b"x", **KEY)[0]
    content = stage.prepare("create-key", **KEY).content
    with pytest.raises(CallError, match="takes no attachment"):
        stage.put(content, b"x")


# --- approving ------------------------------------------------------------------------------


def test_the_last_signature_has_it_executed(stage: Stage) -> None:
    operation = key(stage)
    approved = stage.approve(operation.id)
    assert approved.signers == {A, B}
    assert stage.operation(operation.id).state is OperationState.DONE
    assert "is DONE" in heard(lambda: stage.approve(operation.id, by=C)).message
    assert "is DONE" in heard(lambda: stage.proposals.retry(C, operation.id)).message
    kinds = [record.kind for record in stage.log.records[3:]]
    assert kinds == [
        RecordKind.PROPOSAL,
        RecordKind.APPROVAL,
        RecordKind.EXECUTION,
        RecordKind.KEYS,
        RecordKind.EXECUTED,
    ]


def test_whose_signatures_do_not_count(stage: Stage) -> None:
    first, second = key(stage), key(stage)
    wrong = {
        f"{A} proposed operation {first.id}": (A, sign(A, first.content)),
        f"not by {B}": (B, sign(C, first.content)),
        f"not by {C}": (C, sign(C, second.content)),
        f"{D} is not an officer": (D, sign(D, first.content)),
        f"not by {B} ": (B, sign(B, first.content + b"\n")),
    }
    for told, (who, signature) in wrong.items():
        error = heard(lambda: stage.proposals.approve(who, first.id, signature))
        assert (error.reason, told.strip() in error.message) == ("APPROVAL_INVALID", True)
    assert stage.operation(first.id).signers == {A}
    assert stage.log.of(RecordKind.APPROVAL) == []


def test_three_officers_where_three_are_needed(tmp_path: Path, template: Path) -> None:
    stage = Stage(tmp_path / "stage", template, needed=OperationsConfig(officers=3))
    operation = key(stage)
    assert operation.proposal.officers == 3
    stage.approve(operation.id)
    assert stage.operation(operation.id).state is OperationState.PROPOSED
    with pytest.raises(CallError, match=f"{B} has already signed"):
        stage.approve(operation.id)
    stage.approve(operation.id, by=C)
    assert stage.operation(operation.id).state is OperationState.DONE
    assert stage.log.control.problems == ()
    stage.close()


@pytest.mark.parametrize("signed", [False, True], ids=["approved", "approved before"])
def test_more_officers_are_needed_since_it_was_proposed(stage: Stage, signed: bool) -> None:
    """Two officers and somebody with SQL must not do what three are needed for."""
    operation = key(stage)
    if signed:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(stage.executor, "submit", lambda _: None)  # the daemon stops before
            stage.approve(operation.id)
    config: Any = stage.config
    config.operations = OperationsConfig(kinds={"create-key": 3})
    stage.start()
    if signed:
        ended = stage.operation(operation.id)
        assert ended.state is OperationState.FAILED
        assert "asks for 2 officers, and create-key needs 3 here" in ended.note
    else:
        error = heard(lambda: stage.approve(operation.id))
        assert "asks for 2 officers, and create-key needs 3 here" in error.message
    assert not stage.token.keys
    assert not list(stage.snapshot.keys)


def test_an_officer_whose_certificate_has_expired(tmp_path: Path, template: Path) -> None:
    from tests.unit.officers.people import der_of  # noqa: PLC0415

    stage = Stage(tmp_path / "stage", template, officers={**OFFICERS, E: der_of(E)})
    stage.approve(key(stage).id, by=E)
    stage.clock.forward(40 * DAY)
    late = key(stage, key=f"{CLINIC}-2")
    error = heard(lambda: stage.approve(late.id, by=E))
    assert f"the certificate of {E} ended on 2026-02-10T00:00:00Z" in error.message
    stage.close()


def test_after_its_time_it_takes_no_signatures(stage: Stage) -> None:
    operation = key(stage)
    stage.clock.time = operation.proposal.expires_at - 0.02
    assert stage.operation(operation.id).state_at(stage.clock.now()) is OperationState.PROPOSED
    stage.clock.time = operation.proposal.expires_at
    for call in (
        lambda: stage.approve(operation.id),
        lambda: stage.proposals.reject(B, operation.id, "no"),
        lambda: stage.proposals.retry(B, operation.id),
    ):
        assert "is EXPIRED" in heard(call).message
    assert stage.token.keys == {}


def test_what_was_rejected_stays_so(stage: Stage) -> None:
    operation = key(stage)
    for reason in ("", " ", "x" * 1001):
        assert "reason" in heard(lambda: stage.proposals.reject(B, operation.id, reason)).message
    stage.proposals.reject(A, operation.id, "a mistake")
    assert stage.operation(operation.id).note == f"rejected by {A}: a mistake"
    assert "is REJECTED" in heard(lambda: stage.approve(operation.id)).message
    assert "is REJECTED" in heard(lambda: stage.proposals.reject(B, operation.id, "no")).message
    assert "is REJECTED" in heard(lambda: stage.proposals.retry(A, operation.id)).message


@pytest.mark.parametrize(
    "identity", ["", "x", str(uuid.UUID(int=7)), "' OR 1=1 --", "a" * 5000], ids=range(5)
)
def test_operations_that_there_are_not(stage: Stage, identity: str) -> None:
    desk = stage.proposals
    for call in (
        lambda: desk.get(identity),
        lambda: desk.approve(B, identity, b"x"),
        lambda: desk.reject(B, identity, "no"),
        lambda: desk.retry(B, identity),
        lambda: desk.import_certificates(B, identity, [b"x"]),
    ):
        assert heard(call).reason == "OPERATION_NOT_FOUND"


def test_what_cannot_be_executed_any_more_says_so_when_it_is_shown(stage: Stage) -> None:
    version = stage.key()
    operation = stage.propose("deactivate", version=version)
    stage.emergency.compromise(C, version, "lost")
    _, [line] = stage.proposals.get(operation.id)
    assert line.startswith("! it can no longer be executed")


# --- lists ----------------------------------------------------------------------------------


def test_operations_are_listed_newest_first_in_pages(stage: Stage) -> None:
    made = []
    for number in range(7):
        made.append(key(stage, key=f"{CLINIC}-{number}").id)
        if number % 2:
            stage.clock.forward(5)
    found: list[str] = []
    before: tuple[float, str] | None = None
    while page := stage.proposals.page(None, 2, before):
        assert len(page) <= 2
        found += [each.id for each in page]
        before = (float(page[-1].proposal.proposed_at), page[-1].id)
    assert sorted(found) == sorted(made)
    times = [stage.operation(each).proposal.proposed_at for each in found]
    assert times == sorted(times, reverse=True)


def test_operations_are_listed_by_state_and_counted(stage: Stage) -> None:
    first, second, third = (key(stage, key=f"{CLINIC}-{n}").id for n in range(3))
    stage.approve(first)
    stage.proposals.reject(B, second, "no")
    assert OperationStore(stage.registry).pending(stage.clock.now()) == 1
    for state, identity in (
        (OperationState.DONE, first),
        (OperationState.REJECTED, second),
        (OperationState.PROPOSED, third),
    ):
        assert [each.id for each in stage.proposals.page(state, 9, None)] == [identity]
    stage.clock.forward(LIFE)
    assert OperationStore(stage.registry).pending(stage.clock.now()) == 0
    assert [each.id for each in stage.proposals.page(OperationState.EXPIRED, 9, None)] == [third]


def test_the_result_is_kept_as_it_was(stage: Stage) -> None:
    operation = stage.done("create-key", **KEY)
    assert json.loads(json.dumps(operation.result)) == operation.result
    assert parse(operation.content) == operation.proposal
    assert operation.appliance == ORIGIN
