"""What officers must allow together: every rule, by a history of which a test changes one thing."""

import base64
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from signer.audit.format.checkpoint import Checkpoint
from signer.audit.format.merkle import Frontier
from signer.audit.format.parse import parse
from signer.audit.format.record import FIRST_CHAIN, Record, RecordKind, Value, encode, frame
from signer.audit.format.segments import Header, Segment
from signer.audit.read.verify import verify_log, verify_part
from signer.officers.approval import Proposal, officers_sha256
from signer.officers.change_check import ChangeFold
from signer.officers.offline_check import MAX_OFFICERS_BYTES, MAX_PROBLEMS, ApprovalFold
from signer.officers.operation_memory import MAX_OPERATIONS
from tests.unit.officers.people import certificate_of

ORIGIN = "signer.example/log"
START = 1_767_571_200  # 2026-01-05T00:00:00Z, seconds
DAY = 24 * 3600
BEGINS, ENDS = datetime(2026, 1, 1, tzinfo=UTC), datetime(2029, 1, 1, tzinfo=UTC)
POLICY = sha256(b"the first policy").digest()
ANN, BEN, CAT, DAN, EVE = (f"spiffe://signer.example/officer/{n}" for n in "abcde")
FIRST = (ANN, BEN, CAT)


@cache
def key_of(who: str) -> Any:
    """Every kind of key that an officer may have."""
    match who[-1]:
        case "b":
            return rsa.generate_private_key(65537, 2048)
        case "c":
            return ed25519.Ed25519PrivateKey.generate()
    return ec.generate_private_key(ec.SECP256R1())


@cache
def certificate(who: str, ends: datetime = ENDS) -> bytes:
    made = certificate_of(who, key=key_of(who), begins=BEGINS, ends=ends)
    return made.public_bytes(Encoding.DER)


@cache
def sign(who: str, data: bytes) -> bytes:
    key = key_of(who)
    if isinstance(key, rsa.RSAPrivateKey):
        return key.sign(data, padding.PKCS1v15(), hashes.SHA256())
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return key.sign(data, ec.ECDSA(hashes.SHA256()))
    made: bytes = key.sign(data)
    return made


def rows(officers: Mapping[str, bytes]) -> list[Value]:
    return [[who, der] for who, der in sorted(officers.items())]


class Operation(NamedTuple):
    proposal: Proposal
    content: bytes
    signatures: list[Value]

    @property
    def id(self) -> str:
        return self.proposal.id

    def approved(self) -> dict[str, Value]:
        """The fields of a record that carries it."""
        return {"operation": self.id, "content": self.content, "signatures": self.signatures}


class History:
    """A log as it comes about, a record a second; it begins with three officers."""

    def __init__(self, *officers: str, development: bool = False) -> None:
        self.records: list[Record] = []
        self.time = START
        self.named = ""  # the deployment that operations name
        self.officers = {who: certificate(who) for who in officers or FIRST}
        self.add(RecordKind.KEYS, audit_key=b"key")
        first: dict[str, Value] = {"operation": "", "content": b"", "signatures": []}
        self.add(
            RecordKind.OFFICERS,
            officers=rows(self.officers),
            development=development,
            policy=POLICY,
            **first,
        )

    def add(self, kind: RecordKind, **fields: Value) -> None:
        self.time += 1
        self.records.append(Record(len(self.records), self.time * 1_000_000, kind, fields))

    def baseline(self, deployment: str) -> None:
        """A baseline; with "" operations of this history belong to its deployment."""
        if not deployment:
            self.named = deployment = "0f" * 16
        self.add(
            RecordKind.KEYS,
            baseline=True,
            part=1,
            parts=1,
            deployment=deployment,
            versions=[],
            suspensions=[],
            registry_revision=1,
        )

    def propose(
        self, kind: str = "create-key", signers: Sequence[str] = (ANN, BEN), **details: object
    ) -> Operation:
        """Proposed by the first of the signers and approved by the others."""
        number = uuid.UUID(int=self.time << 64)  # the same in every run of a test
        expires = self.time + 7 * DAY
        proposal = Proposal(
            ORIGIN,
            str(number),
            kind,
            signers[0],
            self.time,
            expires,
            len(signers),
            details,
            self.named,
        )
        operation = Operation(proposal, proposal.canonical(), [])
        for who in signers:
            made = sign(who, operation.content)
            fields: dict[str, Value] = {"operation": operation.id, "officer": who}
            if who == signers[0]:
                self.add(RecordKind.PROPOSAL, content=operation.content, signature=made, **fields)
            else:
                self.add(RecordKind.APPROVAL, signature=made, **fields)
            operation.signatures.append([who, made, self.time * 1_000_000 - 5])
        return operation

    def begin(self, operation: Operation) -> None:
        self.add(RecordKind.EXECUTION, **operation.approved())

    def end(self, operation: Operation, state: str = "DONE") -> None:
        self.add(RecordKind.EXECUTED, operation=operation.id, state=state, note="")

    def operate(self, *states: str, signers: Sequence[str] = (ANN, BEN)) -> Operation:
        operation = self.propose(signers=signers, key="facilities/01-001/keys/records")
        for state in states or ("DONE",):
            self.begin(operation)
            self.end(operation, state)
        return operation

    def put_policy(
        self,
        policy: bytes,
        kind: str = "policy",
        signers: Sequence[str] = (CAT, ANN),
        **details: object,
    ) -> None:
        operation = self.propose(kind, signers, policy_sha256=policy.hex(), **details)
        self.begin(operation)
        self.add(RecordKind.POLICY, policy=policy, **operation.approved())
        self.end(operation)

    def change_officers(self, *officers: str, signers: Sequence[str] = (BEN, CAT)) -> Operation:
        after = {who: certificate(who) for who in officers}
        encoded = {who: base64.b64encode(der).decode() for who, der in after.items()}
        operation = self.propose(
            "officers", signers, officers=encoded, replaces=officers_sha256(self.officers)
        )
        self.begin(operation)
        self.add(
            RecordKind.OFFICERS, officers=rows(after), development=False, **operation.approved()
        )
        self.officers = after
        self.end(operation)
        return operation


