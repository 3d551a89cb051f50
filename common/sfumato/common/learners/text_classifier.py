"""A logistic regression over hashed texts, trained by a few secure sums.

The first sum has the mean text of those who are trained on, and how many of them there are of either label. Each
further one is the logistic gradient over all of them at the weights so far; a text is 1 long and a residual at most
1, so nobody's gradient is longer than 1 and nothing is clipped. The coordinator descends with momentum, about the
mean text: a linear change of coordinates, which costs nothing and takes away the one direction in which all texts
agree and which would hold back the step.

How noise reaches a score: a text is 1 long, so each sum's noise moves it by as much as it moves one bucket, however
many buckets there are. The steps together are as long as puts noise of about NOISE on a text's log-odds (measured
on waimai_10k alone; see docs/analyses/sentiment.md), and so depend on how many texts there are and what may be spent.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import expit

from sfumato.common.analyses.analysis import NoisySum
from sfumato.common.contributions import Rows

BIAS = 0.2  # of a customer's vector: for being counted; the text has the rest
TEXT = sqrt(1 - BIAS**2)
FIRST_SHARE = 0.15  # of the training's budget (as mu squared): for the first sum
NOISE = 0.7
LONGEST = 1000.0  # step
MOMENTUM = 0.5
INTERCEPT = 4.0  # its step: the log-odds' curvature is 1/4

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class TextModel:
    """float64 weights [buckets], and the log-odds of a text without any bucket."""

    weights: Floats
    intercept: float

    @staticmethod
    def of(flat: npt.NDArray[np.float32] | None, buckets: int) -> "TextModel":
        """From `flat`. Raises ValueError on another length or a number that is not finite."""
        if flat is None or flat.shape != (buckets + 1,) or not np.isfinite(flat).all():
            raise ValueError(f"Expected {buckets + 1} weights.")
        return TextModel(flat[:-1].astype(np.float64), float(flat[-1]))

    def flat(self) -> npt.NDArray[np.float32]:
        """float32 [buckets + 1], the intercept last."""
        return np.append(self.weights, self.intercept).astype(np.float32)

    def log_odds(self, texts: Any) -> Floats:
        """Of being positive, float64 [n], from `text.hashed`."""
        return np.asarray(texts @ self.weights + self.intercept)


@dataclass(frozen=True)
class TextTraining:
    """Rounds from 0: the mean, then so many `steps`."""

    buckets: int
    steps: int

    @property
    def shares(self) -> tuple[float, ...]:
        """Of the training's budget, one a round."""
        return (FIRST_SHARE, *[(1 - FIRST_SHARE) / self.steps] * self.steps)

    def length(self, round_: int) -> int:
        return self.buckets + (1 if round_ else 2)

    def ask(self, round_: int, totals: Sequence[NoisySum]) -> npt.NDArray[np.float32] | None:
        """The weights at which the next gradient is taken; None in the first round."""
        return self.model(totals[:round_]).flat() if round_ else None

    def contribute(
        self, round_: int, texts: Any, positive: npt.NDArray[np.bool_], asked: npt.NDArray[np.float32] | None
    ) -> Rows:
        """[text | counted] of norm 1, or the residual times that. Raises ValueError on an `asked` of another form."""
        if round_ == 0:
            if asked is not None:
                raise ValueError("The mean is asked without numbers.")
            counted = np.stack([~positive, positive], axis=1)
            return Rows(np.hstack([TEXT * texts.toarray(), BIAS * counted]))
        odds = TextModel.of(asked, self.buckets).log_odds(texts)
        residual = positive - expit(odds)
        rows = np.empty((texts.shape[0], self.buckets + 1))
        rows[:, :-1] = TEXT * texts.toarray()
        rows[:, -1] = BIAS
        rows *= residual[:, None]
        return Rows(rows)

    def model(self, totals: Sequence[NoisySum]) -> TextModel:
        """After the first sum and the steps so far, at least the first sum."""
        first, steps = totals[0], totals[1:]
        negative, positive = np.maximum(first.values[-2:] / BIAS, 1.0)
        customers = negative + positive
        # A bucket below three standard deviations is as good as empty: its noise would be taken for a mean.
        known = first.values[:-2] > 3 * first.std
        mean = np.where(known, first.values[:-2], 0.0) / (TEXT * customers)
        weights, pull = np.zeros(self.buckets), np.zeros(self.buckets)
        intercept = float(np.log(positive / negative))
        for total in steps:
            residuals = total.values[-1] / BIAS
            slope = (total.values[:-1] / TEXT - mean * residuals) / customers
            length = NOISE * customers * (1 - MOMENTUM) / (sqrt(self.steps) * total.std)
            pull = MOMENTUM * pull + min(length, LONGEST) * slope
            weights = weights + pull
            intercept += INTERCEPT * residuals / customers
        return TextModel(weights, intercept - float(mean @ weights))
