"""Which requests were answered, and how much was used: a fold over the log's records.

Pure: the same records in the same order give the same ledger, from the first record or from
a snapshot on. One thread applies records (the log's writer); others may call ``find`` and
read ``forgotten`` at the same time.

Memory and snapshots are bounded. A request takes 56 bytes of a snapshot: only the numbers of
its records are kept. It is kept for 24 hours, unless its principal sends so many that its
oldest have to make room (ADR 15). Usage is one row for each facility that ever signed and
one number for each version of its keys.
"""

import struct
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import sha256
from typing import NamedTuple

from signer.audit.format.record import (
    Fields,
    Record,
    RecordError,
    RecordKind,
    Value,
    number,
    text,
    wrong_from,
)
from signer.policy.lifetime import KeyItems

REQUEST_LIFE_US = 24 * 3600 * 1_000_000
"""How long a request id names one request, in microseconds of the log's time."""

MAX_REQUESTS = 100_000
"""Requests kept at most: so many fit into one SNAPSHOT record beside 15,000 facilities."""

WINDOW_SECONDS = (1, 60, 3600, 86_400)
"""The windows that quotas may have, aligned to the epoch."""

FIELDS = ("requests", "used")
"""What a snapshot has of a ledger, if it was written with one."""

RESET = (
    "the snapshot does not hold the requests and the usage of the records before it:"
    " quotas or request ids were reset"
)
"""What is wrong with a snapshot that contradicts the records before it."""

_EMPTY = "the snapshot has no requests and usage"
_ROW = struct.Struct(">32s24s")  # the request, and what is known of it
_REQUEST = struct.Struct(">QQQ")  # its intent, its outcome or 0, its time
_ID_BYTES = 16


class Earlier(NamedTuple):
    """An earlier request with the same id, by the numbers of its records.

    ``outcome`` is None while the request is in flight.
    """

    intent: int
    outcome: int | None


class _Request(NamedTuple):
    intent: int
    outcome: int  # 0: none yet; an outcome is never record 0
    time_us: int

    @classmethod
    def of(cls, packed: bytes) -> "_Request":
        return cls(*_REQUEST.unpack(packed))

    def packed(self) -> bytes:
        """Returns it as it is kept: in a third of the memory of numbers."""
        return _REQUEST.pack(*self)


@dataclass(slots=True)
class _Used:
    """Items of one facility: in the windows that were open at ``last`` (seconds), and by key."""

    last: int
    windows: list[int] = field(default_factory=lambda: [0] * len(WINDOW_SECONDS))
    keys: dict[str, KeyItems] = field(default_factory=dict)

    @property
    def by_key(self) -> dict[str, int]:
        """The items ever charged, over all versions of each key."""
        return {key: items.total for key, items in self.keys.items()}

    def charge(self, key: str, version: int, items: int, now: int) -> None:
        for index, length in enumerate(WINDOW_SECONDS):
            same = now // length == self.last // length
            self.windows[index] = items + (self.windows[index] if same else 0)
        self.last = now
        self.keys.setdefault(key, KeyItems()).add(version, items)


def _confirmed(_clock: Record) -> bool:
    return True