def whole() -> History:
    """All that officers do, by the rules: seven executions, two new policies, other officers."""
    history = History()
    history.operate("FAILED", "WAITING", "DONE")
    history.add(RecordKind.POLICY, policy=POLICY)
    history.put_policy(sha256(b"second").digest())
    history.add(RecordKind.ACT, act="suspend", target="t", officer=CAT, reason="r", changed={})
    history.change_officers(ANN, CAT, DAN)
    history.put_policy(sha256(b"third").digest(), "enrol", (DAN, CAT, ANN))
    history.add(RecordKind.REJECTION, operation=str(uuid.UUID(int=1)), officer=ANN, reason="r")
    history.add(RecordKind.APPROVAL, operation=str(uuid.UUID(int=1)), officer=DAN, signature=b"s")
    history.operate(signers=(DAN, ANN))
    return history


def fold(records: Iterable[Record], control: ApprovalFold | None = None) -> ApprovalFold:
    control = control or ApprovalFold()
    for record in records:
        control.apply(record)
    return control


def problems(records: Iterable[Record]) -> tuple[str, ...]:
    return fold(records).problems


def test_what_keeps_to_the_rules_has_no_problem() -> None:
    control = fold(whole().records)
    assert control.problems == ()
    assert sorted(control.officers or {}) == [ANN, CAT, DAN]
    assert control.policy == sha256(b"third").digest()
    assert (control.executed, control.acts, control.development) == (5, 1, False)


# --- one thing is wrong ------------------------------------------------------------------------


def place_of(records: Sequence[Record], kind: RecordKind, number: int = 0) -> int:
    return [each.seq for each in records if each.kind is kind][number]


def edited(kind: RecordKind, number: int = 0, **changes: Any) -> tuple[list[Record], int]:
    """The whole history with other fields in one record; what is callable makes new from old."""
    records = whole().records
    place = place_of(records, kind, number)
    fields = dict(records[place].fields)
    for name, change in changes.items():
        fields[name] = change(fields[name]) if callable(change) else change
    records[place] = records[place]._replace(fields=fields)
    return records, place


def flip(data: bytes, place: int = -1) -> bytes:
    changed = bytearray(data)
    changed[place] ^= 1
    return bytes(changed)


def flip_signature(signatures: list[Any]) -> list[Value]:
    (who, made, at), *others = signatures
    return [[who, flip(made), at], *others]


def later(signatures: list[Any]) -> list[Value]:
    *others, (who, made, at) = signatures
    return [*others, [who, made, at + 400_000_000]]


def in_the_past(signatures: list[Any]) -> list[Value]:
    """Before the certificates were valid."""
    return [[who, made, (START - 30 * DAY) * 1_000_000] for who, made, _ in signatures]


