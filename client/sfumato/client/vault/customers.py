"""The branch's customers, read from the sealed store once and kept warm for the rounds that follow."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sfumato.client.features import analysis_frame, customer_frame, customer_tokens, holdout_mask
from sfumato.client.vault.store import Store
from sfumato.common.analyses.analysis import HELD_OUT
from sfumato.common.contract import Contract
from sfumato.common.job import Model
from sfumato.common.learners import churn_net
from sfumato.common.learners.bins import Schema
from sfumato.common.learners.encoding import Encoded
from sfumato.common.learners.learner import Coded
from sfumato.common.learners.schema import label_codes
from sfumato.privacy.keys import Keyring

MOST_FRAMES = 8
Inputs = tuple[int, tuple[str, ...], int]  # bins, and the roll-ups read by month with their number


@dataclass(frozen=True, repr=False)
class Customers:
    """The branch's customers as the learner sees them: encoded by the contract, split by a keyed hash."""

    encoded: Encoded
    labels: npt.NDArray[np.float32]
    holdout: npt.NDArray[np.bool_]

    @cached_property
    def training(self) -> tuple[Encoded, npt.NDArray[np.float32]]:
        """Inputs and labels of those who are trained on."""
        return self.encoded.take(~self.holdout), self.labels[~self.holdout]


class WarmData:
    """What rounds read of one store."""

    def __init__(self, store: Store, contract: Contract, keyring: Keyring) -> None:
        self._store = store
        self._contract = contract
        self._keyring = keyring
        self._learners: dict[Inputs, Customers] = {}
        self._coded: tuple[Schema, Coded] | None = None
        self._frames: dict[tuple[tuple[str, ...], date | None], Mapping[str, Any]] = {}

    def learners(self, model: Model) -> Customers:
        """All customers with their label, encoded for this model's net."""
        inputs = model.bins, model.sequence, model.months if model.sequence else 0
        if inputs not in self._learners:
            encoder = churn_net.encoder(self._contract, model)
            frame = customer_frame(self._store, self._contract, encoder.monthly)
            columns: dict[str, Any] = {n: frame.column(n) for n in frame.column_names}
            self._learners[inputs] = Customers(
                encoded=encoder.transform(columns),
                labels=frame.column("label").to_numpy().astype(np.float32),
                holdout=self.holdout,
            )
        return self._learners[inputs]

    def coded(self, schema: Schema) -> Coded:
        """All customers in the bins of this schema, with their label. Raises BadInput on another contract's."""
        if self._coded is None or self._coded[0] != schema:
            schema.require(self._contract)
            assert self._contract.label is not None
            columns = self.columns((*(c.name for c in schema.columns), self._contract.label.name))
            self._coded = schema, Coded(schema.codes(columns), label_codes(self._contract, columns))
        return self._coded[1]

    @cached_property
    def tokens(self) -> list[str]:
        """The customers', in the order of `columns` and `coded`."""
        return customer_tokens(self._store, self._contract)

    @cached_property
    def holdout(self) -> npt.NDArray[np.bool_]:
        """Which customers are never trained on, in the order of `columns` and `coded`."""
        return holdout_mask(self.tokens, self._keyring, self._contract.holdout_fraction)

    def columns(self, names: tuple[str, ...], as_of: date | None = None) -> Mapping[str, Any]:
        """These declared columns of all customers, in the clear, in one order; under HELD_OUT who is held out. As of
        another day than the contract's, if one is given."""
        key = names, as_of
        if key not in self._frames:
            while len(self._frames) >= MOST_FRAMES:
                self._frames.pop(next(iter(self._frames)))
            contract = self._contract.on(as_of)
            frame = analysis_frame(self._store, contract, [n for n in names if n != HELD_OUT])
            columns = {n: frame.column(n) for n in frame.column_names}
            if HELD_OUT in names:
                columns[HELD_OUT] = pa.chunked_array([pa.array(self.holdout)])
            self._frames[key] = columns
        return self._frames[key]
