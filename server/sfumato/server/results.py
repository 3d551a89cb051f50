"""Running a job into its directory at the coordinator (see `run_files`)."""

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors.numpy import save

from sfumato.common.enrolment import ed25519_public_key
from sfumato.common.errors import SfumatoError
from sfumato.common.job import SignedJob
from sfumato.privacy import audit
from sfumato.server.exchange import Exchange
from sfumato.server.home import Branch
from sfumato.server.job_run import ClaimContradicted, JobOutcome, JobRun
from sfumato.server.rounds import Enrolled, Report
from sfumato.server.run_files import (
    left_open,
    note_closed,
    store_state,
    write_whole,
)


def store_outcome(directory: Path, outcome: JobOutcome) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    if outcome.weights is not None:
        write_whole(directory / "model.safetensors", save({"weights": outcome.weights}))
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
) -> JobOutcome:
    """Run a job and leave its result, or the reason it has none, in `out_dir`. Raises JobFailed.

    Jobs that earlier runs had to leave open (their coordinator was killed, a branch was away) are closed on
    the way, so that branches need not hold their reservations until they expire.
    """
    enrolled = {
        n: Enrolled(b.name, ed25519_public_key(b.enrolment.ledger_public_key)) for n, b in branches.items()
    }
    earlier = left_open(out_dir.parent)
    job = {"job": signed.job.name, "job_id": signed.job_id, "expires_at": signed.expires_at.isoformat()}
    names = sorted(b.name for b in branches.values())
    store_state(out_dir, {"state": "running", **job, "open_at": names})
    run = JobRun(exchange, signed, signed.contract, report, enrolled=enrolled, left_open=tuple(earlier))
    rounds = run.rounds
    try:
        outcome = run.run()
    except BaseException as e:
        if isinstance(e, ClaimContradicted):
            write_whole(out_dir / "audit.json", audit.to_json(e.evidence).encode())
        reason = e.message if isinstance(e, SfumatoError) else f"internal: {type(e).__name__}"
        state = {**job, "reason": reason, "refused": rounds.refused, "open_at": rounds.open_at}
        store_state(out_dir, {"state": "failed", **state, "per_branch": run.per_branch()})
        report({"event": "failed", **state})
        raise
    finally:
        for job_id, closed in rounds.given_back.items():
            note_closed(earlier[job_id], closed)
    outcome.summary.update(expires_at=job["expires_at"], open_at=rounds.open_at)
    store_outcome(out_dir, outcome)
    report({"event": "finished", **outcome.summary})
    return outcome