def swapped(officers: list[Any]) -> list[Value]:
    return [*officers[:-1], [EVE, certificate(EVE)]]


def another(content: bytes) -> bytes:
    return content.replace(b'"create-key"', b'"destroy-key"')


NOT_APPROVED = "required signatures of officers are valid"
WRONG = [
    (RecordKind.EXECUTION, 0, {"signatures": flip_signature}, "has not validly signed"),
    (RecordKind.EXECUTION, 1, {"signatures": lambda s: s[:1]}, NOT_APPROVED),
    (RecordKind.EXECUTION, 0, {"signatures": lambda s: s[1:]}, "its proposer"),
    (RecordKind.EXECUTION, 0, {"signatures": lambda s: [s[0], s[0]]}, NOT_APPROVED),
    (RecordKind.EXECUTION, 0, {"signatures": lambda s: [s[0], [CAT, *s[1][1:]]]}, NOT_APPROVED),
    (RecordKind.EXECUTION, 0, {"signatures": lambda s: [s[0], [EVE, *s[1][1:]]]}, NOT_APPROVED),
    (RecordKind.EXECUTION, 0, {"signatures": later}, "signed it after it was recorded"),
    (RecordKind.EXECUTION, 0, {"signatures": in_the_past}, "has not validly signed"),
    (RecordKind.EXECUTION, 0, {"signatures": [["who"]]}, "cannot be read"),
    (RecordKind.EXECUTION, 0, {"signatures": None}, "has not validly signed"),
    (RecordKind.EXECUTION, 0, {"content": another}, "had another content before"),
    (RecordKind.EXECUTION, 2, {"content": flip}, "had another content before"),
    (RecordKind.EXECUTION, 0, {"content": "text"}, "content is not a byte string"),
    (RecordKind.EXECUTION, 0, {"operation": str(uuid.UUID(int=5))}, "and carries"),
    (RecordKind.EXECUTION, 0, {"operation": "5"}, "is not a UUID"),
    (RecordKind.EXECUTION, 0, {"operation": uuid.UUID(int=5).hex}, "is not a UUID"),
    (RecordKind.EXECUTION, 0, {"operation": 5}, "operation is not text"),
    (RecordKind.EXECUTED, 0, {"state": "LOST"}, "no known state"),
    (RecordKind.EXECUTED, 0, {"state": []}, "state is not text"),
    (RecordKind.EXECUTED, 3, {"operation": str(uuid.UUID(int=5))}, "never began"),
    (RecordKind.OFFICERS, 0, {"policy": b""}, "without the policy"),
    (RecordKind.OFFICERS, 1, {"operation": ""}, "not as the first"),
    (RecordKind.OFFICERS, 1, {"officers": swapped}, "not the officers that were approved"),
    (RecordKind.OFFICERS, 1, {"officers": lambda o: o[:-1]}, "not the officers that were approved"),
    (RecordKind.OFFICERS, 1, {"officers": lambda o: [o[0], *o]}, "cannot be read"),
    (RecordKind.OFFICERS, 1, {"officers": []}, "names no officers"),
    (RecordKind.OFFICERS, 1, {"officers": None}, "names no officers"),
    (
        RecordKind.OFFICERS,
        1,
        {"officers": [[ANN, bytes(MAX_OFFICERS_BYTES)]]},
        "more than can be known",
    ),
    (RecordKind.OFFICERS, 1, {"signatures": lambda s: s[:1]}, NOT_APPROVED),
    (RecordKind.OFFICERS, 1, {"signatures": flip_signature}, "has not validly signed"),
    (RecordKind.OFFICERS, 1, {"signatures": later}, "after it was recorded"),
    (RecordKind.OFFICERS, 1, {"content": flip}, "another content"),
    (RecordKind.POLICY, 0, {"policy": flip}, "without an approval"),
    (RecordKind.POLICY, 0, {"policy": b"short"}, "not a SHA-256"),
    (RecordKind.POLICY, 1, {"operation": ""}, "without an approval"),
    (RecordKind.POLICY, 1, {"policy": flip}, "does not approve policy"),
    (RecordKind.POLICY, 1, {"content": flip}, "another content"),
    (RecordKind.ACT, 0, {"officer": EVE}, "acts and is not an officer"),
    (RecordKind.ACT, 0, {"officer": None}, "officer is not text"),
    (RecordKind.PROPOSAL, 0, {"officer": CAT}, "proposes for"),
    (RecordKind.PROPOSAL, 0, {"signature": flip}, "over this operation's bytes"),
    (RecordKind.PROPOSAL, 1, {"operation": str(uuid.UUID(int=5))}, "and carries"),
    (RecordKind.APPROVAL, 0, {"officer": EVE}, "approves and is not an officer"),
    (RecordKind.APPROVAL, 0, {"officer": CAT}, "over this operation's bytes"),
    (RecordKind.APPROVAL, 0, {"signature": flip}, "over this operation's bytes"),
    (RecordKind.APPROVAL, 0, {"signature": "text"}, "signature is not a byte string"),
]


