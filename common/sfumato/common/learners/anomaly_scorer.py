"""Anomaly scores at the branch: each customer's, whether they are flagged, and the columns that stand out."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from sfumato.common.analyses.domains import Domain, domain
from sfumato.common.contract import Contract
from sfumato.common.errors import BadInput
from sfumato.common.learners.anomalies import Autoencoder
from sfumato.common.learners.components import Inputs
from sfumato.common.learners.curves import BinnedColumn
from sfumato.common.learners.encoding import model_features
from sfumato.common.learners.models import Reason, SavedModel, Scores
from sfumato.common.learners.reasons import largest

BINS = 10  # in whose words a reason says a number without public edges
ROWS = 8192  # scored at a time


@dataclass(frozen=True)
class AnomalyScorer:
    """An autoencoder and a threshold. A reason's amount is the column's part of the score."""

    inputs: Inputs
    model: Autoencoder
    threshold: float
    words: tuple[Domain, ...]

    @staticmethod
    def of(saved: SavedModel, contract: Contract) -> "AnomalyScorer":
        """Raises ValueError on a file that does not hold what it should."""
        facts, known = saved.header.parameters, {f.name: f for f in model_features(contract)}
        names, dimensions, threshold = (facts.get(k) for k in ("names", "dimensions", "threshold"))
        if not isinstance(names, list) or not names or any(not isinstance(n, str) for n in names):
            raise ValueError("parameter 'names' must name columns")
        if not set(names) <= set(known) or len(set(names)) < len(names):
            raise ValueError("parameter 'names' must name model columns of the contract, each once")
        if type(dimensions) is not int or dimensions < 1:
            raise ValueError("parameter 'dimensions' must be a whole number above 0")
        if type(threshold) is not float or not 0 < threshold < float("inf"):
            raise ValueError("parameter 'threshold' must be a number above 0")
        if set(saved.tensors) != {"autoencoder"} or saved.tensors["autoencoder"].dtype != np.float32:
            raise ValueError("expected one tensor 'autoencoder' of float32")
        inputs = Inputs(tuple(known[n] for n in names))
        model = Autoencoder.of(saved.tensors["autoencoder"].astype(np.float32), inputs.size, dimensions)
        return AnomalyScorer(inputs, model, threshold, tuple(domain(contract, n, BINS) for n in names))

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(s.name for s in self.inputs.specs)

    def score(self, columns: Mapping[str, Any], *, reasons: int = 0) -> Scores:
        """Raises BadInput on missing or ragged columns, or values that are not what the contract says."""
        if reasons < 0:
            raise BadInput("a score has 0 reasons or more")
        missing = [n for n in self.columns if n not in columns]
        if missing:
            raise BadInput(f"no column {missing[0]!r} to score", hint="The autoencoder reads it.")
        lengths = {len(columns[n]) for n in self.columns}
        if len(lengths) != 1:
            raise BadInput("the columns to score differ in length")
        (rows,) = lengths
        found, named = np.zeros(rows), list[tuple[Reason, ...]]()
        words = [BinnedColumn(d.name, d.cells) for d in self.words]
        for start in range(0, rows, ROWS):
            some = {n: columns[n][start : start + ROWS] for n in self.columns}
            try:
                parts = self.model.by_column(self.inputs, self.model.errors(self.inputs.matrix(some)))
                codes = np.stack([d.codes(some[d.name]) for d in self.words], axis=1) if reasons else None
            except pa.ArrowException:  # its text may hold a value
                raise BadInput(
                    "a column does not hold what the contract says",
                    hint="Ingest the data again under this contract.",
                ) from None
            found[start : start + ROWS] = parts.sum(axis=1)
            if codes is not None:
                named += largest(parts, np.maximum(codes, 0), words, reasons)
        return Scores(
            anomaly=found, flagged=found > self.threshold, reasons=tuple(named) if reasons else None
        )
