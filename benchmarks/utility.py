"""How accurate is the churn net at epsilon 2, on seven real data sets? Runs `sfumato simulate` on each.

The data lie beside the project (../shared/data) and are never copied; without them nothing is measured.
Floors are those of the first issue: local DP-SGD, contract-bound features, four branches or the natural ones.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from datasets import Dataset, chosen
from rich.console import Console
from rich.table import Table


def split(dataset: Dataset) -> list[str]:
    """The options that make its branches: four at random, or the natural ones."""
    if dataset.branch_column is None:
        return ["--branches", "4"]
    return ["--branch-column", dataset.branch_column, "--min-branch-size", str(dataset.min_branch_size)]


def measure(dataset: Dataset, runs: int) -> dict[str, object]:
    """The median run by AUC of `runs` runs, with all their AUCs; the ceiling is measured once."""
    results = []
    for run in range(runs):
        with tempfile.TemporaryDirectory() as directory:
            out = Path(directory) / "out.json"
            command = [
                sys.executable,
                "-m",
                "sfumato.common.cli",
                "simulate",
                str(dataset.example / "job.toml"),
            ]
            command += ["--contract", str(dataset.example / "contract.toml"), "--data", str(dataset.path)]
            if dataset.row_number_as is not None:
                command += ["--row-number-as", dataset.row_number_as]
            command += [*split(dataset), "--json", str(out), *(["--ceiling"] if run == 0 else [])]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            results.append(json.loads(out.read_text()))
    ceiling = results[0]["ceiling_auc"]
    results.sort(key=lambda r: r["auc"])
    return {**results[len(results) // 2], "ceiling_auc": ceiling, "aucs": [r["auc"] for r in results]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--runs", type=int, default=1, help="runs a data set; the median is shown (default 1)"
    )
    parser.add_argument("--only", nargs="*", default=[], help="names of data sets")
    options = parser.parse_args()
    cases = chosen(options.only)
    if not cases:
        print("SKIPPED: none of the data sets is beside this project; nothing was measured.", file=sys.stderr)
        return 0
    table = Table(
        "data set",
        "branches",
        "epsilon",
        "AUC",
        "95% interval",
        "all runs",
        "floor",
        "central XGBoost",
        "seconds",
    )
    below = []
    console = Console(width=140)
    for case in cases:
        with console.status(case.name):
            r = measure(case, options.runs)
        aucs = " ".join(f"{a:.3f}" for a in r["aucs"])  # type: ignore[attr-defined]
        table.add_row(
            case.name,
            str(r["branches"]),
            f"{r['epsilon']:.2f}",
            f"{r['auc']:.3f}",
            f"{r['auc_low']:.3f} to {r['auc_high']:.3f}",
            aucs,
            f"{case.floor:.2f}" if case.floor else "",
            f"{r['ceiling_auc']:.3f}",
            f"{r['seconds']:.0f}",
        )
        if case.floor and float(r["auc"]) < case.floor:  # type: ignore[arg-type]
            below.append(case.name)
    console.print(table)
    for name in below:
        console.print(f"BELOW ITS FLOOR: {name}")
    return 1 if below else 0


if __name__ == "__main__":
    sys.exit(main())
