from collections.abc import Sequence
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from signer.audit.format.merkle import (
    EMPTY_ROOT,
    Frontier,
    consistency_ranges,
    inclusion_proof,
    inclusion_ranges,
    leaf_hash,
    root,
    verify_consistency,
    verify_inclusion,
)

SIZES = range(131)
LEAVES = [leaf_hash(n.to_bytes(4, "big")) for n in range(3000)]
WRONG = sha256(b"wrong").digest()

# The leaves, roots and proofs of the test of Certificate Transparency's own
# Merkle tree (RFC 6962's authors), used by every implementation since.
CT_LEAVES = [
    leaf_hash(bytes.fromhex(leaf))
    for leaf in (
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    )
]
CT_ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
H01 = CT_ROOTS[2]
H1 = "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7"
H23 = "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e"
H45 = "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a"
H67 = "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0"
H4 = "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b"
H4567 = "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4"
H0123 = CT_ROOTS[4]


def definition(leaves: Sequence[bytes]) -> bytes:
    """MTH word for word as in RFC 6962 section 2.1."""
    if not leaves:
        return sha256().digest()
    if len(leaves) == 1:
        return leaves[0]
    k = 1
    while k * 2 < len(leaves):
        k *= 2
    return sha256(b"\x01" + definition(leaves[:k]) + definition(leaves[k:])).digest()


def consistency_proof(leaves: Sequence[bytes], old: int) -> list[bytes]:
    return [root(leaves[start:stop]) for start, stop in consistency_ranges(old, len(leaves))]


ROOTS = [definition(LEAVES[:size]) for size in SIZES]


@pytest.mark.parametrize("size", range(9))
def test_known_roots(size: int) -> None:
    assert root(CT_LEAVES[:size]).hex() == CT_ROOTS[size]


@pytest.mark.parametrize(
    ("index", "size", "expected"),
    [
        (0, 1, []),
        (0, 8, [H1, H23, H4567]),
        (5, 8, [H4, H67, H0123]),
        (2, 3, [H01]),
        (1, 5, [CT_ROOTS[1], H23, H4]),
    ],
)
def test_known_inclusion_proofs(index: int, size: int, expected: list[str]) -> None:
    proof = inclusion_proof(CT_LEAVES[:size], index)

    assert [node.hex() for node in proof] == expected
    assert verify_inclusion(CT_LEAVES[index], index, size, proof, bytes.fromhex(CT_ROOTS[size]))


@pytest.mark.parametrize(
    ("old", "size", "expected"),
    [(1, 1, []), (1, 8, [H1, H23, H4567]), (6, 8, [H45, H67, H0123]), (2, 5, [H23, H4])],
)
def test_known_consistency_proofs(old: int, size: int, expected: list[str]) -> None:
    proof = consistency_proof(CT_LEAVES[:size], old)

    assert [node.hex() for node in proof] == expected
    old_root, new_root = bytes.fromhex(CT_ROOTS[old]), bytes.fromhex(CT_ROOTS[size])
    assert verify_consistency(old, size, old_root, new_root, proof)


def test_roots_are_those_of_the_definition_and_of_the_growing_tree() -> None:
    frontier = Frontier()

    for size in SIZES:
        assert root(LEAVES[:size]) == ROOTS[size]
        assert (frontier.size, frontier.root()) == (size, ROOTS[size])
        frontier.append(LEAVES[size])


def test_every_leaf_of_every_size_is_included_and_only_there() -> None:
    for size in SIZES:
        for index in range(size):
            proof = inclusion_proof(LEAVES[:size], index)
            leaf = LEAVES[index]
            assert verify_inclusion(leaf, index, size, proof, ROOTS[size])
            assert not verify_inclusion(WRONG, index, size, proof, ROOTS[size])
            assert not verify_inclusion(leaf, index, size, proof, WRONG)
            assert not verify_inclusion(leaf, (index + 1) % size, size, proof, ROOTS[size]) or (
                size == 1
            )
            assert not verify_inclusion(leaf, index, size, [*proof, WRONG], ROOTS[size])
            assert not proof or not verify_inclusion(leaf, index, size, proof[:-1], ROOTS[size])


def test_every_size_continues_every_smaller_one() -> None:
    for size in SIZES:
        for old in range(size + 1):
            proof = consistency_proof(LEAVES[:size], old)
            assert verify_consistency(old, size, ROOTS[old], ROOTS[size], proof)
            assert not verify_consistency(old, size, WRONG, ROOTS[size], proof)
            assert not verify_consistency(old, size, ROOTS[old], ROOTS[size], [*proof, WRONG])
            if old:  # the empty tree begins every tree, whatever its root
                assert not verify_consistency(old, size, ROOTS[old], WRONG, proof)


@given(st.data())
def test_proofs_of_larger_trees_hold_and_each_changed_hash_is_found(data: st.DataObject) -> None:
    size = data.draw(st.integers(131, len(LEAVES)))
    index = data.draw(st.integers(0, size - 1))
    leaves, new_root = LEAVES[:size], root(LEAVES[:size])
    assert new_root == definition(leaves)

    proof = inclusion_proof(leaves, index)
    assert verify_inclusion(leaves[index], index, size, proof, new_root)
    spoilt = data.draw(st.integers(0, len(proof) - 1))
    proof[spoilt] = WRONG
    assert not verify_inclusion(leaves[index], index, size, proof, new_root)

    old = data.draw(st.integers(1, size - 1))
    proof = consistency_proof(leaves, old)
    assert verify_consistency(old, size, root(leaves[:old]), new_root, proof)
    proof[data.draw(st.integers(0, len(proof) - 1))] = WRONG
    assert not verify_consistency(old, size, root(leaves[:old]), new_root, proof)


@given(st.integers(0, 700), st.integers(0, 300))
def test_a_frontier_continues_from_its_list(kept: int, more: int) -> None:
    frontier = Frontier()
    for leaf in LEAVES[:kept]:
        frontier.append(leaf)
    continued = Frontier(frontier.size, frontier.to_list())
    for leaf in LEAVES[kept : kept + more]:
        continued.append(leaf)

    assert continued.root() == root(LEAVES[: kept + more])
    assert frontier.root() == root(LEAVES[:kept])  # the first is left alone


@pytest.mark.parametrize(
    ("size", "peaks"), [(-1, []), (0, [WRONG]), (3, [WRONG]), (4, []), (1, [b"short"])]
)
def test_a_frontier_refuses_a_list_of_another_size(size: int, peaks: list[bytes]) -> None:
    with pytest.raises(ValueError, match="are not the subtrees"):
        Frontier(size, peaks)


def test_leaves_and_sizes_that_do_not_exist_are_refused() -> None:
    for index, size in ((0, 0), (5, 5), (-1, 5)):
        with pytest.raises(IndexError):
            inclusion_ranges(index, size)
        assert not verify_inclusion(WRONG, index, size, [], EMPTY_ROOT)
    for old, size in ((6, 5), (-1, 5)):
        with pytest.raises(IndexError):
            consistency_ranges(old, size)
        assert not verify_consistency(old, size, WRONG, WRONG, [])
