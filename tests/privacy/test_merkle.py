"""The Merkle tree: published vectors, the RFC's own definition, and every proof that an attacker altered."""

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sfumato.common.errors import LedgerBroken
from sfumato.privacy import merkle
from sfumato.privacy.merkle import CompactRange, check_consistency, check_inclusion, leaf_hash, node_hash

# The entries, roots and proofs that Certificate Transparency's implementations test each other with.
VECTOR = ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"]
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
P = {
    "a": "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
    "b": "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
    "c": "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
    "d": "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
    "e": "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
    "f": "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "g": "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
}
INCLUSION = [(0, 8, "abc"), (5, 8, "def")]
CONSISTENCY = [(1, 1, ""), (1, 8, "abc"), (6, 8, "gef"), (2, 5, "bd")]
LEAVES = [leaf_hash(bytes([n])) for n in range(70)]


class Nodes:
    """Every complete subtree of some leaves, by the definition; counts how many were asked for."""

    def __init__(self, leaves: Sequence[bytes]) -> None:
        self.leaves = leaves
        self.asked = 0

    def __call__(self, level: int, position: int) -> bytes:
        self.asked += 1
        return naive(self.leaves[position << level : (position + 1) << level])


def naive(leaves: Sequence[bytes]) -> bytes:
    """RFC 9162, section 2.1.1, as it is written."""
    if not leaves:
        return merkle.EMPTY
    if len(leaves) == 1:
        return leaves[0]
    k = max(2**i for i in range(10) if 2**i < len(leaves))
    return node_hash(naive(leaves[:k]), naive(leaves[k:]))


ALL = Nodes(LEAVES)
TREES = [naive(LEAVES[:n]) for n in range(71)]


def published(names: str) -> list[bytes]:
    return [bytes.fromhex(P[n]) for n in names]


def test_the_published_roots() -> None:
    tree = CompactRange()
    assert tree.root().hex() == ROOTS[0]
    for data, root in zip(VECTOR, ROOTS[1:], strict=True):
        tree.append(leaf_hash(bytes.fromhex(data)))
        assert tree.root().hex() == root


def test_the_published_proofs() -> None:
    leaves = [leaf_hash(bytes.fromhex(v)) for v in VECTOR]
    nodes = Nodes(leaves)
    for index, size, names in INCLUSION:
        assert merkle.inclusion_proof(nodes, index, size) == published(names)
        check_inclusion(leaves[index], index, size, published(names), bytes.fromhex(ROOTS[size]))
    for first, second, names in CONSISTENCY:
        assert merkle.consistency_proof(nodes, first, second) == published(names)
        roots = bytes.fromhex(ROOTS[first]), bytes.fromhex(ROOTS[second])
        check_consistency(first, second, *roots, published(names))


def test_the_seven_leaves_of_the_rfc() -> None:
    """RFC 9162, section 2.1.5: the named nodes of its trees of 3, 4, 6 and 7 leaves."""
    a, b, c, d, e, f, j = LEAVES[:7]
    g, h, i = node_hash(a, b), node_hash(c, d), node_hash(e, f)
    k, ell = node_hash(g, h), node_hash(i, j)
    nodes = Nodes(LEAVES[:7])
    assert merkle.inclusion_proof(nodes, 0, 7) == [b, h, ell]
    assert merkle.inclusion_proof(nodes, 3, 7) == [c, g, ell]
    assert merkle.inclusion_proof(nodes, 4, 7) == [f, j, k]
    assert merkle.inclusion_proof(nodes, 6, 7) == [i, k]
    assert merkle.consistency_proof(nodes, 3, 7) == [c, d, g, ell]
    assert merkle.consistency_proof(nodes, 4, 7) == [ell]
    assert merkle.consistency_proof(nodes, 6, 7) == [i, j, k]


def test_every_append_completes_what_it_should() -> None:
    tree, known = CompactRange(), {}
    for size, leaf in enumerate(LEAVES, start=1):
        for (level, position), value in tree.append(leaf):
            assert value == ALL(level, position)
            known[level, position] = value
        assert tree.root() == TREES[size] and tree.size == size
        assert tree.peaks == [ALL(*place) for place in merkle.peaks(size)]
        assert len(known) == size - size.bit_count()


