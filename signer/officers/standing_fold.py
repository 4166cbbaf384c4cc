"""The standings and suspensions that a log accounts for, added up from its records of keys.

The daemon at its start and every verifier judge a log by this one fold. Records are chained,
but not signed one by one: anyone with access to the disk can append some while the daemon is
stopped. So a record of keys counts for no more than its operation permits, by the approved
bytes; what it says beyond that is a problem, and is not taken. A move towards a stop is.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from signer.audit.format.record import Record, RecordError, RecordKind, Value
from signer.model import Placement
from signer.officers.approval import ApprovalError
from signer.officers.keys_record import (
    KeysChange,
    VersionRow,
    flag_rows,
    placement_rows,
    read_flags,
    read_placements,
)
from signer.officers.offline_check import ApprovalFold
from signer.officers.packing import HASH
from signer.officers.permits import ADD_PLACEMENT, Asked, Permit, permit_of
from signer.officers.record_checks import ProblemError, problem_text
from signer.officers.standing import (
    ENTRY,
    FlagKey,
    NamedPlacement,
    Standing,
    Standings,
    flag_text,
    is_of,
)
from signer.officers.wrapped import WrappedStandings, Wrapping
from signer.officers.wrapping_standing import WrappingPlace, read_wrapping, wrapping_rows

MAX_LISTED = 100  # problems that are kept as texts
MAX_PERMITS = 16  # operations whose keys are remembered from one record to the next


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
    empty before the first baseline. ``flags`` are the suspensions in force, ``placed`` the
    placements of versions beside those where they were made, by the version's name; ``wrapped``
    has the wrapped keys. ``wrapping`` is where wrapping keys are used, None while no record says
    that: earlier versions did not.
    ``problems`` are texts about records that say more than their operations permit.
    """

    KINDS: ClassVar[frozenset[RecordKind]] = frozenset({RecordKind.KEYS, RecordKind.SNAPSHOT})
    """The kinds of records that ``apply`` takes into account."""

    def __init__(self, approvals: ApprovalFold) -> None:
        """``approvals`` gets each record before this does."""
        self.deployment = ""
        self.revision = 0
        self.flags: dict[FlagKey, int] = {}
        self.placed: dict[str, frozenset[Placement]] = {}
        self.wrapped = WrappedStandings()
        self.wrapping: dict[WrappingPlace, int] | None = None
        self.problems: list[str] = []
        self._since_known = False  # a snapshot has said since when keys are wrapped
        self._approvals = approvals
        self.standings = Standings()
        self._taken: set[bytes] = set()  # the places of all versions
        self._permits: dict[str, Permit] = {}
        self._parts = range(0)  # of a baseline, those that are still to come
        self._look: dict[str, int] = {}  # versions in records of one revision, and theirs before

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
            self.standings.rows.clear()
            self.standings.places.clear()
            self._taken.clear()
            self.placed.clear()
            self.wrapped.clear()
            self.wrapping = None if change.wrapping is None else dict(change.wrapping)
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
        self._place(change.placed)
        for wrapped in change.wrapped:
            self.wrapped.put(wrapped.name, wrapped.standing)

    # --- changes ---------------------------------------------------------------------------

    def _change(self, record: Record, change: KeysChange, taken: Accounted) -> None:
        try:
            taken.permit = self._permit(record, change)
        except (ProblemError, ApprovalError) as error:
            taken.problems.append(str(error))
        if change.revision != self.revision:
            self._look.clear()
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
        moved = self._placements(change, taken)
        wrapped = self._wrap(change, taken)
        wrapping = self._wrapping(change, taken)
        made = taken.rows or taken.suspended or taken.lifted or moved or wrapped or wrapping
        if permit is not None and change.approved is not None and made:
            self.standings.use(change.operation, change.approved.content)

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
            begun = is_of(self._approvals.begun, operation, approved.content)
            if not begun and not self.standings.checked(operation, approved.content):
                self._approvals.check_approved(record, approved, "a change of keys")
            if permit is None or permit.content != approved.content:
                permit = permit_of(approved.content)
        assert permit is not None  # noqa: S101 - one of the two is there
        if permit.once and self.standings.has_used(operation):
            raise ProblemError(f"operation {operation} changes keys again")
        if permit.once and self._approvals.has_failed(operation):
            raise ProblemError(f"operation {operation} has failed, and has not begun again")
        self._permits = {**dict(list(self._permits.items())[1 - MAX_PERMITS :]), operation: permit}
        return permit

    def _version(self, row: VersionRow, time_us: int, taken: Accounted) -> None:
        """Takes a version's row if it only stops, or if the operation makes it."""
        known, after = self.standings.get(row.name), row.standing
        if known is not None and after.only_stops(known):
            if after.revision < known.revision:  # an approval from before would count again
                taken.problems.append(f"{row.name} has an earlier revision than before")
                after = after._replace(revision=known.revision)
        elif problem := self._gain(row, known, taken.permit, time_us):
            taken.problems.append(f"{row.name} {after.gain(known)}{problem}")
            return
        self._look.setdefault(row.name, -1 if known is None else known.revision)
        self._put(row.name, after)
        taken.rows.append(row._replace(standing=after))

    def _gain(
        self, row: VersionRow, known: Standing | None, permit: Permit | None, time_us: int
    ) -> str:
        """Returns why a row that allows more is not taken; empty if the operation makes it."""
        if permit is None:
            return ", and no operation of officers makes that"
        if known is not None and self._at_one_revision(row, known, permit):
            known = known._replace(revision=-1)  # it had another one, which is in no record
        elif known is not None and row.standing.revision <= known.revision:
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

    def _at_one_revision(self, row: VersionRow, known: Standing, permit: Permit) -> bool:
        """Whether a version may have two standings at one revision.

        Earlier versions recorded so what was done between two looks at the registry. They did not
        know the revision in between: it is the one that officers saw. What they saw at one that
        is in the log was about the standing of then, and does not count for another.
        """
        before, seen = self._look.get(row.name), permit.seen(row.name)
        between = before is not None and (seen is None or before < seen < known.revision)
        return between and row.standing.revision == known.revision

    def _placements(self, change: KeysChange, taken: Accounted) -> bool:
        """Takes what is removed, and what the operation adds; returns whether there is any."""
        for name, placement in change.removed:
            if left := self.placed.pop(name, frozenset()) - {placement}:
                self.placed[name] = left
        added: list[NamedPlacement] = []
        for name, placement in change.placed:
            if taken.permit is not None and taken.permit.placement(name) == (
                ADD_PLACEMENT,
                placement,
            ):
                added.append((name, placement))
            else:
                placed = f"{name} is placed on token {placement.token}"
                taken.problems.append(f"{placed}, and no operation of officers does that")
        self._place(added)
        return bool(added or change.removed)

    def _wrap(self, change: KeysChange, taken: Accounted) -> bool:
        """Takes the wrapped keys that the operation has made or wrapped anew; returns if any."""
        found = False
        for row in change.wrapped:
            known, version = self.wrapped.get(row.name), self.standings.get(row.name)
            by: Wrapping | None = None
            if taken.permit is not None and known is not None and known.pin == row.pin:
                by = taken.permit.wraps_anew(known.wrapping)
            if taken.permit is not None and known is None and version is not None:
                by = taken.permit.wrapped_with(version.place)
            another = self.wrapped.is_of_another(row.name, row.pin)
            if by is None or by.key != row.wrapping_key or another:
                text = f"the wrapped key of {row.name} has changed"
                taken.problems.append(f"{text}, and no operation of officers has made it")
                continue
            self.wrapped.put(row.name, row.standing._replace(since=by.since))
            found = True
        return found

    def _wrapping(self, change: KeysChange, taken: Accounted) -> bool:
        """Takes where the operation has wrapping keys used, or no longer; returns if anywhere.

        The first record that says it, in a log that an earlier version has begun, is taken as
        given, as a baseline is.
        """
        if self.wrapping is None:
            self.wrapping = None if change.wrapping is None else dict(change.wrapping)
            return False
        adds = None if taken.permit is None else taken.permit.adds_wrapping()
        ends = "" if taken.permit is None else taken.permit.ends_wrapping()
        found = False
        for place, created in (change.wrapping or {}).items():
            if place == adds:
                self.wrapping[place], found = created, True
            else:
                taken.problems.append(f"{place} is used, and no operation of officers does that")
        for place in change.wrapping_ended:
            if place.key == ends:
                found = self.wrapping.pop(place, None) is not None or found
            else:
                taken.problems.append(f"{place} ends, and no operation of officers destroys it")
        return found

    def _place(self, placed: Sequence[NamedPlacement]) -> None:
        for name, placement in placed:
            self.placed[name] = self.placed.get(name, frozenset()) | {placement}

    def _put(self, name: str, standing: Standing) -> None:
        self.standings.put(name, standing)
        self._taken.add(standing.place)

    # --- snapshots -------------------------------------------------------------------------

    def snapshot(self) -> dict[str, Value]:
        """Returns the field of a SNAPSHOT record that holds this state, ``standings``."""
        if not self.deployment:
            return {}
        rows, places = self.standings.rows, self.standings.places
        padded = (places.get(name, b"").rjust(HASH, b"\0") for name in rows)
        standings: dict[str, Value] = {
            "deployment": self.deployment,
            "revision": self.revision,
            "versions": b"".join(name + row for name, row in rows.items()),
            "places": b"".join(padded),
            "flags": flag_rows(self.flags),
            "used": b"".join(each + content for each, content in self.standings.used.items()),
        }
        if self.placed:
            standings["placed"] = placement_rows(
                (name, each) for name in sorted(self.placed) for each in sorted(self.placed[name])
            )
        if self.wrapped:
            standings |= self.wrapped.packed()
        if self.wrapping is not None:
            standings["wrapping"] = wrapping_rows(self.wrapping)
        return {"standings": standings}

    def check(self, snapshot: Record) -> None:
        """Raises RecordError if a snapshot differs from the result of the records before it.

        Places need not be there: snapshots of earlier versions, and those after them, lack them.
        Nor need since when keys are wrapped, in a log that an earlier version has begun.
        """
        said, known = snapshot.fields.get("standings"), self.snapshot().get("standings")
        left_out = {"places"}
        if isinstance(said, Mapping) and "wrapped" in said:
            if "wrapped_since" in said:
                self._since_known = True
            elif not self._since_known:
                left_out.add("wrapped_since")
        rest = [
            {name: value for name, value in each.items() if name not in left_out}
            if isinstance(each, Mapping)
            else each
            for each in (said, known)
        ]
        same = rest[0] == rest[1]
        if same and isinstance(said, Mapping) and isinstance(known, Mapping):
            rows = len(self.standings.rows) * ENTRY
            pairs = zip(_places(said, rows), _places(known, rows), strict=True)
            same = all(theirs in (ours, b"") or not ours for theirs, ours in pairs)
        if not same:
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
                **more,
            } if not len(rows) % ENTRY and not len(used) % (2 * HASH):
                self.deployment, self.revision = deployment, revision
                self.flags = read_flags(flags)
                known = self.standings
                known.rows, known.used = _pairs(rows, ENTRY), _pairs(used, 2 * HASH)
                known.places = dict(zip(known.rows, _places(said, len(rows)), strict=False))
                self._taken = set(known.places.values())
                self.placed = {}
                self._place(read_placements(more.get("placed")))
                self.wrapped.load(more)
                self._since_known = "wrapped_since" in more
                known_wrapping = "wrapping" in more
                self.wrapping = read_wrapping(more["wrapping"]) if known_wrapping else None
            case _:
                raise RecordError("the snapshot's standings cannot be read")


def _places(said: Value, rows: int) -> Iterator[bytes]:
    """Yields the places in a snapshot, one for each entry; older ones have none."""
    packed = said.get("places", bytes(rows // ENTRY * HASH)) if isinstance(said, Mapping) else None
    if not isinstance(packed, bytes) or len(packed) * ENTRY != rows * HASH:
        raise RecordError("the snapshot's places cannot be read")
    for at in range(0, len(packed), HASH):
        place = packed[at : at + HASH]
        yield b"" if place == bytes(HASH) else place


def _pairs(packed: bytes, width: int) -> dict[bytes, bytes]:
    return {
        packed[at : at + HASH]: packed[at + HASH : at + width]
        for at in range(0, len(packed), width)
    }
