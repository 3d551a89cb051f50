"""RFM: against pandas on the same customers, its bound, its intervals, and what a coordinator may not ask."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from sfumato.common.analyses import catalogue
from sfumato.common.analyses.analysis import NoisySum
from sfumato.common.analyses.levels import Axis, Cube
from sfumato.common.analyses.parts import parts_of
from sfumato.common.analyses.rfm import Question, Rfm, build
from sfumato.common.analyses.rfm_groups import GROUPS, group_of
from sfumato.common.contract import Contract
from sfumato.common.contributions import Cells, Rows
from sfumato.common.errors import BadInput

CONTRACT = Contract.model_validate(
    {
        "version": 1,
        "name": "shop",
        "purpose": "Know who buys and how.",
        "tables": [
            {
                "name": "customers",
                "columns": [
                    {"name": "id", "type": "string", "role": "customer_id"},
                    {"name": "days", "type": "integer", "bounds": [0, 730], "nullable": True},
                    {"name": "orders", "type": "integer", "bounds": [0, 300]},
                    {"name": "spent", "type": "number", "bounds": [-1_000_000, 0], "scale": "log"},
                    {"name": "net", "type": "number", "bounds": [-500, 1000]},
                    {"name": "tier", "type": "category", "categories": ["a", "b"]},
                    {"name": "iban", "type": "string", "role": "pii", "protection": "drop"},
                ],
            }
        ],
    }
)


def asked(**more: Any) -> Rfm:
    question = {"recency": "days", "frequency": "orders", "money": "spent"} | more
    found = build(Question.model_validate(question), CONTRACT)
    assert isinstance(found, Rfm)
    return found


def people(n: int, seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    orders = np.minimum(1 + rng.negative_binomial(1, 0.15, n), 300).astype(float)
    spent = np.minimum(orders * rng.lognormal(4, 1, n), 1e6)
    days = np.where(rng.random(n) < 0.05, np.nan, np.minimum(rng.exponential(700 / orders, n) // 1, 730))
    return {"days": days, "orders": orders, "spent": -spent, "net": spent - 100, "tier": np.full(n, "a")}


def total(found: Rfm, round_: int, frame: dict[str, Any], ask: Any) -> np.ndarray:
    contribution = found.contribute(round_, frame, ask)
    if isinstance(contribution, Rows):
        return contribution.rows.sum(axis=0)
    cells = contribution.cells
    counted: np.ndarray = np.bincount(cells[cells >= 0], minlength=contribution.length)
    return counted.astype(np.float64)


def answered(found: Rfm, frame: dict[str, Any], std: float, rng: np.random.Generator) -> dict[str, Any]:
    totals: list[NoisySum] = []
    for round_ in range(2):
        exact = total(found, round_, frame, found.ask(round_, totals))
        noise = std * found.max_norm(round_)
        totals.append(NoisySum(exact + noise * rng.standard_normal(exact.size), noise))
    return found.read(totals)


def rows(answer: dict[str, Any], part: str) -> list[dict[str, Any]]:
    return next(p["rows"] for p in answer["parts"] if p["name"] == part)


def named(score: str, levels: int) -> str:
    recency, frequency, money = map(int, score.split("-"))
    return group_of(recency, frequency, money, levels)


def naive(answer: dict[str, Any], frame: dict[str, Any], levels: int) -> pd.DataFrame:
    """Each customer's cell and money with pandas, by the cuts and the ceiling that the answer states."""
    table = pd.DataFrame(
        {"days": frame["days"], "orders": frame["orders"], "spent": -frame["spent"]}
    ).dropna()
    cell = []
    for name in table:
        cuts = [r["cut"]["value"] for r in rows(answer, "cuts") if r["of"][0] == name]
        level = sum((table[name] > cut).astype(int) for cut in cuts)
        cell.append((levels - level if name == "days" else level + 1).astype(str))
    return pd.DataFrame(
        {"cell": cell[0].str.cat(cell[1:], sep="-"), "money": table["spent"].clip(upper=answer["ceiling"])}
    )


