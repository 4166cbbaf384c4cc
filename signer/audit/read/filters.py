"""Which records somebody wants to see: by principal, facility, key, kind and time."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from signer.audit.format.record import CLOSING, Record, RecordKind

_NAMES = ("key_version", "target")
_PEOPLE = ("principal", "officer")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a record must be about; what is empty or None restricts nothing.

    ``facility`` and ``key`` are a facility's id and the name of a key or version. Times are
    microseconds since the epoch, ``until_us`` exclusive.
    """

    principal: str = ""
    facility: str = ""
    key: str = ""
    kinds: frozenset[str] = frozenset()
    since_us: int | None = None
    until_us: int | None = None

    @property
    def everything(self) -> bool:
        return self == Wanted()

    def select(self, records: Iterable[Record]) -> Iterator[Record]:
        """Yields the wanted records; an outcome is about what its intent is about."""
        wanted: set[object] = set()
        for record in records:
            if record.kind in CLOSING and (self.principal or self.facility or self.key):
                intent = record.fields.get("intent")
                about = intent in wanted
                wanted.discard(intent)
            else:
                about = self._about(record)
                if about and record.kind is RecordKind.INTENT:
                    wanted.add(record.seq)
            if about and self._placed(record):
                yield record

    def of_intent(self, intent: Record) -> bool:
        """Whether an intent is wanted."""
        return self._about(intent) and self._placed(intent)

    def _placed(self, record: Record) -> bool:
        return (
            (not self.kinds or record.kind in self.kinds)
            and (self.since_us is None or record.time_us >= self.since_us)
            and (self.until_us is None or record.time_us < self.until_us)
        )

    def _about(self, record: Record) -> bool:
        fields = record.fields
        if self.principal and self.principal not in _people(record):
            return False
        if self.facility and fields.get("facility") != self.facility:
            prefix, flag = f"facilities/{self.facility}/", f"facility {self.facility}"
            if not any(name == flag or name.startswith(prefix) for name in _keys(record)):
                return False
        if self.key:
            versions = f"{self.key}/versions/"
            if not any(n == self.key or n.startswith(versions) for n in _keys(record)):
                return False
        return True


def _people(record: Record) -> set[object]:
    denied = [row[0] for row in _rows(record.fields.get("denials"))]
    return {*(record.fields.get(name) for name in _PEOPLE), *map(str, denied)}


def _keys(record: Record) -> list[str]:
    """Returns the names of keys, versions and suspensions that a record is about."""
    fields = record.fields
    named: list[object] = [fields.get(name) for name in _NAMES]
    named += [row[1] for row in _rows(fields.get("denials")) if len(row) > 1]
    named += [row[0] for row in _rows(fields.get("versions"))]
    for flags in ("suspended", "lifted", "suspensions"):
        named += [f"{row[0]} {row[1]}" for row in _rows(fields.get(flags)) if len(row) > 1]
    changed = fields.get("changed")
    named += list(changed) if isinstance(changed, Mapping) else []
    return [name for name in named if isinstance(name, str)]


def _rows(rows: object) -> list[list[object]]:
    listed = rows if isinstance(rows, list | tuple) else ()
    return [list(row) for row in listed if isinstance(row, list | tuple) and row]
