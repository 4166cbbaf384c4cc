"""The appliance in any state, how a step is judged, and what must be so after every one."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from hypothesis.stateful import RuleBasedStateMachine, invariant

from signer.audit.format.record import RecordKind
from signer.errors import CallError, Reason
from signer.events import OperationBug, Unaccounted
from signer.model import Format, KeyName, KeyVersion
from signer.officers.standing import standing_of
from signer.officers.store import OperationState, StoredOperation
from signer.signing.engine import _find_version
from signer.signing.request import BatchRequest
from tests.unit.officers.opmodel import (
    Between,
    Oracle,
    S,
    Shadow,
    cka_id,
    rows_of,
    signers_of,
    state_of,
)
from tests.unit.officers.opmoves import Moves
from tests.unit.officers.opstage import START, Stage
from tests.unit.officers.people import Authority
from tests.unit.officers.softtoken import Crash

AUTHORITY, OTHER = Authority(), Authority("CN=another,C=VN")


class Appliance(RuleBasedStateMachine):
    """The appliance and what must be so of it."""

    def __init__(self, make: Callable[[], Stage]) -> None:
        super().__init__()
        self.stage = make()
        self.moves = Moves(self.stage, AUTHORITY)
        self.over: set[str] = set()
        self.proposed: dict[str, tuple[Shadow, float]] = {}  # what officers saw, and when
        self.looked = START
        self.rows: list[Any] = []
        self.page: list[StoredOperation] = []

    # --- steps -----------------------------------------------------------------------------

    @contextmanager
    def step(
        self,
        *crashes: int | None,
        at: str = "",
        full: bool = False,
        meanwhile: tuple[int, Callable[[], None]] | None = None,
    ) -> Iterator[None]:
        """Judges what is done within; with crashes the program ends there, and begins anew.

        ``at`` is the operation that is asked for, if any. ``meanwhile`` is what others do after
        so many points of it, and is judged by itself.
        """
        stage = self.stage
        stage.clock.forward(0.01)
        before, first, seen = Shadow.of(stage.registry), stage.clock.now(), len(self.records())

        def between() -> None:
            nonlocal before
            assert meanwhile is not None
            begun = {str(r.fields["operation"]) for r in self.records()[seen:] if _begins(r.kind)}
            self.judge(before, Between(first, stage.clock.now()), begun | ({at} if at else set()))
            meanwhile[1]()
            before = Shadow.of(stage.registry)  # keys may have been made earlier, and not stored

        if meanwhile is not None:
            stage.fate.meanwhile(meanwhile[0], between)
        again = list(crashes)
        after = again.pop(0) if again else None
        if after is not None:
            stage.fate.crash_after(after)
        stage.log.full = full
        crashed = False
        try:
            yield
        except Crash:
            crashed = True
        while crashed or full:
            stage.clock.forward(0.01)
            full = stage.log.full = False
            try:
                stage.start(crash_after=again.pop(0) if again else None)
                crashed = False
            except Crash:
                crashed = True
        stage.fate.revive()
        stage.clock.forward(0.01)
        begun = {str(r.fields["operation"]) for r in self.records()[seen:] if _begins(r.kind)}
        for operation in self.operations():
            self.proposed.setdefault(operation.id, (before, first))
        self.judge(before, Between(first, stage.clock.now()), begun | ({at} if at else set()))

    def records(self) -> Any:
        return self.stage.log.records

    def judge(self, before: Shadow, when: Between, worked: set[str]) -> None:
        """Explains by one operation, signed by enough, all that has changed."""
        after = Shadow.of(self.stage.registry)
        if before == after:
            return
        [identity] = worked
        operation = self.stage.operation(identity)
        assert identity not in self.over
        document = self.stage.registry.document
        oracle = Oracle(operation.content, before, after, when, document)
        if oracle.details.get("basis"):
            target = str(oracle.details.get("version") or oracle.details["target"])
            key = target.partition("/versions/")[0]
            now, then = _looks(key, before, when.last), _looks(key, *self.proposed[identity])
            if oracle.kind == "import-certificate":
                now, then = ({target: looks[target]} for looks in (now, then))
            assert now == then
        wanted = oracle.expected(done=operation.state is OperationState.DONE)
        assert _differences(wanted, after) == []
        in_time = [s for s in operation.signatures if s.at < operation.proposal.expires_at]
        signers = signers_of(operation.content, in_time, before.officers)
        assert operation.proposal.proposer in signers
        assert len(signers) >= operation.proposal.officers >= 2
        assert signers_of(operation.content, in_time, before.officers, valid=True)

    def operations(self, *states: OperationState) -> list[StoredOperation]:
        now = self.stage.clock.now()
        rows = rows_of(self.stage.registry, "operations", "signatures")
        if rows != self.rows:
            # In the order in which they came: ids are random, and draws must find the same again.
            came = {row[0]: place for place, row in enumerate(rows[1])}
            page = self.stage.proposals.page(None, 1000, None)
            self.rows, self.page = rows, sorted(page, key=lambda each: came[each.id])
        return [each for each in self.page if not states or each.state_at(now) in states]

    # --- one officer alone -----------------------------------------------------------------

    def one(self) -> str:
        """Any officer; the daemon's guard lets nobody else act."""
        return min(Shadow.of(self.stage.registry).officers)

    def in_state(self, *states: S) -> list[KeyVersion]:
        now = self.stage.clock.now()
        versions = Shadow.of(self.stage.registry).versions.values()
        return [v for v in versions if state_of(v, now) in states]

    @contextmanager
    def acting(self, before: Shadow, wanted: Shadow, crash: int | None) -> Iterator[None]:
        """What one officer does at once happens whole, or where the program ends not at all."""
        self.stage.clock.forward(0.01)
        if crash is not None:
            self.stage.fate.crash_after(crash)
        try:
            yield
        except Crash:
            self.stage.start()
            wanted = wanted if Shadow.of(self.stage.registry) != before else before
        self.stage.fate.revive()
        assert _differences(wanted, Shadow.of(self.stage.registry)) == []

    # --- what is always so -----------------------------------------------------------------

    @invariant()
    def no_version_signs_that_is_not_active(self) -> None:
        self.stage.serving.follow()
        now, snapshot = self.stage.clock.now(), self.stage.snapshot
        held = Shadow.of(self.stage.registry)
        by_key: dict[KeyName, list[KeyVersion]] = {}
        for version in held.versions.values():
            by_key.setdefault(version.key, []).append(version)
            signs = _signs(snapshot.keys, version.key, version.number, now)
            active = state_of(version, now) is S.ACTIVE
            assert (signs is not None) is active, f"{version.name} at {now}"
        for key, versions in by_key.items():
            signing = [v for v in versions if state_of(v, now) is S.ACTIVE]
            latest = max((v.activate_at or 0.0 for v in signing), default=None)
            primary = _signs(snapshot.keys, key, None, now)
            assert (primary is None) is (latest is None)
            assert primary is None or primary.activate_at == latest
            assert bool(snapshot.suspended.reason(key.facility)) is _is_stopped(key, held, snapshot)

    @invariant()
    def the_registry_is_what_the_token_holds(self) -> None:
        operations = self.operations()
        assert not [
            o for o in operations if o.state in (OperationState.APPROVED, OperationState.EXECUTING)
        ]
        versions = Shadow.of(self.stage.registry).versions.values()
        registered = {v.cka_id: v.name for v in versions if v.state is not S.DESTROYED}
        there = {each.cka_id: each.label for each in self.stage.token.inventory()}
        failed = [o.id for o in operations if o.state is OperationState.FAILED]
        left = {cka_id(identity, place) for identity in failed for place in range(20)}
        extra, missing = there.keys() - registered.keys(), registered.keys() - there.keys()
        assert extra <= left
        destroying = [o for o in operations if o.id in failed and o.proposal.kind == "destroy"]
        gone = {o.proposal.details["version"] for o in destroying}
        assert {registered[identifier] for identifier in missing} <= gone
        assert all(there[each] == registered[each] for each in there.keys() & registered.keys())

    @invariant()
    def the_log_proves_it(self) -> None:
        assert self.stage.log.control.problems == ()
        assert self.stage.seen.of(OperationBug) == [] or self.stage.log.full or self.forgiven()
        done: set[str] = set()
        for record in self.stage.log.of(RecordKind.EXECUTION, RecordKind.EXECUTED):
            identity = str(record.fields["operation"])
            assert identity not in self.over
            # Its end may be told twice, where the program ended in between; it begins only once.
            assert not _begins(record.kind) or identity not in done
            if record.fields.get("state") == "DONE":
                done.add(identity)
        assert self.stage.log.control.officers == Shadow.of(self.stage.registry).officers

    @invariant()
    def the_log_accounts_for_all_that_is_served(self) -> None:
        assert self.stage.serving.refused == []
        assert self.stage.seen.of(Unaccounted) == []
        standings, served = self.stage.log.standings, self.stage.snapshot.keys
        assert len(standings.standings.rows) == len(served)
        for version in served:
            known = standings.standings.get(version.name)
            assert known is not None
            assert known.same(standing_of(version)), version.name

    def forgiven(self) -> bool:
        """A log that took nothing is told as it should be, once; after that it is forgotten."""
        told = all(
            "audit log accepts no records" in str(bug.error)
            for bug in self.stage.seen.of(OperationBug)
        )
        self.stage.seen.seen.clear()
        return told

    @invariant()
    def the_clock_never_goes_back(self) -> None:
        now = self.stage.clock.now()
        assert now >= self.stage.log.records[-1].time_us / 1e6
        self.looked = now

    def teardown(self) -> None:
        self.stage.close()