@pytest.mark.parametrize("levels", [3, 5])
def test_without_noise_every_number_is_pandas_own(levels: int) -> None:
    frame = people(4000, 1)
    answer = answered(asked(cells=levels), frame, 1e-9, np.random.default_rng(0))
    table = naive(answer, frame, levels)
    table["group"] = [named(c, levels) for c in table["cell"]]
    assert answer["customers"]["value"] == pytest.approx(4000)
    for part, key in (("cells", "cell"), ("groups", "group")):
        sums = table.groupby(key)["money"].agg(["size", "sum", "mean"])
        for row in rows(answer, part):
            name = row["scores"] if part == "cells" else row["of"][0]
            if name == "never":
                assert row["customers"]["value"] == pytest.approx(np.isnan(frame["days"]).sum())
            elif name in sums.index:
                size, money, mean = sums.loc[name]
                assert row["customers"]["value"] == pytest.approx(size, abs=1e-6)
                assert row["share"]["value"] == pytest.approx(size / 4000, abs=1e-8)
                assert row["value"]["value"] == pytest.approx(money, rel=1e-5)
                assert row["value_share"]["value"] == pytest.approx(money / table["money"].sum(), rel=1e-5)
                assert row["mean"]["value"] == pytest.approx(mean, rel=1e-5)
    (whole,) = rows(answer, "money")
    assert whole["above"]["value"] == pytest.approx((-frame["spent"] > answer["ceiling"])[table.index].sum())
    assert [p.name for p in parts_of(answer)] == ["all customers", "groups", "cells", "cuts", "money"]
    assert {r["of"][0] for r in rows(answer, "groups")} == {*GROUPS, "never"}


def test_without_noise_cuts_are_the_quantiles_and_their_intervals_hold_them() -> None:
    frame = people(4000, 2)
    answer = answered(asked(cells=5), frame, 1e-9, np.random.default_rng(0))
    table = pd.DataFrame(
        {"days": frame["days"], "orders": frame["orders"], "spent": -frame["spent"]}
    ).dropna()
    for row in rows(answer, "cuts"):
        at = int(row["of"][1][0]) / 5
        exact = float(np.quantile(table[row["of"][0]], at, method="inverted_cdf"))
        assert row["cut"]["low"] <= exact <= row["cut"]["high"]
        assert row["cut"]["value"] == pytest.approx(exact, rel=0.06)


@pytest.mark.statistical
def test_intervals_hold_and_shares_are_near() -> None:
    """30 draws of some 200 numbers each; nominal 95 %. The shares of the cells lie within half a point."""
    found, frame, rng = asked(), people(3000, 3), np.random.default_rng(5)
    held, errors = [], []
    for _ in range(30):
        answer = answered(found, frame, 8.0, rng)
        table = naive(answer, frame, 3)
        sums = table.groupby("cell")["money"].agg(["size", "sum"])
        for row in rows(answer, "cells"):
            size, money = sums.loc[row["scores"]] if row["scores"] in sums.index else (0.0, 0.0)
            truth = {"customers": size, "share": size / 3000, "value": money}
            truth["value_share"] = money / table["money"].sum()
            truth |= {"mean": money / size} if size else {}
            held += [row[m]["low"] - 1e-6 <= t <= row[m]["high"] + 1e-6 for m, t in truth.items()]
            errors.append(abs(row["share"]["value"] - size / 3000))
    assert 0.92 <= np.mean(held) <= 0.985, np.mean(held)
    assert np.mean(errors) <= 0.005


def test_nobody_is_longer_than_the_bound() -> None:
    found, frame = asked(cells=5), people(500, 4)
    binned = found.contribute(0, frame, None)
    assert isinstance(binned, Cells)
    assert (binned.cells < found.length(0)).all() and binned.cells.shape[1] == pytest.approx(
        found.max_norm(0) ** 2
    )
    exact = NoisySum(total(found, 0, frame, None), 1.0)
    contribution = found.contribute(1, frame, found.ask(1, [exact]))
    assert isinstance(contribution, Rows) and contribution.rows.shape == (500, found.length(1))
    assert (np.linalg.norm(contribution.rows, axis=1) <= 1 + 1e-12).all()


def test_a_slice_of_customers_adds_what_it_would_add_among_all() -> None:
    found, frame = asked(), people(300, 6)
    ask = found.ask(1, [NoisySum(total(found, 0, frame, None), 1.0)])
    some = {name: values[100:120] for name, values in frame.items()}
    for round_, sent in ((0, None), (1, ask)):
        whole, part = found.contribute(round_, frame, sent), found.contribute(round_, some, sent)
        if isinstance(whole, Cells) and isinstance(part, Cells):
            assert (whole.cells[100:120] == part.cells).all()
        else:
            assert isinstance(whole, Rows) and isinstance(part, Rows)
            assert (whole.rows[100:120] == part.rows).all()


