"""Proofs over a long log without hashing all of it again for each (RFC 6962 section 2.1)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

from signer.audit.format import merkle
from signer.audit.format.record import Record
from signer.audit.read.replay import Tip

LeafHashes = Callable[[int, int], Sequence[bytes]]
"""Returns the leaf hashes of the records [start, stop), as ``Reader.leaf_hashes`` does."""

SPAN = 4096
"""Leaves of the smallest subtree whose root is kept, a power of two."""
KEPT = 1 << 16
"""Roots kept at most, about 20 MB: those of 130 million records, or the larger subtrees of more."""


class Subtrees:
    """The roots of the tree's ranges, of which those of full subtrees are kept once computed.

    Records never change, so neither does the root of a full subtree. The first
    question over the whole log reads all its leaves, later ones fewer than three
    times ``SPAN``. Leaves are read at most ``SPAN`` at a time; what ``leaf_hashes``
    raises ends the question, and what was computed until then stays known.
    """

    def __init__(self, leaf_hashes: LeafHashes, oldest: Record | None = None) -> None:
        """``oldest`` is the first record that is here: None, the log's first, or a snapshot.

        A snapshot has the roots of all that was archived before it, so that what
        is here is provable without the rest. Raises RecordError for another record.
        """
        self._leaf_hashes = leaf_hashes
        self._first = oldest.seq if oldest else 0
        self._archived = _archived(oldest) if oldest and oldest.seq else {}
        self._kept = lru_cache(maxsize=KEPT)(self._compute)

    def inclusion_proof(self, index: int, size: int) -> list[bytes]:
        """Returns the audit path of a record in the tree of the first ``size`` (section 2.1.1).

        Raises IndexError where there is no such record, and what ``leaf_hashes`` raises.
        """
        return [self._root(*each) for each in merkle.inclusion_ranges(index, size)]

    def consistency_proof(self, old_size: int, size: int) -> list[bytes]:
        """Returns the proof that the tree of ``size`` begins with that of ``old_size`` (2.1.2).

        Raises IndexError where it is none, and what ``leaf_hashes`` raises.
        """
        return [self._root(*each) for each in merkle.consistency_ranges(old_size, size)]

    def _root(self, start: int, stop: int) -> bytes:
        size = stop - start
        known = self._archived.get((start, stop))
        if known is not None:
            return known
        full = size >= SPAN and not size & (size - 1)
        return self._kept(start, stop) if full else self._compute(start, stop)

    def _compute(self, start: int, stop: int) -> bytes:
        size = stop - start
        # Where archived and present records meet, only the halves can be known.
        if size == 1 or (size <= SPAN and start >= self._first):
            return merkle.root(self._leaf_hashes(start, stop))
        middle = start + merkle.split(size)
        return merkle.node_hash(self._root(start, middle), self._root(middle, stop))


def _archived(snapshot: Record) -> dict[tuple[int, int], bytes]:
    """The roots of the full subtrees that end where a snapshot stands."""
    tip = Tip()
    tip.continue_from(snapshot)
    known, start = {}, 0
    for peak in tip.frontier.to_list():
        stop = start + (1 << (snapshot.seq - start).bit_length() - 1)
        known[start, stop] = peak
        start = stop
    return known