@pytest.mark.parametrize(("kind", "number", "changes", "text"), WRONG)
def test_what_breaks_a_rule_is_told_with_its_record(
    kind: RecordKind, number: int, changes: dict[str, Any], text: str
) -> None:
    records, place = edited(kind, number, **changes)
    told = problems(records)
    assert any(each.startswith(f"record {place}: ") and text in each for each in told), told
    assert set(fold(records, ApprovalFold(checking=False)).problems) <= set(told)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda h, o: h.begin(o), "(repeated)"),
        (lambda h, _: h.operate(signers=(EVE, ANN)), "is not an officer"),
        (lambda h, _: h.change_officers(ANN, EVE, signers=(EVE, ANN)), "is not an officer"),
        (lambda h, _: h.put_policy(bytes(32), "create-key"), "does not approve"),
        (
            lambda h, o: h.add(RecordKind.POLICY, policy=bytes(32), **o.approved()),
            "does not approve",
        ),
        (
            lambda h, o: h.add(RecordKind.OFFICERS, officers=rows(h.officers), **o.approved()),
            "of kind create-key",
        ),
    ],
)
def test_one_more_record_that_breaks_a_rule(
    change: Callable[[History, Operation], object], text: str
) -> None:
    history = History()
    operation = history.operate()
    before = len(history.records)
    change(history, operation)
    first, *_ = problems(history.records)
    assert text in first
    assert int(first.split(":")[0].removeprefix("record ")) >= before


def test_a_change_of_officers_counts_under_the_set_that_it_replaces_and_once() -> None:
    history = History()
    change = history.change_officers(ANN, CAT, DAN)
    carried = {"officers": rows(history.officers), "development": False, **change.approved()}
    history.add(RecordKind.OFFICERS, **carried)
    [again] = problems(history.records)
    assert again.startswith(f"record {len(history.records) - 1}: ")
    history.records.pop()
    history.change_officers(*FIRST, signers=(DAN, CAT))
    assert problems(history.records) == ()
    history.add(RecordKind.OFFICERS, **carried)
    [repeated] = problems(history.records)
    assert "changes the officers again (repeated)" in repeated
    assert sorted(fold(history.records).officers or {}) == list(FIRST)


def test_a_change_under_another_set_is_none() -> None:
    history = History()
    before = dict(history.officers)
    history.change_officers(ANN, BEN, CAT, DAN)
    history.officers = before
    history.change_officers(ANN, BEN, CAT, EVE)
    [problem] = problems(history.records)
    assert "are not those in force" in problem


def test_who_was_never_approved_can_allow_nothing_later() -> None:
    history = History()
    history.add(RecordKind.OFFICERS, officers=rows({EVE: certificate(EVE), DAN: certificate(DAN)}))
    history.operate(signers=(EVE, DAN))
    told = problems(history.records)
    assert len(told) == 4  # the set, the proposal, the approval, the execution
    assert sorted(fold(history.records).officers or {}) == list(FIRST)


def test_an_officer_who_left_approves_nothing() -> None:
    history = History()
    early = history.propose(signers=(ANN, BEN))
    history.change_officers(ANN, CAT, signers=(CAT, ANN))
    history.begin(early)
    [problem] = problems(history.records)
    assert "1 of 2 required signatures" in problem


def test_a_policy_that_is_told_again_needs_its_officers_no_longer() -> None:
    history = History()
    policy = sha256(b"second").digest()
    history.put_policy(policy, signers=(ANN, BEN))
    fields = history.records[place_of(history.records, RecordKind.POLICY)].fields
    history.change_officers(CAT, DAN, signers=(CAT, ANN))
    history.add(RecordKind.POLICY, **fields)
    assert problems(history.records) == ()
    history.add(RecordKind.POLICY, policy=POLICY)
    [problem] = problems(history.records)
    assert "without an approval" in problem


