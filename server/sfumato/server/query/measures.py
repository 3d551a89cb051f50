"""Aggregates of a statement to measures: COUNT, SUM, AVG, MEDIAN, QUANTILE; of rows by way of a roll-up."""

from dataclasses import dataclass, field
from typing import Literal

from sqlglot import exp

from sfumato.common.analyses.measures import Measure
from sfumato.common.contract import ColumnType
from sfumato.server.query.names import OfCustomer, OfRow, Scope
from sfumato.server.query.rows import RowSums, summed_column
from sfumato.server.query.statement import inside, kind, only, refuse
from sfumato.server.query.where import finite, literal

Ask = Literal["count", "sum", "mean", "quantile"]
QUANTILES = (exp.Quantile, exp.ApproxQuantile, exp.PercentileCont, exp.PercentileDisc)
AGGREGATES = (exp.AggFunc, exp.WithinGroup, exp.Filter, exp.Window, *QUANTILES)
WIDER = (exp.DType.DOUBLE, exp.DType.FLOAT, exp.DType.DECIMAL)
WHOLE = (exp.DType.INT, exp.DType.BIGINT, exp.DType.SMALLINT, exp.DType.TINYINT)


@dataclass(frozen=True)
class Asked:
    """What one aggregate asks, whatever it is called."""

    ask: Ask
    column: str | None = None
    low: float | None = None
    high: float | None = None
    at: float | None = None
    said: str = ""

    def measure(self, name: str, *, shown: bool = True) -> Measure:
        return Measure(
            name=name,
            ask=self.ask,
            column=self.column,
            low=self.low,
            high=self.high,
            at=self.at,
            shown=shown,
        )

    @property
    def same(self) -> tuple[object, ...]:
        return (self.ask, self.column, self.low, self.high, self.at)


def is_aggregate(node: exp.Expr) -> bool:
    return isinstance(node, AGGREGATES)


