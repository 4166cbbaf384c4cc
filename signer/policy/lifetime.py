"""How many items were ever asked of each version of a key: what ``lifetime_signatures`` bounds."""

from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple, Self

NEARLY = 0.8
"""The part of its lifetime from which a version is shown as one to rotate."""


class VersionCharge(NamedTuple):
    """Items that a version of a key is to sign; ``limit`` is its bound, None if it has none.

    ``key`` is the last part of the key's name.
    """

    key: str
    number: int
    items: int
    limit: int | None


class LifetimeRefusal(NamedTuple):
    """The bound that a batch would exceed, and the items that count against it already."""

    limit: int
    used: int


@dataclass(slots=True)
class KeyItems:
    """The items ever asked of one key, by the number of the version.

    ``unassigned`` are items of which only the key is known. They count for each of its versions,
    so that no version passes its bound unseen.
    """

    unassigned: int = 0
    versions: Counter[int] = field(default_factory=Counter)

    @property
    def total(self) -> int:
        """The items of all versions."""
        return self.unassigned + self.versions.total()

    def add(self, number: int, items: int) -> None:
        """Counts items of a version; with the number 0 of one that is not known."""
        if number:
            self.versions[number] += items
        else:
            self.unassigned += items

    def of(self, number: int) -> int:
        """Returns the items that count against the bound of a version."""
        return self.unassigned + self.versions[number]

    def copy(self) -> Self:
        """Returns the same counts, which can be added to without changing these."""
        return type(self)(self.unassigned, self.versions.copy())
