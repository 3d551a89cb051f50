"""The sum that measures baskets: a customer's baskets with each item, pair and triple that was chosen."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np
import numpy.typing as npt

from sfumato.common.analyses.analysis import NoisySum
from sfumato.common.analyses.association import Count, ItemSets
from sfumato.common.analyses.item_sets import Baskets, Chosen

ITEM_WEIGHT = 0.7  # of a pair's: an item's count is several times a pair's, and so bears more noise
WHOLE_WEIGHT = 0.5

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class MeasuredBaskets:
    """[customers | baskets, if they have ids | items | pairs | triples]; `sizes` are of the last three. Of a customer
    `most` baskets count."""

    sizes: tuple[int, int, int]
    most: int
    with_ids: bool

    @property
    def length(self) -> int:
        return 1 + self.with_ids + sum(self.sizes)

    @property
    def norm(self) -> float:
        """Of a customer who has all of it, so that nobody is cut."""
        items, pairs, triples = self.sizes
        all_ = ITEM_WEIGHT**2 * items + pairs + triples
        whole = WHOLE_WEIGHT**2
        return sqrt(whole + self.most**2 * (all_ + (whole if self.with_ids else 0.0)))

    def rows(self, found: Baskets, told: Chosen) -> Floats:
        """A row a customer."""
        items = found.per_customer(found.held)
        sets = [found.per_customer(found.of_all(s)) for s in (told.pairs, told.triples) if len(s)]
        wholes = [np.ones((found.customers, 1))]
        if self.with_ids:
            wholes.append(found.per_customer(np.ones((len(found.owner), 1))))
        return np.hstack([WHOLE_WEIGHT * np.hstack(wholes), ITEM_WEIGHT * items, *sets])

    def read(self, total: NoisySum, chosen: Chosen, categories: Sequence[str]) -> tuple[Count, ItemSets]:
        """How many customers there are, and how many baskets hold each set."""
        items, pairs, triples = self.sizes
        wholes = 1 + self.with_ids
        weights = np.repeat([WHOLE_WEIGHT, ITEM_WEIGHT, 1.0], [wholes, items, pairs + triples])
        counts = [
            Count(float(v), float(s) ** 2)
            for v, s in zip(total.values / weights, total.std / weights, strict=True)
        ]
        sets = [*np.arange(items)[:, None], *chosen.pairs, *chosen.triples]
        named = (tuple(categories[i] for i in chosen.items[places]) for places in sets)
        held = ItemSets(
            dict(zip(named, counts[wholes:], strict=True)),
            counts[wholes - 1],
            "number" if self.with_ids else "customers",
        )
        return counts[0], held
