"""What an offer counts: customers by group, by group and product, and by moment; side by side in one total."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from math import sqrt
from typing import Any

import numpy as np
import numpy.typing as npt

from sfumato.common.analyses.analysis import NoisySum
from sfumato.common.analyses.domains import Domain
from sfumato.common.analyses.listed import Listed
from sfumato.common.analyses.tables import Table
from sfumato.common.contributions import Cells
from sfumato.common.learners.allocation import Market
from sfumato.common.learners.holdings import BANDS, Holdings, holdings

MOMENT_WEIGHT = 0.7

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Counts:
    """Of G groups and P products on offer: G cells, G P pairs of holders and of those who took it up in the window,
    and two a band, without and with a take-up."""

    groups: Table
    moment: Domain | None
    products: Listed
    opened: Listed
    names: tuple[str, ...]
    as_of: date
    months: int

    @property
    def columns(self) -> tuple[str, ...]:
        moment = [self.moment.name] if self.moment else []
        lists = [self.products.name, self.opened.name]
        return tuple(dict.fromkeys([*(d.name for d in self.groups.columns), *moment, *lists]))

    @property
    def bands(self) -> tuple[str, ...]:
        return self.moment.cells if self.moment else BANDS

    @property
    def sizes(self) -> tuple[int, int]:
        """Groups and products."""
        return len(self.groups.places), len(self.names)

    @property
    def length(self) -> int:
        return self._moments + 2 * len(self.bands)

    @property
    def _moments(self) -> int:
        """Where the bands begin."""
        groups, products = self.sizes
        return groups * (1 + 2 * products)

    @cached_property
    def weights(self) -> Floats:
        return np.array([1.0] * (1 + len(self.names)) + [MOMENT_WEIGHT])

    @property
    def norm(self) -> float:
        """Of a customer who holds every product."""
        return sqrt(float((self.weights**2).sum()))

    def cells(self, columns: Mapping[str, Any]) -> Cells:
        """One cell for the group, one a product that is held, one for the moment."""
        known = self.products.column.categories or ()
        lists = columns[self.products.name], columns[self.opened.name]
        held = holdings(*lists, self.names, known, self.as_of, self.months)
        groups, products = self.sizes
        group = self.groups.cells({d.name: d.codes(columns[d.name]) for d in self.groups.columns})[:, None]
        pair = groups + (group * products + np.arange(products)) * 2 + held.took
        inside = (held.before | held.took) & (group >= 0)
        band = self._band(held, columns)[:, None]
        moment = self._moments + 2 * band + held.took.any(axis=1, keepdims=True)
        cells = [group, np.where(inside, pair, -1), np.where(band >= 0, moment, -1)]
        return Cells(np.hstack(cells).astype(np.int64), self.weights, self.length)

    def _band(self, held: Holdings, columns: Mapping[str, Any]) -> npt.NDArray[np.int64]:
        return self.moment.codes(columns[self.moment.name]) if self.moment else held.bands

    def market(self, total: NoisySum) -> Market:
        """The counts by group and product."""
        groups, products = self.sizes
        pairs = total.values[groups : self._moments].reshape(groups, products, 2)
        return Market(total.values[:groups], pairs[..., 0], pairs[..., 1], total.std**2)

    def moments(self, total: NoisySum) -> tuple[Floats, float]:
        """Customers by band [bands, 2], without and with a take-up; and the variance of each."""
        counts = total.values[self._moments :].reshape(-1, 2) / MOMENT_WEIGHT
        return counts, (total.std / MOMENT_WEIGHT) ** 2
