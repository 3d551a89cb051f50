"""Simulation by Flower's engine: real vaults, no network; what it says of bad input; how it splits."""

import re
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
import typer
from pydantic import TypeAdapter
from typer.testing import CliRunner

from sfumato.client.ingest.load import open_source
from sfumato.common.enrolment import BranchName
from sfumato.common.errors import BadInput
from sfumato.lab.cli import simulate
from sfumato.lab.partition import REST, NumberedSource, split
from sfumato.lab.simulate import simulated_branches

CONTRACT = """
version = 1
name = "toy"
purpose = "A toy contract for the simulation's own tests."
[[tables]]
name = "customers"
[[tables.columns]]
name = "id"
type = "string"
role = "customer_id"
[[tables.columns]]
name = "city"
type = "string"
role = "branch"
[[tables.columns]]
name = "visits"
type = "integer"
role = "feature"
bounds = [0, 100]
[[tables.columns]]
name = "left"
type = "integer"
role = "label"
"""
JOB = """
[job]
name = "toy"
kind = "churn-net"
purpose = "See that a simulation runs."
contract = "toy"
[privacy]
target_epsilon = 2.0
delta = 1e-5
[training]
rounds = 2
local_steps = 5
[federation]
min_branches = 2
"""


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    rows = 600
    visits = [(i * 37) % 101 for i in range(rows)]
    table = pa.table(
        {
            "id": [f"c{i:04d}" for i in range(rows)],
            "city": [
                "north" if i % 3 == 0 else "south" if i % 3 == 1 else f"village {i % 30}" for i in range(rows)
            ],
            "visits": visits,
            "left": [int(v < 25) for v in visits],
        }
    )
    pa.csv.write_csv(table, tmp_path / "toy.csv")
    pa.parquet.write_table(table, tmp_path / "toy.parquet")
    (tmp_path / "contract.toml").write_text(CONTRACT)
    (tmp_path / "job.toml").write_text(JOB)
    return tmp_path


def line(toy: Path, data: str, *options: str | Path) -> list[str]:
    files = [toy / "job.toml", "--contract", toy / "contract.toml", "--data", toy / data]
    return ["simulate", *map(str, [*files, *options])]


def ask(toy: Path, data: str, *options: str | Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "sfumato.common.cli", *line(toy, data, *options)]
    return subprocess.run(command, capture_output=True, text=True, timeout=240)


def refused(toy: Path, data: str, *options: str | Path) -> str:
    """What the command says of bad input: in this process, for a new one takes seconds to come up."""
    app = typer.Typer()
    app.command("simulate")(simulate)
    app.callback()(lambda: None)
    said = CliRunner().invoke(app, line(toy, data, *options))
    assert isinstance(said.exception, BadInput), said.output
    return str(said.exception)


@pytest.mark.slow
def test_a_parquet_by_column(toy: Path) -> None:
    import json

    out = toy / "out.json"
    done = ask(toy, "toy.parquet", "--branch-column", "city", "--min-branch-size", "100", "--json", out)
    assert done.returncode == 0, done.stderr
    summary = json.loads(out.read_text())
    assert sorted(b["name"] for b in summary["per_branch"]) == ["north", REST, "south"]
    assert 1.9 < summary["epsilon"] <= 2.0
    assert 300 < summary["customers"] < 900


@pytest.mark.parametrize(
    ("options", "fragment"),
    [
        (("--branch-column", "country"), "has no column 'country'"),
        (("--branches", "1"), "makes 1 branches, the job needs at least 2"),
        (("--row-number-as", "id"), "has a column 'id' already"),
    ],
)
def test_bad_questions_are_answered(toy: Path, options: tuple[str, ...], fragment: str) -> None:
    assert fragment in refused(toy, "toy.csv", *options)


def test_a_bad_row_is_named_by_its_own_number(toy: Path) -> None:
    lines = (toy / "toy.csv").read_text().splitlines()
    lines[300] = lines[300].rsplit(",", 2)[0] + ",1000,0"
    (toy / "toy.csv").write_text("\n".join(lines) + "\n")
    said = refused(toy, "toy.csv", "--branches", "2")
    assert "300" in said and "visits" in said and "1000" not in said


