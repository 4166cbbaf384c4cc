"""What a log must account for: states, stops, policies of intents, and approvals used once."""

from base64 import b64encode
from collections.abc import Callable, Sequence
from hashlib import sha256
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from signer.audit.format.record import Column, RecordKind, Value
from signer.keys.lifecycle import cka_id_of
from signer.officers.change_check import ChangeFold, ChangePart
from signer.officers.key_history import CALL_US
from signer.officers.standing import certificate_hash
from tests.unit.officers.test_offline_check import (
    ANN,
    BEN,
    CAT,
    DAY,
    POLICY,
    History,
    Operation,
    place_of,
)

VERSION = "facilities/01-001/keys/records/versions/1"
OTHER = "facilities/01-002/keys/records/versions/1"
SECOND, THIRD = (sha256(name).digest() for name in (b"second policy", b"third policy"))
CALL = CALL_US // 1_000_000


class Signing(History):
    """A history in which batches are signed."""

    def intend(self, version: str = VERSION, policy: bytes = POLICY, group: str = "01") -> int:
        fields: dict[str, Value] = {
            "principal": "spiffe://x/issuer",
            "key_version": version,
            "facility": version.split("/")[1],
            "group": group,
            "policy": policy,
        }
        self.add(RecordKind.INTENT, **fields)
        self._column(Column(32, bytes(64)))
        return self.records[-1].seq

    def answer(self, intent: int, *, failed: Sequence[int] = ()) -> None:
        failures: dict[str, Value] = {str(index): "LOST" for index in failed}
        self.add(RecordKind.OUTCOME, intent=intent, attempts=1, failures=failures)
        self._column(Column(64, bytes(128)))

    def sign(self, version: str = VERSION, policy: bytes = POLICY, group: str = "01") -> int:
        intent = self.intend(version, policy, group)
        self.answer(intent)
        return intent

    def keys(self, changes: int | None = None, **states: str) -> None:
        """The states of versions 1 of keys by facility: ``f01_001="ACTIVE"``."""
        changed = {
            f"facilities/{name[1:].replace('_', '-')}/keys/records/versions/1": state
            for name, state in states.items()
        }
        count = len(changed) if changes is None else changes
        self.add(RecordKind.KEYS, registry_revision=self.time, changed=changed, changes=count)

    def act(self, target: str, act: str = "suspend", state: str = "SUSPENDED") -> None:
        changed = {target: state} if "/versions/" in target else {}
        self.add(RecordKind.ACT, act=act, target=target, officer=CAT, reason="r", changed=changed)

    def resume(self, target: str, kind: str = "resume") -> Operation:
        name = "version" if kind == "activate" else "target"
        operation = self.propose(kind, (ANN, BEN), **{name: target})
        self.begin(operation)
        return operation

    def _column(self, column: Column) -> None:
        self.records[-1] = self.records[-1]._replace(column=column)


def problems(history: History, *cuts: int, elsewhere: bool = False) -> tuple[str, ...]:
    """What is wrong with a history, read in parts that begin at these records."""
    fold = ChangeFold(operations_elsewhere=elsewhere)
    places = [0, *cuts, len(history.records)]
    for start, stop in pairwise(places):
        part = ChangePart()
        for record in history.records[start:stop]:
            part.take(record)
        fold.join(part)
    return fold.problems


def problem_of(history: History) -> str:
    """The one problem; it is found once wherever the log is cut."""
    [problem] = problems(history)
    for place in range(1, len(history.records)):
        assert len(problems(history, place)) == 1
    return problem


def seq_of(problem: str) -> int:
    return int(problem.removeprefix("record ").partition(":")[0])


def whole() -> Signing:
    """All that may happen to keys and policies beside signatures, by the rules."""
    history = Signing()
    history.keys(f01_001="ACTIVE", f01_002="PRE_ACTIVE")
    history.sign()
    history.keys(f01_001="SUSPENDED")
    history.act(VERSION)
    history.sign(OTHER)
    operation = history.resume(VERSION)
    history.keys(f01_001="ACTIVE")
    history.sign()
    history.end(operation)
    for target in ("facility 01-001", "group 01", "everything"):
        late = history.intend()
        history.act(target)
        history.answer(late)
        history.answer(history.intend(), failed=[0, 1])
        head, _, name = target.partition(" ")
        path = {"facility": f"facilities/{name}", "group": f"groups/{name}"}.get(head, target)
        operation = history.resume(path)
        history.sign()
        history.end(operation)
    late = history.intend()
    history.put_policy(SECOND)
    history.answer(late)
    history.sign()  # it was authorised before
    history.sign(policy=SECOND)
    history.put_policy(POLICY)
    history.sign()
    history.keys(f01_001="DEACTIVATED")
    history.sign()  # a batch that began before
    history.keys(f01_001="DESTROY_SCHEDULED")
    history.keys(f01_001="DEACTIVATED")
    history.keys(f01_002="COMPROMISED")
    history.keys(f01_002="DESTROY_SCHEDULED")
    history.keys(f01_002="COMPROMISED")
    return history


