"""Checks offline that a log accounts for every change, and that signatures keep to them.

Beside what officers approved (``signer.officers.offline_check``): every intent is under the
policy that is recorded as in force, an approval puts a policy or officers in force once,
states follow the table, and what an officer stopped signs nothing until an approved
operation lifts that. Pure: a fold over the whole log, in parts.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import ClassVar

from signer.audit.format.record import (
    CLOSING,
    HASH_SIZE,
    Record,
    RecordError,
    RecordKind,
    Value,
    octets,
    text,
)
from signer.officers import approval
from signer.officers.approval import LATE, ApprovalError
from signer.officers.key_history import CALL_US, KeyHistory
from signer.officers.keys_record import Joined, KeysChange
from signer.officers.offline_check import MAX_PROBLEMS, ApprovalFold
from signer.officers.record_checks import ProblemError, problem_text
from signer.officers.records import ActRecord, PolicyRecord
from signer.officers.signings import IntentNames, Signings, SigningsReader
from signer.officers.standing import is_of
from signer.officers.standing_fold import StandingFold

_SIGNING = frozenset({RecordKind.INTENT, *CLOSING})
_DOING = frozenset({RecordKind.EXECUTION, RecordKind.KEYS})
"""Records of what an operation does. Approvals of policies and officers name what they replace."""
_FOLLOWING = _DOING | {RecordKind.PROPOSAL, RecordKind.APPROVAL, RecordKind.ACT}
"""Records that an appliance makes only while it follows the registry."""
_FOLDED = ("control", "standings")  # of a snapshot: what is folded here


class ChangePart:
    """The records of changes in one part of a log, and the signings between them."""

    def __init__(self) -> None:
        self.events: list[Record | Signings] = []
        self._reader = SigningsReader()

    @property
    def open(self) -> Mapping[int, IntentNames]:
        """The part's intents without an end in the part."""
        return self._reader.open

    def take(self, record: Record) -> None:
        if record.kind in _SIGNING:
            self._reader.take(record)
        elif (needed := ChangeFold.relevant(record)) is not None:
            self.flush()
            self.events.append(needed)

    def flush(self) -> None:
        """Adds the signings since the last record of a change."""
        if (signings := self._reader.taken()) is not None:
            self.events.append(signings)


