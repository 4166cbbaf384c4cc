"""What is served now: keys, policy and suspensions, kept in step with the registry."""

import math
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple

from signer.clock import FlooredClock
from signer.config.models import Config
from signer.config.policy_documents import PolicyText
from signer.daemon.accounts import Accounts
from signer.daemon.audit_log import DaemonLog
from signer.daemon.policy_in_force import PolicyInForce
from signer.errors import ConfigError, OperatorError
from signer.events import (
    Bug,
    Events,
    KeysChanged,
    PolicyChanged,
    RegistryUnreadable,
    SuspensionsChanged,
)
from signer.hsm.front.service import Hsm
from signer.key_index import KeyIndex
from signer.keys.registry import Registry, RegistryState
from signer.keys.rows import UnreadableError, UnreadableRow
from signer.model import KeyName, KeyState, KeyVersion, Scope, Suspended, Suspension
from signer.officers.approval import Officers
from signer.officers.judgement import Judgement
from signer.officers.kinds.operation_context import OperationContext
from signer.policy.rules import Policy
from signer.signing.request import Served, Snapshot

_STOPPED = frozenset({KeyState.SUSPENDED, KeyState.COMPROMISED, KeyState.DESTROYED})
"""States that also stop batches which began before."""
COMPARED = 200  # versions that one comparison reads


class Begun(NamedTuple):
    """What the daemon serves first: the registry's state, what is accounted for, the policy."""

    state: RegistryState
    accounts: Accounts
    judged: Judgement
    policies: PolicyInForce

    def snapshot(self) -> Snapshot:
        return snapshot_of(self.judged.state, self.policies.text.policy)


