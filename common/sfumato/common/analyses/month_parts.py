"""Counts by month, state and group as the parts of an answer: with shares, and changes from the month before."""

from collections.abc import Iterator, Sequence
from math import sqrt
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from sfumato.common.analyses.domains import Domain
from sfumato.common.analyses.estimates import REACH, Number, number, quotient
from sfumato.common.analyses.parts import Unit, part

Floats = npt.NDArray[np.float64]
MEASURES: dict[str, Unit] = {"customers": "customers", "share": "share", "change": "customers"}


class Counted(Protocol):
    """Counts by group, month and state [G, M, S]; groups' noises are independent, and of one size."""

    @property
    def counts(self) -> Floats: ...

    @property
    def everyone(self) -> Floats:
        """All customers by group and month [G, M]."""

    def covariance(self, t: int, s: int, u: int, v: int) -> float:
        """Of the noise of state s in month t and of v in u, in one group."""

    def whole(self, t: int) -> tuple[float, float]:
        """Variance of one group's `everyone` in month t, and its covariance with each of its counts then."""


def month_parts(
    found: Counted,
    until: Sequence[str],
    follow: str,
    states: tuple[str, ...],
    group: Domain | None,
    shown: Sequence[bool] | None = None,
) -> list[dict[str, Any]]:
    """Parts "months", of all customers, and "groups" if there are any. `until` are the months' last days; a month
    that is not `shown` has no rows, and the one after it no changes."""
    seen = [True] * len(until) if shown is None else shown
    of = ["until", follow]
    every = list(range(found.counts.shape[0]))
    parts = [part("months", of, MEASURES, _rows(found, until, states, seen, every, []))]
    if group is not None:
        rows = (
            row
            for g, name in enumerate(group.cells)
            for row in _rows(found, until, states, seen, [g], [name])
        )
        parts.append(part("groups", [group.name, *of], MEASURES, rows))
    return parts


def restless_part(value: float, std: float, found: Counted) -> dict[str, Any]:
    """The part that says how many would have changed more often, and their share of the latest month's customers."""
    units: dict[str, Unit] = {"customers": "customers", "share": "share"}
    everyone_now = float(found.everyone[:, -1].sum())
    whole = found.whole(found.everyone.shape[1] - 1)[0] * len(found.everyone)
    row = {
        "of": [],
        "customers": number(value, value - REACH * std, value + REACH * std),
        "share": quotient(value, everyone_now, std**2, whole, 0.0),
    }
    return part("restless", [], units, [row])


def everyone(found: Counted, t: int) -> Number:
    """All customers of month t."""
    value, reach = float(found.everyone[:, t].sum()), REACH * sqrt(found.whole(t)[0] * len(found.everyone))
    return number(value, value - reach, value + reach)


def _rows(
    found: Counted,
    until: Sequence[str],
    states: tuple[str, ...],
    shown: Sequence[bool],
    groups: list[int],
    named: list[str],
) -> Iterator[dict[str, Any]]:
    """Of some groups together."""
    many, counts = len(groups), found.counts[groups].sum(axis=0)
    for t, day in enumerate(until):
        if not shown[t]:
            continue
        whole, shared = (many * v for v in found.whole(t))
        everybody = float(found.everyone[groups, t].sum())
        for s, state in enumerate(states):
            value, spread = float(counts[t, s]), many * found.covariance(t, s, t, s)
            reach = REACH * sqrt(spread)
            row: dict[str, Any] = {
                "of": [*named, day, state],
                "customers": number(value, value - reach, value + reach),
                "share": quotient(value, everybody, spread, whole, shared),
            }
            if t and shown[t - 1]:
                before = spread + many * (
                    found.covariance(t - 1, s, t - 1, s) - 2 * found.covariance(t, s, t - 1, s)
                )
                row["change"] = _moved(value - float(counts[t - 1, s]), REACH * sqrt(before))
            yield row


def _moved(value: float, reach: float) -> Number:
    return {"value": value, "low": value - reach, "high": value + reach}
