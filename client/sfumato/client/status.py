"""What an operator sees of a branch, read from its files: no key, no running process needed."""

import json
import os
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from sfumato.client.home import BranchHome
from sfumato.client.launch import state_file
from sfumato.common.errors import REFUSAL_TEXT, RefusalCode
from sfumato.common.notes import Checkpoint
from sfumato.privacy.door import Door, Spending
from sfumato.privacy.ledger import Entry, Ledger


@dataclass(frozen=True)
class JobLine:
    job_id: str
    name: str
    state: str
    releases: int


@dataclass(frozen=True)
class BranchStatus:
    name: str
    vault: str
    courier: str
    contract: str
    reaches: date | None
    loaded: list[str]
    pinned: int  # other branches whose keys this one knows
    spending: Spending
    jobs: list[JobLine]


def read_status(path: Path) -> BranchStatus:
    """Raises BadInput when this is no branch's directory, LedgerBroken when its record does not verify."""
    home = BranchHome(path)
    settings = home.settings()
    ledger = Ledger.read(home.ledger)
    ledger.verify()
    running = _running(home)
    closed = {e.job_id for e in ledger.entries("close")}
    charges = ledger.entries("charge")
    jobs = [
        JobLine(
            job_id=str(e.job_id),
            name=str(e.body["job"]["name"]),
            state="closed" if e.job_id in closed else "open",
            releases=sum(c.job_id == e.job_id for c in charges),
        )
        for e in ledger.entries("reserve")
    ]
    return BranchStatus(
        name=str(settings["name"]),
        vault=running["vault"],
        courier=running["courier"],
        contract=f"{settings['contract']} ({ledger.genesis['contract'][:12]})",
        reaches=home.reaches(home.contract()),
        loaded=sorted({str(e.body["table"]) for e in ledger.entries("ingest")}),
        pinned=len(home.members().keys() - {home.name}),
        spending=Door(ledger).spending(),
        jobs=jobs,
    )


def describe_entry(entry: Entry) -> str:
    """One line for a person."""
    body = entry.body
    match entry.kind:
        case "genesis":
            return f"budget epsilon {body['budget_epsilon']:g} at delta {body['budget_delta']:g}"
        case "reserve":
            return f"{body['job']['name']}: epsilon {body['job']['privacy']['target_epsilon']:g} set aside"
        case "charge":
            return f"{body['what']}, round {body['round']}"
        case "refuse":
            asked = f"job hash {body['job_hash']}" if "job_hash" in body else body["question"]
            text = f"{body['code']}: {REFUSAL_TEXT[RefusalCode(body['code'])]}"
            return f"{text} ({asked})" if asked else text
        case "close":
            return f"{body['releases']} releases, epsilon {body['epsilon']:.4f} (PLD)"
        case "cosign" | "equivocation":
            shown = Checkpoint.parse(body["checkpoint" if entry.kind == "cosign" else "shown"])
            return f"{shown.origin} at {shown.size} entries" + (f": {body['why']}" if "why" in body else "")
        case "ingest":
            return f"{body['table']} ({body['mode']})"
        case "pin":
            return ", ".join(
                f"{n} {what}" for what in ("added", "changed", "removed") if (n := len(body[what]))
            )
        case "score":
            return f"{body['name']} ({body['kind']}, {body['model'][:12]}) by {body['operator']}"
        case "reveal":
            return f"{body['table']}.{body['column']} of {body['customers']} customers: {body['reason']}"
    return ""


def _running(home: BranchHome) -> dict[str, str]:
    try:
        pids = json.loads(state_file(home).read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return {"vault": "not running", "courier": "not running"}
    return {name: _alive(pids.get(name)) for name in ("vault", "courier")}


def _alive(pid: int | None) -> str:
    if pid is None:
        return "down, being started again"
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return "down"
    except PermissionError:
        pass
    return f"running (process {pid})"
