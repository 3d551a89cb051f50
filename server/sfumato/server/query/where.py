"""WHERE to a typed condition. Values are compared with what the contract declares, and with nothing else."""

import math
from collections.abc import Callable
from datetime import date, datetime
from typing import TypeAlias

from sqlglot import exp

from sfumato.common.analyses.conditions import (
    DAY_IN_MICROSECONDS,
    DAYS,
    MOST_DEEP,
    MOST_LEAVES,
    MOST_VALUES,
    Among,
    Between,
    Every,
    Missing,
    Not,
    Some,
    Tree,
    comparable,
    names,
)
from sfumato.common.analyses.domains import BINARY, OTHER, Domain
from sfumato.common.contract import CLIPPED_CATEGORY, Contract
from sfumato.server.query.statement import inside, kind, only, operands, refuse

Literal: TypeAlias = str | float | bool | None
COMPARED: dict[type[exp.Expr], str] = {
    exp.EQ: "=",
    exp.NEQ: "<>",
    exp.LT: "<",
    exp.LTE: "<=",
    exp.GT: ">",
    exp.GTE: ">=",
}
TURNED = {"=": "=", "<>": "<>", "<": ">", "<=": ">=", ">": "<", ">=": "<="}
Column: TypeAlias = Callable[[exp.Expr], str]  # the name of a customer's column; refuses all else


def condition(node: exp.Expr, contract: Contract, column: Column, deep: int = 0) -> Tree:
    """The whole WHERE. Raises BadInput on what is not understood, not declared, or true of nobody."""
    node = inside(node)
    if deep > MOST_DEEP:
        refuse(f"more than {MOST_DEEP} conditions stand inside each other")
    for sort, whole in ((exp.And, Every), (exp.Or, Some)):
        if isinstance(node, sort):
            parts = list(operands(node, sort))
            if len(parts) > MOST_LEAVES:
                refuse(f"the condition has more than {MOST_LEAVES} comparisons")
            return whole(of=tuple(condition(p, contract, column, deep + 1) for p in parts))
    if isinstance(node, exp.Not):
        return Not(of=condition(node.this, contract, column, deep + 1))
    return _leaf(node, contract, column)


def _leaf(node: exp.Expr, contract: Contract, column: Column) -> Tree:
    sign = COMPARED.get(type(node))
    if sign is not None:
        left, right = inside(node.this), inside(node.expression)
        if isinstance(right, exp.Column) and not isinstance(left, exp.Column):
            left, right, sign = right, left, TURNED[sign]
        if isinstance(right, exp.Column):
            refuse("two columns are compared with each other", "Compare a column with a value.")
        return compared(contract, column(left), sign, literal(right))
    match node:
        case exp.Column():
            return compared(contract, column(node), "=", True)
        case exp.Between():
            only(node, "this", "low", "high")
            name = column(inside(node.this))
            low, high = (literal(inside(node.args[end])) for end in ("low", "high"))
            ends = (compared(contract, name, ">=", low), compared(contract, name, "<=", high))
            assert isinstance(ends[0], Between) and isinstance(ends[1], Between)
            return ends[0].model_copy(update={"high": ends[1].high})
        case exp.In():
            only(node, "this", "expressions")
            if not 0 < len(node.expressions) <= MOST_VALUES:
                refuse(f"IN takes 1 to {MOST_VALUES} values")
            name, values = column(inside(node.this)), [literal(inside(e)) for e in node.expressions]
            found = [compared(contract, name, "=", v, alone=False) for v in values]
            if all(isinstance(f, Among) for f in found):
                named = dict.fromkeys(v for f in found if isinstance(f, Among) for v in f.values)
                return Among(column=name, values=tuple(named))
            return (
                Some(of=tuple(found))
                if len(found) <= MOST_LEAVES
                else refuse(f"more than {MOST_LEAVES} numbers")
            )
        case exp.Is():
            only(node, "this", "expression")
            return _is(contract, column(inside(node.this)), inside(node.expression))
    words = f"{kind(node)} is no condition on a column"
    hint = "Comparisons, IN, BETWEEN, IS NULL, AND, OR and NOT are understood."
    return refuse(words, "Write IN with the values of the contract." if isinstance(node, exp.Like) else hint)


def _is(contract: Contract, name: str, what: exp.Expr) -> Tree:
    """IS TRUE and IS FALSE are never unknown."""
    if isinstance(what, exp.Null):
        comparable(contract, name)
        return Missing(column=name)
    if isinstance(what, exp.Boolean):
        return Every(of=(compared(contract, name, "=", bool(what.this)), Not(of=Missing(column=name))))
    return refuse("IS goes with NULL, TRUE or FALSE")