class Serving:
    """Makes the daemon serve the registry's newest state. Safe to call from any thread.

    ``error`` says why the registry is not followed; it is empty while it is. Where the database
    does not answer, what was served last is served on. Where it answers and nothing can be
    followed, because its row of ``revision`` cannot be read, nothing is signed.
    """

    def __init__(
        self,
        config: Config,
        registry: Registry,
        begun: Begun,
        *,
        served: Served,
        hsm: Hsm,
        log: DaemonLog,
        clock: FlooredClock,
        events: Events,
    ) -> None:
        """``begun`` is what ``served`` holds."""
        self.lock = threading.RLock()  # held while what is served changes
        self.error = ""
        self._defect = ""  # the kind of error that must not be, and was
        self._halted = ""  # why everything is stopped here, whatever officers have stopped
        # Where the stops of a state are in force and the rest is not served yet: these versions.
        self._begun: set[tuple[KeyName, int]] | None = None
        self._registry, self._state = registry, begun.state
        self._accounts, self._first = begun.accounts, begun.judged
        self._policies, self._served, self._hsm = begun.policies, served, hsm
        self._log, self._clock, self._events = log, clock, events
        self._tokens = tuple(token.label for token in config.tokens)
        self._needed = config.operations.all_needed()
        self._compared, self._seen = 0, 0  # the rows of versions that were compared in this pass
        self._ended_until = clock.now()  # session copies of versions that ended before are gone
        self._next_end = _end_after(begun.judged.state.keys, self._ended_until)

    @property
    def policy(self) -> Policy:
        """The policy in force."""
        return self._policies.text.policy

    @property
    def officers(self) -> Officers:
        """The officers in force, by the registry's state that is served."""
        return self._state.officers

    @property
    def suspensions(self) -> Sequence[Suspension]:
        """What officers have suspended besides keys, by the registry's state that is served."""
        return self._accounts.state.suspensions

    @property
    def files_decide(self) -> bool:
        """Whether the policy's files are in force as they are, without an approval."""
        return self._accounts.files_decide

    @property
    def reason(self) -> str:
        """Why the registry is not served as it is; empty where it is."""
        return self._halted or self._defect or self._accounts.reason()

    @property
    def unreadable(self) -> Sequence[UnreadableRow]:
        """Rows of the registry that cannot be read; what they are about is not served."""
        return self._accounts.unreadable

    @property
    def refused(self) -> Sequence[str]:
        """What of the registry is not served, because nothing accounts for it."""
        return self._accounts.refused

    def begin(self) -> None:
        """Records what is served first, and stops what is suspended. Raises OperatorError."""
        self._accounts.record(self._first, self._policies.text, self._log)
        self._hsm.suspend(self._served.snapshot.suspended, [])
        self._policies.begin_files(self._accounts.state)

    def follow(self) -> bool:
        """Serves what the registry holds now; the last state stays while it cannot be read.

        Returns whether everything that the registry has stopped is stopped here; that does
        not depend on the other changes.
        """
        try:
            head = self._registry.head()
            self._policies.parse_early(head.policy)
            with self.lock:
                known = self._state
                new = head.revision != known.keys.revision
                return self._serve(self._registry.state(known.keys) if new else known)
        except Exception as error:  # noqa: BLE001 - suspensions are missed: that must be seen
            return self._failed(error)

    def compare(self) -> None:
        """Compares a part of the registry with the rows that were read, whatever its revision.

        So a change by hand that did not raise the revision is found, too. All of a small
        registry is one part.
        """
        known = self._state
        try:
            newest, page = self._registry.state_and_page(known.keys, self._compared, COMPARED)
            # What has raised the revision since is served as it is read, and does not count.
            moved = newest.keys.revision != known.keys.revision
            differs = (
                (newest != known and not moved)
                or not {*page.unreadable} <= {*newest.unreadable}
                or any(newest.keys.version(v.key, v.number) != v for v in page.versions)
            )
            self._seen += len(page.versions)
            if page.last is None:
                differs = differs or self._seen != len(newest.keys)
                self._seen = 0
            self._compared = page.last or 0
            # Rows of operations are not compared: look again whether they can be read now.
            if differs or moved or self._accounts.unreadable:
                with self.lock:  # which is held for what is read, or it could be an earlier state
                    self._serve(self._registry.state(None if differs else self._state.keys))
        except Exception as error:  # noqa: BLE001 - suspensions are missed: that must be seen
            self._failed(error)

    def draft(self) -> PolicyText | None:
        """Returns the policy in the files if it is another one; see ``PolicyInForce.draft``."""
        return self._policies.draft(self._accounts.state)

    def put(self, draft: PolicyText) -> None:
        """Puts a draft in force where the files decide. Raises ConfigError."""
        with self.lock:
            try:
                # Kept first: what cannot be kept must not be in force after a restart either.
                self._log.keep_policy(draft.policy.sha256, draft.text)
                with self._registry.writing() as write:
                    write.put_policy(draft.text)
                state = self._registry.state(self._state.keys)
                self._stop(state)
                self._take(state, from_files=True)
            except OperatorError as error:
                raise self._policies.refusal(str(error)) from error

    def context(self) -> OperationContext:
        """Returns what operations depend on, read now. Raises OperatorError."""
        state = self._registry.state(self._state.keys)
        if state.keys.revision != self._state.keys.revision:
            # Officers and policy are those that are served: serve this state first. Otherwise
            # without the lock: a reader does not wait for a thread that waits for the database.
            with self.lock:
                state = self._registry.state(self._state.keys)
                self._serve(state)
        return self._context(state)

    @contextmanager
    def locked(self, known: OperationContext | None = None) -> Iterator[OperationContext]:
        """Holds the lock for a block, at the registry's newest state; see ``ServedState``."""
        with self.lock:
            revision = self._registry.revision()
            read = [self._state] if known is None else [self._state, known.state]
            if any(state.keys.revision != revision for state in read):
                state = self._registry.state(self._state.keys)
                self._serve(state)
                known = self._context(state)
            yield known or self._context(self._state)

    def _context(self, state: RegistryState) -> OperationContext:
        """Returns the context at a state of the registry.

        Keys and suspensions are the registry's, because operations change them there. Officers,
        policy and wrapping keys are those that are accounted for: a row alone makes nobody an
        officer.
        """
        policies, served = self._policies, self._accounts.state
        return OperationContext(
            now=self._clock.now(),
            state=state._replace(
                officers=served.officers,
                officers_since=served.officers_since,
                policy=served.policy,
                policy_since=served.policy_since,
                deployment=served.deployment,
                wrapping_keys=self._accounts.usable(state.wrapping_keys),
            ),
            stored=state,
            policy=policies.text,
            tokens=self._tokens,
            needed=self._needed,
            draft=policies.in_files,
            read_policy=policies.parse,
            document=self._registry.document,
            clock=self._clock.reading(),
            record_time=self._log.time_of,
            clock_confirmed=self._accounts.clock_confirmed,
            changed_by=self._accounts.changed_by,
            unaccounted=frozenset(self._accounts.unaccounted),
            wrapped_since=self._accounts.wrapped_since,
            policy_folder=policies.folder.is_dir(),
            files_problem=policies.files_problem,
        )

    # --- changes ---------------------------------------------------------------------------

    def _serve(self, state: RegistryState) -> bool:
        """Serves a state of the registry; returns whether everything that it stops is stopped."""
        stopped = False
        try:
            if state is not self._state or self._halted or self._begun is not None:
                self._begun = self._begun or set()
                self._stop(state)
                stopped = True
                self._take(state)
                self._begun = None
            stopped = True
            if state.keys.revision < self._accounts.latest:  # it was put back from a backup
                self._registry.raise_revision(self._accounts.latest)
            self._end_by_clock()
            self._accounts.look()
            self.error = self._defect = ""
        except Exception as error:  # noqa: BLE001 - as in `follow`
            self._failed(error)
        return stopped

    def _failed(self, error: Exception) -> bool:
        """Reports why the registry is not followed; returns whether everything is stopped.

        Everything is, where what it holds is the reason.
        """
        if isinstance(error, OperatorError | ConfigError):
            self._defect = ""
        else:
            self._events.emit(Bug("follow the registry", error, {}))
            self._defect = f"the registry is not followed: {type(error).__name__}, see the log"
        if str(error) != self.error:
            self._events.emit(RegistryUnreadable(str(error)))
        self.error = str(error) or self._defect
        halts = isinstance(error, UnreadableError)
        if halts:
            with self.lock:
                self._halt(f"the registry cannot be followed, nothing is signed: {error}")
        return halts

    def _halt(self, reason: str) -> None:
        """Stops everything until the registry can be followed again."""
        if not self._halted:
            snapshot = self._served.snapshot
            self._suspend(snapshot, replace(snapshot.suspended, everything=reason), ())
        self._halted = reason

    def _stop(self, state: RegistryState) -> None:
        """Stops what a new state has stopped, before any change that could be refused."""
        now, served = self._clock.now(), self._served.snapshot.keys
        stopped = {
            new: f"{new.name} is {new.state_at(now)}"
            for new in state.keys.changed_since(self._state.keys)
            if new.state_at(now) in _STOPPED or _plan_is_cancelled(new, served)
        }
        for row in state.unreadable:
            version = None if row.version is None else served.version(*row.version)
            if version is not None:
                stopped[version] = row.text
        if stopped:
            self._hsm.stop_keys(stopped)
        if self._begun is not None:
            self._begun |= {(version.key, version.number) for version in stopped}
        snapshot = self._served.snapshot
        more = _suspended(state, self.policy)
        both = Suspended(
            snapshot.suspended.everything or more.everything,
            {**more.facilities, **snapshot.suspended.facilities},
        )
        if both != snapshot.suspended:
            self._suspend(snapshot, both, state.suspensions)

    def _suspend(self, before: Snapshot, suspended: Suspended, flags: Sequence[Suspension]) -> None:
        """Puts other suspensions in force: first for new jobs, then for those that wait."""
        self._served.snapshot = replace(self._served.snapshot, suspended=suspended)
        halted = [
            version
            for version in before.keys
            if suspended.reason(version.key.facility)
            and not before.suspended.reason(version.key.facility)
        ]
        self._hsm.suspend(suspended, halted)
        self._events.emit(SuspensionsChanged([str(each) for each in flags]))

    def _take(self, state: RegistryState, *, from_files: bool = False) -> None:
        """Serves another state: workers know new keys before callers do.

        The files that a policy came from are not written: they may hold the next draft.
        """
        judged = self._accounts.judge(state)
        before, before_text = self._served.snapshot, self._policies.text
        text = self._policies.of(judged.state)
        # Nothing is served that is not in the log: what fails here is tried again at the next look.
        self._accounts.record(judged, text, self._log)
        self._state, self._policies.text = state, text
        after = snapshot_of(judged.state, text.policy)
        changed = list(after.keys.changed_since(before.keys))
        # Workers hear of a key before the first chunk that needs it, and forget destroyed ones.
        placed = [v for v in changed if _placed_anew(before.keys.version(v.key, v.number), v)]
        self._hsm.keys_changed(placed + [v for v in changed if v.state is KeyState.DESTROYED])
        self._served.snapshot, self._halted = after, ""
        self._enforce(before, after)
        # One that ends later than before is looked at too early, and nothing is missed.
        self._next_end = min(self._next_end, _end_after(changed, self._ended_until))
        if changed:
            self._events.emit(KeysChanged(len(after.keys), after.keys.revision))
        if text is not before_text:
            if not from_files:
                self._policies.write_files(before_text)
            self._events.emit(PolicyChanged(text.policy.sha256))

    def _enforce(self, before: Snapshot, after: Snapshot) -> None:
        """Stops unaccounted versions, resumes those that may sign, drops copies of others."""
        now = self._clock.now()
        ended, resumed = list[KeyVersion](), list[KeyVersion]()
        stopped: dict[KeyVersion, str] = {}
        changed = {v.name: v for v in after.keys.changed_since(before.keys)}
        again = (after.keys.version(*name) for name in self._begun or ())
        changed |= {version.name: version for version in again if version is not None}
        for new in changed.values():
            old = before.keys.version(new.key, new.number)
            state = new.state_at(now)
            if old is not None and not set(old.placements) <= set(new.placements):
                ended.append(old)  # its copies on the token that it has left, too
            # Also one that the clock activates later: nothing is recorded then.
            if new.state is KeyState.ACTIVE and state in (KeyState.ACTIVE, KeyState.PRE_ACTIVE):
                resumed.append(new)
            elif state in _STOPPED:
                stopped[new if old is None else old] = f"{new.name} is {state}"
            elif old is not None and old.active(now):
                ended.append(new)  # admitted batches may finish, as where the clock ends it
        if stopped:
            self._hsm.stop_keys(stopped)
        if resumed:
            self._hsm.resume_keys(resumed)
        if ended:
            self._hsm.drop(ended)
        if before.suspended != after.suspended:
            self._suspend(before, after.suspended, self._accounts.state.suspensions)

    def _end_by_clock(self) -> None:
        """Drops session copies of versions that just expired; admitted batches may finish."""
        now = self._clock.now()
        if now < self._next_end:
            return
        since, self._ended_until = self._ended_until, now
        keys = self._served.snapshot.keys
        self._hsm.drop([v for v in keys if v.ends_at and since < v.ends_at <= now])
        self._next_end = _end_after(keys, now)


