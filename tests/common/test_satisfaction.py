"""Satisfaction: against pandas on everybody's rows, against scikit-learn, and whether intervals hold the truth."""

from collections.abc import Mapping
from datetime import date, timedelta
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pydantic import ValidationError
from sklearn.linear_model import LinearRegression, Ridge

from sfumato.common.analyses import satisfaction
from sfumato.common.analyses.analysis import NoisySum
from sfumato.common.analyses.domains import domain
from sfumato.common.analyses.satisfaction import Question, Satisfaction
from sfumato.common.contract import Contract
from sfumato.common.errors import BadInput
from sfumato.common.learners.consistent import Consistent
from sfumato.common.learners.driver_moments import Driver, Moments
from sfumato.common.learners.drivers import Fit

AS_OF = date(2025, 7, 1)
KEY = {"name": "id", "type": "string", "role": "customer_id"}
CONTRACT = Contract.model_validate(
    {
        "version": 1,
        "name": "shops",
        "purpose": "See how content customers are.",
        "as_of": AS_OF,
        "tables": [
            {
                "name": "customers",
                "columns": [
                    KEY,
                    {
                        "name": "town",
                        "type": "category",
                        "categories": ["ash", "elm", "oak"],
                        "nullable": True,
                    },
                    {"name": "age", "type": "integer", "bounds": [18, 98], "edges": [30, 40, 50, 70]},
                    {"name": "income", "type": "number", "bounds": [0, 1000], "nullable": True},
                    {"name": "liked", "type": "integer", "bounds": [0, 10], "nullable": True},
                    {"name": "grade", "type": "integer", "bounds": [0, 20]},
                ],
            },
            {
                "name": "surveys",
                "columns": [
                    KEY,
                    {"name": "day", "type": "date", "role": "time"},
                    {"name": "nps", "type": "integer", "bounds": [0, 10]},
                    {"name": "csat", "type": "integer", "bounds": [1, 5], "nullable": True},
                    {"name": "way", "type": "category", "categories": ["mail", "phone"], "nullable": True},
                ],
            },
            {
                "name": "visits",
                "columns": [KEY, {"name": "kind", "type": "category", "categories": ["a", "b"]}],
            },
        ],
        "features": [
            {"name": "mean_nps", "table": "surveys", "aggregate": "mean", "column": "nps", "bounds": [0, 10]}
        ],
    }
)
SURVEYS = ("nps", "csat", "way", "day")


def shops(n: int, seed: int) -> dict[str, Any]:
    """Customers with none to three surveys each, newest first; older and poorer ones are less content."""
    rng = np.random.default_rng(seed)
    age, income = rng.integers(18, 99, n), rng.uniform(0, 1000, n)
    town = rng.choice(np.array(["ash", "elm", "oak", None], dtype=object), n, p=[0.5, 0.3, 0.15, 0.05])
    counts = rng.choice(4, n, p=[0.3, 0.4, 0.2, 0.1])
    lists: dict[str, list[list[Any]]] = {name: [] for name in SURVEYS}
    for i, count in enumerate(counts.tolist()):
        mood = 9.0 - 0.05 * (age[i] - 18) + 0.001 * income[i] + (town[i] == "oak")
        days = sorted(rng.integers(0, 700, count).tolist())
        lists["nps"].append(np.clip(np.round(mood + rng.normal(0, 1.8, count)), 0, 10).astype(int).tolist())
        csat = np.clip(np.round(mood / 2 + rng.normal(0, 0.7, count)), 1, 5)
        lists["csat"].append([None if rng.random() < 0.2 else int(c) for c in csat])
        lists["way"].append(
            rng.choice(np.array(["mail", "phone", None], dtype=object), count, p=[0.6, 0.3, 0.1]).tolist()
        )
        lists["day"].append([AS_OF - timedelta(days=d) for d in days])
    types = {"nps": pa.int64(), "csat": pa.int64(), "way": pa.string(), "day": pa.date32()}
    return {
        "town": pa.array(town.tolist(), pa.string()),
        "age": pa.array(age),
        "income": pa.array(np.where(rng.random(n) < 0.1, np.nan, income), from_pandas=True),
        "liked": pa.array([s[0] if s else None for s in lists["nps"]], pa.int64()),
        **{f"surveys.{name}": pa.array(lists[name], pa.list_(types[name])) for name in SURVEYS},
    }


def asked(**question: Any) -> Satisfaction:
    found = satisfaction.build(Question(**question), CONTRACT)
    assert isinstance(found, Satisfaction)
    return found


def total(analysis: Satisfaction, columns: Mapping[str, Any]) -> np.ndarray:
    return np.asarray(analysis.contribute(0, columns, None).rows.sum(axis=0))