def literal(node: exp.Expr) -> Literal:
    """A value as it is written; of a DATE or TIMESTAMP its text. Raises BadInput on all else."""
    negative = isinstance(node, exp.Neg)
    while isinstance(node, exp.Neg | exp.Paren):
        node = node.this
    if isinstance(node, exp.Cast) and node.to.this in (exp.DType.DATE, exp.DType.TIMESTAMP):
        only(node, "this", "to")
        node = node.this
        if not (isinstance(node, exp.Literal) and node.is_string):
            refuse("a date is written as DATE '2025-01-31'")
    match node:
        case exp.Boolean() if not negative:
            return bool(node.this)
        case exp.Null() if not negative:
            return None
        case exp.Literal() if node.is_string and not negative:
            return str(node.this)
        case exp.Literal() if not node.is_string:
            return -finite(node.this) if negative else finite(node.this)
    return refuse(f"{kind(node)} stands where a value is expected")


def finite(text: str) -> float:
    """Raises BadInput on what is no number that can be kept."""
    try:
        value = float(text)
    except ValueError:
        refuse("a number cannot be read")
    return value if math.isfinite(value) else refuse("a number is too large")


def compared(contract: Contract, name: str, sign: str, value: Literal, *, alone: bool = True) -> Tree:
    """A column compared with a value. Raises BadInput on a name that the contract has not; of a number that stands
    `alone` also where the contract's bounds rule it out."""
    known = comparable(contract, name)
    if value is None:
        refuse("nothing equals NULL", "Write IS NULL.")
    if known is not None:
        if sign not in ("=", "<>"):
            refuse(
                f"{name} has names, which have no order",
                f"Compare by = or IN with: {', '.join(names(known))}.",
            )
        among = Among(column=name, values=(_name(known, value),))
        return Not(of=among) if sign == "<>" else among
    number = _number(contract, name, value)
    below, above = sign in ("<", "<="), sign in (">", ">=")
    found = Between(
        column=name,
        low=None if below else number,
        high=None if above else number,
        low_open=sign == ">",
        high_open=sign == "<",
    )
    if sign == "<>":
        return Not(of=found)
    if alone:
        _somebody(contract, found)
    return found


def _name(known: Domain, value: Literal) -> str:
    """The cell that a value is counted in."""
    if isinstance(value, bool):
        value = str(int(value)) if known.cells[:2] == BINARY else str(value).lower()
    elif isinstance(value, float):
        value = str(int(value)) if known.cells[:2] == BINARY and value in (0.0, 1.0) else ""
    if value == CLIPPED_CATEGORY and known.other:
        value = OTHER
    if value not in names(known):
        refuse(f"{known.name} has no such value in the contract", f"It has: {', '.join(names(known))}.")
    return str(value)


def _number(contract: Contract, name: str, value: Literal) -> float:
    table = contract.customer_table
    if table.has(name) and table.column(name).type in DAYS:
        if not isinstance(value, str):
            refuse(f"{name} is a date", "Write it as DATE '2025-01-31'.")
        return day(value)
    if isinstance(value, str | bool) or value is None:
        refuse(f"{name} is a number", "Compare it with one.")
    return value


def day(text: str) -> float:
    """Days since 1970-01-01, with the time of day as a fraction. Raises BadInput."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        refuse("a date cannot be read", "Write it as DATE '2025-01-31'.")
    since = moment.replace(tzinfo=None) - datetime(1970, 1, 1)
    if moment.tzinfo is not None:
        refuse("a date has a time zone")
    return (
        since.days * DAY_IN_MICROSECONDS + since.seconds * 1_000_000 + since.microseconds
    ) / DAY_IN_MICROSECONDS


def on_day(text: str) -> date:
    """The same as a date. Raises BadInput on one with a time."""
    try:
        return date.fromisoformat(text)
    except ValueError:
        return refuse("a date cannot be read", "Write it as DATE '2025-01-31'.")


def _somebody(contract: Contract, asked: Between) -> None:
    """Refuses what the contract's bounds rule out: it would be charged and tell nothing."""
    declared = [c for c in contract.customer_table.columns if c.name == asked.column]
    bounds = next(d.bounds for d in (*declared, *(f for f in contract.features if f.name == asked.column)))
    if bounds is None:
        return
    low, high = bounds
    if (asked.low is not None and asked.low > high) or (asked.high is not None and asked.high < low):
        refuse(
            f"no customer can meet the condition on {asked.column}", f"It lies between {low:g} and {high:g}."
        )
