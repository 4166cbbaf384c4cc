"""What is in force: the snapshot that calls get, and what the HSM may sign.

A stop is in force as soon as the registry's state that has it was read; it waits for no record.
Everything else of that state is in force once it is recorded, which ``signer.daemon.serving`` does
and which takes as long as the disk. What is stopped meanwhile stays stopped.
"""

import math
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from signer.clock import FlooredClock
from signer.events import Events, KeysChanged, SuspensionsChanged
from signer.hsm.front.service import Hsm
from signer.key_index import KeyIndex
from signer.keys.registry import Registry, RegistryState
from signer.model import KeyName, KeyState, KeyVersion, Scope, Suspended, Suspension
from signer.policy.rules import Policy
from signer.signing.request import Served, Snapshot

_STOPPED = frozenset({KeyState.SUSPENDED, KeyState.COMPROMISED, KeyState.DESTROYED})
"""States that also stop batches which began before."""


@dataclass(slots=True)
class Ahead:
    """What is stopped by states of the registry that are not served yet."""

    versions: dict[tuple[KeyName, int], KeyState] = field(default_factory=dict)
    suspended: Suspended = field(default_factory=Suspended)

    def any(self) -> bool:
        return bool(self.versions) or self.suspended != Suspended()

    def add(self, versions: Mapping[tuple[KeyName, int], KeyState], suspended: Suspended) -> None:
        self.versions |= versions
        self.suspended = _both(self.suspended, suspended)


class Enforcement:
    """Reads the registry, stops at once what it stops, and replaces what is served.

    Safe to call from any thread: its lock is held while the registry is read, or what is in force
    changes, and never while the log is waited for.
    """

    def __init__(
        self,
        registry: Registry,
        state: RegistryState,
        *,
        served: Served,
        hsm: Hsm,
        clock: FlooredClock,
        events: Events,
    ) -> None:
        """``state`` is what was read before, and ``served`` has what may be served of it."""
        self._lock = threading.Lock()
        self._registry, self._served, self._hsm = registry, served, hsm
        self._clock, self._events = clock, events
        self.newest = state  # the state that was read last; what it stops is stopped
        self._looked = clock.now()  # when the registry had no other state
        self.halted = ""  # why everything is stopped here, whatever officers have stopped
        self._readable = True  # at the last look
        self._ahead = Ahead()
        self._ended_until = self._looked  # session copies of versions that ended before are gone
        self._next_end = _end_after(served.snapshot.keys, self._ended_until)

    @property
    def pending(self) -> bool:
        """Whether something is stopped that is not served as stopped, or the other way round."""
        return self._ahead.any() or (self._readable and bool(self.halted))

    # --- stops ---------------------------------------------------------------------------------

    def obey(self, *, again: bool = False, whole: bool = False) -> RegistryState:
        """Stops what the registry stops now; returns its state. Raises OperatorError.

        The state is read where the revision has changed, or ``again``; ``whole``: all of it.
        """
        with self._lock:
            looked, known = self._clock.now(), self.newest
            if again or whole or self._registry.revision() != known.keys.revision:
                state = self._registry.state(None if whole else known.keys)
                self._stop(state)
                self.newest = state
            self._looked, self._readable = looked, True
            return self.newest

    def latest(self) -> tuple[RegistryState, float]:
        """Returns the newest state, and when the registry had no other one (epoch seconds)."""
        with self._lock:
            return self.newest, self._looked

    def halt(self, reason: str) -> None:
        """Stops everything until the registry can be followed again."""
        with self._lock:
            snapshot = self._served.snapshot
            if not self.halted:
                self._suspend(snapshot, replace(snapshot.suspended, everything=reason), ())
            self.halted, self._readable = reason, False

    def begin(self) -> None:
        """Suspends in the HSM what is suspended at the start."""
        self._hsm.suspend(self._served.snapshot.suspended, [])

    def _stop(self, state: RegistryState) -> None:
        """Stops what a new state has stopped, before any change that could be refused."""
        now, snapshot = self._clock.now(), self._served.snapshot
        stopped = {
            new: f"{new.name} is {new.state_at(now)}"
            for new in state.keys.changed_since(self.newest.keys)
            if new.state_at(now) in _STOPPED or _plan_is_cancelled(new, snapshot.keys)
        }
        states = {
            (new.key, new.number): at if (at := new.state_at(now)) in _STOPPED else new.state
            for new in stopped
        }
        for row in state.unreadable:
            version = None if row.version is None else snapshot.keys.version(*row.version)
            if version is not None:
                stopped[version] = row.text
                states[version.key, version.number] = KeyState.SUSPENDED
        suspended = suspended_by(state, snapshot.policy)
        self._ahead.add(states, suspended)
        if stopped:
            self._served.snapshot = replace(snapshot, keys=_with(snapshot.keys, states))
            self._hsm.stop_keys(stopped)
        both = _both(snapshot.suspended, suspended)
        if both != snapshot.suspended:
            self._suspend(self._served.snapshot, both, state.suspensions)

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

    # --- everything else -----------------------------------------------------------------------

    def begin_change(self) -> tuple[RegistryState, Ahead]:
        """Returns the newest state, for ``serve``, and what is stopped up to it.

        What is stopped from here on is not part of the change: ``serve`` leaves it stopped.
        """
        with self._lock:
            ahead, self._ahead = self._ahead, Ahead()
            return self.newest, ahead

    def give_up(self, ahead: Ahead) -> None:
        """Ends a change that could not be recorded: what is stopped stays so until one can."""
        with self._lock:
            ahead.add(self._ahead.versions, self._ahead.suspended)
            self._ahead = ahead

    def serve(self, new: Snapshot, ahead: Ahead, flags: Sequence[Suspension]) -> None:
        """Serves what is recorded; workers know new keys before callers do.

        ``ahead`` is that of ``begin_change``, ``flags`` are the suspensions of the change.
        """
        with self._lock:
            before, later = self._served.snapshot, self._ahead
            suspended = new.suspended
            if later.any():  # perhaps of groups, to which the new policy adds facilities
                suspended = _both(suspended, suspended_by(self.newest, new.policy))
                suspended = _both(suspended, later.suspended)
            if not self._readable:
                suspended = replace(suspended, everything=self.halted)
            after = replace(new, keys=_with(new.keys, later.versions), suspended=suspended)
            changed = {(v.key, v.number): v for v in after.keys.changed_since(before.keys)}
            again = (after.keys.version(*name) for name in ahead.versions)
            changed |= {(v.key, v.number): v for v in again if v is not None}
            # Workers hear of a key before the first chunk that needs it, and forget destroyed ones.
            placed = [v for v in changed.values() if _placed_anew(before.keys, v)]
            destroyed = [v for v in changed.values() if v.state is KeyState.DESTROYED]
            self._hsm.keys_changed(placed + destroyed)
            self._served.snapshot = after
            self._enforce(before, changed.values())
            if before.suspended != suspended:
                self._suspend(before, suspended, flags)
            if self._readable:
                self.halted = ""
            # One that ends later than before is looked at too early, and nothing is missed.
            self._next_end = min(self._next_end, _end_after(changed.values(), self._ended_until))
        if changed:
            self._events.emit(KeysChanged(len(after.keys), after.keys.revision))

    def _enforce(self, before: Snapshot, changed: Iterable[KeyVersion]) -> None:
        """Stops unaccounted versions, resumes those that may sign, drops copies of others."""
        now = self._clock.now()
        ended, resumed = list[KeyVersion](), list[KeyVersion]()
        stopped: dict[KeyVersion, str] = {}
        for new in changed:
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

    def end_by_clock(self) -> None:
        """Drops session copies of versions that just expired; admitted batches may finish."""
        with self._lock:
            now = self._clock.now()
            if now < self._next_end:
                return
            since, self._ended_until = self._ended_until, now
            keys = self._served.snapshot.keys
            self._hsm.drop([v for v in keys if v.ends_at and since < v.ends_at <= now])
            self._next_end = _end_after(keys, now)


