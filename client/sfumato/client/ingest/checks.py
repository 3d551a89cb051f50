"""Rows against the data contract: what is typed and valid, and what is wrong with the rest.

A cell has at most one fault, in this order: unreadable, formula, NUL, too long, wrong type, not finite, empty,
outside its domain. Columns whose protection is `drop` are neither checked nor passed on, and may be absent.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from sfumato.client.column_types import ARROW_TYPE
from sfumato.client.ingest.convert import EXPECTED, CellFault, Mask, as_mask, convert, without
from sfumato.client.ingest.findings import EXAMPLES, FaultKind
from sfumato.client.ingest.formula import formula_cells
from sfumato.client.ingest.sources import Batch, characters
from sfumato.common.contract import Column, ColumnType, OutOfDomain, Protection, Role, Table
from sfumato.common.errors import BadInput

MAX_TEXT = 10_000
OTHER = "other"
_ECHOABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_ .\-/]{0,63}")


@dataclass(frozen=True, slots=True)
class BatchFault:
    """Faulty rows of one batch, as places in the batch, with the first few value classes."""

    column: str
    kind: FaultKind
    expected: str
    indices: npt.NDArray[np.int64]
    value_classes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Checked:
    """A batch after its checks: typed columns of all rows, the mask of bad rows, and why.

    `values` has the stored columns in the contract's order; cells of bad rows may be null or unclipped.
    `clipped` counts cells of good rows that were moved into their domain.
    """

    values: pa.Table
    bad: Mask
    faults: tuple[BatchFault, ...]
    clipped: dict[str, int]


def stored_columns(table: Table) -> tuple[Column, ...]:
    """The columns that reach the store: all but those to drop."""
    return tuple(c for c in table.columns if c.protection is not Protection.DROP)


def check_header(name: str, header: tuple[str, ...], table: Table) -> None:
    """Raise BadInput unless the file has the contract's columns and no other, in any order.

    A name that the contract does not know is echoed only if most of the declared ones are there: the first
    line of a file without a header is a customer.
    """
    declared = {c.name for c in table.columns}
    missing = [c.name for c in stored_columns(table) if c.name not in header]
    extra = [(place, column) for place, column in enumerate(header, start=1) if column not in declared]
    if not missing and not extra:
        return
    if len(declared & set(header)) * 2 < len(declared):
        raise BadInput(
            f"{name}: the header is not that of table {table.name!r}: it has "
            f"{len(declared & set(header))} of the {len(declared)} declared columns",
            hint=f"Expected a header with: {', '.join(c.name for c in table.columns)}.",
        )
    lines = [f"missing column {column!r}" for column in missing]
    lines += [_extra(place, column, missing) for place, column in extra]
    raise BadInput(
        f"{name}: the columns are not those of table {table.name!r}\n  " + "\n  ".join(lines),
        hint="Mend the file or the contract; every column is declared, also those to drop.",
    )


def _extra(place: int, column: str, missing: list[str]) -> str:
    near = [m for m in missing if m.casefold() == column.strip().casefold()]
    if near:
        return f"column {near[0]!r} is written with other capitals or spaces (place {place})"
    shown = repr(column) if _ECHOABLE.fullmatch(column) else f"with a name of {characters(len(column))}"
    return f"extra column {shown} (place {place}), which the contract does not declare"


def check_batch(batch: Batch, table: Table) -> Checked:
    """Type, domain and safety of every cell of the batch."""
    size = batch.table.num_rows
    # a row that the reader could not take apart has that one fault: its other cells mean nothing
    spoiled = np.zeros(size, np.bool_)
    spoiled[[f.index for f in batch.faults]] = True
    faults = [
        BatchFault(f.column, f.kind, f.expected, np.array([f.index]), (f.value_class,)) for f in batch.faults
    ]
    bad = spoiled.copy()
    columns: dict[str, pa.Array] = {}
    moved: dict[str, Mask] = {}
    for column in stored_columns(table):
        raw = batch.table.column(column.name).combine_chunks()
        values, cell_faults, outside = _check_column(column, raw)
        for fault in _first_of_each_cell(cell_faults, spoiled):
            bad |= fault.mask
            faults.append(_batch_fault(column.name, fault, raw))
        columns[column.name] = values
        if outside is not None and outside.any():
            moved[column.name] = outside
    counts = {name: int((mask & ~bad).sum()) for name, mask in moved.items()}
    clipped = {name: count for name, count in counts.items() if count}
    return Checked(pa.table(columns), bad, tuple(faults), clipped)


def _first_of_each_cell(faults: list[CellFault], spoiled: Mask) -> Iterator[CellFault]:
    taken = spoiled.copy()
    for fault in faults:
        fresh = fault.mask & ~taken
        taken |= fault.mask
        if fresh.any():
            yield CellFault(fault.kind, fresh, fault.expected, fault.value_class)


def _batch_fault(column: str, fault: CellFault, raw: pa.Array) -> BatchFault:
    indices = np.flatnonzero(fault.mask)
    classes = tuple(fault.value_class or _text_class(raw[int(i)].as_py()) for i in indices[:EXAMPLES])
    return BatchFault(column, fault.kind, fault.expected, indices, classes)


def _text_class(value: object) -> str:
    if not isinstance(value, str):
        return "empty" if value is None else "a value that is not text"
    if not value.strip():
        return f"blank text of {characters(len(value))}" if value else "empty"
    return f"text of {characters(len(value))}"


def _check_column(column: Column, raw: pa.Array) -> tuple[pa.Array, list[CellFault], Mask | None]:
    """Typed values, the faults in their order, and the cells that were clipped (None: clips nothing)."""
    faults = _unsafe_text(column, raw) if pa.types.is_string(raw.type) else []
    converted = convert(column.type, raw)
    values = converted.values
    faults += converted.faults
    known_bad = np.zeros(len(raw), np.bool_)
    for fault in faults:
        known_bad |= fault.mask
    empty = as_mask(pc.is_null(values)) & ~known_bad
    if not column.nullable and empty.any():
        faults.append(CellFault(FaultKind.EMPTY, empty, f"{EXPECTED[column.type]}, never empty", "empty"))
    outside = _outside(column, values)
    if column.role is Role.LABEL or column.out_of_domain is OutOfDomain.REJECT:
        return values, faults + outside, None
    return (*_clip(column, values, outside, faults),)


def _unsafe_text(column: Column, raw: pa.Array) -> list[CellFault]:
    """Formula cells, NUL bytes and over-long texts; a declared category is taken at its word."""
    faults = []
    if column.type in (ColumnType.STRING, ColumnType.CATEGORY) or column.role is Role.PII:
        formula = as_mask(formula_cells(raw))
        if column.categories is not None and formula.any():
            formula &= ~as_mask(pc.is_in(raw, pa.array(column.categories, pa.string())))
        faults.append(CellFault(FaultKind.FORMULA, formula, "text that does not begin with = + - @"))
    nul = as_mask(pc.match_substring(raw, "\0"))
    faults.append(CellFault(FaultKind.NUL, nul, "text without NUL bytes"))
    long = as_mask(pc.greater(pc.utf8_length(raw), MAX_TEXT))
    faults.append(CellFault(FaultKind.TOO_LONG, long, f"at most {MAX_TEXT:,} characters"))
    return [f for f in faults if f.mask.any()]


def _outside(column: Column, values: pa.Array) -> list[CellFault]:
    """Cells outside the public domain. Nulls are inside."""
    label = column.role is Role.LABEL
    kind = FaultKind.LABEL if label else FaultKind.OUT_OF_DOMAIN
    faults = []
    if column.categories is not None:
        known = as_mask(pc.is_in(values, pa.array(column.categories, pa.string())))
        strange = as_mask(pc.is_valid(values)) & ~known
        expected = f"one of the contract's {len(column.categories)} categories"
        faults.append(CellFault(kind, strange, expected))
    elif label and column.type is ColumnType.INTEGER:
        neither = as_mask(pc.and_(pc.not_equal(values, 0), pc.not_equal(values, 1)))
        faults.append(CellFault(kind, neither, "0 or 1", "a number that is neither 0 nor 1"))
    if column.bounds is not None:
        low, high = column.bounds
        expected = f"a number from {low:.15g} to {high:.15g}"
        low_value, high_value = _extremes(column)
        below, above = as_mask(pc.less(values, low_value)), as_mask(pc.greater(values, high_value))
        faults.append(CellFault(kind, below, expected, "a number below the lower bound"))
        faults.append(CellFault(kind, above, expected, "a number above the upper bound"))
    return [f for f in faults if f.mask.any()]


def _clip(
    column: Column, values: pa.Array, outside: list[CellFault], faults: list[CellFault]
) -> tuple[pa.Array, list[CellFault], Mask]:
    moved = np.zeros(len(values), np.bool_)
    for fault in outside:
        moved |= fault.mask
    if not moved.any():
        return values, faults, moved
    if column.categories is not None:
        return pc.if_else(pa.array(moved), OTHER, values), faults, moved
    low_value, high_value = _extremes(column)
    clipped = pc.max_element_wise(pc.min_element_wise(values, high_value), low_value)
    # the element-wise extremes skip nulls: an empty cell stays empty
    return without(clipped, as_mask(pc.is_null(values))), faults, moved


def _extremes(column: Column) -> tuple[pa.Scalar, pa.Scalar]:
    """The least and the greatest value inside the bounds, in the column's own type."""
    assert column.bounds is not None  # only asked of bounded columns
    low, high = column.bounds
    if column.type is ColumnType.INTEGER:
        low, high = max(math.ceil(low), -(2**63)), min(math.floor(high), 2**63 - 1)
    kind = ARROW_TYPE[column.type]
    return pa.scalar(low, kind), pa.scalar(high, kind)
