"""Which changes of the registry operations and acts account for. Pure: values in, values out.

Anyone with rights on the registry can write anything into it, also a row that says DONE. So a
change is served only where it follows from what officers signed: an operation whose approvals
verify against the officers in force, which names this very change and which has not made one
before. The operation is made again, by the same functions that execute it; its result must be
what the registry has. A move towards a stop needs no operation: it is obeyed, and reported.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

from signer.errors import OperatorError
from signer.key_index import KeyIndex
from signer.keys.registry import RegistryState
from signer.keys.rows import UnreadableRow
from signer.model import Act, KeyState, KeyVersion, Suspension, parse_key_or_version
from signer.officers.approval import (
    LATE,
    Officers,
    check_approved,
    check_deployment,
    check_needed,
    officers_sha256,
)
from signer.officers.execution import known_kind
from signer.officers.judgement import Judgement, Known
from signer.officers.keys_record import KeysRecord, VersionRow
from signer.officers.kinds.officer_change import ChangeOfficers, certificates_of
from signer.officers.kinds.policy_change import PutPolicy
from signer.officers.permits import makes_all_at_once, permit_of, target_of
from signer.officers.placing import PlacedChanges, Placing, judge_placements
from signer.officers.records import ApprovedOperation, OfficersRecord, PolicyRecord
from signer.officers.standing import FlagKey, key_of, since_of
from signer.officers.steps import AccountStep, ActStep, OperationStep
from signer.officers.store import StoredOperation
from signer.officers.suspending import SuspendedChanges, judge_suspensions
from signer.officers.ways import Explained, explain
from signer.officers.wrapped import WrappedRow, steps_to
from signer.officers.wrapping_standing import WrappingChanges, judge_wrapping, places_of

DECISIONS = ("officers", "policy", "enrol")  # the kinds that replace officers or the policy


class _Decided(NamedTuple):
    """The officers and the policy in force, and since which revisions."""

    officers: Officers
    officers_since: int
    policy: str | None
    policy_since: int


def judge(
    known: Known,
    new: RegistryState,
    operations: Sequence[StoredOperation],
    acts: Sequence[tuple[int, Act]],
    unreadable: Sequence[UnreadableRow] = (),
) -> Judgement:
    """Returns what may be served of a state of the registry, and what accounts for it.

    ``operations`` and ``acts`` are those since the known state, in their order; ``unreadable``
    are rows of them that cannot be read.
    """
    judging = _Judging(known, new, acts)
    judging.read([*new.unreadable, *unreadable])
    judging.decide(operations)
    judging.versions()
    judging.placements()
    judging.wrapping_keys()
    judging.suspensions()
    return judging.judgement()


class _Judging:
    """One judgement while it is made."""

    def __init__(self, known: Known, new: RegistryState, acts: Sequence[tuple[int, Act]]) -> None:
        self._known, self._new = known, new
        self._acts = [ActStep(act, revision) for revision, act in acts]
        self._steps: list[AccountStep] = []
        self._decisions: list[tuple[int, OfficersRecord | PolicyRecord]] = []
        self._changed: dict[int, list[VersionRow]] = {}  # by the number of the step
        self._lifted: dict[str, int] = {}  # targets of recorded operations, when they were resumed
        self._suspensions = SuspendedChanges()
        self._placements = PlacedChanges()
        self._wrapped: dict[int, list[WrappedRow]] = {}
        self._pins: dict[bytes, str] = {}  # of wrapped keys that this judgement has accepted
        self._result = Judgement(new)

    def read(self, unreadable: Sequence[UnreadableRow]) -> None:
        """Refuses what cannot be read: a version is not served, a suspension stays."""
        self._result.unreadable = unreadable
        for row in unreadable:
            self._result.refused.append(row.text)
            if row.version is not None:
                self._result.unaccounted[row.version] = self._known.standing(row.version)
                if (version := self._known.state.keys.version(*row.version)) is not None:
                    self._result.wrapped[row.version] = self._known.wrapped(version)

    # --- officers and policy -------------------------------------------------------------------

    def decide(self, operations: Sequence[StoredOperation]) -> None:
        """Follows officers and policy from operation to operation, and collects what is approved.

        What leads to something else than the registry has did not happen: it is left out.
        """
        state, new = self._known.state, self._new
        for each in operations:
            if each.proposal.kind == "resume" and self._known.used(each.id):
                target, ended = str(each.proposal.details.get("target")), each.ended_revision or -1
                self._lifted[target] = max(ended, self._lifted.get(target, -1))
        left_out: set[str] = set()
        for _ in range(3):
            end = self._follow(operations, left_out)
            officers = _same_officers(end, new.officers, new.officers_since)
            policy = (end.policy, end.policy_since) == (new.policy, new.policy_since)
            if officers and (policy or self._known.policy_free):
                break
            left_out |= set() if officers else {"officers"}
            left_out |= set() if policy else {"policy", "enrol"}
        if not officers:
            self._result.refused.append(
                "no operation leads to the officers that the registry has: those before stay"
            )
            end = end._replace(officers=state.officers, officers_since=state.officers_since)
        if self._known.policy_free:
            end = end._replace(policy=new.policy, policy_since=new.policy_since)
        elif not policy:
            self._result.refused.append(
                f"no operation puts the policy {new.policy} in force at revision"
                f" {new.policy_since}: {state.policy} stays"
            )
        self._result.state = replace_state(new, state, end)

    def _follow(self, operations: Sequence[StoredOperation], left_out: set[str]) -> _Decided:
        """Follows the operations in their order; returns what is in force after the last one."""
        state = self._known.state
        at = _Decided(state.officers, state.officers_since, state.policy, state.policy_since)
        self._steps, self._decisions = [], []
        acts = list(self._acts)
        lasting = self._lasting(operations, at.officers)
        for stored in operations:
            step = lasting.get(stored.id) or self._approved(stored, at.officers)
            if step is None:
                continue
            ended = stored.ended_revision
            while acts and ended is not None and acts[0].revision < ended:
                self._steps += [*lasting.values(), acts.pop(0)]
            self._steps += [*(each for each in lasting.values() if each is not step), step]
            if stored.proposal.kind not in left_out and ended is not None:
                before, at = at, self._decided(step, at, ended)
                if at.officers is not before.officers:
                    lasting = self._lasting(operations, at.officers)
        for act in acts:
            self._steps += [*lasting.values(), act]
        self._steps += lasting.values()
        return at

    def _lasting(
        self, operations: Sequence[StoredOperation], officers: Officers
    ) -> dict[str, OperationStep]:
        """Returns the operations that make their changes one after the other, by their ids.

        Some of what such a one made, others may have changed before it ended; perhaps it never
        does. So it is a step before each of the others.
        """
        some = (each for each in operations if not makes_all_at_once(each.proposal.kind))
        made = (self._approved(stored, officers) for stored in some)
        return {step.stored.id: step for step in made if step is not None}

    def _approved(self, stored: StoredOperation, officers: Officers) -> OperationStep | None:
        """Returns an operation that officers have approved, None if they have not."""
        proposal = stored.proposal
        try:
            check_deployment(proposal, self._known.state.deployment)
            kind, details = known_kind(proposal)
            permit = permit_of(stored.content)
            if permit.once and (self._known.used(stored.id) or self._known.failed(stored.id)):
                return None
            if not self._known.checked(stored.id, stored.content):
                # Nothing of it had been done long after its end: then it may not be done any more.
                if proposal.expires_at + LATE <= self._known.looked:
                    return None
                check_needed(proposal, self._known.needed)
                check_approved(proposal, stored.content, stored.signatures, officers)
        except OperatorError:
            return None
        signed = max((signature.at for signature in stored.signatures), default=0.0)
        times = (stored.changed_at, signed)
        return OperationStep(stored, kind, details, permit, times, self._known.document)

    def _decided(self, step: OperationStep, at: _Decided, revision: int) -> _Decided:
        """Returns what is in force after an operation, which may have changed nothing of it."""
        approved, number = ApprovedOperation.of(step.stored), len(self._steps) - 1
        match step.details:
            case ChangeOfficers(replaces=replaces, in_force_since=since) as details:
                if replaces != officers_sha256(at.officers) or at.officers_since not in (since, -1):
                    return at
                officers = certificates_of(details)
                record = OfficersRecord(officers, approved, since=revision)
                self._decisions.append((number, record))
                return at._replace(officers=officers, officers_since=revision)
            case PutPolicy(replaces=replaces, in_force_since=since) as policy:
                if replaces != at.policy or at.policy_since not in (since, -1):
                    return at
                sha256 = policy.policy_sha256
                put = PolicyRecord(bytes.fromhex(sha256), approved, since=revision)
                self._decisions.append((number, put))
                return at._replace(policy=sha256, policy_since=revision)
        return at

    # --- versions ------------------------------------------------------------------------------

    def versions(self) -> None:
        """Judges every version that is not as it is known."""
        known, added = self._known, 0
        changed = {v.name: v for v in self._new.keys.changed_since(known.state.keys)}
        changed |= {v.name: v for v in self._new.keys.written_since(known.state.keys)}
        for name in known.unaccounted:
            now = self._new.keys.version(*name)
            changed |= {} if now is None else {now.name: now}
        acted = {step.act.target for step in self._steps if isinstance(step, ActStep)}
        changed |= {
            version.name: version
            for version in (self._new.keys if acted else ())
            if acted & {version.name, str(version.key)}
        }
        for version in changed.values():
            added += known.state.keys.version(version.key, version.number) is None
            standing = known.standing((version.key, version.number))
            # A revision grows with each change: an earlier one would let an approval count that
            # officers gave before a later change, a stop for instance. One that no write has
            # reached would leave none for later changes.
            wrong = version.revision > self._new.keys.revision + 1 or (
                standing is not None and version.revision < standing.revision
            )
            wrapped = self._wrapped_by(version, new=standing is None)
            explained = Explained(accounted=False)
            if not wrong and wrapped is not None:
                explained = explain(version, standing, self._steps)
            for number, changed_row in explained.rows:
                self._changed.setdefault(number, []).append(changed_row)
            self._result.by_hand += [explained.by_hand] if explained.by_hand else []
            if not explained.accounted or wrapped is None:
                name = version.key, version.number
                self._result.unaccounted[name] = explained.stopped or standing
                self._result.wrapped[name] = known.wrapped(version)
                self._result.refused.append(
                    f"{version.name}: no operation accounts for what the registry has of it"
                )
                continue
            for number, row in wrapped:
                self._wrapped.setdefault(number, []).append(row)
                self._pins[row.pin] = row.name
        if len(self._new.keys) - added < len(known.state.keys):
            self._result.by_hand += [
                f"{version.name} is no longer in the registry"
                for version in known.state.keys
                if self._new.keys.version(version.key, version.number) is None
                and (version.key, version.number) not in self._result.unaccounted
            ]

    def _wrapped_by(self, version: KeyVersion, *, new: bool) -> list[tuple[int, WrappedRow]] | None:
        """Returns what has led to the wrapped key of a version, None if nothing has."""

        def taken(name: str, pin: bytes) -> bool:
            return self._pins.get(pin, name) != name or self._known.pinned(name, pin)

        return steps_to(version, self._known.wrapped(version), taken, self._steps, new=new)

    def placements(self) -> None:
        """Judges where the keys of versions are."""
        changed = self._new.keys.changed_since(self._known.state.keys)
        steps = [partial(self._placing, step) for step in self._steps]
        self._placements = judge_placements(changed, self._known.placed, self._seen_at, steps)
        self._result.refused += self._placements.refused
        self._result.by_hand += self._placements.by_hand

    def _placing(self, step: AccountStep, version: KeyVersion) -> Placing | None:
        """Returns what a step does to a version's placements: proven by a key that is its own."""
        done = step.placing(version)
        own = (version.key, version.number) not in self._result.unaccounted
        return done if done is None or own else done._replace(proven=False)

    def _seen_at(self, version: KeyVersion) -> int:
        """Returns the revision at which a version is known, -1 if it is not."""
        standing = self._known.standing((version.key, version.number))
        return -1 if standing is None else standing.revision

    def wrapping_keys(self) -> None:
        """Judges where wrapping keys are used."""
        known, rows = self._known.wrapping, self._new.wrapping_keys
        if known is None:
            changes = WrappingChanges(places_of(rows))
            changes.used[len(self._steps)] = changes.places
        else:
            steps = [partial(step.wrapping, self._accounted) for step in self._steps]
            changes = judge_wrapping(rows, known, steps)
        self._result.wrapping = changes
        self._result.refused += changes.refused
        self._result.state = self._result.state._replace(wrapping_keys=changes.usable(rows))

    def _accounted(self, name: str) -> KeyVersion | None:
        """Returns a version by its name, None if it is not there or not accounted for."""
        try:
            key, number = parse_key_or_version(name)
        except ValueError:
            return None
        wanted = key, number or 0
        return None if wanted in self._result.unaccounted else self._new.keys.version(*wanted)

    # --- suspensions ---------------------------------------------------------------------------

    def suspensions(self) -> None:
        """Judges the suspensions: added ones are obeyed, lifted ones need an operation."""
        unreadable = (row.flag for row in self._new.unreadable if row.flag is not None)
        acts = {n: s for n, s in enumerate(self._steps) if isinstance(s, ActStep)}
        over = {number for number, act in acts.items() if self._is_over(act)}
        self._suspensions = judge_suspensions(
            self._known.state.suspensions,
            self._new.suspensions,
            frozenset((str(scope), name) for scope, name in unreadable),
            [_as_it_was if n in over else s.leaves for n, s in enumerate(self._steps)],
            [act.flag for n, act in acts.items() if act.flag is not None and n not in over],
        )
        self._result.refused += self._suspensions.refused
        self._result.by_hand += self._suspensions.by_hand
        flags = tuple(sorted(self._suspensions.flags))
        self._result.state = self._result.state._replace(suspensions=flags)

    def _is_over(self, step: ActStep) -> bool:
        """Whether the log has what an act suspended, and that officers lifted it afterwards.

        Such acts are met again where all that ever was in the registry is looked at.
        """
        if step.flag is None or step.revision > self._known.recorded:
            return False
        return step.revision < self._lifted.get(target_of(*step.flag), -1)

    # --- the result ----------------------------------------------------------------------------

    def judgement(self) -> Judgement:
        """Returns the judgement, with its records in the order of what was done."""
        result, revision = self._result, self._new.keys.revision
        decisions = dict(self._decisions)
        for number in range(len(self._steps) + 1):
            if number in decisions:
                result.records.append(decisions[number])
            changed = self._changed.get(number, [])
            flags = self._suspensions.at(number)
            placements, wrapped = self._placements.at(number), self._wrapped.get(number, [])
            used, ended = result.wrapping.used.get(number), result.wrapping.ended.get(number, [])
            more = wrapped or ended or used is not None
            if not (changed or more or any(flags) or any(placements)):
                continue
            step = self._steps[number] if number < len(self._steps) else None
            suspended, lifted = ({key_of(f): since_of(f) for f in each} for each in flags)
            result.records.append(
                KeysRecord(
                    revision,
                    changed,
                    suspended,
                    lifted,
                    ApprovedOperation.of(step.stored) if isinstance(step, OperationStep) else None,
                    step.act if isinstance(step, ActStep) else None,
                    result.by_hand if step is None else (),
                    *placements,
                    wrapped,
                    used,
                    ended,
                )
            )
        result.state = result.state._replace(keys=self._served())
        return result

    def _served(self) -> KeyIndex:
        """Returns the versions to serve: those of the registry, but for what is unaccounted."""
        keys, known = self._new.keys, self._known.state.keys
        unaccounted = self._result.unaccounted
        if any(standing is None for standing in unaccounted.values()):
            left = (v for v in keys if unaccounted.get((v.key, v.number), True) is not None)
            keys = KeyIndex(left, keys.revision)
        stopped = [
            replace(row, state=KeyState.SUSPENDED)
            for name, standing in unaccounted.items()
            if standing is not None
            if (row := known.version(*name) or self._new.keys.version(*name)) is not None
        ]
        keys = keys.updated(stopped, keys.revision) if stopped else keys
        return self._result.wrapping.served(self._placements.served(keys))


def replace_state(new: RegistryState, known: RegistryState, end: _Decided) -> RegistryState:
    """Returns a state of the registry under the officers and the policy that are in force."""
    return new._replace(deployment=known.deployment, **end._asdict())


def _same_officers(end: _Decided, officers: Officers, since: int) -> bool:
    return (officers_sha256(end.officers), end.officers_since) == (officers_sha256(officers), since)


def _as_it_was(_: FlagKey, flag: Suspension | None) -> Suspension | None:
    """Returns a suspension as an act leaves it that has no effect any more."""
    return flag