def snapshot_of(state: RegistryState, policy: Policy) -> Snapshot:
    """Returns what is served of a state of the registry under a policy."""
    return Snapshot(
        policy.with_officers(state.officers),
        state.keys,
        suspended_by(state, policy),
        state.wrapping_keys,
    )


def suspended_by(state: RegistryState, policy: Policy) -> Suspended:
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


def _both(one: Suspended, other: Suspended) -> Suspended:
    """Returns what either suspends."""
    everything = one.everything or other.everything
    return Suspended(everything, {**other.facilities, **one.facilities})


def _with(keys: KeyIndex, states: Mapping[tuple[KeyName, int], KeyState]) -> KeyIndex:
    """Returns an index in which the versions of these names have these states."""
    found = ((keys.version(*name), state) for name, state in states.items())
    changed = [replace(version, state=state) for version, state in found if version is not None]
    return keys.updated(changed, keys.revision, complete=keys.complete) if changed else keys


def _placed_anew(before: KeyIndex, version: KeyVersion) -> bool:
    known = before.version(version.key, version.number)
    return known is None or not set(version.placements) <= set(known.placements)


def _plan_is_cancelled(new: KeyVersion, served: KeyIndex) -> bool:
    """Whether a version that was to be active at a time is not any more."""
    old = served.version(new.key, new.number)
    return new.state is KeyState.PRE_ACTIVE and old is not None and old.state is KeyState.ACTIVE


def _end_after(versions: Iterable[KeyVersion], time: float) -> float:
    """Returns when the next version ends after a time, both in seconds since the epoch."""
    ends = (version.ends_at for version in versions)
    return min((at for at in ends if at is not None and at > time), default=math.inf)
