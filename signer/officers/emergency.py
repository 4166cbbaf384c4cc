"""What one officer may stop alone, at once: a key, a facility, a group or everything.

A stop waits for no other change: first the registry, then this appliance, then the log. If the
log accepts no records, nothing is signed anyway. The act is a row of the registry, in the
transaction that carries it out: so every appliance can record which act stopped a key. That record
is made by the thread that follows the registry, when the changes before are recorded.
"""

import uuid
from collections.abc import Callable

from tenacity import retry, retry_if_exception_type, stop_after_attempt

from signer.clock import Clock
from signer.errors import CallError, OperatorError, Reason, answered, invalid
from signer.keys import lifecycle
from signer.keys.registry import Registry
from signer.keys.writing import Change, ChangedMeanwhileError
from signer.model import (
    IDENTIFIER,
    Act,
    KeyState,
    KeyVersion,
    Scope,
    Suspension,
    parse_key_or_version,
)
from signer.officers.approval import Officers
from signer.officers.kinds.base import ServedState
from signer.officers.records import ActRecord, OperationRecords, check_reason

_Stops = Callable[[KeyVersion, KeyState], bool]
_Move = Callable[[KeyVersion, float], KeyVersion]


class EmergencyStops:
    """What one officer stops with one call. Methods raise CallError."""

    def __init__(
        self, registry: Registry, records: OperationRecords, serving: ServedState, clock: Clock
    ) -> None:
        self._registry, self._records = registry, records
        self._serving, self._clock = serving, clock

    def suspend_key(self, officer: str, name: str, reason: str) -> list[KeyVersion]:
        """Suspends the versions of a key that sign or may come to sign, or one of them.

        A planned activation is cancelled, and no rotation activates what has no plan yet.
        """
        return self._change("suspend", officer, name, reason, _may_sign, move=lifecycle.suspend)

    def compromise(self, officer: str, name: str, reason: str) -> list[KeyVersion]:
        """Marks all versions of a key, or one, as compromised. This cannot be undone."""
        return self._change("compromised", officer, name, reason, _lives, move=lifecycle.compromise)

    def suspend(self, officer: str, scope: Scope, name: str, reason: str) -> None:
        """Suspends a facility, a group or everything."""
        check_reason(reason)
        if scope is Scope.EVERYTHING and name:
            raise invalid("name", "everything has no name")  # with one it could not be resumed
        if scope is not Scope.EVERYTHING and not IDENTIFIER.fullmatch(name):
            raise invalid(str(scope), f"is not the id of a {scope}: name it alone, as in 01-001")
        policy = self._serving.policy
        names = {Scope.GROUP: policy.groups, Scope.FACILITY: policy.facilities}.get(scope)
        with answered():
            if not (
                names is None
                or name in names
                or (
                    scope is Scope.FACILITY
                    and self._registry.snapshot().names(f"facilities/{name}/", limit=1)
                )
            ):
                raise invalid(str(scope), f"there is no {scope} {name}")
            flag = Suspension(scope, name, self._clock.now(), officer, reason)
            # Of the same time: so every appliance knows that this act has set this flag.
            act = self._act("suspend", str(flag), officer, reason)._replace(at=flag.since)
            with self._registry.writing() as write:
                write.suspend(flag)
                write.act(act)
        self._stopped()
        self._records.acted(ActRecord.of(act))

    def suspensions(self) -> tuple[Suspension, ...]:
        """Returns the suspensions of facilities, groups and everything."""
        with answered():
            return self._registry.suspensions()

    def officers(self) -> Officers:
        """Returns the officers' certificates by principal."""
        with answered():
            return self._registry.officers()

    def _change(
        self, act: str, officer: str, name: str, reason: str, stops: _Stops, *, move: _Move
    ) -> list[KeyVersion]:
        check_reason(reason)
        try:
            parse_key_or_version(name)
        except ValueError as error:
            raise invalid("name", str(error)) from None
        done = self._act(act, name, officer, reason)
        with answered():
            after = self._stop(done, stops, move)
        self._stopped()
        now = self._clock.now()
        states_after = {version.name: str(version.state_at(now)) for version in after}
        self._records.acted(ActRecord.of(done, states_after))
        return after

    def _act(self, act: str, target: str, officer: str, reason: str) -> Act:
        return Act(str(uuid.uuid4()), act, target, officer, reason, self._clock.now())

    @retry(
        retry=retry_if_exception_type(ChangedMeanwhileError),
        stop=stop_after_attempt(5),
        reraise=True,
    )
    def _stop(self, act: Act, stops: _Stops, move: _Move) -> list[KeyVersion]:
        """Writes the stopped versions; repeats where others change the key at the same time."""
        name = act.target
        now, (key, number) = self._clock.now(), parse_key_or_version(name)
        versions = [v for v in self._registry.versions(key) if number in (None, v.number)]
        if not versions:
            raise CallError(Reason.KEY_NOT_FOUND, f"{name} does not exist")
        changes = [Change(v, move(v, now)) for v in versions if stops(v, v.state_at(now))]
        if not changes:
            states = ", ".join(f"{version.name} is {version.state_at(now)}" for version in versions)
            raise OperatorError(f"nothing to stop: {states}")
        with self._registry.writing() as write:
            write.change(changes)
            write.act(act)
        return [change.after for change in changes]

    def _stopped(self) -> None:
        if not self._serving.obey():
            raise CallError(
                Reason.REGISTRY_UNAVAILABLE,
                "the registry has this stop, but this appliance could not read it back and may"
                " still sign: repeat it, or stop the daemon",
                retry_after=1.0,
            )


def _may_sign(version: KeyVersion, state: KeyState) -> bool:
    """Whether a version signs or will: that of a rotation needs no further approval for it."""
    planned = version.activate_at is not None or version.came_from is None
    return state is KeyState.ACTIVE or (state is KeyState.PRE_ACTIVE and planned)


def _lives(_version: KeyVersion, state: KeyState) -> bool:
    return state not in (KeyState.COMPROMISED, KeyState.DESTROYED)
