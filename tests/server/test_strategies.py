"""FedAvg, FedProx and FedAdam at the coordinator, against Flower's own."""

from types import SimpleNamespace

import flwr.serverapp.strategy as flower
import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict

from sfumato.common.job import Training
from sfumato.server import strategies
from sfumato.server.training import federated_average

SIZES = {"a": 300.0, "b": 100.0, "c": 57.0}


def updates(weights: np.ndarray, rng: np.random.Generator) -> list[tuple[str, np.ndarray]]:
    return [(n, (weights + rng.normal(0, 0.2, weights.size)).astype(np.float32)) for n in SIZES]


def reply(vector: np.ndarray, size: float) -> SimpleNamespace:
    """What a strategy of Flower reads of a message; a real one can only be made inside a run."""
    arrays, metrics = ArrayRecord({"weights": Array(vector)}), MetricRecord({"num-examples": size})
    return SimpleNamespace(
        content=RecordDict({"arrays": arrays, "metrics": metrics}), has_error=lambda: False
    )


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (Training(), flower.FedAvg()),
        (Training(strategy="fedprox", proximal_mu=0.5), flower.FedProx(proximal_mu=0.5)),
        (Training(strategy="fedadam"), flower.FedAdam()),
        (
            Training(strategy="fedadam", server_learning_rate=0.03, server_beta_1=0.5, server_beta_2=0.9,
                     server_tau=0.01),
            flower.FedAdam(eta=0.03, beta_1=0.5, beta_2=0.9, tau=0.01),
        ),
    ],
    ids=["fedavg", "fedprox", "fedadam", "fedadam-set"],
)  # fmt: skip
def test_five_rounds_are_those_of_flower(ours: Training, theirs: flower.FedAvg) -> None:
    rng = np.random.default_rng(0)
    weights = start = rng.normal(0, 1, 40).astype(np.float32)
    strategy = strategies.strategy(ours)
    for round_ in range(1, 6):
        came = updates(weights, rng)
        theirs.current_arrays = {"weights": weights}  # type: ignore[attr-defined]
        wanted, _ = theirs.aggregate_train(round_, [reply(v, SIZES[n]) for n, v in came])  # type: ignore[misc]
        assert wanted is not None
        weights = strategy.step(round_, weights, federated_average(came, SIZES))
        assert weights.dtype == np.float32
        assert np.abs(weights - wanted["weights"].numpy()).max() < 2e-6
    assert np.abs(weights - start).max() > 0.01


def test_defaults_are_those_of_flower() -> None:
    ours, theirs = Training(), flower.FedAdam()
    assert (ours.server_learning_rate, ours.server_beta_1, ours.server_beta_2, ours.server_tau) == (
        theirs.eta,
        theirs.beta_1,
        theirs.beta_2,
        theirs.tau,
    )
