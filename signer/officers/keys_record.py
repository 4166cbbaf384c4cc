"""Records of keys: what is served from here on, and what made it; written and read.

A KEYS that has versions says which standings, suspensions, placements, wrapped keys and wrapping
keys the log accounts for; ``signer.officers.standing_fold`` adds such records up.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from signer.audit.format.record import Fields, RecordError, Value, number, text
from signer.model import Act, KeyState, KeyVersion, Placement, Scope
from signer.officers.packing import HASH, place_of, rows_in
from signer.officers.records import ActRecord, ApprovedOperation
from signer.officers.standing import (
    PACKED,
    FlagKey,
    Flags,
    NamedPlacement,
    Standing,
    Times,
    key_of,
    microseconds,
    since_of,
    standing_of,
)
from signer.officers.wrapped import WrappedRow, read_wrapped, wrapped_rows
from signer.officers.wrapping_standing import (
    WrappingPlace,
    WrappingPlaces,
    ended_rows,
    places_of,
    read_ended,
    read_wrapping,
    wrapping_rows,
)

if TYPE_CHECKING:
    # Auditors read records where no database is installed.
    from signer.keys.registry import RegistryState

PART = 1000  # versions of one record of a baseline
CHANGES = 100  # versions of one record of changes: callers wait while they are added up
MAX_TEXTS = 100  # of what is not accounted for, in one record
MAX_CHANGED = 100  # versions whose state a record also gives by name
_BY_NAME = {str(state): state for state in KeyState}


class VersionRow(NamedTuple):
    """A version as a record has it."""

    name: str
    cka_id: bytes
    standing: Standing

    @classmethod
    def of(cls, version: KeyVersion) -> VersionRow:
        return cls(version.name, version.cka_id, standing_of(version))

    def to_value(self) -> list[Value]:
        """Returns the row of a record's ``versions``."""
        state, came_from, times, revision, identity, certificate, _ = self.standing
        known = (revision, self.cka_id, identity, certificate)
        return [self.name, str(state), str(came_from or ""), *times, *known]

    @classmethod
    def read(cls, row: Value) -> VersionRow:
        """Reads one row of a record's ``versions``; raises RecordError."""
        match row:
            case [
                str(name), str(state), str(came_from), activate_at, sign_until, deactivate_at,
                destroy_at, int(revision), bytes(cka_id), bytes(identity), bytes(certificate),
            ] if (
                state in _BY_NAME
                and (not came_from or came_from in _BY_NAME)
                and len(identity) == len(certificate) == HASH
                and revision in PACKED
            ):  # fmt: skip
                standing = Standing(
                    _BY_NAME[state],
                    _BY_NAME.get(came_from),
                    _times(activate_at, sign_until, deactivate_at, destroy_at),
                    revision,
                    identity,
                    certificate,
                    place_of(cka_id),
                )
                return cls(name, cka_id, standing)
        raise RecordError("a version's standing cannot be read")


