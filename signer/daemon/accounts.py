"""What this appliance's log accounts for, and what that makes of the registry's next state.

Every change that the daemon begins to serve is a record first, with the operation or the act
that made it. The log judges a record by the officers before it, so an appliance that missed
several decisions records each of them, in their order. What nothing accounts for is not
served: see ``signer.officers.accounting``.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice

from signer.audit.format.record import Fields, RecordKind
from signer.clock import Clock
from signer.config.policy_documents import PolicyText
from signer.daemon.audit_log import DaemonLog
from signer.errors import OperatorError
from signer.events import Events, Unaccounted
from signer.key_index import KeyIndex
from signer.keys.registry import Registry, RegistryState
from signer.keys.rows import MOST_WRITES, UnreadableError, UnreadableRow, texts_of
from signer.model import KeyVersion, Placement, Scope, Suspension, WrappingKey, version_name
from signer.officers.accounting import DECISIONS, judge
from signer.officers.approval import officers_sha256
from signer.officers.judgement import Judgement, Known, VersionName
from signer.officers.keys_record import KeysRecord, baseline_fields
from signer.officers.offline_check import ApprovalFold
from signer.officers.permits import permit_of
from signer.officers.records import OfficersRecord, PolicyRecord
from signer.officers.standing import Standing, is_of, key_of, since_of, standing_of
from signer.officers.standing_fold import StandingFold
from signer.officers.store import OperationStore
from signer.officers.wrapped import WrappedRow, WrappedStanding, standing_of_wrapped
from signer.officers.wrapping_standing import WrappingChanges, WrappingPlaces, places_of
from signer.text import count

UNACCOUNTED = "the registry has changes that no operation of officers accounts for: see the log"
"""The reason on /readyz: everybody who reaches the port can read it, so it names no key."""


class Accounts:
    """What is accounted for; ``state`` of it is served. For one thread at a time.

    ``refused`` says what the registry has and nothing accounts for: it is not served.
    ``latest`` is the latest revision of the registry that is known.
    """

    def __init__(
        self,
        registry: Registry,
        clock: Clock,
        events: Events,
        *,
        standings: StandingFold,
        approvals: ApprovalFold,
        needed: Mapping[str, int],
        development: bool,
        looked: float,
    ) -> None:
        """``standings`` and ``approvals`` are what the log's records so far say.

        ``needed`` is the number of officers that each kind of operation needs here.
        ``looked`` is the time of the newest one, in seconds since the epoch: it tells
        operations that others may have executed since from those whose time was over before.
        """
        self._registry, self._store = registry, OperationStore(registry)
        self._clock, self._events = clock, events
        self._standings, self._approvals = standings, approvals
        self._needed, self._development = needed, development
        self._given = not standings.deployment  # states are taken as given, in a new baseline
        self._looked = looked
        since = approvals.officers_since, approvals.policy_since
        self.latest = max(standings.standings.latest_revision(), *since)
        self._revision = 0  # up to which operations have been accounted with
        self._used: set[str] = set()
        self._unaccounted: dict[VersionName, Standing | None] = {}
        self._unaccounted_wrapped: dict[VersionName, WrappedStanding | None] = {}
        self._pins: dict[bytes, str] = {}  # of wrapped keys that this process has recorded
        self._wrapped_since: dict[str, int] = {}  # of what this process has recorded
        self._wrapping = WrappingChanges({})
        self._wrapping_places: WrappingPlaces | None = standings.wrapping
        self._policy = ""  # the newest that this process has recorded
        self.refused: Sequence[str] = ()
        self.unreadable: Sequence[UnreadableRow] = ()  # rows that are not served for that reason
        self.state = RegistryState(KeyIndex(), {}, (), None)

    def begin(self, state: RegistryState) -> Judgement:
        """Judges the registry at a start, by what the log has. Raises OperatorError."""
        approvals, standings = self._approvals, self._standings
        # A registry that was put back from a backup counts from an earlier revision.
        self._revision = min(standings.revision, state.keys.revision)
        officers, policy = approvals.officers, approvals.policy.hex()
        known = state._replace(
            keys=KeyIndex(),
            suspensions=state.suspensions if self._given else _flags(state, standings),
            deployment=state.deployment if self._given else standings.deployment,
        )
        if officers is not None:
            same = officers_sha256(officers) == officers_sha256(state.officers)
            known = known._replace(
                officers=officers,
                officers_since=_since(approvals.officers_since, same, state.officers_since),
                policy=policy,
                policy_since=_since(
                    approvals.policy_since, policy == state.policy, state.policy_since
                ),
            )
        self.state = known
        judged = self.judge(state)
        if (judged.refused or judged.by_hand) and self._revision:
            # Something was not accounted for when the log's newest record was written, or that was
            # one of several and the others were not written any more.
            self._revision = 0
            judged = self.judge(state)
        if judged.refused and self._development and not self._given:
            # `signer dev` has created keys: in development states are taken as given again.
            self._given = True
            return self.begin(state)
        if gone := standings.standings.besides(version.name for version in state.keys):
            gone_text = count(gone, "version is", "versions are")
            judged.by_hand.append(f"{gone_text} in the log and no longer in the registry")
        return judged

    def judge(self, new: RegistryState) -> Judgement:
        """Returns what may be served of a state of the registry. Raises OperatorError."""
        logged, revision = self._standings.standings, new.keys.revision
        if not self._given and revision > self.latest + MOST_WRITES:
            raise UnreadableError(
                f"value of revision is {revision}, and {self.latest} is the latest that this"
                " appliance knows: nobody writes so much. Put the row back from the backup"
            )
        known = Known(
            state=self.state,
            standing=lambda name: self._standing(name, new),
            placed=self._placed,
            wrapped=self._wrapped,
            wrapping=places_of(new.wrapping_keys) if self._given else self._wrapping_places,
            pinned=self._pinned,
            unaccounted=self._unaccounted.keys(),
            used=lambda operation: operation in self._used or logged.has_used(operation),
            failed=self._approvals.has_failed,
            checked=lambda operation, content: (
                logged.checked(operation, content)
                or is_of(self._approvals.begun, operation, content)
            ),
            policy_free=self.files_decide or self._approvals.development,
            document=self._registry.document,
            needed=self._needed,
            looked=self._looked,
            recorded=self._standings.revision,
        )
        since = self._revision
        # Where states are taken as given, only decisions on officers and policy are followed.
        kinds = DECISIONS if self._given else ()
        operations, bad_operations = self._store.that_may_account(since, kinds)
        acts, bad_acts = self._registry.acts(since)
        judged = judge(known, new, operations, acts, [*bad_operations, *bad_acts])
        if new.deployment != known.state.deployment:
            judged.refused.append(
                f"the registry is that of deployment {new.deployment or 'none'}, and this log of"
                f" {known.state.deployment}"
            )
        return judged

    def look(self, at: float) -> None:
        """Notes that what was in the registry at a time is accounted for."""
        if not self.refused:
            self._looked = at

    @property
    def files_decide(self) -> bool:
        """Whether the policy in the files needs no approval."""
        return self._development or not self.state.officers

    def record(self, judged: Judgement, text: PolicyText, log: DaemonLog) -> None:
        """Records what is served from here on, and keeps its policies. Raises OperatorError.

        ``text`` is the policy of the judged state. Nothing is recorded if one of its policies
        cannot be kept.
        """
        put = [each.policy.hex() for each in judged.records if isinstance(each, PolicyRecord)]
        sha256 = text.policy.sha256
        for each in put:
            content = text.text if each == sha256 else self._registry.document(each)
            if content is None:
                raise OperatorError(
                    f"the registry does not hold the policy {each}: put it back from the backup"
                )
            log.keep_policy(each, content)
        log.keep_policy(sha256, text.text)
        log.account(list(self._records(judged, sha256, put)))
        if self._given:
            self._pins |= {r.pin: r.name for v in judged.state.keys if (r := WrappedRow.of(v))}
        self._policy, self._given = sha256, False
        self._take(judged)

    def _records(
        self, judged: Judgement, sha256: str, put: Sequence[str]
    ) -> Iterator[tuple[RecordKind, Fields]]:
        """Yields the records of a judgement in their order."""
        now, state = self._clock.now(), judged.state
        if self._approvals.officers is None and not self._policy and state.officers:
            first = OfficersRecord.first(
                state, development=self._development, policy=bytes.fromhex(sha256)
            )
            yield RecordKind.OFFICERS, first.to_fields()
        for record in judged.records:
            if isinstance(record, KeysRecord):
                yield from ((RecordKind.KEYS, fields) for fields in record.to_fields(now))
            elif isinstance(record, PolicyRecord):
                yield RecordKind.POLICY, record.to_fields()
            else:
                yield RecordKind.OFFICERS, record.to_fields()
        if sha256 != (put[-1] if put else self._policy):
            same = PolicyRecord(bytes.fromhex(sha256), since=state.policy_since)
            yield RecordKind.POLICY, same.to_fields()
        if self._given:
            for part in baseline_fields(state, now, development=self._development):
                yield RecordKind.KEYS, part
        if judged.refused and judged.refused != self.refused:
            refused = KeysRecord(state.keys.revision, unaccounted=judged.refused)
            yield from ((RecordKind.KEYS, fields) for fields in refused.to_fields(now))

    def _take(self, judged: Judgement) -> None:
        """Continues from a judgement, which is in the log."""
        if judged.by_hand or (judged.refused and judged.refused != self.refused):
            self._events.emit(Unaccounted(judged.refused, judged.by_hand))
        for record in judged.records:
            if isinstance(record, KeysRecord) and record.approved is not None:
                self._used.add(record.approved.operation)
            if isinstance(record, KeysRecord):
                self._pins |= {row.pin: row.name for row in record.wrapped}
                self._wrapped_since |= _since_when(record)
        self.state, self.refused = judged.state, judged.refused
        self.latest = max(self.latest, judged.state.keys.revision)
        self._unaccounted, self.unreadable = judged.unaccounted, judged.unreadable
        self._unaccounted_wrapped = judged.wrapped
        self._wrapping, self._wrapping_places = judged.wrapping, judged.wrapping.places
        if not judged.refused:  # what was missed meanwhile is needed once rows are put back
            self._revision = judged.state.keys.revision

    def _standing(self, name: VersionName, new: RegistryState) -> Standing | None:
        """Returns what is accounted for of a version, at another state of the registry."""
        if name in self._unaccounted:
            return self._unaccounted[name]
        known = self.state.keys.version(*name)
        if known is not None:
            return standing_of(known)
        if self._given:
            version = new.keys.version(*name)
            return None if version is None else standing_of(version)
        # Nothing is served before the first judgement; later, what is new is in no record either.
        return self._standings.standings.get(version_name(*name))

    @property
    def unaccounted(self) -> Collection[str]:
        """The names of versions and wrapping keys that the registry has otherwise than the log."""
        versions = (version_name(*name) for name in self._unaccounted)
        return [*versions, *map(str, sorted(self._wrapping.unaccounted))]

    def usable(self, keys: Iterable[WrappingKey]) -> tuple[WrappingKey, ...]:
        """Returns the rows of wrapping keys without those that are not accounted for."""
        return self._wrapping.usable(keys)

    @property
    def clock_confirmed(self) -> int:
        """The number of the record with which the clock was confirmed last; 0: it was not."""
        return self._approvals.clock_confirmed

    def changed_by(self, operation: str, content: bytes) -> bool:
        """Returns whether the log has a change of keys by an operation with these bytes."""
        return operation in self._used or self._standings.standings.checked(operation, content)

    def _placed(self, version: KeyVersion) -> Collection[Placement]:
        """Returns the placements of a version that are accounted for, but where it was made."""
        known = self.state.keys.version(version.key, version.number)
        if known is not None:
            return known.other_placements
        return (
            version.other_placements
            if self._given
            else self._standings.placed.get(version.name, ())
        )

    def _wrapped(self, version: KeyVersion) -> WrappedStanding | None:
        """Returns what is accounted for of a version's wrapped key."""
        name = version.key, version.number
        if name in self._unaccounted_wrapped:
            return self._unaccounted_wrapped[name]
        known, logged = self.state.keys.version(*name), self._standings.wrapped.get(version.name)
        if known is None and not self._given:
            return logged
        now = standing_of_wrapped(known or version)
        since = self._wrapped_since.get(version.name, 0 if logged is None else logged.since)
        return None if now is None else now._replace(since=since)

    def wrapped_since(self, version: KeyVersion) -> int:
        """Returns since when operations can be proposed that wrap its key anew; see Wrapping."""
        standing = self._wrapped(version)
        return 0 if standing is None else standing.since

    def _pinned(self, name: str, pin: bytes) -> bool:
        """Returns whether another version has a public key, by its hash."""
        logged = self._standings.wrapped.is_of_another(name, pin)
        return logged or self._pins.get(pin, name) != name

    def reason(self) -> str:
        """Returns why the registry is not served as it is; empty if it is."""
        unreadable = "; ".join(islice(texts_of(self.unreadable), 5))
        if unreadable:
            return f"{UNACCOUNTED}; rows of it cannot be read: {unreadable}"
        return UNACCOUNTED if self.refused else ""


def _since_when(record: KeysRecord) -> dict[str, int]:
    """Returns since when the wrapped keys of a record are as they are; see Wrapping."""
    if record.approved is None or not record.wrapped:
        return {}
    permit = permit_of(record.approved.content)
    places = {v.name: v.standing for v in record.versions}
    made = {
        row.name: permit.wrapped_with(places[row.name].place) if row.name in places else None
        for row in record.wrapped
    }
    at = permit.proposal.proposed_at
    return {name: at if by is None else by.since for name, by in made.items()}


def _since(logged: int, same: bool, now: int) -> int:
    """Returns the revision of what is in force; older logs do not have it."""
    return now if logged < 0 and same else logged


def _flags(state: RegistryState, standings: StandingFold) -> tuple[Suspension, ...]:
    """Returns the suspensions that the log has, with what the registry says of them."""
    said = {key_of(flag): flag for flag in state.suspensions}
    return tuple(
        said[key]
        if key in said and since_of(said[key]) == since
        else Suspension(Scope(key[0]), key[1], (since + 0.5) / 1_000_000, "", "")
        for key, since in standings.flags.items()
    )