def test_a_policy_that_was_replaced_does_not_come_back_by_its_old_approval() -> None:
    """Not even after the operation has been forgotten."""
    history = History()
    history.baseline("")
    second = sha256(b"second").digest()
    for policy, replaced in ((second, POLICY), (POLICY, second)):
        history.put_policy(policy, replaces=replaced.hex())
    assert problems(history.records) == ()
    fields = next(r.fields for r in history.records if r.kind is RecordKind.POLICY)
    history.time += 60 * DAY
    history.add(RecordKind.POLICY, **fields)
    [problem] = problems(history.records)
    assert "has put this in force before (repeated)" in problem


def test_after_the_baseline_operations_are_for_this_deployment() -> None:
    history = History()
    history.operate()
    history.baseline("d" * 32)
    assert problems(history.records) == ()
    history.operate()  # it names none
    [problem] = problems(history.records)
    assert "is for another deployment (none)" in problem


@pytest.mark.parametrize("development", [False, True])
def test_states_are_taken_as_given_once(development: bool) -> None:
    history = History(development=development)
    for _ in range(2):
        history.baseline("d" * 32)
    assert ["taken as given again" in text for text in problems(history.records)] == (
        [] if development else [True]
    )


def test_signatures_count_while_the_certificate_is_valid_and_the_operation_open() -> None:
    history = History()
    soon = datetime.fromtimestamp(history.time + DAY, UTC)
    history.officers[BEN] = certificate(BEN, soon)
    history.records[1] = history.records[1]._replace(
        fields={**history.records[1].fields, "officers": rows(history.officers)}
    )
    operation = history.propose()
    assert problems(history.records) == ()
    history.time += 2 * DAY
    history.begin(operation)  # signed while it was valid
    assert problems(history.records) == ()
    late: Any = [*operation.signatures[:1], [BEN, sign(BEN, operation.content), 0]]
    for at in (history.time, operation.proposal.expires_at):
        late[1][2] = at * 1_000_000
        history.time = max(history.time, at)
        history.add(RecordKind.EXECUTION, **{**operation.approved(), "signatures": [*late]})
        assert "1 of 2" in problems(history.records)[-1]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (flip_signature, "has not validly signed"),
        (lambda s: s[:1], NOT_APPROVED),
        (later, "after it was recorded"),
    ],
)
def test_a_policy_that_another_appliance_put_in_force_carries_its_approval(
    change: Callable[[Any], Any], text: str
) -> None:
    history = History()
    policy = bytes(range(32))
    operation = history.propose("policy", policy_sha256=policy.hex())
    carried = operation.approved()
    history.add(RecordKind.POLICY, policy=policy, **carried)
    assert problems(history.records) == ()
    history.records.pop()
    history.add(
        RecordKind.POLICY, policy=policy, **{**carried, "signatures": change(carried["signatures"])}
    )
    assert text in problems(history.records)[0]


def test_an_end_that_is_told_twice_counts_once() -> None:
    history = History()
    operation = history.operate()
    history.end(operation)
    assert problems(history.records) == ()
    assert fold(history.records).executed == 1


def test_an_operation_may_fail_before_it_begins() -> None:
    history = History()
    history.end(history.propose(), "FAILED")
    assert problems(history.records) == ()


def test_in_a_development_log_policies_are_free_and_operations_are_not() -> None:
    history = History(development=True)
    history.add(RecordKind.POLICY, policy=bytes(32))
    operation = history.operate()
    assert fold(history.records).policy == bytes(32)
    assert problems(history.records) == ()
    history.add(RecordKind.POLICY, policy=POLICY, **operation.approved())
    history.add(RecordKind.EXECUTION, **{**history.propose().approved(), "signatures": []})
    told = problems(history.records)
    assert ["does not approve" in told[0], "has not validly signed" in told[1]] == [True, True]
    assert fold(history.records).policy == POLICY


# --- no officers -------------------------------------------------------------------------------


def test_a_log_without_officers_knows_none_and_has_no_problem() -> None:
    records = [
        Record(0, 1, RecordKind.START, {}),
        Record(1, 1, RecordKind.POLICY, {"policy": POLICY}),
        Record(2, 1, RecordKind.POLICY, {"policy": bytes(32)}),
    ]
    control = fold(records)
    assert (control.officers, control.problems) == (None, ())


