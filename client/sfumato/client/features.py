"""One row a customer: what a model of a branch's customers is trained on, and what analyses count.

Columns of the customers table and the contract's roll-ups of other tables, computed in DuckDB inside the vault, one
scan a table. A roll-up is clipped to its public bounds here, so that nothing downstream can see more of a customer
than the contract says. Rows after the contract's `as_of` are never used: a feature must not know the future.
"""

from collections import Counter
from collections.abc import Sequence
from datetime import date, datetime, timedelta

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from sfumato.client.rows import listed_columns
from sfumato.client.vault.database import quoted
from sfumato.client.vault.loader import stored_columns
from sfumato.client.vault.store import Store
from sfumato.common.analyses.listed import is_listed, listed
from sfumato.common.contract import (
    CLIPPED_CATEGORY,
    DAYS_SINCE,
    ZERO_WITHOUT_ROWS,
    Aggregate,
    Column,
    ColumnType,
    Contract,
    Feature,
    OutOfDomain,
    Role,
    Table,
)
from sfumato.common.errors import BadInput
from sfumato.common.learners.encoding import Monthly, monthly_specs
from sfumato.privacy.fields import keyed_uniform
from sfumato.privacy.keys import KeySource

TOKEN, LABEL = "token", "label"


def customer_frame(store: Store, contract: Contract, monthly: Sequence[str] = ()) -> pa.Table:
    """One row a customer, ordered by token.

    Columns: `token`; `label` (int8 0 or 1; absent without a label in the contract); the customers table's columns
    of role feature or amount in their types; each roll-up as float64 inside its bounds, for a customer without
    rows 0 (count, sum, distinct; clipped too) or null. `days` keeps the dates in (as_of - days, as_of], of a
    table's first column of role time; a row without a time is not used where the contract has an as_of.
    `monthly` are names of encoding.Monthly: roll-ups of one month each, float64 in the same way.

    Raises BadInput: a roll-up of a column that is not stored or a `where` that is no value of its column; a
    column named token or label; a label that is neither 0 nor 1.
    """
    table = contract.customer_table
    features = [c for c in table.columns if c.role in (Role.FEATURE, Role.AMOUNT)]
    names = [c.name for c in features] + [f.name for f in contract.features]
    for name, times in Counter([TOKEN, LABEL, *names]).items():
        if times > 1:
            raise BadInput(f"feature {name!r}: the name is taken", hint="Rename it in the contract.")
    wanted = [table.customer_id, *([contract.label] if contract.label else []), *features]
    found = _select(store, contract, wanted, contract.features)
    columns: dict[str, pa.ChunkedArray] = {TOKEN: found["c0"]}
    for i, column in enumerate(wanted[1:], 1):
        label = column.role is Role.LABEL
        values_of = found[f"c{i}"]
        columns[LABEL if label else column.name] = _label(column, values_of) if label else values_of
    for i, feature in enumerate(contract.features):
        columns[feature.name] = found[f"x{i}"]
    return pa.table(columns | _monthly(store, contract, monthly, columns[TOKEN]))


def analysis_frame(store: Store, contract: Contract, columns: Sequence[str]) -> pa.Table:
    """Exactly these columns, one row a customer, held-out ones too, ordered by token.

    A column of the customers table keeps its type and its own values (a label is not turned into 0 and 1); a
    roll-up, also of one month, is as in `customer_frame`; a column of another table is a list a customer (see
    analyses.listed). Raises BadInput on the customer id, PII, and a name that is not declared.
    """
    table = contract.customer_table
    rollups = {f.name: f for f in contract.features}
    monthly = [name for name in columns if Monthly.parse(name)]
    lists = [listed(contract, name, text=True) for name in columns if is_listed(contract, name)]
    others = {*rollups, *monthly, *(w.name for w in lists)}
    for name in columns:
        if name not in others and not (table.has(name) and _analysable(table.column(name))):
            raise BadInput(
                f"{name!r} is no column to analyse",
                hint="Personal data, the customer id and undeclared columns never are.",
            )
    taken = [table.column(n) for n in columns if n not in others]
    features = [rollups[n] for n in columns if n in rollups]
    found = _select(store, contract, [table.customer_id, *taken], features)
    place = {c.name: f"c{i}" for i, c in enumerate(taken, 1)} | {
        f.name: f"x{i}" for i, f in enumerate(features)
    }
    beside = {
        **_monthly(store, contract, monthly, found["c0"]),
        **listed_columns(store, contract, lists, found["c0"]),
    }
    return pa.table({name: beside[name] if name in beside else found[place[name]] for name in columns})


