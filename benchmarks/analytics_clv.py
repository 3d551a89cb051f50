"""Lifetime value: online retail by country groups, and travel paid at the sample bank; the bar is what BG/NBD's
parameters expect in a year, against the maximum-likelihood fit of the pooled customers."""

import tempfile
from collections.abc import Iterator, Mapping
from datetime import date
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import online_retail
import pyarrow as pa
from analytics_harness import Bar, Case, Columns, Pairs, answers, bank_columns, by_branch, pooled

from sfumato.common.analyses import clv
from sfumato.common.analyses.clv_groups import BINS
from sfumato.common.analyses.likelihood_sums import Likelihood, Points, StandIns
from sfumato.common.contract import Contract, load_contract
from sfumato.common.learners.bgnbd import BgNbdLikelihood, GammaGamma, GammaGammaLikelihood
from sfumato.common.learners.lifetime import Histories, Lifetime
from sfumato.lab.samplebank import generate

SHOP = {"purchases": "invoices.day", "amount": "invoices.amount", "history": 740}
BANK = {"purchases": "transactions.date", "amount": "transactions.amount", "where": {"category": "travel"}}
BAR, BAR_EPSILON = 0.03, 2.0


def cases() -> Iterator[Case]:
    if (shop := _shop()) is not None:
        yield _case("online_retail", SHOP, *shop)
    yield _case("sample bank, travel", BANK, *_bank())


def bars(seeds: int) -> Iterator[Bar]:
    """Of a new customer, and of today's customers as their branches would score them."""
    for case in cases():
        histories, model = _pooled(case.name)
        now = model.outlook(histories).purchases.sum()
        off = list[tuple[float, float]]()
        for answer in answers(case, BAR_EPSILON, seeds):
            shown = [r["value"]["value"] for r in _rows(answer, "parameters") if r["of"] != ["drop-out"]]
            fitted = Lifetime.of_numbers(np.array(shown), model.months, model.discount)
            off.append(
                (fitted.new[0] / model.new[0] - 1, fitted.outlook(histories).purchases.sum() / now - 1)
            )
        for what, errors in zip(("a new customer", "today's customers"), np.abs(off).T, strict=True):
            seen = f"{100 * errors.mean():.2f} % on average, at most {100 * errors.max():.2f} %"
            yield Bar(
                f"{case.name}: 12-month purchases of {what}", "within 3 %", seen, bool(errors.mean() <= BAR)
            )


def _case(name: str, question: dict[str, Any], contract: Contract, branches: tuple[Columns, ...]) -> Case:
    return Case(name, contract, "clv", question, branches, partial(pairs, name))


@cache
def _pooled(name: str) -> tuple[Histories, Lifetime]:
    """Everybody in one place, and the models fitted to them."""
    question, (contract, branches) = (
        (SHOP, _shop() or _bank()) if name == "online_retail" else (BANK, _bank())
    )
    analysis = clv.build(clv.Question.model_validate(question), contract)
    assert isinstance(analysis, clv.Clv) and analysis.values is not None
    _, histories = analysis.purchases.read(pooled(branches))
    times = _top(BgNbdLikelihood(), histories.times, analysis.times.start)
    values = _top(
        GammaGammaLikelihood(), histories.values, GammaGamma(2.0, 3.5, np.median(histories.values[:, 1])).u
    )
    return histories, analysis.lifetime(np.concatenate([times, values]))


def _top(model: Likelihood, data: Any, start: Any) -> Any:
    none = np.zeros(len(data), np.int64)
    return StandIns(model, Points(data, none, none, np.zeros(len(data))), np.ones(len(data)), start).top()


