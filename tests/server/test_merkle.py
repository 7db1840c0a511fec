"""The tree is that of RFC 6962 and RFC 9162, whatever its size, and nothing false can be proved about it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pymerkle import InmemoryTree

from remit import merkle
from remit.merkle import EMPTY_ROOT, TILE_WIDTH, Frontier, leaf_hash, node_hash

#: The entries and roots with which the reference implementations of Certificate Transparency test themselves.
PUBLISHED = [bytes.fromhex(entry) for entry in ("", "00", "10", "2021", "3031", "40414243")] + [
    bytes.fromhex("5051525354555657"),
    bytes.fromhex("606162636465666768696a6b6c6d6e6f"),
]
ROOTS = [
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
#: (old, new) and the proof between them, likewise.
PROOFS = {
    (6, 8): [
        "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ],
    (2, 5): [
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
    ],
}


def entries(count: int) -> list[bytes]:
    return [f"entry {number}".encode() for number in range(count)]


class Tiles:
    """A tree in memory: what a store of tiles has to be able to do."""

    def __init__(self, leaves: list[bytes] = []) -> None:  # noqa: B006 - never changed
        self.kept: dict[tuple[int, int], bytes] = {}
        self.size = 0
        self.append(leaves)

    def append(self, leaves: list[bytes]) -> None:
        self.kept |= merkle.grown(self.read, self.size, leaves)
        self.size += len(leaves)

    def read(self, level: int, index: int) -> bytes:
        return self.kept[level, index]


def a_tree(count: int) -> Tiles:
    return Tiles([leaf_hash(entry) for entry in entries(count)])


def by_definition(leaves: list[bytes]) -> bytes:
    """RFC 9162 §2.1.1, word for word."""
    if not leaves:
        return EMPTY_ROOT
    if len(leaves) == 1:
        return leaf_hash(leaves[0])
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    return node_hash(by_definition(leaves[:split]), by_definition(leaves[split:]))


@pytest.mark.parametrize("size", range(9))
def test_roots_are_the_published_ones(size: int) -> None:
    leaves = [leaf_hash(entry) for entry in PUBLISHED[:size]]
    frontier = Frontier()
    for leaf in leaves:
        frontier.add(leaf)
    assert merkle.root(Tiles(leaves).read, size).hex() == frontier.root().hex() == ROOTS[size]


def test_proofs_are_the_published_ones() -> None:
    tree = Tiles([leaf_hash(entry) for entry in PUBLISHED])
    assert [each.hex() for each in merkle.inclusion_proof(tree.read, 0, 8)] == [
        "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
    ]
    for (old, new), proof in PROOFS.items():
        assert [each.hex() for each in merkle.consistency_proof(tree.read, old, new)] == proof


@given(st.lists(st.integers(0, 300), max_size=6))
def test_a_tree_is_the_same_however_it_grew(batches: list[int]) -> None:
    tree, frontier = Tiles(), Frontier()
    every = entries(sum(batches))
    for count in batches:
        leaves = [leaf_hash(entry) for entry in every[tree.size : tree.size + count]]
        tree.append(leaves)
        for leaf in leaves:
            frontier.add(leaf)
        assert merkle.root(tree.read, tree.size) == frontier.root()
    assert frontier.root() == by_definition(every)
    assert {(level, index): width * 32 for level, index, width in merkle.tiles_of(tree.size)} == {
        key: len(tile) for key, tile in tree.kept.items()
    }


@given(st.data())
def test_every_entry_can_be_proved_in_every_later_tree(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 1500), "entries")
    size = data.draw(st.integers(1, count), "size")
    index = data.draw(st.integers(0, size - 1), "index")
    tree = a_tree(count)
    proof = merkle.inclusion_proof(tree.read, index, size)
    root = merkle.root(tree.read, size)
    leaf = leaf_hash(entries(count)[index])
    assert merkle.verify_inclusion(leaf, index, size, proof, root)
    assert not merkle.verify_inclusion(leaf_hash(b"another"), index, size, proof, root)
    assert not merkle.verify_inclusion(leaf, index, size, [*proof, root], root)
    assert not merkle.verify_inclusion(leaf, size, size, proof, root)
    if proof:
        assert not merkle.verify_inclusion(leaf, index, size, proof[:-1], root)
        assert not merkle.verify_inclusion(leaf, index ^ 1, size, proof, root)


@given(st.data())
def test_every_tree_can_be_proved_to_begin_with_every_earlier_one(data: st.DataObject) -> None:
    new = data.draw(st.integers(1, 1500), "new")
    old = data.draw(st.integers(0, new), "old")
    tree = a_tree(new)
    proof = merkle.consistency_proof(tree.read, old, new)
    roots = merkle.root(tree.read, old), merkle.root(tree.read, new)
    assert merkle.verify_consistency(old, new, proof, *roots)
    assert not merkle.verify_consistency(old, new, [*proof, roots[1]], *roots)
    if 0 < old < new:
        assert not merkle.verify_consistency(old, new, proof, leaf_hash(b"another"), roots[1])
        assert not merkle.verify_consistency(old, new, proof, roots[0], leaf_hash(b"another"))
        assert not merkle.verify_consistency(old, new, proof[:-1], *roots)


@given(st.integers(1, 300), st.data())
def test_another_implementation_finds_the_same_roots_and_proofs(size: int, data: st.DataObject) -> None:
    other = InmemoryTree(algorithm="sha256")
    for entry in entries(size):
        other.append_entry(entry)
    tree = a_tree(size)
    assert merkle.root(tree.read, size) == other.get_root(size)
    index = data.draw(st.integers(0, size - 1))
    leaf = leaf_hash(entries(size)[index])
    # It lists them from left to right, the leaf among them.
    assert sorted(other.prove_inclusion(index + 1, size).serialize()["path"]) == sorted(
        each.hex() for each in [leaf, *merkle.inclusion_proof(tree.read, index, size)]
    )


@pytest.mark.parametrize(
    "asked",
    [
        lambda read: merkle.inclusion_proof(read, 3, 3),
        lambda read: merkle.inclusion_proof(read, -1, 3),
        lambda read: merkle.consistency_proof(read, 4, 3),
        lambda read: merkle.root(read, 4),
    ],
)
def test_nothing_is_proved_about_entries_that_are_not_there(
    asked: Callable[[merkle.ReadTile], object],
) -> None:
    with pytest.raises(ValueError):
        asked(a_tree(3).read)


def test_no_proof_fits_a_tree_that_cannot_be() -> None:
    assert not merkle.verify_inclusion(EMPTY_ROOT, 0, 0, [], EMPTY_ROOT)
    assert not merkle.verify_consistency(3, 2, [], EMPTY_ROOT, EMPTY_ROOT)
    assert not merkle.verify_consistency(0, 2, [], leaf_hash(b"x"), EMPTY_ROOT)


def test_a_tree_of_70_000_has_the_tiles_of_the_specification() -> None:
    found: dict[int, list[int]] = {}
    for level, _, width in merkle.tiles_of(70_000):
        found.setdefault(level, []).append(width)
    assert found == {0: [TILE_WIDTH] * 273 + [112], 1: [TILE_WIDTH, 17], 2: [1]}
    assert list(merkle.tiles_of(256)) == [(0, 0, 256), (1, 0, 1)]


def test_tiles_lie_where_the_specification_says() -> None:
    assert merkle.tile_path(0, 1234067) == "tile/0/x001/x234/067"
    assert merkle.tile_path(3, 7, 12) == "tile/3/007.p/12"
    assert merkle.tile_path(None, 1000) == "tile/entries/x001/000"


def test_a_bundle_holds_each_entry_after_its_length() -> None:
    assert merkle.bundle([b"a", b"bcd"]) == b"\x00\x01a\x00\x03bcd"
