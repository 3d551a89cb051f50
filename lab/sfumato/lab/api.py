"""Simulations for notebooks: `from sfumato.lab.api import simulate`. The result is as of a real run."""

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import tomli_w
from rich.console import Console

from sfumato.common.errors import BadInput
from sfumato.lab import simulate as simulation
from sfumato.lab.progress import shown_progress
from sfumato.server.result import Result

Table = Any  # a pandas frame or a pyarrow table


def simulate(
    job: Path | str | Mapping[str, Any],
    contract: Path | str,
    data: "Path | str | Table",
    *,
    on_event: Callable[[dict[str, Any]], None] | None = None,
    show: bool = True,
    **settings: Any,
) -> Result:
    """Run a job over your own data, without any server.

    `job`: a file, or a mapping with the tables of a job file. `data`: a file, a folder of branches, or a frame with
    the customers of all branches. `settings`: those of `lab.simulate.simulate` (branches, branch_column, ...).
    Raises BadInput, or JobFailed with the reason.
    """
    with tempfile.TemporaryDirectory(prefix="sfumato-notebook-") as folder:
        job_file = _job_file(job, Path(folder))
        data_file = Path(data) if isinstance(data, Path | str) else _data_file(data, Path(folder))
        with shown_progress(Console(quiet=not show)) as shown:

            def report(event: dict[str, Any]) -> None:
                shown.report(event)
                if on_event is not None:
                    on_event(event)

            outcome = simulation.simulate(
                job_file, Path(contract), data_file, report=report, **settings
            ).outcome
    return Result.of("simulation", outcome.summary, outcome.answer)


def _job_file(job: Path | str | Mapping[str, Any], folder: Path) -> Path:
    if isinstance(job, Path | str):
        return Path(job)
    path = folder / "job.toml"
    try:
        path.write_text(tomli_w.dumps(job), encoding="utf-8")
    except TypeError as e:
        raise BadInput(f"the job cannot be said in TOML: {e}", hint="See docs/jobs.md.") from None
    return path


def _data_file(data: Table, folder: Path) -> Path:
    path = folder / "customers.parquet"
    try:
        table = data if isinstance(data, pa.Table) else pa.Table.from_pandas(data, preserve_index=False)
    except (TypeError, AttributeError, pa.ArrowException) as e:
        raise BadInput(f"not a table of customers: {e}", hint="Give a frame, a file or a folder.") from None
    pq.write_table(table, path)
    return path
