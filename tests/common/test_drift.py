"""Drift: against counts without noise, and whether its intervals hold the truth."""

from datetime import date

import numpy as np
import pytest

from sfumato.common.analyses import drift
from sfumato.common.analyses.analysis import NoisySum
from sfumato.common.contract import Contract
from sfumato.common.errors import BadInput
from sfumato.common.learners.bins import Column, Schema
from sfumato.common.learners.schema import SchemaRound

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
Parts = tuple[list[float], list[float]]


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


def held(then: Parts, now: Parts, draws: int, seed: int) -> dict[str, list[bool]]:
    """Whether intervals hold the truth, by what they are of; both counts with noise of STD."""
    rng, found = np.random.default_rng(seed), dict[str, list[bool]]()
    for _ in range(draws):
        noisy = [(np.array(t) + rng.normal(0, STD, len(t))).tolist() for t in then]
        today = np.concatenate(now) + rng.normal(0, STD, 7)
        answer = asked(schema(*noisy)).read([NoisySum(today, STD)])
        pairs = [("customers", answer["customers"], sum(now[0]))]
        for column in answer["drift"]:
            place = ("visits", "tier").index(column["column"])
            t, n = then[place], now[place]
            pairs.append(("psi", column["psi"], index(t, n)))
            for row, before, after in zip(column["bins"], t, n, strict=True):
                pairs += [("then", row["then"], before / sum(t)), ("now", row["now"], after / sum(n))]
        for what, number, truth in pairs:
            found.setdefault(what, []).append(number["low"] <= truth <= number["high"])
    return found


@pytest.mark.statistical
def test_the_intervals_hold_the_truth_and_are_no_wider_than_that() -> None:
    """400 draws of the noise; nominal 95 %. A right interval falls outside these bounds in one of 200 seeds."""
    now = [1300.0, 1900.0, 2200.0, 600.0], [2500.0, 2300.0, 1200.0]
    found = {what: float(np.mean(all_)) for what, all_ in held(THEN, now, 400, 11).items()}
    assert min(found["customers"], found["psi"]) >= 0.92, found
    assert 0.935 <= found["then"] <= 0.965 and 0.935 <= found["now"] <= 0.965, found


@pytest.mark.statistical
def test_the_index_holds_where_a_bin_has_nobody_any_more() -> None:
    """A bin that noise drowns: its logarithm has no bottom, and the interval says so."""
    now = [2000.0, 2000.0, 2000.0, 0.5], [3998.0, 2000.0, 2.0]
    found = held(([1000.0, 2000.0, 2500.0, 500.5], [3000.0, 2000.0, 1000.0]), now, 300, 12)
    assert np.mean(found["psi"]) >= 0.91


def test_drowned_columns_are_not_judged() -> None:
    answer = asked(schema([40.0] * 4, [50.0] * 3, std=200.0)).read([NoisySum(np.full(7, 50.0), 200.0)])
    assert {d["verdict"] for d in answer["drift"]} == {"cannot tell"}


def test_another_day_has_the_same_columns_and_is_asked() -> None:
    """Customers change with the days: a schema of last year's day is asked about as of today."""
    then, today = (CONTRACT.model_copy(update={"as_of": date(year, 7, 1)}) for year in (2024, 2025))
    left = SchemaRound(then).schema(NoisySum(np.full(SchemaRound(then).length(0), 50.0), 1.0))
    assert drift.build(drift.Question(known=left), then).columns == ("visits", "tier")
    now = drift.build(drift.Question(known=left), today)
    assert now.length(0) == sum(left.cardinalities)
    older = left.model_copy(update={"inputs": None})
    with pytest.raises(BadInput, match="not one of contract"):
        drift.build(drift.Question(known=older), today)
    other = today.model_copy(update={"purpose": "Something else entirely."})
    with pytest.raises(BadInput, match="not one of contract"):
        drift.build(drift.Question(known=left), other)


def test_the_schema_of_another_contract_is_refused() -> None:
    with pytest.raises(BadInput, match="not one of contract"):
        asked(schema(*THEN).model_copy(update={"contract": "0" * 64}))
