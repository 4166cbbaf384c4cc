"""Checks offline that enough officers approved what a log records.

Pure: a fold over the few records about officers, operations and policies. The same records
in the same order give the same state, whether folded in one go or from a snapshot on. A
record that officers have not allowed is reported as a problem (a text), never as an error:
whether the log is whole is another question. So the daemon starts in spite of problems, and
``signer audit verify`` reports them.

Officers and policies that are not validly approved do not come into force here: otherwise
one wrong record would make all that follow it look right.
"""

from __future__ import annotations

import uuid
from base64 import b64encode
from collections.abc import Callable, Mapping
from typing import ClassVar

from signer.audit.format.record import HASH_SIZE, Record, RecordError, RecordKind, text
from signer.officers import approval
from signer.officers.approval import ApprovalError, Proposal
from signer.officers.control_state import ControlState
from signer.officers.operation_memory import OperationStage
from signer.officers.record_checks import (
    SKEW_US,
    ProblemError,
    carried_proposal,
    check_clock_time,
    check_signed,
    check_since,
    operation_id,
    problem_text,
)
from signer.officers.records import (
    ApprovedOperation,
    ClockRecord,
    OfficersRecord,
    PolicyRecord,
    SignedRecord,
)

MAX_OFFICERS_BYTES = 192 << 10  # principals and certificates; they fit into a full snapshot
MAX_PROBLEMS = 1000  # reported one by one; the rest is counted
_ENDS = frozenset({"DONE", "FAILED", "WAITING"})
_POLICY_KINDS = frozenset({"policy", "enrol"})