def test_every_size_and_prefix_has_its_proofs() -> None:
    for size in range(1, 71):
        for n in range(size):
            check_inclusion(LEAVES[n], n, size, merkle.inclusion_proof(ALL, n, size), TREES[size])
        for n in range(size + 1):
            proof = merkle.consistency_proof(ALL, n, size)
            check_consistency(n, size, TREES[n], TREES[size], proof)
            if n not in (0, size):
                assert len(proof) <= size.bit_length() + 1


def test_a_proof_touches_few_nodes() -> None:
    class Counting:
        asked = 0

        def __call__(self, level: int, position: int) -> bytes:
            self.asked += 1
            return bytes(32)

    nodes = Counting()
    merkle.consistency_proof(nodes, 412_345, 1_000_003)
    merkle.inclusion_proof(nodes, 777_777, 1_000_003)
    assert nodes.asked < 80


flips = st.integers(min_value=0, max_value=255)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_every_altered_consistency_proof_fails(data: st.DataObject) -> None:
    second = data.draw(st.integers(2, 70))
    first = data.draw(st.integers(1, second))
    proof = merkle.consistency_proof(ALL, first, second)
    given_ = [first, second, TREES[first], TREES[second], proof]
    altered = alter(data, proof, TREES[first], TREES[second])
    with pytest.raises(LedgerBroken):
        check_consistency(first, second, altered[1], altered[2], altered[0])
    other = data.draw(st.integers(0, 71).filter(lambda n: n != first))
    with pytest.raises(LedgerBroken):
        check_consistency(other, second, *given_[2:])  # type: ignore[arg-type]


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_every_altered_inclusion_proof_fails(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 70))
    index = data.draw(st.integers(0, size - 1))
    proof = merkle.inclusion_proof(ALL, index, size)
    altered = alter(data, proof, LEAVES[index], TREES[size])
    with pytest.raises(LedgerBroken):
        check_inclusion(altered[1], index, size, altered[0], altered[2])
    other = data.draw(st.integers(-1, 71).filter(lambda n: n != index))
    with pytest.raises(LedgerBroken):
        check_inclusion(LEAVES[index], other, size, proof, TREES[size])


def alter(
    data: st.DataObject, proof: list[bytes], one: bytes, two: bytes
) -> tuple[list[bytes], bytes, bytes]:
    """One bit flipped somewhere, or a step more, less, or two in another order."""
    kinds = ["one", "two", "more"] + (["flip", "less"] if proof else [])
    kinds += ["swap"] if len(proof) > 1 else []
    steps = list(proof)
    match data.draw(st.sampled_from(kinds)):
        case "one":
            return steps, flip(data, one), two
        case "two":
            return steps, one, flip(data, two)
        case "more":
            steps.insert(data.draw(st.integers(0, len(steps))), data.draw(st.sampled_from(LEAVES)))
        case "flip":
            at = data.draw(st.integers(0, len(steps) - 1))
            steps[at] = flip(data, steps[at])
        case "less":
            del steps[data.draw(st.integers(0, len(steps) - 1))]
        case _:
            at = data.draw(st.integers(0, len(steps) - 2))
            steps[at : at + 2] = steps[at + 1], steps[at]
    return steps, one, two


def flip(data: st.DataObject, value: bytes) -> bytes:
    bit = data.draw(flips)
    return (int.from_bytes(value) ^ 1 << bit).to_bytes(32)


def test_sizes_that_make_no_sense_are_refused() -> None:
    for first, second in ((-1, 3), (4, 3)):
        with pytest.raises(LedgerBroken):
            check_consistency(first, second, TREES[1], TREES[3], [])
        with pytest.raises(ValueError, match="Expected"):
            merkle.consistency_proof(ALL, first, second)
    with pytest.raises(LedgerBroken):
        check_consistency(0, 3, TREES[1], TREES[3], [])
    with pytest.raises(ValueError, match="complete subtrees"):
        CompactRange(3, [LEAVES[0]])
