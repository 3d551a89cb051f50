"""The churn net: what it computes, and the way its weights go in and out."""

import numpy as np
import pytest
import torch

from sfumato.common.contract import Contract
from sfumato.common.job import Model
from sfumato.common.learners import churn_net
from sfumato.common.learners.churn_net import ChurnNet
from sfumato.common.learners.encoding import Encoded

CARDINALITIES = (3, 4)


def some(n: int) -> Encoded:
    rng = np.random.default_rng(0)
    codes = np.stack([rng.integers(0, c, n) for c in CARDINALITIES], axis=1)
    return Encoded(codes, rng.uniform(-1, 1, (n, 2)).astype(np.float32), CARDINALITIES)


def random_net(hidden: tuple[int, ...] = (5,)) -> ChurnNet:
    net = ChurnNet(CARDINALITIES, 2, Model(hidden=hidden, embedding_dim=3))
    rng = np.random.default_rng(1)
    churn_net.load(net, rng.normal(0, 1, churn_net.size(net)).astype(np.float32))
    return net


@pytest.mark.parametrize("hidden", [(), (5,), (5, 4)])
def test_the_logit_is_the_wide_sum_plus_the_mlp(hidden: tuple[int, ...]) -> None:
    net, encoded = random_net(hidden), some(20)
    parts = {k: v.detach().numpy().astype(np.float64) for k, v in net.named_parameters()}
    for i, got in enumerate(churn_net.logits(net, encoded)):
        rows = [encoded.codes[i, 0], 3 + encoded.codes[i, 1]]
        x = np.concatenate([*(parts["embedding.weight"][r] for r in rows), encoded.numeric[i]])
        for layer in range(len(hidden)):
            x = np.tanh(parts[f"mlp.{2 * layer}.weight"] @ x + parts[f"mlp.{2 * layer}.bias"])
        wide = sum(parts["score.weight"][r, 0] for r in rows)
        assert got == pytest.approx(wide + parts["out.weight"][0] @ x + parts["out.bias"][0], abs=1e-4)


def test_at_the_start_everyone_has_even_odds() -> None:
    assert (churn_net.logits(ChurnNet(CARDINALITIES, 2, Model()), some(9)) == 0).all()


def test_the_seed_alone_makes_the_weights() -> None:
    torch.manual_seed(1)
    one = churn_net.flatten(ChurnNet(CARDINALITIES, 2, Model(), seed=5))
    torch.manual_seed(2)
    two = churn_net.flatten(ChurnNet(CARDINALITIES, 2, Model(), seed=5))
    other = churn_net.flatten(ChurnNet(CARDINALITIES, 2, Model(), seed=6))
    assert (one == two).all()
    assert (one != other).any()


def test_flatten_and_load_are_inverse_and_flatten_copies() -> None:
    net = random_net()
    vector = churn_net.flatten(net)
    assert vector.dtype == np.float32
    assert vector.ndim == 1
    assert vector.size == churn_net.size(net)
    other = ChurnNet(CARDINALITIES, 2, Model(hidden=(5,), embedding_dim=3), seed=9)
    churn_net.load(other, vector)
    assert (churn_net.flatten(other) == vector).all()
    vector[:] = 0
    assert (churn_net.flatten(other) != 0).any()
    assert (churn_net.flatten(net) != 0).any()


def test_load_refuses_what_is_not_its_weights() -> None:
    net = random_net()
    before = churn_net.flatten(net)
    for bad in (before[:-1], np.append(before, 0).astype(np.float32), before.reshape(1, -1)):
        with pytest.raises(ValueError, match="weights, got"):
            churn_net.load(net, bad)
    for value in (np.nan, np.inf, -np.inf):
        poisoned = before.copy()
        poisoned[-1] = value
        with pytest.raises(ValueError, match="finite"):
            churn_net.load(net, poisoned)
    with pytest.raises(ValueError, match="float32"):
        churn_net.load(net, before.astype(np.float64))  # type: ignore[arg-type]
    assert (churn_net.flatten(net) == before).all()


def test_build_follows_the_contract() -> None:
    columns = [
        {"name": "id", "type": "string", "role": "customer_id"},
        {"name": "x", "type": "number", "role": "feature", "bounds": [0, 1]},
        {"name": "c", "type": "category", "role": "feature", "categories": ["a", "b", "c"]},
    ]
    contract = Contract.model_validate(
        {
            "version": 1,
            "name": "t",
            "purpose": "a test contract",
            "tables": [{"name": "customers", "columns": columns}],
        }
    )
    net = churn_net.build(contract, Model(hidden=(7,), embedding_dim=2, bins=4), seed=1)
    codes = (4 + 1) + (3 + 2)
    assert churn_net.size(net) == codes * (1 + 2) + 7 * (2 * 2 + 1) + 7 + 7 + 1


def test_logits_in_batches_are_the_logits() -> None:
    net, encoded = random_net(), some(25)
    assert np.allclose(churn_net.logits(net, encoded), churn_net.logits(net, encoded, batch=4), atol=1e-6)
    assert churn_net.logits(net, encoded.take(np.zeros(0, np.int64))).shape == (0,)
