"""All rounds of a learner in one process: exact sums over everyone, and the noise that secure sums would have."""

from collections.abc import Mapping
from math import sqrt
from typing import Any, Protocol

import numpy as np

from sfumato.common import fixed_point
from sfumato.common.analyses.analysis import NoisySum
from sfumato.common.contributions import Contributions
from sfumato.privacy import accounting
from sfumato.privacy.clipping import BoundedSum


class Rounds(Protocol):
    """What an analysis and a learner have in common."""

    @property
    def shares(self) -> tuple[float, ...]: ...
    def max_norm(self, round_: int) -> float: ...
    def ask(self, round_: int, totals: list[NoisySum]) -> Any: ...
    def contribute(self, round_: int, columns: Mapping[str, Any], asked: Any) -> Contributions: ...


def rounds_of(
    learner: Rounds,
    frame: Mapping[str, Any],
    epsilon: float,
    seed: int,
    branches: int = 16,
    *,
    share: float = 1.0,
) -> list[NoisySum]:
    """The totals of all rounds. `share` is what is left of the budget (as mu squared) after earlier sums.

    delta is n^-1.1. Each of N branches adds noise of variance V / (N - 1), as where one of them may collude.
    """
    n = len(next(iter(frame.values())))
    whole = accounting.calibrate_noise_multiplier(epsilon, float(n) ** -1.1, 1.0, 1)
    rng, totals = np.random.default_rng(seed), list[NoisySum]()
    for round_, part in enumerate(learner.shares):
        norm = learner.max_norm(round_)
        contributions = learner.contribute(round_, frame, learner.ask(round_, totals))
        exact = fixed_point.decode(BoundedSum.of(contributions, norm).total, norm)
        std = norm * whole / sqrt(share * part) * sqrt(branches / (branches - 1))
        totals.append(NoisySum(exact + std * rng.standard_normal(exact.size), std))
    return totals