class ChangeFold:
    """Whether every change and every signature is one that the records before it allow.

    ``approvals`` says which officers and which policy are in force, ``standings`` what is
    accounted for. ``joined`` is how a further appliance began the log, None for the first one, and
    where that is not in what was read. ``policies`` are the SHA-256 of all policies that records
    put in force. ``operations_elsewhere``: before the
    log's first baseline, other appliances may have ended suspensions.
    """

    part: ClassVar[Callable[[], ChangePart]] = ChangePart

    def __init__(self, origin: str = "", *, operations_elsewhere: bool = False) -> None:
        """``origin`` names the log; "" if that is not known."""
        self.approvals = ApprovalFold(origin)
        self.policies: set[bytes] = set()
        self.joined: Joined | None = None
        self._problems: list[str] = []
        self._unlisted = 0
        self.standings = StandingFold(self.approvals)
        self._keys = KeyHistory(self.standings, operations_elsewhere=operations_elsewhere)
        self._open: dict[int, IntentNames] = {}  # intents of earlier parts
        self._policy = b""  # as recorded, whether approved or not
        self._replaced: dict[bytes, int] = {}  # earlier policies, and until when calls may use them
        self._early: dict[bytes, tuple[int, int]] = {}  # policies used before they are recorded
        self._used: dict[str, int] = {}  # operations that put something in force, and where
        self._begun = False
        self._acts: set[str] = set()  # acts that records of keys name
        self._doing: set[str] = set()  # operations that have done something
        self._followed_us = 0  # when the registry was followed last
        self._look: tuple[Value, int] = (
            None,
            0,
        )  # the revision of the last look at it, and when it was followed before

    @property
    def problems(self) -> tuple[str, ...]:
        """One text for each problem, with the record's number."""
        early = [_unknown_policy(*first) for first in self._early.items()]
        more = [f"and {self._unlisted} more about changes"] if self._unlisted else []
        return (*self.approvals.problems, *self._problems, *early, *more)

    @staticmethod
    def relevant(record: Record) -> Record | None:
        """Returns what is needed of a record that is not about signing; None: nothing."""
        if record.kind is RecordKind.SNAPSHOT:
            said = {name: record.fields[name] for name in _FOLDED if name in record.fields}
            return record._replace(fields=said)
        if record.kind in ChangeFold._TAKEN:
            return record
        return ApprovalFold.relevant(record)

    def join(self, part: ChangePart) -> None:
        """Takes the next part of the log."""
        part.flush()
        for event in part.events:
            if isinstance(event, Signings):
                self._signed(event)
            else:
                self._apply(event)
        self._open |= part.open

    def _apply(self, record: Record) -> None:
        first, self._begun = not self._begun, True
        revision = record.fields.get("registry_revision")
        if record.kind is RecordKind.KEYS and revision != self._look[0]:
            self._look = revision, self._followed_us
        late = self._late(record) if record.kind in _DOING else ""
        allowed = self.approvals.allows(record)
        if late and allowed:
            self._report(record.seq, late)
        if record.kind in _FOLLOWING:
            self._followed_us = max(self._followed_us, record.time_us)
        if not self._policy:  # the log begins with a snapshot, or with its first officers
            self._policy = self.approvals.policy
        take = self._TAKEN.get(record.kind)
        try:
            if record.kind is RecordKind.SNAPSHOT:
                self._seam(record, first)
            elif take is not None:
                take(self, record, allowed)
        except (ProblemError, RecordError, ApprovalError) as error:
            if allowed or record.kind is RecordKind.SNAPSHOT:  # otherwise it was reported
                self._report(record.seq, str(error))

    def _late(self, record: Record) -> str:
        """Returns why an operation begins too late; empty if it does not, or has begun before.

        What another appliance did in time may be recorded later: when this one looks again.
        """
        operation, content = record.fields.get("operation"), record.fields.get("content")
        if not isinstance(operation, str) or not isinstance(content, bytes):
            return ""
        known = operation in self._doing
        self._doing.add(operation)
        begun = is_of(self.approvals.begun, operation, content)
        if known or begun or self.standings.standings.checked(operation, content):
            return ""
        try:
            ended = approval.parse(content).expires_at + LATE
        except ApprovalError:
            return ""  # it is reported otherwise
        at = record.time_us if record.kind is RecordKind.EXECUTION else self._look[1]
        if at <= ended * 1_000_000:
            return ""
        return f"operation {operation} had expired before anything of it was on record"

    def _report(self, seq: int, problem: str) -> None:
        if len(self._problems) >= MAX_PROBLEMS:
            self._unlisted += 1
        else:
            self._problems.append(problem_text(seq, problem))

    def _report_all(self, seq: int, problems: Iterable[str]) -> None:
        for problem in problems:
            self._report(seq, problem)

    # --- changes ---------------------------------------------------------------------------

    def _put_policy(self, record: Record, allowed: bool) -> None:
        policy = octets(record.fields, "policy")
        self.policies.add(policy)
        if policy == self._policy:
            return
        if self._policy:
            self._replaced[self._policy] = record.time_us + CALL_US
        self._policy = policy
        self._replaced.pop(policy, None)
        early = self._early.pop(policy, None)
        if early is not None and record.time_us - early[1] > CALL_US:
            self._report(
                early[0],
                f"it is under policy {policy.hex()}, which record {record.seq}"
                " puts in force only long after it",
            )
        approved = PolicyRecord.from_fields(record.fields).approved
        if allowed and approved is not None and not self.approvals.development:
            self._use_once(record, approved.operation, f"policy {policy.hex()}")

    def _put_officers(self, record: Record, allowed: bool) -> None:
        operation = text(record.fields, "operation", "")
        if allowed and operation:
            self._use_once(record, operation, "the officers")

    def _use_once(self, record: Record, operation: str, what: str) -> None:
        before = self._used.setdefault(operation, record.seq)
        if before != record.seq:
            self._report(
                record.seq,
                f"operation {operation} puts {what} in force again: its approval was used in"
                f" record {before}",
            )

    def _seam(self, snapshot: Record, first: bool) -> None:
        """Begins with the standings of a snapshot, or compares a later one with what was read."""
        if not first:
            self.standings.check(snapshot)
            return
        self.standings.apply(snapshot)
        if self.standings.deployment:
            self._keys.begin(snapshot.seq, snapshot.time_us)

    def _change_keys(self, record: Record, _allowed: bool) -> None:
        change, seq, time_us = KeysChange.from_fields(record.fields), record.seq, record.time_us
        self._report_all(seq, change.unaccounted)
        if change.rows is not None:
            taken = self.standings.take(record, change)
            self._report_all(seq, taken.problems)
            if change.act is not None:
                self._acts.add(change.act_id)
                if not self.approvals.acts_for(change.act.officer, time_us):
                    self._report(seq, f"{change.act.officer} acts and is not an officer")
            if change.baseline == 1 and not taken.problems:
                self.joined = change.joined
                self._keys.begin(seq, time_us, taken)
            else:
                self._keys.account(taken, seq, time_us, change.act.officer if change.act else "")
        elif self._keys.complete:
            if change.states:
                self._report(seq, "it names states without the versions that records have since")
        else:
            if not change.named_all:
                self._keys.forget()
            self._report_all(seq, self._keys.changed(change.states, seq, time_us))

    def _start(self, _record: Record, _allowed: bool) -> None:
        """What changed while the appliance was away is in no record of this log."""
        self._keys.forget()

    def _act(self, record: Record, _allowed: bool) -> None:
        if text(record.fields, "id", "") in self._acts:
            return  # a record of keys says what it changed
        act = ActRecord.from_fields(record.fields)
        self._report_all(record.seq, self._keys.acted(act, record.seq, record.time_us))

    def _begin(self, record: Record, allowed: bool) -> None:
        if allowed:
            self._keys.begun(approval.parse(octets(record.fields, "content")))

    def _end(self, record: Record, _allowed: bool) -> None:
        done = text(record.fields, "state") != "FAILED"
        self._keys.ended(text(record.fields, "operation"), done=done)

    _TAKEN: ClassVar[Mapping[RecordKind, Callable[["ChangeFold", Record, bool], None]]] = {
        RecordKind.START: _start,
        RecordKind.POLICY: _put_policy,
        RecordKind.OFFICERS: _put_officers,
        RecordKind.KEYS: _change_keys,
        RecordKind.ACT: _act,
        RecordKind.EXECUTION: _begin,
        RecordKind.EXECUTED: _end,
    }

    # --- signatures ------------------------------------------------------------------------

    def _signed(self, signings: Signings) -> None:
        for names, seen in signings.seen.items():
            if names.policy != self._policy:
                self._check_policy(names, seen.first, seen.last, seen.last_us)
            if names.facility and names.key and names.facility != names.key.facility:
                self._report(
                    seen.last, f"it names facility {names.facility} and signs with {names.key}"
                )
            if unfit := self._keys.unfit(names, seen):
                self._report(seen.last, f"{names.version} {unfit}")
            self._check_stops(names, seen.last, seen.last_us, seen.signed)
        for closed in signings.closed:
            known = closed.names or self._open.pop(closed.intent, None)
            if known is not None and closed.signed:
                self._check_stops(known, closed.intent, 0, closed.intent)

    def _check_policy(self, names: IntentNames, first: int, last: int, last_us: int) -> None:
        """Checks intents that are not under the policy in force, once for each policy."""
        policy = names.policy
        if len(policy) != HASH_SIZE or not self._policy:
            return  # a log that does not say which policy is in force
        until = self._replaced.get(policy)
        if until is None:
            self._early.setdefault(policy, (first, last_us))
        elif last_us > until:
            self._report(
                last,
                f"it is under policy {policy.hex()}, which was replaced more than"
                f" {CALL_US // 60_000_000} minutes before",
            )
            self._replaced[policy] = 1 << 63  # reported

    def _check_stops(self, names: IntentNames, last: int, last_us: int, signed: int | None) -> None:
        key = names.key
        if key is None:
            return
        for target, stop in list(self._keys.stops(names, key)):
            if problem := stop.contradicted(last_us, signed):
                self._report(last, f"{names.version} {problem}: {stop.text}")
                self._keys.reported(target)


def _unknown_policy(policy: bytes, first: tuple[int, int]) -> str:
    return f"record {first[0]}: it is under policy {policy.hex()}, which no record puts in force"
