"""What an approved operation permits: the changes of key versions that it may make. Pure.

One table, by the kind of the operation. From it the daemon derives what accounts for the
registry, and every reader of a log, at a start or to verify it, what a record of keys may say.
So an operation is not described a second time: its approved bytes and the moves of the life
cycle give every standing that it can have made, and the standing of a version must be one of
them. A move towards a stop needs no permit.
"""

import base64
import binascii
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import NamedTuple

from signer.errors import OperatorError
from signer.keys import lifecycle
from signer.keys.lifecycle import cka_id_of
from signer.model import KeyState, KeyVersion, Placement, Scope
from signer.officers.approval import parse
from signer.officers.packing import place_of
from signer.officers.standing import NO_TIMES, Standing, certificate_hash
from signer.officers.wrapped import Wrapping
from signer.officers.wrapping_standing import WrappingPlace
from signer.x509 import cose_kid

ADD_PLACEMENT = "add-placement"
PLACE_WRAPPING_KEY = "place-wrapping-key"
REWRAP = "rewrap"
REMOVE_PLACEMENT = "remove-placement"
MOST_KEYS = 50_000  # of one operation
MOST_KEPT = 4  # permits; one of 15,000 keys takes 2 MB
_MOST = 1 << 40  # seconds: no time of an operation is later
_SEEN = "changed at revision "


def seen_at(revision: int) -> str:
    """Returns how officers are shown the revision that wrote a version last."""
    return f"{_SEEN}{revision}"


def target_of(scope: str, name: str) -> str:
    """Returns what names a suspension in an operation."""
    plurals = {str(Scope.GROUP): "groups", str(Scope.FACILITY): "facilities"}
    return f"{plurals[scope]}/{name}" if scope in plurals else scope


class Asked(NamedTuple):
    """A version before and after a change that an operation is said to have made.

    ``before`` is None for a version that did not exist. ``times``, in seconds since the epoch,
    are those at which the operation may have been executed, beside those in ``after``. ``bare``
    is the hash of the version without a certificate; None if only the log is known.
    """

    name: str
    before: Standing | None
    after: Standing
    times: Sequence[float]
    bare: bytes | None = None

    def moved(self, move: Callable[[KeyVersion, float], KeyVersion]) -> Iterator[Standing]:
        """Yields what a move makes at each of the times; what it refuses, not."""
        if self.before is None:
            return
        known = [at / 1_000_000 for at in self.after.times if at is not None]
        for at in (*known, *self.times):
            with suppress(OperatorError):
                yield self.before.moved(move, at)

    def made(self) -> "Asked":
        """Returns the same after the version was made: PRE_ACTIVE, without times."""
        bare = self.after.certificate if self.bare is None else self.bare
        first = self.after._replace(
            state=KeyState.PRE_ACTIVE, came_from=None, times=NO_TIMES, certificate=bare
        )
        return self._replace(before=first)