def test_a_job_for_another_contract_is_refused(toy: Path) -> None:
    (toy / "job.toml").write_text(JOB.replace('contract = "toy"', 'contract = "other"'))
    done = ask(toy, "toy.csv")
    assert done.returncode == 2 and "written for contract 'other'" in done.stderr


def test_every_row_lands_in_one_branch(toy: Path) -> None:
    for name in ("toy.csv", "toy.parquet"):
        parts = split(open_source(toy / name), toy / "p" / name, column=None, branches=4, min_branch_size=1)
        ids = [i for p in parts.values() for i in pa.parquet.read_table(p).column("id").to_pylist()]
        assert sorted(ids) == [f"c{i:04d}" for i in range(600)]
        assert len(parts) == 4 and min(pa.parquet.read_metadata(p).num_rows for p in parts.values()) > 100


def test_whatever_a_column_holds_branches_get_names_that_branches_may_have(toy: Path) -> None:
    cities = ["Zürich", "zurich", "", None, "東京", "京都", "x" * 90]
    table = pa.parquet.read_table(toy / "toy.parquet")
    column = pa.array([cities[i % 7] for i in range(600)])
    pa.parquet.write_table(table.set_column(1, "city", column), toy / "named.parquet")
    source = open_source(toy / "named.parquet")
    parts = split(source, toy / "p", column="city", branches=7, min_branch_size=1)
    assert len(parts) == 7 and len(set(parts.values())) == 7
    assert {"zurich", "zurich-2", "none", "branch", "branch-2", "branch-3", "x" * 50} == parts.keys()
    for name in parts:
        TypeAdapter(BranchName).validate_python(name)


def test_row_numbers_become_a_column(toy: Path) -> None:
    with NumberedSource(open_source(toy / "toy.csv"), "row").open() as reader:
        assert reader.columns[-1] == "row"
        assert [v for b in reader for v in b.table.column("row").to_pylist()][:2] == ["1", "2"]


def test_one_value_is_no_split(toy: Path) -> None:
    table = pa.parquet.read_table(toy / "toy.parquet").set_column(1, "city", pa.array(["here"] * 600))
    pa.parquet.write_table(table, toy / "one.parquet")
    with pytest.raises(BadInput, match="one value only"):
        split(open_source(toy / "one.parquet"), toy / "p", column="city", branches=4, min_branch_size=1)


def test_a_folder_of_branches_becomes_them(toy: Path) -> None:
    contract = toy / "contract.toml"
    for name in ("Zürich West", "east"):
        (toy / "bank" / name).mkdir(parents=True)
        (toy / "bank" / name / "customers.csv").write_bytes((toy / "toy.csv").read_bytes())
    (toy / "bank" / "east" / "notes.txt").write_text("not ours")
    with simulated_branches(
        contract, toy / "bank", budget_epsilon=1.0, budget_delta=1e-5, keep_pooled=True
    ) as made:
        assert [h.name for h in made.homes] == ["zurich-west", "east"]
        assert made.pooled is not None and made.pooled.num_rows == 1200
        root = made.homes[0].path.parent
    assert not root.exists()


@pytest.mark.parametrize(
    ("files", "fragment"),
    [
        ({}, "has no folder of a branch"),
        ({"east/customers.csv": 1, "west/clients.csv": 1}, "west: no file for table 'customers'"),
        ({"east/customers.csv": 1, "east/customers.parquet": 1}, "more than one file for table 'customers'"),
        ({"east/customers.csv": 1}, "has 1 branches, the job needs at least 2"),
    ],
)
def test_bad_folders_of_branches(toy: Path, files: dict[str, int], fragment: str) -> None:
    (toy / "bank").mkdir()
    for name in files:
        (toy / "bank" / name).parent.mkdir(exist_ok=True)
        (toy / "bank" / name).write_bytes((toy / "toy.csv").read_bytes())
    with (
        pytest.raises(BadInput, match=re.escape(fragment)),
        simulated_branches(
            toy / "contract.toml", toy / "bank", at_least=2, budget_epsilon=1.0, budget_delta=1e-5
        ),
    ):
        pass
