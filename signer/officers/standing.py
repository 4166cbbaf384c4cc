"""What the log accounts for: of each key version its standing, and the suspensions in force.

A *standing* is what decides whether a version may sign: state, times, and hashes of what it
is. KEYS records say which standings and suspensions are served from there on, and which
operation or act made them; ``StandingFold`` adds them up, so that a start can tell what
somebody has changed in the registry by hand.
"""

from __future__ import annotations

import hashlib
import struct
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from signer import cbor
from signer.audit.format.record import (
    Fields,
    Record,
    RecordError,
    RecordKind,
    Value,
    number,
    octets,
    text,
)
from signer.model import Act, KeyState, KeyVersion, Scope, Suspension
from signer.officers.records import ApprovedOperation
from signer.x509 import cose_kid

if TYPE_CHECKING:
    from signer.keys.registry import RegistryState

PART = 1000  # versions of one record
MAX_TEXTS = 100  # of what is not accounted for, in one record
MAX_CHANGED = 100  # versions whose state a record also gives by name
_HASH = 16
_NONE = -1
_FARTHEST = 1e12  # seconds
_STATES = tuple(KeyState)  # their order is that of packed rows: new ones come last
_BY_NAME = {str(state): state for state in KeyState}
_ROW = struct.Struct(f">BBqqqqQ{_HASH}s{_HASH}s")
_ENTRY = _HASH + _ROW.size

FlagKey = tuple[str, str]  # the scope and the name of a suspension
Flags = Mapping[FlagKey, int]  # since when each is in force, in microseconds


TIMES = ("activate_at", "sign_until", "deactivate_at", "destroy_at")
Times = tuple[int | None, int | None, int | None, int | None]


class Standing(NamedTuple):
    """What is accounted for of a version.

    ``state`` is the stored one. ``times`` are those of ``TIMES``, in microseconds since the
    epoch. ``revision`` is that of the registry when it was written.
    ``identity`` is a hash of what never changes, ``certificate`` one of the certificate and its
    key id.
    """

    state: KeyState
    came_from: KeyState | None
    times: Times
    revision: int
    identity: bytes
    certificate: bytes

    def same(self, other: Standing) -> bool:
        """Whether both allow the same; the revision does not matter."""
        return self._replace(revision=0) == other._replace(revision=0)

    def of(self, version: KeyVersion) -> KeyVersion:
        """Returns the version as it was at this standing.

        Of another certificate than the version's only the hash is known: it is ``b""`` then.
        """
        activate_at, sign_until, deactivate_at, destroy_at = map(_seconds, self.times)
        before = replace(
            version,
            state=self.state,
            came_from=self.came_from,
            activate_at=activate_at,
            sign_until=sign_until,
            deactivate_at=deactivate_at,
            destroy_at=destroy_at,
            revision=self.revision,
        )
        without = replace(before, certificate=None, kid=cose_kid(version.spki, None))
        if self.certificate == _certificate(version):
            return before
        if self.certificate == _certificate(without):
            return without
        return replace(before, certificate=b"", kid=b"")


def standing_of(version: KeyVersion) -> Standing:
    """Returns the standing of a version as the registry has it."""
    return Standing(
        version.state,
        version.came_from,
        times_of(version),
        version.revision,
        _identity(version),
        _certificate(version),
    )


def times_of(version: KeyVersion) -> Times:
    """Returns the times of a version, as they are compared."""
    return (
        _microseconds(version.activate_at),
        _microseconds(version.sign_until),
        _microseconds(version.deactivate_at),
        _microseconds(version.destroy_at),
    )


def key_of(flag: Suspension) -> FlagKey:
    """Returns what names a suspension: its scope and name."""
    return str(flag.scope), flag.name


def since_of(flag: Suspension) -> int:
    """Returns since when a suspension is in force, in microseconds since the epoch."""
    since = max(-_FARTHEST, min(flag.since, _FARTHEST))  # somebody may have written any by hand
    return int(since * 1_000_000)  # as operations name it


