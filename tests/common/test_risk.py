"""Risk: the plain figures without noise, a scorecard's points at the branch, and nothing led astray."""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from sfumato.common.analyses import catalogue
from sfumato.common.analyses.analysis import HELD_OUT, NoisySum
from sfumato.common.analyses.risk import Question, Risk, build
from sfumato.common.contract import Contract
from sfumato.common.contributions import Rows
from sfumato.common.errors import BadInput
from sfumato.common.job import AnalysisJob, load_job
from sfumato.common.learners.bins import Column, Schema
from sfumato.common.learners.curves import of_schema
from sfumato.common.learners.encoding import inputs_hash
from sfumato.common.learners.models import ModelHeader, SavedModel
from sfumato.common.learners.scorecard import Attribute, Bin, Estimate, Scaling, Scorecard

CONTRACT = Contract.model_validate(
    {
        "version": 1,
        "name": "loans",
        "purpose": "to be tested",
        "tables": [
            {
                "name": "customers",
                "columns": [
                    {"name": "id", "type": "string", "role": "customer_id"},
                    {"name": "age", "type": "integer", "role": "feature", "bounds": [18, 90]},
                    {"name": "home", "type": "category", "role": "feature", "categories": ["own", "rent"]},
                    {"name": "score", "type": "integer", "bounds": [0, 1000]},
                    {"name": "owed", "type": "number", "bounds": [0, 10_000]},
                    {"name": "flow", "type": "number", "bounds": [-10, 10]},
                    {"name": "failed", "type": "integer", "role": "label"},
                ],
            }
        ],
    }
)
CUTS = (400.0, 500.0, 600.0)
ASKED: dict[str, Any] = {"score": "score", "cuts": CUTS, "exposure": "owed", "exposure_bound": 5000.0}


def asked(**more: Any) -> Risk:
    found = build(Question.model_validate(ASKED | more), CONTRACT)
    assert isinstance(found, Risk)
    return found


