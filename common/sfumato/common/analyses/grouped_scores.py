"""Is the model as good for everybody? The score histogram of the held-out customers, whole and for declared groups.

Question       The columns whose cells are groups; bins on the log-odds.
Contribution   One customer adds one to one cell of (label, score) of the whole, and to one of (group, label, score)
               for each column: over G columns the l2 norm is sqrt(1 + G).
Reading        The whole as `score_histogram` reads it, and each group alike. What the noise drowns says so by an
               interval that is the whole range.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import sqrt
from typing import Any

import numpy as np
import numpy.typing as npt

from sfumato.common.analyses import score_histogram
from sfumato.common.analyses.analysis import NoisySum
from sfumato.common.analyses.domains import Domain, domain
from sfumato.common.contract import Contract
from sfumato.common.contributions import Cells
from sfumato.common.errors import BadInput

GROUPS_OF_A_NUMBER = 4
OF_GROUPS = ("auc", "recall", "precision", "base_rate", "customers")
DRAWS = 200  # a group's intervals need no third digit

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class GroupedScores:
    """[whole | a column's groups one after the other | the next column's], each 2 * bins counts."""

    groups: tuple[Domain, ...]
    bins: int

    @staticmethod
    def of(contract: Contract, groups: tuple[str, ...], bins: int) -> "GroupedScores":
        """Raises BadInput on a column that cannot be counted, or that is the label."""
        label = contract.label
        if label is not None and label.name in groups:
            raise BadInput(f"evaluation.groups: {label.name!r} is the label")
        return GroupedScores(tuple(domain(contract, g, GROUPS_OF_A_NUMBER) for g in groups), bins)

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(g.name for g in self.groups)

    @property
    def max_norm(self) -> float:
        return sqrt(1 + len(self.groups))

    @property
    def length(self) -> int:
        return 2 * self.bins * (1 + sum(len(g.cells) for g in self.groups))

    def contribute(
        self, logits: Floats, labels: npt.NDArray[np.generic], columns: Mapping[str, Any]
    ) -> Cells:
        """From log-odds and labels (0 or 1) of n customers, and the groups' columns of the same customers."""
        own = score_histogram.cells(logits, labels, self.bins)
        cells, start = [own], 2 * self.bins
        for group in self.groups:
            code = group.codes(columns[group.name])
            cells.append(np.where(code < 0, -1, start + 2 * self.bins * code + own))
            start += 2 * self.bins * len(group.cells)
        return Cells(np.stack(cells, axis=1), np.ones(len(cells)), self.length)

    def whole(self, total: NoisySum) -> Floats:
        """The counts of everybody, float64 [2 * bins]."""
        return total.values[: 2 * self.bins]

    def read(self, total: NoisySum) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
        """{column: {group: {metric: {value, low, high}}}}, of OF_GROUPS."""
        parts = iter(np.split(total.values, len(total.values) // (2 * self.bins))[1:])
        return {
            group.name: {cell: _metrics(next(parts), total.std**2) for cell in group.cells}
            for group in self.groups
        }


def _metrics(counts: Floats, noise_variance: float) -> dict[str, dict[str, float]]:
    found = score_histogram.read(counts, noise_variance, draws=DRAWS)
    return {name: asdict(getattr(found, name)) for name in OF_GROUPS}
