"""Campaign: exact without noise, bounded, honest about sampling error, and not to be led astray by what is asked."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from sfumato.common.analyses import catalogue
from sfumato.common.analyses.analysis import NoisySum
from sfumato.common.analyses.arms import Arms
from sfumato.common.analyses.campaign import Campaign, Question, build
from sfumato.common.analyses.latest import Groups, Measure
from sfumato.common.contract import Contract
from sfumato.common.contributions import Cells, Rows
from sfumato.common.errors import BadInput
from sfumato.common.learners.uplift import difference

LETTERS = {
    "name": "letters",
    "columns": [
        {"name": "id", "type": "string", "role": "customer_id"},
        {"name": "day", "type": "date", "role": "time"},
        {"name": "gift", "type": "category", "categories": ["nothing", "mug"]},
        {"name": "answered", "type": "boolean"},
        {"name": "length", "type": "integer", "bounds": [0, 9]},
        {"name": "maybe", "type": "boolean", "nullable": True},
    ],
}
CONTRACT = Contract.model_validate(
    {
        "version": 1,
        "name": "toy",
        "purpose": "to be tested",
        "as_of": "2025-07-01",
        "tables": [
            {
                "name": "customers",
                "columns": [
                    {"name": "id", "type": "string", "role": "customer_id"},
                    {
                        "name": "arm",
                        "type": "category",
                        "categories": ["none", "mail", "call"],
                        "nullable": True,
                    },
                    {"name": "town", "type": "category", "categories": ["ash", "elm"]},
                    {"name": "bought", "type": "boolean"},
                    {"name": "left", "type": "integer", "role": "label"},
                    {"name": "spent", "type": "number", "bounds": [0, 1000]},
                    {"name": "note", "type": "string"},
                ],
            },
            LETTERS,
        ],
        "features": [
            {"name": "longest", "table": "letters", "aggregate": "max", "column": "length", "bounds": [0, 9]},
        ],
    }
)
ASKED = {"treatment": "arm", "control": "none", "outcomes": ["bought", "spent"], "groups": ["town"]}
RATES = {"none": 0.10, "mail": 0.20, "call": 0.12}


def asked(**more: Any) -> Campaign:
    found = build(Question.model_validate(ASKED | more), CONTRACT)
    assert isinstance(found, Campaign)
    return found


def people(n: int, seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    arm = np.array(["none", "mail", "call", None], dtype=object)[rng.choice(4, n, p=[0.3, 0.3, 0.3, 0.1])]
    town = rng.choice(["ash", "elm"], n)
    rate = np.array([RATES.get(a, 0.0) for a in arm]) + np.where((town == "elm") & (arm == "mail"), 0.2, 0.0)
    bought = rng.random(n) < rate
    spent = np.where(bought, np.minimum(50 * np.exp(rng.standard_normal(n)), 1000), 0.0)
    return {"arm": arm, "town": town, "bought": bought, "left": rng.integers(0, 2, n), "spent": spent}


def totals(question: Campaign, frame: Mapping[str, Any], std: float = 1e-9, seed: int = 0) -> list[NoisySum]:
    rng, found = np.random.default_rng(seed), list[NoisySum]()
    for round_ in range(len(question.shares)):
        made = question.contribute(round_, frame, question.ask(round_, found))
        if isinstance(made, Rows):
            exact = made.rows.sum(axis=0)
        else:
            cells = made.cells[made.cells >= 0]
            exact = np.bincount(cells, minlength=made.length).astype(float)
        noise = std * question.max_norm(round_) / np.sqrt(question.shares[round_])
        found.append(NoisySum(exact + noise * rng.standard_normal(exact.size), noise))
    return found


def vectors(question: Campaign, frame: Mapping[str, Any]) -> Any:
    made = question.contribute(0, frame, None)
    assert isinstance(made, Rows)
    return made.rows


def rows(answer: Mapping[str, Any], name: str) -> dict[tuple[str, ...], dict[str, Any]]:
    (part,) = [p for p in answer["parts"] if p["name"] == name]
    return {tuple(r["of"]): r for r in part["rows"]}


def test_without_noise_every_number_is_the_naive_one() -> None:
    frame = people(4000, 1)
    question = asked(outcome_bound={"spent": 80.0})
    answer = question.read(totals(question, frame))
    arm, elm, spent = frame["arm"], frame["town"] == "elm", np.minimum(frame["spent"], 80.0)
    assert answer["customers"]["value"] == pytest.approx((arm != None).sum())  # noqa: E711
    for name, values, key in (("bought", frame["bought"], "rate"), ("spent", spent, "mean")):
        control = values[arm == "none"].mean()
        for a in ("mail", "call", "none"):
            row = rows(answer, name)[(a,)]
            mine = values[arm == a]
            assert row["customers"]["value"] == pytest.approx(len(mine))
            assert row[key]["value"] == pytest.approx(mine.mean(), rel=1e-6)
            if a == "none":
                assert "uplift" not in row
                continue
            assert row["uplift"]["value"] == pytest.approx(mine.mean() - control, abs=1e-6)
            assert row["relative uplift"]["value"] == pytest.approx(mine.mean() / control - 1, rel=1e-5)
            error = np.sqrt(mine.var() / len(mine) + values[arm == "none"].var() / (arm == "none").sum())
            reach = (row["effect"]["high"] - row["effect"]["low"]) / 2
            assert reach == pytest.approx(1.96 * error, rel=0.03)
            inner = rows(answer, f"{name} by town")[(a, "elm")]
            wanted = values[(arm == a) & elm].mean() - values[(arm == "none") & elm].mean()
            assert inner["uplift"]["value"] == pytest.approx(wanted, abs=1e-6)
    assert any("above 80" in note for note in answer["notes"])
    targets = rows(answer, "whom to target")
    mail, call = (targets[("bought", arm, "town")] for arm in ("mail", "call"))
    assert mail["first"] == "elm" and "elm" in mail["helps"]
    assert call["harms"] == "-"


@pytest.mark.parametrize("share", [0.2, 0.9])
def test_nobody_adds_more_than_the_bound_and_everybody_adds_by_themselves(share: float) -> None:
    question = asked(groups=["town", "left"], groups_share=share, outcome_bound={"spent": 1000.0})
    frame = people(300, 2)
    frame["spent"] = np.random.default_rng(3).choice([0.0, 1.0, 250.0, 500.0, 1000.0], 300)
    found = vectors(question, frame)
    lengths = np.linalg.norm(found, axis=1)
    assert lengths.max() <= question.max_norm(0) * (1 + 1e-12)
    assert lengths.max() == pytest.approx(1.0)  # the bound is used
    assert (lengths[frame["arm"] == None] == 0).all()  # noqa: E711
    some = {name: values[100:200] for name, values in frame.items()}
    assert (vectors(question, some) == found[100:200]).all()


def test_a_bound_is_found_that_leaves_few_above_it() -> None:
    question = asked(groups=[])
    frame = people(40_000, 4)
    assert question.shares == (0.15, 0.85) and question.max_norm(0) == 1.0
    answer = question.read(totals(question, frame, std=5.0))
    (cut,) = rows(answer, "where amounts were cut").values()
    inside = frame["arm"] != None  # noqa: E711
    above = (frame["spent"][inside] > cut["bound"]["value"]).sum()
    assert 20 < above < 400
    assert cut["customers above"]["low"] <= above <= cut["customers above"]["high"]


@pytest.mark.statistical
def test_with_a_bound_that_was_sought_the_effect_is_of_whole_amounts() -> None:
    """30 draws over three trials with few who buy. The interval holds what the whole amounts say without privacy."""
    question, held, widths = asked(outcomes=["spent"], groups=[]), [], []
    for seed in range(3):
        rng = np.random.default_rng(seed)
        arm = rng.choice(["none", "mail", "call"], 30_000).astype(object)
        bought = rng.random(30_000) < np.where(arm == "mail", 0.06, 0.04)
        spent = np.where(bought, np.minimum(30 * np.exp(rng.standard_normal(30_000)), 1000), 0.0)
        frame = {"arm": arm, "spent": spent}
        first = question.contribute(0, frame, None)
        assert isinstance(first, Cells)
        counts = np.bincount(first.cells[first.cells >= 0], minlength=first.length)
        sums = dict[float, Any]()
        mail, none = (spent[arm == a] for a in ("mail", "none"))
        truth, error = mail.mean() - none.mean(), np.sqrt(mail.var() / len(mail) + none.var() / len(none))
        for _ in range(10):
            std = 5.5 / np.sqrt(np.array(question.shares))
            found = [NoisySum(counts + std[0] * rng.standard_normal(counts.size), std[0])]
            bound = question.ask(1, found)
            assert bound is not None
            if bound[0] not in sums:
                made = question.contribute(1, frame, bound)
                assert isinstance(made, Rows)
                sums[bound[0]] = made.rows.sum(axis=0)
            exact = sums[bound[0]]
            found.append(NoisySum(exact + std[1] * rng.standard_normal(exact.size), std[1]))
            answer = question.read(found)
            row = rows(answer, "spent")[("mail",)]
            effect, uplift = row["effect"], row["uplift"]
            raised = effect["value"] / uplift["value"]
            assert 1 < raised < 1.3
            assert f"spent: effect is raised by {raised - 1:.1%} for what was cut off." in answer["notes"]
            held.append(effect["low"] <= truth <= effect["high"])
            widths.append((effect["high"] - effect["low"]) / (2 * 1.96 * error))
    assert np.mean(held) >= 0.95
    assert np.mean(widths) < 1.3


@pytest.mark.parametrize(
    "body",
    [None, [], [1.0, 2.0], [np.nan], [np.inf], [0.0], [-3.0], [1000.1], [1e9], [[5.0]]],
)
def test_bounds_of_another_form_are_refused(body: Any) -> None:
    question = asked()
    wrong = None if body is None else np.array(body, dtype=np.float32)
    with pytest.raises(ValueError, match="bounds"):
        question.contribute(1, people(5, 0), wrong)
    with pytest.raises(ValueError, match="without numbers"):
        question.contribute(0, people(5, 0), np.ones(1, np.float32))
    with pytest.raises(ValueError, match="bounds"):
        asked(outcome_bound={"spent": 9.0}).contribute(0, people(5, 0), np.ones(1, np.float32))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"control": "post"}, "is no value of"),
        ({"treatment": "spent", "outcomes": ["bought"]}, "no category"),
        ({"treatment": "id"}, "the customer id"),
        ({"treatment": "letters.day"}, "no public cells"),
        ({"treatment": "letters.colour"}, "not declared"),
        ({"outcomes": ["note"]}, "no public cells"),
        ({"outcomes": ["town"], "groups": []}, "neither yes or no"),
        ({"outcomes": ["longest"]}, "missing for customers without rows"),
        ({"outcomes": ["letters.maybe"]}, "may be missing"),
        ({"outcomes": ["bought", "bought"]}, "named twice"),
        ({"outcome_bound": {"bought": 1.0}}, "takes no bound"),
        ({"outcome_bound": {"spent": 2000.0}}, "takes no bound"),
        ({"outcome_bound": {"spent": 0.0}}, "takes no bound"),
        ({"groups": ["wages"]}, "not declared"),
    ],
)
def test_a_question_that_cannot_be_asked(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(BadInput, match=says):
        asked(**wrong)


def test_the_newest_letter_counts_and_who_got_none_does_not() -> None:
    question = asked(
        treatment="letters.gift", control="nothing", outcomes=["letters.answered"], groups=["town"]
    )
    gifts = pa.array([["mug", "nothing"], ["nothing"], [], None, ["mug"]], pa.list_(pa.string()))
    answered = pa.array([[True, False], [False], [], None, [True]], pa.list_(pa.bool_()))
    frame = {"letters.gift": gifts, "letters.answered": pa.chunked_array([answered]), "town": ["ash"] * 5}
    answer = question.read(totals(question, frame))
    mug, nothing = (rows(answer, "letters.answered")[(g,)] for g in ("mug", "nothing"))
    assert (mug["customers"]["value"], nothing["customers"]["value"]) == pytest.approx((2, 1))
    assert (mug["rate"]["value"], nothing["rate"]["value"]) == pytest.approx((1, 0))


def test_a_drowned_trial_says_nothing() -> None:
    question = asked(outcome_bound={"spent": 80.0})
    answer = question.read(totals(question, people(60, 5), std=500.0))
    for (arm,), row in rows(answer, "bought").items():
        assert (row["rate"]["low"], row["rate"]["high"]) == (0.0, 1.0), arm
        assert row.get("verdict", "cannot tell") == "cannot tell"


@pytest.mark.statistical
def test_the_effect_s_interval_holds_what_other_customers_would_do() -> None:
    """300 populations of the same kind; nominal 95 %. A right interval falls below 92 % in one of 100 seeds."""
    arms = Arms(
        Groups.of(CONTRACT, "arm", 2), (Measure("bought", True), Measure("spent", False, 0, 100)), (), 0.5
    )
    rng, held = np.random.default_rng(6), {0: 0, 1: 0}
    truth = {0: RATES["mail"] - RATES["none"], 1: 0.3 * (RATES["mail"] - RATES["none"])}
    for _ in range(300):
        arm = rng.choice(["none", "mail"], 2000).astype(object)
        bought = rng.random(2000) < np.where(arm == "mail", RATES["mail"], RATES["none"])
        spent = np.where(bought, 60 * rng.random(2000), 0.0)  # 30 of 100 in the mean
        made = arms.contribute({"arm": arm, "bought": bought, "spent": spent}, ((0, 1), (0, 100))).rows.sum(
            axis=0
        )
        table = arms.read(NoisySum(made + 6 * rng.standard_normal(made.size), 6.0))
        for outcome, happens in ((0, True), (1, False)):
            found = difference(table.cell(0, 1), table.cell(0, 0), outcome, happens)
            held[outcome] += found.low <= truth[outcome] <= found.high
    assert min(held.values()) >= 0.92 * 300, held
    assert max(held.values()) <= 0.99 * 300, held


def test_it_stands_in_the_catalogue() -> None:
    assert catalogue.build("campaign", ASKED, CONTRACT).columns == ("arm", "bought", "spent", "town")