def test_a_history_by_the_rules_has_no_problem_wherever_it_is_cut() -> None:
    history = whole()
    assert problems(history) == ()
    for place in range(1, len(history.records)):
        assert problems(history, place) == ()


@given(st.lists(st.integers(1, len(whole().records) - 1), unique=True).map(sorted))
def test_parts_say_together_what_the_whole_says(cuts: list[int]) -> None:
    assert problems(whole(), *cuts) == ()


# --- policies ----------------------------------------------------------------------------------


def test_an_intent_under_a_policy_that_no_record_puts_in_force_is_a_problem() -> None:
    history = Signing()
    history.sign()
    first = history.sign(policy=SECOND)
    history.sign(policy=SECOND)
    problem = problem_of(history)
    assert seq_of(problem) == first
    assert f"under policy {SECOND.hex()}, which no record puts in force" in problem


def test_a_policy_may_be_used_a_moment_before_its_record_and_not_long_before() -> None:
    history = Signing()
    history.sign(policy=SECOND)
    history.put_policy(SECOND)
    assert problems(history) == ()
    early = Signing()
    first = early.sign(policy=SECOND)
    early.time += CALL
    early.put_policy(SECOND)
    assert seq_of(problem_of(early)) == first


def test_a_replaced_policy_is_for_calls_that_began_before() -> None:
    history = Signing()
    history.put_policy(SECOND)
    history.time += CALL - 10
    history.sign()
    assert problems(history) == ()
    history.time += 10
    late = history.sign()
    history.sign()
    problem = problem_of(history)
    assert seq_of(problem) in (late, late + 2)
    assert "was replaced more than 5 minutes before" in problem


def test_an_approval_puts_a_policy_in_force_once_for_as_long_as_the_log_lives() -> None:
    history = Signing()
    history.put_policy(SECOND)
    first = history.records[place_of(history.records, RecordKind.POLICY)]
    history.put_policy(POLICY)
    history.time += 90 * 24 * 3600
    history.add(RecordKind.POLICY, **first.fields)
    problem = problem_of(history)
    assert f"puts policy {SECOND.hex()} in force again" in problem
    assert f"used in record {first.seq}" in problem


def test_an_approval_puts_officers_in_force_once_for_as_long_as_the_log_lives() -> None:
    history = Signing()
    change = history.change_officers(ANN, CAT)
    carried = history.records[place_of(history.records, RecordKind.OFFICERS, 1)]
    history.change_officers(ANN, BEN, CAT, signers=(ANN, CAT))
    history.time += 90 * 24 * 3600
    history.add(RecordKind.OFFICERS, **carried.fields)
    problem = problem_of(history)
    assert f"operation {change.id} puts the officers in force again" in problem


def test_a_policy_that_is_recorded_again_at_each_start_uses_no_approval() -> None:
    history = Signing()
    history.put_policy(SECOND)
    record = history.records[place_of(history.records, RecordKind.POLICY)]
    history.add(RecordKind.START)
    history.add(RecordKind.POLICY, **record.fields)
    history.sign(policy=SECOND)
    assert problems(history) == ()


def test_in_development_policies_come_and_go_and_intents_still_keep_to_them() -> None:
    history = Signing(development=True)
    for policy in (SECOND, THIRD, SECOND):
        history.add(RecordKind.POLICY, policy=policy)
        history.sign(policy=policy)
    assert problems(history) == ()
    history.sign(policy=sha256(b"another").digest())
    assert "which no record puts in force" in problem_of(history)


def test_a_log_that_names_no_policy_asks_nothing_of_its_intents() -> None:
    history = Signing()
    history.records = []
    history.add(RecordKind.START)
    history.sign(policy=SECOND)
    assert problems(history) == ()


