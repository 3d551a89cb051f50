"""What ingest found wrong, told without telling a value.

A finding names the file, the column, what was expected, the rows, and a *value class* ("text of 12
characters", "number above the upper bound"): enough to mend the file, nothing about a customer.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from sfumato.common.errors import BadInput

EXAMPLES = 10


class FaultKind(StrEnum):
    """Every way a row can be bad. The names stand in the report and in the quarantine file."""

    EMPTY = "empty"  # a missing value in a column that is not nullable
    WRONG_TYPE = "wrong-type"  # the cell does not parse as the declared type
    NOT_FINITE = "not-finite"  # an infinite number
    OUT_OF_DOMAIN = "out-of-domain"  # outside the public bounds or categories
    LABEL = "bad-label"  # a label outside its domain; a label is never clipped
    FORMULA = "formula"  # would run as a formula in a spreadsheet
    TOO_LONG = "too-long"
    NUL = "nul-byte"
    ENCODING = "bad-encoding"
    RAGGED = "ragged-row"  # more or fewer cells than the header
    DUPLICATE = "duplicate-customer"


@dataclass(frozen=True, slots=True)
class Finding:
    """One kind of fault in one column. `examples` are the first rows with each cell's value class.

    `column` is empty where the fault is the whole row's. Rows are data rows counted from 1.
    """

    column: str
    kind: FaultKind
    expected: str
    count: int
    examples: tuple[tuple[int, str], ...]

    @property
    def rows(self) -> tuple[int, ...]:
        return tuple(row for row, _ in self.examples)

    def __str__(self) -> str:
        where = f"column {self.column!r}" if self.column else "whole row"
        shown = ", ".join(str(row) for row in self.rows) + (", …" if self.count > len(self.rows) else "")
        classes = "; ".join(dict.fromkeys(c for _, c in self.examples))
        rows = "1 row (row" if self.count == 1 else f"{self.count:,} rows (rows"
        return f"{where}, {self.kind.value}: {rows} {shown}): found {classes}; expected {self.expected}"


class Tally:
    """Counts faults per (column, kind) over a load, in memory that does not grow with the faults."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, FaultKind], tuple[str, int, list[tuple[int, str]]]] = {}

    def add(
        self, column: str, kind: FaultKind, expected: str, count: int, examples: Sequence[tuple[int, str]]
    ) -> None:
        """Add `count` faults; only the first few (row, value class) of a group are kept."""
        stated, before, kept = self._found.get((column, kind), (expected, 0, []))
        kept.extend(examples[: EXAMPLES - len(kept)])
        self._found[column, kind] = (stated, before + count, kept)

    def findings(self) -> tuple[Finding, ...]:
        """Sorted by the first row at fault."""
        all_ = [
            Finding(column, kind, expected, count, tuple(sorted(kept)))
            for (column, kind), (expected, count, kept) in self._found.items()
        ]
        return tuple(sorted(all_, key=lambda f: (f.rows[0], f.column, f.kind)))


@dataclass(frozen=True, slots=True)
class IngestReport:
    """What a load did. `str()` is the text for the operator; it holds no value of any cell.

    `rows_read` = `rows_loaded` + `rows_quarantined` when the load went through. `clipped` counts, per
    column, the cells that `out_of_domain = "clip"` moved into their domain.
    """

    source: str
    table: str
    rows_read: int
    rows_loaded: int
    rows_quarantined: int
    findings: tuple[Finding, ...] = ()
    clipped: dict[str, int] = field(default_factory=dict)
    quarantine: Path | None = None

    def __str__(self) -> str:
        lines = [
            f"{self.source} → table {self.table!r}: {self.rows_read:,} rows read, "
            f"{self.rows_loaded:,} loaded, {self.rows_quarantined:,} quarantined"
        ]
        lines += [f"  {f}" for f in self.findings]
        lines += [f"  column {c!r}: {_cells(n)} moved into their domain" for c, n in self.clipped.items()]
        if self.quarantine is not None:
            lines.append(f"  The bad rows are in {self.quarantine}: personal data, readable by you alone.")
        return "\n".join(lines)


def _cells(count: int) -> str:
    return "1 cell" if count == 1 else f"{count:,} cells"


class LoadRefused(BadInput):
    """Some rows are bad and no quarantine was asked for, or no row is good. Nothing was stored."""

    def __init__(self, report: IngestReport, bad_rows: int, *, hint: str) -> None:
        first = f"{report.source}: refused, nothing was loaded into {report.table!r}"
        counted = f"{bad_rows:,} of {report.rows_read:,} rows {'is' if bad_rows == 1 else 'are'} bad"
        findings = "".join(f"\n  {f}" for f in report.findings)
        super().__init__(f"{first}: {counted}{findings}", hint=hint)
        self.report = report
