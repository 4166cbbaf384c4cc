"""Proofs over a long log (RFC 6962 section 2.1) that do not hash the whole log each time."""

from collections.abc import Callable, Sequence
from functools import lru_cache

from signer.audit.format import merkle
from signer.audit.format.record import Record, Tip

LeafHashes = Callable[[int, int], Sequence[bytes]]
"""Returns the leaf hashes of the records [start, stop), as ``Reader.leaf_hashes`` does."""

SPAN = 4096
"""Leaves of the smallest subtree whose root is kept; a power of two."""
KEPT = 1 << 16
"""Roots kept at most, about 20 MB: enough for 130 million records."""


class Subtrees:
    """Computes proofs; keeps the roots of full subtrees, because records never change.

    The first proof over the whole log reads all its leaves, later ones fewer than three
    times ``SPAN``. Leaves are read at most ``SPAN`` at a time. If ``leaf_hashes`` raises,
    the proof fails, and the roots computed until then are kept.
    """

    def __init__(self, leaf_hashes: LeafHashes, oldest: Record | None = None) -> None:
        """``oldest`` is the first record that can be read: None, the log's first, or a snapshot.

        A snapshot has the roots of all records before it, so that the records after it are
        provable without archived ones. Raises RecordError for another record.
        """
        self._leaf_hashes = leaf_hashes
        self._first = oldest.seq if oldest else 0
        self._archived = _archived(oldest) if oldest and oldest.seq else {}
        self._kept = lru_cache(maxsize=KEPT)(self._compute)

    def inclusion_proof(self, index: int, size: int) -> list[bytes]:
        """Returns the audit path of a record in the tree of the first ``size`` (section 2.1.1).

        Raises IndexError if there is no such record, and what ``leaf_hashes`` raises.
        """
        return [self._root(*leaves) for leaves in merkle.inclusion_ranges(index, size)]

    def consistency_proof(self, old_size: int, size: int) -> list[bytes]:
        """Returns the proof that the tree of ``size`` begins with that of ``old_size`` (2.1.2).

        Raises IndexError unless 0 ≤ old_size ≤ size, and what ``leaf_hashes`` raises.
        """
        return [self._root(*leaves) for leaves in merkle.consistency_ranges(old_size, size)]

    def _root(self, start: int, stop: int) -> bytes:
        size = stop - start
        archived = self._archived.get((start, stop))
        if archived is not None:
            return archived
        full = size >= SPAN and not size & (size - 1)
        return self._kept(start, stop) if full else self._compute(start, stop)

    def _compute(self, start: int, stop: int) -> bytes:
        size = stop - start
        # A range with archived and present records is computed from its halves.
        if size == 1 or (size <= SPAN and start >= self._first):
            return merkle.root(self._leaf_hashes(start, stop))
        middle = start + merkle.split(size)
        return merkle.node_hash(self._root(start, middle), self._root(middle, stop))


def _archived(snapshot: Record) -> dict[tuple[int, int], bytes]:
    """Returns the roots of the full subtrees of the records before a snapshot."""
    tip = Tip()
    tip.continue_from(snapshot)
    roots, start = {}, 0
    for peak in tip.frontier.to_list():
        stop = start + (1 << (snapshot.seq - start).bit_length() - 1)
        roots[start, stop] = peak
        start = stop
    return roots
