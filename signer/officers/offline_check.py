"""Dual control as the log tells it: who the officers are, and what was done by enough of them.

Pure: a fold over the few records that tell of officers, operations and policies. The
same records in the same order give the same state, whether folded in one go or from
a snapshot on. What a record does that officers have not allowed is a problem, in
words, and never an error: a log is whole or it is not, and this is about people.
So the daemon starts whatever the problems are; ``signer audit verify`` tells them.

A set of officers or a policy that is not validly approved does not come into force
here: otherwise one wrong record would make all that follow it look right.
"""

from __future__ import annotations

import enum
import struct
from base64 import b64encode
from collections import OrderedDict
from dataclasses import replace
from hashlib import sha256
from typing import NamedTuple

from signer.audit.format.record import HASH_SIZE, Record, RecordKind, Value
from signer.officers import approval
from signer.officers.approval import ApprovalError, Proposal
from signer.officers.claims import (
    SKEW_US,
    ProblemError,
    bytes_of,
    certificates_of,
    identity_of,
    name_of,
    signature_of,
    signatures_of,
    text_of,
)

MEMORY_US = 30 * 24 * 3600 * 1_000_000
"""For how long an operation that is not under way is known, in microseconds of the log's time."""

MAX_OPERATIONS = 4096
"""Operations known at once; the oldest go first."""

MAX_OFFICERS_BYTES = 192 << 10
"""Of all principals and certificates; with the operations they fit beside a full ledger."""

MAX_PROBLEMS = 1000
"""Problems told one by one; the rest is counted."""

_ROW = struct.Struct(f">16sBQ{HASH_SIZE}s")  # the operation, its stage, its time, its content
_TEXT = 300
_ENDS = frozenset({"DONE", "FAILED", "WAITING"})
_KINDS = frozenset(
    {
        RecordKind.OFFICERS,
        RecordKind.POLICY,
        RecordKind.PROPOSAL,
        RecordKind.APPROVAL,
        RecordKind.EXECUTION,
        RecordKind.EXECUTED,
        RecordKind.ACT,
    }
)
_POLICY_KINDS = frozenset({"policy", "enrol"})


class _Stage(enum.IntFlag):
    """What is known of an operation."""

    BEGUN = 1
    DONE = 2
    IN_FORCE = 4  # its set of officers was put in force


class _Known(NamedTuple):
    stage: int
    time_us: int
    content: bytes  # SHA-256


