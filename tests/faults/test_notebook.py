"""The Python API over a real federation: a job from a mapping, watched, and its answer as a frame and as files."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from sfumato.client.cli import app as branch_cli
from sfumato.common.errors import BadInput
from sfumato.lab.samplebank import SampleBank
from sfumato.privacy.ledger import Ledger
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


def test_a_question_that_stands_is_told_month_by_month(small: Any, bank: SampleBank) -> None:
    home, branches = small.whole.home.path, small.whole.branches
    run = connect(home, bank.contract).submit(
        {
            "job": {
                "name": "stands",
                "kind": "trend",
                "purpose": "Who falls silent?",
                "contract": "sample-bank",
            },
            "privacy": {"target_epsilon": 0.1, "delta": 1e-5, "mode": "secure-sum"},
            "federation": {"min_branches": 3},
            "question": {"follow": "transactions", "months": 3, "ahead": 1, "changes": 1},
        }
    )
    result = run.watch(show=False)

    def months(of: Any) -> list[str]:
        return sorted(set(of.frame("months").until))

    assert months(result) == ["2025-06-01", "2025-07-01"]
    assert (result.summary["waits_for"], result.summary["behind"]) == ("2025-07-31", sorted(branches))
    listed = CliRunner().invoke(job_cli, ["list", "--coordinator", str(home)])
    assert "waits for 2025-07-31" in listed.output
    for branch in branches.values():
        assert CliRunner().invoke(branch_cli, ["reach", str(branch.path), "2025-07-31"]).exit_code == 0
    line = ["resume", str(run.id), "--coordinator", str(home), "--watch"]
    resumed = CliRunner().invoke(job_cli, line)
    assert resumed.exit_code == 0 and "goes on as run" in resumed.output, resumed.output
    last = connect(home).run(int(resumed.output.partition("goes on as run ")[2].split()[0])).result()
    assert months(last) == ["2025-06-01", "2025-07-01", "2025-07-31"]
    assert last.frame("months").value[0] == result.frame("months").value[0]  # not asked again
    assert "waits_for" not in last.summary
    for branch in branches.values():
        entries = Ledger.read(branch.ledger).entries(job_id=last.summary["job_id"])
        assert [e.kind for e in entries] == ["reserve", *["charge"] * 3, "close"]
    with pytest.raises(BadInput, match="was resumed as run"):
        run.resume()