# --- states ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "states",
    [
        ("COMPROMISED", "ACTIVE"),
        ("DEACTIVATED", "ACTIVE"),
        ("DESTROYED", "PRE_ACTIVE"),
        ("ACTIVE", "PRE_ACTIVE"),
        ("SUSPENDED", "DESTROY_SCHEDULED", "ACTIVE"),
        ("COMPROMISED", "DESTROY_SCHEDULED", "SUSPENDED"),
        ("DEACTIVATED", "DESTROY_SCHEDULED", "PRE_ACTIVE"),
        ("ACTIVE", "LOST"),
    ],
)
def test_a_move_that_the_table_does_not_have_is_a_problem(states: Sequence[str]) -> None:
    history = Signing()
    for state in states:
        history.keys(f01_001=state)
    problem = problem_of(history)
    assert seq_of(problem) == history.records[-1].seq
    assert states[-1] in problem


@pytest.mark.parametrize(
    "states",
    [
        ("PRE_ACTIVE", "SUSPENDED", "ACTIVE", "DESTROY_SCHEDULED", "DEACTIVATED"),
        ("PRE_ACTIVE", "DESTROY_SCHEDULED", "PRE_ACTIVE", "DEACTIVATED"),
        ("DESTROY_SCHEDULED", "SUSPENDED"),
        ("COMPROMISED", "DESTROY_SCHEDULED", "COMPROMISED", "DESTROYED"),
    ],
)
def test_moves_between_two_records_may_be_several(states: Sequence[str]) -> None:
    history = Signing()
    for state in states:
        history.keys(f01_001=state)
    assert problems(history) == ()


def test_a_record_that_does_not_name_all_changes_says_nothing_of_the_others() -> None:
    history = Signing()
    history.keys(f01_001="SUSPENDED", f01_002="COMPROMISED")
    history.keys(changes=200, f01_003="ACTIVE")
    history.sign()
    assert problems(history) == ()
    history.keys(f01_002="ACTIVE")
    assert "was COMPROMISED" in problem_of(history)


def test_what_changed_before_a_start_is_in_no_record_but_what_is_final() -> None:
    history = Signing()
    history.keys(f01_001="SUSPENDED", f01_002="COMPROMISED")
    history.add(RecordKind.START)
    history.sign()
    assert problems(history) == ()
    history.sign(OTHER)
    assert "COMPROMISED" in problem_of(history)


@pytest.mark.parametrize("state", ["COMPROMISED", "DESTROYED"])
def test_a_version_that_is_halted_signs_nothing_more(state: str) -> None:
    history = Signing()
    late = history.intend()
    history.keys(f01_001=state)
    history.answer(late)
    history.answer(history.intend(), failed=[0, 1])
    assert problems(history) == ()
    signed = history.sign()
    problem = problem_of(history)
    assert f"{VERSION} signed intent {signed}: it is {state} since record" in problem


# --- stops -------------------------------------------------------------------------------------

TARGETS = [VERSION, "facility 01-001", "group 01", "everything"]


@pytest.mark.parametrize("target", TARGETS)
def test_what_an_officer_stopped_signs_nothing(target: str) -> None:
    history = Signing()
    history.act(target)
    act = history.records[-1].seq
    signed = history.sign()
    history.sign()
    problem = problem_of(history)
    assert f"{CAT} did suspend {target} in record {act}" in problem
    assert f"signed intent {signed + 2}" in problem or f"signed intent {signed}" in problem


@pytest.mark.parametrize("target", TARGETS)
def test_intents_long_after_a_stop_are_a_problem_whatever_became_of_them(target: str) -> None:
    history = Signing()
    history.act(target)
    history.time += CALL
    history.intend()
    assert f"{VERSION} is to sign: " in problem_of(history)


@pytest.mark.parametrize("target", TARGETS)
def test_a_stop_does_not_concern_others(target: str) -> None:
    history = Signing()
    history.act(target)
    history.time += CALL
    history.sign("facilities/02-001/keys/records/versions/1", group="02")
    assert len(problems(history)) == (target == "everything")