class ApprovalFold(ControlState):
    """The officers in force and the operations under way, folded from records.

    ``executed`` and ``acts`` count the operations that are DONE and the acts of single officers
    since this object was made.
    """

    def __init__(self, origin: str = "", *, checking: bool = True) -> None:
        """Begins before the first record of the log ``origin``; "" if that is not known.

        Without ``checking`` only the signatures on which the state depends are verified, such as
        those of every execution: somebody may have appended records while the daemon was stopped.
        """
        super().__init__()
        self._origin = origin
        self._clock_at = -1  # the last CLOCK that counts, also one of an earlier version
        self.executed = 0
        self.acts = 0
        self._checking = checking
        self._begun = False
        self._problems: list[str] = []
        self._unlisted = 0
        # An act of an officer who was removed a moment ago may still be recorded.
        self._before: tuple[int, frozenset[str]] = (0, frozenset())
        self._refused: set[bytes] = set()  # executions that nobody has approved

    @property
    def begun(self) -> Mapping[bytes, bytes]:
        """The SHA-256 of operations that are approved and begun, by their ids in 16 bytes."""
        return self._operations.begun

    @property
    def problems(self) -> tuple[str, ...]:
        """One text for each problem, with the record's number, in the log's order."""
        more = [f"and {self._unlisted} more about operations"] if self._unlisted else []
        return (*self._problems, *more)

    def apply(self, record: Record) -> None:
        """Applies the next record; kinds outside KINDS change nothing.

        A snapshot as the first record is where the fold begins, and is trusted. A later
        snapshot must equal the result of the records before it.
        """
        self.allows(record)

    def allows(self, record: Record) -> bool:
        """Applies the next record; returns whether officers have allowed it.

        Without ``checking`` only the rules count on which the state depends.
        """
        first, self._begun = not self._begun, True
        try:
            if record.kind is RecordKind.SNAPSHOT:
                self._snapshot(record, first)
            elif record.kind is RecordKind.KEYS:
                self._baseline(record)
            elif record.kind in self._TAKEN:
                self._operations.forget(record.time_us)
                self._TAKEN[record.kind](self, record)
        except (ProblemError, RecordError, ApprovalError) as error:
            self._report(record.seq, str(error))
            return False
        return True

    def confirmed(self, clock: Record) -> bool:
        """Returns whether officers have confirmed a CLOCK, the last one that was applied."""
        return clock.seq == self._clock_at

    def has_failed(self, operation: str) -> bool:
        """Returns whether an operation has failed here, and has not begun again since."""
        return self._operations.has_failed(uuid.UUID(operation).bytes)

    def acts_for(self, officer: str, time_us: int) -> bool:
        """Returns whether a principal is an officer, or was one a moment before."""
        until, before = self._before
        return officer in (self.officers or ()) or (officer in before and time_us <= until)

    def _report(self, seq: int, problem: str) -> None:
        if len(self._problems) >= MAX_PROBLEMS:
            self._unlisted += 1
            return
        self._problems.append(problem_text(seq, problem))

    def _snapshot(self, record: Record, first: bool) -> None:
        control = record.fields.get("control")
        if not first:
            self.check(record)
        elif control is not None:
            self._load(control)

    def _baseline(self, record: Record) -> None:
        """Takes the deployment's id from the first part of a baseline."""
        if record.fields.get("baseline") is not True or record.fields.get("part") != 1:
            return
        if self.deployment and not self.development:
            raise ProblemError("states are taken as given again, which only the first baseline may")
        self.deployment = text(record.fields, "deployment")

    def _known_officers(self, what: str) -> dict[str, bytes]:
        if self.officers is None:
            raise ProblemError(f"{what} comes before any officers are named")
        return self.officers

    def check_approved(self, record: Record, approved: ApprovedOperation, what: str) -> Proposal:
        """Checks that enough officers in force have signed the operation of a record.

        Raises ProblemError, ApprovalError.
        """
        officers = self._known_officers(what)
        proposal = carried_proposal(approved)
        for signature in approved.signatures:
            if signature.at * 1_000_000 > record.time_us + approval.APART * 1_000_000:
                raise ProblemError(f"{signature.officer} signed it after it was recorded")
        if self.deployment:
            approval.check_deployment(proposal, self.deployment)
        approval.check_approved(proposal, approved.content, approved.signatures, officers)
        return proposal

    def _officers(self, record: Record) -> None:
        said = OfficersRecord.from_fields(record.fields)
        officers = dict(said.officers)
        size = sum(len(who) + len(der) for who, der in officers.items())
        if not 0 < size <= MAX_OFFICERS_BYTES:
            raise ProblemError("it names no officers, or more than can be known")
        if not said.approved.operation:
            self._first_officers(said)
            return
        before = self._operations.remember(record.time_us, said.approved)
        proposal = self.check_approved(record, said.approved, "a change of officers")
        if proposal.kind != "officers":
            raise ProblemError(f"officers are changed by an operation of kind {proposal.kind}")
        if proposal.details.get("replaces") != approval.officers_sha256(self.officers or {}):
            raise ProblemError("the officers that were to be replaced are not those in force")
        check_since(proposal, self.officers_since)
        if proposal.details.get("officers") != {
            who: b64encode(der).decode() for who, der in officers.items()
        }:
            raise ProblemError("these are not the officers that were approved")
        # The officers before may come back, and with them this approval would count again.
        if before is not None and before.has(OperationStage.IN_FORCE):
            raise ProblemError(f"operation {proposal.id} changes the officers again (repeated)")
        self._put_in_force(said.approved.operation)
        self._operations.remember(record.time_us, said.approved, OperationStage.IN_FORCE)
        self._before = record.time_us + SKEW_US, frozenset(self.officers or ())
        self.officers, self.officers_since = officers, said.since

    def _first_officers(self, said: OfficersRecord) -> None:
        if self.officers is not None:
            raise ProblemError("officers are named without an operation, and not as the first")
        self.officers, self.development = dict(said.officers), said.development
        self.officers_since, self.policy_since = said.since, said.policy_since
        if said.policy is None or len(said.policy) != HASH_SIZE:
            raise ProblemError("the first officers are named without the policy in force")
        self.policy = said.policy

    def _policy(self, record: Record) -> None:
        if self.officers is None and not record.fields.get("operation"):
            return
        said = PolicyRecord.from_fields(record.fields)
        if len(said.policy) != HASH_SIZE:
            raise ProblemError("its policy is not a SHA-256")
        try:
            self._check_policy(record, said)
        except (ProblemError, ApprovalError):
            if self.development:
                self.policy, self.policy_since = said.policy, said.since
            raise
        self.policy, self.policy_since = said.policy, said.since

    def _check_policy(self, record: Record, said: PolicyRecord) -> None:
        same, policy = said.policy == self.policy, said.policy.hex()
        if said.approved is None:
            if not same and not self.development:
                raise ProblemError(f"policy {policy} is in force without an approval")
            return
        before = self._operations.remember(record.time_us, said.approved)
        # Recording the policy in force again needs no valid approval: its approvers may since
        # have been removed. Nor does one whose EXECUTION was already verified.
        if same or (before is not None and before.has(OperationStage.BEGUN)):
            proposal = carried_proposal(said.approved)
        else:
            proposal = self.check_approved(record, said.approved, "the approval of a policy")
        approved = proposal.kind in _POLICY_KINDS and proposal.details.get("policy_sha256")
        if approved != policy:
            raise ProblemError(f"operation {proposal.id} does not approve policy {policy}")
        replaces = proposal.details.get("replaces", self.policy.hex())
        if not same and not self.development and replaces != self.policy.hex():
            raise ProblemError(
                f"operation {proposal.id} was to replace another policy than the one in force"
            )
        if not same:
            if not self.development:
                check_since(proposal, self.policy_since)
            self._put_in_force(proposal.id)

    def _proposed(self, record: Record) -> None:
        officers = self._known_officers("a proposal")
        said = SignedRecord.from_fields(record.fields)
        if not said.content:
            raise ProblemError("it carries no operation")
        self._operations.remember(record.time_us, said)
        if not self._checking:
            return
        self._operations.contents[operation_id(said.operation)] = said.content
        proposal = carried_proposal(said)
        if said.officer != proposal.proposer:
            raise ProblemError(f"{said.officer} proposes for {proposal.proposer}")
        check_signed(record, said, said.content, officers)

    def _approved(self, record: Record) -> None:
        officers = self._known_officers("an approval")
        said = SignedRecord.from_fields(record.fields)
        if said.officer not in officers:
            raise ProblemError(f"{said.officer} approves and is not an officer")
        content = self._operations.contents.get(operation_id(said.operation))
        if content is not None:  # otherwise it was proposed before this log, or its part here
            check_signed(record, said, content, officers)

    def _execution(self, record: Record) -> None:
        approved = ApprovedOperation.from_fields(record.fields)
        before = self._operations.remember(record.time_us, approved)
        if before is not None and before.has(OperationStage.DONE):
            raise ProblemError(f"operation {approved.operation} was done before (repeated)")
        identity = operation_id(approved.operation)
        self._refused.add(identity)
        self.check_approved(record, approved, "an execution")
        self._refused.discard(identity)
        self._operations.begin(record.time_us, approved)

    def _executed(self, record: Record) -> None:
        operation, state = text(record.fields, "operation"), text(record.fields, "state")
        identity = operation_id(operation)
        known = self._operations.get(identity)
        if state not in _ENDS:
            raise ProblemError(f"operation {operation} ends in no known state")
        if state == "FAILED" and known is not None:
            self._operations.fail(identity)
        if state == "FAILED" or identity in self._refused:
            return  # perhaps before it began: officers had changed, for instance
        if known is None or not known.has(OperationStage.BEGUN):
            raise ProblemError(f"operation {operation} ends, and its execution never began")
        if state != "DONE" or known.has(OperationStage.DONE):
            return  # after an interruption the same end may be recorded twice; it counts once
        self.executed += 1
        self._operations.finish(identity, record.time_us)

    def _clock(self, record: Record) -> None:
        said = ClockRecord.from_fields(record.fields)
        before = self._operations.remember(record.time_us, said.approved)
        if before is not None and before.has(OperationStage.IN_FORCE):
            raise ProblemError(f"operation {said.approved.operation} sets the clock again")
        proposal = self.check_approved(record, said.approved, "a confirmation of the clock")
        if proposal.kind != "clock":
            raise ProblemError(f"the clock is confirmed by an operation of kind {proposal.kind}")
        if self._origin:
            approval.check_origin(proposal, self._origin)
        details = proposal.details
        approved = details.get("wrong_from"), details.get("right_until")
        if approved != (said.wrong_from, said.right_until):
            raise ProblemError("these are not the times that officers have called wrong")
        # Each approval names the one before, so that it counts once, however long ago it was.
        # Those that earlier versions asked for do not: they end with the first that does.
        follows = details.get("follows", -1)
        if follows not in ((-1, 0) if not self.clock_confirmed else (self.clock_confirmed,)):
            raise ProblemError(
                f"operation {proposal.id} was to follow the confirmation in record {follows}, and"
                f" the last one is in record {self.clock_confirmed} (repeated)"
            )
        check_clock_time(proposal, record.time_us / 1_000_000)
        self._operations.remember(record.time_us, said.approved, OperationStage.IN_FORCE)
        self._clock_at = record.seq
        if follows != -1:
            self.clock_confirmed = record.seq

    def _act(self, record: Record) -> None:
        self.acts += 1
        officer = text(record.fields, "officer")
        self._known_officers("an act")
        if not self.acts_for(officer, record.time_us):
            raise ProblemError(f"{officer} acts and is not an officer")

    _TAKEN: ClassVar[Mapping[RecordKind, Callable[[ApprovalFold, Record], None]]] = {
        RecordKind.OFFICERS: _officers,
        RecordKind.POLICY: _policy,
        RecordKind.PROPOSAL: _proposed,
        RecordKind.APPROVAL: _approved,
        RecordKind.EXECUTION: _execution,
        RecordKind.EXECUTED: _executed,
        RecordKind.ACT: _act,
        RecordKind.CLOCK: _clock,
    }
    KINDS = frozenset({*_TAKEN, RecordKind.KEYS, RecordKind.SNAPSHOT})
    """The kinds of records that ``apply`` takes into account."""

    @staticmethod
    def relevant(record: Record) -> Record | None:
        """Returns the part of a record that the fold needs, None if it needs nothing.

        The first record of a log is needed because nothing precedes it.
        """
        if record.kind is RecordKind.SNAPSHOT:
            control = record.fields.get("control")
            return record._replace(fields={} if control is None else {"control": control})
        if record.kind in ApprovalFold._TAKEN:
            return record
        if record.kind is RecordKind.KEYS and record.fields.get("baseline") is True:
            named = {name: record.fields.get(name) for name in ("baseline", "part", "deployment")}
            return record._replace(fields=named)
        return None if record.seq else record._replace(fields={}, column=None)
