"""Kinds that change the state of one version or key (``keys.lifecycle``)."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from pydantic import Field

from signer.errors import OperatorError
from signer.keys import lifecycle
from signer.keys.writing import Change
from signer.model import KeyName, KeyState, KeyVersion, Suspension, parse_key_or_version
from signer.officers.kinds.base import Details, Effects, Moment, OperationKind, Work, found_problems
from signer.officers.kinds.certificates_import import activation_problems
from signer.officers.kinds.operation_context import (
    OperationContext,
    OperationError,
    basis_problems,
    utc,
)
from signer.officers.standing import TIMES, since_of


class OfVersion(Details):
    """One version. ``basis`` has the states of its key's versions, as officers saw them."""

    version: str
    basis: dict[str, str] = Field(default_factory=dict)


class AtTime(OfVersion):
    """One version and a time in seconds since the epoch; 0: when it is executed."""

    at: Moment = 0


class Activate(AtTime):
    """``sign_until`` is when it stops signing, in seconds since the epoch; 0: never."""

    sign_until: Moment = 0


V = TypeVar("V", bound=OfVersion)


class VersionKind(OperationKind[V]):
    """A kind that makes one move of the life cycle; ``move`` raises OperatorError."""

    def __init__(
        self, name: str, details: type[V], move: Callable[[KeyVersion, V, float], KeyVersion]
    ) -> None:
        self.name, self.details, self._move = name, details, move

    def complete(self, details: V, context: OperationContext) -> V:
        basis = context.basis(context.version(details.version).key)
        return details.model_copy(update={"basis": basis})

    def problems(self, details: V, context: OperationContext) -> list[str]:
        version = context.version(details.version)
        if changed := basis_problems(details.basis, context.basis(version.key)):
            return changed
        return found_problems(lambda: self._move(version, details, context.now))

    def difference(self, details: V, context: OperationContext) -> list[str]:
        before = context.version(details.version)
        after = self._move(before, details, context.now)
        return [*_last_one(before, after, context), *changes_of(before, after, context)]

    def execute(self, details: V, work: Work) -> Effects:
        before, now = work.context.version(details.version), work.context.now
        after = self._move(before, details, now)
        return Effects(changes=[Change(before, after)], result=_result([after], now))


class ActivateKind(VersionKind[Activate]):
    """Activates a version from a time on; it is the primary then."""

    def problems(self, details: Activate, context: OperationContext) -> list[str]:
        if problems := super().problems(details, context):
            return problems
        version = context.version(details.version)
        return activation_problems(version, details.at, details.sign_until or None, context)


class DestroyKind(VersionKind[OfVersion]):
    """Destroys the key pair on each token that holds it. This cannot be undone."""

    def problems(self, details: OfVersion, context: OperationContext) -> list[str]:
        version = context.version(details.version)
        if version.wrapped is not None:
            return super().problems(details, context)
        lacking = [token for token, _ in version.placements if token not in context.tokens]
        return super().problems(details, context) or [
            f"token {token} holds the key and is not here: destroy it at an appliance that has all"
            " of its tokens, or remove that placement first"
            for token in lacking
        ]

    def difference(self, details: OfVersion, context: OperationContext) -> list[str]:
        version = context.version(details.version)
        if (wrapped := version.wrapped) is not None:
            erased = (
                "! the wrapped private key is erased from the registry; a copy in a backup can be"
                f" unwrapped as long as wrapping key {wrapped.wrapping_key} exists"
            )
            return [*super().difference(details, context), erased]
        return [
            *super().difference(details, context),
            *(
                f"! the private key {cka_id.hex()} on token {token} is destroyed"
                for token, cka_id in version.placements
            ),
        ]

    def execute(self, details: OfVersion, work: Work) -> Effects:
        version = work.context.version(details.version)
        for token, cka_id in () if version.wrapped else version.placements:
            with work.admin(token) as admin:
                admin.destroy(cka_id, version.name)
        return super().execute(details, work)


VERSION_KINDS: Sequence[VersionKind[Any]] = (
    ActivateKind(
        "activate",
        Activate,
        lambda v, to, now: lifecycle.activate(v, to.at, to.sign_until or None, now),
    ),
    VersionKind("deactivate", AtTime, lambda v, to, now: lifecycle.deactivate(v, to.at, now)),
    VersionKind(
        "schedule-destruction",
        AtTime,
        lambda v, to, now: lifecycle.schedule_destruction(v, to.at, now),
    ),
    VersionKind("restore", OfVersion, lambda v, _, now: lifecycle.restore(v, now)),
    DestroyKind("destroy", OfVersion, lambda v, _, now: lifecycle.destroy(v, now)),
)


