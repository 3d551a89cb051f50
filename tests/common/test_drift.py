"""Drift: against counts without noise, and whether its intervals hold the truth."""

import numpy as np
import pytest

from sfumato.common.analyses import drift
from sfumato.common.analyses.analysis import NoisySum
from sfumato.common.contract import Contract
from sfumato.common.errors import BadInput
from sfumato.common.learners.bins import Column, Schema

CONTRACT = Contract.model_validate(
    {
        "version": 1,
        "name": "drift",
        "purpose": "See whether customers change.",
        "tables": [
            {
                "name": "customers",
                "columns": [
                    {"name": "id", "type": "string", "role": "customer_id"},
                    {"name": "visits", "type": "integer", "role": "feature", "bounds": [0, 40]},
                    {"name": "tier", "type": "category", "role": "feature", "categories": ["a", "b", "c"]},
                ],
            }
        ],
    }
)
STD = 20.0


def schema(visits: list[float], tier: list[float], std: float = STD) -> Schema:
    stds = (std,) * 4, (std,) * 3
    return Schema(
        contract=CONTRACT.hash,
        label=None,
        customers=sum(visits),
        positives=None,
        columns=(
            Column(name="visits", cuts=(10, 20, 30), null=3, counts=tuple(visits), stds=stds[0]),
            Column(
                name="tier",
                categories={"a": 0, "b": 1, "c": 2},
                other=2,
                null=2,
                counts=tuple(tier),
                stds=stds[1],
            ),
        ),
    )


def index(then: list[float], now: list[float]) -> float:
    p, q = np.array(then) / sum(then), np.array(now) / sum(now)
    return float(((p - q) * np.log(p / q)).sum())


THEN = [1000.0, 2000.0, 2500.0, 500.0], [3000.0, 2000.0, 1000.0]


def asked(known: Schema) -> drift.Drift:
    built = drift.build(drift.Question(known=known), CONTRACT)
    assert isinstance(built, drift.Drift)
    return built


def test_customers_are_counted_in_the_bins_of_the_schema_and_in_no_others() -> None:
    found = asked(schema(*THEN))
    columns = {"visits": np.array([0, 10, 39, 25]), "tier": np.array(["a", "c", "b", None], dtype=object)}
    cells = found.contribute(0, columns, None)
    assert cells.cells.tolist() == [[0, 4], [1, 6], [3, 5], [2, 6]]
    assert cells.length == found.length(0) == 7 and found.max_norm(0) == pytest.approx(2**0.5)
    with pytest.raises(ValueError, match="without numbers"):
        found.contribute(0, columns, np.zeros(1, dtype=np.float32))


def test_without_noise_the_index_is_the_published_formula_and_the_verdict_follows() -> None:
    now = [1000.0, 2000.0, 2500.0, 500.0], [1000.0, 2000.0, 3000.0]
    answer = asked(schema(*THEN, std=1e-6)).read([NoisySum(np.concatenate(now), 1e-6)])
    first, second = answer["drift"]
    assert (first["column"], second["column"]) == ("tier", "visits")
    assert first["psi"]["value"] == pytest.approx(index(THEN[1], now[1]), rel=1e-4)
    assert (first["verdict"], second["verdict"]) == ("shifted", "stable")
    assert answer["customers"]["value"] == pytest.approx(6000)
    assert first["bins"][0]["then"]["value"] == pytest.approx(0.5)


@pytest.mark.statistical
def test_the_intervals_hold_the_true_index() -> None:
    """400 draws of the noise; nominal 95 %. A right interval falls below 92 % in one of 200 seeds."""
    rng = np.random.default_rng(11)
    now = [1300.0, 1900.0, 2200.0, 600.0], [2500.0, 2300.0, 1200.0]
    held = total = 0
    for _ in range(400):
        noisy = [(np.array(t) + rng.normal(0, STD, len(t))).tolist() for t in THEN]
        today = np.concatenate(now) + rng.normal(0, STD, 7)
        for found in asked(schema(*noisy)).read([NoisySum(today, STD)])["drift"]:
            truth = index(*((THEN[0], now[0]) if found["column"] == "visits" else (THEN[1], now[1])))
            held += found["psi"]["low"] <= truth <= found["psi"]["high"]
            total += 1
    assert held / total >= 0.92, held / total


def test_drowned_columns_are_not_judged() -> None:
    answer = asked(schema([40.0] * 4, [50.0] * 3, std=200.0)).read([NoisySum(np.full(7, 50.0), 200.0)])
    assert {d["verdict"] for d in answer["drift"]} == {"cannot tell"}


def test_the_schema_of_another_contract_is_refused() -> None:
    with pytest.raises(BadInput, match="not one of contract"):
        asked(schema(*THEN).model_copy(update={"contract": "0" * 64}))
