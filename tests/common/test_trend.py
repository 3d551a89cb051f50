"""Trend: paths against counting by hand, the noise's size and likeness, intervals, and what is refused."""

from datetime import date, timedelta
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sfumato.common.analyses import catalogue
from sfumato.common.analyses.analysis import NoisySum
from sfumato.common.analyses.parts import parts_of
from sfumato.common.analyses.paths import PathCounts, Paths, best_alike, settled, variance
from sfumato.common.analyses.trend import Question, Trend, build
from sfumato.common.contract import Contract
from sfumato.common.contributions import Cells
from sfumato.common.errors import BadInput

AS_OF = date(2025, 7, 1)
KEY = {"name": "id", "type": "string", "role": "customer_id"}
TOWNS = ("ash", "elm")


def contract(as_of: date | None = AS_OF) -> Contract:
    town = {"name": "town", "type": "category", "categories": list(TOWNS)}
    visits = [KEY, {"name": "day", "type": "date", "role": "time"}]
    count = {"name": "visits_30d", "table": "visits", "aggregate": "count", "days": 30, "bounds": [0, 9]}
    since = {"name": "since", "table": "visits", "aggregate": "days_since_last", "bounds": [0, 99]}
    return Contract.model_validate(
        {
            "version": 1,
            "name": "visits",
            "purpose": "See what moves.",
            "as_of": as_of,
            "tables": [
                {"name": "customers", "columns": [KEY, town]},
                {"name": "visits", "columns": visits},
                {"name": "notes", "columns": [KEY]},
            ],
            "features": [count | {"edges": [1, 3]}, *([since] if as_of else [])] if as_of else [],
        }
    )


def asked(**more: Any) -> Trend:
    question = {"follow": "visits_30d", "months": 6} | more
    found = build(Question.model_validate(question), contract())
    assert isinstance(found, Trend)
    return found


def people(n: int, seed: int) -> dict[str, Any]:
    """Visits by month that mostly stay what they were, and the days they would have been made on."""
    rng = np.random.default_rng(seed)
    values = np.zeros((n, 6))
    values[:, 0] = rng.integers(0, 5, n)
    for t in range(1, 6):
        moves = rng.random(n) < 0.2
        values[:, t] = np.where(moves, rng.integers(0, 5, n), values[:, t - 1])
    days = [
        [AS_OF - timedelta(days=30 * (5 - t) + 3) for t in range(5, -1, -1) for _ in range(int(row[t]))]
        for row in values
    ]
    frame: dict[str, Any] = {f"visits_30d@{5 - t}": pa.array(values[:, t]) for t in range(6)}
    return frame | {
        "town": pa.array(rng.choice(TOWNS, n, p=[0.7, 0.3]).tolist()),
        "visits.day": pa.array(days, type=pa.list_(pa.date32())),
    }


def rows_of(cells: Cells) -> np.ndarray:
    rows = np.zeros((len(cells.cells), cells.length))
    for column, weight in enumerate(cells.weights):
        here = cells.cells[:, column]
        np.add.at(rows, (np.flatnonzero(here >= 0), here[here >= 0]), weight)
    return rows


def naive(found: Trend, frame: dict[str, Any]) -> dict[tuple[str, ...], float]:
    """Every number of the answer from the customers' paths, one after the other."""
    q = found.question
    if q.follow == "visits_30d":
        values = np.stack([frame[f"visits_30d@{m}"].to_numpy() for m in reversed(range(q.months))], axis=1)
        paths = [["0" if v < 1 else "1 to 2" if v < 3 else "3 to 9" for v in row] for row in values]
    else:
        months = [{(AS_OF - d).days // 30 for d in days} for days in frame["visits.day"].to_pylist()]
        paths = [
            [
                "active" if any(m + j in own for j in range(q.quiet)) else "quiet"
                for m in reversed(range(q.months))
            ]
            for own in months
        ]
    most = q.months if q.changes is None else q.changes
    kept = []
    for path in paths:
        new, left = [path[-1]], most
        for state in reversed(path[:-1]):
            left -= state != new[-1]
            new.append(state if left >= 0 else new[-1])
        kept.append(new[::-1])
    restless = sum(sum(a != b for a, b in pairwise(p)) > most for p in paths)
    truth: dict[tuple[str, ...], float] = {("restless", "customers"): restless}
    truth["restless", "share"] = restless / len(paths)
    towns = frame["town"].to_pylist()
    sorts: dict[tuple[str, ...], list[list[str]]] = {("months",): kept}
    if q.group:
        sorts |= {("groups", t): [p for p, own in zip(kept, towns, strict=True) if own == t] for t in TOWNS}
    for (part, *named), some in sorts.items():
        for t, until in enumerate(found.until):
            for state in found.followed.states:
                now = sum(p[t] == state for p in some)
                truth[part, "customers", *named, until, state] = now
                truth[part, "share", *named, until, state] = now / len(some)
                if t:
                    truth[part, "change", *named, until, state] = now - sum(p[t - 1] == state for p in some)
    return truth


def shown(answer: dict[str, Any]) -> dict[tuple[str, ...], dict[str, float]]:
    return {
        (p["name"], measure, *row["of"]): row[measure]
        for p in answer["parts"]
        for row in p["rows"]
        for measure in p["units"]
        if measure in row
    }


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"changes": 1, "group": "town"},
        {"follow": "visits", "quiet": 2, "changes": 2},
        {"follow": "visits", "group": "town", "months": 4},
    ],
)
def test_without_noise_every_number_is_the_naive_one(more: dict[str, Any]) -> None:
    found, frame = asked(**more), people(600, 1)
    total = rows_of(found.contribute(0, frame, None)).sum(axis=0)
    answer = found.read([NoisySum(total, 1e-9)])
    numbers, truth = shown(answer), naive(found, frame)
    assert set(numbers) == {name for name in truth if found.bounded or name[0] != "restless"}
    for name in numbers:
        assert numbers[name]["value"] == pytest.approx(truth[name], abs=1e-5), name
    assert answer["customers"]["value"] == pytest.approx(600)
    assert next(parts_of(answer)).name == "all customers"


