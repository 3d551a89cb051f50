"""A finished run for a notebook: its answer as pandas frames, as files, as a page."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from sfumato.common.errors import BadInput
from sfumato.server.answer_export import FIXED, as_csv, as_json, flat
from sfumato.server.home import CoordinatorHome
from sfumato.server.reading import MEASURED, Reading
from sfumato.server.run_files import write_whole

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, repr=False)
class Result:
    """What a run found. Every number has its interval, and the epsilon of the job that it came from."""

    reading: Reading

    @classmethod
    def of_run(cls, home: CoordinatorHome, run_id: int) -> Self:
        """Raises BadInput on a run that has no result, with the reason."""
        return cls(Reading.of_run(home, run_id))

    @classmethod
    def of(cls, source: str, summary: Mapping[str, Any], answer: Mapping[str, Any] | None) -> Self:
        """Of a run that left nothing at a coordinator. Raises BadInput on what is no result."""
        return cls(Reading.of(source, summary, answer))

    @property
    def summary(self) -> dict[str, Any]:
        """The job, what it cost, who took part."""
        return dict(self.reading.summary)

    @property
    def answer(self) -> dict[str, Any] | None:
        """What the analysis found, as in answer.json; None of a model."""
        return dict(self.reading.answer) if self.reading.answer is not None else None

    @property
    def notes(self) -> tuple[str, ...]:
        """What is to be known before one reads the numbers."""
        return self.reading.notes

    @property
    def parts(self) -> tuple[str, ...]:
        """The names of the answer's tables, for `frame`."""
        return tuple(part.name for part in self.reading.parts)

    @property
    def epsilon(self) -> float | None:
        return self.reading.epsilon

    def frame(self, part: str | None = None) -> "pd.DataFrame":
        """One line for each measure of each row: value, low, high, unit, level, epsilon.

        Of one `part` the values that a row is of stand in columns named as the part names them; of all parts in of_1,
        of_2 … Raises BadInput where there is no such part, or no pandas.
        """
        pandas = require_pandas()
        columns, lines = flat([self.reading])
        if part is None:
            return pandas.DataFrame(lines, columns=columns[columns.index("part") :])
        if part not in self.parts:
            raise BadInput(f"no part {part!r}", hint=f"There are: {', '.join(self.parts)}.")
        found = self.reading.parts[self.parts.index(part)]
        of = {f"of_{i}": f"{by}_" if by in FIXED else by for i, by in enumerate(found.by, 1)}
        its = [line for line in lines if line["part"] == part]
        words = [w for w in columns if w not in (*FIXED, *columns[: columns.index("measure")])]
        kept = [*of, *MEASURED, *(w for w in words if any(w in line for line in its))]
        return pandas.DataFrame(its, columns=kept).rename(columns=of)

    def to_csv(self, path: Path | str) -> None:
        """As `sfumato job export --csv`."""
        write_whole(Path(path), as_csv([self.reading]))

    def to_json(self, path: Path | str) -> None:
        """As `sfumato job export --json`."""
        write_whole(Path(path), as_json([self.reading]))

    def to_portrait(self, folder: Path | str, *, force: bool = False) -> None:
        """Pages in English and Chinese, JSON and CSV, as `sfumato portrait`. Raises BadInput."""
        from sfumato.server.portrait import Portrait, write_portrait

        write_portrait(Path(folder), Portrait.of([self.reading]), ("en", "zh"), force=force)

    def show(self) -> None:
        """Print it, as `sfumato job show` does."""
        from rich.console import Console

        from sfumato.server.answers import print_answer

        if self.reading.answer is None:
            raise BadInput(
                "a model has no answer to print", hint="Look at frame(), or: sfumato model show RUN."
            )
        print_answer(self.reading.summary, self.reading.answer, Console(highlight=False, soft_wrap=True))

    def __repr__(self) -> str:
        of, cost = self.reading, "" if self.epsilon is None else f", epsilon {self.epsilon:.2f}"
        return f"<Result of {of.source}: {of.job} ({of.kind}{cost}); parts: {', '.join(self.parts)}>"


def require_pandas() -> Any:
    """The module. Raises BadInput if it is not installed."""
    try:
        import pandas
    except ModuleNotFoundError:
        raise BadInput(
            "pandas is not installed", hint="Install it: it comes with the extra `notebook`."
        ) from None
    return pandas