class KeysRecord(NamedTuple):
    """A KEYS that says what is served from here on, and what accounts for it.

    ``versions`` are those that changed. ``suspended`` and ``lifted`` are the suspensions that
    came into force or ended. What made it is ``approved`` or ``act``; without both it is a move
    towards a stop that somebody made in the registry by hand, or nothing at all: then
    ``unaccounted`` has texts about what is not served.
    """

    revision: int
    versions: Sequence[KeyVersion] = ()
    suspended: Flags = MappingProxyType({})
    lifted: Flags = MappingProxyType({})
    approved: ApprovedOperation | None = None
    act: Act | None = None
    unaccounted: Sequence[str] = ()

    def to_fields(self, now: float) -> Iterator[dict[str, Value]]:
        """Yields the fields of one record, or of several where there are many versions."""
        parts = range(0, max(len(self.versions), 1), PART)
        for start in parts:
            part = self.versions[start : start + PART]
            fields: dict[str, Value] = {
                "registry_revision": self.revision,
                "changed": {v.name: str(v.state_at(now)) for v in part[:MAX_CHANGED]},
                "changes": len(part),
                "versions": [_row(version) for version in part],
            }
            if self.approved is not None:
                fields |= {"operation": self.approved.operation}
            if self.act is not None:
                act = self.act
                fields["act"] = [*act[:-1], _microseconds(act.at)]
            if not start:
                fields |= self._once()
            yield fields

    def _once(self) -> dict[str, Value]:
        """Returns the fields that only the first of several records has."""
        fields: dict[str, Value] = {}
        if self.approved is not None:
            fields |= self.approved.to_fields()
        if self.suspended:
            fields["suspended"] = _flag_rows(self.suspended)
        if self.lifted:
            fields["lifted"] = _flag_rows(self.lifted)
        if self.unaccounted:
            fields["unaccounted"] = [text[:500] for text in self.unaccounted[:MAX_TEXTS]]
        return fields


def baseline_fields(
    state: RegistryState, now: float, *, development: bool
) -> list[dict[str, Value]]:
    """Returns the fields of the records of a baseline: what is taken as given from there on."""
    versions = list(state.keys)
    record = KeysRecord(state.keys.revision, versions)
    parts = list(record.to_fields(now))
    flags = {key_of(flag): since_of(flag) for flag in state.suspensions}
    for index, part in enumerate(parts, start=1):
        part |= {"baseline": True, "part": index, "parts": len(parts), "development": development}
    parts[0] |= {"deployment": state.deployment, "suspensions": _flag_rows(flags)}
    return parts


class StandingFold:
    """The standings and suspensions that the log accounts for, folded from KEYS records.

    ``deployment`` and ``revision`` are those of the newest such record; ``deployment`` is empty
    before the first baseline. ``flags`` are the suspensions in force.
    """

    KINDS: ClassVar[frozenset[RecordKind]] = frozenset({RecordKind.KEYS, RecordKind.SNAPSHOT})
    """The kinds of records that ``apply`` takes into account."""

    def __init__(self) -> None:
        self.deployment = ""
        self.revision = 0
        self.flags: dict[FlagKey, int] = {}
        self._standings: dict[bytes, bytes] = {}  # packed, by a hash of the name
        self._used: dict[bytes, bytes] = {}  # operations that have made a change, their content

    def standing(self, name: str) -> Standing | None:
        """Returns what is accounted for of a version, None if nothing is."""
        packed = self._standings.get(_hash_of(name))
        return None if packed is None else _unpacked(packed)

    def used(self, operation: str) -> bool:
        """Returns whether a change of keys or suspensions was recorded as an operation's."""
        return uuid.UUID(operation).bytes in self._used

    def checked(self, operation: str, content: bytes) -> bool:
        """Returns whether a change was recorded as that of an operation with these bytes."""
        return self._used.get(uuid.UUID(operation).bytes) == _content_hash(content)

    def __len__(self) -> int:
        """Returns the number of versions."""
        return len(self._standings)

    def apply(self, record: Record) -> None:
        """Applies the next record; kinds outside KINDS change nothing. Raises RecordError."""
        if record.kind is RecordKind.SNAPSHOT:
            self._load(record.fields.get("standings"))
        elif record.kind is RecordKind.KEYS and "versions" in record.fields:
            self._keys(record.fields)

    def _keys(self, fields: Fields) -> None:
        if fields.get("baseline") is True and number(fields, "part") == 1:
            self._standings.clear()
            self.deployment = text(fields, "deployment")
            self.flags = read_flags(fields.get("suspensions"))
        self.revision = number(fields, "registry_revision")
        for row in _rows(fields.get("versions")):
            name, standing = read_row(row)
            self._standings[_hash_of(name)] = _packed(standing)
        for key in read_flags(fields.get("lifted")):
            self.flags.pop(key, None)
        self.flags |= read_flags(fields.get("suspended"))
        if "content" in fields:
            identity = uuid.UUID(text(fields, "operation")).bytes
            self._used[identity] = _content_hash(octets(fields, "content"))

    def snapshot(self) -> dict[str, Value]:
        """Returns the field of a SNAPSHOT record that holds this state, ``standings``."""
        if not self.deployment:
            return {}
        return {
            "standings": {
                "deployment": self.deployment,
                "revision": self.revision,
                "versions": b"".join(name + row for name, row in self._standings.items()),
                "flags": _flag_rows(self.flags),
                "used": b"".join(each + content for each, content in self._used.items()),
            }
        }

    def _load(self, said: Value) -> None:
        match said:
            case None:
                return  # from before there were baselines
            case {
                "deployment": str(deployment),
                "revision": int(revision),
                "versions": bytes(rows),
                "flags": flags,
                "used": bytes(used),
            } if not len(rows) % _ENTRY and not len(used) % (2 * _HASH):
                self.deployment, self.revision = deployment, revision
                self.flags = read_flags(flags)
                self._standings = _pairs(rows, _ENTRY)
                self._used = _pairs(used, 2 * _HASH)
            case _:
                raise RecordError("the snapshot's standings cannot be read")


