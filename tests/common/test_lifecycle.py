"""Lifecycle: the rules by hand, every number against one customer after the other, intervals, and what is refused."""

from collections import Counter
from datetime import date, timedelta
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sfumato.common.analyses import catalogue
from sfumato.common.analyses.active_months import OLDEST, ActiveMonths
from sfumato.common.analyses.analysis import NoisySum
from sfumato.common.analyses.life_states import STATES, Rules
from sfumato.common.analyses.lifecycle import Lifecycle, Question, build
from sfumato.common.analyses.parts import parts_of
from sfumato.common.contract import Contract
from sfumato.common.errors import BadInput

AS_OF = date(2025, 7, 1)
KEY = {"name": "id", "type": "string", "role": "customer_id"}


def contract(as_of: date | None = AS_OF) -> Contract:
    visits = [KEY, {"name": "day", "type": "date", "role": "time"}]
    notes = [KEY, {"name": "n", "type": "integer", "bounds": [0, 3]}]
    return Contract.model_validate(
        {
            "version": 1,
            "name": "visits",
            "purpose": "Know who stays.",
            "as_of": as_of,
            "tables": [
                {"name": "customers", "columns": [KEY]},
                {"name": "visits", "columns": visits},
                {"name": "notes", "columns": notes},
            ],
        }
    )


def asked(**more: Any) -> Lifecycle:
    question = {"table": "visits", "months": 6, "new": 2, "sleep": 2, "churn": 4, "survival": 10} | more
    found = build(Question.model_validate(question), contract())
    assert isinstance(found, Lifecycle)
    return found


def people(n: int, seed: int) -> dict[str, Any]:
    """Customers with on and off spells over some 20 months; some never come."""
    rng = np.random.default_rng(seed)
    lists = []
    for _ in range(n):
        chance = rng.choice([0.0, 0.15, 0.4, 0.9], p=[0.1, 0.4, 0.3, 0.2])
        first = rng.integers(0, 20)
        days = [int(30 * m + rng.integers(0, 30)) for m in range(first + 1) if rng.random() < chance]
        lists.append([AS_OF - timedelta(days=d) for d in sorted(days)])
    return {"visits.day": pa.array(lists, type=pa.list_(pa.date32()))}


def total(found: Lifecycle, frame: dict[str, Any]) -> np.ndarray:
    cells = found.contribute(0, frame, None)
    exact = np.zeros(cells.length)
    for column, weight in enumerate(cells.weights):
        here = cells.cells[:, column]
        np.add.at(exact, here[here >= 0], weight)
    return exact


