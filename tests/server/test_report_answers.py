"""The report of segments and of drift: the answer in a sentence, in figures, and never as a portrait."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from sfumato.common.analyses import catalogue
from sfumato.common.analyses.analysis import NoisySum
from sfumato.common.contract import Contract
from sfumato.common.learners import bins
from sfumato.server.cli import job
from sfumato.server.home import CoordinatorHome
from sfumato.server.report import render_report


def result(kind: str) -> dict[str, Any]:
    return {
        "state": "finished",
        "job": "who",
        "kind": kind,
        "mode": "secure-sum",
        "colluders": 1,
        "epsilon": 1.0,
    }


def text_of(page: str) -> str:
    return re.sub(r"<[^>]*>", " ", page.split("<body>")[1]).replace("\u202f", " ")


def segments(home: CoordinatorHome) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((home.path / "runs" / "13" / "answer.json").read_text())
    return found


def test_a_segments_report_shows_every_segment(full_home: CoordinatorHome, tmp_path: Path) -> None:
    said = CliRunner().invoke(
        job, ["report", "13", "--coordinator", str(full_home.path), "--out", str(tmp_path / "r.html")]
    )
    assert said.exit_code == 0, said.exception
    text = text_of((tmp_path / "r.html").read_text("utf-8"))
    assert "Which kinds of customers are there?" in text and "5 kinds of customers" in text
    assert "the largest is 30.0 % of all, the smallest 18.0 %" in text
    assert all(f"Segment {i}" in text for i in range(5)) and "not stored" not in text


def test_one_segment_is_none(full_home: CoordinatorHome) -> None:
    answer = segments(full_home)
    answer["segments"] = answer["segments"][:1]
    assert "No kinds of customers stand apart" in text_of(
        render_report(result("segments"), None, portrait=answer)
    )


def test_a_drift_report_names_what_has_shifted(bank_contract: Contract, bank_schema: bins.Schema) -> None:
    asked = catalogue.build("drift", {"known": bank_schema.model_dump(mode="json")}, bank_contract)
    counts = [np.maximum(c.counts, 0) for c in bank_schema.columns]
    counts[0] = np.roll(counts[0], 1)
    answer = json.loads(json.dumps(asked.read([NoisySum(np.concatenate(counts), 3.0)])))
    text = text_of(render_report(result("drift"), None, portrait=answer))
    assert "Are the customers still the same?" in text and "1 of 6 columns have shifted (age)." in text
    for column in bank_schema.columns:
        assert f"{column.name}: " in text
    calm = json.loads(
        json.dumps(
            asked.read(
                [NoisySum(np.concatenate([np.maximum(c.counts, 0) for c in bank_schema.columns]), 3.0)]
            )
        )
    )
    assert "0 of 6 columns have shifted." in text_of(render_report(result("drift"), None, portrait=calm))


@pytest.mark.parametrize("kind", ["segments", "drift"])
def test_what_is_no_answer_of_its_kind_is_refused(kind: str) -> None:
    for wrong in ({"tables": []}, {kind: 3}, {kind: [3]}):
        with pytest.raises(ValueError, match=f"not the answer of {kind}"):
            render_report(result(kind), None, portrait=wrong)
    assert "not stored with this result" in text_of(render_report(result(kind), None))


def test_hostile_names_stay_text(full_home: CoordinatorHome) -> None:
    bad = "<script>alert(1)</script>"
    answer = segments(full_home)
    answer["names"] = [bad]
    for segment in answer["segments"]:
        segment["centre"] = {bad: {"value": 1, "low": 0, "high": 2}}
    assert "<script>" not in render_report(result("segments"), None, portrait=answer)


@pytest.mark.parametrize(
    ("kind", "mode", "said"),
    [
        ("boosted-trees", "secure-sum", "one for the bins of the columns"),
        ("scorecard", "local", "noisy sums over the branch’s customers, one for the bins of the columns"),
        ("churn-net", "secure-sum", "one for the number of customers"),
        ("churn-net", "local", "the weights of a model after each round"),
        ("segments", "secure-sum", "on the way to the segments"),
        ("profile", "local", "a noisy table of counts"),
    ],
)
def test_the_report_says_what_left_a_branch_by_kind(kind: str, mode: str, said: str) -> None:
    one = {"name": "north", "epsilon": 1.0, "rounds_answered": 3, "bytes_sent": 10}
    page = render_report(result(kind) | {"mode": mode, "per_branch": [one]}, None)
    assert said in text_of(page)
    assert ("Which customers will leave?" in page) == (kind in ("boosted-trees", "scorecard", "churn-net"))
