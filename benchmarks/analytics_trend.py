"""Trends: online retail's buyers and the sample bank's customers by month, with and without a bound on changes."""

import tempfile
from collections.abc import Iterator, Mapping
from datetime import date, timedelta
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import analytics_lifecycle
import numpy as np
from analytics_harness import Case, Columns, Pairs, bank_columns, pooled

from sfumato.common.contract import Contract, load_contract
from sfumato.lab.samplebank import generate

SPENDING = "txn_count_30d"
SHOP_QUESTION = {"follow": "orders", "months": 18, "changes": 2, "quiet": 6}
STANDING = {"follow": "transactions", "months": 12, "ahead": 6, "changes": 2, "group": "segment", "quiet": 2}
BANK_QUESTIONS = (
    {"follow": "transactions", "months": 12, "changes": 2, "group": "segment", "quiet": 2},
    {"follow": SPENDING, "months": 6},
)


def cases() -> Iterator[Case]:
    if (shop := analytics_lifecycle.shop()) is not None:
        yield _case("online_retail", *shop, SHOP_QUESTION, "orders.day")
    months = [f"{SPENDING}@{m}" for m in range(6)]
    with tempfile.TemporaryDirectory() as directory:
        bank = generate(Path(directory) / "bank")
        contract = load_contract(bank.contract)
        branches = bank_columns(bank, ("transactions.date", "segment", *months), Path(directory))
    for question in BANK_QUESTIONS:
        yield _case(f"sample bank, {question['follow']}", contract, branches, question, "transactions.date")
    # As half a year ago, and the months that were ahead then are over now.
    assert contract.as_of is not None
    then = contract.model_copy(update={"as_of": contract.as_of - timedelta(days=30 * STANDING["ahead"])})
    truth = numbers(contract, pooled(branches), STANDING, "transactions.date")
    yield Case("sample bank, standing", then, "trend", STANDING, branches, partial(pairs, truth))


def _case(
    name: str, contract: Contract, branches: tuple[Columns, ...], question: dict[str, Any], dates: str
) -> Case:
    truth = numbers(contract, pooled(branches), question, dates)
    return Case(name, contract, "trend", question, branches, partial(pairs, truth))


# --- the truth, without the analysis' own code -------------------------------------------------------------


def paths(contract: Contract, columns: Columns, question: Mapping[str, Any], dates: str) -> list[list[str]]:
    """Each customer's state in each month, oldest first, with no more changes than count."""
    months, as_of = question["months"], contract.as_of
    if question["follow"] != SPENDING:
        lives = [set(analytics_lifecycle.months(d or (), as_of)) for d in columns[dates].to_pylist()]
        near = range(question.get("quiet", 1))
        found = [
            ["active" if any(m - q in life for q in near) else "quiet" for m in range(1 - months, 1)]
            for life in lives
        ]
    else:
        spec = next(f for f in contract.features if f.name == SPENDING)
        ends = [spec.bounds[0], *(spec.edges or ()), spec.bounds[1] + 1]
        words = [f"{a:g}" if b - a == 1 else f"{a:g} to {b - 1:g}" for a, b in pairwise(ends)]
        values = [columns[f"{SPENDING}@{m}"].to_pylist() for m in reversed(range(months))]
        found = [[words[int(np.digitize(v, ends[1:-1]))] for v in path] for path in zip(*values, strict=True)]
    keep = told if "ahead" in question else settled
    return [keep(path, question.get("changes", months)) for path in found]


def told(path: list[str], changes: int) -> list[str]:
    """With the first changes alone, as they can be told month by month."""
    kept, left = [path[0]], changes
    for state in path[1:]:
        if state != kept[-1] and left:
            left -= 1
            kept.append(state)
        else:
            kept.append(kept[-1])
    return kept


def settled(path: list[str], changes: int) -> list[str]:
    """With the latest changes alone."""
    kept, left = [path[-1]], changes
    for state in reversed(path[:-1]):
        if state != kept[-1]:
            left -= 1
        kept.append(state if left >= 0 else kept[-1])
    return kept[::-1]


def numbers(
    contract: Contract, columns: Columns, question: Mapping[str, Any], dates: str
) -> dict[tuple[str, ...], float]:
    """Every number of the answer on these customers; what has no entry is 0."""
    as_of = contract.as_of
    assert isinstance(as_of, date)
    walked = np.array(paths(contract, columns, question, dates))
    found: dict[tuple[str, ...], float] = {("customers",): float(len(walked))}
    full = paths(contract, columns, {k: v for k, v in question.items() if k != "changes"}, dates)
    cut = [sum(a != b for a, b in pairwise(p)) for p in full]
    most = question.get("changes", question["months"])
    found["restless", "customers"] = float(sum(c > most for c in cut))
    found["restless", "share"] = found["restless", "customers"] / len(walked)
    sorts: dict[tuple[str, ...], Any] = {("months",): np.full(len(walked), True)}
    if "group" in question:
        group = np.array(columns[question["group"]].to_pylist())
        sorts |= {("groups", g): group == g for g in set(group.tolist())}
    for (part, *named), who in sorts.items():
        before: dict[str, float] = {}
        for t in range(question["months"]):
            until = (as_of - timedelta(days=30 * (question["months"] - 1 - t))).isoformat()
            states, counts = np.unique(walked[who, t], return_counts=True)
            now = dict(zip(states.tolist(), counts.astype(float).tolist(), strict=True))
            for state in {*now, *before}:
                of = (*named, until, state)
                found[part, "customers", *of] = now.get(state, 0.0)
                found[part, "share", *of] = now.get(state, 0.0) / who.sum()
                found[part, "change", *of] = now.get(state, 0.0) - before.get(state, 0.0)
            before = now
    return found


def pairs(truth: Mapping[tuple[str, ...], float], answer: Mapping[str, Any]) -> Pairs:
    yield "customers", answer["customers"], truth["customers",]
    for part in answer["parts"]:
        for row in part["rows"]:
            for measure in part["units"]:
                if measure in row:
                    exact = truth.get((part["name"], measure, *row["of"]), 0.0)
                    yield f"{part['name']}: {measure}", row[measure], exact
