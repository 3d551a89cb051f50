"""RFM: who bought lately, often, and for much?

Question       Three numbers a customer: recency (small is good), frequency, money; 3 or 5 levels of each.
Contribution   Round 0: a coarse and a fine public bin of each number, l2 norm sqrt(6). Round 1: one cell of the
               cube, there the customer and how far the money lies from the middle of its level; norm 1.
Reading        Levels by quantile cuts from round 0. Each cell's and each named group's customers and money, with
               their shares and the mean; intervals from the exact covariance (see valued_cells).

Money is counted up to a ceiling, a quantile of round 0 that the answer states: a customer's part of a sum must be
bounded, and the truth that intervals aim at is money up to this ceiling. A heavy tail costs the top level alone.
Nothing further is known of the cells (no two count the same customers), so least squares has nothing to add.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import sqrt
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from sfumato.common.analyses.analysis import Analysis, NoisySum
from sfumato.common.analyses.estimates import LEVEL, REACH
from sfumato.common.analyses.levels import Axis, Cube, binned, starts
from sfumato.common.analyses.parts import Unit, part
from sfumato.common.analyses.rfm_groups import GROUPS, NEVER, group_of
from sfumato.common.analyses.valued_cells import ValuedTotal
from sfumato.common.contract import Contract
from sfumato.common.contributions import Contributions, Rows
from sfumato.common.errors import BadInput
from sfumato.common.learners.quantiles import Interval

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Asked = npt.NDArray[np.float32]

MEASURES: dict[str, Unit] = {
    "customers": "customers",
    "share": "share",
    "value": "amount",
    "value_share": "share",
    "mean": "amount",
}
WHOLE: dict[str, Unit] = {"customers": "customers", "value": "amount", "mean": "amount", "above": "customers"}


class Question(BaseModel):
    """Three columns of the customers table or roll-ups, how many levels of each, up to which quantile money counts,
    and the first round's share of the budget."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    recency: str
    frequency: str
    money: str
    cells: Literal[3, 5] = 3
    ceiling: float = Field(default=0.98, gt=0.5, lt=1)
    cuts_share: float = Field(default=0.4, gt=0, lt=1)


def build(question: Question, contract: Contract) -> Analysis:
    """Raises BadInput on a column that is no bounded number, and one that is named twice."""
    names = (question.recency, question.frequency, question.money)
    if len(set(names)) < len(names):
        raise BadInput("question: recency, frequency and money are three different columns")
    axes = (Axis.of(contract, n) for n in names[:2])
    return Rfm((*axes, Axis.of(contract, question.money, amount=True)), question)


