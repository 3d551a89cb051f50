"""What the coordinator makes of the mean of a round's nets: post-processing, so it costs nothing.

FedAvg (McMahan et al. 2017) takes the mean itself, and so does FedProx (Li et al. 2020), whose pull is in the
branches' steps. FedAdam (Reddi et al. 2021, algorithm 2) takes an adaptive step towards it. The arithmetic is that of
Flower's strategies of these names, against which it is tested; theirs can be called only from inside their grid loop.
"""

from typing import Protocol

import numpy as np

from sfumato.common.job import Training
from sfumato.server.conversation import Weights


class Strategy(Protocol):
    def step(self, round_: int, weights: Weights, mean: Weights) -> Weights:
        """From the weights that round `round_` (from 1) sent out, and the mean of what came back, to the next."""


class Averaging:
    """The mean."""

    def step(self, round_: int, weights: Weights, mean: Weights) -> Weights:
        return mean


class FedAdam:
    """Adam on the mean's way from the weights. The moments are kept in float64."""

    def __init__(self, training: Training) -> None:
        self._eta, self._tau = training.server_learning_rate, training.server_tau
        self._betas = training.server_beta_1, training.server_beta_2
        self._first = self._second = np.zeros(0)

    def step(self, round_: int, weights: Weights, mean: Weights) -> Weights:
        one, two = self._betas
        delta = mean.astype(np.float64) - weights
        if not self._first.size:
            self._first = self._second = np.zeros(delta.size)
        self._first = one * self._first + (1 - one) * delta
        self._second = two * self._second + (1 - two) * delta**2
        power = round_ + 1.0  # Flower corrects the bias as if one round had gone before
        eta = self._eta * np.sqrt(1 - two**power) / (1 - one**power)
        return np.asarray(weights + eta * self._first / (np.sqrt(self._second) + self._tau), dtype=np.float32)


def strategy(training: Training) -> Strategy:
    """The one that the job names."""
    return FedAdam(training) if training.strategy == "fedadam" else Averaging()
