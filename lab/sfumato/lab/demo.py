"""`sfumato demo`: the whole way through the house, once, on loopback, with everything real.

A coordinator with its own CA, four branches of two processes each, the sample bank's data, one signed job
through Flower's control API, a result, and the ledgers verified against the heads that the coordinator kept.
Whatever happens, every process it started is ended.
"""

import json
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from sfumato.common.errors import LedgerBroken
from sfumato.common.job import load_job
from sfumato.lab.federation import Federation
from sfumato.lab.samplebank import generate
from sfumato.server.report import write_report
from sfumato.server.run_files import read_answer, read_histogram, run_directory, write_whole
from sfumato.server.watching import watch_run

NEVER_SENT = (
    "names, ids, phones, e-mail, IBANs, addresses, transactions, free text, exact counts, anyone's score"
)
BUDGET_EPSILON = 8.0


def run(out: Path, *, customers_per_branch: int, keep: bool, console: Console) -> dict[str, Any]:
    """Run the demo, print its table, write report.html and summary.json. Returns the summary."""
    started = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    federation = out / "federation"
    shutil.rmtree(federation, ignore_errors=True)
    shutil.rmtree(out / "bank", ignore_errors=True)
    for old in (out / "summary.json", out / "report.html", out / "audit.json"):
        old.unlink(missing_ok=True)
    with ExitStack() as stack:
        if not keep:
            stack.callback(shutil.rmtree, federation, ignore_errors=True)
        with _step(console, "a made-up bank: customers, two years of transactions, complaints, surveys"):
            bank = generate(out / "bank", customers_per_branch=customers_per_branch)
        with _step(console, "a coordinator: own CA, TLS, node authentication, SuperLink"):
            whole = stack.enter_context(Federation(federation, bank.contract, budget_epsilon=BUDGET_EPSILON))
        for name, folder in bank.branches.items():
            with _step(
                console, f"{name}: keys, sealed store, ledger with epsilon {BUDGET_EPSILON:g}; enrolled"
            ):
                whole.add_branch(name, folder)
        with _step(console, f"{len(whole.branches)} vaults and {len(whole.branches)} couriers up"):
            whole.await_branches()
        run_id, result = _run(whole, bank.secure_job, console)
        histogram = read_histogram(run_directory(whole.home, run_id))
        portrait_id, portrait = _run(whole, bank.profile, console)
        answer = read_answer(run_directory(whole.home, portrait_id))
        shutil.copyfile(run_directory(whole.home, run_id) / "audit.json", out / "audit.json")
        verified = _verified(whole, portrait)
    summary = {
        **result,
        "seconds": time.monotonic() - started,
        "job_seconds": result["seconds"],
        "portrait": {**portrait, "answer": answer},
        "ledger_verified": verified,
    }
    write_whole(out / "summary.json", json.dumps(summary, indent=1).encode())
    write_report(
        out / "report.html",
        result,
        histogram,
        portrait={**answer, "epsilon": portrait["epsilon"]} if answer else None,
        contract=whole.contract,
        ledger_verified=verified,
    )
    _print(summary, out, console)
    if not verified:
        raise LedgerBroken("a ledger does not verify; see above")
    return summary


def _run(whole: Federation, job_file: Path, console: Console) -> tuple[int, dict[str, Any]]:
    """Submit a job through Flower's control API, follow it, and read its result."""
    job = load_job(job_file)
    run_id = whole.submit(job)
    console.print(
        f"  job {job.name} submitted: epsilon {job.privacy.target_epsilon:g} a customer, for all of it"
    )
    watch_run(whole.control, run_id, console)
    return run_id, whole.result(run_id)


@contextmanager
def _step(console: Console, what: str) -> Iterator[None]:
    started = time.monotonic()
    with console.status(what):
        yield
    console.print(f"  {what} ({time.monotonic() - started:.1f} s)", markup=False)


def _verified(whole: Federation, result: dict[str, Any]) -> bool:
    try:
        whole.ledgers_verify(result)
    except LedgerBroken as e:
        print(e, file=sys.stderr)
        return False
    return True


def _print(summary: dict[str, Any], out: Path, console: Console) -> None:
    metrics = summary["metrics"]
    console.print()
    console.print(
        f"Churn model over {summary['branches']} branches, about {summary['customers']:,} customers"
    )
    result = Table("measure", "value", "95% interval", box=None, title="How good it is", title_justify="left")
    for name, label in METRIC_NAMES.items():
        m = metrics[name]
        result.add_row(label, f"{m['value']:.3f}", f"{m['low']:.3f} to {m['high']:.3f}")
    console.print(result)
    portrait = summary["portrait"]
    console.print(_spent([*summary["per_branch"], *portrait["per_branch"]]))
    console.print(
        f"Guarantee for every customer, at delta {summary['delta']:g}: epsilon {summary['epsilon']:.2f} for the "
        f"model, {portrait['epsilon']:.2f} for the portrait."
    )
    console.print(f"Audit of the running code: model {summary['audit']}, portrait {portrait['audit']}.")
    console.print(f"Never sent: {NEVER_SENT}.")
    console.print(f"Ledgers verified: {'yes' if summary['ledger_verified'] else 'NO'}.")
    console.print(
        f"{out / 'report.html'} and {out / 'summary.json'} written; {summary['seconds']:.0f} s in all."
    )


def _spent(per_branch: list[dict[str, Any]]) -> Table:
    """One line a branch, of its records of one job after the other."""
    table = Table(
        "branch",
        "epsilon spent",
        "epsilon left",
        "sums",
        "bytes sent",
        box=None,
        title="What both jobs cost",
        title_justify="left",
    )
    for name in sorted({b["name"] for b in per_branch}):
        records = [b for b in per_branch if b["name"] == name]
        left = records[-1]["epsilon_remaining"]
        table.add_row(
            name,
            f"{records[-1]['epsilon_spent']:.3f}",
            "?" if left is None else f"{left:.3f}",
            str(sum(b["rounds_answered"] for b in records)),
            f"{sum(b['bytes_sent'] for b in records):,}",
        )
    return table


METRIC_NAMES = {
    "auc": "AUC (1 is perfect, 0.5 is chance)",
    "lift_at_10": "lift in the top 10%",
    "precision": "precision",
    "recall": "recall",
    "f1": "F1",
}
