"""Lists: each customer's rows of another table, newest first, for analyses that look at more than a roll-up."""

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sfumato.client.vault.database import quoted
from sfumato.client.vault.loader import stored_columns
from sfumato.client.vault.store import Store
from sfumato.common.analyses.listed import MOST_ROWS, Listed
from sfumato.common.contract import ColumnType, Contract, Role
from sfumato.common.errors import BadInput


def listed_columns(
    store: Store, contract: Contract, wanted: Sequence[Listed], tokens: pa.ChunkedArray
) -> Mapping[str, pa.ChunkedArray]:
    """One list a customer, in the order of the tokens, by the column's name; one scan a table.

    Rows without a time are left out where the contract has an as_of. Raises BadInput on a column that is sealed or
    dropped.
    """
    columns: dict[str, pa.ChunkedArray] = {}
    for table in dict.fromkeys(w.table.name for w in wanted):
        group = [w for w in wanted if w.table.name == table]
        found = store.query(*_lists(contract, group))
        place = pc.index_in(tokens.combine_chunks(), value_set=found["id"].combine_chunks())
        for i, w in enumerate(group):
            lists = found[f"l{i}"].combine_chunks()
            taken = lists.take(place) if len(lists) else pa.nulls(len(tokens), lists.type)
            empty = pa.array([[]], lists.type).take(pa.array(np.zeros(len(tokens), np.int64)))
            columns[w.name] = pa.chunked_array([pc.coalesce(taken, empty)])
    return columns


def _lists(contract: Contract, group: Sequence[Listed]) -> tuple[str, list[object]]:
    """SQL with columns id, l0, l1, …, and its parameters."""
    table = group[0].table
    stored = {c.name for c in stored_columns(table)}
    for w in group:
        if w.column.name not in stored:
            raise BadInput(f"{w.name!r} is sealed or dropped, not to be computed on")
    time = table.with_role(Role.TIME)
    # Every stored column has its say, so that rows of one moment have one order in all lists.
    order = [f"{quoted(c.name)} DESC NULLS LAST" for c in time[:1]]
    order += [quoted(c.name) for c in stored_columns(table) if c not in time[:1]]
    lists = ", ".join(
        f"list({quoted(w.column.name)} ORDER BY {', '.join(order)})[1:{MOST_ROWS}] AS l{i}"
        for i, w in enumerate(group)
    )
    until, parameters = "", list[object]()
    if time and contract.as_of is not None:
        if time[0].type not in (ColumnType.DATE, ColumnType.DATETIME):
            raise BadInput(f"column {time[0].name!r}: a column of role time is a date or a datetime")
        until = f" WHERE {quoted(time[0].name)}::DATE <= ?"
        parameters.append(contract.as_of)
    return (
        f"SELECT {quoted(table.customer_id.name)} AS id, {lists} "  # noqa: S608 - names are quoted
        f"FROM {quoted(table.name)}{until} GROUP BY 1",
        parameters,
    )
