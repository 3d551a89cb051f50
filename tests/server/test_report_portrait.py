"""The portrait on the report page: every group is there, merged ones are named, small ones hidden, nothing breaks."""

import json
import re
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest

from sfumato.common.analyses.analysis import NoisySum
from sfumato.common.analyses.catalogue import build
from sfumato.common.contract import Contract
from sfumato.server.report import render_report
from sfumato.server.report_portrait import portrait_of

HOSTILE = "<script>alert(1)</script>&{{ 7*7 }}"
QUESTION = {
    "columns": ["segment", "age", "left"],
    "cross": [["segment", "left"], ["segment", "channel"]],
    "min_group": 30,
}


def contract() -> Contract:
    def category(name: str, *values: str) -> dict[str, Any]:
        return {"name": name, "type": "category", "role": "feature", "categories": values}

    columns = [
        {"name": "id", "type": "string", "role": "customer_id"},
        category("segment", "mass", "private", HOSTILE, "student", "senior"),
        category("channel", "mobile", "web", "branch"),
        {"name": "age", "type": "integer", "role": "feature", "bounds": [18, 100], "edges": [30, 60]},
        {"name": "left", "type": "integer", "role": "label"},
    ]
    return Contract.model_validate(
        {
            "version": 1,
            "name": "toy",
            "purpose": "to be drawn",
            "tables": [{"name": "customers", "columns": columns}],
        }
    )


@pytest.fixture(scope="module")
def answer() -> dict[str, Any]:
    rng, n = np.random.default_rng(1), 6000
    frame = {
        "segment": rng.choice(
            ["mass", "private", HOSTILE, "student", "senior"], n, p=[0.8, 0.17, 0.02, 0.005, 0.005]
        ),
        "channel": rng.choice(["mobile", "web", "branch"], n),
        "age": rng.integers(18, 101, n),
        "left": rng.integers(0, 2, n),
    }
    asked = build("profile", QUESTION, contract())
    cells = asked.contribute(0, frame, None).cells  # type: ignore[union-attr]
    total = np.bincount(cells.ravel(), minlength=asked.length(0)) + rng.normal(0, 9, asked.length(0))
    found: dict[str, Any] = json.loads(json.dumps(asked.read([NoisySum(total, 9.0)])))
    return found


def result(**changes: Any) -> dict[str, Any]:
    return {
        "state": "finished",
        "job": "who-they-are",
        "kind": "profile",
        "mode": "secure-sum",
        "colluders": 1,
        "epsilon": 0.99,
        "delta": 1e-5,
        "per_branch": [{"name": "ash", "epsilon": 0.99, "epsilon_spent": 0.99, "epsilon_budget": 4.0}],
        "refused": [],
        **changes,
    }


class Text(HTMLParser):
    """The page's words and its tags."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.tags: list[str] = []
        self.feed(page)
        self.text = re.sub(r"\s+", " ", " ".join(self.words))

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_the_page_of_a_profile_has_every_table_with_its_numbers(answer: dict[str, Any]) -> None:
    page = Text(render_report(result(), None, portrait=answer, contract=contract()))
    assert "Who are the customers?" in page.text
    assert "How good it is" not in page.text
    assert "No curves" not in page.text
    assert page.tags.count("svg") == 5 + 1  # of the tables, and of the budgets
    assert "script" not in page.tags
    for words in ("left: 1, by segment", "channel, by segment", "18 to 29", "any one branch that works"):
        assert words in page.text, words
    assert HOSTILE in page.text  # as text
    assert "share alone looks like random numbers" in page.text


def test_merged_and_hidden_groups_are_named(answer: dict[str, Any]) -> None:
    hidden = [g for t in answer["tables"] for g in t["groups"] if "fewer_than" in g]
    merged = [g for t in answer["tables"] for g in t["groups"] if len(g["cells"]) > 1]
    assert hidden, "the test shows nothing"
    assert merged, "the test shows nothing"
    text = Text(render_report(result(), None, portrait=answer)).text
    for group in hidden:
        assert f"fewer than {group['fewer_than']}" in text
    for group in merged:
        assert " · ".join(group["cells"][0]) in text or group["cells"][0][-1] in text
    portrait = portrait_of(answer)
    assert portrait is not None
    drawn = [row for plot in (*portrait.single, *portrait.crossed, *portrait.panels) for row in plot.rows]
    assert len(drawn) == sum(len(t["groups"]) for t in answer["tables"])
    assert [row[2:] for row in drawn if row[1].startswith("fewer")] == [("", "", "")] * len(hidden)


def test_a_model_may_have_a_portrait_beside_it_and_a_job_may_have_none(answer: dict[str, Any]) -> None:
    both = Text(render_report(result(kind="churn-net", mode="local"), None, portrait=answer)).text
    assert "Who they are" in both
    assert "How good it is" in both
    assert "Who they are" not in Text(render_report(result(kind="churn-net"), None)).text
    assert "its answer is not stored" in Text(render_report(result(), None)).text
    failed = Text(render_report(result(state="failed", reason="nobody came"), None)).text
    assert "No answer came of it" in failed


def test_the_same_answer_gives_the_same_page(answer: dict[str, Any]) -> None:
    assert render_report(result(), None, portrait=answer) == render_report(result(), None, portrait=answer)


@pytest.mark.parametrize(
    "wrong", [{}, {"customers": {"value": 1}}, {"customers": 3, "tables": [{"columns": []}]}]
)
def test_what_is_no_portrait(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="not the answer of a profile"):
        portrait_of(wrong)
