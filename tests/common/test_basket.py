"""Baskets: against counts of one basket after another, against published figures, and whether intervals hold."""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sfumato.common.analyses import basket
from sfumato.common.analyses.analysis import NoisySum
from sfumato.common.analyses.basket import Basket
from sfumato.common.contract import Contract
from sfumato.common.errors import BadInput

ITEMS = tuple("abcdefgh")
GROCERIES = Path(__file__).resolve().parents[3] / "shared" / "data" / "groceries" / "groceries_long.parquet"


def contract_of(items: Sequence[str]) -> Contract:
    key = {"name": "id", "type": "string", "role": "customer_id"}
    lines = [
        key,
        {"name": "item", "type": "category", "categories": list(items)},
        {"name": "bill", "type": "integer"},
    ]
    tables = [{"name": "customers", "columns": [key]}, {"name": "lines", "columns": lines}]
    tables.append({"name": "visits", "columns": [key, {"name": "day", "type": "date"}]})
    purpose = "See what is bought together."
    return Contract.model_validate({"version": 1, "name": "shop", "purpose": purpose, "tables": tables})


def asked(categories: Sequence[str] = ITEMS, **question: Any) -> Basket:
    built = basket.build(basket.Question(column="lines.item", **question), contract_of(categories))
    assert isinstance(built, Basket)
    return built


def totals_of(
    analysis: Basket, columns: Mapping[str, Any], std: float, rng: np.random.Generator
) -> list[NoisySum]:
    """What comes out, with noise in proportion to each sum's bound."""
    totals: list[NoisySum] = []
    for round_ in range(len(analysis.shares)):
        rows = analysis.contribute(round_, columns, analysis.ask(round_, totals)).rows
        assert (np.linalg.norm(rows, axis=1) <= analysis.max_norm(round_) * (1 + 1e-12)).all()
        assert rows.shape[1] == analysis.length(round_)
        noise = std * analysis.max_norm(round_)
        totals.append(NoisySum(rows.sum(axis=0) + rng.normal(0, noise, rows.shape[1]), noise))
    return totals


def shoppers(customers: int, seed: int = 3) -> dict[str, Any]:
    """Lists of lines; c comes with b, and a often by itself."""
    rng = np.random.default_rng(seed)
    items, bills = list[list[str | None]](), list[list[int | None]]()
    for _ in range(customers):
        held, of = list[str | None](), list[int | None]()
        for bill in rng.permutation(5)[: rng.integers(0, 5)].tolist():
            bought = [
                i
                for i, p in zip(ITEMS, (0.6, 0.4, 0.0, 0.3, 0.2, 0.1, 0.1, 0.05), strict=True)
                if rng.random() < p
            ]
            bought += ["c"] if "b" in bought and rng.random() < 0.7 else []
            held += bought
            of += [bill] * len(bought)
        held += [None, "unknown", "a"]
        of += [1, 2, None]
        items.append(held)
        bills.append(of)
    return {"lines.item": pa.array(items), "lines.bill": pa.array(bills, pa.list_(pa.int64()))}


def counted(columns: Mapping[str, Any], bill: bool, most: int) -> Counter[frozenset[str]]:
    """One basket after another; the empty set counts baskets."""
    counts: Counter[frozenset[str]] = Counter()
    for items, bills in zip(
        columns["lines.item"].to_pylist(), columns["lines.bill"].to_pylist(), strict=True
    ):
        baskets: dict[int, set[str]] = {} if bill else {0: set()}
        for item, of in zip(items, bills, strict=True):
            if not bill or of is not None:
                baskets.setdefault(of if bill else 0, set()).update({item} & set(ITEMS))
        for held in list(baskets.values())[:most]:
            for size in range(4):
                counts.update(map(frozenset, combinations(sorted(held), size)))
    return counts


def numbers(answer: Mapping[str, Any], counts: Mapping[frozenset[str], int]) -> list[tuple[str, Any, float]]:
    whole, found = counts[frozenset()], []
    for part in answer["parts"]:
        for row in part["rows"]:
            words = [frozenset(w.split(" + ")) for w in row["of"]]
            count = counts[frozenset().union(*words)]
            truths = {"baskets": float(count), "support": count / whole}
            if part["name"] == "rules":
                truths["confidence"] = count / counts[words[0]]
                truths["lift"] = truths["confidence"] * whole / counts[words[1]]
            found += [(f"{part['name']} {m}", row[m], t) for m, t in truths.items() if m in row]
    return found


@pytest.mark.parametrize("bill", [False, True])
@pytest.mark.parametrize(("items", "pairs", "triples"), [(8, 28, 56), (5, 10, 10), (8, 9, 5), (6, 7, 4)])
def test_without_noise_every_number_is_the_plain_count(
    bill: bool, items: int, pairs: int, triples: int
) -> None:
    more: dict[str, Any] = {"basket": "lines.bill", "most_baskets": 2} if bill else {}
    analysis = asked(items=items, pairs=pairs, triples=triples, most_items=8, **more)
    assert sum(analysis.shares) == pytest.approx(1)
    columns = shoppers(150)
    answer = analysis.read(totals_of(analysis, columns, 1e-9, np.random.default_rng(0)))
    counts = counted(columns, bill, 2)
    assert answer["customers"]["value"] == pytest.approx(150)
    for what, number, truth in numbers(answer, counts):
        assert number["value"] == pytest.approx(truth, rel=1e-5, abs=1e-5), what
    for name, size, shown in (("items", 1, items), ("pairs", 2, pairs), ("triples", 3, triples)):
        (part,) = (p for p in answer["parts"] if p["name"] == name)
        assert len(part["rows"]) == shown == len({frozenset(r["of"]) for r in part["rows"]})
        if (
            not bill and name == "pairs"
        ):  # with room for all items nobody is scaled down, and these are the top ones
            among = {i for r in answer["parts"][0]["rows"] for i in r["of"]}
            best = sorted((c for s, c in counts.items() if len(s) == size and s <= among), reverse=True)
            assert [r["baskets"]["value"] for r in part["rows"]] == pytest.approx(best[:shown], abs=1e-4)


