"""Running a job into its directory at the coordinator (see `run_files`), and into its ledger."""

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sfumato.common.enrolment import ed25519_public_key
from sfumato.common.errors import SfumatoError
from sfumato.common.job import SignedJob
from sfumato.common.notes import Checkpoint, SignedNote
from sfumato.privacy import audit
from sfumato.privacy.ledger import Ledger
from sfumato.server.conversation import Enrolled, Report
from sfumato.server.exchange import Exchange
from sfumato.server.home import Branch
from sfumato.server.interrupted import journal_of, waiting_run
from sfumato.server.job_run import ClaimContradicted, JobOutcome, JobRun
from sfumato.server.journal import discard
from sfumato.server.ledger import CosignedCheckpoint, record_branch, record_end, record_start
from sfumato.server.rounds import Rounds
from sfumato.server.run_files import (
    INTERRUPTED,
    JOURNAL,
    left_open,
    note_closed,
    results,
    store_state,
    write_whole,
)


def store_outcome(directory: Path, outcome: JobOutcome) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    if outcome.model is not None:
        write_whole(directory / "model.safetensors", outcome.model.to_bytes())
        if outcome.model.header.schema_ is not None:
            schema = outcome.model.header.schema_.model_dump_json(indent=1)
            write_whole(directory / "schema.json", schema.encode())
    if outcome.histogram is not None:
        write_whole(directory / "histogram.json", json.dumps(outcome.histogram.tolist()).encode())
    if outcome.answer is not None:
        write_whole(directory / "answer.json", json.dumps(outcome.answer, indent=1, allow_nan=False).encode())
    write_whole(directory / "audit.json", audit.to_json(outcome.evidence).encode())
    store_state(directory, {"state": "finished", **outcome.summary})


def run_job(
    exchange: Exchange,
    signed: SignedJob,
    *,
    branches: Mapping[int, Branch],
    out_dir: Path,
    report: Report,
    ledger: Ledger,
    cosigned: CosignedCheckpoint,
) -> JobOutcome:
    """Run a job and leave its result, or the reason it has none, in `out_dir`. Raises JobFailed.

    Where an earlier run of this very job was cut short or waits, this one goes on from its journal. Should it be cut
    short too, or wait for a later period, it leaves the journal where it stands, and the job open at the branches.

    Jobs that earlier runs had to leave open (their coordinator was killed, a branch was away) are closed on
    the way, so that branches need not hold their reservations until they expire. At the end the branches
    co-sign the checkpoint of our ledger that has this run in it.
    """
    enrolled = {
        n: Enrolled(b.name, ed25519_public_key(b.enrolment.ledger_public_key)) for n, b in branches.items()
    }
    earlier, resumes = left_open(out_dir.parent), waiting_run(out_dir.parent, signed)
    job: dict[str, Any] = {
        "job": signed.job.name,
        "job_id": signed.job_id,
        "expires_at": signed.expires_at.isoformat(),
    }
    record_start(ledger, signed, out_dir.name, resumes=resumes)
    try:
        journal = journal_of(out_dir, signed, resumes)
        rounds = Rounds(
            exchange, signed, report, enrolled=enrolled, left_open=tuple(earlier), journal=journal
        )
    except SfumatoError as e:  # nobody was asked: the question does not fit the contract, say
        discard(out_dir / JOURNAL)
        failed = {**job, "reason": e.message, "refused": [], "open_at": [], "per_branch": []}
        store_state(out_dir, {"state": "failed", **failed})
        report({"event": "failed", **failed})
        raise
    if resumes is not None:
        job["resumes"] = resumes
    names = sorted(b.name for b in branches.values())
    store_state(out_dir, {"state": "running", **job, "open_at": names})
    journal.move(out_dir / JOURNAL)
    run = JobRun(rounds)
    try:
        outcome = run.run()
    except BaseException as e:
        _end_early(run, e, job, out_dir, report, ledger, cosigned)
        raise
    finally:
        for job_id, closed in rounds.given_back.items():
            for directory in earlier[job_id]:
                note_closed(directory, closed)
    outcome.summary.update(job, open_at=rounds.open_at)
    write_whole(out_dir / "job.json", signed.model_dump_json(indent=1).encode())
    store_outcome(out_dir, outcome)
    waits = "waits_for" in outcome.summary
    if not waits:
        discard(out_dir / JOURNAL)
        _note_closed(rounds, out_dir)
    verdict, state = outcome.summary["audit"], "waits" if waits else "finished"
    outcome.summary["cosigned_by"] = _witnessed(rounds, ledger, cosigned, out_dir, state, verdict)
    report({"event": "finished", **outcome.summary})
    return outcome