def customer_tokens(store: Store, contract: Contract) -> list[str]:
    """The customers' tokens, in the order of `customer_frame` and `analysis_frame`."""
    found: list[str] = _select(store, contract, [contract.customer_table.customer_id], [])["c0"].to_pylist()
    return found


def _analysable(column: Column) -> bool:
    return column.role not in (Role.PII, Role.CUSTOMER_ID)


def holdout_mask(tokens: Sequence[str], keyring: KeySource, fraction: float) -> npt.NDArray[np.bool_]:
    """Which customers are held out, about `fraction` of them: keyed, the same in every job.

    Whether a customer is held out depends on their token and the branch's key `holdout` alone, so adding or
    removing a customer moves nobody else. A larger fraction holds out a superset.
    """
    uniform = keyed_uniform(tokens, keyring.data_key("holdout"), purpose="holdout")
    held_out: npt.NDArray[np.bool_] = uniform < fraction
    return held_out


def _select(
    store: Store, contract: Contract, columns: Sequence[Column], features: Sequence[Feature]
) -> pa.Table:
    """c0, c1, … the customers table's columns, x0, x1, … the roll-ups, ordered by c0: the customer id's token."""
    table = contract.customer_table
    selected = ", ".join(f"c.{quoted(c.name)} AS c{i}" for i, c in enumerate(columns))
    joins, parameters = [], []
    rolled: dict[str, str] = {}
    for n, name in enumerate(dict.fromkeys(f.table for f in features)):
        group = [f for f in features if f.table == name]
        sql, bound = _roll_up(store, contract, contract.table(name), group)
        joins.append(f"LEFT JOIN ({sql}) AS r{n} ON r{n}.id = c.{quoted(table.customer_id.name)}")
        parameters += bound
        rolled |= {f.name: _clipped(f, f"r{n}.f{i}") for i, f in enumerate(group)}
    values = "".join(f", {rolled[f.name]} AS x{i}" for i, f in enumerate(features))
    return store.query(
        f"SELECT {selected}{values} FROM {quoted(table.name)} AS c {' '.join(joins)} ORDER BY 1",  # noqa: S608
        parameters,
    )


def _monthly(
    store: Store, contract: Contract, names: Sequence[str], tokens: pa.ChunkedArray
) -> dict[str, pa.Array]:
    """Each named month of a roll-up, in the order of the tokens; one scan a table."""
    asked = [m for m in map(Monthly.parse, names) if m is not None]
    monthly_specs(contract, list(dict.fromkeys(m.feature for m in asked)))
    months = 1 + max((m.month for m in asked), default=-1)
    rollups = {f.name: f for f in contract.features if f.name in {m.feature for m in asked}}
    columns: dict[str, pa.Array] = {}
    for table in dict.fromkeys(f.table for f in rollups.values()):
        group = [f for f in rollups.values() if f.table == table]
        found = store.query(*_by_month(store, contract, contract.table(table), group, months))
        row = pc.index_in(found["id"], value_set=tokens.combine_chunks())
        known = np.asarray(row.is_valid())
        place = (np.asarray(found["month"])[known], np.asarray(row.drop_null()))
        for i, feature in enumerate(group):
            values = np.full((months, len(tokens)), np.nan)
            values[place] = np.asarray(found[f"f{i}"].cast(pa.float64()).fill_null(np.nan))[known]
            if feature.aggregate in ZERO_WITHOUT_ROWS:
                values = np.nan_to_num(values)
            for m in asked:
                if m.feature == feature.name:
                    inside = np.clip(values[m.month], *feature.bounds)
                    columns[m.column] = pa.array(inside, from_pandas=True)  # NaN is null
    return {name: columns[name] for name in names}


