"""Next best offers over the sample bank: by segment, and by segment and area with other limits."""

import tempfile
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from analytics_harness import Bar, Case, Columns, Pairs, answers, bank_columns, pooled
from scipy.optimize import linprog

from sfumato.common.contract import Contract, load_contract
from sfumato.lab.samplebank import generate

PRODUCTS, OPENED = "holdings.product", "holdings.opened"
OFFERS = [
    {"product": "savings plan", "value": 90, "cost": 2},
    {"product": "credit card", "value": 80, "cost": 2},
    {"product": "mortgage", "value": 400, "cost": 12},
    {"product": "investment fund", "value": 250, "cost": 5},
    {"product": "insurance", "value": 150, "cost": 3},
    {"product": "pension", "value": 200, "cost": 5},
]
SEGMENTS = {"groups": ["segment"], "contacts": 3000}
AREAS = {
    "groups": ["segment", "area"],
    "moment": "tenure_months",
    "months": 18,
    "money": 20_000.0,
    "most_offers": 2,
}
EPSILON, KEPT = 1.0, 0.95


def cases() -> Iterator[Case]:
    names = ("segment", "area", "tenure_months", PRODUCTS, OPENED)
    with tempfile.TemporaryDirectory() as directory:
        bank = generate(Path(directory) / "bank")
        contract = load_contract(bank.contract)
        branches = bank_columns(bank, names, Path(directory))
    for name, more in (("sample bank, segments", SEGMENTS), ("sample bank, segments by area", AREAS)):
        question = {"products": PRODUCTS, "opened": OPENED, "offers": OFFERS, "months": 12, **more}
        truth = Truth(pooled(branches), contract, question)
        yield Case(name, contract, "offer", question, branches, partial(pairs, truth))


class Truth:
    """The customers, one row each, and who holds what since when: by pandas, on the pooled data."""

    def __init__(self, columns: Columns, contract: Contract, question: Mapping[str, Any]) -> None:
        self.question, self.by = question, list(question["groups"])
        self.end = pd.Timestamp(contract.as_of)  # type: ignore[arg-type]
        self.start = self.end - pd.Timedelta(days=round(question["months"] * 365 / 12))
        self.customers = pd.DataFrame({g: columns[g].to_pandas() for g in self.by})
        lists = pd.DataFrame({n: columns[n].to_pylist() for n in (PRODUCTS, OPENED)})
        rows = lists.explode([PRODUCTS, OPENED]).dropna()
        rows[OPENED] = pd.to_datetime(rows[OPENED])
        self.rows = rows[rows[OPENED] <= self.end]
        first = self.rows.groupby([self.rows.index, PRODUCTS])[OPENED].min().unstack()
        self.first = first.reindex(self.customers.index)
        names = [o["product"] for o in question["offers"]]
        self.took_any = (self.first[names] > self.start).any(axis=1)
        self.moment = self._moment(columns, contract)
        held, took = self.first[names] <= self.start, self.first[names] > self.start
        keys = [self.customers[g] for g in self.by]
        self.held, self.took = held.groupby(keys).sum(), took.groupby(keys).sum()
        self.size = self.customers.groupby(keys).size()

    def _moment(self, columns: Columns, contract: Contract) -> pd.Series:
        if "moment" in self.question:
            column = contract.customer_table.column(self.question["moment"])
            low, high = column.bounds  # type: ignore[misc]
            ends = [int(low), *(int(e) for e in column.edges or ()), int(high) + 1]
            values = columns[column.name].to_pandas()
            names = [f"{a} to {b - 1}" for a, b in pairwise(ends)]
            return pd.cut(values, ends, right=False, labels=names).astype(str)
        before = self.rows[self.rows[OPENED] <= self.start]
        days = (self.start - before.groupby(before.index)[OPENED].max()).dt.days
        ends = [0, 91, 183, 365, 730, 1461, 10**6]
        names = [
            "up to 3 months",
            "3 to 6 months",
            "6 to 12 months",
            "1 to 2 years",
            "2 to 4 years",
            "longer",
        ]
        bands = pd.cut(days, ends, right=False, labels=names).astype(str)
        return bands.reindex(self.customers.index).fillna("never")

    def cell(self, of: list[str]) -> tuple[int, int, int]:
        """Customers of the group, those who held the product before the window, those who took it up in it."""
        key, product = (of[0] if len(of) == 2 else tuple(of[:-1])), of[-1]
        if key not in self.size.index:
            return 0, 0, 0
        return int(self.size[key]), int(self.held.loc[key, product]), int(self.took.loc[key, product])