class Permit:
    """What one operation permits. ``once``: it makes all of its changes at once."""

    def __init__(self, content: bytes) -> None:
        """Reads an operation's bytes; raises ApprovalError."""
        self.content, self.proposal = content, parse(content)
        self._rule = _RULES.get(self.proposal.kind, PermitRule(_nothing))
        self.once = self._rule.once
        self._places: dict[bytes, int] | None = None

    def ways(self, asked: Asked) -> Iterator[Standing]:
        """Yields every standing that the operation can have given a version.

        Nothing if it is about another version, or if its details are not those of its kind.
        """
        reached: list[Standing | None] = [asked.before]
        with suppress(ValueError, OverflowError):
            for _ in range(self._rule.steps):
                made: list[Standing | None] = []
                for before in reached:
                    then = asked if before is asked.before else asked._replace(before=before)
                    for after in self._rule.moves(self, then):
                        if after not in made:
                            made.append(after)
                            yield after
                reached = made

    def makes(self, asked: Asked) -> bool:
        """Returns whether the operation can have made the change."""
        return any(way.same(asked.after) for way in self.ways(asked))

    def lifts(self, scope: str, name: str, since: int) -> bool:
        """Returns whether it ends a suspension, and not a later one of the same name.

        ``since`` is in microseconds since the epoch.
        """
        named = self.text("target") == target_of(scope, name)
        since_then = self.proposal.details.get("since") == since
        return self.proposal.kind == "resume" and named and since_then

    def placement(self, version: str) -> tuple[str, Placement] | None:
        """Returns what it does to the placements of a version: the kind that does, and which."""
        kind, cka_id = self.proposal.kind, self.text("cka_id")
        if kind not in (ADD_PLACEMENT, REMOVE_PLACEMENT) or self.text("version") != version:
            return None
        with suppress(ValueError):
            return kind, Placement(self.text("token"), bytes.fromhex(cka_id))
        return None

    def wrapped_with(self, place: bytes) -> Wrapping | None:
        """Returns what wraps the key with a CKA_ID of this hash; None if it has not made that key.

        What is proposed in the same second may wrap it anew.
        """
        with suppress(ValueError):
            if self.proposal.kind in _MAKING and self.index(place) is not None:
                key = self.text("wrapping_key")
                return Wrapping(key, self.proposal.proposed_at - 1) if key else None
        return None

    def wraps_anew(self, before: Wrapping) -> Wrapping | None:
        """Returns what wraps a key anew that was wrapped so before; None if it does not."""
        proposal, to_key = self.proposal, self.text("to_key")
        asked = proposal.kind == REWRAP and self.text("from_key") == before.key
        if not asked or not to_key or proposal.proposed_at <= before.since:
            return None
        return Wrapping(to_key, proposal.proposed_at, proposal.id)

    def adds_wrapping(self) -> WrappingPlace | None:
        """Returns the wrapping key that it makes on a token, or lets another token use."""
        token = self.text("token")
        match self.proposal.kind:
            case "create-wrapping-key":
                return WrappingPlace(self.proposal.id, token)
            case kind if kind == PLACE_WRAPPING_KEY:
                return WrappingPlace(self.text("wrapping_key"), token)
        return None

    def ends_wrapping(self) -> str:
        """Returns the id of the wrapping key that it destroys; "": none."""
        return self.text("wrapping_key") if self.proposal.kind == "destroy-wrapping-key" else ""

    def seen(self, name: str) -> int | None:
        """Returns the revision at which officers saw a version, None if they did not see it."""
        basis = self.proposal.details.get("basis")
        text = basis.get(name) if isinstance(basis, Mapping) else None
        _, found, revision = str(text).rpartition(_SEEN)
        return int(revision) if found and revision.isdecimal() and len(revision) < 20 else None

    def as_seen(self, asked: Asked) -> bool:
        """Returns whether officers saw the version before as it was.

        A revision of -1 is one that nobody knows.
        """
        before = asked.before
        return before is not None and (
            before.revision < 0 or self.seen(asked.name) == before.revision
        )

    def index(self, place: bytes) -> int | None:
        """Returns which of the operation's keys has a CKA_ID with this hash, None if none has."""
        if self._places is None:
            keys = min(self.number("keys"), MOST_KEYS) if "keys" in self.proposal.details else 1
            ids = (cka_id_of(self.proposal.id, index) for index in range(keys))
            self._places = {place_of(cka_id): index for index, cka_id in enumerate(ids)}
        return self._places.get(place)

    def number(self, name: str) -> int:
        """Returns a number of the details, 0 without it; raises ValueError for anything else."""
        value = self.proposal.details.get(name, 0)
        if type(value) is not int or not 0 <= value <= _MOST:
            raise ValueError(name)
        return value

    def text(self, name: str) -> str:
        """Returns a text of the details, empty without it."""
        value = self.proposal.details.get(name)
        return value if isinstance(value, str) else ""


# --- the rules -----------------------------------------------------------------------------

_Moves = Callable[[Permit, Asked], Iterator[Standing]]


@lru_cache(maxsize=MOST_KEPT)
def permit_of(content: bytes) -> Permit:
    """Returns what an operation permits, by its bytes; raises ApprovalError.

    Those used last are kept: an enrolment is followed in hundreds of parts, and to know the
    CKA_IDs of all its keys takes longer than to judge those of a part.
    """
    return Permit(content)


def _nothing(permit: Permit, asked: Asked) -> Iterator[Standing]:
    del permit, asked
    return iter(())


def _one(move: Callable[[KeyVersion, Permit, float], KeyVersion]) -> _Moves:
    """Returns the rule of a kind that moves the one version it names."""

    def moves(permit: Permit, asked: Asked) -> Iterator[Standing]:
        if asked.name == permit.text("version") and permit.as_seen(asked):
            yield from asked.moved(lambda version, now: move(version, permit, now))

    return moves


def _resume(permit: Permit, asked: Asked) -> Iterator[Standing]:
    key = asked.name.rpartition("/versions/")[0]
    if permit.text("target") in (asked.name, key) and permit.as_seen(asked):
        yield from asked.moved(lifecycle.resume)


def _create_key(permit: Permit, asked: Asked) -> Iterator[Standing]:
    name, until = f"{permit.text('key')}/versions/1", permit.number("sign_until") or None
    if permit.proposal.details.get("activate") is not True:
        return _made(permit, asked, name)
    return _made(permit, asked, name, lambda v, now: lifecycle.activate(v, now, until, now))


def _new_version(permit: Permit, asked: Asked) -> Iterator[Standing]:
    return _made(permit, asked, permit.text("version"))


def _enrol(permit: Permit, asked: Asked) -> Iterator[Standing]:
    key = asked.name.rpartition("/versions/")[0]
    return _made(
        permit, asked, f"{key}/versions/1", lambda v, now: lifecycle.activate(v, now, None, now)
    )