@pytest.mark.parametrize(
    ("target", "other"),
    [
        (VERSION, OTHER),
        ("facility 01-001", "facilities/01-002"),
        ("group 01", "groups/02"),
        ("everything", "groups/01"),
        ("facility 01-001", VERSION),
    ],
)
def test_an_operation_lifts_only_what_it_names(target: str, other: str) -> None:
    history = Signing()
    history.act(target)
    history.end(history.resume(other))
    history.sign()
    assert "and no" not in problem_of(history)


def test_an_operation_that_nobody_approved_lifts_nothing() -> None:
    history = Signing()
    history.act("everything")
    operation = history.propose("resume", target="everything")
    history.begin(replace_signatures(operation))
    history.end(operation)
    history.sign()
    unapproved, signed = problems(history)
    assert "required signatures" in unapproved or "validly signed" in unapproved
    assert "did suspend everything" in signed


def replace_signatures(operation: Operation) -> Operation:
    return operation._replace(signatures=[])


def test_an_operation_that_failed_has_lifted_nothing() -> None:
    history = Signing()
    history.act("everything")
    operation = history.resume("everything")
    history.end(operation, "FAILED")
    history.sign()
    assert "did suspend everything" in problem_of(history)


@pytest.mark.parametrize("target", TARGETS)
def test_another_appliance_may_have_lifted_a_suspension_but_no_compromise(target: str) -> None:
    history = Signing()
    history.act(target)
    history.sign()
    assert problems(history, elsewhere=True) == ()
    history.act(VERSION, "compromised", "COMPROMISED")
    history.sign()
    [problem] = problems(history, elsewhere=True)
    assert "did compromised" in problem


def test_a_suspended_version_that_becomes_active_by_itself_is_a_problem() -> None:
    history = Signing()
    history.keys(f01_001="SUSPENDED")
    history.act(VERSION)
    history.keys(f01_001="ACTIVE")
    history.sign()
    problem = problem_of(history)
    assert "becomes ACTIVE" in problem
    assert "no approved operation lifts that" in problem


def test_nothing_lifts_a_compromise() -> None:
    history = Signing()
    history.act(VERSION, "compromised", "COMPROMISED")
    history.end(history.resume(VERSION))
    history.sign()
    assert "did compromised" in problem_of(history)


def test_a_planned_activation_that_was_stopped_needs_an_activation_of_its_own() -> None:
    history = Signing()
    history.act(VERSION, state="PRE_ACTIVE")
    assert problems(history) == ()
    operation = history.resume(VERSION, "activate")
    history.keys(f01_001="ACTIVE")
    history.end(operation)
    history.sign()
    assert problems(history) == ()


def test_a_key_of_another_facility_than_the_intent_names_is_a_problem() -> None:
    history = Signing()
    history.sign()
    fields = {**history.records[-2].fields, "facility": "02-001"}
    history.records[-2] = history.records[-2]._replace(fields=fields)
    assert "names facility 02-001" in problem_of(history)


# --- wherever it happens -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        lambda h: h.act("facility 01-003"),
        lambda h: h.keys(f01_003="COMPROMISED"),
        lambda h: h.keys(f01_003="DESTROYED"),
    ],
)
def test_a_stop_anywhere_in_a_history_is_compared_with_what_is_signed_then(
    change: Callable[[Signing], None],
) -> None:
    version = "facilities/01-003/keys/records/versions/1"
    for place in range(2, len(whole().records)):
        history = whole()
        del history.records[place:]
        history.time = history.records[-1].time_us // 1_000_000
        change(history)
        assert problems(history) == ()
        stop = history.records[-1].seq
        put = [r.fields["policy"] for r in history.records if r.kind is RecordKind.POLICY]
        in_force = put[-1] if put else POLICY
        assert isinstance(in_force, bytes)
        history.sign(version, in_force)
        assert any(problem.endswith(f"record {stop}") for problem in problems(history)), place


# --- from a baseline on ------------------------------------------------------------------------

DER = b"a certificate"
CERTIFIED, OTHER_CERTIFICATE = b"c" * 16, certificate_hash(DER, sha256(DER).digest()[:8])
FIRST_REVISION = 7


def row(
    name: str = VERSION,
    state: str = "ACTIVE",
    came_from: str = "",
    *,
    times: tuple[int | None, ...] = (0, None, None, None),
    cka_id: bytes | None = None,
    identity: bytes = b"i" * 16,
    certificate: bytes = CERTIFIED,
) -> list[Value]:
    """A version as a record of keys has it; times are in seconds."""
    moments = [at if at is None else at * 1_000_000 for at in times]
    known = (FIRST_REVISION, cka_id or name.encode(), identity, certificate)
    return [name, state, came_from, *moments, *known]