def pairs(truth: Truth, answer: Mapping[str, Any]) -> Pairs:
    """Every number of the answer beside its truth."""
    yield "customers", answer["customers"], len(truth.customers)
    offers = {o["product"]: o for o in truth.question["offers"]}
    parts = {p["name"]: p["rows"] for p in answer["parts"]}
    whole = np.zeros(3)
    fractions = iter(np.array(answer["fractions"]).ravel().tolist())
    planned = {tuple(r["of"]): r for r in parts["plan"]}
    for row in parts["take-up"]:
        size, held, took = truth.cell(row["of"])
        yield "holders", row["holders"], held + took
        yield "holding", row["holding"], (held + took) / size if size else 0.0
        yield "taken", row["taken"], took
        yield "take-up", row["take_up"], took / (size - held) if size > held else 0.0
        offer, fraction = offers[row["of"][-1]], next(fractions)
        asked = fraction * (size - held - took)
        gain = offer["value"] * (took / (size - held) if size > held else 0.0) * asked - offer["cost"] * asked
        worth = np.array([asked, offer["cost"] * asked, gain])
        whole += worth
        if tuple(row["of"]) in planned:
            shown = planned[tuple(row["of"])]
            for measure, true in zip(("offers", "cost", "gain"), worth, strict=True):
                yield f"plan: {measure}", shown[measure], float(true)
    for measure, true in zip(("offers", "cost", "gain"), whole, strict=True):
        yield f"in all: {measure}", parts["plan in all"][0][measure], float(true)
    for row in parts["moment"]:
        there = truth.moment == row["of"][0]
        yield "moment: customers", row["customers"], int(there.sum())
        yield "moment: take-up", row["take_up"], float(truth.took_any[there].mean()) if there.any() else 0.0


def bars(seeds: int) -> Iterator[Bar]:
    """Whether the plan keeps to its limit in truth; and its true gain, beside that of the best plan that exact counts
    would allow (it makes use of chance, too) and of the same limit spent on all alike."""
    for case in cases():
        truth: Truth = case.pairs.args[0]  # type: ignore[attr-defined]
        gains, used = [], []
        limit, what = ("contacts", "offers") if "contacts" in case.question else ("money", "cost")
        for answer in answers(case, EPSILON, seeds):
            true = {what: t for what, _, t in pairs(truth, answer)}
            gains.append(true["in all: gain"])
            used.append(true[f"in all: {what}"] / case.question[limit])
        kept = float(np.mean(np.array(used) <= 1))
        name = f"{case.name}, epsilon {EPSILON:g}"
        yield Bar(
            f"{name}: plans within their {limit}",
            f"{KEPT:.0%}",
            f"{kept:.0%}, {np.mean(used):.1%} used",
            kept >= KEPT,
        )
        best, even = best_gain(truth), even_gain(truth)
        share = float(np.mean(gains)) / best
        yield Bar(
            f"{name}: true gain, of the best plan's with exact counts",
            f"an even spread: {even / best:.0%}",
            f"{share:.0%} (least {np.min(gains) / best:.0%})",
            share > even / best,
        )


def best_gain(truth: Truth) -> float:
    """The optimum with exact counts, stated over customers and not over fractions."""
    free, net, cost = _market(truth)
    groups = len(truth.size)
    rows = [np.ones(free.size), cost.ravel()]
    rows += list(np.repeat(np.eye(groups), free.shape[1], axis=1) / np.maximum(free.ravel(), 1e-9))
    most = [truth.question.get(k, 1e12) for k in ("contacts", "money")]
    most += [truth.question.get("most_offers", 1)] * groups
    bounds = [(0, f) for f in free.ravel()]
    return float(-linprog(-net.ravel(), A_ub=np.array(rows), b_ub=most, bounds=bounds, method="highs").fun)


def even_gain(truth: Truth) -> float:
    """Every customer is offered every product that they do not hold with the same chance."""
    free, net, cost = _market(truth)
    limits = [
        truth.question.get("contacts", np.inf) / free.sum(),
        truth.question.get("money", np.inf) / (free * cost).sum(),
    ]
    fraction = min(*limits, truth.question.get("most_offers", 1) / free.shape[1])
    return float(fraction * (free * net).sum())


def _market(truth: Truth) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Who could be asked, what one offer gains, what it costs: [groups, products]."""
    offers = truth.question["offers"]
    size = truth.size.to_numpy(float)[:, None]
    held, took = truth.held.to_numpy(float), truth.took.to_numpy(float)
    rate = took / np.maximum(size - held, 1.0)
    value, cost = (np.array([o[k] for o in offers], float) for k in ("value", "cost"))
    return size - held - took, value * rate - cost, np.broadcast_to(cost, rate.shape)
