"""Where finished jobs lie at the coordinator: one directory a job, each file written whole or not at all.

result.json          summary, metrics with intervals, each branch's spending and kept ledger heads
model.safetensors    the weights
histogram.json       the noisy score-by-label counts that every metric is read from
"""

import json
import os
from pathlib import Path
from typing import Any

from safetensors.numpy import save

from sfumato.common.errors import BadInput
from sfumato.server.rounds import JobOutcome


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
