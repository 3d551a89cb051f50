"""In which months a customer had a row of another table: months of 30 days that end on the contract's as_of, as in
learners.encoding.Monthly. Month 0 is the latest; what is older than the oldest month counts in that."""

from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sfumato.common.analyses.listed import Listed, listed
from sfumato.common.contract import ColumnType, Contract, Role
from sfumato.common.errors import BadInput
from sfumato.common.learners.encoding import Monthly

OLDEST = 120  # months: ten years

Bools = npt.NDArray[np.bool_]


def last_day(as_of: date, month: int) -> date:
    """Of the month that so many months came after."""
    return as_of - timedelta(days=Monthly.DAYS * month)


@dataclass(frozen=True)
class ActiveMonths:
    """A table's column of time, read by month."""

    column: Listed
    as_of: date

    @staticmethod
    def of(contract: Contract, table: str) -> "ActiveMonths":
        """Raises BadInput on a table that is not declared or has no time, and a contract without as_of."""
        others = {t.name: t for t in contract.tables if t.name != contract.customers}
        if table not in others:
            raise BadInput(
                f"{table!r} is no table beside the customers'",
                hint=f"Contract {contract.name!r} has: {', '.join(others) or 'no other table'}.",
            )
        times = [
            c for c in others[table].with_role(Role.TIME) if c.type in (ColumnType.DATE, ColumnType.DATETIME)
        ]
        if not times or contract.as_of is None:
            raise BadInput(
                f"table {table!r} cannot be read by month",
                hint="It takes a date of role time, and the contract's as_of.",
            )
        return ActiveMonths(listed(contract, f"{table}.{times[0].name}"), contract.as_of)

    def until(self, month: int) -> str:
        """The last day of a month."""
        return last_day(self.as_of, month).isoformat()

    def read(self, values: Any) -> Bools:
        """Lists of dates, one a customer, to bool [n, OLDEST], the oldest month first."""
        lists = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
        if not isinstance(lists, pa.Array):
            lists = pa.array(lists, type=pa.list_(pa.date32()))
        flat = lists.flatten().cast(pa.timestamp("us")).cast(pa.date32(), safe=False)
        sizes = np.asarray(lists.value_lengths().fill_null(0), dtype=np.int64)
        known = np.asarray(flat.is_valid())
        customer = np.repeat(np.arange(len(sizes)), sizes)[known]
        days = np.asarray(flat.drop_null().cast(pa.int32()), dtype=np.int64)
        month = ((self.as_of - date(1970, 1, 1)).days - days) // Monthly.DAYS
        active = np.zeros((len(sizes), OLDEST), dtype=np.bool_)
        past = month >= 0
        active[customer[past], OLDEST - 1 - np.minimum(month[past], OLDEST - 1)] = True
        return active
