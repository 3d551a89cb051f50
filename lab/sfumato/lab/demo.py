"""`sfumato demo`: the whole way through the house, once, on loopback, with everything real.

A coordinator with its own CA, four branches of two processes each, the sample bank's data, one signed job
through Flower's control API, a result, and the ledgers verified against the heads that the coordinator kept.
Whatever happens, every process it started is ended.
"""

import json
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from sfumato.client.home import BranchHome
from sfumato.client.ingest.load import ingest, open_source
from sfumato.client.policy import Policy
from sfumato.client.vault.store import Store
from sfumato.common.contract import load_contract
from sfumato.common.errors import LedgerBroken, Unavailable
from sfumato.common.job import load_job, sign_job
from sfumato.common.messages import LedgerHead
from sfumato.common.private_files import write_new
from sfumato.common.processes import free_ports, python, quiet_environment, start_child, stop_group
from sfumato.lab.samplebank import SampleBank, generate
from sfumato.privacy.ledger import Ledger
from sfumato.server.control import ControlClient
from sfumato.server.coordinator import Coordinator
from sfumato.server.home import CoordinatorHome
from sfumato.server.report import write_report
from sfumato.server.results import read_histogram, read_result, run_directory, write_whole
from sfumato.server.watching import watch_run

NEVER_SENT = (
    "names, ids, phones, e-mail, IBANs, addresses, transactions, free text, exact counts, anyone's score"
)
BUDGET_EPSILON = 8.0
START_SECONDS = 90.0


def run(out: Path, *, customers_per_branch: int, keep: bool, console: Console) -> dict[str, Any]:
    """Run the demo, print its table, write report.html and summary.json. Returns the summary."""
    started = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    federation = out / "federation"
    shutil.rmtree(federation, ignore_errors=True)
    shutil.rmtree(out / "bank", ignore_errors=True)
    for old in (out / "summary.json", out / "report.html"):
        old.unlink(missing_ok=True)
    with ExitStack() as stack:
        if not keep:
            stack.callback(shutil.rmtree, federation, ignore_errors=True)
        with _step(console, "a made-up bank: customers, two years of transactions, complaints, surveys"):
            bank = generate(out / "bank", customers_per_branch=customers_per_branch)
        with _step(console, "a coordinator: own CA, TLS certificate, signing key, SuperLink"):
            port, session_port = free_ports(2)
            home = CoordinatorHome.init(
                federation / "coordinator", host="127.0.0.1", port=port, session_port=session_port
            )
        branches = _make_branches(home, bank, federation, console)
        with _step(console, "SuperLink up; branches admitted by their keys"):
            stack.enter_context(Coordinator(home))
        for branch in branches:
            stack.enter_context(_running(branch))
        control = ControlClient.of(home)
        stack.callback(control.close)
        with _step(console, f"{len(branches)} vaults and {len(branches)} couriers up"):
            _await_nodes(control, len(branches))
        contract, job = load_contract(bank.contract), load_job(bank.job)
        signed = sign_job(job, contract, home.job_key(), valid_for=timedelta(hours=1))
        run_id = control.submit(signed)
        console.print(
            f"  job {job.name} submitted: epsilon {job.privacy.target_epsilon:g} a customer, for all of it"
        )
        watch_run(control, run_id, console)
        result = read_result(run_directory(home, run_id))
        verified = _verify_ledgers(branches, result)
        histogram = read_histogram(run_directory(home, run_id))
    summary = {**result, "seconds": time.monotonic() - started, "job_seconds": result["seconds"]}
    summary["ledger_verified"] = verified
    write_whole(out / "summary.json", json.dumps(summary, indent=1).encode())
    write_report(out / "report.html", summary, histogram, contract=contract, ledger_verified=verified)
    _print(summary, out, console)
    if not verified:
        raise LedgerBroken("a ledger does not verify; see above")
    return summary


@contextmanager
def _step(console: Console, what: str) -> Iterator[None]:
    started = time.monotonic()
    with console.status(what):
        yield
    console.print(f"  {what} ({time.monotonic() - started:.1f} s)", markup=False)


