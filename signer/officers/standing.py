"""What the log accounts for: of each key version its standing, and the suspensions in force.

A *standing* is what decides whether a version may sign: state, times, and hashes of what it
is. KEYS records say which standings and suspensions are served from there on, and which
operation or act made them. Here are the values and the records, written and read;
``signer.officers.standing_fold`` adds the records up.
"""

from __future__ import annotations

import hashlib
import struct
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from signer import cbor
from signer.algorithms import Algorithm
from signer.audit.format.record import RecordError, Value
from signer.keys import lifecycle
from signer.model import Act, KeyName, KeyState, KeyVersion, Placement, Scope, Suspension
from signer.officers.packing import HASH, hash_of_name, place_of, rows_in
from signer.officers.records import ApprovedOperation
from signer.officers.wrapped import WrappedRow, wrapped_rows
from signer.officers.wrapping_standing import (
    WrappingPlace,
    WrappingPlaces,
    ended_rows,
    places_of,
    wrapping_rows,
)
from signer.x509 import cose_kid

if TYPE_CHECKING:
    from signer.keys.registry import RegistryState

PART = 1000  # versions of one record
MAX_TEXTS = 100  # of what is not accounted for, in one record
MAX_CHANGED = 100  # versions whose state a record also gives by name
_FARTHEST = 1e12  # seconds
_PACKED = range(1 << 63)  # the numbers of a packed row
_BY_NAME = {str(state): state for state in KeyState}
_ANY_VERSION = KeyVersion(
    key=KeyName("f", "k"),
    number=1,
    algorithm=Algorithm.ES256,
    state=KeyState.PRE_ACTIVE,
    token="",
    cka_id=b"",
    spki=b"",
    certificate=None,
    kid=b"",
    thumbprint="",
    created=0.0,
    activate_at=None,
    sign_until=None,
)

FlagKey = tuple[str, str]  # the scope and the name of a suspension
Flags = Mapping[FlagKey, int]  # since when each is in force, in microseconds

NamedPlacement = tuple[str, Placement]
"""A placement with the name of its version."""

TIMES = ("activate_at", "sign_until", "deactivate_at", "destroy_at")
Times = tuple[int | None, int | None, int | None, int | None]
NO_TIMES: Times = (None, None, None, None)


class Standing(NamedTuple):
    """What is accounted for of a version.

    ``state`` is the stored one. ``times`` are those of ``TIMES``, in microseconds since the
    epoch. ``revision`` is that of the registry when it was written. The others are hashes:
    ``identity`` of what never changes, ``certificate`` of the certificate and its key id,
    ``place`` of the CKA_ID, ``b""`` where it is not known.
    """

    state: KeyState
    came_from: KeyState | None
    times: Times
    revision: int
    identity: bytes
    certificate: bytes
    place: bytes = b""

    def same(self, other: Standing) -> bool:
        """Whether both allow the same; the revision does not matter."""
        states = (self.state, self.came_from, self.certificate)
        return (
            self.same_pair(other)
            and states == (other.state, other.came_from, other.certificate)
            and all(map(_at_once, self.times, other.times))
        )

    def same_pair(self, other: Standing) -> bool:
        """Whether both are of one version with one key pair."""
        places = {self.place, other.place} - {b""}
        return self.identity == other.identity and len(places) <= 1

    def only_stops(self, before: Standing) -> bool:
        """Whether this allows nothing that ``before`` did not allow."""
        same = self.same_pair(before) and self.certificate == before.certificate
        return same and lifecycle.only_stops(before.version(), self.version())

    def moved(self, move: Callable[[KeyVersion, float], KeyVersion], now: float) -> Standing:
        """Returns the standing after a move of the life cycle; raises what the move raises."""
        after = move(self.version(), now)
        return self._replace(state=after.state, came_from=after.came_from, times=times_of(after))

    def version(self) -> KeyVersion:
        """Returns a version with this state and these times; it is not known which one."""
        activate_at, sign_until, deactivate_at, destroy_at = map(_seconds, self.times)
        return replace(
            _ANY_VERSION,
            state=self.state,
            came_from=self.came_from,
            activate_at=activate_at,
            sign_until=sign_until,
            deactivate_at=deactivate_at,
            destroy_at=destroy_at,
        )

    def state_at(self, time_us: int) -> KeyState:
        """Returns the state in force at a time in microseconds since the epoch."""
        return self.version().state_at(time_us / 1_000_000)

    def gain(self, before: Standing | None) -> str:
        """Returns what this allows and ``before`` did not, as text; there is something."""
        if before is None:
            return "appears"
        if not self.same_pair(before):
            return "has another key or place"
        if self.certificate != before.certificate:
            return "has another certificate"
        if self.state is not before.state:
            return f"becomes {self.state} and was {before.state}"
        return (
            "is active earlier" if (self.times[0] or 0) < (before.times[0] or 0) else "signs longer"
        )