@pytest.mark.parametrize(
    ("kind", "number"),
    [(RecordKind.EXECUTION, 0), (RecordKind.PROPOSAL, 0), (RecordKind.APPROVAL, 0),
     (RecordKind.ACT, 0), (RecordKind.POLICY, 1), (RecordKind.OFFICERS, 1)],
)  # fmt: skip
def test_nothing_is_done_before_there_are_officers(kind: RecordKind, number: int) -> None:
    records = whole().records
    [problem] = problems([records[0], records[place_of(records, kind, number)]])
    assert "before any officers are named" in problem


# --- what is remembered ------------------------------------------------------------------------


def test_what_is_done_is_known_for_thirty_days_and_what_was_begun_for_longer() -> None:
    history = History()
    done, begun, proposed = history.operate(), history.propose(), history.propose()
    history.begin(begun)
    history.time += 29 * DAY
    history.begin(done)
    assert "(repeated)" in problems(history.records)[0]
    history.records.pop()
    history.time += 2 * DAY
    history.add(RecordKind.POLICY, policy=POLICY)
    control = fold(history.records)
    assert [uuid.UUID(bytes=each) for each in control._operations._known] == [uuid.UUID(begun.id)]
    assert control._operations.contents.keys() == control._operations._known.keys()
    history.end(begun)
    assert problems(history.records) == ()
    history.end(proposed)
    assert "never began" in problems(history.records)[0]


def test_memory_and_problems_are_bounded() -> None:
    history = History()
    control = fold(history.records)
    for number in range(MAX_OPERATIONS + 2):
        name = str(uuid.UUID(int=number))
        fields: dict[str, Value] = {"operation": name, "content": b"", "signatures": []}
        control.apply(Record(number + 2, history.time * 1_000_000, RecordKind.EXECUTION, fields))
    rows_of = control.snapshot()["control"]
    assert isinstance(rows_of, dict)
    assert len(rows_of["operations"]) == 57 * MAX_OPERATIONS
    assert len(control.problems) == MAX_PROBLEMS + 1
    assert control.problems[-1] == f"and {MAX_OPERATIONS + 2 - MAX_PROBLEMS} more about operations"


def test_problems_hold_no_control_characters() -> None:
    records, _ = edited(RecordKind.ACT, officer="\x1b[2J" + "x" * 9999)
    [problem] = problems(records)
    assert problem.isprintable()
    assert len(problem) <= 300


_SCALARS = (
    st.none() | st.booleans() | st.integers(0, 9) | st.text(max_size=3) | st.binary(max_size=3)
)
_VALUES = st.recursive(_SCALARS, lambda inner: st.lists(inner, max_size=3), max_leaves=5)
_NAMES = ("operation", "content", "signatures", "officers", "policy", "officer", "signature",
          "state", "control", "development")  # fmt: skip


@given(
    st.lists(
        st.tuples(st.sampled_from(RecordKind), st.dictionaries(st.sampled_from(_NAMES), _VALUES)),
        max_size=5,
    ),
    st.booleans(),
)
def test_no_record_can_break_the_fold(
    told: list[tuple[RecordKind, dict[str, Value]]], checking: bool
) -> None:
    records = whole().records[:4]
    given_fields = dict(records[3].fields)
    for kind, fields in told:
        last = records[-1]
        records.append(Record(last.seq + 1, last.time_us, kind, {**given_fields, **fields}))
    control = fold(records, ApprovalFold(checking=checking))
    assert sorted(control.officers or {}) == list(FIRST)


# --- cuts --------------------------------------------------------------------------------------


def snapshot(control: ApprovalFold, seq: int, time_us: int, /, **fields: Value) -> Record:
    """A snapshot as it comes back from the log."""
    return parse(encode(seq, time_us, RecordKind.SNAPSHOT, {**control.snapshot(), **fields})[0])


def check_cut(records: Sequence[Record], place: int) -> None:
    """From a snapshot on, nothing else comes out than from the beginning."""
    here = fold(records[:place])
    seam = snapshot(here, place, records[place - 1].time_us)
    rest = fold([seam, *records[place:]])
    straight = fold([*records[:place], seam, *records[place:]])
    kept = fold([seam, *records[place:]], ApprovalFold(checking=False))
    assert straight.problems == fold(records).problems
    assert rest.snapshot() == kept.snapshot() == straight.snapshot()
    assert here.problems + rest.problems == straight.problems


@pytest.mark.parametrize("place", range(1, len(whole().records) + 1))
def test_a_history_cut_anywhere_folds_to_the_same(place: int) -> None:
    check_cut(whole().records, place)


