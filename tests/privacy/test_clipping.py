"""Bounded sums: nobody moves the total by more than GRID, whatever the contributions are."""

import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sfumato.common.contributions import Cells, Rows
from sfumato.common.fixed_point import GRID, decode
from sfumato.privacy import clipping
from sfumato.privacy.clipping import MOST_CUSTOMERS, BoundedSum, clipped_sensitivity

anything = st.floats(allow_nan=True, allow_infinity=True)
norms = st.floats(1e-6, 1e6)


def squared(total: np.ndarray) -> int:
    return sum(int(v) ** 2 for v in total)


def by_cells(cells: list[list[int]], weights: list[float], length: int) -> Cells:
    k = len(weights)
    return Cells(np.array(cells, dtype=np.int64).reshape(-1, k), np.array(weights, dtype=np.float64), length)


def naive_row(row: np.ndarray, max_norm: float) -> np.ndarray:
    if not np.isfinite(row).all():
        return np.zeros(row.size)
    largest = max(np.abs(row).max(), 1e-300)
    norm = math.hypot(*(row / largest).tolist())
    clipped = row if norm <= max_norm / largest else row / largest / norm * max_norm
    return clipped / max_norm * GRID


@given(hnp.arrays(np.float64, st.tuples(st.just(1), st.integers(1, 40)), elements=anything), norms)
@example(np.full((1, 3), 1 / np.sqrt(3)), 1.0)
@example(np.array([[1e300, -1e300]]), 1.0)
@example(np.array([[5e-324, 0.0]]), 1e-6)
@example(np.array([[np.inf, 1.0]]), 1.0)
@settings(max_examples=300, deadline=None)
def test_a_row_is_never_longer_than_the_bound(row: np.ndarray, max_norm: float) -> None:
    """In whole numbers, and it is the naive clip within a step and float error."""
    one = BoundedSum.of(Rows(row), max_norm)
    assert one.l2_sensitivity == GRID
    assert squared(one.total) <= GRID**2
    assert np.abs(one.total - naive_row(row[0], max_norm)).max() <= 1 + GRID * 2.0**-19


@given(
    hnp.arrays(np.float64, st.tuples(st.integers(1, 6), st.integers(1, 8)), elements=anything),
    norms,
    st.data(),
)
@settings(max_examples=100, deadline=None)
def test_leaving_one_customer_out_moves_a_sum_of_rows_by_the_bound(
    rows: np.ndarray, max_norm: float, data: st.DataObject
) -> None:
    out = data.draw(st.integers(0, len(rows) - 1))
    whole = BoundedSum.of(Rows(rows), max_norm)
    without = BoundedSum.of(Rows(np.delete(rows, out, axis=0)), max_norm)
    assert squared(whole.total - without.total) <= GRID**2


@given(st.integers(1, 6), st.integers(1, 5), st.data())
@settings(max_examples=200, deadline=None)
def test_leaving_one_customer_out_moves_a_sum_of_cells_by_the_bound(
    n: int, k: int, data: st.DataObject
) -> None:
    """Columns that meet in one cell, too; and it is the sum of the same rows written out."""
    length = 4
    cells = data.draw(hnp.arrays(np.int64, (n, k), elements=st.integers(-1, length - 1)))
    weights = data.draw(hnp.arrays(np.float64, k, elements=st.floats(-3, 3)))
    max_norm = data.draw(st.floats(0.1, 5))
    out = data.draw(st.integers(0, n - 1))
    whole = BoundedSum.of(Cells(cells, weights, length), max_norm)
    without = BoundedSum.of(Cells(np.delete(cells, out, axis=0), weights, length), max_norm)
    assert squared(whole.total - without.total) <= GRID**2
    rows = np.zeros((n, length))
    for i in range(n):
        for j in range(k):
            if cells[i, j] >= 0:
                rows[i, cells[i, j]] += weights[j]
    expected = sum(naive_row(row, max_norm) for row in rows)
    assert np.abs(whole.total - expected).max() <= n * (1 + GRID * 2.0**-19)


def test_counts_come_out_whole() -> None:
    cells = by_cells([[0], [1], [1], [-1]], [1.0], 3)
    assert BoundedSum.of(cells, 1.0).total.tolist() == [GRID, 2 * GRID, 0]