class Ledger:
    """Requests of the last 24 hours, and the items that every facility has used.

    An intent with an empty or missing ``request_id`` is not kept as a request. Of two intents
    with one id the first counts until it is closed as INDETERMINATE, is 24 hours old, or has
    to make room. ``forgotten`` counts those that made room since this object was made.
    """

    KINDS = frozenset(
        {
            RecordKind.SNAPSHOT,
            RecordKind.INTENT,
            RecordKind.OUTCOME,
            RecordKind.INDETERMINATE,
            RecordKind.CLOCK,
        }
    )
    """The kinds of records that ``apply`` takes into account."""

    def __init__(
        self, capacity: int = MAX_REQUESTS, *, confirmed: Callable[[Record], bool] = _confirmed
    ) -> None:
        """``confirmed`` returns whether officers have confirmed a CLOCK: others count nothing."""
        self.forgotten = 0
        self._capacity, self._confirmed = capacity, confirmed
        # In the order of the log, so that the first one expires first.
        self._requests: OrderedDict[bytes, bytes] = OrderedDict()
        self._open: dict[int, bytes] = {}  # requests in flight, by their intent
        # The same by principal, in the same order; each value is an ordered set.
        self._held: dict[bytes, OrderedDict[bytes, None]] = {}
        self._used: dict[str, _Used] = {}
        self._latest = 0  # seconds; a clock that is set back refills no quota, as in policy.usage

    def apply(self, record: Record) -> None:
        """Applies the next record; ignores kinds that are not in ``KINDS``.

        A snapshot is the result of the records before it: it is read only if those were not,
        which is when the log is opened from it. Raises RecordError.
        """
        kind, fields = record.kind, record.fields
        if kind is RecordKind.INTENT:
            self._intend(record)
        elif kind is RecordKind.OUTCOME:
            if identity := self._open.pop(number(fields, "intent"), None):
                request = _Request.of(self._requests[identity])
                self._requests[identity] = request._replace(outcome=record.seq).packed()
        elif kind is RecordKind.INDETERMINATE:  # nothing of the intent was released
            if identity := self._open.get(number(fields, "intent")):
                self._forget(identity)
        elif kind is RecordKind.SNAPSHOT and not self._used:
            self._load(fields)
        elif kind is RecordKind.CLOCK and wrong_from(fields) and self._confirmed(record):
            self._set_back(record.time_us)

    def _set_back(self, time_us: int) -> None:
        """Moves what was recorded under a later, wrong time to this time.

        What was used in a window of the wrong time counts in the present one.
        """
        now = time_us // 1_000_000
        self._latest = min(self._latest, now)
        for used in self._used.values():
            used.last = min(used.last, now)
        for identity, packed in self._requests.items():
            request = _Request.of(packed)
            earlier = request._replace(time_us=min(request.time_us, time_us))
            self._requests[identity] = earlier.packed()

    def _intend(self, record: Record) -> None:
        fields = record.fields
        self._expire(record.time_us)
        key, _, version = text(fields, "key_version", "").partition("/versions/")
        self._latest = now = max(self._latest, number(fields, "now"))
        facility = text(fields, "facility", "")
        if (used := self._used.get(facility)) is None:
            used = self._used[facility] = _Used(now)
        used.charge(key.rpartition("/")[2], _version(version), charged(record), now)
        request_id = text(fields, "request_id", "")
        if request_id:
            identity = _identity(text(fields, "principal", ""), request_id)
            if identity not in self._requests:
                self._make_room(_principal(identity))
                self._remember(identity, _Request(record.seq, 0, record.time_us))

    def find(self, principal: str, request_id: str, time_us: int) -> Earlier | None:
        """Returns the request that this one repeats at ``time_us``, if there is one."""
        packed = self._requests.get(_identity(principal, request_id))
        request = None if packed is None else _Request.of(packed)
        if request is None or _expired(request, time_us):
            return None
        return Earlier(request.intent, request.outcome or None)

    def windows(self) -> dict[str, dict[int, tuple[int, int]]]:
        """Returns by facility and window length the latest window: its number and its items.

        Windows are numbered from the epoch, as ``policy.usage.Usage.restore`` expects.
        """
        return {
            facility: {
                length: (used.last // length, items)
                for length, items in zip(WINDOW_SECONDS, used.windows, strict=True)
            }
            for facility, used in self._used.items()
        }

    def totals(self) -> dict[str, dict[str, int]]:
        """Returns the items ever charged, by facility and key (the last part of its name)."""
        return {facility: used.by_key for facility, used in self._used.items()}

    def keys(self) -> dict[str, dict[str, KeyItems]]:
        """Returns the same, with the versions of each key."""
        return {facility: dict(used.keys) for facility, used in self._used.items()}

    def snapshot(self) -> dict[str, Value]:
        """Returns the ledger's fields of a SNAPSHOT record.

        ``versions`` has for each key in ``used``, in the order of facilities and keys, the number
        of the version that has all of its items, or a list: number and items of one version
        after the other. Earlier releases wrote none.
        """
        return {
            "requests": b"".join(part for row in self._requests.items() for part in row),
            "used": {
                facility: [used.last, used.windows, used.by_key]
                for facility, used in self._used.items()
            },
            "versions": [_divided(items) for items in _in_order(self._used)],
        }

    def check(self, snapshot: Record) -> None:
        """Raises RecordError if a snapshot differs from the result of the records before it."""
        if any(name in snapshot.fields for name in FIELDS) and self.contradicts(snapshot.fields):
            raise RecordError(RESET)

    def contradicts(self, said: Fields) -> bool:
        """Returns whether a snapshot differs from the result of the records so far.

        Of a version it may say more, and nothing if an earlier release wrote it: a log that is
        read from such a snapshot on has items of which only the key is known.
        """
        ours = self.snapshot()
        if any(said.get(name) != ours[name] for name in FIELDS):
            return True
        try:
            theirs = _read_usage(said)
        except RecordError:
            return True
        return any(
            theirs[facility].keys[key].of(number) < items
            for facility, used in self._used.items()
            for key, counted in used.keys.items()
            for number, items in counted.versions.items()
        )

    def _load(self, fields: Fields) -> None:
        rows = fields.get("requests")
        if not isinstance(rows, bytes) or len(rows) % _ROW.size:
            raise RecordError(_EMPTY)
        for identity, packed in _ROW.iter_unpack(rows):
            self._remember(identity, _Request.of(packed))
        self._used = _read_usage(fields)
        self._latest = max((used.last for used in self._used.values()), default=0)

    def _remember(self, identity: bytes, request: _Request) -> None:
        self._requests[identity] = request.packed()
        self._held.setdefault(_principal(identity), OrderedDict())[identity] = None
        if not request.outcome:
            self._open[request.intent] = identity

    def _expire(self, time_us: int) -> None:
        while self._requests:
            identity, packed = next(iter(self._requests.items()))
            if not _expired(_Request.of(packed), time_us):
                return
            self._forget(identity)

    def _make_room(self, principal: bytes) -> None:
        """Makes room for one more request of a principal.

        Each may hold as many as are still free: a single one at most half of all, n equal
        ones 1/(n+1) each. Beyond that its own oldest make room, because the latest requests
        are the ones repeated; a new principal takes the room of the oldest of all.
        """
        while True:
            own = self._held.get(principal)
            if len(own or ()) < self._capacity - len(self._requests):
                return
            self._forget(next(iter(own or self._requests)))
            self.forgotten += 1

    def _forget(self, identity: bytes) -> None:
        self._open.pop(_Request.of(self._requests.pop(identity)).intent, None)
        own = self._held[_principal(identity)]
        del own[identity]
        if not own:
            del self._held[_principal(identity)]


def charged(intent: Record) -> int:
    """Returns the items that an intent has cost: all that were asked for.

    In version 1 of the log those that went to the HSM.
    """
    column = intent.column
    if column is None:
        return 0
    return number(intent.fields, "asked", column.count) if column.leaf_items > 1 else column.count


def _expired(request: _Request, time_us: int) -> bool:
    return time_us - request.time_us >= REQUEST_LIFE_US


@lru_cache(maxsize=1024)  # it is needed to find a request, and again when its intent is durable
def _identity(principal: str, request_id: str) -> bytes:
    """Returns half of the SHA-256 of principal and id each: a URI may have 2,048 bytes."""
    return b"".join(sha256(text.encode()).digest()[:_ID_BYTES] for text in (principal, request_id))


def _principal(identity: bytes) -> bytes:
    return identity[:_ID_BYTES]


def _version(digits: str) -> int:
    """Returns the number in the name of a version, 0 if it has none."""
    return int(digits) if digits.isascii() and digits.isdigit() and len(digits) < 10 else 0


def _in_order(used: Mapping[str, _Used]) -> Iterator[KeyItems]:
    """Yields the counts of all keys, in the order of facilities and keys."""
    for _, row in sorted(used.items()):
        for _, items in sorted(row.keys.items()):
            yield items


def _read_usage(fields: Fields) -> dict[str, _Used]:
    """Reads what a snapshot says of usage; raises RecordError."""
    rows, versions = fields.get("used"), fields.get("versions")
    if not isinstance(rows, Mapping):
        raise RecordError(_EMPTY)
    used = {facility: _read_used(row) for facility, row in rows.items()}
    if versions is not None:
        keys = list(_in_order(used))
        if not isinstance(versions, Sequence) or len(versions) != len(keys):
            raise _unreadable_usage()
        for items, row in zip(keys, versions, strict=True):
            _assign(items, row)
    return used


def _divided(items: KeyItems) -> int | list[int]:
    """Returns how the items of a key are divided among its versions, as a snapshot says it."""
    versions = sorted(items.versions.items())
    if len(versions) == 1 and not items.unassigned:
        return versions[0][0]
    return [number for pair in versions for number in pair]


def _assign(items: KeyItems, row: Value) -> None:
    """Divides the items of a key among its versions, as a snapshot says."""
    if type(row) is int and row > 0:
        row = [row, items.unassigned]
    numbers = [n for n in row if type(n) is int and n >= 0] if isinstance(row, list | tuple) else []
    counts = dict(zip(numbers[::2], numbers[1::2], strict=False))
    if not isinstance(row, list | tuple) or len(row) != 2 * len(counts) or 0 in counts:
        raise _unreadable_usage()
    items.versions, items.unassigned = Counter(counts), items.unassigned - sum(counts.values())
    if items.unassigned < 0:
        raise _unreadable_usage()


def _read_used(row: Value) -> _Used:
    match row:
        case [int(last), [int(second), int(minute), int(hour), int(day)], Mapping() as keys]:
            items = {key: KeyItems(count) for key, count in keys.items() if isinstance(count, int)}
            if len(items) == len(keys):
                return _Used(last, [second, minute, hour, day], items)
    raise _unreadable_usage()


def _unreadable_usage() -> RecordError:
    return RecordError("the snapshot's usage cannot be read")
