"""The Merkle tree of RFC 6962 section 2.1: roots, inclusion and consistency proofs.

Hashes are 32 bytes (SHA-256). Leaves are given by their leaf hashes. RFC 9162 sections
2.1.3 and 2.1.4 define how proofs for the same tree are verified.
"""

from collections.abc import Sequence
from hashlib import sha256

EMPTY_ROOT = sha256().digest()
"""The root of the tree without leaves."""


def leaf_hash(data: bytes) -> bytes:
    """Returns SHA-256(0x00 ‖ data), the hash of one leaf."""
    return sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Returns SHA-256(0x01 ‖ left ‖ right), the hash of an inner node."""
    return sha256(b"\x01" + left + right).digest()


def root(leaf_hashes: Sequence[bytes]) -> bytes:
    """Returns MTH (RFC 6962 section 2.1) of the leaves with these hashes."""
    if not leaf_hashes:
        return EMPTY_ROOT
    # Level by level: pairing from the left and moving an odd node up makes the same tree
    # as splitting at the largest power of two.
    level, hashed = list(leaf_hashes), sha256
    while len(level) > 1:
        one = iter(level)
        above = [
            hashed(b"\x01" + left + right).digest() for left, right in zip(one, one, strict=False)
        ]
        if len(level) & 1:
            above.append(level[-1])
        level = above
    return level[0]


def inclusion_ranges(index: int, size: int) -> list[tuple[int, int]]:
    """Returns the ranges [start, stop) of leaves whose roots are the inclusion proof.

    PATH of RFC 6962 section 2.1.1; the sibling of the leaf is first.
    Raises IndexError unless 0 ≤ index < size.
    """
    if not 0 <= index < size:
        raise IndexError(f"leaf {index} is not in a tree of {size}")
    ranges, start, stop = [], 0, size
    while stop - start > 1:
        middle = start + split(stop - start)
        if index < middle:
            ranges.append((middle, stop))
            stop = middle
        else:
            ranges.append((start, middle))
            start = middle
    return ranges[::-1]


def consistency_ranges(old_size: int, size: int) -> list[tuple[int, int]]:
    """Returns the ranges [start, stop) of leaves whose roots are the consistency proof.

    PROOF of RFC 6962 section 2.1.2; empty if ``old_size`` is 0 or ``size``.
    Raises IndexError unless 0 ≤ old_size ≤ size.
    """
    if not 0 <= old_size <= size:
        raise IndexError(f"a tree of {old_size} leaves cannot begin a tree of {size}")
    if old_size in {0, size}:
        return []
    ranges, start, stop = [], 0, size
    while old_size < stop:
        middle = start + split(stop - start)
        if old_size <= middle:
            ranges.append((middle, stop))
            stop = middle
        else:
            ranges.append((start, middle))
            start = middle
    # The root of [0, old_size) is the old root, which the verifier has.
    if start:
        ranges.append((start, stop))
    return ranges[::-1]


def inclusion_proof(leaf_hashes: Sequence[bytes], index: int) -> list[bytes]:
    """Returns the audit path of the leaf ``index`` (RFC 6962 section 2.1.1)."""
    ranges = inclusion_ranges(index, len(leaf_hashes))
    return [root(leaf_hashes[start:stop]) for start, stop in ranges]


def verify_inclusion(
    leaf: bytes, index: int, size: int, proof: Sequence[bytes], tree_root: bytes
) -> bool:
    """Returns whether the leaf hash ``leaf`` is leaf ``index`` of the tree of ``size`` leaves.

    RFC 9162 section 2.1.3.2; the ranges show on which side each sibling is.
    """
    if not 0 <= index < size:
        return False
    ranges = inclusion_ranges(index, size)
    if len(ranges) != len(proof):
        return False
    node = leaf
    for (start, _), sibling in zip(ranges, proof, strict=True):
        node = node_hash(node, sibling) if start > index else node_hash(sibling, node)
    return node == tree_root


def verify_consistency(
    old_size: int, size: int, old_root: bytes, new_root: bytes, proof: Sequence[bytes]
) -> bool:
    """Returns whether the tree of ``size`` leaves begins with the tree of ``old_size`` leaves.

    RFC 9162 section 2.1.4.2; the ranges show which roots belong to the old tree, too.
    """
    if not 0 <= old_size <= size:
        return False
    ranges = consistency_ranges(old_size, size)
    if len(ranges) != len(proof):
        return False
    if old_size == 0:
        return old_root == EMPTY_ROOT
    if old_size == size:
        return old_root == new_root
    nodes = [(start, node) for (start, _), node in zip(ranges, proof, strict=True)]
    # Both trees grow from the last subtree of the old one: the first root of the proof, or
    # the whole old tree, which the proof omits.
    old = new = old_root if nodes[0][0] >= old_size else nodes.pop(0)[1]
    for start, node in nodes:
        if start < old_size:
            old, new = node_hash(node, old), node_hash(node, new)
        else:
            new = node_hash(new, node)
    return old == old_root and new == new_root


class Frontier:
    """A growing tree; only the roots of its perfect subtrees are kept."""

    def __init__(self, size: int = 0, peaks: Sequence[bytes] = ()) -> None:
        """Continues a tree of ``size`` leaves from its ``to_list()``; raises ValueError."""
        if size < 0 or len(peaks) != size.bit_count() or any(len(peak) != 32 for peak in peaks):
            raise ValueError(f"these are not the subtrees of a tree of {size} leaves")
        self.size = size
        self._peaks = list(peaks)  # the largest subtree first, one for each bit that is set in size

    def append(self, leaf: bytes) -> None:
        """Adds one leaf by its leaf hash."""
        size = self.size
        while size & 1:
            leaf = node_hash(self._peaks.pop(), leaf)
            size >>= 1
        self._peaks.append(leaf)
        self.size += 1

    def root(self) -> bytes:
        """Returns the root of all leaves so far."""
        if not self._peaks:
            return EMPTY_ROOT
        node = self._peaks[-1]
        for peak in self._peaks[-2::-1]:
            node = node_hash(peak, node)
        return node

    def to_list(self) -> list[bytes]:
        """Returns the roots of the perfect subtrees, the largest first."""
        return list(self._peaks)


def split(size: int) -> int:
    """Returns the largest power of two smaller than ``size``, which is at least 2.

    RFC 6962 section 2.1 splits the leaves of a tree there.
    """
    return 1 << (size - 1).bit_length() - 1
