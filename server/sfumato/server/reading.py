"""A finished run as its readers see it: the parts of its answer, in one shape for all kinds, and what they cost."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from sfumato.common.analyses.estimates import LEVEL
from sfumato.common.analyses.parts import Part, Row, parts_of
from sfumato.common.errors import BadInput
from sfumato.server.home import CoordinatorHome
from sfumato.server.report_words import Estimate
from sfumato.server.run_files import read_answer, read_result, run_directory

Record = dict[str, Any]  # one measure of one row, flat
MEASURED = ("measure", "value", "low", "high", "unit", "level", "epsilon")


@dataclass(frozen=True)
class Reading:
    """What a run says. `epsilon` and `delta` are the whole job's, `level` is that of every interval; `parts` of a
    model's run are its metrics. `source` is the run's number or a file's name."""

    source: str
    summary: Mapping[str, Any]
    answer: Mapping[str, Any] | None
    level: float
    notes: tuple[str, ...]
    parts: tuple[Part, ...]

    @classmethod
    def of(cls, source: str, summary: Mapping[str, Any], answer: Mapping[str, Any] | None) -> Self:
        """Raises BadInput on a run without an answer, and on what is no answer."""
        if summary.get("state", "finished") != "finished":
            why = summary.get("reason") or "it has not ended"
            raise BadInput(f"{source}: the run has no answer ({why})")
        metrics = summary.get("metrics")
        if answer is None and not isinstance(metrics, Mapping):
            raise BadInput(f"{source}: holds neither an answer nor metrics")
        try:
            parts = (
                tuple(map(_checked, parts_of(answer))) if answer is not None else (_metrics(metrics or {}),)
            )
        except ValueError as e:
            raise BadInput(f"{source}: {e}") from None
        said = answer if answer is not None else metrics or {}
        notes = tuple(str(n) for n in said.get("notes", ()))
        return cls(source, summary, answer, float(said.get("level") or LEVEL), notes, parts)

    @classmethod
    def of_run(cls, home: CoordinatorHome, run_id: int) -> Self:
        """What this run left at the coordinator. Raises BadInput."""
        directory = run_directory(home, run_id)
        return cls.of(f"run {run_id}", read_result(directory), read_answer(directory))

    @classmethod
    def of_file(cls, path: Path) -> Self:
        """What `sfumato simulate --json` wrote. Raises BadInput."""
        try:
            summary = json.loads(path.read_bytes())
        except OSError as e:
            raise BadInput(f"{path}: {e.strerror or 'cannot be read'}") from None
        except ValueError:
            raise BadInput(f"{path}: is not JSON") from None
        if not isinstance(summary, dict):
            raise BadInput(f"{path}: is not what `sfumato simulate --json` writes")
        return cls.of(path.name, summary, summary.get("answer"))

    @property
    def job(self) -> str:
        return str(self.summary.get("job") or "unnamed job")

    @property
    def kind(self) -> str:
        return str(self.summary.get("kind") or "")

    @property
    def epsilon(self) -> float | None:
        return _finite(self.summary.get("epsilon"))

    @property
    def delta(self) -> float | None:
        return _finite(self.summary.get("delta"))

    def records(self) -> Iterator[Record]:
        """One record for each measure of each row: part, by and of (lists), measure, value, low, high, unit, level,
        epsilon and `words`. A row that has words alone gives one without a measure."""
        for part in self.parts:
            for row in part.rows:
                for measured in self._measured(part, row) or [dict.fromkeys(MEASURED)]:
                    head = {"part": part.name, "by": list(part.by), "of": list(row.of)}
                    yield head | measured | {"words": dict(row.words)}

    def _measured(self, part: Part, row: Row) -> list[Record]:
        return [
            {
                "measure": measure,
                **{key: float(row.numbers[measure][key]) for key in ("value", "low", "high")},
                "unit": unit,
                "level": self.level,
                "epsilon": self.epsilon,
            }
            for measure, unit in part.units.items()
            if measure in row.numbers
        ]


def _checked(part: Part) -> Part:
    """Raises ValueError where a number is none."""
    for row in part.rows:
        for measure, number in row.numbers.items():
            if Estimate.of(number) is None:
                raise ValueError(f"{part.name}: {measure} is no number")
    return part


def _metrics(metrics: Mapping[str, Any]) -> Part:
    """Of a model: each metric is a row, as their units differ."""
    found = {
        k: v for k, v in metrics.items() if isinstance(v, Mapping) and set(v) == {"value", "low", "high"}
    }
    rows = tuple(Row((name,), {"value": number}, {}) for name, number in found.items())
    return Part("metrics", ("metric",), {"value": "number"}, rows)


def _finite(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