def _end_after(versions: Iterable[KeyVersion], time: float) -> float:
    """Returns when the next version ends after a time, both in seconds since the epoch."""
    ends = (version.ends_at for version in versions)
    return min((at for at in ends if at is not None and at > time), default=math.inf)


def begin_serving(
    config: Config,
    registry: Registry,
    accounts: Accounts,
    log: DaemonLog,
    events: Events,
    *,
    development: bool,
) -> Begun:
    """Returns what is served at the start. Raises ConfigError and OperatorError."""
    registry.raise_revision(accounts.latest)  # it was put back from a backup
    read = registry.state()
    judged = accounts.begin(read)
    policies = PolicyInForce(
        config.policy, registry, judged.state, events, kept=log.kept_policy, development=development
    )
    state = registry.state(read.keys)
    if state != read:  # a policy from the files was put into it
        judged = accounts.begin(state)
    return Begun(state, accounts, judged, policies)


def _placed_anew(before: KeyVersion | None, version: KeyVersion) -> bool:
    return before is None or not set(version.placements) <= set(before.placements)


def check_audit_token(audit_key: KeyVersion, config: Config) -> None:
    """Raises OperatorError if the audit key is on a token that the configuration does not name.

    Other keys may be: an appliance may lack a token that others of its deployment have.
    """
    if not any(audit_key.cka_id_on(token.label) for token in config.tokens):
        raise OperatorError(
            f"the audit key is on token {audit_key.token}, which the configuration does not name:"
            " add it under `tokens`"
        )


