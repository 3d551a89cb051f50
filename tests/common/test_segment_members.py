"""Segments as they are read: of exactly the customers whom the saved model puts there, with intervals that hold."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sfumato.common.analyses import segments
from sfumato.common.analyses.analysis import NoisySum
from sfumato.common.analyses.segment_members import Members
from sfumato.common.contract import Contract
from sfumato.common.contributions import Cells
from sfumato.common.learners.components import Components, Inputs
from sfumato.common.learners.encoding import FeatureSpec

CONTRACT = Contract.model_validate(
    {
        "version": 1,
        "name": "segments",
        "purpose": "Know which kinds of customers there are.",
        "tables": [
            {
                "name": "customers",
                "columns": [
                    {"name": "id", "type": "string", "role": "customer_id"},
                    {"name": "visits", "type": "integer", "role": "feature", "bounds": [0, 40]},
                    {"name": "debt", "type": "number", "role": "amount", "bounds": [-100, 300]},
                    {"name": "tier", "type": "category", "role": "feature", "categories": ["a", "b"]},
                ],
            }
        ],
    }
)
CASES = {"numbers": {"segments": 3}, "components": {"segments": 3, "dimensions": 2}}


def people(n: int, seed: int) -> dict[str, Any]:
    """Three kinds of customers; the first has debts far out, and some have no tier."""
    rng = np.random.default_rng(seed)
    kind = rng.choice(3, n, p=[0.2, 0.3, 0.5])
    debt = np.array([250.0, 0.0, -50.0])[kind] + 30 * rng.standard_normal(n)
    tier = np.array(["a", "b", "b"], dtype=object)[kind]
    tier[rng.random(n) < 0.1] = None
    visits = np.clip(np.array([5, 30, 12])[kind] + rng.integers(-4, 5, n), 0, 40)
    return {"visits": visits, "debt": np.where(rng.random(n) < 0.05, 900.0, debt), "tier": tier}


def run(analysis: Any, columns: Mapping[str, Any], std: float, rng: np.random.Generator) -> list[NoisySum]:
    """All rounds; `std` is the noise's, in units of a round's bound."""
    totals: list[NoisySum] = []
    for round_ in range(len(analysis.shares)):
        made = analysis.contribute(round_, columns, analysis.ask(round_, totals))
        if isinstance(made, Cells):
            exact = np.bincount(made.cells.ravel(), minlength=made.length).astype(float)
        else:
            exact = made.rows.sum(axis=0)
        noise = std * analysis.max_norm(round_)
        totals.append(NoisySum(exact + noise * rng.standard_normal(len(exact)), noise))
    return totals


def placed(model: Mapping[str, Any], columns: Mapping[str, Any]) -> np.ndarray:
    """Each customer's segment by the saved centres, by distance."""
    numbers = np.stack(
        [np.clip(columns["visits"], 0, 40) / 20 - 1, (np.clip(columns["debt"], -100, 300) + 100) / 200 - 1], 1
    )
    places = numbers
    if "components" in model:
        tiers = np.stack([columns["tier"] == "a", columns["tier"] == "b", np.zeros(len(numbers)),
                          [t is None for t in columns["tier"]]], 1)  # fmt: skip
        places = Components.of(model["components"], 6, 2).places(np.hstack([numbers, tiers]))
    return np.asarray(np.linalg.norm(places[:, None] - model["centres"], axis=2).argmin(axis=1))


def truths(
    found: dict[str, Any], own: np.ndarray, columns: Mapping[str, Any]
) -> list[tuple[str, Any, float]]:
    pairs: list[tuple[str, Any, float]] = [
        ("customers", found["customers"], own.sum()),
        ("share", found["share"], own.mean()),
        ("middle", found["centre"]["visits"], columns["visits"][own].mean()),
        ("middle", found["centre"]["debt"], np.clip(columns["debt"], -100, 300)[own].mean()),
    ]
    tier = columns["tier"][own]
    mix = found.get("mix", {}).get("tier", {})
    is_ = {c: (tier == c).mean() for c in ("a", "b")}
    is_ |= {"(other)": 0.0, "(none)": np.mean([t is None for t in tier])}
    return pairs + [("mix", mix[c], is_[c]) for c in mix]


