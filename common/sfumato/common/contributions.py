"""What each customer adds to a sum, before anything protects it. Inside a vault only.

An analysis says who adds what and how long a customer's vector may be (its l2 bound); `privacy.clipping` clips to
that bound, so that a mistake here can spoil an answer but not a promise.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True, repr=False)
class Cells:
    """Customer i adds weights[j] to cell cells[i, j]; a cell of -1 adds nothing. int64 [n, k], float64 [k].

    For counts: one column of `cells` a marginal, each with cells of its own.
    """

    cells: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float64]
    length: int


@dataclass(frozen=True, slots=True, repr=False)
class Rows:
    """Customer i adds this row; float64 [n, d]."""

    rows: npt.NDArray[np.float64]


Contributions = Cells | Rows