class KeysRecord(NamedTuple):
    """A KEYS that says what is served from here on, and what accounts for it.

    ``versions`` are those that changed. ``suspended`` and ``lifted`` are the suspensions that
    came into force or ended. What made it is ``approved`` or ``act``; without both it is a move
    towards a stop that somebody made in the registry by hand, or nothing at all: then
    ``unaccounted`` has texts about what is not served. ``placed`` and ``removed`` are placements
    that are used from here on, or no longer, each with the name of its version; ``wrapped`` are
    the wrapped keys that are. ``wrapping`` is where wrapping keys are used from here on, None if
    the record is not about that; ``wrapping_ended`` where they are not any more.
    """

    revision: int
    versions: Sequence[VersionRow] = ()
    suspended: Flags = MappingProxyType({})
    lifted: Flags = MappingProxyType({})
    approved: ApprovedOperation | None = None
    act: Act | None = None
    unaccounted: Sequence[str] = ()
    placed: Sequence[NamedPlacement] = ()
    removed: Sequence[NamedPlacement] = ()
    wrapped: Sequence[WrappedRow] = ()
    wrapping: WrappingPlaces | None = None
    wrapping_ended: Sequence[WrappingPlace] = ()

    def to_fields(self, now: float, most: int = CHANGES) -> Iterator[dict[str, Value]]:
        """Yields the fields of one record, of several where there are more than ``most`` rows."""
        time_us = round(now * 1_000_000)
        # A wrapped key is in the record of its version, where that is in one.
        of_version = {row.name: row for row in self.wrapped}
        names = {row.name for row in self.versions}
        others = [row for row in self.wrapped if row.name not in names]
        rows = self.versions, self.placed, self.removed, others
        for start in range(0, max(*map(len, rows), 1), most):
            part = self.versions[start : start + most]
            states = {row.name: str(row.standing.state_at(time_us)) for row in part[:MAX_CHANGED]}
            fields: dict[str, Value] = {
                "registry_revision": self.revision,
                "changed": dict(states),
                "changes": len(part),
                "versions": [row.to_value() for row in part],
            }
            if self.approved is not None:  # in each: a reading may start after the first
                fields |= self.approved.to_fields()
            for name, placements in (("placed", self.placed), ("removed", self.removed)):
                if some := placements[start : start + most]:
                    fields[name] = placement_rows(some)
            wrapped = [of_version[row.name] for row in part if row.name in of_version]
            if wrapped := [*wrapped, *others[start : start + most]]:
                fields["wrapped"] = wrapped_rows(wrapped)
            if self.act is not None:
                act = self.act
                fields["act"] = [*act[:-1], microseconds(act.at)]
            if not start:
                fields |= self._once()
            yield fields

    def _once(self) -> dict[str, Value]:
        """Returns the fields that only the first of several records has."""
        fields: dict[str, Value] = {}
        if self.suspended:
            fields["suspended"] = flag_rows(self.suspended)
        if self.lifted:
            fields["lifted"] = flag_rows(self.lifted)
        if self.unaccounted:
            fields["unaccounted"] = [text[:500] for text in self.unaccounted[:MAX_TEXTS]]
        if self.wrapping is not None:
            fields["wrapping"] = wrapping_rows(self.wrapping)
        if self.wrapping_ended:
            fields["wrapping_ended"] = ended_rows(self.wrapping_ended)
        return fields


class Joined(NamedTuple):
    """How a further appliance began its log: what its baseline was compared with.

    ``origin``, ``records`` and ``root`` are those of the log that accounted for the registry, as
    far as it was read. Without one, ``reason`` says why nothing was compared.
    """

    origin: str = ""
    records: int = 0
    root: bytes = b""
    reason: str = ""

    def to_fields(self) -> dict[str, Value]:
        if self.reason:
            return {"not_compared": self.reason}
        return {"compared": [self.origin, self.records, self.root]}

    @classmethod
    def from_fields(cls, fields: Fields) -> Joined | None:
        """Reads what ``to_fields`` wrote, None if it is not there; raises RecordError."""
        match fields.get("compared"):
            case [str(origin), int(records), bytes(root)]:
                return cls(origin, records, root)
            case None:
                reason = text(fields, "not_compared", "")
                return cls(reason=reason) if reason else None
        raise RecordError("what the baseline was compared with cannot be read")


def baseline_fields(
    state: RegistryState, now: float, *, development: bool, joined: Joined | None = None
) -> list[dict[str, Value]]:
    """Returns the fields of the records of a baseline: what is taken as given from there on.

    ``joined`` is for the log of a further appliance.
    """
    rows = [VersionRow.of(version) for version in state.keys]
    placed = [(v.name, placement) for v in state.keys for placement in v.other_placements]
    wrapped = [row for version in state.keys if (row := WrappedRow.of(version)) is not None]
    wrapping = places_of(state.wrapping_keys)
    revision = state.keys.revision
    record = KeysRecord(revision, rows, placed=placed, wrapped=wrapped, wrapping=wrapping)
    parts = list(record.to_fields(now, PART))
    flags = {key_of(flag): since_of(flag) for flag in state.suspensions}
    for index, part in enumerate(parts, start=1):
        part |= {"baseline": True, "part": index, "parts": len(parts), "development": development}
    parts[0] |= {"deployment": state.deployment, "suspensions": flag_rows(flags)}
    if joined is not None:
        parts[0] |= joined.to_fields()
    return parts