def _make_branches(
    home: CoordinatorHome, bank: SampleBank, federation: Path, console: Console
) -> list[BranchHome]:
    """Each branch as `branch init` and `branch ingest` make it, enrolled with the coordinator."""
    made = []
    for name, folder in bank.branches.items():
        with _step(console, f"{name}: keys, ledger with epsilon {BUDGET_EPSILON:g}, sealed store"):
            passphrase = secrets.token_urlsafe(24)
            branch = BranchHome.init(
                federation / name,
                name=name,
                invitation=home.path / "invitation.json",
                contract=bank.contract,
                passphrase=passphrase,
                budget_epsilon=BUDGET_EPSILON,
                budget_delta=1e-5,
                policy=Policy(),
            )
            write_new(branch.path / "passphrase", passphrase.encode())
            _ingest_all(branch, folder, passphrase)
            home.enrol(branch.path / "enrolment.json")
        made.append(branch)
    return made


def _ingest_all(branch: BranchHome, folder: Path, passphrase: str) -> None:
    keyring = branch.open_keyring(passphrase)
    ledger = branch.open_ledger(keyring)
    contract = branch.contract()
    store = Store.open(branch.store, contract, keyring)
    try:
        for table in contract.tables:
            file = next(p for p in sorted(folder.iterdir()) if p.stem == table.name)
            ingest(open_source(file), table.name, contract, store)
            ledger.append("ingest", {"table": table.name, "mode": "create"})
    finally:
        store.close()


@contextmanager
def _running(branch: BranchHome) -> Iterator["subprocess.Popen[bytes]"]:
    """`sfumato branch start`, as an operator would type it, until the block ends."""
    passphrase = str(branch.path / "passphrase")
    command = [
        "-m",
        "sfumato.common.cli",
        "branch",
        "start",
        str(branch.path),
        "--passphrase-file",
        passphrase,
    ]
    process = start_child(
        python(*command),
        environment=quiet_environment(os.environ, branch.courier / "flwr"),
        log=branch.path / "start.log",
    )
    try:
        yield process
    finally:
        stop_group(process, grace=15.0)


def _await_nodes(control: ControlClient, count: int) -> None:
    deadline = time.monotonic() + START_SECONDS
    while sum(n.status == "online" for n in control.nodes()) < count:
        if time.monotonic() > deadline:
            raise Unavailable(
                f"not all {count} branches came up within {START_SECONDS:.0f} s",
                hint="Run again with --keep and read the logs in the federation's directories.",
            )
        time.sleep(0.2)


def _verify_ledgers(branches: list[BranchHome], result: dict[str, Any]) -> bool:
    """Recompute every branch's chain, and hold it against the signed head that the coordinator kept."""
    kept = {b["name"]: LedgerHead.model_validate(b["ledger_head"]) for b in result["per_branch"]}
    for branch in branches:
        try:
            Ledger.read(branch.ledger).verify(kept[branch.name])
        except (LedgerBroken, KeyError) as e:
            print(f"{branch.name}: {e}", file=sys.stderr)
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
    spent = Table(
        "branch",
        "epsilon spent",
        "epsilon left",
        "rounds",
        "bytes sent",
        box=None,
        title="What it cost",
        title_justify="left",
    )
    for b in summary["per_branch"]:
        left = b["epsilon_remaining"]
        spent.add_row(
            b["name"],
            f"{b['epsilon_spent']:.3f}",
            "?" if left is None else f"{left:.3f}",
            str(b["rounds_answered"]),
            f"{b['bytes_sent']:,}",
        )
    console.print(spent)
    console.print(
        f"Guarantee: epsilon {summary['epsilon']:.2f} at delta {summary['delta']:g} for every customer."
    )
    console.print(f"Never sent: {NEVER_SENT}.")
    console.print(f"Ledgers verified: {'yes' if summary['ledger_verified'] else 'NO'}.")
    console.print(
        f"{out / 'report.html'} and {out / 'summary.json'} written; {summary['seconds']:.0f} s in all."
    )


METRIC_NAMES = {
    "auc": "AUC (1 is perfect, 0.5 is chance)",
    "lift_at_10": "lift in the top 10%",
    "precision": "precision",
    "recall": "recall",
    "f1": "F1",
}
