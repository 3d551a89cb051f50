"""Offers: against counts of one customer after another, plans against every other plan, offers as they are drawn."""

from collections import Counter
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime, timedelta
from functools import cache
from itertools import product
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from sfumato.common.analyses import offer
from sfumato.common.analyses.analysis import NoisySum
from sfumato.common.analyses.offer import Offer
from sfumato.common.contract import Contract
from sfumato.common.errors import BadInput
from sfumato.common.learners.allocation import Limits, Market, allocate, drawn
from sfumato.common.learners.encoding import inputs_hash
from sfumato.common.learners.holdings import BANDS
from sfumato.common.learners.models import ModelHeader, SavedModel
from sfumato.common.learners.scoring import scorer

AS_OF = date(2025, 7, 1)
PRODUCTS = ("card", "loan", "fund", "old")
TABLES = [
    {
        "name": "customers",
        "columns": [
            {"name": "id", "type": "string", "role": "customer_id"},
            {"name": "town", "type": "category", "categories": ["ash", "elm", "oak"]},
            {"name": "app", "type": "boolean"},
            {"name": "tenure", "type": "integer", "bounds": [0, 40], "edges": [10, 20]},
        ],
    },
    {
        "name": "held",
        "columns": [
            {"name": "id", "type": "string", "role": "customer_id"},
            {"name": "product", "type": "category", "categories": list(PRODUCTS)},
            {"name": "since", "type": "date", "nullable": True},
            {"name": "fee", "type": "number"},
        ],
    },
]
CONTRACT = Contract.model_validate(
    {"version": 1, "name": "shop", "purpose": "To offer what is wanted.", "as_of": AS_OF, "tables": TABLES}
)
OFFERS: list[dict[str, Any]] = [
    {"product": "card", "value": 50, "cost": 1},
    {"product": "loan", "value": 200, "cost": 10},
    {"product": "fund", "value": 120, "cost": 4},
]
QUESTION = {"products": "held.product", "opened": "held.since", "offers": OFFERS}
ENDS = ((91, "up to 3 months"), (183, "3 to 6 months"), (365, "6 to 12 months"), (730, "1 to 2 years"))


def asked(contract: Contract = CONTRACT, **more: Any) -> Offer:
    built = offer.build(
        offer.Question.model_validate({"groups": ["town", "app"], "months": 12, **QUESTION, **more}), contract
    )
    assert isinstance(built, Offer)
    return built


def people(n: int, seed: int = 1) -> dict[str, Any]:
    """Customers with up to four rows each: any product, before the window, in it, after as_of, or of no date."""
    rng = np.random.default_rng(seed)
    products, opened = [], []
    for _ in range(n):
        rows = rng.integers(0, 5)
        products.append(
            [
                None if rng.random() < 0.05 else PRODUCTS[i]
                for i in rng.choice(4, rows, p=[0.4, 0.2, 0.3, 0.1])
            ]
        )
        days = np.where(rng.random(rows) < 0.5, rng.integers(-40, 365, rows), rng.integers(300, 2500, rows))
        opened.append([None if rng.random() < 0.05 else AS_OF - timedelta(days=int(d)) for d in days])
    return {
        "town": pa.array(rng.choice(["ash", "elm", "oak"], n, p=[0.6, 0.3, 0.1]).tolist()),
        "app": pa.array((rng.random(n) < 0.4).tolist()),
        "tenure": pa.array(rng.integers(0, 41, n)),
        "held.product": pa.array(products, pa.list_(pa.string())),
        "held.since": pa.array(opened, pa.list_(pa.date32())),
        "token": pa.array([f"t{i:06d}" for i in range(n)]),
    }


def counted(columns: Mapping[str, Any]) -> tuple[Counter[Any], Counter[str]]:
    """One customer after another, for a window of 365 days; and by the time since the last product, or the tenure."""
    counts, moments = Counter[Any](), Counter[str]()
    rows = zip(
        *(columns[c].to_pylist() for c in ("town", "app", "tenure", "held.product", "held.since")),
        strict=True,
    )
    for town, app, tenure, products, opened in rows:
        group = town, str(app).lower()
        counts[group] += 1
        ages = [10**6 if d is None else (AS_OF - d).days for d in opened]
        took_any = False
        for name in ("card", "loan", "fund"):
            mine = [a for p, a in zip(products, ages, strict=True) if p == name and a >= 0]
            if mine:
                state = "held" if max(mine) >= 365 else "took"
                took_any |= state == "took"
                counts[(*group, name, state)] += 1
        last = min((a - 365 for a in ages if 365 <= a < 10**6), default=None)
        band = (
            "never"
            if last is None
            else next((w for end, w in ENDS if last < end), "2 to 4 years" if last < 1461 else "longer")
        )
        for name in (band, "0 to 9" if tenure < 10 else "10 to 19" if tenure < 20 else "20 to 40"):
            moments[name] += 1
            moments[f"{name}, took"] += took_any
    return counts, moments