def people(n: int, seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    score = rng.normal(510, 90, n).clip(0, 1000).round()
    failed = (rng.random(n) < 1 / (1 + np.exp((score - 350) / 60))).astype(np.int64)
    owed = np.minimum(800 * np.exp(rng.standard_normal(n)), 10_000)
    return {
        "age": rng.integers(18, 91, n),
        "home": rng.choice(["own", "rent"], n),
        "score": score,
        "owed": owed,
        "failed": failed,
        HELD_OUT: rng.random(n) < 0.3,
    }


def totals(question: Risk, frame: Mapping[str, Any], std: float = 1e-9, seed: int = 0) -> list[NoisySum]:
    rng, found = np.random.default_rng(seed), list[NoisySum]()
    for round_ in range(len(question.shares)):
        made = question.contribute(round_, frame, question.ask(round_, found))
        if isinstance(made, Rows):
            assert np.linalg.norm(made.rows, axis=1).max(initial=0.0) <= question.max_norm(round_) * (
                1 + 1e-12
            )
            exact = made.rows.sum(axis=0)
        else:
            exact = np.bincount(made.cells[made.cells >= 0], minlength=made.length).astype(float)
        noise = std / np.sqrt(question.shares[round_])
        found.append(NoisySum(exact + noise * rng.standard_normal(exact.size), noise))
    return found


def rows(answer: Mapping[str, Any], place: int) -> dict[tuple[str, ...], dict[str, Any]]:
    return {tuple(r["of"]): r for r in answer["parts"][place]["rows"]}


def test_without_noise_every_figure_is_the_naive_one() -> None:
    frame = people(5000, 1)
    question = asked(lgd=0.4, reference=[0.1, 0.3, 0.4, 0.2], names=["D", "C", "B", "A"])
    answer = question.read(totals(question, frame))
    grade, owed = np.digitize(frame["score"], CUTS), np.minimum(frame["owed"], 5000)
    bad, expected = frame["failed"], 0.0
    assert [r["of"] for r in answer["parts"][0]["rows"]] == [["D"], ["C"], ["B"], ["A"]]
    for g, name in enumerate("DCBA"):
        row, mine = rows(answer, 0)[(name,)], grade == g
        expected += 0.4 * bad[mine].mean() * owed[mine].sum()
        figures = {
            "customers": mine.sum(),
            "share": mine.mean(),
            "bad rate": bad[mine].mean(),
            "exposure": owed[mine].sum(),
            "expected loss": 0.4 * bad[mine].mean() * owed[mine].sum(),
            "observed loss": 0.4 * (bad * owed)[mine].sum(),
        }
        for measure, figure in figures.items():
            assert row[measure]["value"] == pytest.approx(figure, rel=1e-6), measure
    (whole,) = rows(answer, 1).values()
    assert whole["expected loss"]["value"] == pytest.approx(expected)
    assert whole["bad rate"]["value"] == pytest.approx(bad.mean())
    assert whole["gini"]["value"] == pytest.approx(2 * roc_auc_score(bad, -grade) - 1)
    gaps = [abs((grade[bad == 1] <= g).mean() - (grade[bad == 0] <= g).mean()) for g in range(3)]
    assert whole["ks"]["value"] == pytest.approx(max(gaps))
    now, then = np.bincount(grade) / 5000, np.array([0.1, 0.3, 0.4, 0.2])
    assert whole["stability index"]["value"] == pytest.approx(((now - then) * np.log(now / then)).sum())
    assert any("above 5000" in n for n in answer["notes"])


def test_a_foretold_rate_is_held_against_what_came() -> None:
    frame = people(20_000, 2)
    second = np.digitize(frame["score"], CUTS) == 1
    rate = float(frame["failed"][second].mean())
    question = asked(pd=[0.05, rate + 0.004, 0.9, rate])
    grades = rows(question.read(totals(question, frame)), 0)
    said = {name: row["verdict"] for (name,), row in grades.items()}
    assert said == {
        "under 400": "more than foretold",
        "400 to under 500": "as foretold",
        "500 to under 600": "less than foretold",
        "600 or more": "less than foretold",
    }
    owed = np.minimum(frame["owed"], 5000)[second].sum()
    mine = grades[("400 to under 500",)]
    assert mine["expected loss"]["value"] == pytest.approx(0.45 * (rate + 0.004) * owed)


def test_where_a_low_score_is_safe_the_order_turns() -> None:
    frame = people(4000, 3) | {"score": 1000 - people(4000, 3)["score"]}
    question = asked(safer="low", cuts=[400.5, 500.5, 600.5])
    answer = question.read(totals(question, frame))
    assert answer["parts"][0]["rows"][0]["of"] == ["600.5 or more"]
    (whole,) = rows(answer, 1).values()
    assert whole["gini"]["value"] > 0.3


def test_a_bound_that_was_sought_is_said() -> None:
    question, frame = asked(exposure_bound=None), people(20_000, 4)
    assert question.shares == (0.1, 0.9)
    answer = question.read(totals(question, frame, std=20.0))
    (cut,) = [n for n in answer["notes"] if "counts as" in n]
    bound = float(cut.split("above ")[1].split(" counts")[0])
    assert 10 < (frame["owed"] > bound).sum() < 500
    for body in (None, np.ones(2, np.float32), np.array([np.nan], np.float32), np.array([2e4], np.float32)):
        with pytest.raises(ValueError, match="bound"):
            question.contribute(1, frame, body)
    with pytest.raises(ValueError, match="without numbers"):
        question.contribute(0, frame, np.ones(1, np.float32))
    with pytest.raises(ValueError, match="bound"):
        asked().contribute(0, frame, np.ones(1, np.float32))


@pytest.mark.statistical
def test_intervals_hold_the_truth() -> None:
    """100 draws, 29 numbers each; nominal 95 %. Of one draw they hang together: false alarm below 1 in 100."""
    frame, question = people(4000, 5), asked(reference=[0.1, 0.3, 0.4, 0.2])
    exact = question.read(totals(question, frame))
    held = list[bool]()
    made = totals(question, frame)[0]
    rng = np.random.default_rng(6)
    for _ in range(100):
        noisy = question.read([NoisySum(made.values + 8 * rng.standard_normal(made.values.size), 8.0)])
        for part, true in zip(noisy["parts"], exact["parts"], strict=True):
            for row, right in zip(part["rows"], true["rows"], strict=True):
                for measure in part["units"]:
                    if measure in row:
                        truth = right[measure]["value"]
                        held.append(row[measure]["low"] <= truth <= row[measure]["high"])
    assert 0.92 <= np.mean(held) <= 0.985, np.mean(held)


def test_what_is_drowned_has_the_whole_range() -> None:
    question = asked()
    (whole,) = rows(question.read(totals(question, people(40, 7), std=500.0)), 1).values()
    assert (whole["gini"]["low"], whole["gini"]["high"]) == (-1.0, 1.0)
    assert (whole["ks"]["low"], whole["ks"]["high"]) == (0.0, 1.0)


# --- a finished scorecard --------------------------------------------------------------------------------


def header(**change: Any) -> ModelHeader:
    """Age counts 100 points from 50 years on, a home of one's own 50."""
    nothing = Estimate(value=0, low=0, high=0)

    def line(word: str, points: int) -> Bin:
        return Bin(bin=word, points=points, noise=0, share=0.5, bad_rate=nothing, woe=nothing)

    counts: dict[str, Any] = {"counts": (5.0, 5.0), "positives": (1.0, 1.0), "stds": (1.0, 1.0)}
    schema = Schema(
        contract=CONTRACT.hash,
        label="failed",
        customers=10,
        positives=2,
        columns=(
            Column(name="age", cuts=(50,), null=0, **counts),
            Column(name="home", categories={"own": 0, "rent": 1}, other=1, null=1, **counts),
        ),
    )
    words = [c.bins for c in of_schema(schema)]
    points = ((0, 100), (50, 0))
    attributes = tuple(
        Attribute(column=c.name, neutral=0, iv=nothing, bins=tuple(map(line, w, p)))
        for c, w, p in zip(schema.columns, words, points, strict=True)
    )
    card = Scorecard(scaling=Scaling(), base=400, attributes=attributes)
    facts: dict[str, Any] = {
        "kind": "scorecard",
        "name": "card",
        "purpose": "to be tested",
        "job_id": "0" * 32,
        "job_hash": "0",
        "contract": CONTRACT.hash,
        "contract_name": CONTRACT.name,
        "inputs": inputs_hash(CONTRACT),
        "label": "failed",
        "epsilon": 1.0,
        "delta": 1e-5,
        "made": datetime(2025, 1, 1, tzinfo=UTC),
        "schema_": schema,
        "parameters": {"card": card.model_dump(mode="json")},
    }
    return ModelHeader(**facts | change)


def test_a_card_grades_customers_at_the_branch_and_only_the_held_out_if_asked(tmp_path: Path) -> None:
    (tmp_path / "card.safetensors").write_bytes(SavedModel(header(), {}).to_bytes())
    (tmp_path / "job.toml").write_text(
        """
[job]
name = "loss"
kind = "risk"
purpose = "to be tested"
contract = "loans"
[privacy]
target_epsilon = 1.0
mode = "secure-sum"
[federation]
min_branches = 3
[question]
known_model = "card.safetensors"
held_out = true
cuts = [425, 525]
exposure = "owed"
exposure_bound = 10000
"""
    )
    job = load_job(tmp_path / "job.toml")
    assert isinstance(job, AnalysisJob)
    question = catalogue.build("risk", job.question, CONTRACT)
    assert isinstance(question, Risk)
    assert set(question.columns) == {"age", "home", "failed", "owed", HELD_OUT}
    frame = people(3000, 8)
    answer = question.read(totals(question, frame))
    points = 400 + 100 * (frame["age"] >= 50) + 50 * (frame["home"] == "own")
    kept = frame[HELD_OUT]
    for grade, name in enumerate(("under 425", "425 to under 525", "525 or more")):
        row, mine = rows(answer, 0)[(name,)], (np.digitize(points, (425, 525)) == grade) & kept
        assert row["customers"]["value"] == pytest.approx(mine.sum())
        assert row["bad rate"]["value"] == pytest.approx(frame["failed"][mine].mean())


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"kind": "boosted-trees"}, "a model of kind boosted-trees"),
        ({"contract": "1" * 64, "inputs": "other"}, "another version of contract"),
        ({"parameters": {}}, "not a scorecard"),
        ({"schema_": None}, "a model of kind"),
    ],
)
def test_a_model_that_is_no_card_of_this_contract(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(BadInput, match=says):
        asked(score=None, known_model=header(**wrong))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"score": None}, "comes from"),
        ({"known_model": header()}, "comes from"),
        ({"score": "home"}, "no number"),
        ({"score": "wages"}, "not declared"),
        ({"cuts": [5, 5]}, "strictly increasing"),
        ({"names": ["A"]}, "make 4 grades"),
        ({"names": ["A", "A", "B", "C"]}, "named twice"),
        ({"pd": [0.1, 0.2, 0.3, 1.5]}, "between 0 and 1"),
        ({"reference": [0.5, 0.5, 0.5, 0.5]}, "add up to 1"),
        ({"bad": "owed"}, "what happens or not"),
        ({"exposure": "flow", "exposure_bound": 5.0}, "never negative"),
        ({"exposure_bound": 20_000.0}, "within the contract"),
    ],
)
def test_a_question_that_cannot_be_asked(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(BadInput, match=says):
        asked(**wrong)


def test_a_job_whose_model_is_not_there_says_so(tmp_path: Path) -> None:
    (tmp_path / "job.toml").write_text(
        '[job]\nname = "x"\nkind = "risk"\npurpose = "to be tested"\ncontract = "loans"\n'
        '[question]\nknown_model = "no.safetensors"\n'
    )
    with pytest.raises(BadInput, match=r"no\.safetensors: no such file"):
        load_job(tmp_path / "job.toml")
