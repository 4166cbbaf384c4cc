"""The life of a key version: how its key pair is made on a token, and which states may follow.

The CKA_ID of a new key follows from what creates it: an operation's id and the key's number
in it, or the key's name where no operation creates it. If the program dies after the HSM created
the key and before the registry has it, the next attempt finds the key on the token and does
not make a second one.

States follow one table, and moves follow the table: each takes a version and a time and returns
the changed version; an illegal move raises. States and moves are those of NIST SP 800-57 part 1,
section 7.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple, Protocol

from signer.algorithms import PROPERTIES, RSA_BITS, Algorithm
from signer.errors import OperatorError
from signer.model import KeyName, KeyState, KeyVersion, WrappedKey
from signer.x509 import cose_kid, fits, jwk_thumbprint

if TYPE_CHECKING:
    # Auditors judge a log by the table of states where no database is installed.
    from signer.keys.registry import Registry

_S = KeyState

# The states that may follow each state.
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

_FORWARD = {**TRANSITIONS, _S.DESTROY_SCHEDULED: frozenset({_S.DESTROYED, _S.COMPROMISED})}


def reachable(state: KeyState, came_from: KeyState | None) -> frozenset[KeyState]:
    """Returns the states in which a version may be found next, after one move or several.

    An appliance may see only the last of several moves, and the clock moves versions unseen.
    ``came_from`` is the state before ``state``, None if it is not known: a scheduled
    destruction that is cancelled leads back there.
    """
    found = _after(state)
    if state is not _S.DESTROY_SCHEDULED:
        return found
    back = TRANSITIONS[state]
    return found | (back if came_from is None else back & (_after(came_from) | {came_from}))


def _after(state: KeyState) -> frozenset[KeyState]:
    """Returns all states that follow without a cancelled destruction."""
    found: set[KeyState] = set()
    new = set(_FORWARD[state])
    while new:
        found |= new
        new = {then for each in new for then in _FORWARD[each]} - found
    return frozenset(found)


# By the stored state: the moves that anybody may make, because they only stop.
_STOPS: Mapping[KeyState, frozenset[KeyState]] = {
    _S.PRE_ACTIVE: frozenset({_S.COMPROMISED, _S.DESTROY_SCHEDULED}),
    # To PRE_ACTIVE goes a planned activation that is cancelled.
    _S.ACTIVE: frozenset(
        {_S.PRE_ACTIVE, _S.SUSPENDED, _S.DEACTIVATED, _S.COMPROMISED, _S.DESTROY_SCHEDULED}
    ),
    _S.SUSPENDED: frozenset({_S.DEACTIVATED, _S.COMPROMISED, _S.DESTROY_SCHEDULED}),
    _S.DEACTIVATED: frozenset({_S.COMPROMISED, _S.DESTROY_SCHEDULED}),
    _S.COMPROMISED: frozenset({_S.DESTROY_SCHEDULED}),
    _S.DESTROY_SCHEDULED: frozenset({_S.DESTROYED, _S.COMPROMISED}),
    _S.DESTROYED: frozenset(),
}


def only_stops(before: KeyVersion, after: KeyVersion) -> bool:
    """Returns whether a change of a version allows nothing that was not allowed before.

    That includes what a later move could lead back to. Nothing but states and times differs.
    """
    moved = after.state is before.state or after.state in _STOPS[before.state]
    return moved and _signs_no_longer(before, after) and _leads_no_further(before, after)


def _signs_no_longer(before: KeyVersion, after: KeyVersion) -> bool:
    """Returns whether the times of a version let it sign at no other time than before."""
    if after.activate_at is not None:
        planned = None if after.state is _S.PRE_ACTIVE else before.activate_at
        if planned is None or after.activate_at < planned:
            return False
    return before.ends_at is None or (after.ends_at is not None and after.ends_at <= before.ends_at)


def _leads_no_further(before: KeyVersion, after: KeyVersion) -> bool:
    """Returns whether no move leads to more than before, by where a version came from."""
    if before.compromised and after.state is not _S.DESTROYED and not after.compromised:
        return False
    match after.state:
        case _S.PRE_ACTIVE:  # a cancelled plan stays one: no rotation continues it
            as_before = before.state is _S.PRE_ACTIVE and after.came_from is before.came_from
            return as_before or after.came_from is _S.ACTIVE
        case _S.DESTROY_SCHEDULED if before.state is not _S.DESTROY_SCHEDULED:
            return after.came_from in (None, before.state, _S.DEACTIVATED, _S.COMPROMISED)
        case _S.COMPROMISED | _S.DESTROYED:
            return True
        case _:
            return after.came_from is before.came_from


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

    A PRE_ACTIVE version stays PRE_ACTIVE and loses its planned activation, if it has one;
    ``came_from`` = ACTIVE keeps the rotation that made it from activating it later.
    """
    if version.state_at(now) is _S.PRE_ACTIVE:
        if version.activate_at is None and version.came_from is not None:
            raise IllegalMoveError(f"{version.name} was stopped before: nothing to stop")
        return replace(version, state=_S.PRE_ACTIVE, activate_at=None, came_from=_S.ACTIVE)
    _check(version, _S.SUSPENDED, now, _S.ACTIVE)
    return replace(version, state=_S.SUSPENDED)


def resume(version: KeyVersion, now: float) -> KeyVersion:
    """Ends a suspension; the version signs again as long as its times allow.

    One that was stopped before it signed waits again for its activation, which its rotation
    may do. A plan that the stop has cancelled does not come back.
    """
    if version.state_at(now) is _S.PRE_ACTIVE and version.came_from is _S.ACTIVE:
        return replace(version, came_from=None)
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