class Accounted(Signing):
    """A history that begins with two active versions, one of them suspended by its facility."""

    def __init__(self, *rows: list[Value], suspensions: Sequence[Value] = ()) -> None:
        super().__init__()
        self.revisions: dict[Value, int] = {}  # of versions, as the last records have them
        self.add(
            RecordKind.KEYS,
            registry_revision=3,
            baseline=True,
            part=1,
            parts=1,
            development=False,
            deployment="",
            versions=list(rows) or [row(), row(OTHER)],
            suspensions=list(suspensions),
            changed={},
            changes=0,
        )

    def seen(self, name: str = VERSION) -> dict[str, str]:
        """What officers see of a version now, as the details of an operation have it."""
        return {name: f"ACTIVE, changed at revision {self.revisions.get(name, FIRST_REVISION)}"}

    def change(
        self,
        *rows: list[Value],
        made_by: Operation | None = None,
        look: int | None = None,
        revision: int | None = None,
        **fields: Value,
    ) -> None:
        """A record of a ``look`` at the registry, of versions that were written at ``revision``."""
        look = self.time if look is None else look
        revision = look if revision is None else revision
        if made_by is not None:
            fields = {**made_by.approved(), **fields}
        self.revisions |= {row[0]: revision for row in rows}
        self.add(
            RecordKind.KEYS,
            registry_revision=look,
            versions=[[*row[:7], revision, *row[8:]] for row in rows],
            changed={},
            changes=0,
            **fields,
        )

    def did(self, operation: Operation, *rows: list[Value], **fields: Value) -> None:
        """What an execution writes: it begins, keys change, it ends."""
        self.begin(operation)
        self.change(*rows, made_by=operation, look=None, revision=None, **fields)
        self.end(operation)


def suspend_act(target: str, officer: str = CAT) -> list[Value]:
    return ["6a9b7d3e-0000-4000-8000-000000000001", "suspend", target, officer, "why", 5]


def test_all_that_officers_do_to_keys_is_accounted_for() -> None:
    history = Accounted()
    history.sign()
    act = suspend_act("facility 01-001")
    history.change(suspended=[["facility", "01-001", 5]], act=act)
    fields: dict[str, Value] = {"target": "facility 01-001", "officer": CAT, "reason": "r"}
    history.add(RecordKind.ACT, act="suspend", changed={}, id=act[0], **fields)
    resume = history.propose("resume", target="facilities/01-001", since=5)
    history.did(resume, lifted=[["facility", "01-001", 5]])
    history.sign()
    history.change(row(state="SUSPENDED"), act=suspend_act(VERSION))
    elsewhere = history.propose("resume", target=VERSION, basis=history.seen())
    history.change(row(), made_by=elsewhere)  # executed by another appliance
    history.sign()
    create = history.propose("create-key", key="facilities/01-003/keys/records", activate=True)
    made = cka_id_of(create.id, 0)
    history.did(create, row("facilities/01-003/keys/records/versions/1", cka_id=made))
    history.sign("facilities/01-003/keys/records/versions/1")
    rotate = history.propose("rotate", keys=1, issuers=["MAAA"])
    second = "facilities/01-001/keys/records/versions/2"
    new = cka_id_of(rotate.id, 0)
    history.begin(rotate)
    history.change(row(second, "PRE_ACTIVE", times=(None,) * 4, cka_id=new), made_by=rotate)
    ended = (0, None, history.time + 2 * CALL, None)
    history.change(
        row(second, cka_id=new, certificate=OTHER_CERTIFICATE),
        row(times=ended),
        operation=rotate.id,
    )
    history.end(rotate)
    history.sign(second)
    history.sign()
    history.change(row(state="COMPROMISED", times=ended), unaccounted=[])
    history.add(RecordKind.START)
    assert problems(history) == ()
    for place in range(1, len(history.records)):
        assert problems(history, place) == ()