@dataclass(frozen=True)
class Rfm:
    """Axes are recency, frequency and money; a cell is its level of each, from 0, money fastest."""

    axes: tuple[Axis, ...]
    question: Question

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(a.name for a in self.axes)

    @property
    def shares(self) -> tuple[float, ...]:
        return (self.question.cuts_share, 1 - self.question.cuts_share)

    @property
    def size(self) -> int:
        """How many cells the cube has."""
        return self.question.cells**3

    @cached_property
    def _starts(self) -> Ints:
        return starts(self.axes)

    def max_norm(self, round_: int) -> float:
        return sqrt(2 * len(self.axes)) if round_ == 0 else 1.0

    def length(self, round_: int) -> int:
        return int(self._starts[-1]) if round_ == 0 else 2 * self.size + 2

    # --- one customer ----------------------------------------------------------------------------------

    def contribute(self, round_: int, columns: Mapping[str, Any], asked: Asked | None) -> Contributions:
        values = np.stack([a.values(columns[a.name]) for a in self.axes], axis=1)
        if round_ == 0:
            if asked is not None:
                raise ValueError("The first round is asked without numbers.")
            return binned(self.axes, values)
        cube = Cube.of(self.axes, self.question.cells, asked)
        return Rows(cube.valued().rows(cube.cell(values), values[:, -1]))

    # --- the coordinator -------------------------------------------------------------------------------

    def ask(self, round_: int, totals: list[NoisySum]) -> Asked | None:
        """[recency's cuts | frequency's | money's | ceiling]."""
        if round_ == 0:
            return None
        cuts = np.concatenate([self._cuts(totals[0], i) for i in range(len(self.axes))])
        money = self.axes[-1]
        top = money.rounded(self._quantile(totals[0], len(self.axes) - 1, self.question.ceiling).value)
        return np.append(cuts, max(top, cuts[-1])).astype(np.float32)

    def _cuts(self, total: NoisySum, axis: int) -> Floats:
        sides = self.question.cells
        values = [self._quantile(total, axis, i / sides).value for i in range(1, sides)]
        return np.maximum.accumulate([self.axes[axis].rounded(v) for v in values])

    def _quantile(self, total: NoisySum, axis: int, at: float) -> Interval:
        counts = total.values[self._starts[axis] : self._starts[axis + 1]]
        return self.axes[axis].grid.read(counts, total.std, at, REACH)

    # --- reading ---------------------------------------------------------------------------------------

    def read(self, totals: list[NoisySum]) -> dict[str, Any]:
        """Parts: groups; cells, without those that the cuts leave empty; cuts; money as a whole. And "ceiling"."""
        cube = Cube.of(self.axes, self.question.cells, self.ask(1, totals))
        found = ValuedTotal(cube.valued(), totals[1])
        everyone = range(self.size)
        whole = found.measures(everyone) | {"above": found.above()}
        return {
            "level": LEVEL,
            "customers": found.count([*everyone, len(everyone)]),
            "ceiling": cube.ceiling,
            "notes": list(self._notes(cube)),
            "parts": [
                part("groups", ["group"], MEASURES, self._groups(found)),
                part("cells", self.columns, MEASURES, self._cells(cube, found)),
                part("cuts", ["column", "cut"], {"cut": "number"}, self._cut_rows(totals[0], cube)),
                part("money", [], WHOLE, [{"of": [], **{m: whole[m] for m in WHOLE}}]),
            ],
        }

    def scores(self, cell: int) -> tuple[int, int, int]:
        """From 1 to `cells`, the best: fewest days, most purchases, most money."""
        days, times, money = (int(x) for x in np.unravel_index(cell, (self.question.cells,) * 3))
        return self.question.cells - days, times + 1, money + 1

    def group(self, cell: int) -> str:
        """The name of a cell's group (see rfm_groups)."""
        return group_of(*self.scores(cell), levels=self.question.cells)

    def _groups(self, found: ValuedTotal) -> Iterator[dict[str, Any]]:
        named = [self.group(cell) for cell in range(self.size)]
        for group, bought in GROUPS.items():
            cells = [cell for cell, name in enumerate(named) if name == group]
            yield {"of": [group], **found.measures(cells), "bought": bought}
        never = [len(named)]
        yield {
            "of": [NEVER],
            "customers": found.count(never),
            "share": found.share(never),
            "bought": "nothing",
        }

    def _cells(self, cube: Cube, found: ValuedTotal) -> Iterator[dict[str, Any]]:
        """Best scores first."""
        words = cube.words()
        for cell in sorted(range(self.size), key=self.scores, reverse=True):
            of = [w[i] for w, i in zip(words, cube.level(cell), strict=True)]
            if all(of):
                score = "-".join(map(str, self.scores(cell)))
                yield {"of": of, **found.measures([cell]), "scores": score, "name": self.group(cell)}

    def _cut_rows(self, total: NoisySum, cube: Cube) -> Iterator[dict[str, Any]]:
        """The cut that was made, and between what the exact quantile lies."""
        for i, (axis, cuts) in enumerate(zip(self.axes, cube.cuts, strict=True)):
            for k, cut in enumerate(cuts.tolist(), 1):
                exact = self._quantile(total, i, k / self.question.cells)
                low, high = exact.low, exact.high
                if axis.integer:
                    low, high = float(np.ceil(low)), float(np.floor(high))
                ends = {"low": min(low, cut), "high": max(high, cut)}
                yield {"of": [axis.name, f"{k} of {len(cuts)}"], "cut": {"value": cut, **ends}}

    def _notes(self, cube: Cube) -> Iterator[str]:
        money = self.axes[-1]
        yield f"{money.name} counts up to {cube.ceiling:g} a customer, and is never below zero."
        if money.turned:
            yield f"{money.name} is negative in the contract, and shown without its sign."
        for axis, words in zip(self.axes, cube.words(), strict=True):
            if not all(words):
                yield f"{axis.name} has fewer levels: too many customers have one and the same value."