def _end_early(
    run: JobRun,
    error: BaseException,
    job: dict[str, Any],
    out_dir: Path,
    report: Report,
    ledger: Ledger,
    cosigned: CosignedCheckpoint,
) -> None:
    """Leave the reason; of a run that was cut short also its journal, to go on from."""
    rounds = run.rounds
    cut_short, verdict = rounds.can_be_resumed(error), None
    if not cut_short:
        discard(out_dir / JOURNAL)
        _note_closed(rounds, out_dir)
    if isinstance(error, ClaimContradicted):
        verdict = "contradicted"
        write_whole(out_dir / "audit.json", audit.to_json(error.evidence).encode())
    reason = error.message if isinstance(error, SfumatoError) else f"internal: {type(error).__name__}"
    if not isinstance(error, Exception):  # a signal
        reason = INTERRUPTED
    state = {**job, "reason": reason, "refused": rounds.refused, "open_at": rounds.open_at}
    store_state(out_dir, {"state": "failed", **state, "per_branch": run.per_branch()})
    with contextlib.suppress(SfumatoError):  # what it was that ended the job matters more
        if cut_short:
            _write_down(rounds, ledger, out_dir, "interrupted", None)
        else:
            _witnessed(rounds, ledger, cosigned, out_dir, "failed", verdict)
    report({"event": "failed", "resumable": cut_short, **state})


def _note_closed(rounds: Rounds, out_dir: Path) -> None:
    """With this run, the runs that it resumed are closed too."""
    closed = {b.name for b in rounds.branches.values()} - set(rounds.open_at)
    for directory, result in results(out_dir.parent):
        if directory != out_dir and result.get("job_id") == rounds.signed.job_id:
            note_closed(directory, closed)


def _witnessed(
    rounds: Rounds,
    ledger: Ledger,
    cosigned: CosignedCheckpoint,
    directory: Path,
    state: str,
    verdict: str | None,
) -> int:
    """Write the run's end down and have the branches co-sign it. Returns how many did."""
    _write_down(rounds, ledger, directory, state, verdict)
    note = ledger.checkpoint()
    size = Checkpoint.parse(note).size

    def proof_from(old: int) -> list[str]:
        return ledger.consistency(old, size) if 0 < old <= size else []  # of more than we have there is none

    lines = rounds.cosign(note, proof_from, _cosigned_last(cosigned))
    write_whole(directory / "checkpoint", cosigned.add(note, lines).encode())
    return len(lines)


def _write_down(rounds: Rounds, ledger: Ledger, directory: Path, state: str, verdict: str | None) -> None:
    files = [f for f in directory.iterdir() if f.is_file() and not f.name.startswith(".")]
    job_id = rounds.signed.job_id
    record_end(ledger, job_id, run=directory.name, state=state, files=files, audit=verdict)
    for branch in rounds.branches.values():
        record_branch(ledger, branch.name, branch.heads[-1], job_id=job_id)


def _cosigned_last(cosigned: CosignedCheckpoint) -> dict[str, int]:
    """Which size of our ledger each branch co-signed when we heard of it last."""
    if cosigned.note is None:
        return {}
    size, note = Checkpoint.parse(cosigned.note).size, SignedNote.parse(cosigned.note)
    return {s.name.rpartition("/")[2]: size for s in note.signatures if s.name.startswith("sfumato/branch/")}
