"""Runs that were cut short, or wait for the next period: resumed by another run, given up, or left until their job
expires."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sfumato.common.errors import BadInput
from sfumato.common.job import SignedJob
from sfumato.privacy.ledger import Ledger
from sfumato.server import journal
from sfumato.server.journal import Journal
from sfumato.server.ledger import record_end
from sfumato.server.run_files import (
    INTERRUPTED,
    JOURNAL,
    end_interrupted,
    may_be_resumed,
    read_result,
    results,
)


def job_to_resume(runs: Path, run: int) -> SignedJob:
    """The signed job of a run that was cut short or waits. Raises BadInput with the reason if there is nothing to
    resume."""
    directory = runs / str(run)
    result = read_result(directory)
    if result["state"] == "running":
        raise BadInput(f"run {run} is still running")
    if result["state"] == "finished" and "waits_for" not in result:
        raise BadInput(f"run {run} has finished: there is nothing to resume")
    if not may_be_resumed(directory, result):
        raise BadInput(_why_not(runs, run, result), hint="Submit the job again.")
    signed = journal.read_job(directory / JOURNAL)
    if signed.expires_at <= datetime.now(UTC):
        raise BadInput(
            f"run {run} cannot be resumed: its job expired at {signed.expires_at:%Y-%m-%d %H:%M} UTC",
            hint="Submit the job again; what the branches had reserved for it is theirs again.",
        )
    return signed


def _why_not(runs: Path, run: int, result: dict[str, Any]) -> str:
    for directory, other in results(runs):
        if other.get("resumes") == run:
            return f"run {run} was resumed as run {directory.name}"
        if result.get("resumes") == int(directory.name) and may_be_resumed(directory, other):
            return f"run {run} had not begun to resume run {directory.name}: resume that one"
    if result["state"] == "finished":
        return f"run {run} waits for nothing any more: it was given up"
    if result["reason"] == INTERRUPTED:
        return f"run {run} has no journal: it was given up, or is older than journals"
    return f"run {run} cannot be resumed: it was not cut short, it failed ({result['reason']})"


def waiting_run(runs: Path, signed: SignedJob) -> int | None:
    """The run of this very job that waits to be resumed."""
    for directory, result in _of_job(runs, signed):
        if may_be_resumed(directory, result):
            return int(directory.name)
    return None


def journal_of(out_dir: Path, signed: SignedJob, resumes: int | None) -> Journal:
    """A new run's journal: an empty one, or the one that it goes on from, still in its place. Raises BadInput."""
    if resumes is not None:
        return Journal.resume(out_dir.parent / str(resumes) / JOURNAL, signed)
    for directory, _ in _of_job(out_dir.parent, signed):
        raise BadInput(f"this job ran before, as run {directory.name}", hint="Sign and submit it anew.")
    return Journal.begin(out_dir / JOURNAL, signed)


def _of_job(runs: Path, signed: SignedJob) -> list[tuple[Path, dict[str, Any]]]:
    return [(d, result) for d, result in results(runs) if result.get("job_id") == signed.job_id]


def give_up(runs: Path, run: int) -> bool:
    """A run that waits to be resumed never will be: the next run has its branches close the job. False if it does
    not wait."""
    directory = runs / str(run)
    waits = directory.is_dir() and may_be_resumed(directory, read_result(directory))
    if waits:
        journal.discard(directory / JOURNAL)
    return waits


def find_interrupted(runs: Path, ledger: Ledger) -> list[int]:
    """What a coordinator that starts finds of runs that were cut short: it says so in their results and its ledger,
    and forgets those whose job has expired. Returns the runs that were cut short and wait to be resumed.

    Only while no executor lives.
    """
    for run in end_interrupted(runs):
        directory = runs / str(run)
        files = [f for f in directory.iterdir() if f.is_file() and not f.name.startswith(".")]
        job_id = str(read_result(directory)["job_id"])
        record_end(ledger, job_id, run=str(run), state="interrupted", files=files)
    moment, waiting = datetime.now(UTC), []
    for directory, result in results(runs):
        if may_be_resumed(directory, result):
            if datetime.fromisoformat(result["expires_at"]) <= moment:
                journal.discard(directory / JOURNAL)
            elif result["state"] == "failed":
                waiting.append(int(directory.name))
    return waiting
