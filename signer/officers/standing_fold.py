"""The standings and suspensions that a log accounts for, added up from its records of keys.

One judge for all who read a log: the daemon at its start, and everybody who verifies it. Records
are chained, but not signed one by one: who has the disk can append some while the daemon is
stopped. So a record of keys counts for no more than its operation permits, by the approved
bytes; what it says beyond that is a problem, and is not taken. A move towards a stop is.
"""

import hashlib
import struct
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from signer.audit.format.record import Record, RecordError, RecordKind, Value
from signer.model import KeyState
from signer.officers.approval import ApprovalError
from signer.officers.offline_check import ApprovalFold, ProblemError, problem_text
from signer.officers.permits import Asked, Permit
from signer.officers.standing import (
    HASH,
    FlagKey,
    KeysChange,
    Standing,
    VersionRow,
    flag_rows,
    flag_text,
    read_flags,
)

MAX_LISTED = 100  # problems that are kept as texts
MAX_PERMITS = 16  # operations whose keys are remembered from one record to the next
_NONE = -1
_STATES = tuple(KeyState)  # their order is that of packed rows: new ones come last
_ROW = struct.Struct(f">BBqqqqQ{HASH}s{HASH}s")
_ENTRY = HASH + _ROW.size


@dataclass(slots=True)
class Accounted:
    """What of a record of keys counts, by what permit, and what is wrong with it."""

    permit: Permit | None = None
    rows: list[VersionRow] = field(default_factory=list)
    suspended: dict[FlagKey, int] = field(default_factory=dict)
    lifted: list[FlagKey] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