@pytest.mark.parametrize(("kind", "number", "changes", "text"), WRONG)
def test_the_state_without_checks_is_the_same_in_a_history_that_breaks_rules(
    kind: RecordKind, number: int, changes: dict[str, Any], text: str
) -> None:
    records, place = edited(kind, number, **changes)
    kept = fold(records, ApprovalFold(checking=False))
    assert kept.snapshot() == fold(records).snapshot()
    # A part before the rule is broken says nothing of it.
    assert not any(text in each for each in problems(records[:place]))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"control": None}, "does not say which officers"),
        ({"officers": rows({EVE: certificate(EVE)})}, "does not say which officers"),
        ({"development": True}, "does not say which officers"),
        ({"policy": bytes(32)}, "does not say which officers"),
        ({"operations": b""}, "does not say which officers"),
    ],
)
def test_a_snapshot_that_lies_is_told(changes: dict[str, Value], text: str) -> None:
    records = whole().records
    control: Any = fold(records).snapshot()["control"]
    said: dict[str, Value] = {"control": {**control, **changes}}
    if "control" in changes:
        said = {}
    lie = Record(len(records), records[-1].time_us, RecordKind.SNAPSHOT, said)
    [problem] = problems([*records, lie])
    assert text in problem


@pytest.mark.parametrize(
    "changes", [{"operations": b"1"}, {"officers": [[ANN]]}, {"officers": 1}, {"policy": ""}]
)
def test_a_snapshot_that_cannot_be_read_is_told_and_stops_nothing(changes: dict[str, Any]) -> None:
    control: Any = fold(whole().records).snapshot()["control"]
    [problem] = problems([Record(9, 9, RecordKind.SNAPSHOT, {"control": {**control, **changes}})])
    assert problem.startswith("record 9: ")
    older = fold([Record(9, 9, RecordKind.SNAPSHOT, {})])
    assert (older.problems, older.officers) == ((), None)
    again = Record(10, 9, RecordKind.SNAPSHOT, {})
    assert fold([again], older).problems == ()


# --- logs --------------------------------------------------------------------------------------


def write_log(
    directory: Path,
    records: Sequence[Record],
    places: Sequence[int],
    lie: Mapping[str, Value] | None = None,
) -> list[Record]:
    """Writes records in segments that begin at these places, each but the first by a snapshot.

    Returns the records as they are numbered then. ``lie`` is said in every snapshot.
    """
    control, frontier, told = ApprovalFold(), Frontier(), list[Record]()
    data, chain = Header(ORIGIN, 0, FIRST_CHAIN).frame()
    path = Segment.named(directory, 0).path
    for place, record in enumerate(records):
        coming = [record._replace(seq=len(told))]
        if place in places:
            path.write_bytes(data)
            path = Segment.named(directory, len(told)).path
            data, chain = Header(ORIGIN, len(told), chain).frame()
            said = {"frontier": frontier.to_list(), "open": [], **(lie or {})}
            seam = snapshot(control, len(told), records[place - 1].time_us, **said)
            coming = [seam, record._replace(seq=len(told) + 1)]
        for each in coming:
            framed, chain = frame(chain, each.body())
            data += framed
            frontier.append(each.leaf_hash())
            control.apply(each)
            told.append(each)
    path.write_bytes(data)
    return told


def known(records: Sequence[Record]) -> Checkpoint:
    frontier = Frontier()
    for record in records:
        frontier.append(record.leaf_hash())
    return Checkpoint(ORIGIN, len(records), frontier.root())


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("broken", [False, True])
def test_a_log_in_parts_says_what_one_says(tmp_path: Path, processes: int, broken: bool) -> None:
    records = whole().records
    if broken:
        records, _ = edited(RecordKind.EXECUTION, 4, signatures=flip_signature)
    told = write_log(tmp_path, records, [5, 12, len(records) - 3])
    report = verify_log(tmp_path, ORIGIN, [known(told)], folds=[ChangeFold], processes=processes)
    control = report.fold(ChangeFold).approvals
    assert len(report.problems) == broken
    assert report.problems == problems(told)
    assert sorted(control.officers or ()) == [ANN, CAT, DAN]
    executed = 5 - broken  # what nobody has signed is not executed
    assert (control.executed, control.acts, control.development) == (executed, 1, False)


