"""The churn net: what it computes, and the way its weights go in and out."""

import numpy as np
import pytest
import torch

from sfumato.common.contract import Contract
from sfumato.common.errors import BadInput
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


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def test_the_recurrent_net_reads_its_months_one_after_the_other() -> None:
    """By the equations of Cho et al. 2014, in double precision."""
    model = Model(
        architecture="recurrent", sequence=("a", "b"), months=5, state=3, hidden=(4,), embedding_dim=2
    )
    net = ChurnNet(CARDINALITIES, 2, model)
    rng = np.random.default_rng(1)
    churn_net.load(net, rng.normal(0, 1, churn_net.size(net)).astype(np.float32))
    plain = some(20)
    months = rng.uniform(-1, 1, (20, 5, 2)).astype(np.float32)
    encoded = Encoded(plain.codes, plain.numeric, CARDINALITIES, months)
    w = {k: v.detach().numpy().astype(np.float64) for k, v in net.named_parameters()}
    for i, got in enumerate(churn_net.logits(net, encoded, batch=7)):
        state = np.zeros(3)
        for now in months[i]:
            gates = sigmoid(w["recurrent.gates.weight"] @ [*now, *state] + w["recurrent.gates.bias"])
            keep, reset = gates[:3], gates[3:]
            new = np.tanh(
                w["recurrent.candidate.weight"] @ [*now, *(reset * state)] + w["recurrent.candidate.bias"]
            )
            state = keep * state + (1 - keep) * new
        rows = [encoded.codes[i, 0], 3 + encoded.codes[i, 1]]
        x = np.concatenate([*(w["embedding.weight"][r] for r in rows), encoded.numeric[i], state])
        x = np.tanh(w["mlp.0.weight"] @ x + w["mlp.0.bias"])
        wide = sum(w["score.weight"][r, 0] for r in rows)
        assert got == pytest.approx(wide + w["out.weight"][0] @ x + w["out.bias"][0], abs=1e-4)
    with pytest.raises(ValueError, match="reads a sequence"):
        churn_net.logits(net, plain)
    with pytest.raises(ValueError, match="reads a sequence"):
        churn_net.logits(random_net(), encoded)


def test_what_is_taken_takes_its_months_along() -> None:
    months = np.arange(24, dtype=np.float32).reshape(4, 3, 2)
    encoded = Encoded(np.zeros((4, 2), np.int64), np.zeros((4, 0), np.float32), CARDINALITIES, months)
    assert encoded.take(np.array([2, 0])).inputs[2].tolist() == months[[2, 0]].tolist()
    assert len(encoded.take(np.zeros(4, np.bool_)).inputs[2]) == 0


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


BY_MONTH = {
    "version": 1,
    "name": "t",
    "purpose": "a test contract",
    "as_of": "2026-01-01",
    "tables": [
        {
            "name": "customers",
            "columns": [
                {"name": "id", "type": "string", "role": "customer_id"},
                {"name": "x", "type": "number", "role": "feature", "bounds": [0, 1]},
            ],
        },
        {
            "name": "paid",
            "columns": [
                {"name": "id", "type": "string", "role": "customer_id"},
                {"name": "at", "type": "date", "role": "time"},
                {"name": "amount", "type": "number"},
            ],
        },
    ],
    "features": [
        {"name": "n", "table": "paid", "aggregate": "count", "bounds": [0, 8]},
        {
            "name": "mean",
            "table": "paid",
            "aggregate": "mean",
            "column": "amount",
            "bounds": [-1e4, 1e4],
            "scale": "log",
        },
        {"name": "recency", "table": "paid", "aggregate": "days_since_last", "bounds": [0, 365]},
    ],
}


def test_months_are_encoded_oldest_first_and_scaled_by_the_contract() -> None:
    contract = Contract.model_validate(BY_MONTH)
    model = Model(architecture="recurrent", sequence=("mean", "n"), months=3)
    encoder = churn_net.encoder(contract, model)
    assert encoder.columns == ("x", "n", "mean", "recency", "mean@2", "mean@1", "mean@0", "n@2", "n@1", "n@0")
    columns = {name: np.zeros(2) for name in encoder.columns}
    columns |= {"mean@2": np.array([1e4, np.nan]), "n@0": np.array([2.0, 800.0]), "n@2": np.array([8.0, 0.0])}
    encoded = encoder.transform(columns)
    assert encoded.sequence is not None
    assert encoded.sequence.dtype == np.float32
    assert encoded.sequence[0].tolist() == [[1.0, 1.0], [0.0, -1.0], [0.0, -0.5]]
    assert encoded.sequence[1].tolist() == [[0.0, -1.0], [0.0, -1.0], [0.0, 1.0]]
    assert churn_net.logits(churn_net.build(contract, model), encoded).tolist() == [0, 0]
    with pytest.raises(BadInput, match="'n@1'"):
        encoder.transform({k: v for k, v in columns.items() if k != "n@1"})


@pytest.mark.parametrize(
    ("sequence", "message"),
    [(("nothing",), "is no roll-up"), (("n", "recency"), "'recency' cannot be read by month")],
)
def test_a_sequence_that_the_contract_does_not_have_is_refused(
    sequence: tuple[str, ...], message: str
) -> None:
    model = Model(architecture="recurrent", sequence=sequence)
    with pytest.raises(BadInput, match=message):
        churn_net.build(Contract.model_validate(BY_MONTH), model)
    if sequence[0] == "n":
        with pytest.raises(BadInput, match="'n' cannot be read by month"):
            churn_net.build(
                Contract.model_validate(BY_MONTH | {"as_of": None, "features": BY_MONTH["features"][:2]}),
                model,
            )


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


def test_the_recurrent_net_is_the_other_one_and_its_unit() -> None:
    contract = Contract.model_validate(BY_MONTH)
    sizes = {}
    for model in (Model(), Model(architecture="recurrent", sequence=("n", "mean"), state=3)):
        one, two = (churn_net.flatten(churn_net.build(contract, model, seed=4)) for _ in range(2))
        assert (one == two).all()
        assert (churn_net.flatten(churn_net.build(contract, model, seed=5)) != one).any()
        sizes[model.architecture] = one.size
    unit = 3 * 3 * (2 + 3 + 1)
    assert sizes["recurrent"] == sizes["wide-deep"] + unit + 16 * 3


def test_logits_in_batches_are_the_logits() -> None:
    net, encoded = random_net(), some(25)
    assert np.allclose(churn_net.logits(net, encoded), churn_net.logits(net, encoded, batch=4), atol=1e-6)
    assert churn_net.logits(net, encoded.take(np.zeros(0, np.int64))).shape == (0,)
