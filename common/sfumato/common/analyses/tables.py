"""Tables of counts in one long total: marginals and cross-tabs, side by side, and what ties them together."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import numpy.typing as npt

from sfumato.common.analyses.domains import Domain
from sfumato.common.analyses.estimates import Ties

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Table:
    """Counts by one or more columns: its cells lie in the total from `start` on, the last column fastest."""

    columns: tuple[Domain, ...]
    start: int

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(len(c.cells) for c in self.columns)

    @property
    def places(self) -> range:
        """All of its cells."""
        return range(self.start, self.start + prod(self.shape))

    def rows(self) -> Iterator[range]:
        """The cells of one value of all columns but the last, value after value; a marginal is one row."""
        step = self.shape[-1]
        return (range(i, i + step) for i in range(self.start, self.places.stop, step))

    def cells(self, codes: Mapping[str, Ints]) -> Ints:
        """Each customer's cell, int64 [n], from the columns' codes; -1 where one of those is -1."""
        each = [codes[c.name] for c in self.columns]
        inside = np.all([c >= 0 for c in each], axis=0)
        place = np.ravel_multi_index(tuple(np.where(inside, c, 0) for c in each), self.shape)
        return np.where(inside, self.start + place, -1)

    def values(self, places: Iterable[int]) -> tuple[Ints, ...]:
        """The codes of these cells, one array a column."""
        return np.unravel_index(np.fromiter(places, np.int64) - self.start, self.shape)

    def names(self, places: Sequence[int]) -> list[list[str]]:
        """The values of these cells in words, one list a cell."""
        codes = zip(*self.values(places), strict=True)
        return [[d.cells[c] for d, c in zip(self.columns, code, strict=True)] for code in codes]


def ties(tables: Sequence[Table]) -> Ties:
    """Every table holds the same customers, and tables that share a column agree on it."""
    length = tables[-1].places.stop
    everyone = [_indicators(t.places, np.zeros(len(t.places), np.int64), length) for t in tables]
    rows = [np.zeros((0, length)), *(e - everyone[0] for e in everyone[1:])]
    first: dict[str, npt.NDArray[np.float64]] = {}
    for table in tables:
        for column, code in zip(table.columns, table.values(table.places), strict=True):
            sums = _indicators(table.places, code, length)
            if column.name in first:
                rows.append(sums - first[column.name])
            else:
                first[column.name] = sums
    return Ties(np.concatenate(rows))


def _indicators(places: range, code: Ints, length: int) -> npt.NDArray[np.float64]:
    """Which places add up to each value of `code`: 0 or 1, [values, length]."""
    sums = np.zeros((int(code.max()) + 1, length))
    sums[code, np.asarray(places)] = 1.0
    return sums