def _differences(wanted: Shadow, found: Shadow) -> list[tuple[str, Any, Any]]:
    """What differs, small enough to read."""
    told: list[tuple[str, Any, Any]] = []
    for name in sorted({*wanted.versions, *found.versions}):
        one, other = wanted.versions.get(name), found.versions.get(name)
        if one != other:
            told.append((name, one, other))
    for part in ("officers", "flags", "policy"):
        one, other = getattr(wanted, part), getattr(found, part)
        if one != other:
            told.append((part, one, other))
    return told


def _looks(key: str, shadow: Shadow, now: float) -> dict[str, Any]:
    """OperationState and times of a key's versions, as officers look at them."""
    return {
        name: (state_of(v, now), v.activate_at, v.sign_until, v.deactivate_at, v.destroy_at)
        for name, v in shadow.versions.items()
        if name.startswith(f"{key}/versions/")
    }


def stopped(version: KeyVersion, now: float, *, end: bool) -> KeyVersion | None:
    """A version that one officer stops, or None where there is nothing to stop."""
    state = state_of(version, now)
    if end and state not in (S.COMPROMISED, S.DESTROYED):
        return replace(version, state=S.COMPROMISED, came_from=None, destroy_at=None)
    if not end and state is S.ACTIVE:
        return replace(version, state=S.SUSPENDED)
    if not end and state is S.PRE_ACTIVE and (version.activate_at or version.came_from is None):
        return replace(version, state=S.PRE_ACTIVE, activate_at=None, came_from=S.ACTIVE)
    return None


def _signs(keys: Any, key: KeyName, number: int | None, now: float) -> KeyVersion | None:
    """The version by which the engine would sign, None where it refuses."""
    request = BatchRequest("spiffe://x/y", key, number, Format.JWS, [b"{}"], now + 1)
    try:
        return _find_version(keys, request, now)
    except CallError as error:
        if error.reason is not Reason.KEY_VERSION_NOT_ACTIVE:
            raise
        return None


def _is_stopped(key: KeyName, held: Shadow, snapshot: Any) -> bool:
    facility = snapshot.policy.facilities.get(key.facility)
    group = facility.terms.group if facility else None
    names = {("everything", ""), ("facility", key.facility), ("group", group)}
    return bool(names & held.flags)


def _begins(kind: RecordKind) -> bool:
    return kind is RecordKind.EXECUTION