def total_of(analysis: Offer, columns: Mapping[str, Any], std: float, rng: np.random.Generator) -> NoisySum:
    cells = analysis.contribute(0, columns, None)
    weights = np.broadcast_to(cells.weights, cells.cells.shape)
    assert (np.sqrt((weights**2 * (cells.cells >= 0)).sum(axis=1)) <= analysis.max_norm(0) + 1e-12).all()
    total = np.bincount(cells.cells.ravel() + 1, weights.ravel(), minlength=cells.length + 1)[1:]
    return NoisySum(total + rng.normal(0, std, total.size), std)


def numbers(
    answer: Mapping[str, Any], customers: int, found_by_hand: tuple[Counter[Any], Counter[str]]
) -> list[tuple[str, Mapping[str, float], float]]:
    """Every number of the answer beside its truth."""
    counts, moments = found_by_hand
    parts = {p["name"]: p["rows"] for p in answer["parts"]}
    found = [("customers", answer["customers"], float(customers))]
    planned, whole = {tuple(r["of"]): r for r in parts["plan"]}, np.zeros(3)
    money = {o["product"]: (o["value"], o["cost"]) for o in OFFERS}
    fractions = iter(np.array(answer["fractions"]).ravel().tolist())
    for row in parts["take-up"]:
        size, held, took = (
            counts[k] for k in (tuple(row["of"][:2]), (*row["of"], "held"), (*row["of"], "took"))
        )
        rate = took / (size - held)
        found += [("holders", row["holders"], held + took), ("holding", row["holding"], (held + took) / size)]
        found += [("taken", row["taken"], took), ("take_up", row["take_up"], rate)]
        value, cost = money[row["of"][2]]
        reached = next(fractions) * (size - held - took)
        truths = np.array([reached, cost * reached, reached * (value * rate - cost)])
        whole += truths
        if tuple(row["of"]) in planned:
            shown = planned[tuple(row["of"])]
            found += [(m, shown[m], t) for m, t in zip(("offers", "cost", "gain"), truths, strict=True)]
    found += [
        (m, parts["plan in all"][0][m], t) for m, t in zip(("offers", "cost", "gain"), whole, strict=True)
    ]
    for row in parts["moment"]:
        there, took = moments[row["of"][0]], moments[f"{row['of'][0]}, took"]
        found += [
            ("there", row["customers"], there),
            ("moment", row["take_up"], took / there if there else 0.0),
        ]
    return found


@pytest.mark.parametrize("moment", [None, "tenure"])
def test_without_noise_every_number_is_the_plain_count(moment: str | None) -> None:
    analysis, columns = asked(moment=moment, contacts=300), people(1500)
    answer = analysis.read([total_of(analysis, columns, 1e-9, np.random.default_rng(0))])
    for what, number, truth in numbers(answer, 1500, counted(columns)):
        assert number["value"] == pytest.approx(truth, abs=1e-3), what
    whole = answer["parts"][2]["rows"][0]
    assert whole["offers"]["value"] == pytest.approx(300, abs=0.01)
    bands = [r["of"][0] for r in answer["parts"][1]["rows"]]
    assert bands == (["0 to 9", "10 to 19", "20 to 40"] if moment else list(BANDS))


def test_a_customer_does_not_change_with_who_stands_beside_them() -> None:
    analysis, columns = asked(), people(50)
    together = analysis.contribute(0, columns, None).cells
    apart = [
        analysis.contribute(0, {n: c[i : i + 1] for n, c in columns.items()}, None).cells for i in range(50)
    ]
    assert np.array_equal(together, np.concatenate(apart))
    nobody = {n: pa.chunked_array([c])[:0] for n, c in columns.items()}
    assert analysis.contribute(0, nobody, None).cells.shape == (0, 5)
    with pytest.raises(ValueError, match="without numbers"):
        analysis.contribute(0, columns, np.zeros(1, dtype=np.float32))


