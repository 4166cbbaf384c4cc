"""The states of a key version: one table, and the moves that follow it.

Pure: each move takes a version and a time and returns the changed version; an illegal move
raises. States and moves are those of NIST SP 800-57 part 1,
section 7.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from signer.errors import OperatorError
from signer.model import KeyState, KeyVersion

_S = KeyState

TRANSITIONS: Mapping[KeyState, frozenset[KeyState]] = {
    _S.PRE_ACTIVE: frozenset({_S.ACTIVE, _S.COMPROMISED, _S.DESTROY_SCHEDULED}),
    _S.ACTIVE: frozenset({_S.SUSPENDED, _S.DEACTIVATED, _S.COMPROMISED}),
    _S.SUSPENDED: frozenset({_S.ACTIVE, _S.DEACTIVATED, _S.COMPROMISED, _S.DESTROY_SCHEDULED}),
    _S.DEACTIVATED: frozenset({_S.COMPROMISED, _S.DESTROY_SCHEDULED}),
    _S.COMPROMISED: frozenset({_S.DESTROY_SCHEDULED}),
    # Back is to where it came from; that is never ACTIVE, from which nothing is scheduled.
    _S.DESTROY_SCHEDULED: frozenset(
        {_S.DESTROYED, _S.COMPROMISED, _S.PRE_ACTIVE, _S.SUSPENDED, _S.DEACTIVATED}
    ),
    _S.DESTROYED: frozenset(),
}
"""The states that may follow each state."""


class IllegalMoveError(OperatorError):
    """A state cannot follow the state in force, or not at this time."""


def activate(version: KeyVersion, at: float, sign_until: float | None, now: float) -> KeyVersion:
    """Activates a version from ``at`` (not before ``now``) until ``sign_until``."""
    _check(version, _S.ACTIVE, now, _S.PRE_ACTIVE)
    start = max(at, now)
    active = replace(
        version, state=_S.ACTIVE, activate_at=start, sign_until=sign_until, came_from=None
    )
    if active.ends_at is not None and active.ends_at <= start:
        raise IllegalMoveError(
            f"{version.name} would end before it begins: give a later sign_until"
        )
    return active


def suspend(version: KeyVersion, now: float) -> KeyVersion:
    """Suspends a version.

    A PRE_ACTIVE version with a planned activation loses that plan instead; ``came_from``
    = ACTIVE keeps its rotation from activating it later.
    """
    if version.state_at(now) is _S.PRE_ACTIVE:
        if version.activate_at is None:
            raise IllegalMoveError(f"{version.name} is {_S.PRE_ACTIVE}: nothing to stop")
        return replace(version, state=_S.PRE_ACTIVE, activate_at=None, came_from=_S.ACTIVE)
    _check(version, _S.SUSPENDED, now, _S.ACTIVE)
    return replace(version, state=_S.SUSPENDED)


def resume(version: KeyVersion, now: float) -> KeyVersion:
    """Ends a suspension; the version signs again as long as its times allow."""
    _check(version, _S.ACTIVE, now, _S.SUSPENDED)
    return replace(version, state=_S.ACTIVE)


def deactivate(
    version: KeyVersion, at: float, now: float, destroy_at: float | None = None
) -> KeyVersion:
    """Deactivates a version at ``at``; ``destroy_at`` also schedules its destruction."""
    _check(version, _S.DEACTIVATED, now, _S.ACTIVE, _S.SUSPENDED)
    if destroy_at is not None and destroy_at < at:
        raise IllegalMoveError(f"{version.name} would be destroyed before it ends")
    ended = replace(version, deactivate_at=max(at, now), destroy_at=destroy_at)
    if at > now:
        return ended  # the clock ends it
    if destroy_at is not None:
        return replace(ended, state=_S.DESTROY_SCHEDULED, came_from=_S.DEACTIVATED)
    return replace(ended, state=_S.DEACTIVATED)


def compromise(version: KeyVersion, now: float) -> KeyVersion:
    """Marks a version as compromised: its signatures are in doubt."""
    _check(version, _S.COMPROMISED, now)
    return replace(version, state=_S.COMPROMISED, came_from=None, destroy_at=None)


def schedule_destruction(version: KeyVersion, at: float, now: float) -> KeyVersion:
    """Schedules the destruction of a version: it is allowed from ``at``."""
    _check(version, _S.DESTROY_SCHEDULED, now)
    return replace(
        version,
        state=_S.DESTROY_SCHEDULED,
        came_from=version.state_at(now),
        destroy_at=max(at, now),
    )


def restore(version: KeyVersion, now: float) -> KeyVersion:
    """Cancels a scheduled destruction."""
    back = version.came_from or _S.DEACTIVATED  # without one the clock deactivated it
    _check(version, back, now, _S.DESTROY_SCHEDULED)
    restored = replace(version, state=back, came_from=None, destroy_at=None)
    if back is _S.PRE_ACTIVE:  # a plan from before does not come back
        return replace(restored, activate_at=None, came_from=_S.DESTROY_SCHEDULED)
    return restored


def destroy(version: KeyVersion, now: float) -> KeyVersion:
    """Marks a version as destroyed, not before the scheduled time."""
    _check(version, _S.DESTROYED, now)
    if version.destroy_at is None or now < version.destroy_at:
        raise IllegalMoveError(f"{version.name} must not be destroyed yet: see its destroy_at")
    return replace(version, state=_S.DESTROYED)


def _check(version: KeyVersion, to: KeyState, now: float, *sources: KeyState) -> None:
    """Raises IllegalMoveError unless the table has the move and it begins at one of ``sources``.

    Only ``restore`` leads back from a scheduled destruction; the table alone would also let
    other moves do so.
    """
    state = version.state_at(now)
    if to not in TRANSITIONS[state] or (sources and state not in sources):
        raise IllegalMoveError(f"{version.name} is {state}: it cannot become {to}")