class ApprovalFold:
    """The officers in force and the operations under way, folded from records.

    ``officers`` are certificates (DER) by principal, None before any are known;
    ``development``: policies need no approval; ``policy`` is the SHA-256 of the one in
    force, empty while nobody knows. ``executed`` and ``acts`` count, since this object
    was made, operations that were done and acts of single officers.
    """

    KINDS = _KINDS | {RecordKind.SNAPSHOT}
    """The kinds of records that ``apply`` takes into account."""

    def __init__(self, *, checking: bool = True) -> None:
        """Begins before the first record. Without ``checking`` only the state is kept.

        Then nobody is told of problems, and signatures are only verified on which the
        state depends: the daemon checked them all before it wrote them.
        """
        self.officers: dict[str, bytes] | None = None
        self.development = False
        self.policy = b""
        self.executed = 0
        self.acts = 0
        self._checking = checking
        self._heard = False
        self._problems: list[str] = []
        self._untold = 0
        # In the order of their times, so that the oldest stand in front.
        self._known: OrderedDict[bytes, _Known] = OrderedDict()
        # Who was an officer until a moment ago may have been at work on an act.
        self._before: tuple[int, frozenset[str]] = (0, frozenset())
        self._contents: dict[bytes, bytes] = {}  # of proposals, for their approvals

    @property
    def problems(self) -> tuple[str, ...]:
        """What is wrong, a text with the record's number each, in the log's order."""
        more = [f"and {self._untold} more about operations"] if self._untold else []
        return (*self._problems, *more)

    def apply(self, record: Record) -> None:
        """Takes the next record into account; kinds that say nothing here are passed over.

        The first one tells where the fold begins: with a snapshot, which is believed,
        or with the log. A later snapshot must say what led to it.
        """
        first, self._heard = not self._heard, True
        try:
            if record.kind is RecordKind.SNAPSHOT:
                self._snapshot(record, first)
            elif record.kind in _KINDS:
                self._forget(record.time_us)
                self._take(record)
        except (ProblemError, ApprovalError) as error:
            self._tell(f"record {record.seq}: {error}")

    def snapshot(self) -> dict[str, Value]:
        """Returns the fields that a SNAPSHOT record has for this: one, ``control``."""
        officers: Value = None
        if self.officers is not None:
            officers = [[who, der] for who, der in sorted(self.officers.items())]
        control: dict[str, Value] = {
            "officers": officers,
            "development": self.development,
            "policy": self.policy,
            "operations": b"".join(
                _ROW.pack(identity, *known) for identity, known in self._known.items()
            ),
        }
        return {"control": control}

    def _take(self, record: Record) -> None:
        match record.kind:
            case RecordKind.OFFICERS:
                self._officers(record)
            case RecordKind.POLICY:
                self._policy(record)
            case RecordKind.PROPOSAL:
                self._proposed(record)
            case RecordKind.APPROVAL:
                self._approved(record)
            case RecordKind.EXECUTION:
                self._execution(record)
            case RecordKind.EXECUTED:
                self._executed(record)
            case _:
                self._act(record)

    def _tell(self, text: str) -> None:
        if not self._checking:
            return
        if len(self._problems) >= MAX_PROBLEMS:
            self._untold += 1
            return
        # What a record says may be anything, and this goes to a terminal.
        self._problems.append("".join(c if c.isprintable() else "?" for c in text[:_TEXT]))

    # --- snapshots -------------------------------------------------------------------------

    def _snapshot(self, record: Record, first: bool) -> None:
        said = record.fields.get("control")
        if not first:
            nothing = said is None and self.officers is None  # made before there were officers
            if not nothing and said != self.snapshot()["control"]:
                raise ProblemError("the snapshot does not say which officers led to it")
        elif said is not None:
            self._load(said)

    def _load(self, said: Value) -> None:
        match said:
            case {
                "officers": None | list() as officers,
                "development": bool(development),
                "policy": bytes(policy),
                "operations": bytes(rows),
            } if len(rows) % _ROW.size == 0:
                self.officers = None if officers is None else certificates_of(officers)
                self.development, self.policy = development, policy
                for identity, *known in _ROW.iter_unpack(rows):
                    self._known[identity] = _Known(*known)
            case _:
                raise ProblemError("the snapshot's officers cannot be read")

    # --- operations ------------------------------------------------------------------------

    def _forget(self, time_us: int) -> None:
        """Forgets operations that have been over, or only proposed, for long."""
        while self._known:
            identity, known = next(iter(self._known.items()))
            if time_us - known.time_us < MEMORY_US:
                return
            del self._known[identity]
            if known.stage & _Stage.BEGUN and not known.stage & _Stage.DONE:
                self._known[identity] = known._replace(time_us=time_us)  # it can still go on
            else:
                self._contents.pop(identity, None)

    def _note(self, record: Record, stage: int = 0) -> _Known | None:
        """Remembers the operation of a record; returns what was known of it before.

        Raises ProblemError where it had another content then: that remains.
        """
        identity, content = identity_of(record), bytes_of(record, "content")
        digest = sha256(content).digest()
        before = self._known.pop(identity, None)
        known = before or _Known(0, 0, digest)
        self._known[identity] = known._replace(stage=known.stage | stage, time_us=record.time_us)
        if before is None and len(self._known) > MAX_OPERATIONS:
            oldest, _ = self._known.popitem(last=False)
            self._contents.pop(oldest, None)
        if known.content != digest:
            raise ProblemError(f"operation {name_of(record)} had another content before")
        return before

    def _proposal(self, record: Record) -> Proposal:
        """Reads the operation that a record carries; raises ProblemError, ApprovalError."""
        proposal = approval.parse(bytes_of(record, "content"))
        if proposal.id != name_of(record):
            raise ProblemError(f"it names operation {name_of(record)} and carries {proposal.id}")
        return proposal

    def _set(self, what: str) -> dict[str, bytes]:
        if self.officers is None:
            raise ProblemError(f"{what} stands before any officers are named")
        return self.officers

    def _check_approved(self, record: Record, what: str) -> Proposal:
        """Checks that enough officers of the set in force have signed what a record carries."""
        officers = self._set(what)
        proposal = self._proposal(record)
        signatures = signatures_of(record)
        approval.check_approved(proposal, bytes_of(record, "content"), signatures, officers)
        return proposal

    def _officers(self, record: Record) -> None:
        said = record.fields.get("officers")
        officers = certificates_of(said if isinstance(said, list | tuple) else [])
        if not said or sum(len(w) + len(der) for w, der in officers.items()) > MAX_OFFICERS_BYTES:
            raise ProblemError("it names no officers, or more than can be known")
        if not record.fields.get("operation"):
            self._first_officers(record, officers)
            return
        before = self._note(record)
        proposal = self._check_approved(record, "a change of officers")
        if proposal.kind != "officers":
            raise ProblemError(f"officers are changed by an operation of kind {proposal.kind}")
        if proposal.details.get("replaces") != approval.officers_sha256(self._set("")):
            raise ProblemError("the officers that were to be replaced are not those in force")
        if proposal.details.get("officers") != {
            who: b64encode(der).decode() for who, der in officers.items()
        }:
            raise ProblemError("these are not the officers that were approved")
        # The set before it may come back, and with it this approval would count again.
        if before is not None and before.stage & _Stage.IN_FORCE:
            raise ProblemError(f"operation {proposal.id} changes the officers again (repeated)")
        self._note(record, _Stage.IN_FORCE)
        self._before = record.time_us + SKEW_US, frozenset(self.officers or ())
        self.officers = officers

    def _first_officers(self, record: Record, officers: dict[str, bytes]) -> None:
        if self.officers is not None:
            raise ProblemError("officers are named without an operation, and not as the first")
        self.officers = officers
        self.development = record.fields.get("development") is True
        policy = record.fields.get("policy")
        if type(policy) is not bytes or len(policy) != HASH_SIZE:
            raise ProblemError("the first officers are named without the policy in force")
        self.policy = policy

    def _policy(self, record: Record) -> None:
        if self.officers is None and not record.fields.get("operation"):
            return
        policy = bytes_of(record, "policy")
        if len(policy) != HASH_SIZE:
            raise ProblemError("its policy is no SHA-256")
        try:
            self._check_policy(record, policy)
        except (ProblemError, ApprovalError):
            if self.development:
                self.policy = policy
            raise
        self.policy = policy

    def _check_policy(self, record: Record, policy: bytes) -> None:
        same = policy == self.policy
        if not record.fields.get("operation"):
            if not same and not self.development:
                raise ProblemError(f"policy {policy.hex()} is in force without an approval")
            return
        before = self._note(record)
        # One that is told again changes nothing, and those who approved it may have left. The
        # same holds where its execution was found approved, and officers changed meanwhile.
        if same or (before is not None and before.stage & _Stage.BEGUN):
            proposal = self._proposal(record)
        else:
            proposal = self._check_approved(record, "the approval of a policy")
        approved = proposal.kind in _POLICY_KINDS and proposal.details.get("policy_sha256")
        if approved != policy.hex():
            raise ProblemError(f"operation {proposal.id} does not approve policy {policy.hex()}")
        replaces = proposal.details.get("replaces", self.policy.hex())
        if not same and not self.development and replaces != self.policy.hex():
            raise ProblemError(
                f"operation {proposal.id} was to replace another policy than the one in force"
            )

    def _proposed(self, record: Record) -> None:
        officers = self._set("a proposal")
        self._note(record)
        if not self._checking:
            return
        content = bytes_of(record, "content")
        self._contents[identity_of(record)] = content
        proposal = self._proposal(record)
        signature = signature_of(record)
        if signature.officer != proposal.proposer:
            raise ProblemError(f"{signature.officer} proposes for {proposal.proposer}")
        approval.check_signature(content, signature, officers, signature.at)

    def _approved(self, record: Record) -> None:
        officers = self._set("an approval")
        signature = signature_of(record)
        if signature.officer not in officers:
            raise ProblemError(f"{signature.officer} approves and is no officer")
        content = self._contents.get(identity_of(record))
        if content is not None:  # otherwise it was proposed before this log, or its part here
            approval.check_signature(content, signature, officers, signature.at)

    def _execution(self, record: Record) -> None:
        before = self._note(record, _Stage.BEGUN)
        if before is not None and before.stage & _Stage.DONE:
            raise ProblemError(f"operation {name_of(record)} was done before (repeated)")
        if self._checking:
            self._check_approved(record, "an execution")

    def _executed(self, record: Record) -> None:
        identity, state = identity_of(record), text_of(record, "state")
        known = self._known.get(identity)
        if state not in _ENDS:
            raise ProblemError(f"operation {name_of(record)} ends in no known state")
        if state == "FAILED":
            return  # perhaps before it began: officers had changed, for instance
        if known is None or not known.stage & _Stage.BEGUN:
            raise ProblemError(f"operation {name_of(record)} ends, and its execution never began")
        if state != "DONE" or known.stage & _Stage.DONE:
            return  # an interruption may have the same end told twice; it is executed once
        self.executed += 1
        self._known[identity] = _Known(known.stage | _Stage.DONE, record.time_us, known.content)
        self._known.move_to_end(identity)

    def _act(self, record: Record) -> None:
        self.acts += 1
        officer = text_of(record, "officer")
        if officer in self._set("an act"):
            return
        until, before = self._before
        if officer not in before or record.time_us > until:
            raise ProblemError(f"{officer} acts and is no officer")

    @staticmethod
    def relevant(record: Record) -> Record | None:
        """Returns what of a record the fold needs; None where it needs nothing of it.

        The first record of a log says by its place that nothing came before.
        """
        if record.kind is RecordKind.SNAPSHOT:
            control = record.fields.get("control")
            return replace(record, fields={} if control is None else {"control": control})
        if record.kind in _KINDS:
            return record
        return None if record.seq else replace(record, fields={}, column=None)
