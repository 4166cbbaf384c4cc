"""The durable part of an open log, as its readers see it."""

from typing import NamedTuple

from signer.audit.format.merkle import Frontier
from signer.audit.format.record import Record, Tip
from signer.audit.read.reader import Reader
from signer.audit.write.disk import OpenFile

_LEAVES = 4096  # hashes held at once while a root is computed


class Durable(NamedTuple):
    """The records that are durable, and the file that gets the next ones."""

    file: OpenFile
    size: int
    peaks: list[bytes]
    open_intents: int
    reader: Reader


class DurableLog:
    """Reads what is durable of a log. The log's writer replaces ``_durable`` as a whole."""

    _durable: Durable

    @property
    def size(self) -> int:
        """Durable records: the sequence number of the next."""
        return self._durable.size

    @property
    def first(self) -> int:
        """The number of the oldest record in the directory; older ones were archived."""
        return self._durable.reader.first

    @property
    def open_intents(self) -> int:
        """Durable intents whose outcome is not durable yet."""
        return self._durable.open_intents

    def tree_head(self) -> tuple[int, bytes]:
        """Returns the number of durable records and the root of their tree."""
        durable = self._durable  # read once
        return durable.size, Frontier(durable.size, durable.peaks).root()

    def root_of(self, size: int) -> bytes:
        """Returns the root of the first ``size`` records, of which the oldest may be archived.

        Raises LookupError if more than these were archived.
        """
        first, tip = self.first, Tip()
        if size < first:
            raise LookupError(f"the first {size} records are not in this directory any more")
        if first:
            tip.continue_from(self.records(first, 1)[0])
        for start in range(first, size, _LEAVES):
            for leaf in self.leaf_hashes(start, min(start + _LEAVES, size)):
                tip.frontier.append(leaf)
        return tip.frontier.root()

    def leaf_hashes(self, start: int, stop: int) -> list[bytes]:
        """Returns the leaf hashes of the durable records [start, stop); see ``Reader``."""
        durable = self._durable
        return durable.reader.leaf_hashes(start, min(stop, durable.size))

    def records(self, start: int, limit: int) -> list[Record]:
        """Returns up to ``limit`` durable records from ``start`` on; see ``Reader``."""
        durable = self._durable
        return list(durable.reader.records(start, min(start + limit, durable.size)))
