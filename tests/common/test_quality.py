"""Quality: every problem against a plain loop over the rows, the bound, and whether its intervals hold the truth."""

from collections import Counter
from collections.abc import Mapping
from datetime import date, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from sfumato.common.analyses import quality
from sfumato.common.analyses.analysis import NoisySum
from sfumato.common.analyses.quality import Quality, Question
from sfumato.common.contract import Contract
from sfumato.common.errors import BadInput

AS_OF = date(2025, 7, 1)
KEY = {"name": "id", "type": "string", "role": "customer_id"}
BASE: dict[str, Any] = {
    "version": 1,
    "name": "shops",
    "purpose": "See how good the data are.",
    "as_of": AS_OF,
    "tables": [
        {
            "name": "customers",
            "columns": [
                KEY,
                {"name": "name", "type": "string", "role": "pii", "protection": "encrypt", "nullable": True},
                {"name": "area", "type": "category", "categories": ["town", "land"]},
                {"name": "job", "type": "category", "categories": ["a", "b"], "out_of_domain": "clip"},
                {
                    "name": "age",
                    "type": "integer",
                    "bounds": [17.5, 90.5],
                    "out_of_domain": "clip",
                    "nullable": True,
                },
                {"name": "wealth", "type": "number", "bounds": [0, 100], "out_of_domain": "clip"},
                {"name": "tall", "type": "number", "bounds": [1, 2]},
                {"name": "since", "type": "date", "nullable": True},
                {"name": "left", "type": "integer", "role": "label"},
            ],
        },
        {
            "name": "visits",
            "columns": [
                KEY,
                {"name": "day", "type": "date", "role": "time"},
                {
                    "name": "paid",
                    "type": "number",
                    "bounds": [-5, 50],
                    "out_of_domain": "clip",
                    "nullable": True,
                },
                {"name": "kind", "type": "category", "categories": ["x", "other"], "out_of_domain": "clip"},
            ],
        },
    ],
    "features": [
        {"name": "visits_in_all", "table": "visits", "aggregate": "count", "bounds": [0, 3]},
        {"name": "paid_most", "table": "visits", "aggregate": "max", "column": "paid", "bounds": [-5, 20]},
        {"name": "kinds", "table": "visits", "aggregate": "distinct", "column": "kind", "bounds": [0, 3]},
    ],
}
CONTRACT = Contract.model_validate(BASE)


def shops(n: int, seed: int) -> dict[str, Any]:
    """Customers as a store has them: what loading clips is clipped."""
    rng = np.random.default_rng(seed)
    age = np.clip(rng.normal(55, 30, n).round(), 18, 90)
    visits = rng.choice(5, n, p=[0.2, 0.3, 0.2, 0.2, 0.1])
    days, paid, kinds = list[list[Any]](), list[list[Any]](), list[list[Any]]()
    for count in visits.tolist():
        back = sorted(rng.integers(0, 300, count).tolist())
        days.append([AS_OF - timedelta(days=d) for d in back])
        paid.append([None if rng.random() < 0.05 else float(p) for p in rng.integers(-5, 51, count)])
        kinds.append(rng.choice(["x", "other"], count).tolist())
        if count > 1 and rng.random() < 0.1:
            days[-1][1], paid[-1][1], kinds[-1][1] = days[-1][0], paid[-1][0], kinds[-1][0]
    most = [max((p for p in of if p is not None), default=None) for of in paid]
    since = [AS_OF + timedelta(days=int(d)) for d in rng.integers(-900, 60, n)]
    return {
        "area": pa.array(rng.choice(["town", "land"], n, p=[0.7, 0.3])),
        "job": pa.array(rng.choice(["a", "b", "other"], n, p=[0.5, 0.38, 0.12])),
        "age": pa.array(np.where(rng.random(n) < 0.1, np.nan, age), from_pandas=True).cast(pa.int64()),
        "wealth": pa.array(np.clip(rng.normal(60, 30, n), 0, 100)),
        "tall": pa.array(np.ones(n)),
        "since": pa.array([s if rng.random() < 0.9 else None for s in since], pa.date32()),
        "visits_in_all": pa.array(np.minimum(visits, 3).astype(float)),
        "paid_most": pa.array([None if m is None else min(m, 20.0) for m in most], pa.float64()),
        "kinds": pa.array([float(len(set(k))) for k in kinds]),
        "visits.day": pa.array(days, pa.list_(pa.date32())),
        "visits.paid": pa.array(paid, pa.list_(pa.float64())),
        "visits.kind": pa.array(kinds, pa.list_(pa.string())),
    }


