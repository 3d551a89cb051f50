"""What a join asks of a customer's rows, by the contract's roll-ups: a customer's rows are added up first.

A roll-up answers where it adds up the same rows: of the same table, `where` and `days`. Its bounds say what one
customer can add. Where there is none, the refusal says which to declare.
"""

from dataclasses import dataclass, field
from datetime import date, timedelta
from typing import Literal

from sqlglot import exp

from sfumato.common.contract import Aggregate, Column, Contract, Feature, Role, Table
from sfumato.server.query.names import OfRow, Scope
from sfumato.server.query.statement import inside, kind, refuse
from sfumato.server.query.where import COMPARED, TURNED, on_day
from sfumato.server.query.where import literal as value_of

MOST_DAYS = 36_500


@dataclass
class RowsKept:
    """Which rows of the joined table count: those with these values, from this day on."""

    where: dict[str, str] = field(default_factory=dict)
    since: date | None = None

    def take(self, scope: Scope, node: exp.Expr) -> None:
        """A condition on rows: a column equals a value, or the time is from a day on. Raises BadInput on all else."""
        sign = COMPARED.get(type(node))
        if sign is None:
            refuse(
                f"{kind(node)} of rows is not understood",
                "Rows are kept by column = value and by time >= day.",
            )
        left, right = inside(node.this), inside(node.expression)
        if isinstance(right, exp.Column):
            left, right, sign = right, left, TURNED[sign]
        named, value = scope.column(left), value_of(right)
        assert scope.joined is not None
        if not isinstance(named, OfRow):
            refuse("a row and a customer are compared")
        column = scope.joined.column(named.name)
        times = scope.joined.with_role(Role.TIME)
        if times and column == times[0] and sign in (">", ">=") and isinstance(value, str):
            self.since = on_day(value) + timedelta(days=sign == ">")
        elif sign == "=" and column.name not in self.where:
            self.where[column.name] = _text(column, value)
        else:
            refuse(f"rows cannot be kept by {column.name} {sign}", "Rows are kept by = and by time >= day.")

    def days(self, contract: Contract) -> int | None:
        """How many days back from the contract's as_of that is."""
        if self.since is None:
            return None
        if contract.as_of is None:
            refuse("the contract has no `as_of` to count days back from")
        days = (contract.as_of - self.since).days + 1
        return days if 0 < days < MOST_DAYS else refuse("no row lies in that time, by the contract's as_of")


def _text(column: Column, value: str | float | bool | None) -> str:
    """As a roll-up's `where` would have it."""
    if column.role in (Role.PII, Role.CUSTOMER_ID):
        refuse(f"{column.name} is personal data", "No question can use it.")
    if isinstance(value, str) and column.categories is not None and value in column.categories:
        return value
    if isinstance(value, bool) and column.type.value == "boolean":
        return str(value).lower()
    if (
        isinstance(value, float)
        and column.bounds is not None
        and column.bounds[0] <= value <= column.bounds[1]
    ):
        return f"{value:.0f}" if value == int(value) else repr(value)
    hint = f"It has: {', '.join(column.categories)}." if column.categories else ""
    return refuse(f"{column.name} has no such value in the contract", hint)


@dataclass(frozen=True)
class RowSums:
    """Finds the roll-up for a sum, or a count, of a customer's rows."""

    scope: Scope
    kept: RowsKept

    def rollup(self, aggregate: Literal["sum", "count"], column: str | None) -> Feature:
        """Raises BadInput that says which roll-up is to be declared."""
        contract, table = self.scope.contract, self.scope.joined
        assert table is not None
        days = self.kept.days(contract)
        for feature in contract.features:
            same = (feature.table, feature.days, dict(feature.where)) == (table.name, days, self.kept.where)
            if same and feature.aggregate.value == aggregate and self._same_column(feature, column):
                return feature
        return refuse(
            f"the contract has no roll-up for the {aggregate} of a customer's rows of {table.name}"
            f"{' in ' + column if column else ''}, which would say how much one customer can add",
            f"Declare it, with bounds, and ingest again:\n{self._declaration(aggregate, column, days)}",
        )

    def _same_column(self, feature: Feature, column: str | None) -> bool:
        """A count of a column that is always there counts rows."""
        assert self.scope.joined is not None

        def counted(name: str | None) -> str | None:
            return name if name and self.scope.joined and self.scope.joined.column(name).nullable else None

        if feature.aggregate is Aggregate.COUNT:
            return counted(feature.column) == counted(column)
        return feature.column == column

    def _declaration(self, aggregate: str, column: str | None, days: int | None) -> str:
        table = self.scope.joined
        assert table is not None
        lines = [f'name = "{table.name}_{column or "rows"}_{aggregate}"', f'table = "{table.name}"']
        lines += [f'aggregate = "{aggregate}"', *([f'column = "{column}"'] if column else [])]
        if self.kept.where:
            lines.append(
                "where = { " + ", ".join(f'"{k}" = "{v}"' for k, v in self.kept.where.items()) + " }"
            )
        lines += [f"days = {days}"] if days else []
        return "\n".join(f"  {line}" for line in ["[[features]]", *lines, "bounds = [LOW, HIGH]"])


def summed_column(table: Table, name: str) -> str:
    """Raises BadInput on a column that cannot be added up."""
    column = table.column(name)
    if column.role in (Role.PII, Role.CUSTOMER_ID) or column.type.value not in ("integer", "number"):
        refuse(f"{name} of {table.name} is no number that can be added up")
    return name
