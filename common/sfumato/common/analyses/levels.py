"""Bounded numbers cut into levels: how they are counted, on which public grid their quantiles are read, and what a
level is called. A cut is the upper end of the level below it, as a quantile is."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sfumato.common.analyses.domains import domain
from sfumato.common.analyses.valued_cells import ValuedCells
from sfumato.common.contract import Contract, Scale
from sfumato.common.contributions import Cells
from sfumato.common.errors import BadInput
from sfumato.common.learners.quantiles import WIDTH, Grid

DIGITS = 3  # of a cut, so that a person can read it

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Axis:
    """A column of the customers table or a roll-up, between public bounds. A `turned` one is counted without the
    sign that the contract gives it."""

    name: str
    low: float
    high: float
    scale: Scale
    integer: bool
    turned: bool = False

    @staticmethod
    def of(contract: Contract, name: str, *, amount: bool = False) -> "Axis":
        """An `amount` is never below zero: one that the contract has below zero alone is turned, and of another what
        is below counts as zero. Raises BadInput on what is no bounded number."""
        spec = domain(contract, name, 2).spec
        if spec.bounds is None:
            raise BadInput(f"{name!r} is no number", hint="Name a number with bounds, or a roll-up.")
        low, high = spec.bounds
        turned = amount and high <= 0
        if turned:
            low, high = 0.0 - high, 0.0 - low
        return Axis(name, max(low, 0.0) if amount else low, high, spec.scale, spec.integer, turned)

    @cached_property
    def grid(self) -> Grid:
        """Whole numbers lie close where they are small: there a bin has one of them."""
        small = self.integer and self.low >= 0
        return Grid(self.low, self.high, Scale.LOG if small else self.scale, self.integer)

    def values(self, column: Any) -> Floats:
        """Each customer's number as it is counted; NaN for a null."""
        if not isinstance(column, pa.Array | pa.ChunkedArray):
            column = pa.array(column, from_pandas=True)
        found = np.asarray(column.cast(pa.float64(), safe=False).fill_null(np.nan), dtype=np.float64)
        return np.clip(-found if self.turned else found, self.low, self.high)

    def rounded(self, cut: float) -> float:
        """To DIGITS digits, inside the bounds; of a whole number a whole one of the same bin, if it has one."""
        if self.integer:
            bin_ = int(self.grid.codes(np.array([cut]))[0])
            first, last = np.ceil(self.grid.ends[bin_ : bin_ + 2]) - (0, 1)
            cut = float(np.clip(np.round(cut), first, max(first, last)))
        if cut:
            digits = DIGITS - 1 - int(np.floor(np.log10(abs(cut))))
            cut = float(np.round(cut, min(digits, 0) if self.integer else digits))
        return min(max(cut, self.low), self.high)

    def ends(self, cuts: Floats) -> Floats:
        """The levels' ends: one more than there are levels."""
        return np.array([self.low, *cuts, self.high])

    def words(self, cuts: Floats) -> list[str]:
        """Each level as "low to high"; "" for one that no number falls in."""
        words = []
        for i, (low, high) in enumerate(pairwise(self.ends(cuts))):
            if i and low == high:
                words.append("")
                continue
            first = np.floor(low) + 1 if self.integer and i else low
            a, b = (f"{np.float32(e):.10g}" for e in (first, high))
            words.append(a if first == high else f"{a} to {b}")
        return words


def starts(axes: Sequence[Axis]) -> Ints:
    """Where each axis' bins begin among those of all, and how many there are."""
    return np.cumsum([0, *(a.grid.length for a in axes)])


def binned(axes: Sequence[Axis], values: Floats) -> Cells:
    """A coarse and a fine bin of each axis, from numbers [n, axes]. Who lacks one of the numbers is in no bin."""
    firsts = starts(axes)
    whole = ~np.isnan(values).any(axis=1)
    cells = np.full((len(values), 2 * len(axes)), -1)
    for i, (axis, start) in enumerate(zip(axes, firsts[:-1].tolist(), strict=True)):
        fine = axis.grid.codes(values[whole, i])
        cells[whole, 2 * i] = start + fine // WIDTH
        cells[whole, 2 * i + 1] = start + axis.grid.parents + fine
    return Cells(cells, np.ones(cells.shape[1]), int(firsts[-1]))


@dataclass(frozen=True)
class Cube:
    """Axes cut into levels; the last is money, which counts up to a ceiling. A cell is a level of each, the last axis
    fastest. In float32, as cuts are asked: both sides round a number alike."""

    axes: tuple[Axis, ...]
    cuts: tuple[npt.NDArray[np.float32], ...]
    ceiling: float

    @staticmethod
    def of(axes: tuple[Axis, ...], levels: int, asked: npt.NDArray[np.float32] | None) -> "Cube":
        """From [each axis' cuts | ceiling]. Raises ValueError on numbers that are no cuts within the bounds."""
        size = len(axes) * (levels - 1) + 1
        if asked is None or asked.shape != (size,) or not np.isfinite(asked).all():
            raise ValueError(f"Expected {size} finite numbers.")
        cuts = tuple(np.split(asked[:-1], len(axes)))
        for axis, each in zip(axes, (*cuts[:-1], np.append(cuts[-1], asked[-1])), strict=True):
            if (
                (np.diff(each) < 0).any()
                or each[0] < np.float32(axis.low)
                or each[-1] > np.float32(axis.high)
            ):
                raise ValueError("Expected cuts in order, and then money's ceiling, within the bounds.")
        return Cube(axes, cuts, float(asked[-1]))

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(len(c) + 1 for c in self.cuts)

    @property
    def size(self) -> int:
        return int(np.prod(self.shape))

    def cell(self, values: Floats) -> Ints:
        """Each customer's cell, int64 [n], from numbers [n, axes]; the one after the last for who lacks a number."""
        whole = ~np.isnan(values).any(axis=1)
        single = values[whole].astype(np.float32)
        levels = tuple(np.searchsorted(c, single[:, i], side="left") for i, c in enumerate(self.cuts))
        cells = np.full(len(values), self.size)
        cells[whole] = np.ravel_multi_index(levels, self.shape)
        return cells

    def level(self, cell: int) -> tuple[int, ...]:
        """Of each axis, from 0."""
        return tuple(int(i) for i in np.unravel_index(cell, self.shape))

    def words(self) -> list[list[str]]:
        """Each axis' levels in words."""
        return [a.words(c.astype(np.float64)) for a, c in zip(self.axes, self.cuts, strict=True)]

    def valued(self) -> ValuedCells:
        """Every cell's money, up to the ceiling."""
        ends = np.minimum(self.axes[-1].ends(self.cuts[-1].astype(np.float64)), self.ceiling)
        money = np.unravel_index(np.arange(self.size), self.shape)[-1]
        return ValuedCells(((ends[1:] + ends[:-1]) / 2)[money], ((ends[1:] - ends[:-1]) / 2)[money])
