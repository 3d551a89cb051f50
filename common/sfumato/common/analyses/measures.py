"""One measure of a query's groups: which blocks of the sum it is read from, how, and how well it will be known."""

from dataclasses import dataclass
from math import hypot, inf, sqrt
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from sfumato.common.analyses.analysis import NoisySum
from sfumato.common.analyses.blocks import Blocks, Key, Source
from sfumato.common.analyses.conditions import Finite
from sfumato.common.analyses.estimates import REACH, Number, number, quotient
from sfumato.common.analyses.parts import Unit
from sfumato.common.analyses.quantities import Presence, Quantity
from sfumato.common.contract import Contract
from sfumato.common.errors import BadInput

TO_A_MEAN, TO_A_RANK = (
    1 / 3,
    16.0,
)  # what a count's variance costs a mean somewhere in its range, and a quantile
EVERYBODY: Key = ("count", None)
Name = Annotated[str, Field(pattern=r"^\w[\w .,()*/%\-]{0,79}$")]


class Measure(BaseModel):
    """What to ask of a group: its customers (of a column: those who have a value), or of a column's numbers, brought
    between `low` and `high`, their sum, mean, or quantile of rank `at`. The mean of yes and no is a share."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Name
    ask: Literal["count", "sum", "mean", "quantile"]
    column: str | None = None
    low: Finite | None = None
    high: Finite | None = None
    at: Annotated[float, Field(gt=0, lt=1)] | None = None
    shown: bool = True


@dataclass(frozen=True)
class Measured:
    """A measure over a contract. `source` is None for all customers."""

    measure: Measure
    source: Source

    @classmethod
    def of(cls, contract: Contract, m: Measure) -> "Measured":
        """Raises BadInput on a column that cannot be asked that, and on a key that is missing or says nothing."""
        cut = m.low is not None or m.high is not None
        if (m.at is None) is (m.ask == "quantile") or (m.column is None and m.ask != "count"):
            raise BadInput(
                "question.measures: all but a count need a column, and a quantile alone its rank `at`"
            )
        if m.ask == "count" and cut:
            raise BadInput("question.measures: a count has no ends to be cut at")
        if m.column is None:
            return cls(m, None)
        if m.ask == "count":
            return cls(m, Presence.of(contract, m.column))
        return cls(m, Quantity.of(contract, m.column, m.low, m.high))

    @property
    def column(self) -> str | None:
        return self.measure.column

    @property
    def unit(self) -> Unit:
        return self.source.unit if isinstance(self.source, Quantity) else "customers"

    @property
    def _present(self) -> Key:
        """The count of customers with a value: everybody's, where nobody lacks it."""
        source = self.source.presence if isinstance(self.source, Quantity) else self.source
        return ("present", source) if source is not None and source.nullable else EVERYBODY

    def costs(self) -> list[tuple[Key, float]]:
        """The blocks that it is read from, and what their variance costs it, in units of its own range."""
        of = self.source
        if not isinstance(of, Quantity):
            return [(self._present, 1.0)]
        if self.measure.ask == "quantile":
            return [(("levels", of), TO_A_RANK)]
        if self.measure.ask == "mean":
            return [(self._present, TO_A_MEAN), (("sum", of), 1.0)]
        most = max(abs(of.low), abs(of.high))
        return [(self._present, (of.middle / most) ** 2), (("sum", of), (of.half / most) ** 2)]

    def read(self, blocks: Blocks, total: NoisySum, group: int) -> Number:
        """Of one group; the whole range where noise drowns it."""
        of = self.source
        if not isinstance(of, Quantity):
            n, std = self._one(blocks, total, group, self._present)
            return number(n, n - REACH * std, n + REACH * std)
        if self.measure.at is not None:
            block = blocks.each["levels", of]
            counts = block.numbers(total.values, group)
            return of.grid.read(counts, block.noise(total.std), self.measure.at, REACH)._asdict()
        s, s_std = self._one(blocks, total, group, ("sum", of))
        n, n_std = self._one(blocks, total, group, self._present)
        if self.measure.ask == "mean":
            found = quotient(s, n, s_std**2, n_std**2, 0.0, -1.0, 1.0)
            return {end: of.middle + of.half * place for end, place in found.items()}
        value, reach = of.middle * n + of.half * s, REACH * hypot(of.middle * n_std, of.half * s_std)
        least, most = (0.0 if of.low >= 0 else -inf), (0.0 if of.high <= 0 else inf)
        ends = {"value": value, "low": value - reach, "high": value + reach}
        return {end: min(max(x, least), most) for end, x in ends.items()}

    def _one(self, blocks: Blocks, total: NoisySum, group: int, key: Key) -> tuple[float, float]:
        """A number of one block with its noise; nothing of one that was not needed."""
        block = blocks.each.get(key)
        return (float(block.numbers(total.values, group)[0]), block.noise(total.std)) if block else (0.0, 0.0)

    def reach(self, blocks: Blocks, std: float, customers: float) -> float:
        """Half of the expected interval's width in a group of so many customers with a value, in the measure's unit;
        of a quantile, which share of the group its rank may be off by."""
        of = self.source

        def noise(key: Key) -> float:
            block = blocks.each.get(key)
            return REACH * block.noise(std) if block else 0.0

        if not isinstance(of, Quantity):
            return noise(self._present)
        if self.measure.at is not None:
            return noise(("levels", of)) * of.grid.rank_noise(self.measure.at) / customers
        if self.measure.ask == "mean":
            return of.half * hypot(noise(("sum", of)), noise(self._present) * sqrt(TO_A_MEAN)) / customers
        return hypot(of.middle * noise(self._present), of.half * noise(("sum", of)))