def naive(columns: Mapping[str, Any], stale_days: int) -> dict[tuple[str, str], list[bool]]:
    """Customer after customer."""
    c = {name: values.to_pylist() for name, values in columns.items()}
    rows = [
        list(zip(*r, strict=True))
        for r in zip(*(c[f"visits.{k}"] for k in ("day", "paid", "kind")), strict=True)
    ]
    old = AS_OF - timedelta(days=stale_days)
    return {
        ("customers.job", "other"): [j == "other" for j in c["job"]],
        ("customers.age", "missing"): [a is None for a in c["age"]],
        ("customers.age", "at its lower bound"): [a == 18 for a in c["age"]],
        ("customers.age", "at its upper bound"): [a == 90 for a in c["age"]],
        ("customers.wealth", "at its upper bound"): [w == 100 for w in c["wealth"]],
        ("customers.since", "missing"): [s is None for s in c["since"]],
        ("customers.since", "after as_of"): [s is not None and s > AS_OF for s in c["since"]],
        ("customers.visits_in_all", "at its upper bound"): [v == 3 for v in c["visits_in_all"]],
        ("customers.paid_most", "missing"): [m is None for m in c["paid_most"]],
        ("customers.paid_most", "at its upper bound"): [m == 20 for m in c["paid_most"]],
        ("visits.(rows)", "no rows"): [not r for r in rows],
        ("visits.(rows)", "stale"): [bool(r) and max(d for d, _, _ in r) <= old for r in rows],
        ("visits.(rows)", "repeated rows"): [max(Counter(r).values(), default=0) > 1 for r in rows],
        ("visits.paid", "missing"): [any(p is None for _, p, _ in r) for r in rows],
        ("visits.paid", "at its lower bound"): [any(p == -5 for _, p, _ in r) for r in rows],
        ("visits.paid", "at its upper bound"): [any(p == 50 for _, p, _ in r) for r in rows],
    }


def asked(**question: Any) -> Quality:
    found = quality.build(Question(**question), CONTRACT)
    assert isinstance(found, Quality)
    return found


def total(analysis: Quality, columns: Mapping[str, Any]) -> np.ndarray:
    return np.asarray(analysis.contribute(0, columns, None).rows.sum(axis=0))


def rows(answer: Mapping[str, Any], part: str) -> dict[tuple[str, ...], dict[str, Any]]:
    (found,) = (p for p in answer["parts"] if p["name"] == part)
    return {tuple(r["of"]): r for r in found["rows"]}


def truth(columns: Mapping[str, Any], stale_days: int = 90) -> dict[tuple[str, ...], tuple[int, int]]:
    """How many have a problem, and of how many, in all and by area."""
    area = np.array(columns["area"].to_pylist())
    found: dict[tuple[str, ...], tuple[int, int]] = {}
    for of, flags in naive(columns, stale_days).items():
        found[*of, "all customers"] = sum(flags), len(flags)
        for cell in ("town", "land"):
            found[*of, f"area {cell}"] = int(np.array(flags)[area == cell].sum()), int((area == cell).sum())
    return found


def test_without_noise_every_problem_is_the_naive_one() -> None:
    columns, analysis = shops(700, 1), asked(by=("area",), stale_days=60)
    answer = analysis.read([NoisySum(total(analysis, columns), 1e-9)])
    expected = truth(columns, 60)
    shown = {(*of, "all customers"): row for of, row in rows(answer, "columns").items()} | rows(
        answer, "classes"
    )
    assert set(shown) == set(expected)
    for of, (count, customers) in expected.items():
        assert 0 < count < customers, of
        assert shown[of]["customers"]["value"] == pytest.approx(count, abs=1e-4)
        assert shown[of]["share"]["value"] == pytest.approx(count / customers, abs=1e-6)
    assert answer["customers"]["value"] == pytest.approx(700)
    assert answer["notes"][1].startswith("3 columns are personal data")