class TokenAdmin(Protocol):
    """One token in a read-write session. Every method raises OperatorError."""

    @property
    def token(self) -> str:
        """The token's label."""

    def describe(self) -> dict[str, str]:
        """Returns label, serial, model, manufacturer and versions of the token."""

    def generate(self, algorithm: Algorithm, bits: int, cka_id: bytes, label: str) -> bytes:
        """Creates a key pair and returns its SubjectPublicKeyInfo in DER.

        ``bits`` is the length of an RSA modulus, else 0. The private key is read back and
        compared with the strict template. A pair with this ``cka_id`` and ``label`` that an
        interrupted attempt left is returned instead; another key with either is an error.
        """

    def make_wrapping_key(self, identity: str) -> dict[str, bool]:
        """Creates the wrapping key with an id, or finds it; returns its attributes."""

    def generate_wrapped(
        self, algorithm: Algorithm, bits: int, cka_id: bytes, wrapping_key: str
    ) -> tuple[bytes, WrappedKey]:
        """Creates a key pair, wraps its private key; returns SPKI in DER and the wrapped key.

        The token keeps nothing of it. What is returned was unwrapped, and has signed.
        """

    def wrap_anew(
        self,
        algorithm: Algorithm,
        cka_id: bytes,
        spki: bytes,
        wrapped: WrappedKey,
        wrapping_key: str,
    ) -> WrappedKey:
        """Wraps a wrapped key by another wrapping key; what is returned has signed.

        The signature was checked with ``spki``.
        """

    def destroy_wrapping_key(self, identity: str) -> None:
        """Destroys the wrapping key with an id, if it exists."""

    def attributes(self, cka_id: bytes) -> dict[str, bool]:
        """Returns the attributes of a private key, as the token reports them."""

    def destroy(self, cka_id: bytes, label: str) -> None:
        """Destroys both halves of a key pair, if they exist; another label is an error."""

    def sign(
        self,
        algorithm: Algorithm,
        cka_id: bytes,
        spki: bytes,
        inputs: Sequence[bytes],
        wrapped: WrappedKey | None = None,
    ) -> list[bytes]:
        """Signs digests of the key's hash (EdDSA: messages) and checks them with ``spki``.

        ``wrapped`` is the key itself, None if it is on the token.
        """


class NewKey(NamedTuple):
    """A key to create; ``bits`` is the RSA modulus, 0 for all other algorithms.

    ``wrapping_key`` is the id of the one that wraps it; empty for a key that stays on the token.
    """

    name: KeyName
    algorithm: Algorithm
    bits: int = 0
    wrapping_key: str = ""


def cka_id(name: KeyName, number: int) -> bytes:
    """Returns the CKA_ID of a version that no operation created: 16 bytes of its name's hash."""
    return _cka_id(f"{name}/versions/{number}")


def cka_id_of(operation: str, index: int) -> bytes:
    """Returns the CKA_ID of an operation's key; ``index`` is the key's number in it, from 0."""
    return _cka_id(f"{operation}\0{index}")


def _cka_id(made_by: str) -> bytes:
    return hashlib.sha256(f"signer.v1 key\0{made_by}".encode()).digest()[:16]


def make_version(
    admin: TokenAdmin, new: NewKey, number: int, identifier: bytes, now: float
) -> KeyVersion:
    """Creates a key pair on the token, or finds the one that an earlier attempt left.

    Of a wrapped key an earlier attempt leaves nothing. Returns it PRE_ACTIVE; the registry does
    not have it yet. Raises OperatorError.
    """
    check_bits(new)
    label = f"{new.name}/versions/{number}"
    wrapped: WrappedKey | None = None
    try:
        if new.wrapping_key:
            spki, wrapped = admin.generate_wrapped(
                new.algorithm, new.bits, identifier, new.wrapping_key
            )
        else:
            spki = admin.generate(new.algorithm, new.bits, identifier, label)
    except OperatorError as error:
        raise OperatorError(
            f"{new.name} was not created: {error} (CKA_ID {identifier.hex()}; an interrupted"
            " attempt leaves such a key, and it never signed anything)",
            unsupported=error.unsupported,
        ) from error
    if not fits(spki, new.algorithm, new.bits or None):
        raise OperatorError(
            f"token {admin.token} created a key for {new.name} that does not fit {new.algorithm};"
            f" it is not registered: delete CKA_ID {identifier.hex()} and ask the HSM's maker"
        )
    return KeyVersion(
        key=new.name,
        number=number,
        algorithm=new.algorithm,
        state=KeyState.PRE_ACTIVE,
        token=admin.token,
        cka_id=identifier,
        spki=spki,
        certificate=None,
        kid=cose_kid(spki, None),
        thumbprint=jwk_thumbprint(spki),
        created=now,
        activate_at=None,
        sign_until=None,
        wrapped=wrapped,
    )


def create_key(registry: Registry, admin: TokenAdmin, new: NewKey, now: float) -> KeyVersion:
    """Creates version 1 of a key that no operation creates, active at once, and registers it.

    Raises OperatorError, and then the registry is unchanged.
    """
    made = make_version(admin, new, 1, cka_id(new.name, 1), now)
    version = activate(made, now, None, now)
    registry.add_version(version)
    return version


def check_bits(new: NewKey) -> None:
    """Raises OperatorError if the key length does not fit the algorithm."""
    is_rsa = PROPERTIES[new.algorithm].curve is None
    if is_rsa and new.bits not in RSA_BITS:
        raise OperatorError(f"{new.algorithm} needs bits: name a modulus of 2048, 3072 or 4096")
    if not is_rsa and new.bits:
        raise OperatorError(f"{new.algorithm} has a fixed key length: leave bits out")