def test_a_choice_that_the_contract_settles_is_not_paid_for() -> None:
    assert asked(pairs=28).stages == ("measure",) and asked(pairs=28).shares == (1.0,)
    assert asked(pairs=5).stages == ("pairs", "measure")
    assert asked(items=4, pairs=6).stages == ("items", "measure")
    assert asked(items=4, pairs=5).stages == ("items", "pairs", "measure")
    assert asked(items=4, pairs=6, triples=2).stages == ("items", "pairs", "measure")


def test_a_customer_does_not_change_with_who_stands_beside_them() -> None:
    analysis, columns = asked(items=5, pairs=4, basket="lines.bill"), shoppers(40)
    totals = totals_of(analysis, columns, 1e-9, np.random.default_rng(0))
    for round_ in range(3):
        said = analysis.ask(round_, totals)
        together = analysis.contribute(round_, columns, said).rows
        apart = [
            analysis.contribute(round_, {n: c[i : i + 1] for n, c in columns.items()}, said).rows
            for i in range(40)
        ]
        assert np.array_equal(together, np.concatenate(apart))
        nobody = {n: pa.chunked_array([c])[:0] for n, c in columns.items()}
        assert analysis.contribute(round_, nobody, said).rows.shape == (0, analysis.length(round_))


@pytest.mark.statistical
@pytest.mark.parametrize("std", [1.0, 6.0])
def test_the_intervals_hold_the_truth_though_noise_chose_what_is_shown(std: float) -> None:
    """40 draws, some 110 numbers each, dependent within a draw; nominal 95 %."""
    analysis, columns = asked(items=6, pairs=6, triples=4), shoppers(600)
    rng, held, counts = np.random.default_rng(5), list[bool](), counted(columns, False, 1)
    for _ in range(40):
        answer = analysis.read(totals_of(analysis, columns, std, rng))
        held += [n["low"] <= truth <= n["high"] for _, n, truth in numbers(answer, counts)]
    assert 0.92 <= np.mean(held) <= 0.985, np.mean(held)


def test_groceries_as_published() -> None:
    """Frequencies as the data is described with; the rule as the arules package prints it (Hahsler et al. 2005)."""
    if not GROCERIES.exists():
        pytest.skip("the benchmark data is not at hand (../shared/data)")
    table = pq.read_table(GROCERIES).to_pandas()
    columns = {"lines.item": pa.array(table.groupby("basket_id")["item"].apply(list).tolist())}
    analysis = asked(sorted(table["item"].unique()), pairs=50)
    answer = analysis.read(totals_of(analysis, columns, 1e-9, np.random.default_rng(0)))
    items = {r["of"][0]: r["baskets"]["value"] for r in answer["parts"][0]["rows"]}
    known = {"whole milk": 2513, "other vegetables": 1903, "rolls/buns": 1809, "soda": 1715, "yogurt": 1372}
    assert {i: items[i] for i in known} == pytest.approx(known)
    first = answer["parts"][1]["rows"][0]
    assert set(first["of"]) == {"other vegetables", "whole milk"}
    assert first["support"]["value"] == pytest.approx(0.0748, abs=5e-5)
    (rule,) = (r for r in answer["parts"][2]["rows"] if r["of"] == ["root vegetables", "other vegetables"])
    shown = [rule[m]["value"] for m in ("support", "confidence", "lift")]
    assert shown == pytest.approx([0.0474, 0.4347, 2.2466], abs=5e-5)


def test_a_hostile_coordinator_is_refused() -> None:
    analysis, columns = asked(items=4, pairs=3, triples=2), shoppers(5)
    good = np.array([0, 1, 2, 5, 0, 1, 0, 2, 1, 3, 0, 1, 2, 1, 2, 3], np.float32)
    analysis.contribute(2, columns, good)

    def wrong(place: int, value: float) -> npt.NDArray[np.float32]:
        return np.concatenate([good[:place], [value], good[place + 1 :]]).astype(np.float32)

    bad = [
        None,
        good[:-1],
        good[None, :],
        wrong(0, np.nan),
        wrong(3, 8),
        wrong(3, 2),
        wrong(0, 0.5),
        wrong(0, -1),
    ]
    bad += [wrong(7, 1), wrong(5, 4), wrong(10, 1), wrong(12, 4), np.concatenate([good[:-3], good[-6:-3]])]
    for said in bad:
        with pytest.raises(ValueError, match="Expected"):
            analysis.contribute(2, columns, said)
    with pytest.raises(ValueError, match="Expected"):
        analysis.contribute(1, columns, good)
    with pytest.raises(ValueError, match="without numbers"):
        analysis.contribute(0, columns, good[:4])


def test_what_the_contract_does_not_declare_is_refused() -> None:
    contract = contract_of(ITEMS)
    for question, said in (
        ({"column": "item"}, "no column of another table"),
        ({"column": "lines.price"}, "not declared"),
        ({"column": "lines.id"}, "customer id"),
        ({"column": "lines.bill"}, "no public list"),
        ({"column": "lines.item", "basket": "visits.day"}, "no other column of table"),
        ({"column": "lines.item", "basket": "lines.item"}, "no other column of table"),
    ):
        with pytest.raises(BadInput, match=said):
            basket.build(basket.Question.model_validate(question), contract)