@pytest.mark.statistical
@pytest.mark.parametrize("std", [4.0, 25.0])
def test_the_intervals_hold_the_truth_of_the_plan_too(std: float) -> None:
    """40 draws of the noise, nominal 95 %; of the whole plan's gain alone a right interval holds in fewer than 32
    once in three thousand such runs."""
    analysis, columns = asked(contacts=400, most_offers=2), people(1500)
    truth = counted(columns)
    clean, rng = total_of(analysis, columns, 0.0, np.random.default_rng(0)), np.random.default_rng(9)
    held, gains = list[bool](), list[bool]()
    for _ in range(40):
        answer = analysis.read([NoisySum(clean.values + rng.normal(0, std, clean.values.size), std)])
        hold = [(w, n["low"] - 1e-6 <= t <= n["high"] + 1e-6) for w, n, t in numbers(answer, 1500, truth)]
        held += [h for _, h in hold]
        gains.append([h for w, h in hold if w == "gain"][-1])
    assert 0.92 <= np.mean(held) <= 0.985, np.mean(held)
    assert np.mean(gains) >= 0.8, np.mean(gains)


# --- the plan ----------------------------------------------------------------------------------------------


def market() -> Market:
    group = np.array([100.0, 60.0])
    return Market(group, np.array([[20.0, 40.0], [10.0, 5.0]]), np.array([[8.0, 3.0], [10.0, 1.0]]), 1e-18)


@pytest.mark.parametrize(
    "limits", [Limits(50, np.inf, 1), Limits(np.inf, 90, 2), Limits(40, 90, 1), Limits(1e9, 1e9, 1)]
)
def test_no_other_plan_gains_more(limits: Limits) -> None:
    """Against every plan on a grid of fractions."""
    shop, value, cost = market(), np.array([30.0, 80.0]), np.array([1.0, 3.0])
    plan = allocate(shop, shop.rate, value, cost, limits, reach=0.0)

    def gain(fractions: Any) -> float:
        return float((fractions * shop.now * (shop.rate * value - cost)).sum())

    def allowed(fractions: Any) -> bool:
        offers = fractions * shop.now
        kept = offers.sum() <= limits.offers + 1e-6 and (offers * cost).sum() <= limits.money + 1e-6
        return bool(kept and (fractions.sum(axis=1) <= limits.each + 1e-9).all() and (fractions >= 0).all())

    assert allowed(plan)
    others = (np.array(f).reshape(2, 2) for f in product(np.linspace(0, 1, 7), repeat=4))
    assert gain(plan) >= max(gain(f) for f in others if allowed(f)) - 1e-6


def test_a_plan_leaves_a_margin_for_the_noise_and_gains_what_it_says() -> None:
    shop, value, cost = market(), np.array([30.0, 80.0]), np.array([1.0, 3.0])
    noisy = Market(shop.group, shop.holds, shop.took, 4.0)
    plan = allocate(noisy, shop.rate, value, cost, Limits(50, np.inf, 1), reach=2.0)
    offers, std = noisy.offers(plan)
    assert offers + 2 * std == pytest.approx(50, abs=0.5) and std > 1
    rng = np.random.default_rng(4)
    draws = [
        Market(
            shop.group + rng.normal(0, 2.0, 2),
            shop.holds + rng.normal(0, 2.0, (2, 2)),
            shop.took + rng.normal(0, 2.0, (2, 2)),
            4.0,
        )
        for _ in range(4000)
    ]
    readers: list[Callable[[Market], tuple[float, float]]] = [
        lambda m: m.offers(plan),
        lambda m: m.gain(plan, value, cost),
    ]
    for read in readers:
        values, (exact, _), (_, std) = np.array([read(d)[0] for d in draws]), read(shop), read(noisy)
        assert abs(values.mean() - exact) < 4 * values.std() / np.sqrt(len(draws)) + 0.01 * abs(exact)
        assert values.std() == pytest.approx(std, rel=0.06)


def test_likely_rates_lie_between_a_groups_own_and_the_middle() -> None:
    took = np.array([[10.0], [14.0], [12.0], [40.0]])
    same = Market(np.full(4, 200.0), np.zeros((4, 1)), took[[0, 1, 2, 1]], 400.0)
    assert np.ptp(same.likely()) < 1e-12  # no further apart than their noise
    apart = Market(np.full(4, 200.0), np.zeros((4, 1)), took, 4.0)
    own, likely = apart.rate.ravel(), apart.likely().ravel()
    assert likely[3] < own[3] and likely[0] > own[0] and abs(likely - own).max() < 0.01
    assert (apart.likely(1.0) < apart.likely()).all()


def test_offers_are_drawn_with_their_fractions_and_never_too_many() -> None:
    fractions = np.array([0.5, 0.0, 0.25, 1.0, 0.25])
    given = drawn(np.tile(fractions, (4000, 1)), np.arange(4000) / 4000)
    assert given.mean(axis=0) == pytest.approx(fractions, abs=1e-3)
    assert set(given.sum(axis=1)) == {2}
    assert not drawn(np.zeros((3, 2)), np.array([0.0, 0.5, 1 - 2**-53])).any()
    assert drawn(np.full((1, 2), np.float32(0.5) + 1e-7), np.zeros(1)).sum() == 1


