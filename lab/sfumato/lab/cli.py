"""`sfumato simulate`, `sfumato demo`, `sfumato sample-bank`: everything on one machine."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

console = Console(highlight=False, soft_wrap=True)


def simulate(
    job: Annotated[Path, typer.Argument(help="The job (TOML).")],
    contract: Annotated[Path, typer.Option(help="The data contract (TOML).")],
    data: Annotated[
        Path,
        typer.Option(
            help="A CSV or Parquet file with the customers of all branches; or a folder with a folder for each "
            "branch, and in it a file for each table of the contract."
        ),
    ],
    branch_column: Annotated[str | None, typer.Option(help="Split into branches by this column.")] = None,
    branches: Annotated[
        int, typer.Option(min=1, help="Without a column: this many branches, at random.")
    ] = 4,
    min_branch_size: Annotated[
        int, typer.Option(min=1, help="Values with fewer rows become one branch.")
    ] = 1,
    row_number_as: Annotated[
        str | None, typer.Option(help="Data without a customer id: make this column of row numbers.")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the result here.")] = None,
    model_file: Annotated[
        Path | None, typer.Option("--model", help="Write the model here (safetensors), if the job makes one.")
    ] = None,
    ceiling: Annotated[
        bool,
        typer.Option(
            help="Also train a central XGBoost without privacy, to compare (needs the bench extra)."
        ),
    ] = False,
) -> None:
    """Run a job over your own data without any server, by Flower's simulation engine."""
    from sfumato.lab.progress import shown_progress
    from sfumato.lab.simulate import simulate as run
    from sfumato.server.answers import print_answer
    from sfumato.server.run_files import write_whole

    with shown_progress(console) as shown:
        result = run(
            job,
            contract,
            data,
            branch_column=branch_column,
            branches=branches,
            min_branch_size=min_branch_size,
            row_number_as=row_number_as,
            report=shown.report,
            keep_pooled=ceiling,
        )
        summary = dict(result.outcome.summary)
        if ceiling:
            from sfumato.lab.ceiling import central_auc

            shown.say("central model without privacy")
            assert result.pooled is not None
            summary["ceiling_auc"] = central_auc(result.pooled)
    if result.outcome.answer is not None:
        summary["answer"] = result.outcome.answer
        print_answer(summary, result.outcome.answer, console)
    else:
        _print_model(summary)
    if model_file is not None and result.outcome.model is not None:
        write_whole(model_file, result.outcome.model.to_bytes())
    if json_file is not None:
        write_whole(json_file, json.dumps(summary, indent=1).encode())


def _print_model(summary: dict[str, Any]) -> None:
    console.print(
        f"{summary['job']}: {summary['branches']} branches, about {summary['customers']:,} customers"
    )
    console.print(
        f"AUC {summary['auc']:.3f} (95% interval {summary['auc_low']:.3f} to {summary['auc_high']:.3f}), "
        f"epsilon {summary['epsilon']:.2f} at delta {summary['delta']:g}, {summary['seconds']:.1f} s"
    )
    sent = max(b["bytes_sent"] for b in summary["per_branch"])
    console.print(f"{summary['sums']} sums over all branches, {sent / 1024:,.0f} KiB sent by a branch")
    for column, groups in summary["fairness"].items():
        console.print(_groups(column, groups))
    if "ceiling_auc" in summary:
        console.print(
            f"Central XGBoost without privacy on the same features: AUC {summary['ceiling_auc']:.3f}"
        )


def _groups(column: str, groups: dict[str, dict[str, dict[str, float]]]) -> Table:
    """Is the model as good for everybody?"""
    shown = Table(column, "customers", "AUC", "recall", "base rate", box=None)
    for group, metrics in groups.items():
        rates = [metrics[m] for m in ("auc", "recall", "base_rate")]
        count = metrics["customers"]
        shown.add_row(
            group,
            f"{count['value']:,.0f} ({count['low']:,.0f} to {count['high']:,.0f})",
            *map(_rate, rates),
        )
    return shown


def _rate(rate: dict[str, float]) -> str:
    if rate["low"] <= 0 and rate["high"] >= 1:
        return "the noise drowns it"
    return f"{rate['value']:.2f} ({rate['low']:.2f} to {rate['high']:.2f})"


def sample_bank(
    out: Annotated[Path, typer.Argument(help="A new directory.")],
    branches: Annotated[int, typer.Option(min=1, max=50)] = 4,
    customers_per_branch: Annotated[int, typer.Option(min=50)] = 3000,
    seed: Annotated[int, typer.Option()] = 7,
) -> None:
    """Write a made-up bank: customers, accounts, two years of transactions, complaints, surveys; nobody is real."""
    from sfumato.lab.samplebank import generate

    bank = generate(out, branches=branches, customers_per_branch=customers_per_branch, seed=seed)
    console.print(f"{bank.customers:,} customers in {len(bank.branches)} branches under {out}.")
    console.print(f"Contract: {bank.contract}; job: {bank.job}.")


def demo(
    out: Annotated[Path, typer.Option(help="Where report.html and summary.json go.")] = Path("out/demo"),
    customers_per_branch: Annotated[int, typer.Option(min=200)] = 3000,
    keep: Annotated[bool, typer.Option(help="Leave the federation's directories for a look.")] = False,
) -> None:
    """A whole federation on this machine: a SuperLink with TLS, four branches, a job, a verified ledger, a report."""
    from sfumato.lab.demo import run

    run(out, customers_per_branch=customers_per_branch, keep=keep, console=console)
