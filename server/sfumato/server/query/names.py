"""What a name in a statement means: a column of the customers or a roll-up, or one of a joined table's rows."""

import re
from dataclasses import dataclass

from sqlglot import exp

from sfumato.common.analyses.conditions import READABLE
from sfumato.common.contract import Contract, Table
from sfumato.server.query.statement import kind, only, refuse

PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,39}")


@dataclass(frozen=True)
class OfCustomer:
    """A column with one value a customer."""

    name: str


@dataclass(frozen=True)
class OfRow:
    """A column of the joined table, in which a customer may have many rows."""

    name: str


@dataclass(frozen=True)
class Scope:
    """The tables of a statement, by the names it gives them."""

    contract: Contract
    customers: str
    joined: Table | None = None
    joined_as: str = ""
    left: bool = False  # a customer without rows counts too

    @classmethod
    def of(cls, select: exp.Select, contract: Contract) -> "Scope":
        """Raises BadInput on all but the customers' table, by itself or with one other joined by the customer."""
        source = select.args.get("from_")
        if source is None:
            refuse("it says not FROM which table", f"Ask FROM {contract.customers}.")
        table, alias = _table(source.this, contract)
        if table.name != contract.customers:
            refuse(
                f"{table.name} has rows, not customers",
                f"A customer's rows are added up first: FROM {contract.customers} JOIN {table.name} "
                f"USING ({contract.customer_table.customer_id.name}).",
            )
        joins = select.args.get("joins") or []
        if not joins:
            return cls(contract, alias)
        if len(joins) > 1:
            refuse("rows of two tables would be multiplied with each other", "Join one table at a time.")
        join = joins[0]
        only(join, "this", "using", "on", "side", "kind")
        other, other_alias = _table(join.this, contract)
        side, sort = (str(join.args.get(a) or "").upper() for a in ("side", "kind"))
        scope = cls(contract, alias, other, other_alias, side == "LEFT")
        if side not in ("", "LEFT") or sort not in ("", "INNER", "OUTER") or other.name == table.name:
            refuse("only JOIN and LEFT JOIN of another table are understood")
        if not scope.by_customer(join):
            refuse(
                "tables are joined by the customer alone",
                f"Write USING ({contract.customer_table.customer_id.name}).",
            )
        return scope

    def by_customer(self, join: exp.Join) -> bool:
        assert self.joined is not None
        own, other = self.contract.customer_table.customer_id.name, self.joined.customer_id.name
        using, on = join.args.get("using"), join.args.get("on")
        if using:
            return own == other and [str(u.name).lower() for u in using] == [own.lower()]
        if not isinstance(on, exp.EQ):
            return False
        sides = [on.this, on.expression]
        if not all(isinstance(s, exp.Column) for s in sides):
            return False
        ends = {(s.table.lower(), s.name.lower()) for s in sides}
        return ends == {(self.customers.lower(), own.lower()), (self.joined_as.lower(), other.lower())}

    def column(self, node: exp.Expr) -> OfCustomer | OfRow:
        """Raises BadInput on what is no column, is not declared, or could be two."""
        if not isinstance(node, exp.Column) or isinstance(node.this, exp.Star):
            refuse(f"{kind(node)} stands where a column's name is expected")
        only(node, "this", "table")
        table, name = node.table.lower(), node.name
        own, row = self._customers(name), self._rows(name)
        if table:
            if table not in (self.customers.lower(), self.joined_as.lower() if self.joined else None):
                refuse("a column is named of a table that the statement has not")
            own, row = (own, None) if table == self.customers.lower() else (None, row)
        if own and row and own != self.contract.customer_table.customer_id.name:
            refuse(
                f"{own} is a column of both tables",
                f"Write {self.customers}.{own} or {self.joined_as}.{row}.",
            )
        if own:
            return OfCustomer(own)
        if row:
            return OfRow(row)
        return refuse(f"column {said(name)}is not declared in the contract", f"There are: {self._known()}.")

    def knows(self, name: str) -> bool:
        """Whether some column is called so."""
        return self._customers(name) is not None or self._rows(name) is not None

    def is_customer(self, found: OfCustomer | OfRow) -> bool:
        """Whether this is the customer's id, of either table."""
        own = self.contract.customer_table.customer_id.name
        other = self.joined.customer_id.name if self.joined else None
        return found == OfCustomer(own) or (found == OfRow(other or "") and bool(other))

    def _customers(self, name: str) -> str | None:
        table = self.contract.customer_table
        return _match(name, [*(c.name for c in table.columns), *(f.name for f in self.contract.features)])

    def _rows(self, name: str) -> str | None:
        return _match(name, [c.name for c in self.joined.columns]) if self.joined else None

    def _known(self) -> str:
        columns = [c.name for c in self.contract.customer_table.columns if c.role in READABLE]
        return ", ".join([*columns, *(f.name for f in self.contract.features)])


def said(name: str) -> str:
    """A name as the statement has it, where it is a plain one: a stranger text is not repeated."""
    return f"{name!r} " if PLAIN.fullmatch(name) else ""


def _table(node: exp.Expr, contract: Contract) -> tuple[Table, str]:
    if not isinstance(node, exp.Table) or not isinstance(node.this, exp.Identifier):
        refuse(f"{kind(node)} stands where a table's name is expected")
    only(node, "this", "alias")
    alias = node.args.get("alias")
    if alias is not None:
        only(alias, "this")
    name = _match(node.name, [t.name for t in contract.tables])
    if name is None:
        refuse(
            f"table {said(node.name)}is not declared in the contract",
            f"There are: {', '.join(t.name for t in contract.tables)}.",
        )
    return contract.table(name), node.alias or name


def _match(name: str, declared: list[str]) -> str | None:
    """As SQL compares names: of whatever case, but the very name where several differ by case alone."""
    if name in declared:
        return name
    found = [d for d in declared if d.lower() == name.lower()]
    return found[0] if len(found) == 1 else None
