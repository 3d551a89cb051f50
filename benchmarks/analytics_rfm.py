"""RFM: online retail by country groups, and the sample bank; the bar is the error of the cells' shares."""

import tempfile
from collections.abc import Iterator, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import online_retail
from analytics_harness import Bar, Case, Columns, Pairs, answers, bank_columns, by_branch, pooled

from sfumato.common.analyses.rfm_groups import NEVER, group_of
from sfumato.common.contract import Contract, load_contract
from sfumato.lab.samplebank import generate

Floats = npt.NDArray[np.float64]
BAR, BAR_EPSILON = 0.5, 1.0  # points, mean absolute error of the cells' shares
SHOP = {"recency": "days", "frequency": "orders", "money": "spent"}
BANK = {"recency": "days_since_last_txn", "frequency": "txn_count_365d", "money": "spent_365d"}
BANK_BOUNDS = (730.0, 400.0, 1_000_000.0)


def cases() -> Iterator[Case]:
    if (shop := _shop()) is not None:
        for cells in (3, 5):
            yield _case("online_retail", _shop_contract(), SHOP | {"cells": cells}, shop)
    contract, branches = _bank()
    for cells in (3, 5):
        yield _case("sample bank", contract, BANK | {"cells": cells}, branches)


def _case(name: str, contract: Contract, question: dict[str, Any], branches: tuple[Columns, ...]) -> Case:
    truth = partial(pairs, numbers(question, pooled(branches)), question)
    return Case(f"{name}, {question['cells']} levels", contract, "rfm", question, branches, truth)


def bars(seeds: int) -> Iterator[Bar]:
    """Against the same cells of the pooled customers by the answer's own cuts, and by the exact quantiles."""
    for case in cases():
        values = numbers(case.question, pooled(case.branches))
        same, exact = list[float](), list[float]()
        for answer in answers(case, BAR_EPSILON, seeds):
            sides = case.question["cells"]
            shown = {row["scores"]: row["share"]["value"] for row in _part(answer, "cells")}
            for errors, cuts in ((same, _cuts(case.question, answer)), (exact, quantiles(values, sides))):
                cells = scores(values, cuts, sides)
                truth = {c: float(np.mean(cells == c)) for c in set(cells) | set(shown)}
                off = sum(abs(shown.get(c, 0.0) - t) for c, t in truth.items() if c != NEVER)
                errors.append(100 * off / sides**3)
        for what, errors in (("own cuts", same), ("exact quantiles", exact)):
            seen = float(np.mean(errors))
            yield Bar(f"{case.name}: cells' shares, {what}", f"<= {BAR} points", f"{seen:.3f}", seen <= BAR)


@cache
def _shop() -> tuple[Columns, ...] | None:
    found = online_retail.invoices()
    if found is None:
        return None
    last = found["day"].max()
    people = found.groupby("customer").agg(
        day=("day", "max"),
        orders=("InvoiceNo", "nunique"),
        spent=("amount", "sum"),
        country=("country", "first"),
    )
    columns = {
        "days": (last - people["day"]).dt.days.to_numpy(float),
        "orders": people["orders"].to_numpy(float),
        "spent": people["spent"].to_numpy(float),
    }
    return by_branch(columns, online_retail.branches(people.index.to_series(), people["country"]))


def _shop_contract() -> Contract:
    columns = [
        {"name": "id", "type": "string", "role": "customer_id"},
        {"name": "days", "type": "integer", "role": "feature", "bounds": [0, 800]},
        {"name": "orders", "type": "integer", "role": "feature", "bounds": [1, 500], "scale": "log"},
        {"name": "spent", "type": "number", "role": "amount", "bounds": [0, 1_000_000], "scale": "log"},
    ]
    tables = [{"name": "customers", "columns": columns}]
    return Contract.model_validate(
        {"version": 1, "name": "shop", "purpose": "Know who buys and how.", "tables": tables}
    )


