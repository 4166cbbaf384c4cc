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
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from signer import cbor
from signer.algorithms import Algorithm
from signer.keys import lifecycle
from signer.model import KeyName, KeyState, KeyVersion, Placement, Scope, Suspension
from signer.officers.packing import HASH, hash_of_name, place_of
from signer.x509 import cose_kid

if TYPE_CHECKING:
    pass

_FARTHEST = 1e12  # seconds
PACKED = range(1 << 63)  # the numbers of a packed row
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
        return _version_in(self.state, self.came_from, self.times)

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


@lru_cache(maxsize=64)  # thousands of new versions have the same state and no times
def _version_in(state: KeyState, came_from: KeyState | None, times: Times) -> KeyVersion:
    activate_at, sign_until, deactivate_at, destroy_at = map(_seconds, times)
    return replace(
        _ANY_VERSION,
        state=state,
        came_from=came_from,
        activate_at=activate_at,
        sign_until=sign_until,
        deactivate_at=deactivate_at,
        destroy_at=destroy_at,
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
        microseconds(version.activate_at),
        microseconds(version.sign_until),
        microseconds(version.deactivate_at),
        microseconds(version.destroy_at),
    )


def certificate_hash(der: bytes | None, kid: bytes) -> bytes:
    """Returns the hash of a certificate and the key id of its version."""
    return hashlib.sha256(cbor.encode_flat([der, kid])).digest()[:HASH]


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


def flag_text(key: FlagKey) -> str:
    """Returns a suspension's scope and name as text, such as "facility 01-001"."""
    return str(Suspension(Scope(key[0]), key[1], 0.0, "", ""))


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
    return hashlib.sha256(cbor.encode_flat(never_changes)).digest()[:HASH]


def microseconds(at: float | None) -> int | None:
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
_REVISION = 6  # the place of the revision in it
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

    def besides(self, names: Iterable[str]) -> int:
        """Returns of how many versions something is accounted for besides those of these names."""
        return len(self.rows.keys() - {hash_of_name(name) for name in names})

    def latest_revision(self) -> int:
        """Returns the latest revision of a version, 0 without any."""
        return max((_ROW.unpack(row)[_REVISION] for row in self.rows.values()), default=0)

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
