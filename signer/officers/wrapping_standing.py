"""Which wrapping keys are used, and on which tokens. Pure: values in, values out.

A wrapping key is used on a token only where an approved operation has made it there or has let that
token use it, until one destroys it. What the registry has beside that is not used; what it
lacks is not used either, but the log goes on to account for it, until the row is put back.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from signer.audit.format.record import RecordError, Value
from signer.key_index import KeyIndex
from signer.model import WrappingKey
from signer.officers.packing import rows_in


class WrappingPlace(NamedTuple):
    """A wrapping key, by its id, on one token."""

    key: str
    token: str

    def __str__(self) -> str:
        return f"wrapping key {self.key} on token {self.token}"


WrappingPlaces = Mapping[WrappingPlace, int]
"""Where wrapping keys are used, and since when by the registry, in microseconds."""


class WrappingChange(NamedTuple):
    """What an operation does to wrapping keys: it adds a place, or ends all of a key by its id."""

    adds: WrappingPlace | None
    ends: str
    ended: bool


@dataclass(slots=True)
class WrappingChanges:
    """How the use of wrapping keys differs from what is known, by the number of the step.

    ``places`` are accounted for from here on; ``missing`` are those of them that the registry
    lacks or has otherwise, and ``invented`` what it has beside them.
    """

    places: dict[WrappingPlace, int]
    used: dict[int, dict[WrappingPlace, int]] = field(default_factory=dict)
    ended: dict[int, list[WrappingPlace]] = field(default_factory=dict)
    missing: frozenset[WrappingPlace] = frozenset()
    invented: frozenset[WrappingPlace] = frozenset()

    @property
    def refused(self) -> list[str]:
        """What is not used, as texts."""
        texts = [f"no operation accounts for {place}" for place in sorted(self.invented)]
        return texts + [
            f"{place} is not in the registry as it was, and no operation has destroyed it"
            for place in sorted(self.missing)
        ]

    @property
    def unaccounted(self) -> frozenset[WrappingPlace]:
        """What the registry has otherwise."""
        return self.missing | self.invented

    def usable(self, keys: Iterable[WrappingKey]) -> tuple[WrappingKey, ...]:
        """Returns the rows of wrapping keys without those in use that are not accounted for."""
        return tuple(
            key
            for key in keys
            if key.destroyed or self.places.get(_place(key)) == _microseconds(key.created)
        )

    def served(self, keys: KeyIndex) -> KeyIndex:
        """Returns the versions without tokens where their wrapping key must not be used."""
        if not self.unaccounted:
            return keys
        changed = []
        for version in keys:
            if (wrapped := version.wrapped) is None:
                continue
            tokens = tuple(
                token
                for token in wrapped.tokens
                if WrappingPlace(wrapped.wrapping_key, token) not in self.unaccounted
            )
            if tokens != wrapped.tokens:
                changed.append(replace(version, wrapped=wrapped._replace(tokens=tokens)))
        return keys.updated(changed, keys.revision, complete=keys.complete)


def judge_wrapping(
    keys: Sequence[WrappingKey],
    known: WrappingPlaces,
    steps: Sequence[Callable[[], WrappingChange | None]],
) -> WrappingChanges:
    """Returns what has become of the wrapping keys; ``keys`` are the rows of the registry."""
    rows = places_of(keys)
    created = {_place(key): _microseconds(key.created) for key in keys}
    changes = WrappingChanges(dict(known))
    at = changes.places
    for number, step in enumerate(steps):
        if (done := step()) is None:
            continue
        place = done.adds
        if place is not None and place not in at and (done.ended or place in rows):
            at[place] = created.get(place, 0)
            changes.used.setdefault(number, {})[place] = at[place]
        gone = [p for p in at if p.key == done.ends and (done.ended or p not in rows)]
        for ended in gone:
            del at[ended]
            changes.ended.setdefault(number, []).append(ended)
    changes.missing = frozenset(place for place in at if rows.get(place) != at[place])
    changes.invented = frozenset(place for place in rows if place not in at)
    return changes


def places_of(keys: Iterable[WrappingKey]) -> dict[WrappingPlace, int]:
    """Returns where wrapping keys are in use by the registry."""
    return {_place(key): _microseconds(key.created) for key in keys if not key.destroyed}


def _place(key: WrappingKey) -> WrappingPlace:
    return WrappingPlace(key.id, key.token)


def _microseconds(at: float) -> int:
    return round(at * 1_000_000)


# --- records -----------------------------------------------------------------------------------


def wrapping_rows(places: WrappingPlaces) -> list[Value]:
    """Returns places as records and snapshots hold them."""
    return [[*place, created] for place, created in sorted(places.items())]


def read_wrapping(rows: object) -> dict[WrappingPlace, int]:
    """Reads what ``wrapping_rows`` returns; raises RecordError."""
    found = {}
    for row in rows_in(rows):
        match row:
            case [str(key), str(token), int(created)]:
                found[WrappingPlace(key, token)] = created
            case _:
                raise RecordError("where a wrapping key is used cannot be read")
    return found


def ended_rows(places: Iterable[WrappingPlace]) -> list[Value]:
    """Returns places that are not used any more as records hold them."""
    return [list(place) for place in sorted(places)]


def read_ended(rows: object) -> list[WrappingPlace]:
    """Reads what ``ended_rows`` returns; raises RecordError."""
    found = []
    for row in rows_in(rows):
        match row:
            case [str(key), str(token)]:
                found.append(WrappingPlace(key, token))
            case _:
                raise RecordError("where a wrapping key is not used any more cannot be read")
    return found
