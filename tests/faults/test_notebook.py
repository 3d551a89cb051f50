"""The Python API over a real federation: a job from a mapping, watched, and its answer as a frame and as files."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from sfumato.common.errors import BadInput
from sfumato.lab.samplebank import SampleBank
from sfumato.server import connect
from sfumato.server.cli import job as job_cli

pytestmark = pytest.mark.slow

QUESTION = {
    "job": {
        "name": "from-a-notebook",
        "kind": "profile",
        "purpose": "Who are they?",
        "contract": "sample-bank",
    },
    "privacy": {"target_epsilon": 0.1, "delta": 1e-5, "mode": "secure-sum"},
    "federation": {"min_branches": 3},
    "question": {"columns": ["segment", "churned"], "cross": [["segment", "churned"]]},
}


def test_a_job_is_submitted_watched_and_read(small: Any, bank: SampleBank, tmp_path: Path) -> None:
    home = small.whole.home.path
    asked = connect(home, bank.contract)
    run = asked.submit(QUESTION)
    heard: list[str] = []
    result = run.watch(lambda event: heard.append(event["event"]), show=False)
    assert heard[-1] == "finished" and "sum" in heard
    assert result.summary["job"] == "from-a-notebook" and result.summary["branches"] == 3
    frame = result.frame("segment")
    assert list(frame.columns[:5]) == ["segment", "measure", "value", "low", "high"]
    assert (frame.low <= frame.value).all() and (frame.value <= frame.high).all()
    assert set(frame.epsilon) == {result.epsilon} and 0.09 < (result.epsilon or 0) <= 0.1
    assert result.answer == asked.run(run.id).result().answer
    line = asked.runs().set_index("run").loc[run.id]
    assert (line.job, line.kind, line.state) == ("from-a-notebook", "profile", "completed")

    out = tmp_path / "answer.json"
    line = ["export", str(run.id), "--coordinator", str(home), "--json", str(out)]
    assert CliRunner().invoke(job_cli, line).exit_code == 0
    (exported,) = json.loads(out.read_text())["answers"]
    whole = result.frame()
    assert [r["value"] for r in exported["rows"]] == whole.value.tolist()
    shown = CliRunner().invoke(job_cli, ["show", str(run.id), "--coordinator", str(home)])
    assert "from-a-notebook: 3 branches" in shown.output

    sql = "SELECT segment, COUNT(*) AS people FROM customers GROUP BY segment"
    assert connect(home).estimate(sql, epsilon=0.1).branches == 3
    counted = connect(home).query(sql, epsilon=0.1, show=False)  # by the contract of the run before
    counts = counted.frame("answer").set_index("segment")
    # Both are noisy: what all groups' upper ends leave open is some four standard deviations of their sum.
    reach = (counts.high - counts.value).sum() + (whole.high[0] - whole.low[0]) / 2
    assert counts.value.sum() == pytest.approx(whole.value[0], abs=reach)
    with pytest.raises(BadInput, match="has ended already"):
        run.stop()