GAINS = [
    ([row(state="SUSPENDED")], [row()], "becomes ACTIVE and was SUSPENDED", "resume"),
    (
        [row(state="DESTROY_SCHEDULED", came_from="SUSPENDED")],
        [row(state="SUSPENDED")],
        "becomes SUSPENDED and was DESTROY_SCHEDULED",
        "restore",
    ),
    ([row(times=(9**10, None, None, None))], [row()], "is active earlier", "activate"),
    ([row()], [row(certificate=OTHER_CERTIFICATE)], "another certificate", "import-certificate"),
    ([row(times=(0, 9**10, None, None))], [row()], "signs longer", ""),
    ([row(times=(0, 9**10, None, None))], [row(times=(0, 10**10, None, None))], "longer", ""),
    ([row()], [row(identity=b"j" * 16)], "has another key or place", ""),
    ([row()], [row(cka_id=b"another")], "has another key or place", ""),
    ([row()], [row(OTHER)], "appears", ""),
]
KINDS = ("resume", "restore", "activate", "import-certificate", "deactivate", "destroy", "policy")


def about(history: Accounted, kind: str, **details: Any) -> Operation:
    """An operation that names the version in all ways, and its revision."""
    names: dict[str, Any] = {
        "version": VERSION,
        "target": VERSION,
        "key": VERSION,
        "basis": history.seen(),
    }
    return history.propose(kind, certificate=b64encode(DER).decode(), **{**names, **details})


@pytest.mark.parametrize(("before", "after", "text", "makes"), GAINS)
def test_what_allows_more_needs_an_operation_of_the_kind_that_makes_it(
    before: list[list[Value]], after: list[list[Value]], text: str, makes: str
) -> None:
    history = Accounted(*before)
    history.change(*after)
    problem = problem_of(history)
    assert text in problem
    assert "no operation of officers makes that" in problem
    for kind in KINDS:
        history = Accounted(*before)
        history.did(about(history, kind), *after)
        if kind == makes:
            assert problems(history) == ()
        else:
            [problem] = problems(history)
            assert text in problem
            assert f"({kind}) does not" in problem


@pytest.mark.parametrize(("before", "after", "text", "makes"), GAINS[:4])
def test_an_operation_is_about_the_version_that_officers_saw(
    before: list[list[Value]], after: list[list[Value]], text: str, makes: str
) -> None:
    history = Accounted(*before)
    earlier = history.seen()
    history.change(*before)  # the same in another revision: somebody has changed it in between
    now = history.revisions[VERSION]
    history.did(about(history, makes, basis=earlier), *after)
    problem = problem_of(history)
    assert text in problem
    assert f"when its revision was {FIRST_REVISION}, and it was {now}" in problem
    other = Accounted(*before)
    name = "facilities/09-001/keys/k/versions/1"
    other.did(about(other, makes, version=name, target=name), *after)
    assert f"({makes}) does not" in problem_of(other)


def test_a_change_has_a_revision_after_the_one_that_officers_saw() -> None:
    history = Accounted(row(state="SUSPENDED"))
    history.did(about(history, "resume"), row())
    rows = [[*row()[:7], FIRST_REVISION, *row()[8:]]]
    made = history.records[-2]
    history.records[-2] = made._replace(fields={**made.fields, "versions": rows})
    assert f"its revision is not after {FIRST_REVISION}" in problem_of(history)


def test_a_stop_is_taken_whatever_its_revision_and_keeps_the_later_one() -> None:
    history = Accounted()
    history.change(row())
    history.add(
        RecordKind.KEYS,
        registry_revision=history.time,
        versions=[[*row(state="SUSPENDED")[:7], 3, *row()[8:]]],
    )
    history.sign()
    earlier, signed = problems(history)
    assert "has an earlier revision than before" in earlier
    assert "SUSPENDED" in signed


def test_a_rotation_makes_certifies_and_activates_each_of_its_versions_once() -> None:
    second = "facilities/01-001/keys/records/versions/2"

    def begun() -> tuple[Accounted, Operation, bytes]:
        history = Accounted()
        rotate = history.propose(
            "rotate", keys=1, issuers=["MAAA"], activate_at=history.time, sign_for_seconds=600
        )
        history.begin(rotate)
        return history, rotate, cka_id_of(rotate.id, 0)

    history, rotate, new = begun()
    start = history.time + 50
    times = (start, start + 600, None, None)
    history.change(row(second, times=times, cka_id=new), made_by=rotate)
    assert problems(history) == ()
    for again in (
        row(second, times=(start + 9, start + 609, None, None), cka_id=new),
        row(second, times=(start, start + 601, None, None), cka_id=new),
        row(f"{second}3", times=times, cka_id=new),
        row("facilities/01-009/keys/k/versions/1", times=times, cka_id=new),
        row(second, "SUSPENDED", times=times, cka_id=new, certificate=b"o" * 16),
    ):
        history, rotate, new = begun()
        history.change(row(second, times=times, cka_id=new), made_by=rotate)
        history.change(row(second, "SUSPENDED", times=times, cka_id=new))
        history.change(again, made_by=rotate)
        assert len(problems(history)) == 1, again
    history, rotate, new = begun()
    history.change(row(second, times=(start, None, None, None), cka_id=new), made_by=rotate)
    assert "appears" in problem_of(history)