def _by_month(
    store: Store, contract: Contract, table: Table, features: Sequence[Feature], months: int
) -> tuple[str, list[object]]:
    """SQL with columns id, month (0 the latest), f0, f1, …, and its parameters, as `_roll_up`."""
    assert contract.as_of is not None  # monthly_specs has checked it
    time = table.with_role(Role.TIME)[0]
    day, month = (
        quoted(time.name),
        f"(date_diff('day', {quoted(time.name)}::DATE, ?::DATE) // {Monthly.DAYS})",
    )
    parameters: list[object] = [contract.as_of]
    columns = []
    for i, feature in enumerate(features):
        every = feature.model_copy(update={"days": None})
        conditions, values = _conditions(store, contract, table, every)
        parameters += values
        kept = f" FILTER (WHERE {' AND '.join(conditions)})" if conditions else ""
        columns.append(f", {_aggregate(table, every, kept)} AS f{i}")
    parameters += [
        _moment(time, contract.as_of + timedelta(days=1)),
        _moment(time, contract.as_of - timedelta(days=Monthly.DAYS * months - 1)),
    ]
    return (
        f"SELECT {quoted(table.customer_id.name)} AS id, {month} AS month{''.join(columns)} "  # noqa: S608
        f"FROM {quoted(table.name)} WHERE {day} < ? AND {day} >= ? GROUP BY 1, 2",
        parameters,
    )


def _roll_up(
    store: Store, contract: Contract, table: Table, features: Sequence[Feature]
) -> tuple[str, list[object]]:
    """SQL with columns id, f0, f1, … (one scan), and its parameters in the order of their question marks."""
    time = table.with_role(Role.TIME)
    parameters: list[object] = []
    columns = []
    for i, feature in enumerate(features):
        conditions, values = _conditions(store, contract, table, feature)
        parameters += values
        parameters += [contract.as_of] if feature.aggregate in DAYS_SINCE else []
        kept = f" FILTER (WHERE {' AND '.join(conditions)})" if conditions else ""
        columns.append(f", {_aggregate(table, feature, kept)} AS f{i}")
    until = ""
    if time and contract.as_of is not None:
        until = f" WHERE {quoted(time[0].name)} < ?"
        parameters.append(_moment(time[0], contract.as_of + timedelta(days=1)))
    customer = quoted(table.customer_id.name)
    return (
        f"SELECT {customer} AS id{''.join(columns)} FROM {quoted(table.name)}{until} GROUP BY 1",  # noqa: S608
        parameters,
    )


def _aggregate(table: Table, feature: Feature, kept: str) -> str:
    column = quoted(feature.column) if feature.column else "*"
    if feature.column and not any(c.name == feature.column for c in stored_columns(table)):
        raise BadInput(
            f"feature {feature.name!r}: column {feature.column!r} is sealed or dropped, not to be computed on"
        )
    match feature.aggregate:
        case Aggregate.COUNT:
            return f"count({column}){kept}"
        case Aggregate.DISTINCT:
            return f"count(DISTINCT {column}){kept}"
        case Aggregate.SUM | Aggregate.MEAN:  # Kahan summation: the order of rows must not show
            function = "fsum" if feature.aggregate is Aggregate.SUM else "favg"
            return f"{function}({column}::DOUBLE){kept}"
        case Aggregate.MIN | Aggregate.MAX:
            return f"{feature.aggregate.value}({column}){kept}"
        case Aggregate.DAYS_SINCE_LAST | Aggregate.DAYS_SINCE_FIRST:
            time = quoted(table.with_role(Role.TIME)[0].name)
            end = "max" if feature.aggregate is Aggregate.DAYS_SINCE_LAST else "min"
            return f"date_diff('day', ({end}({time}){kept})::DATE, ?::DATE)"


