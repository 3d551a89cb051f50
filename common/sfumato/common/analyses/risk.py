"""Risk: which loss is to be expected by grade, what became of it, and does the score still part good from bad?

Question       A score: a column with cut points, or a finished scorecard whose points make the grades. What is bad,
               what is owed, the loss given default, and if they are known each grade's default rate and share.
Contribution   A customer stands in one grade's cell and adds there one to the count, and around their middles bad or
               not, what is owed, and what a bad one owed (learners.centred): an l2 norm of 1. Where the exposure's
               bound is left to the data, a cell of a histogram of sizes comes first (learners.winsor).
Reading        By grade customers, bad rate, exposure, expected loss PD x LGD x EAD and observed loss LGD x what the
               bad owed; Gini and KS of the grades; the stability index against the shares foretold.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from math import sqrt
from typing import Any

import numpy as np
import numpy.typing as npt

from sfumato.common.analyses.analysis import Analysis, NoisySum
from sfumato.common.analyses.estimates import LEVEL, REACH, independent_copies, number
from sfumato.common.analyses.latest import Measure
from sfumato.common.analyses.parts import Unit, part
from sfumato.common.analyses.risk_question import Question, check_grades
from sfumato.common.analyses.scored import Score
from sfumato.common.contract import Contract
from sfumato.common.contributions import Contributions
from sfumato.common.errors import BadInput
from sfumato.common.learners.centred import CentredCells
from sfumato.common.learners.grade_metrics import GradeCounts, kolmogorov_smirnov
from sfumato.common.learners.losses import Losses, share, total
from sfumato.common.learners.scorecard import FEWEST, information
from sfumato.common.learners.uplift import Cell
from sfumato.common.learners.winsor import Sizes

__all__ = ["Question", "Risk", "build"]

Asked = npt.NDArray[np.float32] | None


def build(question: Question, contract: Contract) -> Analysis:
    """Raises BadInput on columns, cut points and lists that do not fit, and on a model that is no scorecard."""
    check_grades(question)
    score = Score.of(contract, question.known_model, question.score, question.held_out)
    bad = question.bad or (contract.label.name if contract.label else None)
    if bad is None:
        raise BadInput(
            f"question.bad: contract {contract.name!r} has no label",
            hint="Name the column that says who is bad.",
        )
    what = (
        Measure.of(contract, bad, "question.bad"),
        Measure.of(contract, question.exposure, "question.exposure"),
    )
    if not what[0].happens or what[1].happens or what[1].low < 0:
        raise BadInput(
            "question: bad is what happens or not, exposure a number that is never negative",
            hint="Give the exposure a lower bound of 0 in the contract.",
        )
    if question.exposure_bound is not None and not 0 < question.exposure_bound <= what[1].high:
        raise BadInput("question.exposure_bound: must lie above 0 and within the contract's bounds")
    return Risk(question, score, *what)


@dataclass(frozen=True)
class Risk:
    """Counts and sums by grade."""

    question: Question
    score: Score
    bad: Measure
    exposure: Measure

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self.score.columns, self.bad.name, self.exposure.name)))

    @property
    def shares(self) -> tuple[float, ...]:
        share = self.question.bound_share
        return (1.0,) if self.question.exposure_bound is not None else (share, 1 - share)

    @cached_property
    def _sizes(self) -> Sizes:
        return Sizes((self.exposure.high,))

    @cached_property
    def _cells(self) -> CentredCells:
        return CentredCells(len(self.question.cuts) + 1, 3)

    def max_norm(self, round_: int) -> float:
        return 1.0

    def length(self, round_: int) -> int:
        return self._sizes.length if round_ < len(self.shares) - 1 else self._cells.length

    def ask(self, round_: int, totals: list[NoisySum]) -> Asked:
        """The exposure's bound, where it was sought."""
        if round_ == 0:
            return None
        noise = totals[0].std * sqrt(self.shares[0] / self.shares[1])
        return self._sizes.bounds(totals[0], self._cells.cells * self._cells.sum_noise(noise))

    def contribute(self, round_: int, columns: Mapping[str, Any], asked: Asked) -> Contributions:
        """Raises ValueError on an `asked` of another form."""
        score, bad, owed = self.score.values(columns), self.bad.values(columns), self.exposure.values(columns)
        inside = ~np.isnan(score) & ~np.isnan(bad) & ~np.isnan(owed)
        if round_ < len(self.shares) - 1:
            if asked is not None:
                raise ValueError("Sizes are asked without numbers.")
            return self._sizes.contribute(np.where(inside, owed, np.nan)[:, None])
        y = np.minimum(np.where(inside, owed, 0.0) / self._bound(asked), 1.0)
        risen = np.where(inside, bad, 0.0)
        cell = np.searchsorted(np.array(self.question.cuts), np.where(inside, score, 0.0), side="right")
        return self._cells.contribute(np.where(inside, cell, -1), np.stack([risen, y, risen * y], axis=1))

    def _bound(self, asked: Asked) -> float:
        stated = self.question.exposure_bound
        if (stated is None) != (asked is not None):
            raise ValueError("Expected a bound where the question states none.")
        if stated is not None:
            return stated
        assert asked is not None
        if asked.shape != (1,) or not 0 < asked[0] <= self.exposure.high:
            raise ValueError("Expected one bound, within the contract's.")
        return float(asked[0])

    @cached_property
    def _names(self) -> tuple[str, ...]:
        cuts = [f"{c:g}" for c in self.question.cuts]
        between = (f"{a} to under {b}" for a, b in pairwise(cuts))
        return self.question.names or (f"under {cuts[0]}", *between, f"{cuts[-1]} or more")

    def read(self, totals: list[NoisySum]) -> dict[str, Any]:
        """Parts: the grades, the riskiest first; the portfolio."""
        asked = self.ask(len(totals) - 1, totals[:-1])
        bound = self._bound(asked)
        cells, names = self._cells.read(totals[-1]), list(self._names)
        pd: list[float | None] = [*self.question.pd] or [None] * len(cells)
        losses = [Losses(c, p, self.question.lgd, bound) for c, p in zip(cells, pd, strict=True)]
        everybody = sum(c.n for c in cells), sum(c.n_var for c in cells)
        rows = [
            {"of": [name], "share": share(c, *everybody), **loss.row()}
            for name, c, loss in zip(names, cells, losses, strict=True)
        ]
        copies = [self._risky_first(self._cells.read(c)) for c in independent_copies(totals[-1])]
        whole = total(losses) | {
            "gini": GradeCounts.of(self._risky_first(cells)).gini(),
            "ks": kolmogorov_smirnov(*map(GradeCounts.of, copies)),
            **self._stability(cells),
        }
        units: dict[str, Unit] = {
            "customers": "customers",
            "share": "share",
            "bad rate": "share",
            "exposure": "amount",
            "expected loss": "amount",
            "observed loss": "amount",
        }
        indices: dict[str, Unit] = {"gini": "number", "ks": "number", "stability index": "number"}
        customers = whole["customers"]
        return {
            "level": LEVEL,
            "customers": customers,
            "notes": self._notes(bound, totals),
            "parts": [
                part("grades", ["grade"], units, self._risky_first(rows)),
                part("portfolio", [], units | indices, [{"of": []} | whole]),
            ],
        }

    def _risky_first(self, of_grades: list[Any]) -> list[Any]:
        return of_grades if self.question.safer == "high" else of_grades[::-1]

    def _stability(self, cells: list[Cell]) -> dict[str, Any]:
        if not self.question.reference:
            return {}
        counts = np.maximum([c.n for c in cells], FEWEST)
        stds = np.full(len(cells), sqrt(cells[0].n_var)) / counts.sum()
        then = np.array(self.question.reference) / sum(self.question.reference)
        found = information(counts / counts.sum(), then, stds, np.zeros(len(cells)))
        return {"stability index": number(found.value, found.low, found.high)}

    def _notes(self, bound: float, totals: list[NoisySum]) -> list[str]:
        pd = "foretold" if self.question.pd else "observed"
        said = [f"expected loss: {pd} default rate x {self.question.lgd:g} x exposure."]
        if bound < self.exposure.high:
            said.append(f"{self.exposure.name}: what is above {bound:g} counts as {bound:g}.")
        if len(totals) > 1:
            ((above, std),) = self._sizes.above(totals[0], np.array([bound], np.float32))
            low, high = (max(above + s * REACH * std, 0.0) for s in (-1, 1))
            said.append(f"about {max(above, 0):.0f} customers ({low:.0f} to {high:.0f}) owe more than that.")
        return said