@pytest.mark.parametrize("place", range(2, len(whole().records)))
def test_a_log_whose_beginning_is_elsewhere_begins_with_its_snapshot(
    tmp_path: Path, place: int
) -> None:
    told = write_log(tmp_path, whole().records, [place])
    Segment.named(tmp_path, 0).path.unlink()
    report = verify_log(
        tmp_path, ORIGIN, [known(told)], folds=[ChangeFold], beginning_elsewhere=True
    )
    assert report.problems == ()
    assert sorted(report.fold(ChangeFold).approvals.officers or ()) == [ANN, CAT, DAN]


def test_a_snapshot_in_a_log_that_lies_about_officers_is_told(tmp_path: Path) -> None:
    lie: dict[str, Value] = {
        "control": {"officers": None, "development": True, "policy": b"", "operations": b""}
    }
    told = write_log(tmp_path, whole().records, [1, 9], lie)
    first, second = verify_log(tmp_path, ORIGIN, [known(told)], folds=[ChangeFold]).problems
    assert "record 1: the snapshot does not say" in first
    assert "record 10: the snapshot does not say" in second


def test_whether_copies_are_whole_does_not_depend_on_people(tmp_path: Path) -> None:
    records, _ = edited(RecordKind.EXECUTION, 0, signatures=[])
    told = write_log(tmp_path, records, [])
    assert verify_part([Segment.named(tmp_path, 0)], ORIGIN, [known(told)]).whole
    assert not verify_log(tmp_path, ORIGIN, [known(told)], folds=[ChangeFold]).whole


# --- histories at random -----------------------------------------------------------------------

STEPS = st.lists(
    st.tuples(
        st.sampled_from(["operate", "retry", "policy", "enrol", "officers", "act", "restart"]),
        st.permutations([0, 1, 2]),
        st.integers(2, 3),
        st.sampled_from([0, 1, DAY, 20 * DAY]),
    ),
    max_size=6,
)


def random_history(steps: Iterable[tuple[str, list[int], int, int]]) -> History:
    history = History()
    policy = POLICY
    for number, (step, order, count, seconds) in enumerate(steps):
        history.time += seconds
        officers = sorted(history.officers)
        signers = [officers[each] for each in order[:count]]
        match step:
            case "operate":
                history.operate(signers=signers)
            case "retry":
                history.operate("FAILED", "WAITING", "DONE", signers=signers)
            case "policy" | "enrol":
                policy = sha256(b"%d" % number).digest()
                history.put_policy(policy, step, signers)
            case "officers":
                spare = next(who for who in (*FIRST, DAN) if who not in officers)
                history.change_officers(*officers[1:], spare, signers=signers)
            case "act":
                history.add(RecordKind.ACT, act="suspend", officer=signers[0], changed={})
            case _:
                history.add(RecordKind.POLICY, policy=policy)
    return history


@given(STEPS, st.data())
def test_random_histories_that_keep_to_the_rules_have_no_problem(
    steps: list[tuple[str, list[int], int, int]], data: st.DataObject
) -> None:
    records = random_history(steps).records
    assert problems(records) == ()
    check_cut(records, data.draw(st.integers(1, len(records))))


@given(STEPS, st.data())
def test_random_histories_with_one_thing_changed_have_a_problem(
    steps: list[tuple[str, list[int], int, int]], data: st.DataObject
) -> None:
    history = random_history(steps)
    history.change_officers(ANN, BEN, CAT, DAN, EVE, signers=sorted(history.officers)[:2])
    records = history.records
    damage = data.draw(st.sampled_from(["signature", "approval", "set", "content"]))
    carrying = [
        each
        for each in records
        if each.fields.get("signatures")
        and (damage != "set" or each.kind is RecordKind.OFFICERS)
        and each.kind is not RecordKind.POLICY  # its execution was found approved before
    ]
    record = data.draw(st.sampled_from(carrying))
    fields: dict[str, Any] = dict(record.fields)
    number = data.draw(st.integers(0, len(fields["signatures"]) - 1))
    match damage:
        case "signature":
            who, made, at = fields["signatures"][number]
            place = data.draw(st.integers(0, len(made) - 1))
            signatures = list(fields["signatures"])
            signatures[number] = [who, flip(made, place), at]
            fields["signatures"] = signatures
        case "approval":
            fields["signatures"] = [
                each for index, each in enumerate(fields["signatures"]) if index != number
            ]
        case "set":
            fields["officers"] = fields["officers"][:-1]
        case _:
            place = data.draw(st.integers(0, len(fields["content"]) - 1))
            fields["content"] = flip(fields["content"], place)
    changed = [each._replace(fields=fields) if each is record else each for each in records]
    assert any(each.startswith(f"record {record.seq}: ") for each in problems(changed))
