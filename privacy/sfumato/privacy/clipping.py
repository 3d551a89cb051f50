"""A sum over customers whose sensitivity is known: clipped, and in whole grid steps. Clip, then noise."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sfumato.common.contributions import Cells, Contributions, Rows
from sfumato.common.fixed_point import GRID

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

# 10,000 branches add up to less than 2^62.3, which leaves the noise 2^61 on either side.
LARGEST_TOTAL = 1 << 49
MOST_CUSTOMERS = LARGEST_TOTAL // GRID  # 33.5 million in one branch
_CHUNK = 1 << 16  # numbers, so that a chunk's passes stay in the cache
_SHRINK = 1 - 2.0**-20


@dataclass(frozen=True, slots=True, repr=False)
class BoundedSum:
    """A private total, int64 [d] in grid steps (max_norm is GRID of them), and what one customer can move it by.

    `l2_sensitivity` is in grid steps, under add/remove of one customer's vector.
    """

    total: Ints
    l2_sensitivity: int
    max_norm: float

    @classmethod
    def of(cls, contributions: Contributions, max_norm: float) -> "BoundedSum":
        """Clip each customer to l2 norm `max_norm`, truncate toward zero on the grid, add.

        Exactly: each customer's integer vector z has sum(z^2) <= GRID^2, which is checked in whole numbers and
        not argued from floats (a vector found longer is shrunk and truncated again). So the sensitivity is GRID.
        A row with a NaN or an infinity adds nothing. Raises ValueError on a bad max_norm, a cell or a weight out of
        range, or more than MOST_CUSTOMERS customers.
        """
        _check_norm(max_norm)
        match contributions:
            case Rows(rows):
                _check_customers(len(rows))
                total = _sum_rows(rows, max_norm)
            case Cells():
                _check_customers(len(contributions.cells))
                total = _sum_cells(contributions, max_norm)
        return cls(total, GRID, max_norm)

    @classmethod
    def of_parts(cls, parts: Iterable[Contributions], max_norm: float) -> "BoundedSum":
        """The same, of customers who come a part at a time: each customer is in one part only. Raises ValueError on
        no part at all, or parts of different lengths."""
        sums = [cls.of(part, max_norm).total for part in parts]
        if len({s.size for s in sums}) != 1:
            raise ValueError("Expected parts, all of one length.")
        return cls(np.stack(sums).sum(axis=0), GRID, max_norm)

    @classmethod
    def of_clipped(cls, total: Floats, max_norm: float, customers: int) -> "BoundedSum":
        """The float64 sum of at most `customers` vectors, each already clipped to `max_norm`, rounded to nearest.

        Sensitivity: `clipped_sensitivity`. Raises ValueError on a total that is not finite, or too long to be
        such a sum: then something was not clipped.
        """
        _check_norm(max_norm)
        _check_customers(customers)
        if total.dtype != np.float64 or total.ndim != 1 or not np.isfinite(total).all():
            raise ValueError("Expected a finite float64 vector.")
        scaled = total * (GRID / max_norm)
        if float(np.linalg.norm(scaled)) > customers * GRID * (1 + 2.0**-20):
            raise ValueError(f"Expected a sum of at most {customers} vectors of norm {max_norm}.")
        return cls(np.rint(scaled).astype(np.int64), clipped_sensitivity(total.size, customers), max_norm)

    def __repr__(self) -> str:
        return f"BoundedSum(<{self.total.size} private numbers>, l2_sensitivity={self.l2_sensitivity})"


def clipped_sensitivity(dimension: int, customers: int) -> int:
    """Of a rounded float64 sum of at most `customers` vectors clipped in float64, in grid steps.

    GRID, plus ceil(sqrt(d)) for two roundings to nearest, plus the float slack of two sums of n terms in any
    order: 2 n (n + d + 8) GRID 2^-52 (Higham 2002, section 4.2: |error| <= gamma_(n-1) sum |x_i|, and 2^-52 for the
    unit roundoff 2^-53 covers the higher terms, the scaling and the d + 4 roundings of a clip).
    """
    slack = -(-2 * customers * (customers + dimension + 8) * GRID >> 52)
    root = int(np.ceil(np.sqrt(dimension)))
    return GRID + root + slack


def _check_norm(max_norm: float) -> None:
    if not 1e-100 <= max_norm <= 1e100:
        raise ValueError("Expected max_norm in [1e-100, 1e100].")


def _check_customers(customers: int) -> None:
    if not 0 <= customers <= MOST_CUSTOMERS:
        raise ValueError(f"Expected at most {MOST_CUSTOMERS} customers in a branch: the sum could overflow.")


# --- rows --------------------------------------------------------------------------------------------------


def _sum_rows(rows: Floats, max_norm: float) -> Ints:
    if rows.ndim != 2 or rows.dtype != np.float64:
        raise ValueError("Expected rows of float64 [n, d].")
    total = np.zeros(rows.shape[1], dtype=np.int64)
    for chunk in _chunks(len(rows), rows.shape[1]):
        # Each partial sum is a whole number below 2^53: float64 adds them exactly, in any order.
        total += _on_grid(rows[chunk], max_norm).sum(axis=0).astype(np.int64)
    return total


def _chunks(count: int, width: int) -> Iterator[slice]:
    step = max(1, _CHUNK // max(1, width))
    return (slice(start, start + step) for start in range(0, count, step))


def _on_grid(rows: Floats, max_norm: float) -> Floats:
    """Each row clipped and truncated: whole numbers in float64 with sum(z^2) <= GRID^2, exactly."""
    with np.errstate(over="ignore", invalid="ignore"):
        squares = np.einsum("ij,ij->i", rows, rows)
    strange = np.flatnonzero(~np.isfinite(squares))
    if strange.size:
        rows = rows.copy()
        rows[strange] = _rescued(rows[strange], max_norm)
        squares[strange] = np.einsum("ij,ij->i", rows[strange], rows[strange])
    scale = GRID / np.maximum(np.sqrt(squares), max_norm)
    steps: Floats = rows * scale[:, None]
    np.trunc(steps, out=steps)
    while True:
        # Squares and their sums are whole numbers of at most about 2^48: exact.
        over = np.flatnonzero(np.einsum("ij,ij->i", steps, steps) > float(GRID) ** 2)
        if not over.size:
            return steps
        steps[over] = np.trunc(steps[over] * _SHRINK)


def _rescued(rows: Floats, max_norm: float) -> Floats:
    """Rows whose squares are no numbers: nothing where the row is none either, else the same direction, shorter."""
    finite = np.where(np.isfinite(rows).all(axis=1, keepdims=True), rows, 0.0)
    largest = np.abs(finite).max(axis=1, keepdims=True)
    shorter = finite / np.where(largest == 0, 1.0, largest) * max_norm
    return np.asarray(np.where(largest > max_norm, shorter, finite))


# --- cells -------------------------------------------------------------------------------------------------


def _sum_cells(contributions: Cells, max_norm: float) -> Ints:
    cells, weights, length = contributions.cells, contributions.weights, contributions.length
    if cells.ndim != 2 or weights.shape != (cells.shape[1],) or not np.isfinite(weights).all():
        raise ValueError("Expected cells of int64 [n, k] and k finite weights.")
    if cells.size and not (int(cells.min()) >= -1 and int(cells.max()) < length):
        raise ValueError(f"Expected every cell in [-1, {length}).")
    steps = _on_grid(weights[None, :], max_norm)[0]
    if not _fits(weights, max_norm):
        return _sum_sparse(cells, weights, length, max_norm)
    shared = _shares_a_cell(cells)
    alone = cells if not shared.any() else cells[~shared]
    total = _sum_sparse(cells[shared], weights, length, max_norm)
    for column, step in enumerate(steps):
        # With all its columns a row is within the bound, so it is with some of them.
        total += np.bincount(alone[:, column] + 1, minlength=length + 1)[1:] * np.int64(step)
    return total


def _fits(weights: Floats, max_norm: float) -> bool:
    """Is a row of all the columns (up to float error, which `_on_grid` has taken off) within the bound?"""
    return float(np.linalg.norm(weights / max_norm)) <= 1 + 2.0**-40


def _shares_a_cell(cells: Ints) -> npt.NDArray[np.bool_]:
    """Which rows have two columns in one cell; columns with cells of their own are not looked at twice."""
    shared = np.zeros(len(cells), dtype=np.bool_)
    if not cells.size:
        return shared
    lows = np.where(cells < 0, np.iinfo(np.int64).max, cells).min(axis=0)
    highs = cells.max(axis=0)
    used = highs >= 0
    order = np.argsort(lows[used])
    lows, highs = lows[used][order], highs[used][order]
    if (highs[:-1] < lows[1:]).all():
        return shared
    for chunk in _chunks(*cells.shape):
        ordered = np.sort(cells[chunk], axis=1)
        shared[chunk] = ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).any(axis=1)
    return shared


def _sum_sparse(cells: Ints, weights: Floats, length: int, max_norm: float) -> Ints:
    """Row by row: what falls into one cell is added before the row is clipped."""
    total = np.zeros(length, dtype=np.int64)
    for chunk in _chunks(*cells.shape):
        part = cells[chunk]
        order = np.argsort(part, axis=1, kind="stable")
        ordered = np.take_along_axis(part, order, axis=1)
        values = weights[order]
        values[ordered < 0] = 0.0
        for column in range(1, part.shape[1]):
            same = ordered[:, column] == ordered[:, column - 1]
            values[same, column] += values[same, column - 1]
            values[same, column - 1] = 0.0
        steps = _on_grid(values, max_norm)
        total += np.bincount((ordered + 1).ravel(), weights=steps.ravel(), minlength=length + 1).astype(
            np.int64
        )[1:]
    return total