def test_what_cannot_go_wrong_is_not_asked() -> None:
    """Not what loading refuses, not a bound that the source cannot pass, not a 0 that may be a real one."""
    problems = {(c.name, c.problem) for c in asked().checks}
    assert not {
        of
        for of in problems
        if of[0] in ("customers.tall", "customers.left", "customers.kinds", "visits.kind")
    }
    assert ("customers.wealth", "at its lower bound") not in problems
    assert ("customers.paid_most", "at its lower bound") not in problems
    assert ("visits.day", "missing") not in problems
    assert len(asked(tables=("visits",)).checks) == 6


def test_nobody_is_longer_than_the_bound_and_nobody_depends_on_others() -> None:
    columns, analysis = shops(300, 2), asked(by=("area", "age"))
    found = analysis.contribute(0, columns, None).rows
    assert found.shape == (300, analysis.length(0))
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), analysis.max_norm(0))
    some = {name: pa.chunked_array([values]).slice(40, 30) for name, values in columns.items()}
    np.testing.assert_allclose(analysis.contribute(0, some, None).rows, found[40:70])
    nobody = {name: values.slice(0, 0) for name, values in columns.items()}
    assert analysis.contribute(0, nobody, None).rows.shape == (0, analysis.length(0))
    with pytest.raises(ValueError, match="without numbers"):
        analysis.contribute(0, columns, np.zeros(1, dtype=np.float32))


def test_what_stands_out_is_named_first_and_classes_only_beyond_all() -> None:
    columns, analysis = shops(4000, 3), asked(by=("area",), stands_out=0.1)
    land = np.array(columns["area"].to_pylist()) == "land"
    worse = np.where(land & (np.arange(4000) % 2 == 0), "other", columns["job"].to_pylist())
    columns["job"] = pa.array(worse)
    noisy = total(analysis, columns) + np.random.default_rng(4).normal(0, 3.0, analysis.length(0))
    named = rows(analysis.read([NoisySum(noisy, 3.0)]), "stands out")
    found = list(named)
    assert (
        named["visits.(rows)", "stale", "all customers"]["meaning"]
        == "no row from 2025-04-03 on, but older ones"
    )
    assert ("customers.job", "other", "area land") in found
    assert ("customers.job", "other", "area town") not in found
    all_first = [of[2] == "all customers" for of in found]
    assert all_first == sorted(all_first, reverse=True)
    shares = {of: count / n for of, (count, n) in truth(columns).items() if of[2] == "all customers"}
    assert {of for of, share in shares.items() if share > 0.13} <= set(found)
    assert not {of for of, share in shares.items() if share < 0.07} & set(found)


@pytest.mark.statistical
@pytest.mark.parametrize("std", [2.0, 12.0])
def test_the_intervals_hold_the_truth(std: float) -> None:
    """60 draws of the noise over some 100 numbers; nominal 95 %, those that stand out as well."""
    columns, analysis = shops(2000, 5), asked(by=("area",))
    clean, expected, rng = total(analysis, columns), truth(columns), np.random.default_rng(6)
    held: dict[str, list[bool]] = {"stands out": [], "columns": [], "classes": []}
    for _ in range(60):
        answer = analysis.read([NoisySum(clean + rng.normal(0, std, clean.size), std)])
        for name, into in held.items():
            for of, row in rows(answer, name).items():
                count, n = expected[of if len(of) == 3 else (*of, "all customers")]
                for shown, true in ((row["customers"], count), (row["share"], count / n)):
                    into.append(shown["low"] - 1e-6 <= true <= shown["high"] + 1e-6)
    assert 0.92 <= np.mean([h for into in held.values() for h in into]) <= 0.985
    assert np.mean(held["stands out"]) >= 0.92


def test_bad_questions_are_refused() -> None:
    for question, wrong in (
        ({"tables": ["nowhere"]}, "not declared"),
        ({"tables": ["visits", "visits"]}, "named twice"),
        ({"by": ["since"]}, "no public cells"),
        ({"by": ["name"]}, "personal data"),
        ({"by": ["visits.kind"]}, "not declared"),
    ):
        with pytest.raises(BadInput, match=wrong):
            asked(**question)
    clean = {
        **BASE,
        "tables": [{"name": "customers", "columns": [KEY, BASE["tables"][0]["columns"][2]]}],
        "features": [],
    }
    with pytest.raises(BadInput, match="nothing can be wrong in customers"):
        quality.build(Question(), Contract.model_validate(clean))