# --- at the branch -------------------------------------------------------------------------------------------


@cache
def plan() -> tuple[Any, Any]:
    """For 1,500 customers."""
    analysis, columns = asked(contacts=500, most_offers=2), people(1500)
    return analysis.saved([total_of(analysis, columns, 1e-6, np.random.default_rng(0))])


def saved(**changes: Any) -> SavedModel:
    """The model of the plan, with something changed."""
    tensors, parameters = plan()
    header = ModelHeader(
        kind="offer",
        name="offers",
        purpose="to offer",
        job_id="0" * 32,
        job_hash="h",
        contract=CONTRACT.hash,
        contract_name=CONTRACT.name,
        inputs=inputs_hash(CONTRACT),
        label=None,
        epsilon=1.0,
        delta=1e-5,
        made=datetime(2026, 1, 1, tzinfo=UTC),
        parameters={**parameters, **changes.get("parameters", {})},
    )
    return SavedModel.of_bytes(SavedModel(header, {**tensors, **changes.get("tensors", {})}).to_bytes(), "it")


def test_the_branch_draws_the_plans_fractions_and_offers_nobody_what_they_hold() -> None:
    model, columns = saved(), people(3000, seed=2)
    ready = scorer(model, CONTRACT)
    offers = ready.score(columns).offers
    assert offers is not None and {len(o) for o in offers} == {2}
    towns, apps = columns["town"].to_pylist(), columns["app"].to_pylist()
    held = [
        {p for p, d in zip(*rows, strict=True) if d is None or d <= AS_OF}
        for rows in zip(columns["held.product"].to_pylist(), columns["held.since"].to_pylist(), strict=True)
    ]
    assert not any(set(o) - {None} & h for o, h in zip(offers, held, strict=True))
    for g, group in enumerate(product(("ash", "elm", "oak"), (False, True))):
        for p, name in enumerate(("card", "loan", "fund")):
            free = [
                name in o
                for o, h, *of in zip(offers, held, towns, apps, strict=True)
                if tuple(of) == group and name not in h
            ]
            fraction = float(model.tensors["fractions"][g, p])
            assert abs(np.mean(free) - fraction) < 4 * np.sqrt(fraction * (1 - fraction) / len(free)) + 1e-9
    again = ready.score({n: c[100:110] for n, c in columns.items()}).offers
    assert again == offers[100:110]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"tensors": {"fractions": np.full((6, 3), 0.9, np.float32)}}, "more than the offers"),
        ({"tensors": {"fractions": np.full((6, 3), 2.00003 / 3, np.float32)}}, "more than the offers"),
        ({"tensors": {"fractions": np.full((6, 2), 0.1, np.float32)}}, "a fraction for each"),
        ({"tensors": {"fractions": np.full((6, 3), np.nan, np.float32)}}, "a fraction for each"),
        ({"tensors": {"fractions": np.full((6, 3), -0.1, np.float32)}}, "a fraction for each"),
        ({"tensors": {"b": np.zeros(1, np.float32)}}, "expected one tensor"),
        ({"parameters": {"offers": ["card", "loan", "gold"]}}, "not on the contract's list"),
        ({"parameters": {"offers": ["card", "loan", "loan"]}}, "not on the contract's list"),
        ({"parameters": {"groups": [{"name": "town", "cells": ["ash", "elm"]}]}}, "other cells"),
        ({"parameters": {"groups": [{"name": "id", "cells": ["ash"]}]}}, "customer id"),
        ({"parameters": {"products": "held.fee"}}, "not on the contract's list"),
        ({"parameters": {"most_offers": 9}}, "most_offers"),
    ],
)
def test_a_plan_that_is_not_of_this_contract_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(BadInput, match=says):
        scorer(saved(**changes), CONTRACT)


def test_what_the_contract_does_not_declare_is_refused() -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"products": "held.fee"}, "no public list"),
        ({"opened": "held.fee"}, "no date"),
        ({"groups": ["village"]}, "not declared"),
        ({"groups": ["town", "town"]}, "named twice"),
        ({"moment": "id"}, "customer id"),
        ({"offers": [{"product": "gold", "value": 1, "cost": 1}]}, "no product 'gold'"),
        ({"offers": [OFFERS[0], OFFERS[0]]}, "named twice"),
    ]
    for changes, says in wrong:
        with pytest.raises(BadInput, match=says):
            asked(**changes)
    with pytest.raises(BadInput, match="as_of"):
        asked(CONTRACT.model_copy(update={"as_of": None}))
