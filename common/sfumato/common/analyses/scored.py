"""A score that customers have: a declared column, or the points of a finished scorecard, made at the branch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from sfumato.common.analyses.analysis import HELD_OUT
from sfumato.common.analyses.domains import domain
from sfumato.common.analyses.latest import latest
from sfumato.common.analyses.listed import is_listed, listed
from sfumato.common.contract import NUMERIC, Contract, Role, validation_lines
from sfumato.common.errors import BadInput
from sfumato.common.learners.bins import Schema
from sfumato.common.learners.models import ModelHeader, SavedModel
from sfumato.common.learners.scorecard import Scorecard

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Card:
    """A scorecard with its bins. Public."""

    card: Scorecard
    schema: Schema

    @staticmethod
    def of(header: ModelHeader, contract: Contract) -> "Card":
        """Raises BadInput on a model that is no scorecard, of another contract, or that contradicts itself."""
        if header.kind != "scorecard" or header.schema_ is None:
            raise BadInput(
                f"question.known_model: {header.name!r} is a model of kind {header.kind}",
                hint="Give the model.safetensors of a finished scorecard.",
            )
        SavedModel(header, {}).require(contract)
        schema = header.schema_.model_copy(update={"contract": contract.hash})  # as `require` allows
        schema.require(contract)
        try:
            card = Scorecard.model_validate(header.parameters.get("card"))
        except ValidationError as e:
            raise BadInput(f"question.known_model: not a scorecard\n  {validation_lines(e)}") from None
        if [(a.column, len(a.bins)) for a in card.attributes] != [
            (c.name, len(c.counts)) for c in schema.columns
        ]:
            raise BadInput("question.known_model: its card and its schema have other columns or bins")
        return Card(card, schema)


@dataclass(frozen=True)
class Score:
    """Where a customer's score comes from: a card, or a column. `held_out`: only customers that no model of this
    contract was trained on have one."""

    card: Card | None
    column: str | None
    held_out: bool

    @staticmethod
    def of(contract: Contract, known: ModelHeader | None, column: str | None, held_out: bool) -> "Score":
        """Raises BadInput unless it is one of the two, and a number."""
        if (known is None) == (column is None):
            raise BadInput(
                "question: a score comes from `known_model` or from the column `score`",
                hint="Give one of them.",
            )
        if known is not None:
            return Score(Card.of(known, contract), None, held_out)
        assert column is not None
        if not any(f.name == column for f in contract.features):
            if is_listed(contract, column):
                declared = listed(contract, column).column
            else:
                domain(contract, column, 2)  # says what is wrong with the name
                declared = contract.customer_table.column(column)
            if declared.type not in NUMERIC or declared.role is Role.LABEL:
                raise BadInput(f"question.score: {column!r} is no number")
        return Score(None, column, held_out)

    @property
    def columns(self) -> tuple[str, ...]:
        own = (
            tuple(c.name for c in self.card.schema.columns) if self.card is not None else (str(self.column),)
        )
        return (*own, *[HELD_OUT] * self.held_out)

    def values(self, columns: Mapping[str, Any]) -> Floats:
        """Float64 [n]; NaN for who has none."""
        if self.card is not None:
            found = self.card.card.scores(self.card.schema.codes(columns)).astype(np.float64)
        else:
            numbers = latest(columns[str(self.column)]).cast("float64", safe=False)
            found = np.asarray(numbers.fill_null(np.nan), dtype=np.float64)
        if self.held_out:
            found = np.where(np.asarray(columns[HELD_OUT], dtype=np.bool_), found, np.nan)
        return found