def naive(frame: dict[str, Any], q: Question) -> dict[tuple[str, ...], float]:
    """Every number of the answer by the words of the rules, one customer after the other."""
    lives = [
        sorted({-((AS_OF - d).days // 30) for d in dates if d <= AS_OF})
        for dates in frame["visits.day"].to_pylist()
    ]
    window = range(1 - q.months, 1)
    paths = [[by_hand(life, now, q) for now in window] for life in lives]
    truth: dict[tuple[str, ...], float] = {}
    for i, now in enumerate(window):
        until = (AS_OF + timedelta(days=30 * now)).isoformat()
        for state in STATES:
            count = sum(p[i] == state for p in paths)
            truth["states", "customers", until, state] = count
            truth["states", "share", until, state] = count / len(paths)
    moves = Counter(m for p in paths for m in pairwise(p))
    leaving = Counter(a for p in paths for a in p[:-1])
    for (a, b), count in moves.items():
        truth["transitions", "rate", a, b] = count / leaving[a]
        truth["transitions", "customers", a, b] = count / (q.months - 1)
    ends = []
    for life in lives:
        if life and -life[0] < q.survival:
            quiet = [a for a, b in pairwise([*life, 1]) if b - a > q.churn]
            ends.append((quiet[0] + q.churn - life[0], True) if quiet else (-life[0], False))
    curve = 1.0
    for month in range(q.survival):
        at_risk = sum(end >= month for end, _ in ends)
        curve *= 1 - sum(e == month and lost for e, lost in ends) / at_risk if at_risk else 1
        truth["survival", "still there", str(month)] = curve
        truth["survival", "seen so long", str(month)] = at_risk
    return truth


def by_hand(life: list[int], now: int, q: Question) -> str:
    past = [m for m in life if m <= now]
    if not past:
        return "prospect"
    if now - past[-1] >= q.churn:
        return "churned"
    if now - past[-1] >= q.sleep:
        return "sleeping"
    back = [b for a, b in pairwise(past) if b - a > q.churn]
    if back and now - back[-1] < q.new:
        return "won back"
    return "new" if now - past[0] < q.new else "active"


def shown(answer: dict[str, Any]) -> dict[tuple[str, ...], dict[str, float]]:
    return {
        (p["name"], measure, *row["of"]): row[measure]
        for p in answer["parts"]
        for row in p["rows"]
        for measure in p["units"]
    }


def test_the_states_of_one_life_by_hand() -> None:
    active = np.zeros((1, 16), dtype=bool)
    active[0, [2, 3, 10]] = True
    found = [STATES[s] for s in Rules(new=2, sleep=2, churn=4).states(active)[0]]
    assert found == [
        *["prospect"] * 2,
        *["new"] * 2,
        *["active"],
        *["sleeping"] * 2,
        *["churned"] * 3,
        *["won back"] * 2,
        *["sleeping"] * 2,
        *["churned"] * 2,
    ]


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 5), st.integers(1, 4), st.integers(1, 5), st.lists(st.booleans(), min_size=2, max_size=40)
)
def test_every_month_goes_where_the_rules_say_that_one_can_go(
    new: int, sleep: int, more: int, life: list[bool]
) -> None:
    rules = Rules(new, sleep, sleep + more)
    path = rules.states(np.array([life])).tolist()[0]
    assert set(pairwise(path)) <= set(rules.transitions)
    q = Question(table="visits", new=new, sleep=sleep, churn=max(sleep + more, 2), survival=60)
    months = [i for i, a in enumerate(life) if a]
    assert [STATES[s] for s in path] == [by_hand(months, now, q) for now in range(len(life))]


@pytest.mark.parametrize("more", [{}, {"new": 3, "sleep": 1, "churn": 3, "months": 2}])
def test_without_noise_every_number_is_the_naive_one(more: dict[str, int]) -> None:
    found, frame = asked(**more), people(1500, 1)
    answer = found.read([NoisySum(total(found, frame), 1e-9)])
    numbers, truth = shown(answer), naive(frame, found.question)
    assert answer["customers"]["value"] == pytest.approx(1500)
    assert set(truth) <= set(numbers)
    for name, exact in truth.items():
        assert numbers[name]["value"] == pytest.approx(exact, abs=1e-4), name
    for name in set(numbers) - set(truth):
        assert name[0] == "transitions" and numbers[name]["value"] == pytest.approx(0, abs=1e-4)
    assert [p.name for p in parts_of(answer)][1:] == ["states", "transitions", "survival"]


@pytest.mark.statistical
def test_intervals_hold() -> None:
    """40 draws of some 80 numbers; nominal 95 %."""
    found, frame, rng = asked(), people(2500, 2), np.random.default_rng(3)
    exact, truth, held = total(found, frame), naive(frame, found.question), []
    for _ in range(40):
        numbers = shown(found.read([NoisySum(exact + 6 * rng.standard_normal(exact.size), 6.0)]))
        held += [numbers[n]["low"] - 1e-6 <= t <= numbers[n]["high"] + 1e-6 for n, t in truth.items()]
    assert 0.92 <= np.mean(held) <= 0.985, np.mean(held)


def test_least_squares_takes_noise_away() -> None:
    found, frame, rng = asked(), people(800, 4), np.random.default_rng(5)
    exact, truth = total(found, frame), naive(frame, found.question)
    plain, tied = [], []
    cells, weight = len(found.rules.transitions), found.contribute(0, frame, None).weights[0]
    for _ in range(20):
        noisy = exact + 3 * rng.standard_normal(exact.size)
        answer = shown(found.read([NoisySum(noisy, 3.0)]))
        for state, name in enumerate(STATES):
            one = [i for i, (a, _) in enumerate(found.rules.transitions) if a == state]
            until = found.activity.until(3)
            count = truth["states", "customers", until, name]
            plain.append(abs(noisy[2 * cells + np.array(one)].sum() / weight - count))
            tied.append(abs(answer["states", "customers", until, name]["value"] - count))
    assert np.mean(tied) < 0.85 * np.mean(plain)


def test_nobody_is_longer_than_the_bound_and_a_slice_adds_what_it_would_add_among_all() -> None:
    found, frame = asked(), people(300, 6)
    cells = found.contribute(0, frame, None)
    assert cells.length == found.length(0) and cells.cells.max() < cells.length
    assert np.linalg.norm(cells.weights) <= found.max_norm(0) * (1 + 1e-12)
    for row in cells.cells:
        assert len(set(row[row >= 0])) == (row >= 0).sum()
    part = found.contribute(0, {n: v.slice(50, 20) for n, v in frame.items()}, None)
    assert (part.cells == cells.cells[50:70]).all()


def test_drowned_in_noise_nothing_is_claimed() -> None:
    found, frame = asked(), people(50, 7)
    rng = np.random.default_rng(8)
    answer = shown(
        found.read([NoisySum(total(found, frame) + 1e4 * rng.standard_normal(found.length(0)), 1e4)])
    )
    last = answer["survival", "still there", "9"]
    assert last["low"] == 0.0
    assert all(0 <= n["low"] <= n["value"] <= n["high"] for n in answer.values())


def test_dates_fall_in_months_of_thirty_days_and_the_future_in_none() -> None:
    months = ActiveMonths.of(contract(), "visits")
    days = [
        [AS_OF, AS_OF - timedelta(days=29)],
        [AS_OF - timedelta(days=30)],
        [AS_OF + timedelta(days=1)],
        [],
    ]
    old = [[date(1999, 1, 1)], None]
    active = months.read(pa.chunked_array([pa.array(p, type=pa.list_(pa.date32())) for p in (days, old)]))
    found = [np.flatnonzero(row).tolist() for row in active]
    assert found == [[OLDEST - 1], [OLDEST - 2], [], [], [0], []]
    stamps = pa.array(
        [[d and np.datetime64(d, "us") for d in row] for row in days], type=pa.list_(pa.timestamp("us"))
    )
    assert (months.read(stamps) == active[:4]).all()
    assert months.until(1) == "2025-06-01"


def test_a_lifecycle_is_asked_without_numbers() -> None:
    with pytest.raises(ValueError, match="without numbers"):
        asked().contribute(0, people(3, 0), np.zeros(1, np.float32))


@pytest.mark.parametrize(
    ("table", "says"), [("wages", "no table"), ("customers", "no table"), ("notes", "by month")]
)
def test_a_table_that_cannot_be_read_by_month(table: str, says: str) -> None:
    with pytest.raises(BadInput, match=says):
        asked(table=table)


def test_it_takes_a_day_to_look_back_from() -> None:
    with pytest.raises(BadInput, match="as_of"):
        catalogue.build("lifecycle", {"table": "visits"}, contract(None))


@pytest.mark.parametrize("more", [{"sleep": 4}, {"survival": 4}, {"months": 1}, {"new": 0}])
def test_windows_that_make_no_sense(more: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"sleep|months|new|churn"):
        asked(**more)
