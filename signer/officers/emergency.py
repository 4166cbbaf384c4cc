"""What one officer does at once: stop a key, a facility, a group or everything.

Stopping is never made to wait: the registry first, then what runs here, then the log.
Where the log takes no record nothing is signed in any case.
"""

from __future__ import annotations

from collections.abc import Callable

from tenacity import retry, retry_if_exception_type, stop_after_attempt

from signer.clock import Clock
from signer.errors import CallError, OperatorError, Reason, answered, invalid
from signer.keys import lifecycle
from signer.keys.registry import Registry
from signer.keys.writing import Change, ChangedMeanwhileError
from signer.model import KeyName, KeyState, KeyVersion, Scope, Suspension, parse_key_or_version
from signer.officers.approval import Officers
from signer.officers.kinds.base import ServedState
from signer.officers.records import ActRecord, OperationRecords, check_reason

_ENDED = frozenset({KeyState.COMPROMISED, KeyState.DESTROYED})


class EmergencyStops:
    """What one officer stops with one call. Methods raise CallError."""

    def __init__(
        self, registry: Registry, records: OperationRecords, serving: ServedState, clock: Clock
    ) -> None:
        self._registry, self._records = registry, records
        self._serving, self._clock = serving, clock

    def suspend_key(self, officer: str, name: str, reason: str) -> list[KeyVersion]:
        """Suspends what is active of a key or one version; what waits to be loses its time."""

        def stops(version: KeyVersion, state: KeyState) -> bool:
            waits = state is KeyState.PRE_ACTIVE and version.activate_at is not None
            return state is KeyState.ACTIVE or waits

        return self._change("suspend", officer, name, reason, stops=stops, move=lifecycle.suspend)

    def compromise(self, officer: str, name: str, reason: str) -> list[KeyVersion]:
        """Marks all versions of a key, or one, as compromised: for good."""

        def stops(_version: KeyVersion, state: KeyState) -> bool:
            return state not in _ENDED

        return self._change(
            "compromised", officer, name, reason, stops=stops, move=lifecycle.compromise
        )

    def suspend(self, officer: str, scope: Scope, name: str, reason: str) -> None:
        """Sets the flag that stops a facility, a group or everything."""
        check_reason(reason)
        if scope is Scope.EVERYTHING and name:
            raise invalid("name", "everything has no name")  # under one nobody could lift it
        policy = self._serving.policy
        known = {Scope.GROUP: policy.groups, Scope.FACILITY: policy.facilities}.get(scope)
        with answered():
            if known is not None and name not in known and not self._has_keys(scope, name):
                raise invalid(str(scope), f"there is no {scope} {name}")
            flag = Suspension(scope, name, self._clock.now(), officer, reason)
            with self._registry.writing() as write:
                write.suspend(flag)
        self._stopped()
        self._records.acted(ActRecord("suspend", str(flag), officer, reason, {}))

    def suspensions(self) -> tuple[Suspension, ...]:
        """Returns what is suspended beside keys."""
        with answered():
            return self._registry.suspensions()

    def officers(self) -> Officers:
        """Returns the officers' certificates by principal."""
        with answered():
            return self._registry.officers()

    def _change(
        self,
        act: str,
        officer: str,
        name: str,
        reason: str,
        *,
        stops: Callable[[KeyVersion, KeyState], bool],
        move: Callable[[KeyVersion, float], KeyVersion],
    ) -> list[KeyVersion]:
        check_reason(reason)
        try:
            key, number = parse_key_or_version(name)
        except ValueError as error:
            raise invalid("name", str(error)) from None
        with answered():
            changes = self._stop(name, key, number, stops, move)
        self._stopped()
        after = [change.after for change in changes]
        now = self._clock.now()
        states_after = {each.name: str(each.state_at(now)) for each in after}
        self._records.acted(ActRecord(act, name, officer, reason, states_after))
        return after

    @retry(
        retry=retry_if_exception_type(ChangedMeanwhileError),
        stop=stop_after_attempt(5),
        reraise=True,
    )
    def _stop(
        self,
        name: str,
        key: KeyName,
        number: int | None,
        stops: Callable[[KeyVersion, KeyState], bool],
        move: Callable[[KeyVersion, float], KeyVersion],
    ) -> list[Change]:
        """Writes the changed versions; who stops a key does not lose against who changes it."""
        now = self._clock.now()
        there = self._registry.versions(key)
        versions = [each for each in there if number in (None, each.number)]
        if not versions:
            raise CallError(Reason.KEY_NOT_FOUND, f"{name} does not exist")
        changes = [
            Change(each, move(each, now)) for each in versions if stops(each, each.state_at(now))
        ]
        if not changes:
            states = ", ".join(f"{each.name} is {each.state_at(now)}" for each in versions)
            raise OperatorError(f"nothing is to be stopped: {states}")
        with self._registry.writing() as write:
            write.change(changes)
        return changes

    def _stopped(self) -> None:
        if not self._serving.follow():
            raise CallError(
                Reason.REGISTRY_UNAVAILABLE,
                "it is in the registry, but this appliance could not read it back and may still"
                " sign: repeat it, or end the daemon",
                retry_after=1.0,
            )

    def _has_keys(self, scope: Scope, name: str) -> bool:
        if scope is not Scope.FACILITY:
            return False
        return bool(self._registry.snapshot().names(f"facilities/{name}/", limit=1))
