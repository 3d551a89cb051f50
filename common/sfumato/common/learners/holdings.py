"""What a customer holds and what they took up lately, from the lists of their rows (see analyses.listed)."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from sfumato.common.learners.encoding import category_codes

DAYS_A_MONTH = 365 / 12
NEVER = -1
ENDS = (91, 183, 365, 730, 1461)  # days
BANDS = (
    "up to 3 months",
    "3 to 6 months",
    "6 to 12 months",
    "1 to 2 years",
    "2 to 4 years",
    "longer",
    "never",
)

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, repr=False)
class Holdings:
    """Of n customers and P products. `before` and `took` bool [n, P]: held when the window began, first opened within
    it. `since` int64 [n]: days from the latest opening of any product to the window's beginning, or NEVER."""

    before: npt.NDArray[np.bool_]
    took: npt.NDArray[np.bool_]
    since: Ints

    @property
    def bands(self) -> Ints:
        """Each customer's place in BANDS, int64 [n]."""
        return np.where(self.since == NEVER, len(ENDS) + 1, np.searchsorted(ENDS, self.since, side="right"))


def holdings(
    products: Any, opened: Any, names: Sequence[str], categories: Sequence[str], as_of: date, months: int
) -> Holdings:
    """From list columns that run side by side, over the `months` that end with `as_of`.

    What was opened later is not there yet; what has no date counts as held before. Raises ValueError on lists of
    other lengths.
    """
    lists, days = _lists(products), _lists(opened)
    owner = np.asarray(pc.list_parent_indices(lists), dtype=np.int64)
    product, age = category_codes(pc.list_flatten(lists), categories), _ages(pc.list_flatten(days), as_of)
    if len(age) != len(owner):
        raise ValueError("Expected lists that run side by side.")
    window = round(months * DAYS_A_MONTH)
    place = np.full(len(categories) + 2, -1)  # the last two: what is not on the list, and null
    place[[categories.index(n) for n in names]] = np.arange(len(names))
    at = place[product]
    held = np.zeros((2, len(lists), len(names)), dtype=np.bool_)
    for when, rows in enumerate((age >= window, (age >= 0) & (age < window))):
        inside = rows & (at >= 0)
        held[when, owner[inside], at[inside]] = True
    since = np.full(len(lists), np.iinfo(np.int64).max)
    dated = (age >= window) & (age < _UNDATED)
    np.minimum.at(since, owner[dated], age[dated] - window)
    since[since == np.iinfo(np.int64).max] = NEVER
    return Holdings(held[0], held[1] & ~held[0], since)


_UNDATED = np.iinfo(np.int32).max


def _ages(opened: pa.Array, as_of: date) -> Ints:
    """Days from each date to as_of; _UNDATED for a null."""
    day = opened.cast(pa.timestamp("us")).cast(pa.date32(), safe=False).cast(pa.int32())
    since = as_of.toordinal() - date(1970, 1, 1).toordinal()
    ages = since - np.asarray(day.fill_null(0), dtype=np.int64)
    return np.where(np.asarray(opened.is_null()), _UNDATED, ages)


def _lists(values: Any) -> pa.Array:
    return values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
