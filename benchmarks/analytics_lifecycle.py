"""Lifecycle: online retail's buyers by country groups, and the sample bank's customers by their transactions."""

import itertools
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import date, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import online_retail
import pyarrow as pa
from analytics_harness import Case, Columns, Pairs, bank_columns, by_branch, pooled

from sfumato.common.contract import Contract, load_contract
from sfumato.lab.samplebank import generate

SHOP = {"table": "orders", "months": 12, "new": 2, "sleep": 3, "churn": 6, "survival": 18}
BANK = {"table": "transactions", "months": 12, "new": 3, "sleep": 1, "churn": 3, "survival": 18}


def cases() -> Iterator[Case]:
    if (found := shop()) is not None:
        yield _case("online_retail", *found, "orders.day", SHOP)
    with tempfile.TemporaryDirectory() as directory:
        bank = generate(Path(directory) / "bank")
        contract = load_contract(bank.contract)
        branches = bank_columns(bank, ("transactions.date",), Path(directory))
    yield _case("sample bank", contract, branches, "transactions.date", BANK)


def _case(
    name: str, contract: Contract, branches: tuple[Columns, ...], column: str, question: dict[str, Any]
) -> Case:
    assert contract.as_of is not None
    lives = [months(dates or (), contract.as_of) for dates in pooled(branches)[column].to_pylist()]
    truth = partial(pairs, numbers(lives, question, contract.as_of))
    return Case(name, contract, "lifecycle", question, branches, truth)


def shop() -> tuple[Contract, tuple[Columns, ...]] | None:
    found = online_retail.invoices()
    if found is None:
        return None
    people = found.sort_values("day", ascending=False).groupby("customer")
    days = people["day"].apply(lambda s: list(s.dt.date))
    columns = {"orders.day": pa.array(days.tolist(), type=pa.list_(pa.date32()))}
    branches = online_retail.branches(days.index.to_series(), people["country"].first())
    return _shop_contract(found["day"].max().date()), by_branch(columns, branches)


def _shop_contract(as_of: date) -> Contract:
    key = {"name": "id", "type": "string", "role": "customer_id"}
    tables = [
        {"name": "customers", "columns": [key]},
        {"name": "orders", "columns": [key, {"name": "day", "type": "date", "role": "time"}]},
    ]
    return Contract.model_validate(
        {"version": 1, "name": "shop", "purpose": "Know who stays.", "as_of": as_of, "tables": tables}
    )


# --- the truth, without the analysis' own code -------------------------------------------------------------


def months(dates: Any, as_of: date) -> list[int]:
    """Months with activity as whole numbers, ascending; 0 is the latest, -1 the one before."""
    return sorted({-((as_of - d).days // 30) for d in dates if d <= as_of})


def state(active: list[int], now: int, question: Mapping[str, Any]) -> str:
    """Of a customer at the end of month `now`."""
    past = [m for m in active if m <= now]
    if not past:
        return "prospect"
    quiet = now - past[-1]
    if quiet >= question["churn"]:
        return "churned"
    if quiet >= question["sleep"]:
        return "sleeping"
    returns = [b for a, b in itertools.pairwise(past) if b - a > question["churn"]]
    if returns and now - returns[-1] < question["new"]:
        return "won back"
    return "new" if now - past[0] < question["new"] else "active"


def numbers(lives: list[list[int]], question: Mapping[str, Any], as_of: date) -> dict[tuple[str, ...], float]:
    """Every number of the answer on these customers; no rate of nobody."""
    window = range(1 - question["months"], 1)
    found: dict[tuple[str, ...], float] = {("customers",): float(len(lives))}
    moves: Counter[tuple[str, str]] = Counter()
    paths = [[state(life, m, question) for m in window] for life in lives]
    for i, month in enumerate(window):
        until = (as_of + timedelta(days=30 * month)).isoformat()
        for name, count in Counter(path[i] for path in paths).items():
            found["states", "customers", until, name] = float(count)
            found["states", "share", until, name] = count / len(lives)
    for path in paths:
        moves.update(itertools.pairwise(path))
    leaving = Counter({a: sum(n for (b, _), n in moves.items() if a == b) for a, _ in moves})
    for (a, b), count in moves.items():
        found["transitions", "rate", a, b] = count / leaving[a]
        found["transitions", "customers", a, b] = count / (question["months"] - 1)
    return found | survival(lives, question) | {("leaving", a): float(n) for a, n in leaving.items()}


def survival(lives: list[list[int]], question: Mapping[str, Any]) -> dict[tuple[str, ...], float]:
    """The product limit over those who began within the horizon, one customer after the other."""
    ends: list[tuple[int, bool]] = []
    for life in lives:
        if life and -life[0] < question["survival"]:
            quiet = [a for a, b in zip(life, [*life[1:], 1], strict=True) if b - a > question["churn"]]
            ends.append((quiet[0] + question["churn"] - life[0], True) if quiet else (-life[0], False))
    found, curve = {}, 1.0
    for month in range(question["survival"]):
        at_risk = sum(end >= month for end, _ in ends)
        curve *= 1 - sum(end == month and lost for end, lost in ends) / at_risk if at_risk else 1.0
        found["survival", "still there", str(month)] = curve
        found["survival", "seen so long", str(month)] = float(at_risk)
    return found


def pairs(truth: Mapping[tuple[str, ...], float], answer: Mapping[str, Any]) -> Pairs:
    yield "customers", answer["customers"], truth["customers",]
    for part in answer["parts"]:
        for row in part["rows"]:
            for measure in part["units"]:
                if measure == "rate" and not truth.get(("leaving", row["of"][0])):
                    continue
                exact = truth.get((part["name"], measure, *row["of"]), 0.0)
                yield f"{part['name']}: {measure}", row[measure], exact
