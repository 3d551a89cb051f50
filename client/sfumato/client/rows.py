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
        found = store.query(*_rows(contract, group))
        place = pc.index_in(found["id"], value_set=tokens.combine_chunks())
        customer = np.asarray(place.fill_null(-1), dtype=np.int64)
        order = np.argsort(customer, kind="stable")
        order = order[np.searchsorted(customer[order], 0) :]  # rows of customers who are not there come first
        customer = customer[order]
        newest = np.arange(len(customer)) - np.searchsorted(customer, customer) < MOST_ROWS
        counts = np.bincount(customer[newest], minlength=len(tokens))
        offsets = pa.array(np.concatenate([[0], np.cumsum(counts)]), pa.int32())
        taken = pa.array(order[newest])
        for i, w in enumerate(group):
            values = found[f"l{i}"].combine_chunks().take(taken)
            columns[w.name] = pa.chunked_array([pa.ListArray.from_arrays(offsets, values)])
    return columns


def _rows(contract: Contract, group: Sequence[Listed]) -> tuple[str, list[object]]:
    """SQL with columns id, l0, l1, …, each customer's newest row first, and its parameters. Sorted once: an ordered
    list for each column takes many times the memory."""
    table = group[0].table
    stored = {c.name for c in stored_columns(table)}
    for w in group:
        if w.column.name not in stored:
            raise BadInput(f"{w.name!r} is sealed or dropped, not to be computed on")
    time = table.with_role(Role.TIME)
    # Every stored column has its say, so that rows of one moment have one order in all lists.
    order = [f"{quoted(c.name)} DESC NULLS LAST" for c in time[:1]]
    order += [quoted(c.name) for c in stored_columns(table) if c not in time[:1]]
    lists = ", ".join(f"{quoted(w.column.name)} AS l{i}" for i, w in enumerate(group))
    until, parameters = "", list[object]()
    if time and contract.as_of is not None:
        if time[0].type not in (ColumnType.DATE, ColumnType.DATETIME):
            raise BadInput(f"column {time[0].name!r}: a column of role time is a date or a datetime")
        until = f" WHERE {quoted(time[0].name)}::DATE <= ?"
        parameters.append(contract.as_of)
    return (
        f"SELECT {quoted(table.customer_id.name)} AS id, {lists} "  # noqa: S608 - names are quoted
        f"FROM {quoted(table.name)}{until} ORDER BY {', '.join(order)}",
        parameters,
    )