def standing_of(version: KeyVersion) -> Standing:
    """Returns the standing of a version as the registry has it."""
    return Standing(
        version.state,
        version.came_from,
        times_of(version),
        version.revision,
        _identity(version),
        certificate_hash(version.certificate, version.kid),
        place_of(version.cka_id),
    )


def times_of(version: KeyVersion) -> Times:
    """Returns the times of a version, as they are compared."""
    return (
        _microseconds(version.activate_at),
        _microseconds(version.sign_until),
        _microseconds(version.deactivate_at),
        _microseconds(version.destroy_at),
    )


def certificate_hash(der: bytes | None, kid: bytes) -> bytes:
    """Returns the hash of a certificate and the key id of its version."""
    return hashlib.sha256(cbor.encode_record([der, kid], 1)).digest()[:HASH]


def bare_hash(version: KeyVersion) -> bytes:
    """Returns the hash of a version's certificate while it has none."""
    return certificate_hash(None, cose_kid(version.spki, None))


def key_of(flag: Suspension) -> FlagKey:
    """Returns what names a suspension: its scope and name."""
    return str(flag.scope), flag.name


def since_of(flag: Suspension) -> int:
    """Returns since when a suspension is in force, in microseconds since the epoch."""
    since = max(-_FARTHEST, min(flag.since, _FARTHEST))  # somebody may have written any by hand
    return int(since * 1_000_000)  # as operations name it


# --- records -------------------------------------------------------------------------------


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
                and revision in _PACKED
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

    def to_fields(self, now: float) -> Iterator[dict[str, Value]]:
        """Yields the fields of one record, or of several where there are many versions."""
        time_us = round(now * 1_000_000)
        # A wrapped key is in the record of its version, where that is in one.
        of_version = {row.name: row for row in self.wrapped}
        names = {row.name for row in self.versions}
        others = [row for row in self.wrapped if row.name not in names]
        rows = self.versions, self.placed, self.removed, others
        for start in range(0, max(*map(len, rows), 1), PART):
            part = self.versions[start : start + PART]
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
                if some := placements[start : start + PART]:
                    fields[name] = placement_rows(some)
            wrapped = [of_version[row.name] for row in part if row.name in of_version]
            if wrapped := [*wrapped, *others[start : start + PART]]:
                fields["wrapped"] = wrapped_rows(wrapped)
            if self.act is not None:
                act = self.act
                fields["act"] = [*act[:-1], _microseconds(act.at)]
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


def baseline_fields(
    state: RegistryState, now: float, *, development: bool
) -> list[dict[str, Value]]:
    """Returns the fields of the records of a baseline: what is taken as given from there on."""
    rows = [VersionRow.of(version) for version in state.keys]
    placed = [(v.name, placement) for v in state.keys for placement in v.other_placements]
    wrapped = [row for version in state.keys if (row := WrappedRow.of(version)) is not None]
    wrapping = places_of(state.wrapping_keys)
    revision = state.keys.revision
    record = KeysRecord(revision, rows, placed=placed, wrapped=wrapped, wrapping=wrapping)
    parts = list(record.to_fields(now))
    flags = {key_of(flag): since_of(flag) for flag in state.suspensions}
    for index, part in enumerate(parts, start=1):
        part |= {"baseline": True, "part": index, "parts": len(parts), "development": development}
    parts[0] |= {"deployment": state.deployment, "suspensions": flag_rows(flags)}
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


