"""Listed columns: all of a customer's rows of another table, as a question names them: "transactions.category".

A branch gives such a column as one list a customer, newest row first (by the table's first column of role time; rows
of one moment in an order of their own, the same in every column), at most MOST_ROWS of them, and none after the
contract's as_of. Columns of one table run side by side. What one customer may add is the analysis' to bound.
"""

from dataclasses import dataclass

from sfumato.common.contract import Column, Contract, Role, Table
from sfumato.common.errors import BadInput

MOST_ROWS = 1000
_SEALED = (Role.PII, Role.CUSTOMER_ID)


@dataclass(frozen=True)
class Listed:
    """A column of a table with several rows a customer."""

    table: Table
    column: Column

    @property
    def name(self) -> str:
        return f"{self.table.name}.{self.column.name}"


def is_listed(contract: Contract, name: str) -> bool:
    """Whether this names a column of another table: a name of the customers table or of a roll-up comes first."""
    table, dot, _ = name.partition(".")
    taken = contract.customer_table.has(name) or any(f.name == name for f in contract.features)
    others = {t.name for t in contract.tables} - {contract.customers}
    return bool(dot) and not taken and table in others


def listed(contract: Contract, name: str, *, text: bool = False) -> Listed:
    """The table and the column. Raises BadInput on what is not declared, personal data, the customer id, and free
    text where no `text` is read."""
    if not is_listed(contract, name):
        others = [t.name for t in contract.tables if t.name != contract.customers]
        raise BadInput(
            f"{name!r} is no column of another table",
            hint=f"Write table.column; contract {contract.name!r} has: {', '.join(others) or 'no other table'}.",
        )
    table, _, column = name.partition(".")
    found = contract.table(table)
    sealed = _SEALED if text else (*_SEALED, Role.TEXT)
    usable = [c.name for c in found.columns if c.role not in sealed]
    if column not in usable:
        what = "not declared"
        if found.has(column):
            is_text = found.column(column).role is Role.TEXT
            what = "free text" if is_text else "personal data or the customer id"
        raise BadInput(f"{name!r} is {what}", hint=f"Table {table!r} has: {', '.join(usable) or 'nothing'}.")
    return Listed(found, found.column(column))