def pairs(name: str, answer: Mapping[str, Any]) -> Pairs:
    """Every number, and the pooled customers' own at the pooled parameters, under the answer's ceilings."""
    h, model = _pooled(name)
    question = clv.Question.model_validate(SHOP if name == "online_retail" else BANK)
    outlook, since = model.outlook(h), h.t - h.t_x
    assert outlook.lifetime is not None
    place = np.searchsorted(question.frequency, h.x, side="right")
    sums = {"purchases": outlook.purchases, "value": h.value, "lifetime": outlook.lifetime}
    sums = {n: np.minimum(v, np.array(answer["ceilings"][n])[place]) for n, v in sums.items()}
    yield "customers", answer["customers"], len(h)
    for row, truth in zip(_rows(answer, "parameters"), _parameters(model), strict=True):
        yield f"parameter {row['of'][0]}", row["value"], truth
    new = _rows(answer, "a new customer")[0]
    for measure, truth in zip(("purchases", "value_each", "lifetime"), model.new, strict=True):
        yield f"new customer's {measure}", new[measure], truth
    cell = place * (len(question.recency) + 1) + np.searchsorted(question.recency, since, side="right")
    everyone = np.ones(len(h), bool)
    all_ = sums | {"purchases": outlook.purchases}
    yield from _group(_rows(answer, "all customers")[0], everyone, all_, outlook.alive, "all")
    for g, row in enumerate(_rows(answer, "by purchases")):
        yield from _group(row, cell == g, sums, outlook.alive, "group")
    for (low, high), row in zip(pairwise((-1.0, *BINS, 2.0)), _rows(answer, "alive"), strict=True):
        yield (
            "bin of P(alive)",
            row["customers"],
            float(((outlook.alive >= low) & (outlook.alive < high)).sum()),
        )


def _group(row: Mapping[str, Any], of: Any, sums: Mapping[str, Any], alive: Any, what: str) -> Pairs:
    n = max(int(of.sum()), 1)
    yield f"{what}: customers", row["customers"], int(of.sum())
    yield f"{what}: alive", row["alive"], alive[of].sum() / n
    for name, values in sums.items():
        yield f"{what}: {name}", row[name], values[of].sum()
        yield f"{what}: {name} each", row[f"{name}_each"], values[of].sum() / n


def _parameters(model: Lifetime) -> list[float]:
    numbers = model.numbers.tolist()
    return [*numbers[:4], model.times.drop_out, *numbers[4:]]


def _rows(answer: Mapping[str, Any], name: str) -> Any:
    return next(p["rows"] for p in answer["parts"] if p["name"] == name)


@cache
def _shop() -> tuple[Contract, tuple[Columns, ...]] | None:
    found = online_retail.invoices()
    if found is None:
        return None
    found = found.sort_values(["customer", "day"], ascending=[True, False])
    people = found.groupby("customer").agg(
        day=("day", list), amount=("amount", list), country=("country", "first")
    )
    columns = {
        "invoices.day": pa.array([[d.date() for d in days] for days in people["day"]]),
        "invoices.amount": pa.array(people["amount"].tolist()),
    }
    home = online_retail.branches(people.index.to_series(), people["country"])
    return _shop_contract(found["day"].max().date()), by_branch(columns, home)


def _shop_contract(as_of: date) -> Contract:
    key = {"name": "id", "type": "string", "role": "customer_id"}
    day = {"name": "day", "type": "date", "role": "time"}
    amount = {"name": "amount", "type": "number", "role": "amount", "bounds": [0, 200_000]}
    return Contract.model_validate(
        {
            "version": 1,
            "name": "online-retail",
            "purpose": "What customers are worth.",
            "as_of": as_of,
            "tables": [
                {"name": "customers", "columns": [key]},
                {"name": "invoices", "columns": [key, day, amount]},
            ],
        }
    )


@cache
def _bank() -> tuple[Contract, tuple[Columns, ...]]:
    with tempfile.TemporaryDirectory() as directory:
        bank = generate(Path(directory) / "bank")
        contract = load_contract(bank.contract)
        names = clv.build(clv.Question.model_validate(BANK), contract).columns
        return contract, bank_columns(bank, names, Path(directory))