def test_an_amount_below_zero_counts_as_zero_and_nobody_else_moves() -> None:
    axis = Axis.of(CONTRACT, "net", amount=True)
    assert axis.values(np.array([-20.0, 5.0, 2000.0, np.nan])).tolist()[:3] == [0.0, 5.0, 1000.0]
    turned = Axis.of(CONTRACT, "spent", amount=True)
    assert turned.values(np.array([-20.0, 0.0])).tolist() == [20.0, 0.0] and turned.turned


def test_levels_without_customers_are_left_out_and_said() -> None:
    frame = people(1000, 7) | {"orders": np.ones(1000)}
    answer = answered(asked(), frame, 1e-9, np.random.default_rng(0))
    assert len({r["of"][1] for r in rows(answer, "cells")}) < 3
    assert any("orders has fewer levels" in n for n in answer["notes"])
    assert sum(r["customers"]["value"] for r in rows(answer, "groups")) == pytest.approx(1000)


def test_drowned_in_noise_a_mean_is_any_and_a_share_is_all() -> None:
    answer = answered(asked(), people(40, 8), 1e6, np.random.default_rng(0))
    for row in rows(answer, "cells"):
        assert (row["share"]["low"], row["share"]["high"]) == (0.0, 1.0) or row["share"]["high"] <= 1
        assert 0 <= row["mean"]["low"] <= row["mean"]["high"] <= 1e6


@pytest.mark.parametrize(
    "wrong",
    [
        None,
        np.zeros(3, np.float32),
        np.full(7, np.nan, np.float32),
        np.array([5, 3, 1, 2, 1, 2, 9], np.float32),
        np.array([3, 5, 1, 2, 1, 2, 1], np.float32),
        np.array([3, 5, 1, 2, 1, 2, 2e6], np.float32),
        np.array([-3, 5, 1, 2, 1, 2, 3], np.float32),
    ],
)
def test_a_hostile_question_is_refused(wrong: Any) -> None:
    with pytest.raises(ValueError, match="Expected"):
        asked().contribute(1, people(3, 0), wrong)


def test_the_first_round_is_asked_without_numbers() -> None:
    with pytest.raises(ValueError, match="without numbers"):
        asked().contribute(0, people(3, 0), np.zeros(7, np.float32))


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"recency": "wages"}, "not declared"),
        ({"money": "tier"}, "no number"),
        ({"money": "iban"}, "personal data"),
        ({"money": "orders"}, "three different"),
    ],
)
def test_a_question_that_cannot_be_asked(more: dict[str, str], says: str) -> None:
    with pytest.raises(BadInput, match=says):
        asked(**more)


def test_the_catalogue_knows_it_and_refuses_four_levels() -> None:
    question = {"recency": "days", "frequency": "orders", "money": "spent"}
    assert isinstance(catalogue.build("rfm", question, CONTRACT), Rfm)
    with pytest.raises(ValueError, match="cells"):
        catalogue.build("rfm", question | {"cells": 4}, CONTRACT)


def test_groups_are_named_for_every_score_and_no_other() -> None:
    for levels in (3, 5):
        scores = range(1, levels + 1)
        assert {group_of(r, f, m, levels) for r in scores for f in scores for m in scores} == set(GROUPS)
    assert group_of(5, 4, 5, 5) == "champions" and group_of(1, 2, 2, 5) == "lost"
    with pytest.raises(ValueError, match="1 to 3"):
        group_of(0, 1, 1, 3)


def test_a_cube_counts_a_cut_in_the_level_below() -> None:
    found = asked()
    cube = Cube.of(found.axes, 3, np.array([3, 9, 1, 2, 10, 20, 30], np.float32))
    values = np.array([[3.0, 1.0, 10.0], [4.0, 2.0, 20.0], [9.5, 3.0, 20.5], [np.nan, 1.0, 1.0]])
    assert cube.cell(values).tolist() == [0, 13, 26, 27]
    assert cube.words()[0] == ["0 to 3", "4 to 9", "10 to 730"]
