"""How accurate is the churn net at epsilon 2, on six real data sets? Runs `sfumato simulate` on each.

The data lie beside the project (../shared/data) and are never copied; without them nothing is measured.
Floors are those of the first issue: local DP-SGD, contract-bound features, four branches or the natural ones.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT.parent / "shared" / "data"


@dataclass(frozen=True)
class Case:
    name: str
    file: str
    split: tuple[str, ...]
    floor: float | None = None


FOUR = ("--branches", "4")
CASES = (
    Case("bank_churners", "bank_churners/bank_churners.parquet", FOUR, 0.87),
    Case("telco_ibm", "telco_ibm/telco.parquet", FOUR, 0.82),
    Case("credit_default_tw", "credit_default_tw/credit_default_tw.parquet", FOUR, 0.72),
    Case("churn_modelling", "churn_modelling/churn_modelling.parquet", ("--branch-column", "Geography")),
    Case(
        "bank_branch_churn",
        "bank_branch_churn/bank_branch_churn.parquet",
        ("--branch-column", "city", "--min-branch-size", "500"),
    ),
    Case(
        "cell2cell", "cell2cell/cell2cell.parquet", ("--branch-column", "Region", "--min-branch-size", "500")
    ),
)


def measure(case: Case, runs: int) -> dict[str, object]:
    """The median run by AUC of `runs` runs, with all their AUCs; the ceiling is measured once."""
    folder = ROOT / "examples" / case.name
    results = []
    for run in range(runs):
        with tempfile.TemporaryDirectory() as directory:
            out = Path(directory) / "out.json"
            command = [sys.executable, "-m", "sfumato.common.cli", "simulate", str(folder / "job.toml")]
            command += ["--contract", str(folder / "contract.toml"), "--data", str(DATA / case.file)]
            command += [*case.split, "--json", str(out), *(["--ceiling"] if run == 0 else [])]
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
    parser.add_argument("--only", nargs="*", help="names of data sets")
    options = parser.parse_args()
    if not DATA.is_dir():
        print("SKIPPED: no ../shared/data beside this project; nothing was measured.", file=sys.stderr)
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
    for case in CASES:
        if options.only and case.name not in options.only:
            continue
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