def test_two_columns_in_one_cell_are_added_before_the_clip() -> None:
    """A bound on each column alone would let this customer count sqrt(2) times."""
    shared = BoundedSum.of(by_cells([[0, 0], [0, 1]], [0.7, 0.7], 2), 1.0)
    alone = BoundedSum.of(by_cells([[0, 1]], [0.7, 0.7], 2), 1.0)
    assert shared.total[1] == alone.total[1] and abs(int(alone.total[0]) - 0.7 * GRID) < 1
    assert shared.total[0] - alone.total[0] == GRID


def test_many_customers_are_the_sum_of_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """More than one chunk, in either shape and with shared cells."""
    monkeypatch.setattr(clipping, "_CHUNK", 64)
    source = np.random.default_rng(0)
    rows = source.normal(size=(200, 7))
    each = sum(BoundedSum.of(Rows(rows[i : i + 1]), 1.5).total for i in range(200))
    assert (BoundedSum.of(Rows(rows), 1.5).total == each).all()
    cells, weights = source.integers(-1, 9, size=(300, 4)), np.array([0.5, -0.4, 0.3, 0.2])
    each = sum(BoundedSum.of(Cells(cells[i : i + 1], weights, 9), 1.0).total for i in range(300))
    assert (BoundedSum.of(Cells(cells, weights, 9), 1.0).total == each).all()


def test_nobody_adds_nothing() -> None:
    assert BoundedSum.of(Rows(np.zeros((0, 3))), 1.0).total.tolist() == [0, 0, 0]
    assert BoundedSum.of(by_cells([], [1.0, 1.0], 2), 1.0).total.tolist() == [0, 0]
    assert BoundedSum.of(Rows(np.zeros((3, 0))), 1.0).total.size == 0


@pytest.mark.parametrize(
    "contributions",
    [
        by_cells([[2]], [1.0], 2),
        by_cells([[-2]], [1.0], 2),
        by_cells([[0]], [float("nan")], 2),
        Cells(np.zeros((1, 2), dtype=np.int64), np.ones(3), 2),
        Rows(np.zeros(3)),
        Rows(np.zeros((2, 2), dtype=np.float32)),  # type: ignore[arg-type]
        Rows(np.broadcast_to(np.zeros((1, 1)), (MOST_CUSTOMERS + 1, 1))),
    ],
)
def test_what_is_no_contribution_is_refused(contributions: Cells | Rows) -> None:
    with pytest.raises(ValueError, match="Expected"):
        BoundedSum.of(contributions, 1.0)


@pytest.mark.parametrize("max_norm", [0.0, -1.0, float("nan"), float("inf"), 1e101])
def test_a_bad_bound_is_refused(max_norm: float) -> None:
    with pytest.raises(ValueError, match="max_norm"):
        BoundedSum.of(Rows(np.ones((1, 1))), max_norm)


def test_ten_thousand_full_branches_do_not_overflow() -> None:
    assert 10_000 * MOST_CUSTOMERS * GRID + 2**61 < 2**63


@given(st.integers(1, 30), st.integers(1, 20), st.integers(0, 2**32 - 1))
@settings(max_examples=100, deadline=None)
def test_a_clipped_sum_moves_by_no_more_than_it_says(n: int, d: int, seed: int) -> None:
    rows = np.random.default_rng(seed).normal(size=(n, d)) * 10
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1.0)
    whole = BoundedSum.of_clipped(rows.sum(axis=0), 1.0, n)
    without = BoundedSum.of_clipped(rows[1:].sum(axis=0), 1.0, n)
    assert squared(whole.total - without.total) <= whole.l2_sensitivity**2
    assert np.abs(decode(whole.total, 1.0) - rows.sum(axis=0)).max() <= 0.51 / GRID


def test_the_slack_is_what_it_says() -> None:
    assert clipped_sensitivity(1, 1) == GRID + 1 + 1
    assert clipped_sensitivity(13_569, 10_000) == GRID + 117 + 2
    assert clipped_sensitivity(1000, 1_000_000) == GRID + 32 + 7459


@pytest.mark.parametrize(
    "total", [np.array([np.nan]), np.array([3.1]), np.ones(1, dtype=np.float32), np.ones((1, 1))]
)
def test_a_sum_that_was_not_clipped_is_refused(total: np.ndarray) -> None:
    with pytest.raises(ValueError, match="Expected a"):
        BoundedSum.of_clipped(total, 1.0, 3)


def test_it_shows_no_numbers() -> None:
    assert "1677" not in repr(BoundedSum.of(Rows(np.ones((1, 2))), 1.0)).replace(
        "l2_sensitivity=16777216", ""
    )