def read_flags(rows: Value) -> dict[FlagKey, int]:
    """Reads suspensions: since when each is in force. Raises RecordError."""
    flags = {}
    for row in rows_in(rows):
        match row:
            case [str(scope), str(name), int(since)] if scope in list(Scope):
                flags[scope, name] = since
            case _:
                raise RecordError("a suspension cannot be read")
    return flags


def flag_rows(flags: Flags) -> list[Value]:
    """Returns suspensions as records hold them."""
    return [[*key, since] for key, since in sorted(flags.items())]


def placement_rows(placed: Iterable[NamedPlacement]) -> list[Value]:
    """Returns placements as records hold them."""
    return [[name, *placement] for name, placement in placed]


def read_placements(rows: object) -> list[NamedPlacement]:
    """Reads placements with the names of their versions. Raises RecordError."""
    found = []
    for row in rows_in(rows):
        match row:
            case [str(name), str(token), bytes(cka_id)]:
                found.append((name, Placement(token, cka_id)))
            case _:
                raise RecordError("a placement cannot be read")
    return found


class KeysChange(NamedTuple):
    """A record of keys as it is read.

    ``states`` are by name; ``named_all``: no other version has changed. ``rows`` is None in
    records from before there were baselines. ``baseline`` is the number of the part, 0 if the
    record belongs to none, of ``parts``; ``joined`` is in the first one. ``unaccounted`` are
    texts about what the appliance did not serve. ``approved`` is the operation where the record
    carries its bytes.
    """

    revision: int
    states: Mapping[str, str]
    named_all: bool
    rows: Sequence[VersionRow] | None
    suspended: Flags
    lifted: Flags
    placed: Sequence[NamedPlacement]
    removed: Sequence[NamedPlacement]
    wrapped: Sequence[WrappedRow]
    wrapping: WrappingPlaces | None
    wrapping_ended: Sequence[WrappingPlace]
    operation: str
    approved: ApprovedOperation | None
    act: ActRecord | None
    act_id: str
    unaccounted: Sequence[str]
    baseline: int
    parts: int
    deployment: str
    joined: Joined | None

    @classmethod
    def from_fields(cls, fields: Fields) -> KeysChange:
        """Reads the fields of a KEYS record; raises RecordError."""
        changed = fields.get("changed")
        states = changed if isinstance(changed, Mapping) else {}
        rows = fields.get("versions")
        baseline = fields.get("baseline") is True
        act_id, act = _act(fields.get("act"))
        return cls(
            revision=number(fields, "registry_revision", 0),
            states={name: str(state) for name, state in states.items()},
            named_all=number(fields, "changes", 0) <= len(states),
            rows=None if rows is None else [VersionRow.read(row) for row in rows_in(rows)],
            suspended=read_flags(fields.get("suspensions" if baseline else "suspended")),
            lifted=read_flags(fields.get("lifted")),
            placed=read_placements(fields.get("placed")),
            removed=read_placements(fields.get("removed")),
            wrapped=read_wrapped(fields.get("wrapped")),
            wrapping=read_wrapping(fields["wrapping"]) if "wrapping" in fields else None,
            wrapping_ended=read_ended(fields.get("wrapping_ended")),
            operation=text(fields, "operation", ""),
            approved=ApprovedOperation.from_fields(fields) if "content" in fields else None,
            act=act,
            act_id=act_id,
            unaccounted=[str(said) for said in rows_in(fields.get("unaccounted"))],
            baseline=number(fields, "part") if baseline else 0,
            parts=number(fields, "parts", 1) if baseline else 0,
            deployment=text(fields, "deployment", ""),
            joined=Joined.from_fields(fields) if baseline else None,
        )


def _act(row: Value) -> tuple[str, ActRecord | None]:
    """Reads an act and its id."""
    match row:
        case None:
            return "", None
        case [str(identity), str(act), str(target), str(officer), str(reason), int()]:
            return identity, ActRecord(act, target, officer, reason, {})
    raise RecordError("its act cannot be read")


def _times(*said: Value) -> Times:
    if any(at is not None and (type(at) is not int or at not in PACKED) for at in said):
        raise RecordError("a time of a version is not a number from 0 on")
    activate_at, sign_until, deactivate_at, destroy_at = said
    return activate_at, sign_until, deactivate_at, destroy_at  # type: ignore[return-value] # see above