def exact(analysis: Satisfaction, columns: Mapping[str, Any]) -> dict[str, Any]:
    return analysis.read([NoisySum(total(analysis, columns), 1e-9)])


def rows(answer: Mapping[str, Any], part: str) -> dict[tuple[str, ...], dict[str, Any]]:
    (found,) = (p for p in answer["parts"] if p["name"] == part)
    return {tuple(r["of"]): r for r in found["rows"]}


def long_form(columns: Mapping[str, Any], score: str) -> pd.DataFrame:
    """Answers newest first, one a row, with the customer's town."""
    frame = pd.DataFrame({name: columns[f"surveys.{name}"].to_pylist() for name in SURVEYS})
    frame["town"] = columns["town"].to_pylist()
    frame = frame.explode(list(SURVEYS)).rename_axis("customer").reset_index()
    frame = frame.dropna(subset=[score])
    frame["town"] = frame["town"].fillna("(none)")
    frame["way"] = frame["way"].fillna("(none)")
    frame["back"] = frame.groupby("customer").cumcount()
    return frame


def nps(answers: "pd.Series[float]", parts: Any = 1.0) -> float:
    verdict = (answers >= 9).astype(float) - (answers <= 6)
    parts = pd.Series(1.0, answers.index) * parts
    return float(100 * (verdict * parts).sum() / parts.sum())


# --- without noise, the naive figures ------------------------------------------------------------------------


def test_scores_by_group_and_by_channel_are_those_of_pandas() -> None:
    columns = shops(900, 1)
    analysis = asked(nps="surveys.nps", csat="surveys.csat", by=("town", "surveys.way"), moves_share=0.1)
    answer = exact(analysis, columns)
    frame = long_form(columns, "nps")
    latest = frame[frame["back"] == 0].astype({"nps": float})
    shown = {(score,): rows(answer, score)[()] for score in ("nps", "csat")}
    assert answer["customers"]["value"] == pytest.approx(900)
    assert shown["nps",]["answered"]["value"] == pytest.approx(len(latest))
    assert shown["nps",]["response"]["value"] == pytest.approx(len(latest) / 900)
    assert shown["nps",]["nps"]["value"] == pytest.approx(nps(latest["nps"]))
    assert shown["nps",]["passives"]["value"] == pytest.approx(latest["nps"].between(7, 8).mean())
    content = long_form(columns, "csat")
    content = content[content["back"] == 0].astype({"csat": float})
    assert shown["csat",]["content"]["value"] == pytest.approx((content["csat"] >= 4).mean())
    assert shown["csat",]["mean"]["value"] == pytest.approx(content["csat"].mean())
    by_nps, by_csat = (rows(answer, f"{score} by group") for score in ("nps", "csat"))
    towns = pd.Series(columns["town"].to_pylist()).fillna("(none)")
    for town, some in latest.groupby("town"):
        row = by_nps["town", str(town)]
        assert row["nps"]["value"] == pytest.approx(nps(some["nps"]))
        assert row["response"]["value"] == pytest.approx(len(some) / (towns == town).sum())
    for way, some in content.groupby("way"):
        row = by_csat["surveys.way", str(way)]
        assert row["mean"]["value"] == pytest.approx(some["csat"].mean())
        assert "response" not in row
    counts = latest["nps"].value_counts()
    for a in range(11):
        assert rows(answer, "answers")["nps", str(a)]["customers"]["value"] == pytest.approx(
            counts.get(a, 0), abs=1e-4
        )
    before = frame[frame["back"] == 1].set_index("customer")["nps"]
    moved = latest.set_index("customer")["nps"].reindex(before.index)
    saved = ((before <= 6) & (moved >= 9)).sum() / (before <= 6).sum()
    assert rows(answer, "moves")["detractor", "promoter"]["share"]["value"] == pytest.approx(saved)


def test_several_answers_are_one_voice_and_old_ones_may_be_left_out() -> None:
    columns = shops(600, 2)
    analysis = asked(nps="surveys.nps", latest=2, days=200, by=("surveys.way",))
    frame = long_form(columns, "nps")
    frame = frame[[d > AS_OF - timedelta(days=200) for d in frame["day"]]]
    frame = frame[frame.groupby("customer").cumcount() < 2]
    part = 1 / frame.groupby("customer")["nps"].transform("size")
    answer = exact(analysis, columns)
    shown = rows(answer, "nps")[()]
    assert shown["answered"]["value"] == pytest.approx(frame["customer"].nunique())
    assert shown["nps"]["value"] == pytest.approx(nps(frame["nps"], part))
    phone = frame["way"] == "phone"
    shown = rows(answer, "nps by group")["surveys.way", "phone"]
    assert shown["nps"]["value"] == pytest.approx(nps(frame["nps"][phone], part[phone]))
    assert "latest 2 answers of 200 days" in answer["notes"][0]