@pytest.mark.statistical
@pytest.mark.parametrize("more", [{"changes": 1, "group": "town"}, {}])
def test_intervals_hold(more: dict[str, Any]) -> None:
    """60 draws; nominal 95 %."""
    found, frame, rng = asked(**more), people(800, 2), np.random.default_rng(3)
    total, truth, held = rows_of(found.contribute(0, frame, None)).sum(axis=0), naive(found, frame), []
    for _ in range(60):
        numbers = shown(found.read([NoisySum(total + 12 * rng.standard_normal(total.size), 12.0)]))
        held += [n["low"] - 1e-6 <= truth[name] <= n["high"] + 1e-6 for name, n in numbers.items()]
    assert 0.92 <= np.mean(held) <= 0.985, np.mean(held)


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 24), st.integers(1, 8), st.integers(2, 4), st.integers(0, 99))
def test_nobody_is_longer_than_the_variance_says_and_someone_is_as_long(
    months: int, changes: int, states: int, seed: int
) -> None:
    alike = best_alike(months, changes)
    rng = np.random.default_rng(seed)
    walked, more = settled(rng.integers(0, states, (50, months)), changes)
    moved = (walked[:, 1:] != walked[:, :-1]).sum(axis=1)
    assert (moved <= changes).all() and (moved[more] == changes).all()
    paths = Paths(1, months, states, alike)
    cells = Cells(paths.cells(walked, np.zeros(50, np.int64)), paths.weights, paths.size)
    norms = (rows_of(cells) ** 2).sum(axis=1)
    assert norms == pytest.approx([variance(months, int(m), alike) for m in moved])
    assert norms.max() <= variance(months, changes, alike) * (1 + 1e-12)


def test_only_the_latest_changes_are_kept() -> None:
    walked, more = settled(np.array([[0, 1, 0, 1, 1, 2], [1, 1, 2, 2, 2, 2]]), 2)
    assert walked.tolist() == [[0, 0, 0, 1, 1, 2], [1, 1, 2, 2, 2, 2]]
    assert more.tolist() == [True, False]


def test_the_layout_is_never_worse_than_one_number_a_month_and_far_better_for_few_changes() -> None:
    for months in (2, 12, 60):
        for changes in (1, 2, 6, months - 1):
            assert variance(months, changes, best_alike(months, changes)) <= months
    assert best_alike(12, 11) == 0.0 and variance(12, 11, 0.0) == 12
    assert variance(12, 1, best_alike(12, 1)) < 6 and variance(60, 2, best_alike(60, 2)) < 17


@pytest.mark.statistical
def test_the_covariance_is_the_one_that_noise_has() -> None:
    rng, paths = np.random.default_rng(4), Paths(1, 5, 3, 0.6)
    draws = np.array(
        [PathCounts.of(paths, NoisySum(rng.standard_normal(15), 1.0)).counts.ravel() for _ in range(6000)]
    )
    counts = PathCounts.of(paths, NoisySum(np.zeros(15), 1.0))
    told = [
        [counts.covariance(t, s, u, v) for u in range(5) for v in range(3)]
        for t in range(5)
        for s in range(3)
    ]
    assert np.abs(np.cov(draws.T) - np.array(told)).max() < 0.06
    everyone = draws.reshape(-1, 5, 3).sum(axis=2)
    assert np.abs(everyone - everyone[:, :1]).max() < 1e-9
    assert everyone[:, 0].var() == pytest.approx(counts.whole(0)[0], rel=0.1)


def test_a_slice_of_customers_adds_what_it_would_add_among_all() -> None:
    found, frame = asked(changes=1, group="town"), people(200, 5)
    whole = found.contribute(0, frame, None)
    part = found.contribute(0, {n: v.slice(30, 40) for n, v in frame.items()}, None)
    assert (part.cells == whole.cells[30:70]).all()
    assert np.linalg.norm(rows_of(whole), axis=1).max() <= found.max_norm(0) * (1 + 1e-12)


def test_a_trend_is_asked_without_numbers() -> None:
    with pytest.raises(ValueError, match="without numbers"):
        asked().contribute(0, people(3, 0), np.zeros(2, np.float32))


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"follow": "wages"}, "no roll-up"),
        ({"follow": "since"}, "by month"),
        ({"follow": "notes"}, "by month"),
        ({"group": "wages"}, "not declared"),
        ({"group": "visits_30d", "bins": 64, "months": 60, "follow": "visits"}, None),
    ],
)
def test_a_question_that_cannot_be_asked(more: dict[str, Any], says: str | None) -> None:
    if says is None:
        assert asked(**more).length(0) == 60 * 2 * 3
        return
    with pytest.raises(BadInput, match=says):
        asked(**more)


def test_it_takes_a_day_to_look_back_from_and_the_catalogue_knows_it() -> None:
    with pytest.raises(BadInput, match="as_of"):
        catalogue.build("trend", {"follow": "visits"}, contract(None))
    with pytest.raises(ValueError, match="changes"):
        catalogue.build("trend", {"follow": "visits", "changes": 0}, contract())
