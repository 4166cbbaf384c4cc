"""What accounts for changes of the registry, step by step: operations and acts. Pure.

A judgement follows them in the order in which they took effect; each says what it can have made
of a version, a placement, a wrapped key or a suspension.
"""

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from signer.errors import OperatorError
from signer.keys import lifecycle
from signer.model import Act, KeyVersion, Scope, Suspension
from signer.officers.kinds.base import Details, OperationKind, Pair
from signer.officers.permits import PLACE_WRAPPING_KEY, Asked, Permit
from signer.officers.placing import Placing
from signer.officers.possession import claim_of_placement, claim_of_wrapping_key, proves
from signer.officers.standing import FlagKey, Standing, bare_hash, since_of, standing_of
from signer.officers.store import StoredOperation
from signer.officers.wrapped import Wrapping
from signer.officers.wrapping_standing import WrappingChange, WrappingPlace


@dataclass(frozen=True, slots=True)
class OperationStep:
    """An approved operation, in its order among all that is accounted with."""

    stored: StoredOperation
    kind: OperationKind[Any]
    details: Details
    permit: Permit
    times: tuple[float, ...]
    document: Callable[[str], bytes | None]
    kept: dict[str, Any] = field(default_factory=dict)

    def ways(self, before: Standing | None, version: KeyVersion) -> Iterator[Standing]:
        """Yields what the operation can have made of a version; of revision -1 if unknown."""
        now = standing_of(version)
        asked = Asked(version.name, before, now, self.times, bare_hash(version))
        revision = self.stored.ended_revision if self.permit.once else None
        for after in self.permit.ways(asked):
            if self._fits(before, after, version):
                yield after._replace(revision=-1 if revision is None else revision)

    def placing(self, version: KeyVersion) -> Placing | None:
        """Returns which placement of a version it adds or removes; see Permit."""
        if (done := self.permit.placement(version.name)) is None:
            return None
        ended = self.stored.ended_revision is not None
        claim = claim_of_placement(self.stored.id, version.name, done[1])
        proven = proves(version, claim, self.stored.proof)
        return Placing(*done, ended, self.permit.seen(version.name), proven)

    def leaves(self, key: FlagKey, flag: Suspension | None) -> Suspension | None:
        """Returns a suspension as the operation leaves it: None if it lifts it."""
        lifts = flag is not None and self.permit.lifts(*key, since_of(flag))
        return None if lifts else flag

    def wrapped_with(self, place: bytes) -> Wrapping | None:
        """Returns what has wrapped the key in a place; see Permit."""
        return self.permit.wrapped_with(place)

    def wraps_anew(self, before: Wrapping) -> Wrapping | None:
        """Returns what wraps a key anew that was wrapped so before."""
        return self.permit.wraps_anew(before)

    def wrapping(self, version: Callable[[str], KeyVersion | None]) -> WrappingChange | None:
        """Returns what it does to wrapping keys; see Permit.

        ``version`` returns one that is accounted for, by its name.
        """
        adds, ends = self.permit.adds_wrapping(), self.permit.ends_wrapping()
        if adds is not None and not self._holds(adds, version):
            adds = None
        if adds is None and not ends:
            return None
        return WrappingChange(adds, ends, ended=self.stored.ended_revision is not None)

    def _holds(self, place: WrappingPlace, version: Callable[[str], KeyVersion | None]) -> bool:
        """Whether a further token has proven that it holds a wrapping key."""
        if self.permit.proposal.kind != PLACE_WRAPPING_KEY:
            return True
        name = str((self.stored.result or {}).get("key_version"))
        tried = version(name)
        claim = claim_of_wrapping_key(self.stored.id, name, *place)
        return tried is not None and proves(tried, claim, self.stored.proof)

    def _fits(self, before: Standing | None, after: Standing, version: KeyVersion) -> bool:
        """Whether what only the registry's row shows is as the operation asked for it."""
        known = bare_hash(version) if before is None else before.certificate
        pair = Pair(
            version,
            self.permit.index(after.place),
            existed=before is not None,
            certified=after.certificate != known,
            times=self.times,
            document=self.document,
            kept=self.kept,
        )
        try:
            return self.kind.fits(self.details, pair)
        except (OperatorError, ValueError, IndexError):
            return False


@dataclass(frozen=True, slots=True)
class ActStep:
    """An act of one officer, at its revision."""

    act: Act
    revision: int

    def names(self, version: KeyVersion) -> bool:
        """Returns whether the act is about a version."""
        return self.act.target in (version.name, str(version.key))

    def ways(self, before: Standing | None, version: KeyVersion) -> Iterator[Standing]:
        """Yields what the act has made of a version."""
        if before is None or not self.names(version):
            return
        move = lifecycle.compromise if self.act.act == "compromised" else lifecycle.suspend
        with suppress(OperatorError):
            yield before.moved(move, self.act.at)._replace(revision=self.revision)

    def placing(self, version: KeyVersion) -> None:
        """Returns None: one officer alone places nothing."""
        del version

    @property
    def flag(self) -> FlagKey | None:
        """What it suspends; None if it is about versions."""
        scope, _, name = self.act.target.partition(" ")
        return (scope, name) if self.act.act == "suspend" and scope in set(Scope) else None

    def leaves(self, key: FlagKey, flag: Suspension | None) -> Suspension | None:
        """Returns a suspension as the act leaves it: set, or as it was."""
        act = self.act
        made = Suspension(Scope(key[0]), key[1], act.at, act.officer, act.reason)
        return made if (act.act, act.target) == ("suspend", str(made)) else flag

    def wrapped_with(self, place: bytes) -> None:
        """Returns None: one officer alone makes nothing."""
        del place

    def wraps_anew(self, before: Wrapping) -> None:
        """Returns None: one officer alone wraps nothing."""
        del before

    def wrapping(self, version: Callable[[str], KeyVersion | None]) -> None:
        """Returns None: one officer alone makes and destroys no wrapping key."""
        del version


AccountStep = OperationStep | ActStep