@pytest.mark.parametrize(
    ("seen", "look", "wrong"), [(50, 99, 0), (99, 99, 1), (FIRST_REVISION, 99, 1), (50, 100, 1)]
)
def test_two_standings_of_one_look_may_have_its_revision_in_older_logs(
    seen: int, look: int, wrong: int
) -> None:
    """What officers saw in between is in no record; all else that they saw is."""
    history = Accounted()
    history.change(row(state="SUSPENDED"), act=suspend_act(VERSION), look=99)
    basis = {VERSION: f"SUSPENDED, changed at revision {seen}"}
    resume = history.propose("resume", target=VERSION, basis=basis)
    history.change(row(), made_by=resume, look=look, revision=99)
    assert len(problems(history)) == wrong


@pytest.mark.parametrize("number", [-1, 1 << 63, (1 << 64) - 1])
def test_a_number_that_no_version_has_cannot_be_read(number: int) -> None:
    history = Accounted()
    history.change(row(state="SUSPENDED"), look=9, revision=number)
    assert "cannot be read" in problem_of(history)
    history = Accounted()
    stopped = row(state="SUSPENDED")
    history.change([*stopped[:4], number, *stopped[5:]])
    assert "is not a number from 0 on" in problem_of(history)


@pytest.mark.parametrize("kind", ["create-key", "enrol", "rotate"])
def test_a_key_that_an_operation_did_not_make_is_not_its_key(kind: str) -> None:
    history = Accounted()
    new = "facilities/01-003/keys/records/versions/1"
    operation = history.propose(kind, key="facilities/01-003/keys/records", keys=3, activate=True)
    history.did(operation, row(new, cka_id=cka_id_of(operation.id, 5)))
    assert f"({kind}) does not" in problem_of(history)


@pytest.mark.parametrize(
    "carry",
    [
        lambda o: o._replace(signatures=o.signatures[:1]),
        lambda o: o._replace(content=o.content.replace(b"resume", b"restore")),
    ],
)
def test_an_operation_from_elsewhere_must_be_approved(
    carry: Callable[[Operation], Operation],
) -> None:
    history = Accounted(row(state="SUSPENDED"))
    history.change(row(), made_by=carry(about(history, "resume")))
    assert len(problems(history)) == 2
    assert "no operation of officers makes that" in problems(history)[1]


@pytest.mark.parametrize(
    ("before", "after", "wrong"),
    [
        ("", "", 0),  # another appliance did it in time, and this one was down
        ("", "followed", 1),
        ("begun", "followed", 0),
        ("", "begun", 1),
    ],
)
def test_an_approval_accounts_for_nothing_that_begins_after_its_end(
    before: str, after: str, wrong: int
) -> None:
    history = Accounted(row(state="SUSPENDED"), row(OTHER))
    resume = about(history, "resume")
    if before:
        history.begin(resume)
    history.time += 8 * DAY
    if after == "begun":
        history.begin(resume)
    if after == "followed":
        history.propose("resume", target=OTHER)
    history.change(row(OTHER, "SUSPENDED"), look=99)  # of the same look
    history.change(row(), made_by=resume, look=99)
    found = problems(history)
    assert len(found) == wrong
    assert all("had expired before anything of it was on record" in text for text in found)


def test_an_approval_accounts_for_one_change() -> None:
    history = Accounted(row(state="SUSPENDED"))
    resume = about(history, "resume")
    history.did(resume, row())
    history.change(row(state="SUSPENDED"), act=suspend_act(VERSION))
    history.change(row(), made_by=resume)
    again, gain = problems(history)
    assert f"operation {resume.id} changes keys again" in again
    assert "no operation of officers makes that" in gain