def read_row(row: Value) -> tuple[str, Standing]:
    """Reads one of a record's ``versions``: its name and standing. Raises RecordError."""
    match row:
        case [
            str(name),
            str(state),
            str(came_from),
            activate_at,
            sign_until,
            deactivate_at,
            destroy_at,
            int(revision),
            bytes(),
            bytes(identity),
            bytes(certificate),
        ] if (
            state in _BY_NAME
            and (not came_from or came_from in _BY_NAME)
            and len(identity) == len(certificate) == _HASH
        ):
            return name, Standing(
                _BY_NAME[state],
                _BY_NAME[came_from] if came_from else None,
                (_time(activate_at), _time(sign_until), _time(deactivate_at), _time(destroy_at)),
                revision,
                identity,
                certificate,
            )
    raise RecordError("a version's standing cannot be read")


def read_flags(rows: Value) -> dict[FlagKey, int]:
    """Reads suspensions: since when each is in force. Raises RecordError."""
    flags = {}
    for row in _rows(rows):
        match row:
            case [str(scope), str(name), int(since)] if scope in list(Scope):
                flags[scope, name] = since
            case _:
                raise RecordError("a suspension cannot be read")
    return flags


def _row(version: KeyVersion) -> list[Value]:
    standing = standing_of(version)
    came_from = str(standing.came_from or "")
    last = (standing.revision, version.cka_id, standing.identity, standing.certificate)
    return [version.name, str(standing.state), came_from, *standing.times, *last]


def _rows(rows: Value) -> Iterable[Value]:
    return rows if isinstance(rows, list | tuple) else ()


def _flag_rows(flags: Flags) -> list[Value]:
    return [[*key, since] for key, since in sorted(flags.items())]


def _time(at: Value) -> int | None:
    if at is not None and type(at) is not int:
        raise RecordError("a time of a version is not a number")
    return at


def _packed(standing: Standing) -> bytes:
    came_from = 0 if standing.came_from is None else 1 + _STATES.index(standing.came_from)
    times = (_NONE if at is None else at for at in standing.times)
    state = _STATES.index(standing.state)
    return _ROW.pack(state, came_from, *times, *standing[3:])


def _unpacked(row: bytes) -> Standing:
    state, came_from, a, s, d, x, revision, identity, certificate = _ROW.unpack(row)
    times = (_known(a), _known(s), _known(d), _known(x))
    before = _STATES[came_from - 1] if came_from else None
    return Standing(_STATES[state], before, times, revision, identity, certificate)


def _known(at: int) -> int | None:
    return None if at == _NONE else at


def _pairs(packed: bytes, width: int) -> dict[bytes, bytes]:
    return {
        packed[at : at + _HASH]: packed[at + _HASH : at + width]
        for at in range(0, len(packed), width)
    }


def _content_hash(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()[:_HASH]


def _hash_of(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()[:_HASH]


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
    return hashlib.sha256(cbor.encode_record(never_changes, 1)).digest()[:_HASH]


def _certificate(version: KeyVersion) -> bytes:
    named = cbor.encode_record([version.certificate, version.kid], 1)
    return hashlib.sha256(named).digest()[:_HASH]


def _microseconds(at: float | None) -> int | None:
    """Converts a time; one that no clock has, which somebody wrote by hand, is cut."""
    return None if at is None else round(max(0.0, min(at, _FARTHEST)) * 1_000_000)


def _seconds(at: int | None) -> float | None:
    return None if at is None else at / 1_000_000