def test_answers_may_stand_with_the_customers() -> None:
    columns = shops(300, 3)
    shown = rows(exact(asked(nps="liked"), columns), "nps")[()]
    liked = pd.Series(columns["liked"].to_pylist()).dropna()
    assert shown["nps"]["value"] == pytest.approx(nps(liked))
    assert shown["answered"]["value"] == pytest.approx(len(liked))


# --- a customer's vector -------------------------------------------------------------------------------------

EVERYTHING: dict[str, Any] = {
    "nps": "surveys.nps",
    "csat": "surveys.csat",
    "latest": 3,
    "by": ("town", "age", "surveys.way"),
    "drivers": ("town", "age", "income"),
    "moves_share": 0.1,
}


def test_nobody_is_longer_than_the_bound_and_nobody_depends_on_others() -> None:
    columns, analysis = shops(800, 4), asked(**EVERYTHING)
    found = analysis.contribute(0, columns, None).rows
    assert found.shape == (800, analysis.length(0))
    lengths = np.linalg.norm(found, axis=1)
    assert 0.9 < lengths.max() <= analysis.max_norm(0) * (1 + 1e-12)
    some = {name: pa.chunked_array([values]).slice(137, 50) for name, values in columns.items()}
    np.testing.assert_allclose(analysis.contribute(0, some, None).rows, found[137:187])
    nobody = {name: values.slice(0, 0) for name, values in columns.items()}
    assert analysis.contribute(0, nobody, None).rows.shape == (0, analysis.length(0))
    with pytest.raises(ValueError, match="without numbers"):
        analysis.contribute(0, columns, np.zeros(1, dtype=np.float32))


# --- drivers -------------------------------------------------------------------------------------------------


def regression(columns: Mapping[str, Any], names: tuple[str, ...]) -> tuple[Moments, np.ndarray, np.ndarray]:
    moments = Moments(tuple(Driver(domain(CONTRACT, name, 5)) for name in names))
    z = np.hstack([d.inputs(columns[d.domain.name]) for d in moments.drivers])
    y = np.array([s / 5 - 1 if s is not None else np.nan for s in columns["liked"].to_pylist()])
    return moments, z, y


@pytest.mark.parametrize("ridge", [0.0, 0.05])
def test_the_regression_is_that_of_scikit_learn(ridge: float) -> None:
    columns = shops(700, 5)
    moments, z, y = regression(columns, ("town", "age", "income"))
    fit = Fit(moments, NoisySum(moments.rows(y, columns).sum(axis=0), 1e-9), ridge)
    z, y = z[~np.isnan(y)], y[~np.isnan(y)]
    model = Ridge(alpha=ridge * len(y)) if ridge else LinearRegression()
    b = model.fit(z, y).coef_
    each, whole = fit.explained()
    assert whole["value"] == pytest.approx(float((y - y.mean()) @ z @ b) / len(y) / y.var(), rel=1e-5)
    assert sum(e["value"] for e in each) == pytest.approx(whole["value"], rel=1e-5)
    if not ridge:
        assert whole["value"] == pytest.approx(model.score(z, y), rel=1e-5)
    age = fit.effect(1)
    assert age is not None
    at = int(moments.starts[1])
    assert age["value"] == pytest.approx(b[at] * z[:, at].std() / y.std(), rel=1e-5)
    towns = fit.effects(0)
    expected = moments.drivers[0].contrasts @ b[moments.of(0)]
    expected = (expected - (z[:, moments.of(0)] @ b[moments.of(0)]).mean()) / y.std()
    assert [t["value"] for t in towns] == pytest.approx(expected.tolist(), rel=1e-4)


def test_drivers_come_in_the_order_of_what_they_explain() -> None:
    columns = shops(3000, 6)
    answer = exact(asked(nps="surveys.nps", drivers=("income", "town", "age")), columns)
    assert next(iter(rows(answer, "drivers"))) == ("age",)
    assert rows(answer, "drivers")["age",]["effect"]["high"] < 0
    assert answer["ridge"] == pytest.approx(0.0, abs=1e-6)


def test_where_noise_drowns_everything_nothing_is_claimed() -> None:
    columns, analysis = shops(60, 7), asked(nps="surveys.nps", by=("town",), drivers=("age",))
    noise = np.random.default_rng(8).normal(0, 30.0, analysis.length(0))
    answer = analysis.read([NoisySum(total(analysis, columns) + noise, 30.0)])
    assert {p["name"] for p in answer["parts"]} == {"nps", "answers", "nps by group"}
    assert answer["notes"][-1].startswith("No drivers: ")
    oak = rows(answer, "nps by group")["town", "oak"]["nps"]
    assert (oak["low"], oak["high"]) == (-100.0, 100.0)


