"""A churn net's rounds: by local DP-SGD and averaging, or one secure sum of clipped gradients a step.

The average weighs a branch by what the job declares, else by its noisy, charged size; `strategies` goes on from it.
By secure sums the coordinator takes the steps itself (Adam or SGD on the noisy mean): post-processing.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from sfumato.common import codec, messages
from sfumato.common.analyses import score_histogram
from sfumato.common.analyses.grouped_scores import GroupedScores
from sfumato.common.job import ChurnNetJob, Training
from sfumato.common.learners import churn_net
from sfumato.common.learners.bins import Schema
from sfumato.common.learners.models import Tensors
from sfumato.privacy.adaptive_clipping import AdaptiveBound
from sfumato.privacy.plan import Ask
from sfumato.server import strategies
from sfumato.server.conversation import Weights
from sfumato.server.rounds import Rounds
from sfumato.server.slots import Slots


@dataclass(frozen=True)
class Trained:
    """The model's tensors and parameters (see learners.models), the noisy score-by-label counts of the held-out
    customers with the variance of their noise, and the same read for each declared group."""

    tensors: Tensors
    parameters: Mapping[str, Any]
    histogram: npt.NDArray[np.float64]
    noise_variance: float
    customers: float  # trained on; noisy
    schema: Schema | None = None
    fairness: Mapping[str, Any] = field(default_factory=dict)


def _of_net(
    job: ChurnNetJob,
    weights: Weights,
    histogram: npt.NDArray[np.float64],
    noise_variance: float,
    customers: float,
    fairness: Mapping[str, Any] | None = None,
) -> Trained:
    parameters = {"model": job.model.model_dump(mode="json")}
    return Trained(
        {"weights": weights}, parameters, histogram, noise_variance, customers, fairness=fairness or {}
    )


def train(rounds: Rounds, job: ChurnNetJob) -> Trained:
    """Raises JobFailed."""
    if job.privacy.mode == "secure-sum":
        return _by_secure_sums(rounds, job)
    return _by_federated_averaging(rounds, job)


def _by_secure_sums(rounds: Rounds, job: ChurnNetJob) -> Trained:
    net = churn_net.build(rounds.signed.contract, job.model, job.training.seed)
    weights = churn_net.flatten(net)
    customers = max(1.0, float(rounds.total(0, 1).values[0]))
    descent, clip = Descent(weights, job.training), Clipping(job.training, customers)
    for round_ in range(1, job.training.rounds + 1):
        gradient = clip.gradient(rounds, round_, weights)
        weights = descent.step(gradient)
        rounds.report_progress("round", round_, job.training.rounds)
    grouped = GroupedScores.of(rounds.signed.contract, job.evaluation.groups, job.evaluation.bins)
    scores = rounds.total(job.training.rounds + 1, grouped.length, weights)
    return _of_net(job, weights, grouped.whole(scores), scores.std**2, customers, grouped.read(scores))


class Clipping:
    """Asks a round's gradient, within the fixed bound or one that follows the rounds (privacy.adaptive_clipping)."""

    def __init__(self, training: Training, customers: float) -> None:
        self._training = training
        self._expected = training.sample_rate * customers  # in a round's sample; noisy
        self.bound: AdaptiveBound | None = None
        if training.clipping == "adaptive":
            self.bound = AdaptiveBound.near(training.max_grad_norm, training.clipping_share)

    def gradient(self, rounds: Rounds, round_: int, weights: Weights) -> npt.NDArray[np.float64]:
        """The noisy mean gradient at these weights. Raises JobFailed."""
        bound = [] if self.bound is None else [np.float32(self.bound.bound)]
        asked = np.append(weights, bound).astype(np.float32)
        return self.read(rounds.total(round_, asked.size, asked).values)

    def read(self, total: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """The mean gradient of a round's total [W], or adaptive [W + 1]: then the bound moves on."""
        if self.bound is None:
            return total / self._expected
        bound, training = self.bound, self._training
        within = (total[-1] / bound.sign / self._expected + 1) / 2
        self.bound = bound.after(within, quantile=training.clipping_quantile, rate=training.clipping_rate)
        return total[:-1] * (bound.bound / bound.gradient / self._expected)


class Descent:
    """The optimiser at the coordinator, on one flat float32 vector."""

    def __init__(self, weights: Weights, training: Training) -> None:
        self._weights = torch.nn.Parameter(torch.from_numpy(weights.copy()))
        rate = training.learning_rate
        self._optimizer: torch.optim.Optimizer = (
            torch.optim.Adam([self._weights], lr=rate)
            if training.optimizer == "adam"
            else torch.optim.SGD([self._weights], lr=rate, momentum=churn_net.MOMENTUM)
        )

    def step(self, gradient: npt.NDArray[np.float64]) -> Weights:
        """The weights after one step along this mean gradient; a copy."""
        self._weights.grad = torch.from_numpy(gradient.astype(np.float32))
        self._optimizer.step()
        return np.asarray(self._weights.detach().numpy().copy(), dtype=np.float32)


def _by_federated_averaging(rounds: Rounds, job: ChurnNetJob) -> Trained:
    net = churn_net.build(rounds.signed.contract, job.model, job.training.seed)
    weights = churn_net.flatten(net)
    _count(rounds)
    adapt = strategies.strategy(job.training)
    for round_ in range(1, job.training.rounds + 1):
        question = messages.Train(job_id=rounds.signed.job_id, round=round_)
        length = weights.size + rounds.phantom_slots
        answers = rounds.released(question, weights, "weights", round_=round_, length=length)
        update = [(rounds.branches[n].name, v[: weights.size]) for n, v in answers.items()]
        _keep_slots(
            rounds, job, round_, {rounds.branches[n].name: v[weights.size :] for n, v in answers.items()}
        )
        mean = federated_average(update, job.federation.weights or _sizes(rounds))
        weights = adapt.step(round_, weights, mean)
        names = sorted(name for name, _ in update)
        rounds.report_progress("round", round_, job.training.rounds, names)
    histogram, variance = _evaluate(rounds, job, weights)
    customers = float(sum(b.customers for b in rounds.branches.values()))
    return _of_net(job, weights, histogram, variance, customers)


def _keep_slots(rounds: Rounds, job: ChurnNetJob, round_: int, slots: Mapping[str, codec.Vector]) -> None:
    """What each branch's phantom slots showed, added up over its local steps."""
    noise_multiplier, norm = rounds.plan.noise_multiplier, job.training.max_grad_norm
    ask = Ask("weights", "training", noise_multiplier, job.training.sample_rate, norm)
    for name, values in slots.items():
        std, steps = noise_multiplier * norm, job.training.local_steps
        rounds.slots.append(Slots(ask, round_, (name,), std, values.astype(np.float64), steps))


def _count(rounds: Rounds) -> None:
    """Noisy sizes: what FedAvg weighs by, where the job declares no weights of its own."""
    question = messages.Count(job_id=rounds.signed.job_id)
    for node, vector in rounds.released(question, None, "size", round_=0, length=1).items():
        rounds.branches[node].customers = max(1, int(vector[0]))


def _sizes(rounds: Rounds) -> dict[str, float]:
    """A branch that missed the count weighs as much as the others do on average."""
    known = [b.customers for b in rounds.branches.values() if b.customers]
    return {b.name: float(b.customers or np.mean(known)) for b in rounds.branches.values()}


def _evaluate(rounds: Rounds, job: ChurnNetJob, weights: Weights) -> tuple[npt.NDArray[np.float64], float]:
    last, length = job.training.rounds, 2 * job.evaluation.bins
    question = messages.Evaluate(job_id=rounds.signed.job_id, round=last)
    answers = rounds.released(question, weights, "score-histogram", round_=last, length=length)
    total = np.sum([v.astype(np.float64) for v in answers.values()], axis=0)
    return total, score_histogram.laplace_variance([rounds.plan.evaluation_scale] * len(answers))


def federated_average(updates: list[tuple[str, codec.Vector]], weights: Mapping[str, float]) -> Weights:
    """Weighted mean of float32 vectors; a branch without a declared weight weighs 1. Raises ValueError if none."""
    if not updates:
        raise ValueError("no update to average")
    share = np.array([weights.get(name, 1.0) for name, _ in updates])
    stacked = np.stack([vector.astype(np.float64) for _, vector in updates])
    return np.asarray(share @ stacked / share.sum(), dtype=np.float32)