class StandingFold:
    """The standings and suspensions that the log accounts for.

    ``deployment`` and ``revision`` are those of the newest record of keys; ``deployment`` is
    empty before the first baseline. ``flags`` are the suspensions in force. ``problems`` are
    texts about records that say more than their operations permit.
    """

    KINDS: ClassVar[frozenset[RecordKind]] = frozenset({RecordKind.KEYS, RecordKind.SNAPSHOT})
    """The kinds of records that ``apply`` takes into account."""

    def __init__(self, approvals: ApprovalFold) -> None:
        """``approvals`` gets each record before this does."""
        self.deployment = ""
        self.revision = 0
        self.flags: dict[FlagKey, int] = {}
        self.problems: list[str] = []
        self._approvals = approvals
        self._standings: dict[bytes, bytes] = {}  # packed, by a hash of the name
        self._places: dict[bytes, bytes] = {}  # by the same hash, empty where not known
        self._taken: set[bytes] = set()  # the places of all versions
        self._used: dict[bytes, bytes] = {}  # operations that have made a change, their content
        self._permits: dict[str, Permit] = {}
        self._parts = range(0)  # of a baseline, those that are still to come

    def standing(self, name: str) -> Standing | None:
        """Returns what is accounted for of a version, None if nothing is."""
        key = _hash_of(name)
        packed = self._standings.get(key)
        return None if packed is None else _unpacked(packed, self._places.get(key, b""))

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
        """Applies the next record; kinds outside KINDS change nothing. Raises RecordError.

        A snapshot is where the fold begins; ``check`` is for later ones.
        """
        if record.kind is RecordKind.SNAPSHOT:
            self._load(record.fields.get("standings"))
        elif record.kind is RecordKind.KEYS and "versions" in record.fields:
            taken = self.take(record, KeysChange.from_fields(record.fields))
            if len(self.problems) < MAX_LISTED:
                self.problems += [problem_text(record.seq, text) for text in taken.problems]

    def take(self, record: Record, change: KeysChange) -> Accounted:
        """Takes what counts of a record of keys with versions, and returns it."""
        taken = Accounted()
        if change.baseline:
            self._baseline(change, taken)
        else:
            self._parts = range(0)
            self._change(record, change, taken)
        return taken

    # --- baselines -------------------------------------------------------------------------

    def _baseline(self, change: KeysChange, taken: Accounted) -> None:
        """Takes a part of a baseline as given, if it is the next one of the only baseline."""
        first = change.baseline == 1
        if first and self.deployment and not self._approvals.development:
            taken.problems.append("states are taken as given again: it is not taken")
            return
        if first:
            self._standings.clear()
            self._places.clear()
            self._taken.clear()
            self.deployment = change.deployment
            self.flags = dict(change.suspended)
            taken.suspended = dict(change.suspended)
            self._parts = range(1, change.parts + 1)
        if change.baseline not in self._parts[:1]:
            taken.problems.append(
                f"part {change.baseline} of a baseline does not continue one: it is not taken"
            )
            return
        self._parts = self._parts[1:]
        self.revision = change.revision
        for row in change.rows or ():
            self._put(row.name, row.standing)
            taken.rows.append(row)

    # --- changes ---------------------------------------------------------------------------

    def _change(self, record: Record, change: KeysChange, taken: Accounted) -> None:
        try:
            taken.permit = self._permit(record, change)
        except (ProblemError, ApprovalError) as error:
            taken.problems.append(str(error))
        permit, self.revision = taken.permit, change.revision
        for row in change.rows or ():
            self._version(row, record.time_us, taken)
        for key, since in change.suspended.items():
            if since < self.flags.get(key, since):
                taken.problems.append(f"the time of the suspension of {flag_text(key)} was changed")
            else:
                self.flags[key] = taken.suspended[key] = since
        for key, since in change.lifted.items():
            if permit is not None and permit.lifts(*key, self.flags.get(key, since)):
                self.flags.pop(key, None)
                taken.lifted.append(key)
            else:
                ended = f"the suspension of {flag_text(key)} ends"
                taken.problems.append(f"{ended}, and no operation of officers lifts it")
        made = taken.rows or taken.suspended or taken.lifted
        if permit is not None and change.approved is not None and made:
            identity = uuid.UUID(change.operation).bytes
            self._used[identity] = _content_hash(change.approved.content)

    def _permit(self, record: Record, change: KeysChange) -> Permit | None:
        """Returns what the operation of a record permits; None if the record names none.

        Of a change in several records, only the first carried the operation in older logs.
        Raises ProblemError, ApprovalError.
        """
        operation, approved = change.operation, change.approved
        if not operation:
            return None
        permit = self._permits.get(operation)
        if approved is None and permit is None:
            raise ProblemError(f"operation {operation} was not carried before")
        if approved is not None:
            known = self._approvals.checked(operation, approved.content)
            if not known and not self.checked(operation, approved.content):
                self._approvals.check_approved(record, approved, "a change of keys")
            if permit is None or permit.content != approved.content:
                permit = Permit(approved.content)
        assert permit is not None  # noqa: S101 - one of the two is there
        if permit.once and self.used(operation):
            raise ProblemError(f"operation {operation} changes keys again")
        self._permits = {**dict(list(self._permits.items())[1 - MAX_PERMITS :]), operation: permit}
        return permit

    def _version(self, row: VersionRow, time_us: int, taken: Accounted) -> None:
        """Takes a version's row if it only stops, or if the operation makes it."""
        known, after = self.standing(row.name), row.standing
        if known is not None and after.only_stops(known):
            if after.revision < known.revision:  # an approval from before would count again
                taken.problems.append(f"{row.name} has an earlier revision than before")
                after = after._replace(revision=known.revision)
        elif problem := self._gain(row, known, taken.permit, time_us):
            taken.problems.append(f"{row.name} {after.gain(known)}{problem}")
            return
        self._put(row.name, after)
        taken.rows.append(row._replace(standing=after))

    def _gain(
        self, row: VersionRow, known: Standing | None, permit: Permit | None, time_us: int
    ) -> str:
        """Returns why a row that allows more is not taken; empty if the operation makes it."""
        if permit is None:
            return ", and no operation of officers makes that"
        if known is not None and row.standing.revision <= known.revision:
            return f", and its revision is not after {known.revision}"
        if known is None and row.standing.place in self._taken:
            return ", and another version has its key pair"
        times = [time_us / 1_000_000, permit.proposal.proposed_at]
        if permit.makes(Asked(row.name, known, row.standing, times)):
            return ""
        seen = permit.seen(row.name)
        if known is not None and seen not in (None, known.revision):
            return (
                f"; officers approved operation {permit.proposal.id} when its revision was {seen},"
                f" and it was {known.revision}"
            )
        return f"; operation {permit.proposal.id} ({permit.proposal.kind}) does not"

    def _put(self, name: str, standing: Standing) -> None:
        key = _hash_of(name)
        self._standings[key] = _packed(standing)
        self._places[key] = standing.place
        self._taken.add(standing.place)

    # --- snapshots -------------------------------------------------------------------------

    def snapshot(self) -> dict[str, Value]:
        """Returns the field of a SNAPSHOT record that holds this state, ``standings``."""
        if not self.deployment:
            return {}
        places = (self._places.get(name, b"").rjust(HASH, b"\0") for name in self._standings)
        return {
            "standings": {
                "deployment": self.deployment,
                "revision": self.revision,
                "versions": b"".join(name + row for name, row in self._standings.items()),
                "places": b"".join(places),
                "flags": flag_rows(self.flags),
                "used": b"".join(each + content for each, content in self._used.items()),
            }
        }

    def check(self, snapshot: Record) -> None:
        """Raises RecordError if a snapshot does not hold what the records before it come to."""
        said, known = snapshot.fields.get("standings"), self.snapshot().get("standings")
        if isinstance(said, Mapping) and isinstance(known, Mapping) and "places" not in said:
            known = {name: value for name, value in known.items() if name != "places"}
        if said != known:
            raise RecordError("the snapshot does not hold the standings of the records before it")

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
            } if not len(rows) % _ENTRY and not len(used) % (2 * HASH):
                self.deployment, self.revision = deployment, revision
                self.flags = read_flags(flags)
                self._standings = _pairs(rows, _ENTRY)
                self._used = _pairs(used, 2 * HASH)
                self._places = dict(zip(self._standings, _places(said, len(rows)), strict=False))
                self._taken = set(self._places.values())
            case _:
                raise RecordError("the snapshot's standings cannot be read")


def _places(said: Value, rows: int) -> Iterator[bytes]:
    """Yields the places in a snapshot, one for each entry; older ones have none."""
    packed = said.get("places", bytes(rows // _ENTRY * HASH)) if isinstance(said, Mapping) else None
    if not isinstance(packed, bytes) or len(packed) * _ENTRY != rows * HASH:
        raise RecordError("the snapshot's places cannot be read")
    for at in range(0, len(packed), HASH):
        place = packed[at : at + HASH]
        yield b"" if place == bytes(HASH) else place


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


def _pairs(packed: bytes, width: int) -> dict[bytes, bytes]:
    return {
        packed[at : at + HASH]: packed[at + HASH : at + width]
        for at in range(0, len(packed), width)
    }


def _content_hash(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()[:HASH]


def _hash_of(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()[:HASH]
