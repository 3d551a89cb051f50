"""A run's directory at the coordinator: its files, each written whole or not at all.

result.json          state, summary, metrics with intervals, each branch's spending and kept ledger heads
model.safetensors    the model: its tensors, and a header that says all that scoring needs (learners.models)
schema.json          the bins of every column with their noisy counts, of a learner that has them
histogram.json       the noisy score-by-label counts that every metric is read from
answer.json          what an analysis found: every number with its interval
checkpoint           of the coordinator's ledger after the run, with the branches' cosignatures
audit.json           what came out of the phantom slots (see privacy.audit)
job.json             the signed job, and with it the contract
closed.json          branches that closed the job after its end; the ledger has result.json's hash, so that stays
journal/             until the job has ended for good: what came out of its rounds, to be resumed from (see `journal`)
"""

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sfumato.common.errors import BadInput
from sfumato.server.home import CoordinatorHome

INTERRUPTED = "the coordinator ended in the middle of the run"
JOURNAL, SIGNED = "journal", "job.json"


def write_whole(path: Path, content: bytes) -> None:
    """Write to a temporary file beside it, sync, rename."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def store_state(directory: Path, state: dict[str, Any]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    write_whole(directory / "result.json", json.dumps(state, indent=1, allow_nan=False).encode())


def read_result(directory: Path) -> dict[str, Any]:
    """Raises BadInput if the job left nothing there."""
    try:
        result = dict(json.loads((directory / "result.json").read_text()))
    except FileNotFoundError:
        raise BadInput(f"{directory}: no result of a job here") from None
    if closed := _closed(directory):
        result["open_at"] = sorted(set(result["open_at"]) - closed)
    return result


def _closed(directory: Path) -> set[str]:
    path = directory / "closed.json"
    return set(json.loads(path.read_text())) if path.is_file() else set()


def read_histogram(directory: Path) -> npt.NDArray[np.float64] | None:
    """The noisy counts, or None for a job that did not get so far."""
    path = directory / "histogram.json"
    return np.asarray(json.loads(path.read_text()), dtype=np.float64) if path.is_file() else None


def read_answer(directory: Path) -> dict[str, Any] | None:
    """What an analysis found, or None for a job that is none or did not get so far."""
    path = directory / "answer.json"
    return dict(json.loads(path.read_text())) if path.is_file() else None


def run_directory(home: CoordinatorHome, run_id: int) -> Path:
    """Where this run's files lie."""
    return home.directory("runs") / str(run_id)


def end_interrupted(runs: Path) -> list[int]:
    """Write `failed` with its reason over every result that still says `running`. Returns the runs' numbers.

    Only while no executor lives: whoever wrote `running` is dead, and can no longer say so.
    """
    ended = []
    for directory, result in results(runs):
        if result.get("state") == "running":
            store_state(directory, {"refused": [], **result, "state": "failed", "reason": INTERRUPTED})
            ended.append(int(directory.name))
    return ended


def may_be_resumed(directory: Path, result: dict[str, Any]) -> bool:
    """Whether this run was cut short, or waits for the next period of a standing question, and left a journal. Its
    branches then keep what they reserved for it."""
    waits = result.get("state") == "failed" or (result.get("state") == "finished" and "waits_for" in result)
    return waits and (directory / JOURNAL / SIGNED).is_file()


def waits_for(directory: Path) -> str | None:
    """The day for which a standing question waits, if this is the run to be resumed then."""
    if not (directory / "result.json").is_file():  # it has only begun
        return None
    result = read_result(directory)
    return str(result["waits_for"]) if "waits_for" in result and may_be_resumed(directory, result) else None


def left_open(runs: Path) -> dict[str, list[Path]]:
    """Jobs that branches may still hold a reservation for, by id, with their runs: not closed everywhere, not yet
    expired, and not waiting to be resumed."""
    moment, found = datetime.now(UTC), results(runs)
    waiting = {result["job_id"] for directory, result in found if may_be_resumed(directory, result)}
    open_: dict[str, list[Path]] = {}
    for directory, result in found:
        if result.get("open_at") and datetime.fromisoformat(result["expires_at"]) > moment:
            open_.setdefault(str(result["job_id"]), []).append(directory)
    return {job_id: directories for job_id, directories in open_.items() if job_id not in waiting}


def note_closed(directory: Path, branches: set[str]) -> None:
    """These branches have closed the job of an earlier run."""
    write_whole(directory / "closed.json", json.dumps(sorted(_closed(directory) | branches)).encode())


def results(runs: Path) -> list[tuple[Path, dict[str, Any]]]:
    """Every run's directory with its result, by name."""
    directories = sorted(d for d in runs.iterdir() if (d / "result.json").is_file())
    return [(d, read_result(d)) for d in directories if d.name.isdigit()]