@dataclass
class Aggregates:
    """Reads aggregates within a scope. `present` is the roll-up by which a customer is known to have rows, once a
    question is about those alone."""

    scope: Scope
    rows: RowSums
    present: str | None = field(default=None, init=False)

    def read(self, node: exp.Expr) -> Asked:
        """Raises BadInput on what is no aggregate that is understood."""
        node = inside(node)
        match node:
            case exp.Count():
                return self._count(node)
            case exp.Sum() | exp.Avg():
                only(node, "this")
                return self._number("sum" if isinstance(node, exp.Sum) else "mean", node.this)
            case exp.Median():
                only(node, "this")
                return self._number("quantile", node.this, 0.5)
            case exp.WithinGroup():
                return self._within(node)
            case exp.Quantile() | exp.ApproxQuantile():
                only(node, "this", "quantile")
                return self._number("quantile", node.this, _rank(node.args.get("quantile")))
            case exp.PercentileCont() | exp.PercentileDisc():
                only(node, "this", "expression")
                return self._number("quantile", node.this, _rank(node.args.get("expression")))
            case exp.Min() | exp.Max():
                refuse(
                    "the smallest and the largest value are one customer's own",
                    "Ask QUANTILE(x, 0.01) or 0.99.",
                )
            case exp.Filter():
                refuse("FILTER is not understood", "Ask with WHERE, a question for each condition.")
            case exp.Column():
                refuse(
                    "rows of customers never leave a branch: a column is neither grouped by nor aggregated",
                    "Group by it, or ask for its COUNT, SUM, AVG or QUANTILE.",
                )
            case exp.Star():
                refuse("rows of customers never leave a branch", "Ask for COUNT(*), SUM, AVG or QUANTILE.")
        hint = "COUNT, SUM, AVG, MEDIAN and QUANTILE are understood, of a column; reckon with answers afterwards."
        return refuse(f"{kind(node)} is no aggregate that is understood", hint)

    def _count(self, node: exp.Count) -> Asked:
        only(node, "this", "big_int")
        what = inside(node.this) if node.this is not None else exp.Star()
        if isinstance(what, exp.Distinct):
            only(what, "expressions")
            one = inside(what.expressions[0]) if len(what.expressions) == 1 else None
            if not isinstance(one, exp.Column):
                refuse("COUNT(DISTINCT …) counts customers alone")
            if not self.scope.is_customer(self.scope.column(one)):
                refuse(
                    "COUNT(DISTINCT …) counts customers alone: which values a column has, the contract says",
                    f"Ask COUNT(DISTINCT {self.scope.contract.customer_table.customer_id.name}), or group by it.",
                )
            self._those_with_rows()
            return Asked("count", said="COUNT(DISTINCT customer)")
        if isinstance(what, exp.Star | exp.Literal):
            if isinstance(what, exp.Star):
                only(what)
            if self.scope.joined is None:
                return Asked("count", said="COUNT(*)")
            if self.scope.left:
                refuse(
                    "COUNT(*) of a LEFT JOIN counts customers without rows as a row each",
                    "Ask COUNT of a column of the rows, or COUNT(DISTINCT) of the customer.",
                )
            return self._of_rows("count", None, "COUNT(*)")
        found = self.scope.column(what)
        if isinstance(found, OfRow):
            return self._of_rows("count", found.name, f"COUNT({found.name})")
        if self.scope.joined is not None:
            refuse("a join counts a customer once for each row", "Ask COUNT(DISTINCT) of the customer.")
        if self.scope.is_customer(found):
            return Asked("count", said=f"COUNT({found.name})")
        return Asked("count", found.name, said=f"COUNT({found.name})")

    def _those_with_rows(self) -> None:
        """A customer without rows is not in a JOIN, and one whose rows are not kept is not in any."""
        if self.scope.joined is not None and not (
            self.scope.left and not self.rows.kept.where and self.rows.kept.since is None
        ):
            self.present = self.rows.rollup("count", None).name

    def _of_rows(self, ask: Literal["sum", "count"], column: str | None, said: str) -> Asked:
        return Asked("sum", self.rows.rollup(ask, column).name, said=said)

    def _number(self, ask: Ask, node: exp.Expr, at: float | None = None) -> Asked:
        if isinstance(node, exp.Distinct):
            refuse("sums of distinct values are not understood")
        column, low, high = self._cut(inside(node))
        words = {"sum": "SUM", "mean": "AVG", "quantile": "QUANTILE"}
        rank = "" if at is None else f", {at:g}"
        said = f"{words[ask]}({column.name}{rank})"
        if isinstance(column, OfCustomer):
            if self.scope.joined is not None:
                refuse(
                    "a join would count a customer's own number once for each row",
                    "Leave the join out for it.",
                )
            return Asked(ask, column.name, low, high, at, said)
        assert self.scope.joined is not None
        if ask != "sum" or low is not None or high is not None:
            refuse(
                "of a joined table's rows there are SUM and COUNT alone, as they are",
                "An average of rows is their SUM by their COUNT: ask for both.",
            )
        return self._of_rows("sum", summed_column(self.scope.joined, column.name), said)

    def _cut(self, node: exp.Expr) -> tuple[OfCustomer | OfRow, float | None, float | None]:
        """A column, maybe between ends: LEAST(GREATEST(x, low), high)."""
        if isinstance(node, exp.Least | exp.Greatest):
            only(node, "this", "expressions", "ignore_nulls")
            parts = [inside(node.this), *map(inside, node.expressions)]
            inner = [p for p in parts if not isinstance(p, exp.Literal | exp.Neg)]
            if len(inner) != 1 or len(parts) != 2:
                refuse("LEAST and GREATEST take a column and a number")
            end = literal(next(p for p in parts if p is not inner[0]))
            column, low, high = self._cut(inner[0])
            if not isinstance(end, float):
                refuse("LEAST and GREATEST take a column and a number")
            if isinstance(node, exp.Least):
                return column, low, end if high is None else min(end, high)
            if high is not None and end > high:
                refuse("GREATEST stands outside of LEAST", "Write LEAST(GREATEST(x, low), high).")
            return column, end if low is None else max(end, low), high
        if isinstance(node, exp.Cast) and node.to.this in (*WIDER, *WHOLE):
            only(node, "this", "to")
            cast = self.scope.column(inside(node.this))
            if node.to.this in WHOLE and not self._whole(cast):
                refuse("a cast would round", "Leave it out.")
            return cast, None, None
        if is_aggregate(node):
            refuse("an aggregate stands inside another")
        if not isinstance(node, exp.Column):
            refuse(
                f"{kind(node)} stands where a column is expected",
                "Aggregates are of a column, maybe cut: LEAST(GREATEST(x, low), high).",
            )
        return self.scope.column(node), None, None

    def _whole(self, column: OfCustomer | OfRow) -> bool:
        table = self.scope.contract.customer_table
        declared = isinstance(column, OfCustomer) and table.has(column.name)
        return declared and table.column(column.name).type in (ColumnType.INTEGER, ColumnType.BOOLEAN)

    def _within(self, node: exp.WithinGroup) -> Asked:
        only(node, "this", "expression")
        percentile, order = node.this, node.expression
        if not isinstance(percentile, exp.PercentileCont | exp.PercentileDisc) or not isinstance(
            order, exp.Order
        ):
            refuse("WITHIN GROUP goes with PERCENTILE_CONT")
        only(percentile, "this")
        ordered = order.expressions[0]
        if len(order.expressions) != 1 or ordered.args.get("desc"):
            refuse("PERCENTILE_CONT takes one column, in rising order")
        return self._number("quantile", ordered.this, _rank(percentile.this))


def _rank(node: exp.Expr | None) -> float:
    if not isinstance(node, exp.Literal) or node.is_string:
        refuse("a quantile's rank is one number between 0 and 1")
    rank = finite(node.this)
    return (
        rank
        if 0 < rank < 1
        else refuse("a quantile's rank lies between 0 and 1", "The ends are one customer's.")
    )
