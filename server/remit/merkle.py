"""A Merkle tree over a growing list of entries, kept in tiles: its root, and proofs about it.

Hashes and proofs are those of RFC 9162 §2.1 (the same as RFC 6962 §2.1, with SHA-256). The tree is kept as
C2SP tiles (c2sp.org/tlog-tiles): 256 hashes of one level together, of which only the last of each level is
partial. Nothing here knows what an entry is, or where tiles are stored; there is no state and no dependency.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import sha256

HASH_BYTES = 32
#: Levels of the tree in one tile, and hashes across it.
TILE_HEIGHT = 8
TILE_WIDTH = 1 << TILE_HEIGHT
#: The root of a tree without entries.
EMPTY_ROOT = sha256(b"").digest()

#: The hashes of tile `index` of tile level `level`, one after another; at least those that the tree has.
ReadTile = Callable[[int, int], bytes]


def leaf_hash(entry: bytes) -> bytes:
    return sha256(b"\x00" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    return sha256(b"\x01" + left + right).digest()


class Frontier:
    """The right edge of a growing tree: all that is needed to go on hashing it, and to know its root."""

    __slots__ = ("_complete", "size")

    def __init__(self) -> None:
        self.size = 0
        #: The roots of the complete subtrees, largest first: one for each bit that is set in `size`.
        self._complete: list[bytes] = []

    def add(self, digest: bytes, height: int = 0) -> None:
        """Append a leaf, given its hash, or 2^height of them, given their root, where so many begin."""
        rest = self.size >> height
        while rest & 1:
            digest = sha256(b"\x01" + self._complete.pop() + digest).digest()
            rest >>= 1
        self._complete.append(digest)
        self.size += 1 << height

    def root(self) -> bytes:
        return _folded(self._complete)


def grown(read: ReadTile, size: int, leaves: Iterable[bytes]) -> dict[tuple[int, int], bytes]:
    """The tiles that change when `leaves` (hashes) are appended to a tree of `size`, by (level, index)."""
    changed: dict[tuple[int, int], bytearray] = {}

    def append(level: int, place: int, digest: bytes) -> None:
        index, offset = divmod(place, TILE_WIDTH)
        tile = changed.get((level, index))
        if tile is None:
            kept = read(level, index)[: offset * HASH_BYTES] if offset else b""
            tile = changed[level, index] = bytearray(kept)
        tile += digest
        if offset == TILE_WIDTH - 1:
            append(level + 1, index, subtree_root(bytes(tile)))

    for place, leaf in enumerate(leaves, start=size):
        append(0, place, leaf)
    return {key: bytes(tile) for key, tile in changed.items()}


def root(read: ReadTile, size: int) -> bytes:
    """The root of the first `size` entries."""
    return _range_root(read, 0, size) if size else EMPTY_ROOT


def inclusion_proof(read: ReadTile, index: int, size: int) -> list[bytes]:
    """What proves entry `index` to be in the tree of `size` (RFC 9162 §2.1.3.1), from the leaf upwards."""
    if not 0 <= index < size:
        raise ValueError(f"a tree of {size} entries has no entry {index}")
    path: list[bytes] = []
    low, high = 0, size
    while high - low > 1:
        middle = low + _split(high - low)
        if index < middle:
            path.append(_range_root(read, middle, high))
            high = middle
        else:
            path.append(_range_root(read, low, middle))
            low = middle
    return path[::-1]


def consistency_proof(read: ReadTile, old: int, new: int) -> list[bytes]:
    """What proves that the tree of `new` entries begins with that of `old` (RFC 9162 §2.1.4.1)."""
    if not 0 <= old <= new:
        raise ValueError(f"a tree of {new} entries does not begin with {old}")
    if old in (0, new):
        return []
    path: list[bytes] = []
    low, high = 0, new
    while high != old:
        middle = low + _split(high - low)
        if old <= middle:
            path.append(_range_root(read, middle, high))
            high = middle
        else:
            path.append(_range_root(read, low, middle))
            low = middle
    if low:
        path.append(_range_root(read, low, high))
    return path[::-1]


def verify_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> bool:
    """Whether `proof` shows that the leaf hash is entry `index` of the tree (RFC 9162 §2.1.3.2)."""
    if not 0 <= index < size:
        return False
    place, last, digest = index, size - 1, leaf
    for sibling in proof:
        if last == 0:
            return False
        if place & 1 or place == last:
            digest = node_hash(sibling, digest)
            while not place & 1 and place:
                place, last = place >> 1, last >> 1
        else:
            digest = node_hash(digest, sibling)
        place, last = place >> 1, last >> 1
    return last == 0 and digest == root


def verify_consistency(old: int, new: int, proof: Sequence[bytes], old_root: bytes, new_root: bytes) -> bool:
    """Whether `proof` shows that the new tree begins with the old one (RFC 9162 §2.1.4.2)."""
    if not 0 <= old <= new:
        return False
    if old == new:
        return not proof and old_root == new_root
    if old == 0:
        return not proof and old_root == EMPTY_ROOT
    path = [old_root, *proof] if old & (old - 1) == 0 else list(proof)
    if not path:
        return False
    place, last = old - 1, new - 1
    while place & 1:
        place, last = place >> 1, last >> 1
    first = second = path[0]
    for sibling in path[1:]:
        if last == 0:
            return False
        if place & 1 or place == last:
            first, second = node_hash(sibling, first), node_hash(sibling, second)
            while not place & 1 and place:
                place, last = place >> 1, last >> 1
        else:
            second = node_hash(second, sibling)
        place, last = place >> 1, last >> 1
    return last == 0 and first == old_root and second == new_root


def subtree_root(hashes: bytes) -> bytes:
    """The root over a power of two of hashes, such as those of a full tile."""
    pair = 2 * HASH_BYTES
    while len(hashes) > HASH_BYTES:
        hashes = b"".join(
            [sha256(b"\x01" + hashes[at : at + pair]).digest() for at in range(0, len(hashes), pair)]
        )
    return hashes


def tile_path(level: int | None, index: int, width: int = TILE_WIDTH) -> str:
    """Where a tile is published below a log's prefix; level None is the bundle of the entries themselves."""
    groups = [f"{index % 1000:03d}"]
    while index := index // 1000:
        groups.append(f"x{index % 1000:03d}")
    partial = f".p/{width}" if width < TILE_WIDTH else ""
    return f"tile/{'entries' if level is None else level}/{'/'.join(reversed(groups))}{partial}"


