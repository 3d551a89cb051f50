"""The Merkle tree over a ledger's entries (RFC 9162 section 2.1): roots, inclusion and consistency proofs.

Hashes are 32 bytes, SHA-256. A complete subtree is named by its place (level, position): it covers the leaves
from position * 2^level to (position + 1) * 2^level. Every other hash follows from those, so an append and a
proof touch O(log n) of them.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence

from sfumato.common.errors import LedgerBroken

EMPTY = hashlib.sha256(b"").digest()
Place = tuple[int, int]
Nodes = Callable[[int, int], bytes]  # level, position -> the hash of that complete subtree


def leaf_hash(entry: bytes) -> bytes:
    return hashlib.sha256(b"\x00" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()


class CompactRange:
    """The first `size` leaves as their complete subtrees, largest first: all that an append needs."""

    __slots__ = ("peaks", "size")

    def __init__(self, size: int = 0, peaks: Iterable[bytes] = ()) -> None:
        self.size = size
        self.peaks = list(peaks)
        if len(self.peaks) != size.bit_count():
            raise ValueError(f"Expected {size.bit_count()} complete subtrees for {size} leaves.")

    def append(self, leaf: bytes) -> list[tuple[Place, bytes]]:
        """Add a leaf hash. Returns the interior nodes that are complete now, with their places."""
        complete = []
        node, level, position = leaf, 0, self.size
        while position & 1:
            node, level, position = node_hash(self.peaks.pop(), node), level + 1, position >> 1
            complete.append(((level, position), node))
        self.peaks.append(node)
        self.size += 1
        return complete

    def root(self) -> bytes:
        return _fold(self.peaks)

    def copy(self) -> "CompactRange":
        return CompactRange(self.size, self.peaks)


def peaks(size: int, begin: int = 0) -> list[Place]:
    """Places of the complete subtrees that cover `size` leaves from `begin` on, largest first.

    `begin` must be a multiple of the largest; the splits of RFC 9162 section 2.1.1 always are.
    """
    places = []
    for level in reversed(range(size.bit_length())):
        if size >> level & 1:
            places.append((level, begin >> level))
            begin += 1 << level
    return places


def inclusion_proof(nodes: Nodes, index: int, size: int) -> list[bytes]:
    """PATH(index, D[size]) of RFC 9162 section 2.1.3.1. Raises ValueError outside 0 <= index < size."""
    if not 0 <= index < size:
        raise ValueError(f"Expected 0 <= index={index} < size={size}.")
    begin, end, proof = 0, size, []
    while end - begin > 1:
        middle = begin + _split(end - begin)
        if index < middle:
            proof.append(_range_hash(nodes, middle, end))
            end = middle
        else:
            proof.append(_range_hash(nodes, begin, middle))
            begin = middle
    return proof[::-1]


def check_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> None:
    """Raise LedgerBroken unless the proof leads from this leaf hash to the root (RFC 9162 section 2.1.3.2)."""
    if not 0 <= index < size:
        raise LedgerBroken(f"no tree of {size} entries holds an entry {index}")
    fn, sn, r = index, size - 1, leaf
    for step in proof:
        if sn == 0:
            raise LedgerBroken("the inclusion proof is too long")
        if fn & 1 or fn == sn:
            r = node_hash(step, r)
            while fn and not fn & 1:
                fn, sn = fn >> 1, sn >> 1
        else:
            r = node_hash(r, step)
        fn, sn = fn >> 1, sn >> 1
    if sn != 0 or r != root:
        raise LedgerBroken(f"the proof does not show that entry {index} is in the tree of {size}")


def consistency_proof(nodes: Nodes, first: int, second: int) -> list[bytes]:
    """PROOF(first, D[second]) of RFC 9162 section 2.1.4.1; empty for first = 0. Raises ValueError."""
    if not 0 <= first <= second:
        raise ValueError(f"Expected 0 <= first={first} <= second={second}.")
    if first in (0, second):
        return []
    begin, end, proof = 0, second, []
    while first < end:
        middle = begin + _split(end - begin)
        if first <= middle:
            proof.append(_range_hash(nodes, middle, end))
            end = middle
        else:
            proof.append(_range_hash(nodes, begin, middle))
            begin = middle
    if begin:
        proof.append(_range_hash(nodes, begin, end))
    return proof[::-1]


def check_consistency(
    first: int, second: int, first_root: bytes, second_root: bytes, proof: Sequence[bytes]
) -> None:
    """Raise LedgerBroken unless the tree of `first` is a prefix of that of `second` (RFC 9162 section 2.1.4.2).

    Every tree continues the empty one; equal sizes must have equal roots; both take an empty proof.
    """
    broken = LedgerBroken(f"the proof does not show that the tree of {second} continues that of {first}")
    if not 0 <= first <= second:
        raise broken
    if first in (0, second):
        if proof or first_root != (second_root if first == second else EMPTY):
            raise broken
        return
    path = [first_root, *proof] if first.bit_count() == 1 else list(proof)
    if len(path) < 2:
        raise broken
    fn, sn = first - 1, second - 1
    while fn & 1:
        fn, sn = fn >> 1, sn >> 1
    fr = sr = path[0]
    for step in path[1:]:
        if sn == 0:
            raise broken
        if fn & 1 or fn == sn:
            fr, sr = node_hash(step, fr), node_hash(step, sr)
            while fn and not fn & 1:
                fn, sn = fn >> 1, sn >> 1
        else:
            sr = node_hash(sr, step)
        fn, sn = fn >> 1, sn >> 1
    if sn != 0 or fr != first_root or sr != second_root:
        raise broken


def _split(width: int) -> int:
    """The largest power of two smaller than `width` (at least 2)."""
    return 1 << (width - 1).bit_length() - 1


def _range_hash(nodes: Nodes, begin: int, end: int) -> bytes:
    return _fold([nodes(level, position) for level, position in peaks(end - begin, begin)])


def _fold(subtrees: Sequence[bytes]) -> bytes:
    if not subtrees:
        return EMPTY
    whole = subtrees[-1]
    for left in reversed(subtrees[:-1]):
        whole = node_hash(left, whole)
    return whole
