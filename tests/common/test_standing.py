"""Standing questions: the bound against every path that a customer could walk, what is told, and how it is read."""

from itertools import combinations, product
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sfumato.common.analyses.analysis import NoisySum
from sfumato.common.analyses.paths import variance
from sfumato.common.analyses.standing import NOWHERE, RESTLESS, StandingPaths, Told
from sfumato.common.analyses.standing_trend import StandingCounts
from sfumato.common.contributions import Cells

Ints = npt.NDArray[np.int64]


def rows_of(cells: Cells) -> np.ndarray:
    rows = np.zeros((len(cells.cells), cells.length))
    for column, weight in enumerate(cells.weights):
        here = cells.cells[:, column]
        np.add.at(rows, (np.flatnonzero(here >= 0), here[here >= 0]), weight)
    return rows


def walk(
    paths: StandingPaths, states: Ints, answered: tuple[int, ...]
) -> tuple[list[np.ndarray], list[Told]]:
    """Each told period's rows, and what is told then. states: [n, periods]"""
    before, last = paths.nothing(len(states)), None
    rows, told = [], []
    for t in answered:
        now = paths.tell(before, states[:, t])
        rows.append(rows_of(paths.contribution(t, None if last is None else t - last, before, now)))
        told.append(now)
        before, last = now, t
    return rows, told


@pytest.mark.parametrize(("periods", "changes"), [(4, 1), (4, 2), (5, 1)])
def test_the_bound_is_that_of_the_longest_of_all_paths_and_all_sets_of_periods(
    periods: int, changes: int
) -> None:
    paths = StandingPaths(3, periods, changes)
    everybody = np.array(list(product((-1, 0, 1, 2), repeat=periods)))
    longest = np.zeros(periods)
    for size in range(1, periods + 1):
        for answered in combinations(range(periods), size):
            spent = np.zeros(len(everybody))
            for t, rows in zip(answered, walk(paths, everybody, answered)[0], strict=True):
                norms = (rows**2).sum(axis=1)
                assert norms.max() <= paths.longest(t) * (1 + 1e-12)
                spent += norms
                longest[t] = max(longest[t], spent.max())
    longest = np.maximum.accumulate(longest)
    assert (longest <= paths.bounds * (1 + 1e-12)).all()
    assert longest == pytest.approx(paths.bounds, rel=0.02)  # and it is no looser than that


@settings(max_examples=80, deadline=None)
@given(st.integers(2, 30), st.integers(1, 6), st.integers(0, 2**32 - 1), st.floats(0.05, 1.0))
def test_nobody_outspends_the_bound_at_any_time(periods: int, changes: int, seed: int, there: float) -> None:
    rng = np.random.default_rng(seed)
    paths = StandingPaths(4, periods, None if changes == 6 else changes)
    states = rng.integers(-1, 4, (60, periods))
    stays = rng.random((60, periods)) < rng.random((60, 1))
    for t in range(1, periods):
        states[:, t] = np.where(stays[:, t], states[:, t - 1], states[:, t])
    answered = tuple(np.flatnonzero(rng.random(periods) < there).tolist())
    spent = np.zeros(60)
    for t, rows in zip(answered, walk(paths, states, answered)[0], strict=True):
        spent += (rows**2).sum(axis=1)
        assert spent.max() <= paths.bounds[t] * (1 + 1e-12)


def test_the_price_of_standing_is_small_beside_one_sum_and_what_it_saves_is_not() -> None:
    for periods, changes, in_one in ((12, 1, 5.58), (12, 2, 7.32), (12, 3, 8.55)):
        whole = StandingPaths(2, periods, changes).bounds[-1]
        assert variance(periods, changes, 0.0) == periods
        assert in_one < whole < 0.75 * periods


def test_what_is_told_follows_until_the_changes_are_used_up_and_lets_go_of_who_leaves() -> None:
    paths = StandingPaths(3, 7, 1)
    states = np.array([[0, 0, 1, 2, 2, -1, 1], [-1, 2, 2, -1, -1, 2, 2], [1, 1, 1, 1, 1, 1, 1], [-1] * 7])
    _, told = walk(paths, states, tuple(range(7)))
    assert np.stack([t.cell for t in told], axis=1).tolist() == [
        [0, 0, 1, 1, 1, -1, -1],
        [-1, 2, 2, -1, -1, 2, 2],
        [1, 1, 1, 1, 1, 1, 1],
        [-1] * 7,
    ]
    assert told[-1].restless.tolist() == [True, False, False, False]
    assert told[-1].known.tolist() == [True, True, True, False]
    assert told[-1].left.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("changes", [None, 2])
def test_added_up_the_sums_are_the_counts_of_what_was_told(changes: int | None) -> None:
    rng, paths = np.random.default_rng(1), StandingPaths(4, 8, changes)
    states = rng.integers(-1, 4, (300, 8))
    rows, told = walk(paths, states, tuple(range(8)))
    found = StandingCounts.of(paths, [NoisySum(r.sum(axis=0), 1.0) for r in rows], 2)
    for t, now in enumerate(told):
        cell = now.cell if changes else states[:, t]
        counts = np.bincount(cell[cell >= 0], minlength=4).reshape(2, 2)
        assert found.counts[:, t] == pytest.approx(counts)
    if changes:
        assert sum(r[:, -1].sum() for r in rows) / RESTLESS == pytest.approx(told[-1].restless.sum())


def test_a_branch_that_was_away_is_right_again_when_it_answers() -> None:
    rng, paths = np.random.default_rng(2), StandingPaths(3, 6, 2)
    here, away = rng.integers(0, 3, (50, 6)), rng.integers(0, 3, (40, 6))
    answered = (0, 1, 4, 5)
    rows, _ = walk(paths, here, tuple(range(6)))
    others, told = walk(paths, away, answered)
    totals = [r.sum(axis=0) for r in rows]
    for t, r in zip(answered, others, strict=True):
        totals[t] = totals[t] + r.sum(axis=0)
    found = StandingCounts.of(paths, [NoisySum(t, 1.0) for t in totals], 3)
    _, ours = walk(paths, here, tuple(range(6)))
    for t in (4, 5):
        both = np.concatenate([ours[t].cell, told[answered.index(t)].cell])
        assert found.counts[0, t] == pytest.approx(np.bincount(both, minlength=3))
    assert abs(found.counts[0, 3].sum() - 90) > 1  # so the month in between is not shown


@pytest.mark.statistical
def test_the_covariance_is_the_one_that_noise_has() -> None:
    """6,000 draws; the largest error of 64 covariances of unit noise is below .06 but once in a thousand sets."""
    rng, paths = np.random.default_rng(3), StandingPaths(2, 5, 1)
    stds = [1.0, 1.0, 1.3, 1.0, 0.8]  # sets of other sizes have other noise
    draws = np.array(
        [
            StandingCounts.of(paths, [NoisySum(s * rng.standard_normal(3), s) for s in stds], 2).counts
            for _ in range(6000)
        ]
    ).reshape(6000, 5, 2)
    found = StandingCounts.of(paths, [NoisySum(np.zeros(3), s) for s in stds], 2)
    told: Any = [[found.covariance(t, 0, u, 0) for u in range(5)] for t in range(5)]
    assert np.abs(np.cov(draws[:, :, 0].T) - np.array(told)).max() < 0.08
    assert found.covariance(1, 0, 3, 1) == 0 and NOWHERE == -1
