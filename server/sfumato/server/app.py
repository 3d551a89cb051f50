"""The coordinator's Flower ServerApp: one run is one signed job.

It checks the job, chooses how the rounds travel, and hands over to `sfumato.server.rounds`. The job arrives as
run config; it is trusted by nobody for that: every vault verifies the signature itself.
"""

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from pydantic import ValidationError

from sfumato.common.enrolment import ed25519_public_key
from sfumato.common.errors import BadInput
from sfumato.common.job import SignedJob, key_id
from sfumato.server.exchange import Exchange, MessageExchange
from sfumato.server.home import Branch, CoordinatorHome, home_from_environment
from sfumato.server.session import SessionExchange

log = logging.getLogger("sfumato.run")

Report = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True)
class Run:
    """What a runner gets: a way to ask, the verified job, who is enrolled (by node id), where to write."""

    exchange: Exchange
    signed_job: SignedJob
    branches: Mapping[int, Branch]
    out_dir: Path
    report: Report
    home: CoordinatorHome


Runner = Callable[[Run], object]

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    run(grid, context, home_from_environment(), rounds_runner)


def run(grid: Grid, context: Context, home: CoordinatorHome, runner: Runner) -> None:
    """Run one job. Raises BadInput or Refusal if it is none, and whatever the runner raises."""
    signed = read_job(context, home)
    branches = {b.node_id: b for b in home.branches() if b.node_id is not None}
    out_dir = home.directory("runs") / str(context.run_id)
    out_dir.mkdir(mode=0o700, exist_ok=True)
    exchange = choose_exchange(grid, home, signed, expected=len(branches))
    try:
        runner(Run(exchange, signed, branches, out_dir, print_report, home))
    finally:
        exchange.close()


def read_job(context: Context, home: CoordinatorHome) -> SignedJob:
    """The run's job, if the risk team's key signed it. Raises BadInput, Refusal."""
    try:
        signed = SignedJob.model_validate_json(str(context.run_config.get("job", "")))
    except ValidationError:
        raise BadInput("the run carries no signed job", hint="Submit with: sfumato job submit") from None
    key = ed25519_public_key(home.invitation.job_public_key)
    signed.verify({key_id(key): key}, datetime.now(UTC))
    return signed


def choose_exchange(grid: Grid, home: CoordinatorHome, signed: SignedJob, *, expected: int) -> Exchange:
    """The way this job's rounds travel."""
    if signed.job.federation.travel == "messages":
        return MessageExchange(grid, expected=expected)
    host = f"[{home.host}]" if ":" in home.host else home.host
    return SessionExchange(
        grid,
        address=f"{host}:{home.session_port}",
        certificate=home.server_certificate,
        expected=expected,
    )


def print_report(event: Mapping[str, Any]) -> None:
    """One event, one JSON line: it reaches the risk team through the run's log."""
    print(json.dumps(event, separators=(",", ":"), sort_keys=True, default=str), flush=True)


def rounds_runner(run: Run) -> object:
    """The real runner."""
    from sfumato.server.results import run_job

    ledger = run.home.open_ledger()
    try:
        return run_job(
            run.exchange,
            run.signed_job,
            branches=run.branches,
            out_dir=run.out_dir,
            report=run.report,
            ledger=ledger,
            cosigned=run.home.cosigned,
        )
    finally:
        ledger.close()
