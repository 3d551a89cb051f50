"""Baskets and the items in them, read from the lists of customers' rows (see listed.py); and which sets of items
are counted."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from sfumato.common.learners.encoding import category_codes

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Chosen:
    """What to count: items as places in the contract's list, int64 [items] ascending; pairs [pairs, 2] and triples
    [triples, 3] as places among these, ascending in each."""

    items: Ints
    pairs: Ints
    triples: Ints

    @staticmethod
    def of(sizes: tuple[int, int, int], by_item: Floats | None, by_pair: Floats | None) -> "Chosen":
        """So many of each: the most frequent items and pairs, and the triples whose rarest pair is the most frequent
        (no triple is more frequent than that). Without counts the first ones."""
        items, pairs, triples = sizes
        codes = np.arange(items) if by_item is None else _largest(by_item, items)
        two, three = all_sets(items, 2), all_sets(items, 3)
        if by_pair is None:
            return Chosen(codes, two[:pairs], three[:triples])
        count = np.zeros((items, items))
        count[two[:, 0], two[:, 1]] = by_pair
        rarest = np.min([count[three[:, a], three[:, b]] for a, b in ((0, 1), (0, 2), (1, 2))], axis=0)
        return Chosen(codes, two[_largest(by_pair, pairs)], three[_largest(rarest, triples)])

    @staticmethod
    def told(asked: npt.NDArray[np.float32] | None, sizes: tuple[int, int, int], categories: int) -> "Chosen":
        """From `flat` as it travels. Raises ValueError on what is not of these sizes, or holds a set twice."""
        counts = (sizes[0], 2 * sizes[1], 3 * sizes[2])
        if asked is None or asked.shape != (sum(counts),) or not np.isin(asked, np.arange(categories)).all():
            raise ValueError("Expected the places of what was chosen.")
        items, two, three = np.split(asked.astype(np.int64), np.cumsum(counts)[:-1])
        told = Chosen(items, two.reshape(-1, 2), three.reshape(-1, 3))
        for sets, most in ((items[None, :], categories), (told.pairs, sizes[0]), (told.triples, sizes[0])):
            ascending = bool((np.diff(sets, axis=1) > 0).all() and (sets < most).all())
            if not ascending or len(np.unique(sets, axis=0)) < len(sets):
                raise ValueError("Expected sets of places in ascending order, none twice.")
        return told

    @property
    def flat(self) -> Ints:
        return np.concatenate([self.items, self.pairs.ravel(), self.triples.ravel()])


@lru_cache(maxsize=8)
def all_sets(items: int, size: int) -> Ints:
    """Every set of so many of the items, int64 [sets, size]."""
    return np.array(list(combinations(range(items), size)), dtype=np.int64).reshape(-1, size)


def _largest(values: Floats, count: int) -> Ints:
    """Places of the largest, ascending."""
    return np.sort(np.argsort(-values, kind="stable")[:count])


@dataclass(frozen=True, repr=False)
class Baskets:
    """b baskets of n customers. `owner` int64 [b], ascending; `held` bool [b, items]: what lies in each."""

    customers: int
    owner: Ints
    held: npt.NDArray[np.bool_]

    def of_all(self, sets: Ints) -> npt.NDArray[np.bool_]:
        """Which baskets hold all items of each set: bool [b, sets], from int64 [sets, k]."""
        found = self.held[:, sets[:, 0]]
        for column in sets.T[1:]:
            found = found & self.held[:, column]
        return found

    def per_customer(self, values: npt.NDArray[Any]) -> Floats:
        """A customer's baskets added up, float64 [n, d]; zeros for who has none."""
        rows = np.zeros((self.customers, values.shape[1]))
        if len(values):
            starts = np.flatnonzero(np.diff(self.owner, prepend=-1))
            rows[self.owner[starts]] = np.add.reduceat(values, starts, axis=0, dtype=np.float64)
        return rows


def baskets(items: Any, categories: Sequence[str], codes: Ints, ids: Any = None, most: int = 1) -> Baskets:
    """What each basket holds of the items with these `codes`, places in `categories`.

    `items` is a list column. Without `ids` every customer is one basket, an empty one too. With `ids`, a list column
    that runs beside it, rows of one id are a basket; the first `most` of a customer count, those with no listed
    item too. A row without an id is in no basket.
    """
    lists = _lists(items)
    owner = np.asarray(pc.list_parent_indices(lists), dtype=np.int64)
    place = np.full(len(categories) + 2, -1)  # the last two: what is not on the list, and null
    place[codes] = np.arange(len(codes))
    item = place[category_codes(pc.list_flatten(lists), categories)]
    if ids is None:
        basket, of_basket = owner, np.arange(len(lists))
    else:
        basket, of_basket = _numbered(owner, _lists(ids), most)
    inside = (basket >= 0) & (item >= 0)
    held = np.zeros((len(of_basket), len(codes)), dtype=np.bool_)
    held[basket[inside], item[inside]] = True
    return Baskets(len(lists), of_basket, held)


def _numbered(owner: Ints, ids: pa.Array, most: int) -> tuple[Ints, Ints]:
    """Each row's basket, -1 for none; and each basket's owner. In the order of the customers and of their rows."""
    coded = pc.list_flatten(ids).dictionary_encode()
    code = np.asarray(coded.indices.fill_null(-1), dtype=np.int64)
    if len(code) != len(owner):
        raise ValueError("Expected lists that run side by side.")
    key = np.where(code < 0, -1, owner * (len(coded.dictionary) + 1) + code)
    _, first, inverse = np.unique(key, return_index=True, return_inverse=True)
    kept = key[first] >= 0
    order = np.lexsort((first, owner[first], ~kept))[: int(kept.sum())]
    of_basket = owner[first[order]]
    rank = np.arange(len(order)) - np.searchsorted(of_basket, of_basket)
    order = order[rank < most]
    number = np.full(len(first), -1)
    number[order] = np.arange(len(order))
    return number[inverse], owner[first[order]]


def _lists(values: Any) -> pa.Array:
    return values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
