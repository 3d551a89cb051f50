"""Lifetime value at the branch: P(alive), purchases to come and their value, of each own customer."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from sfumato.common.analyses.clv import Question
from sfumato.common.analyses.purchases import Purchases
from sfumato.common.contract import Contract
from sfumato.common.errors import BadInput
from sfumato.common.learners.lifetime import Lifetime, Outlook
from sfumato.common.learners.models import SavedModel, Scores


class LifetimeScorer:
    """Both models' parameters, and where purchases are found. NaN of who never bought; there are no reasons."""

    def __init__(self, lifetime: Lifetime, purchases: Purchases) -> None:
        self._lifetime, self._purchases = lifetime, purchases

    @staticmethod
    def of(saved: SavedModel, contract: Contract) -> "LifetimeScorer":
        """Raises ValueError on a file of another form, BadInput where the contract does not have its columns."""
        question = Question.model_validate(saved.header.parameters.get("question"))
        numbers = saved.tensors.get("parameters")
        if set(saved.tensors) != {"parameters"} or numbers is None or numbers.dtype != np.float64:
            raise ValueError("expected one tensor 'parameters' of float64")
        found = Lifetime.of_numbers(numbers.astype(np.float64), question.months, question.discount)
        if (found.values is None) != (question.amount is None):
            raise ValueError("gamma-gamma's parameters go with a column of amounts")
        return LifetimeScorer(found, Purchases.of(question, contract))

    @property
    def columns(self) -> tuple[str, ...]:
        return self._purchases.columns

    def score(self, columns: Mapping[str, Any], *, reasons: int = 0) -> Scores:
        missing = [n for n in self.columns if n not in columns]
        if missing:
            raise BadInput(f"no column {missing[0]!r} to score", hint="Lifetime value is made of it.")
        try:
            who, histories = self._purchases.read(columns)
        except ValueError as e:
            raise BadInput(f"the columns to score do not go together: {e}") from None
        found, customers = self._lifetime.outlook(histories), len(columns[self.columns[0]])

        def of_all(values: Any) -> Any:
            rows = np.full(customers, np.nan)
            rows[who] = values
            return rows

        worth = (None, None) if found.lifetime is None else (of_all(found.mean), of_all(found.lifetime))
        return Scores(outlook=Outlook(of_all(found.alive), of_all(found.purchases), *worth))