def flag_text(key: FlagKey) -> str:
    """Returns a suspension's scope and name as text, such as "facility 01-001"."""
    return str(Suspension(Scope(key[0]), key[1], 0.0, "", ""))


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


def _times(*said: Value) -> Times:
    if any(at is not None and (type(at) is not int or at not in _PACKED) for at in said):
        raise RecordError("a time of a version is not a number from 0 on")
    activate_at, sign_until, deactivate_at, destroy_at = said
    return activate_at, sign_until, deactivate_at, destroy_at  # type: ignore[return-value] # see above


def _identity(version: KeyVersion) -> bytes:
    never_changes = [
        version.name,
        str(version.algorithm),
        version.token,
        version.cka_id,
        version.spki,
        version.thumbprint,
        version.request,
    ]
    return hashlib.sha256(cbor.encode_record(never_changes, 1)).digest()[:HASH]


def _microseconds(at: float | None) -> int | None:
    """Converts a time; one that no clock has, which somebody wrote by hand, is cut."""
    return None if at is None else round(max(0.0, min(at, _FARTHEST)) * 1_000_000)


def _at_once(one: int | None, other: int | None) -> bool:
    """Whether two times are the same: sums of seconds differ by what a double rounds."""
    return one == other or (one is not None and other is not None and abs(one - other) <= 1)


def _seconds(at: int | None) -> float | None:
    return None if at is None else at / 1_000_000


# --- all of them ---------------------------------------------------------------------------

_NONE = -1
_STATES = tuple(KeyState)  # their order is that of packed rows: new ones come last
_ROW = struct.Struct(f">BBqqqqQ{HASH}s{HASH}s")
ENTRY = HASH + _ROW.size


class Standings:
    """What is accounted for of all versions, packed, by a hash of the name.

    ``used`` are the operations that have made a change, with a hash of their bytes.
    """

    def __init__(self) -> None:
        self.rows: dict[bytes, bytes] = {}
        self.places: dict[bytes, bytes] = {}  # empty where not known
        self.used: dict[bytes, bytes] = {}

    def get(self, name: str) -> Standing | None:
        """Returns what is accounted for of a version, None if nothing is."""
        key = hash_of_name(name)
        packed = self.rows.get(key)
        return None if packed is None else _unpacked(packed, self.places.get(key, b""))

    def latest_revision(self) -> int:
        """Returns the latest revision of a version, 0 without any."""
        return max((_unpacked(row, b"").revision for row in self.rows.values()), default=0)

    def put(self, name: str, standing: Standing) -> None:
        key = hash_of_name(name)
        self.rows[key], self.places[key] = _packed(standing), standing.place

    def use(self, operation: str, content: bytes) -> None:
        """Remembers that an operation with these bytes has made a change."""
        self.used[uuid.UUID(operation).bytes] = _content_hash(content)

    def has_used(self, operation: str) -> bool:
        """Returns whether a change was recorded as an operation's."""
        return uuid.UUID(operation).bytes in self.used

    def checked(self, operation: str, content: bytes) -> bool:
        """Returns whether a change was recorded as that of an operation with these bytes."""
        return is_of(self.used, operation, content)


def _packed(standing: Standing) -> bytes:
    came_from = 0 if standing.came_from is None else 1 + _STATES.index(standing.came_from)
    times = (_NONE if at is None else at for at in standing.times)
    state = _STATES.index(standing.state)
    return _ROW.pack(state, came_from, *times, *standing[3:6])


def _unpacked(row: bytes, place: bytes) -> Standing:
    state, came_from, a, s, d, x, revision, identity, certificate = _ROW.unpack(row)
    times = (_known(a), _known(s), _known(d), _known(x))
    before = _STATES[came_from - 1] if came_from else None
    return Standing(_STATES[state], before, times, revision, identity, certificate, place)


def _known(at: int) -> int | None:
    return None if at == _NONE else at


def is_of(known: Mapping[bytes, bytes], operation: str, content: bytes) -> bool:
    """Returns whether a hash by the operation's id is that of these bytes, or its beginning."""
    try:
        found = known.get(uuid.UUID(operation).bytes)
    except ValueError:
        return False
    return found is not None and hashlib.sha256(content).digest().startswith(found)


def _content_hash(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()[:HASH]