@pytest.mark.parametrize("case", CASES)
def test_without_noise_all_is_of_the_customers_whom_the_model_puts_there(case: str) -> None:
    analysis = segments.build(segments.Question.model_validate(CASES[case]), CONTRACT)
    columns = people(900, 1)
    totals = run(analysis, columns, 1e-9, np.random.default_rng(0))
    answer, (model, _) = analysis.read(totals), analysis.saved(totals)  # type: ignore[attr-defined]
    group = placed(model, columns)
    assert len(answer["segments"]) == len(model["centres"]) == 3
    sizes = [s["customers"]["value"] for s in answer["segments"]]
    assert sizes == sorted(sizes, reverse=True) and ("mix" in answer["segments"][0]) == (case == "components")
    for j, found in enumerate(answer["segments"]):
        for _, number, truth in truths(found, group == j, columns):
            assert number["value"] == pytest.approx(truth, rel=1e-5, abs=1e-5)


@pytest.mark.statistical
@pytest.mark.parametrize("case", CASES)
def test_the_intervals_hold_the_truth_and_are_no_wider_than_that(case: str) -> None:
    """Nominal 95 %; 100 draws of all rounds' noise. Noise is drawn alike for every round."""
    analysis = segments.build(segments.Question.model_validate(CASES[case]), CONTRACT)
    columns, rng, held = people(900, 2), np.random.default_rng(3), dict[str, list[bool]]()
    for _ in range(100):
        totals = run(analysis, columns, 4.0, rng)
        group = placed(analysis.saved(totals)[0], columns)  # type: ignore[attr-defined]
        for j, found in enumerate(analysis.read(totals)["segments"]):
            for what, number, truth in truths(found, group == j, columns):
                held.setdefault(what, []).append(number["low"] <= truth <= number["high"])
    rates = {what: float(np.mean(all_)) for what, all_ in held.items()}
    assert all(0.92 <= rate <= 0.985 for rate in rates.values()), rates


@given(
    numbers=st.lists(st.tuples(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6)), min_size=1, max_size=6),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=40, deadline=None)
def test_no_customer_says_more_than_the_bound(numbers: list[tuple[float, float]], seed: int) -> None:
    visits, debt = np.array(numbers).T
    columns = {"visits": visits, "debt": debt, "tier": np.array(["b", None, "c"] * 2)[: len(visits)]}
    for question in CASES.values():
        analysis = segments.build(segments.Question.model_validate(question), CONTRACT)
        last = len(analysis.shares) - 1
        totals = run(analysis, people(60, 4), 2.0, np.random.default_rng(seed))
        made = analysis.contribute(last, columns, analysis.ask(last, totals))
        assert not isinstance(made, Cells)
        assert made.rows.shape == (len(visits), analysis.length(last))
        assert np.linalg.norm(made.rows, axis=1).max() <= analysis.max_norm(last) * (1 + 1e-6)


@pytest.mark.parametrize("case", CASES)
def test_bad_centres_are_refused(case: str) -> None:
    analysis = segments.build(segments.Question.model_validate(CASES[case]), CONTRACT)
    columns, last = people(60, 5), len(analysis.shares) - 1
    asked = analysis.ask(last, run(analysis, columns, 1.0, np.random.default_rng(6)))
    assert asked is not None
    broken = asked.copy()
    broken[-1] = np.nan
    for bad in (None, asked[:-1], broken):
        with pytest.raises(ValueError, match="Expected"):
            analysis.contribute(last, columns, bad)


def test_a_segment_that_noise_drowns_has_its_whole_range() -> None:
    spec = FeatureSpec("visits", bounds=(0.0, 40.0)), FeatureSpec("tier", categories=("a", "b"))
    members = Members(Inputs(spec), 2)
    (first, second) = members.read(NoisySum(np.concatenate([[600.0, -3.0], np.zeros(10)]), 5.0), 2)
    assert first["customers"]["value"] == pytest.approx(1000) and second["customers"]["low"] == 0
    assert second["centre"]["visits"] == {"value": 0.0, "low": 0.0, "high": 40.0}
    assert (second["mix"]["tier"]["a"]["low"], second["mix"]["tier"]["a"]["high"]) == (0.0, 1.0)
    assert first["share"]["high"] == 1.0 and first["share"]["low"] > 0.95
