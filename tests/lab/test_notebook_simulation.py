"""Simulations from Python: a frame and a mapping go in, the same result as a coordinator's comes out."""

import csv
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from sfumato.common.errors import BadInput
from sfumato.lab import simulate as simulation
from sfumato.lab.api import simulate
from sfumato.lab.in_process import open_vaults, run_in_process

CONTRACT = """
version = 1
name = "toy"
purpose = "A toy contract for notebooks."
[[tables]]
name = "customers"
columns = [
  { name = "id", type = "string", role = "customer_id" },
  { name = "city", type = "category", role = "feature", categories = ["basel", "chur"] },
]
"""
JOB: dict[str, Any] = {
    "job": {"name": "cities", "kind": "profile", "purpose": "Count the cities.", "contract": "toy"},
    "privacy": {"target_epsilon": 2.0, "delta": 1e-5},
    "federation": {"min_branches": 2, "repeats": 0},
    "question": {"columns": ["city"]},
}


@pytest.fixture
def contract(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Jobs run in this process: Ray takes seconds to start, and is tested elsewhere."""

    def run(homes: Any, job: Any, contract: Any, key: Any, report: Any) -> Any:
        return run_in_process(open_vaults(homes), job, contract, key, report)

    monkeypatch.setattr(simulation, "_run", run)
    (tmp_path / "contract.toml").write_text(CONTRACT)
    return tmp_path / "contract.toml"


def customers() -> pd.DataFrame:
    return pd.DataFrame({"id": [f"c{i}" for i in range(600)], "city": ["basel"] * 400 + ["chur"] * 200})


def test_a_frame_is_asked_and_the_answer_is_a_frame(contract: Path, tmp_path: Path) -> None:
    heard: list[str] = []
    result = simulate(
        JOB, contract, customers(), branches=2, show=False, on_event=lambda e: heard.append(e["event"])
    )
    counts = result.frame("city").query("measure == 'customers'").set_index("city")
    assert counts.low["basel"] <= counts.value["basel"] <= counts.high["basel"]
    assert abs(counts.value["basel"] - 400) < 60 and abs(counts.value["chur"] - 200) < 60
    assert result.epsilon == pytest.approx(2.0, rel=0.05) and "ingested" in heard and "sum" in heard
    result.to_csv(tmp_path / "out.csv")
    with (tmp_path / "out.csv").open(newline="", encoding="utf-8") as file:
        assert len(list(csv.DictReader(file))) == len(result.frame())


def test_what_is_no_job_and_no_table_is_refused(contract: Path) -> None:
    with pytest.raises(BadInput, match="not a table of customers"):
        simulate(JOB, contract, {"id": ["c1"]}, show=False)
    with pytest.raises(BadInput, match="cannot be said in TOML"):
        simulate({**JOB, "question": {"columns": [object()]}}, contract, customers(), show=False)
    with pytest.raises(BadInput, match="not a valid job"):
        simulate({**JOB, "question": "?"}, contract, customers(), show=False)