def _plan_is_cancelled(new: KeyVersion, served: KeyIndex) -> bool:
    """Whether a version that was to be active at a time is not any more."""
    old = served.version(new.key, new.number)
    return new.state is KeyState.PRE_ACTIVE and old is not None and old.state is KeyState.ACTIVE


def snapshot_of(state: RegistryState, policy: Policy) -> Snapshot:
    """Returns what is served of a state of the registry under a policy."""
    return Snapshot(
        policy.with_officers(state.officers),
        state.keys,
        _suspended(state, policy),
        state.wrapping_keys,
    )


def _suspended(state: RegistryState, policy: Policy) -> Suspended:
    """Returns what is suspended: everything, and each facility by itself or with its group."""
    names: dict[Scope, set[str]] = {scope: set() for scope in Scope}
    for suspension in state.suspensions:
        names[suspension.scope].add(suspension.name)
    for row in state.unreadable:  # a suspension that cannot be read is one nevertheless
        if row.flag is not None:
            scope, name = row.flag
            names[scope].add(name)
    groups = names[Scope.GROUP]
    reasons = {
        name: f"group {facility.terms.group} is suspended by the officers"
        for name, facility in (policy.facilities.items() if groups else ())
        if facility.terms.group in groups
    }
    for name in names[Scope.FACILITY]:
        reasons[name] = f"facility {name} is suspended by the officers"
    everything = "everything is suspended by the officers" if names[Scope.EVERYTHING] else ""
    if any(row.stops_all for row in state.unreadable):
        everything = "a suspension in the registry cannot be read: what it stops is not known"
    return Suspended(everything, reasons)