# --- with noise ----------------------------------------------------------------------------------------------


def numbers(answer: Mapping[str, Any]) -> dict[tuple[str, ...], dict[str, float]]:
    found: dict[tuple[str, ...], dict[str, float]] = {("customers",): answer["customers"]}
    for part in answer["parts"]:
        for row in part["rows"]:
            found |= {(part["name"], *row["of"], m): v for m, v in row.items() if isinstance(v, dict)}
    return found


@pytest.mark.statistical
@pytest.mark.parametrize("std", [2.0, 8.0])
def test_the_intervals_hold_the_truth(std: float) -> None:
    """30 draws of the noise over some 90 numbers; nominal 95 %."""
    columns, analysis = shops(3000, 9), asked(**EVERYTHING)
    clean, rng = total(analysis, columns), np.random.default_rng(10)
    truth = numbers(analysis.read([NoisySum(clean, 1e-9)]))
    assert analysis.moments is not None
    held = []
    for _ in range(30):
        answer = analysis.read([NoisySum(clean + rng.normal(0, std, clean.size), std)])
        regression = clean[len(analysis.sums.weights) :] / analysis.question.drivers_share**0.5
        same = Fit(analysis.moments, NoisySum(regression, 1e-9), answer["ridge"])
        truth["fit", "nps", "explained"] = same.explained()[1]
        for j, explained in enumerate(same.explained()[0]):
            driver = analysis.moments.drivers[j].domain
            truth["drivers", driver.name, "explained"] = explained
            if driver.spec.numeric:
                truth["drivers", driver.name, "effect"] = same.effect(j) or {}
            else:
                for value, effect in zip(driver.cells, same.effects(j), strict=True):
                    truth["effects", driver.name, value, "effect"] = effect
        for of, n in numbers(answer).items():
            held.append(n["low"] - 1e-6 <= truth[of]["value"] <= n["high"] + 1e-6)
    assert 0.92 <= np.mean(held) <= 0.985, np.mean(held)


def test_least_squares_is_the_textbook_one() -> None:
    """Three measurements, of a, of b and of their sum: Aitken's estimate, and its covariance."""
    values, stds = np.array([10.0, 20.0, 36.0]), np.array([1.0, 2.0, 1.0])
    found = Consistent.of(values, stds, np.array([[1.0, 1.0, -1.0], [2.0, 2.0, -2.0]]))
    design = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]) / stds[:, None]
    ab = np.linalg.solve(design.T @ design, design.T @ (values / stds))
    assert found.values == pytest.approx([*ab, ab.sum()])
    assert found.covariance[:2, :2] == pytest.approx(np.linalg.inv(design.T @ design))


# --- bad questions -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("question", "wrong"),
    [
        ({"nps": "surveys.csat"}, None),
        ({"csat": "surveys.nps"}, "from 1 to 5"),
        ({"nps": "grade"}, "from 0 to 10"),
        ({"nps": "mean_nps"}, "is a roll-up"),
        ({"nps": "nowhere"}, "not declared"),
        ({"nps": "surveys.id"}, "personal data or the customer id"),
        ({"nps": "liked", "days": 30}, "nobody knows when"),
        ({"nps": "liked", "moves_share": 0.1}, "one answer a customer"),
        ({"nps": "liked", "by": ["surveys.way"]}, "another table"),
        ({"nps": "surveys.nps", "by": ["visits.kind"]}, "another table"),
        ({"nps": "surveys.nps", "by": ["id"]}, "customer id"),
        ({"nps": "surveys.nps", "drivers": ["surveys.way"]}, "not declared"),
    ],
)
def test_bad_questions_are_refused(question: dict[str, Any], wrong: str | None) -> None:
    if wrong is None:  # answers from 1 to 5 are some of those from 0 to 10
        assert asked(**question).length(0)
        return
    with pytest.raises(BadInput, match=wrong):
        asked(**question)


@pytest.mark.parametrize(
    ("question", "wrong"),
    [
        ({}, "nps or csat"),
        ({"nps": "liked", "groups_share": 0.7}, "leave nothing"),
        ({"nps": "liked", "by": ["town", "town"]}, "named twice"),
        ({"nps": "liked", "latest": 0}, "latest"),
    ],
)
def test_impossible_questions_are_refused(question: dict[str, Any], wrong: str) -> None:
    with pytest.raises(ValidationError, match=wrong):
        Question(**question)
