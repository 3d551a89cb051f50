"""Customer lifetime value: what customers were worth, who is still there, and what they will be worth.

Question       Dates (and amounts) of purchases in another table; how many months ahead, at which discount.
Contribution   Round 0: one cell of a coarse grid of times, and one of values. Rounds 1 to 3: the scores of BG/NBD and
               of gamma-gamma where the coordinator asks, each no longer than 1 in its own unit. Round 4: in the
               customer's group of frequency and recency their P(alive), expected purchases and values, each over a
               ceiling; and the cell of P(alive).
Reading        Maximum likelihood by noisy sums (analyses.likelihood_sums), and each group's sums at its parameters.
               Intervals hold what the pooled fit would say: noise of the sums, and noise of the parameters, which
               moves the sums as it moves those of the stand-ins.

A ceiling is where only some customers are expected above: as many as the noise is anyway. The answer says it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import sqrt
from typing import Annotated, Any, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from sfumato.common.analyses.analysis import Analysis, NoisySum
from sfumato.common.analyses.clv_answer import Answer
from sfumato.common.analyses.clv_fits import VALUES, fitted
from sfumato.common.analyses.clv_groups import LEVEL_SIZE, TIMES, Groups, Level, Sums
from sfumato.common.analyses.likelihood_sums import Fit, Scores
from sfumato.common.analyses.purchase_grids import TimesGrid, ValuesGrid
from sfumato.common.analyses.purchases import Purchases, Source
from sfumato.common.contract import Contract
from sfumato.common.contributions import Cells, Contributions, Rows
from sfumato.common.learners.bgnbd import BgNbd, BgNbdLikelihood, GammaGamma, GammaGammaLikelihood
from sfumato.common.learners.lifetime import Histories, Lifetime

SHARES = (0.15, 0.08, 0.12, 0.4, 0.25)
LAST = len(SHARES) - 1  # the groups' round; between it and the first are the scores'

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Asked = npt.NDArray[np.float32]


class Question(Source):
    """Where purchases are found, how many `months` ahead at a yearly `discount`, and the lower ends of the groups by
    repeat purchases and by days since the last one."""

    months: int = Field(default=12, ge=1, le=60)
    discount: float = Field(default=0.1, ge=0, le=1)
    frequency: tuple[Annotated[int, Field(ge=1)], ...] = Field(default=(1, 2, 4, 8, 16), max_length=8)
    recency: tuple[Annotated[int, Field(ge=1)], ...] = Field(default=(31, 91, 181), max_length=6)

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        for name in ("frequency", "recency"):
            ends = getattr(self, name)
            if list(ends) != sorted(set(ends)):
                raise ValueError(f"{name} must rise")
        if self.recency and self.recency[-1] > self.history:
            raise ValueError("recency goes beyond the history")
        return self


def build(question: Question, contract: Contract) -> Analysis:
    """Raises BadInput on columns that are no purchases, and a contract without as_of."""
    return Clv(Purchases.of(question, contract), question)


@dataclass(frozen=True)
class Clv:
    """See the module."""

    purchases: Purchases
    question: Question
    shares: tuple[float, ...] = SHARES

    @property
    def columns(self) -> tuple[str, ...]:
        return self.purchases.columns

    @cached_property
    def times(self) -> TimesGrid:
        return TimesGrid(float(self.question.history))

    @cached_property
    def values(self) -> ValuesGrid | None:
        return ValuesGrid(self.purchases.most) if self.purchases.amounts else None

    @cached_property
    def groups(self) -> Groups:
        return Groups(self.question.frequency, self.question.recency, self.values is not None)

    @property
    def _weights(self) -> tuple[float, float]:
        """Of the two blocks of scores."""
        return (sqrt(0.6), sqrt(0.4)) if self.values else (1.0, 0.0)

    def max_norm(self, round_: int) -> float:
        if round_ == 0:
            return sqrt(2) if self.values else 1.0
        return self.groups.norm if round_ == LAST else 1.0

    def length(self, round_: int) -> int:
        if round_ == 0:
            return self.times.size + (self.values.size if self.values else 0)
        return self.groups.length if round_ == LAST else TIMES + (VALUES if self.values else 0)

    # --- one customer ----------------------------------------------------------------------------------

    def contribute(self, round_: int, columns: Mapping[str, Any], asked: Asked | None) -> Contributions:
        """Customers who never bought add nothing."""
        customers = len(next(iter(columns.values())))
        who, histories = self.purchases.read(columns)
        if round_ == 0:
            if asked is not None:
                raise ValueError("The first round is asked without numbers.")
            return self._counted(customers, who, histories)
        if asked is None:
            raise ValueError("Expected numbers.")
        rows = np.zeros((customers, self.length(round_)))
        rows[who] = self._grouped(histories, asked) if round_ == LAST else self._scored(histories, asked)
        return Rows(rows)

    def _counted(self, customers: int, who: Ints, h: Histories) -> Cells:
        cells = np.full((customers, 1 + (self.values is not None)), -1)
        cells[who, 0] = self.times.cells(h.times)
        if self.values:
            cells[who[h.repeats], 1] = self.times.size + self.values.cells(h.values)
        return Cells(cells, np.ones(cells.shape[1]), self.length(0))

    def _scored(self, h: Histories, asked: Asked) -> Floats:
        cut = TIMES + TIMES**2 + 1
        rows = np.zeros((len(h), self.length(1)))
        for_times, for_values = self._weights
        rows[:, :TIMES] = for_times * Scores.parse(asked[:cut], TIMES).rows(BgNbdLikelihood(), h.times)
        if self.values:
            scores = Scores.parse(asked[cut:], VALUES)
            rows[h.repeats, TIMES:] = for_values * scores.rows(GammaGammaLikelihood(), h.values)
        elif len(asked) != cut:
            raise ValueError("Expected no numbers for values.")
        return rows

    def _grouped(self, h: Histories, asked: Asked) -> Floats:
        size, models = self.length(1), (BgNbdLikelihood(), GammaGammaLikelihood())
        if asked.shape != (self._last_asked,) or not np.isfinite(asked).all():
            raise ValueError(f"Expected {self._last_asked} finite numbers.")
        u, ceilings, level = np.split(asked.astype(np.float64), [size, size + self.groups.ceilings])
        if (ceilings <= 0).any():
            raise ValueError("Expected ceilings above 0.")
        low, high = (np.concatenate([getattr(m, end) for m in models])[:size] for end in ("low", "high"))
        u = np.clip(u, low, high)
        outlook = self.lifetime(u).outlook(h)
        rest = Level.parse(level).rest(u[:TIMES], h.times, outlook.purchases)
        return self.groups.rows(h, outlook, ceilings, rest)

    @property
    def _last_asked(self) -> int:
        return self.length(1) + self.groups.ceilings + LEVEL_SIZE

    def lifetime(self, u: Floats) -> Lifetime:
        """The models with these parameters."""
        values = GammaGamma.of(u[TIMES:]) if self.values else None
        return Lifetime(BgNbd.of(u[:TIMES]), values, self.question.months, self.question.discount)

    # --- the coordinator -------------------------------------------------------------------------------

    def ask(self, round_: int, totals: list[NoisySum]) -> Asked | None:
        """Rounds 1 to 3: where scores are asked, for both models. Round 4: [parameters | ceilings | level]."""
        if round_ == 0:
            return None
        fits = self.fits(totals)
        if round_ < LAST:
            return np.concatenate([fit.next_scores().flat() for fit in fits])
        noise = self._noise(totals[0], LAST) * self.groups.norm
        sums = Sums(self.groups, self.lifetime, fits)
        return np.concatenate([sums.u, sums.ceilings_of(noise), sums.level(noise).flat]).astype(np.float32)

    def _noise(self, first: NoisySum, round_: int) -> float:
        """In a round to come, over a vector's length."""
        return first.std / self.max_norm(0) * sqrt(SHARES[0] / SHARES[round_])

    def fits(self, totals: list[NoisySum]) -> list[Fit]:
        """Of the times and, where there are amounts, of the values: from the rounds so far."""
        noise = self._noise(totals[0], LAST - 1)
        return fitted(self.times, self.values, totals[:LAST], self._weights, noise)

    # --- reading ---------------------------------------------------------------------------------------

    def read(self, totals: list[NoisySum]) -> dict[str, Any]:
        """See clv_answer: parameters, a new customer, all customers, groups, P(alive)."""
        asked, sums = self.ask(LAST, totals), Sums(self.groups, self.lifetime, self.fits(totals))
        assert asked is not None
        _, ceilings, level = np.split(asked.astype(np.float64), [self.length(1), -LEVEL_SIZE])
        return Answer(sums, ceilings, Level.parse(level), totals[LAST]).answer()

    def saved(
        self, totals: list[NoisySum]
    ) -> tuple[Mapping[str, npt.NDArray[np.generic]], Mapping[str, Any]]:
        """Both models' parameters (r, alpha, a, b, p, q, v; none where noise drowned them), and the question."""
        fits = self.fits(totals)
        numbers = self.lifetime(np.concatenate([fit.top for fit in fits])).numbers
        if any(fit.drowned for fit in fits):
            numbers = numbers[:0]
        return {"parameters": numbers}, {"question": self.question.model_dump(mode="json")}
