"""Running a job into its directory at the coordinator; each file is written whole or not at all.

result.json          summary, metrics with intervals, each branch's spending and kept ledger heads
model.safetensors    the weights
histogram.json       the noisy score-by-label counts that every metric is read from
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save

from sfumato.common.enrolment import ed25519_public_key
from sfumato.common.errors import BadInput, SfumatoError
from sfumato.common.job import SignedJob
from sfumato.server.exchange import Exchange
from sfumato.server.home import Branch, CoordinatorHome
from sfumato.server.rounds import Enrolled, JobOutcome, JobRun, Report


def write_whole(path: Path, content: bytes) -> None:
    """Write to a temporary file beside it, sync, rename."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def store_outcome(directory: Path, outcome: JobOutcome) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    write_whole(directory / "model.safetensors", save({"weights": outcome.weights}))
    write_whole(directory / "histogram.json", json.dumps(outcome.histogram.tolist()).encode())
    store_state(directory, {"state": "finished", **outcome.summary})


def store_state(directory: Path, state: dict[str, Any]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    write_whole(directory / "result.json", json.dumps(state, indent=1, allow_nan=False).encode())


def read_result(directory: Path) -> dict[str, Any]:
    """Raises BadInput if the job left nothing there."""
    try:
        return dict(json.loads((directory / "result.json").read_text()))
    except FileNotFoundError:
        raise BadInput(f"{directory}: no result of a job here") from None


def read_histogram(directory: Path) -> npt.NDArray[np.int64] | None:
    """The noisy counts, or None for a job that did not get so far."""
    path = directory / "histogram.json"
    return np.asarray(json.loads(path.read_text()), dtype=np.int64) if path.is_file() else None


def run_directory(home: CoordinatorHome, run_id: int) -> Path:
    """Where this run's files lie."""
    return home.directory("runs") / str(run_id)


def run_job(
    exchange: Exchange,
    signed: SignedJob,
    *,
    branches: Mapping[int, Branch],
    out_dir: Path,
    report: Report,
) -> JobOutcome:
    """Run a job and leave its result, or the reason it has none, in `out_dir`. Raises JobFailed."""
    enrolled = {
        n: Enrolled(b.name, ed25519_public_key(b.enrolment.ledger_public_key)) for n, b in branches.items()
    }
    store_state(out_dir, {"state": "running", "job": signed.job.name, "job_id": signed.job_id})
    run = JobRun(exchange, signed, signed.contract, report, enrolled=enrolled)
    try:
        outcome = run.run()
    except BaseException as e:
        reason = e.message if isinstance(e, SfumatoError) else f"internal: {type(e).__name__}"
        state = {"job": signed.job.name, "job_id": signed.job_id, "reason": reason, "refused": run.refused}
        store_state(out_dir, {"state": "failed", **state})
        report({"event": "failed", **state})
        raise
    store_outcome(out_dir, outcome)
    report({"event": "finished", **outcome.summary})
    return outcome