def _made(
    permit: Permit,
    asked: Asked,
    name: str,
    move: Callable[[KeyVersion, float], KeyVersion] = lambda version, _: version,
) -> Iterator[Standing]:
    """Yields a version of this name as it was made with a key of the operation, and moved."""
    if asked.before is None and asked.name == name and permit.index(asked.after.place) is not None:
        yield from asked.made().moved(move)


def _import(permit: Permit, asked: Asked) -> Iterator[Standing]:
    if asked.before is None or asked.name != permit.text("version"):
        return
    if "basis" in permit.proposal.details and not permit.as_seen(asked):
        return
    replaces = asked.bare is not None and asked.before.certificate != asked.bare
    if replaces and permit.proposal.details.get("replace") is not True:
        return
    with suppress(binascii.Error):
        der = base64.b64decode(permit.text("certificate"), validate=True)
        yield asked.before._replace(certificate=certificate_hash(der, cose_kid(b"", der)))


def _rotate(permit: Permit, asked: Asked) -> Iterator[Standing]:
    """Yields a new version as it was made, certified or activated, an old one as it was ended."""
    before, waits = asked.before, bool(permit.proposal.details.get("issuers"))
    if permit.index(asked.after.place) is None:
        yield from _retired(permit, asked)
        return
    if before is None:
        yield from asked.made().moved(lambda version, _: version)
        return
    # In a log, which has hashes alone, the certificate of a version may be its first one. Only a
    # version that was never activated gets one: no finished rotation exchanges a certificate.
    first = before.times[0] is None
    if waits and first and asked.bare in (None, before.certificate):
        yield before._replace(certificate=asked.after.certificate)
    certified = asked.bare is None or before.certificate != asked.bare
    if before.times[0] is None and before.came_from is None and (certified or not waits):
        planned, span = float(permit.number("activate_at")), permit.number("sign_for_seconds")

        def activate(version: KeyVersion, now: float) -> KeyVersion:
            at = max(planned, now)
            return lifecycle.activate(version, at, at + span if span else None, now)

        yield from asked.moved(activate)


def _retired(permit: Permit, asked: Asked) -> Iterator[Standing]:
    """Yields an old version as a rotation has ended it, never later than before."""
    if asked.before is None or (ended := asked.after.times[2]) is None:
        return
    end, ends = ended / 1_000_000, asked.before.version().ends_at
    if ends is not None and end > ends:
        return
    span = permit.number("destroy_after_seconds")
    destroy_at = end + span if span else None
    yield from asked.moved(lambda version, now: lifecycle.deactivate(version, end, now, destroy_at))


def makes_all_at_once(kind: str) -> bool:
    """Returns whether operations of a kind make all of their changes in one transaction."""
    return kind not in _RULES or _RULES[kind].once


class PermitRule(NamedTuple):
    """What operations of one kind do to a version, in up to ``steps`` moves.

    ``once``: one transaction makes all of their changes, so that an operation accounts for one
    record. Others come again, for other versions or with the next step of one: the moves of the
    life cycle allow each of these once.
    """

    moves: _Moves
    once: bool = True
    steps: int = 1


def _activate(version: KeyVersion, to: Permit, now: float) -> KeyVersion:
    return lifecycle.activate(version, to.number("at"), to.number("sign_until") or None, now)


_MAKING = frozenset({"create-key", "new-version", "enrol", "rotate"})
_RULES: Mapping[str, PermitRule] = {
    "activate": PermitRule(_one(_activate)),
    "deactivate": PermitRule(
        _one(lambda v, to, now: lifecycle.deactivate(v, to.number("at"), now))
    ),
    "schedule-destruction": PermitRule(
        _one(lambda v, to, now: lifecycle.schedule_destruction(v, to.number("at"), now))
    ),
    "restore": PermitRule(_one(lambda v, _, now: lifecycle.restore(v, now))),
    "destroy": PermitRule(_one(lambda v, _, now: lifecycle.destroy(v, now))),
    "resume": PermitRule(_resume),
    "create-key": PermitRule(_create_key),
    "new-version": PermitRule(_new_version),
    "import-certificate": PermitRule(_import),
    "enrol": PermitRule(_enrol, once=False),
    "rotate": PermitRule(_rotate, once=False, steps=3),  # made, certified, activated
    "create-wrapping-key": PermitRule(_nothing),  # of wrapping keys, see Permit.adds_wrapping
    "destroy-wrapping-key": PermitRule(_nothing),
    PLACE_WRAPPING_KEY: PermitRule(_nothing),
    REWRAP: PermitRule(_nothing, once=False),  # of wrapped keys, see Permit.wraps_anew
    ADD_PLACEMENT: PermitRule(_nothing),  # of placements, see Permit.placement
    REMOVE_PLACEMENT: PermitRule(_nothing),
    "officers": PermitRule(_nothing),
    "policy": PermitRule(_nothing),
    "clock": PermitRule(_nothing),
}