class Resume(Details):
    """``target``: a key or version, ``facilities/F``, ``groups/G`` or ``everything``.

    ``basis`` has the states of the key's versions, ``since`` the time of the flag in
    microseconds.
    """

    target: str
    basis: dict[str, str] = Field(default_factory=dict)
    since: int = 0


class ResumeKind(OperationKind[Resume]):
    """Ends a suspension."""

    name = "resume"
    details = Resume

    def complete(self, details: Resume, context: OperationContext) -> Resume:
        if (flag := _flag(details.target, context)) is not None:
            return details.model_copy(update={"since": since_of(flag)})
        key, _ = _key_target(details.target)
        return details.model_copy(update={"basis": context.basis(key)})

    def problems(self, details: Resume, context: OperationContext) -> list[str]:
        flag = _flag(details.target, context)
        if flag is not None:
            if since_of(flag) == details.since:
                return []
            return [f"{flag} was suspended anew since this was proposed: propose it again"]
        key, _ = _key_target(details.target)
        if changed := basis_problems(details.basis, context.basis(key)):
            return changed
        return found_problems(lambda: self._changes(details, context))

    def difference(self, details: Resume, context: OperationContext) -> list[str]:
        if (flag := _flag(details.target, context)) is not None:
            why = f"  it was suspended by {flag.officer} on {utc(flag.since)}: {flag.reason}"
            return [f"~ {flag} may sign again", why]
        return [
            line
            for before, after in self._changes(details, context)
            for line in changes_of(before, after, context)
        ]

    def execute(self, details: Resume, work: Work) -> Effects:
        if (flag := _flag(details.target, work.context)) is not None:
            return Effects(lifted=[flag], result={"resumed": str(flag)})
        changes = self._changes(details, work.context)
        return Effects(
            changes=changes, result=_result([c.after for c in changes], work.context.now)
        )

    def _changes(self, details: Resume, context: OperationContext) -> list[Change]:
        key, number = _key_target(details.target)
        suspended = [
            version
            for version in context.state.keys.versions(key)
            if number in (None, version.number) and _is_stopped(version, context.now)
        ]
        if not suspended:
            raise OperatorError(f"{details.target} has no suspended version")
        return [Change(version, lifecycle.resume(version, context.now)) for version in suspended]


def changes_of(before: KeyVersion, after: KeyVersion, context: OperationContext) -> list[str]:
    """Returns what changes in a version, as lines for officers."""
    old, new = before.state_at(context.now), after.state_at(context.now)
    lines = [f"~ {before.name}: {old} becomes {new}" if old != new else f"~ {before.name}: {old}"]
    for name in TIMES:
        old_time, new_time = getattr(before, name), getattr(after, name)
        if old_time != new_time:
            lines.append(f"  {name} {utc(old_time)} becomes {utc(new_time)}")
    if old is new and _is_stopped(before, context.now) and not _is_stopped(after, context.now):
        lines.append("  it was stopped before it signed: a rotation may activate it again")
    return lines


def _is_stopped(version: KeyVersion, now: float) -> bool:
    """Whether a version was suspended, in use or before its activation."""
    state = version.state_at(now)
    before_use = state is KeyState.PRE_ACTIVE and version.came_from is KeyState.ACTIVE
    return state is KeyState.SUSPENDED or before_use


def _last_one(before: KeyVersion, after: KeyVersion, context: OperationContext) -> list[str]:
    """Returns a warning if a version ends and its key then has no active version."""
    end = context.now if after.ends_at is None else max(after.ends_at, context.now)
    versions = context.state.keys.versions(before.key)
    left = [after, *(version for version in versions if version.number != before.number)]
    if not before.active(context.now) or any(version.active(end) for version in left):
        return []
    text = "has no other version that is active then"
    return [f"! {before.key} {text}: from {utc(end)} on nothing can be signed with it"]


def _result(versions: Sequence[KeyVersion], now: float) -> dict[str, object]:
    return {"key_versions": {version.name: str(version.state_at(now)) for version in versions}}


def _key_target(target: str) -> tuple[KeyName, int | None]:
    try:
        return parse_key_or_version(target)
    except ValueError as error:
        raise OperationError(
            f"target: {error}, a version of it, facilities/F, groups/G, or everything"
        ) from None


def _flag(target: str, context: OperationContext) -> Suspension | None:
    """Returns the suspension that a target names; None if it names a key."""
    for flag in context.state.suspensions:
        # Also one whose name is not an id: earlier versions accepted such a suspension.
        if flag.target == target:
            return flag
    head, _, name = target.partition("/")
    if target == "everything" or head == "groups" or (head == "facilities" and "/" not in name):
        raise OperationError(f"{target} is not suspended")
    return None