def tiles_of(size: int) -> Iterator[tuple[int, int, int]]:
    """Every tile of a tree of `size`, as (level, index, width): the full ones, then the partial one."""
    level = 0
    while size:
        full, rest = divmod(size, TILE_WIDTH)
        for index in range(full):
            yield level, index, TILE_WIDTH
        if rest:
            yield level, full, rest
        level, size = level + 1, full


def bundle(entries: Iterable[bytes]) -> bytes:
    """An entry bundle: each entry after its length, two bytes, most significant first."""
    return b"".join(len(entry).to_bytes(2) + entry for entry in entries)


def _split(count: int) -> int:
    """The largest power of two smaller than `count`."""
    return 1 << (count - 1).bit_length() - 1


def _range_root(read: ReadTile, low: int, high: int) -> bytes:
    """The root over entries `low` to `high`; `low` must be where a subtree of that size begins."""
    parts: list[bytes] = []
    while low < high:
        height = (high - low).bit_length() - 1
        parts.append(_complete_subtree(read, height, low >> height))
        low += 1 << height
    return _folded(parts)


def _complete_subtree(read: ReadTile, height: int, index: int) -> bytes:
    """The root of the complete subtree number `index` among those of 2^height entries."""
    level, above = divmod(height, TILE_HEIGHT)
    tile, offset = divmod(index << above, TILE_WIDTH)
    start, end = offset * HASH_BYTES, (offset + (1 << above)) * HASH_BYTES
    hashes = read(level, tile)[start:end]
    if len(hashes) != end - start:
        raise ValueError(f"tile {tile} of level {level} is not whole")
    return subtree_root(hashes)


def _folded(parts: Sequence[bytes]) -> bytes:
    """The root over complete subtrees of falling size."""
    if not parts:
        return EMPTY_ROOT
    digest = parts[-1]
    for part in reversed(parts[:-1]):
        digest = node_hash(part, digest)
    return digest