def test_a_record_that_only_names_an_operation_follows_one_that_carries_it() -> None:
    history = Accounted(row(state="SUSPENDED"))
    history.change(row(), operation="6a9b7d3e-0000-4000-8000-000000000001")
    not_carried, gain = problems(history)
    assert "was not carried before" in not_carried
    assert "no operation of officers makes that" in gain


def test_a_suspension_ends_only_by_an_operation_that_names_it() -> None:
    flag: list[Value] = ["facility", "01-001", 5]
    history = Accounted(suspensions=[flag])
    history.change(lifted=[flag])
    history.sign()
    lifted, signed = problems(history)
    assert "no operation of officers lifts it" in lifted
    assert "facility 01-001 suspended" in signed
    other = Accounted(suspensions=[flag])
    other.did(other.propose("resume", target="facilities/01-002", since=5), lifted=[flag])
    assert "no operation of officers lifts it" in problem_of(other)
    later = Accounted(suspensions=[["facility", "01-001", 6]])
    resume = later.propose("resume", target="facilities/01-001", since=5)
    later.change(suspended=[flag])  # as if it were the one that officers saw
    later.did(resume, lifted=[flag])
    changed, lifted = problems(later)
    assert "the time of the suspension of facility 01-001 was changed" in changed
    assert "no operation of officers lifts it" in lifted
    kept = Accounted(suspensions=[flag])
    kept.sign()
    assert "facility 01-001 suspended" in problem_of(kept)


def test_a_version_whose_row_says_suspended_signs_nothing() -> None:
    history = Accounted()
    history.change(row(state="SUSPENDED"), act=suspend_act(VERSION))
    history.answer(history.intend(), failed=[0, 1])
    assert problems(history) == ()
    signed = history.sign()
    assert f"{VERSION} signed intent {signed}: it is SUSPENDED since" in problem_of(history)


def test_only_officers_act() -> None:
    history = Accounted()
    history.change(row(state="SUSPENDED"), act=suspend_act(VERSION, "spiffe://x/stranger"))
    assert "spiffe://x/stranger acts and is not an officer" in problem_of(history)


def test_what_the_appliance_did_not_serve_is_told() -> None:
    history = Accounted()
    history.change(unaccounted=["version 1: somebody made it ACTIVE", "a second"])
    assert [text.partition(": ")[2] for text in problems(history)] == [
        "version 1: somebody made it ACTIVE",
        "a second",
    ]


def test_a_version_signs_while_it_is_active_by_the_clock() -> None:
    history = Accounted()
    planned, ends = history.time + 100, history.time + 200
    history = Accounted(row(times=(planned, ends, None, None)))
    history.time = planned
    history.sign()
    history.time = ends + CALL - 10
    history.sign()
    assert problems(history) == ()
    history.time = ends + CALL + 10
    history.sign()
    assert "was to end more than 5 minutes before" in problem_of(history)
    early = Accounted(row(times=(planned, ends, None, None)))
    early.sign()
    assert "is not active yet" in problem_of(early)


def test_a_version_that_no_record_knows_signs_nothing() -> None:
    history = Accounted(row())
    history.sign(OTHER)
    history.sign(OTHER)
    assert f"{OTHER} is in no record of keys" in problem_of(history)


def test_a_record_of_keys_that_cannot_be_read_is_a_problem() -> None:
    history = Accounted()
    unreadable: list[dict[str, Value]] = [
        {"versions": [["name"]]},
        {"versions": [], "lifted": [[1]]},
        {"versions": [], "act": [1]},
    ]
    for fields in unreadable:
        history.add(RecordKind.KEYS, registry_revision=4, **fields)
    assert len(problems(history)) == 3


def test_a_baseline_gives_no_more_than_its_parts() -> None:
    history = Accounted(row(state="SUSPENDED"))
    history.add(
        RecordKind.KEYS,
        registry_revision=history.time,
        baseline=True,
        part=2,
        parts=2,
        versions=[row()],
        suspensions=[],
    )
    history.sign()
    problem, signed = problems(history)
    assert "part 2 of a baseline does not continue one" in problem
    assert "SUSPENDED" in signed


def test_after_a_baseline_states_alone_change_nothing() -> None:
    history = Accounted(row(state="SUSPENDED"))
    history.keys(f01_001="ACTIVE")
    history.sign()
    problem, signed = problems(history)
    assert "it names states without the versions" in problem
    assert "SUSPENDED" in signed
