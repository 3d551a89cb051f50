"""Baskets: of groceries over 16 branches, and of the sample bank's customers by what they spend on and when."""

import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from analytics_harness import DATA, Bar, Case, Columns, Pairs, answers, bank_columns, pooled, split

from sfumato.common.contract import Contract, load_contract
from sfumato.lab.samplebank import generate

GROCERIES = DATA / "groceries" / "groceries_long.parquet"
BRANCHES = 16
TOP = 50
FOUND, CLOSE = 0.8, 0.15


def cases() -> Iterator[Case]:
    if (case := groceries()) is not None:
        yield case
    column, day = "transactions.category", "transactions.date"
    with tempfile.TemporaryDirectory() as directory:
        bank = generate(Path(directory) / "bank")
        contract = load_contract(bank.contract)
        branches = bank_columns(bank, (column, day, "holdings.product"), Path(directory))
    for name, question in (
        ("sample bank, products", {"column": "holdings.product", "pairs": 10, "triples": 5}),
        ("sample bank, days", {"column": column, "basket": day, "most_baskets": 3, "items": 6, "pairs": 9}),
    ):
        truth = sets_of(pooled(branches), question)
        yield Case(name, contract, "basket", question, branches, partial(pairs, truth))


def groceries() -> Case | None:
    """None where the data is not at hand. Each basket is a customer."""
    if not GROCERIES.exists():
        print("SKIPPED groceries: the data file is not beside the project")
        return None
    table = pq.read_table(GROCERIES).to_pandas()
    items = sorted(table["item"].unique())
    columns = {"lines.item": pa.array(table.groupby("basket_id")["item"].apply(list).tolist())}
    question = {"column": "lines.item", "pairs": TOP}
    truth, branches = sets_of(columns, question), split(columns, BRANCHES)
    return Case("groceries", contract_of(items), "basket", question, branches, partial(pairs, truth))


def contract_of(items: Sequence[str]) -> Contract:
    """Customers, and lines with one item each."""
    key = {"name": "id", "type": "string", "role": "customer_id"}
    lines = [key, {"name": "item", "type": "category", "categories": list(items)}]
    return Contract.model_validate(
        {
            "version": 1,
            "name": "groceries",
            "purpose": "See what is bought together.",
            "tables": [{"name": "customers", "columns": [key]}, {"name": "lines", "columns": lines}],
        }
    )


# --- the truth, counted one basket after another -------------------------------------------------------------


@dataclass(frozen=True)
class Truth:
    """How many customers there are, and baskets with each set of up to three items; the empty set counts baskets."""

    customers: int
    counts: Mapping[frozenset[str], int]


def sets_of(columns: Columns, question: Mapping[str, Any]) -> Truth:
    """By the lists of rows of the pooled customers."""
    counts: Counter[frozenset[str]] = Counter()
    rows = columns[question["column"]].to_pylist()
    ids = columns[question["basket"]].to_pylist() if "basket" in question else [[0] * len(r) for r in rows]
    for items, of in zip(rows, ids, strict=True):
        held: dict[Any, set[str]] = {} if "basket" in question else {0: set()}
        for item, basket in zip(items, of, strict=True):
            held.setdefault(basket, set()).add(item)
        for basket in list(held.values())[: question.get("most_baskets", 1)]:
            for size in range(4):
                counts.update(map(frozenset, combinations(sorted(basket), size)))
    return Truth(len(rows), counts)


def pairs(truth: Truth, answer: Mapping[str, Any]) -> Pairs:
    """Every number of the answer beside its truth."""
    yield "customers", answer["customers"], truth.customers
    counts = truth.counts
    whole = counts[frozenset()]
    for part in answer["parts"]:
        for row in part["rows"]:
            of = frozenset(word for words in row["of"] for word in words.split(" + "))
            count = counts[of]
            truths = {"baskets": count, "support": count / whole}
            if part["name"] == "rules":
                given, then = (frozenset(words.split(" + ")) for words in row["of"])
                truths["confidence"] = count / counts[given] if counts[given] else 0.0
                truths["lift"] = truths["confidence"] * whole / counts[then] if counts[then] else 0.0
            for measure, number in row.items():
                if measure != "of":
                    yield f"{part['name']}: {measure}", number, truths[measure]


def bars(seeds: int) -> Iterator[Bar]:
    """Of groceries at epsilon 2: how many of the true top pairs are found, and how far off their lift is."""
    case = groceries()
    if case is None:
        return
    truth = sets_of(pooled(case.branches), case.question)
    true = sorted((s for s in truth.counts if len(s) == 2), key=lambda s: -truth.counts[s])[:TOP]
    found, errors = [], []
    for answer in answers(case, 2.0, seeds):
        shown = {frozenset(r["of"]): r for p in answer["parts"] if p["name"] == "rules" for r in p["rows"]}
        found.append(np.mean([s in shown for s in true]))
        off = [
            abs(number["value"] / true_lift - 1)
            for what, number, true_lift in pairs(truth, answer)
            if what == "rules: lift"
        ]
        errors.append((np.mean(off), np.median(off), np.max(off)))
    mean, median, worst = np.mean(errors, axis=0)
    share = float(np.mean(found))
    yield Bar(
        f"groceries, {BRANCHES} branches, epsilon 2: of the true top {TOP} pairs found",
        f"{FOUND:.0%}",
        f"{share:.1%} (least {np.min(found):.0%})",
        share >= FOUND,
    )
    yield Bar(
        "groceries, epsilon 2: mean error of lift over the pairs found",
        f"{CLOSE:.0%}",
        f"{mean:.1%} (median {median:.1%}, largest {worst:.1%})",
        float(mean) <= CLOSE,
    )