def _conditions(
    store: Store, contract: Contract, table: Table, feature: Feature
) -> tuple[list[str], list[object]]:
    """What a row must meet to count for this feature, beside not lying after as_of."""
    conditions: list[str] = []
    values: list[object] = []
    if feature.days is not None:
        time = table.with_role(Role.TIME)[0]
        assert contract.as_of is not None  # the contract has checked it
        conditions.append(f"{quoted(time.name)} >= ?")
        values.append(_moment(time, contract.as_of - timedelta(days=feature.days - 1)))
    for name, text in feature.where.items():
        column = table.column(name)
        if column not in stored_columns(table):
            raise BadInput(f"feature {feature.name!r}: `where` names {name!r}, which is sealed or dropped")
        conditions.append(f"{quoted(name)} = ?")
        token = store.token(table.name, name, text)
        values.append(_parsed(feature, column, text) if token is None else token)
    return conditions, values


def _moment(time: Column, day: date) -> date | datetime:
    """The start of that day, in the type of the time column."""
    if time.type is ColumnType.DATE:
        return day
    if time.type is ColumnType.DATETIME:
        return datetime(day.year, day.month, day.day)
    raise BadInput(f"column {time.name!r}: a column of role time is a date or a datetime")


def _parsed(feature: Feature, column: Column, text: str) -> object:
    """A `where` value in its column's type. Raises BadInput when the column can never hold it."""
    try:
        match column.type:
            case ColumnType.STRING:
                return text
            case ColumnType.CATEGORY:
                clipped = column.out_of_domain is OutOfDomain.CLIP and text == CLIPPED_CATEGORY
                if not clipped and text not in (column.categories or ()):
                    raise ValueError
                return text
            case ColumnType.INTEGER:
                return int(text)
            case ColumnType.NUMBER:
                return float(text)
            case ColumnType.BOOLEAN:
                return {"true": True, "false": False}[text.lower()]
            case ColumnType.DATE:
                return date.fromisoformat(text)
            case ColumnType.DATETIME:
                return datetime.fromisoformat(text)
    except (ValueError, KeyError):
        raise BadInput(
            f"feature {feature.name!r}: {text!r} is no value of column {column.name!r} ({column.type.value})"
        ) from None


def _clipped(feature: Feature, source: str) -> str:
    """Zero or null without rows, then inside the bounds. Bounds are numbers the contract has checked."""
    low, high = (repr(float(b)) for b in feature.bounds)
    value = f"{source}::DOUBLE"
    if feature.aggregate in ZERO_WITHOUT_ROWS:
        return f"least(greatest(coalesce({value}, 0), {low}::DOUBLE), {high}::DOUBLE)"
    inside = f"least(greatest({value}, {low}::DOUBLE), {high}::DOUBLE)"  # least and greatest skip nulls
    return f"CASE WHEN {source} IS NULL THEN NULL ELSE {inside} END"


def _label(column: Column, values: pa.ChunkedArray) -> pa.ChunkedArray:
    if column.type is ColumnType.CATEGORY:
        values = pc.equal(values, column.positive)
    label = values.cast(pa.int8(), safe=False) if column.type is not ColumnType.INTEGER else values
    wrong = pc.sum(pc.invert(pc.is_in(label, pa.array([0, 1], type=label.type))), min_count=0).as_py()
    if wrong:
        raise BadInput(f"label {column.name!r}: {wrong} customers have neither 0 nor 1")
    return label.cast(pa.int8())