@cache
def _bank() -> tuple[Contract, tuple[Columns, ...]]:
    with tempfile.TemporaryDirectory() as directory:
        bank = generate(Path(directory) / "bank")
        return load_contract(bank.contract), bank_columns(bank, tuple(BANK.values()), Path(directory))


# --- the truth, without the analysis' own code -------------------------------------------------------------


def numbers(question: Mapping[str, Any], columns: Columns) -> Floats:
    """Recency, frequency and money of each customer [n, 3], NaN in all three for who lacks one."""
    found = np.stack(
        [
            columns[question[axis]].to_pandas().to_numpy(float, na_value=np.nan)
            for axis in ("recency", "frequency", "money")
        ],
        axis=1,
    )
    if question["money"] == BANK["money"]:
        found[:, 2] = np.minimum(-found[:, 2], BANK_BOUNDS[2])
    return np.where(np.isnan(found).any(axis=1, keepdims=True), np.nan, found)


def quantiles(values: Floats, sides: int) -> list[Floats]:
    """Exact ones, of who has all three numbers."""
    at = np.arange(1, sides) / sides
    return list(np.nanquantile(values, at, axis=0, method="inverted_cdf").T)


def _cuts(question: Mapping[str, Any], answer: Mapping[str, Any]) -> list[Floats]:
    rows = _part(answer, "cuts")
    names = (question["recency"], question["frequency"], question["money"])
    return [np.array([r["cut"]["value"] for r in rows if r["of"][0] == name]) for name in names]


def scores(values: Floats, cuts: list[Floats], sides: int) -> npt.NDArray[np.str_]:
    """ "3-1-2" of each customer; a cut belongs to the level below."""
    single = values.astype(np.float32)
    above = [(single[:, i, None] > c.astype(np.float32)).sum(axis=1) for i, c in enumerate(cuts)]
    named = [f"{sides - r}-{f + 1}-{m + 1}" for r, f, m in zip(*above, strict=True)]
    return np.where(np.isnan(values[:, 0]), NEVER, named)


def pairs(values: Floats, question: Mapping[str, Any], answer: Mapping[str, Any]) -> Pairs:
    """Every number of the answer with its truth on these customers; no mean of nobody."""
    sides = question["cells"]
    cell = scores(values, _cuts(question, answer), sides)
    money = np.minimum(np.nan_to_num(values[:, 2]), answer["ceiling"])
    groups = {c: group_of(int(c[0]), int(c[2]), int(c[4]), sides) for c in set(cell) - {NEVER}}
    group = np.array([groups.get(c, NEVER) for c in cell])
    yield "customers", answer["customers"], float(len(cell))
    for part, who, key in (("cells", cell, "scores"), ("groups", group, "group")):
        for row in _part(answer, part):
            these = who == (row[key] if key in row else row["of"][0])
            truth = {
                "customers": float(these.sum()),
                "share": float(these.mean()),
                "value": money[these].sum(),
            }
            truth["value_share"] = truth["value"] / money.sum()
            if these.any():
                truth["mean"] = float(money[these].mean())
            for measure in truth:
                if measure in row:
                    yield f"{part}: {measure}", row[measure], truth[measure]
    exact = np.concatenate(quantiles(values, sides))
    for row, quantile in zip(_part(answer, "cuts"), exact, strict=True):
        yield "cut", row["cut"], float(quantile)
    (whole,) = _part(answer, "money")
    bought = cell != NEVER
    yield "money: customers", whole["customers"], float(bought.sum())
    yield "money: value", whole["value"], float(money.sum())
    yield "money: mean", whole["mean"], float(money[bought].mean())
    above = float((np.nan_to_num(values[:, 2]) > answer["ceiling"]).sum())
    yield "money: above", whole["above"], above


def _part(answer: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    return next(p["rows"] for p in answer["parts"] if p["name"] == name)
