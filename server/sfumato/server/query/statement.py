"""SQL text to the syntax tree of one plain SELECT. Whatever else a statement can hold is refused by name.

Parsed by sqlglot in DuckDB's dialect. Refusals name places and kinds of syntax, and never repeat a statement's text.
"""

import logging
from collections.abc import Iterator
from typing import NoReturn

import sqlglot
from sqlglot import exp
from sqlglot.errors import ParseError

from sfumato.common.errors import BadInput

MOST_LETTERS = 50_000
PARTS = {
    "with_": "WITH",
    "distinct": "DISTINCT",
    "into": "INTO",
    "hint": "a hint",
    "laterals": "LATERAL",
    "qualify": "QUALIFY",
    "windows": "WINDOW",
    "offset": "OFFSET",
    "sample": "a sample",
    "pivots": "PIVOT",
    "locks": "a lock",
    "connect": "CONNECT BY",
    "cluster": "CLUSTER BY",
    "distribute": "DISTRIBUTE BY",
    "sort": "SORT BY",
    "settings": "SETTINGS",
    "format": "FORMAT",
    "kind": "SELECT AS",
    "match": "MATCH_RECOGNIZE",
    "operation_modifiers": "a modifier",
    "prewhere": "PREWHERE",
}
CALLED: dict[type[exp.Expr] | tuple[type[exp.Expr], ...], str] = {
    (exp.Subquery, exp.Query): "a subquery",
    exp.Window: "a window function",
    exp.Star: "*",
    (exp.Add, exp.Sub, exp.Mul, exp.Div, exp.Mod, exp.IntDiv, exp.Pow): "arithmetic",
    (exp.Literal, exp.Neg, exp.Boolean, exp.Null): "a value",
    (exp.DDL, exp.DML, exp.Drop, exp.Command): "a command",
}
UNDERSTOOD = ("expressions", "from_", "joins", "where", "group", "having", "order", "limit")

logging.getLogger("sqlglot").setLevel(logging.ERROR)  # its warnings repeat the statement


def refuse(reason: str, hint: str = "") -> NoReturn:
    """A question that is not answered. Raises BadInput."""
    raise BadInput(f"this is not answered: {reason}", hint=hint)


def parse(sql: str) -> exp.Select:
    """One SELECT of the parts in UNDERSTOOD. Raises BadInput."""
    if len(sql) > MOST_LETTERS:
        refuse(f"the statement has more than {MOST_LETTERS:,} letters")
    try:
        trees = [tree for tree in sqlglot.parse(sql, read="duckdb") if tree is not None]
    except ParseError as e:
        where = e.errors[0] if e.errors else {}
        at = f" (line {where['line']}, column {where['col']})" if where.get("line") else ""
        refuse(f"the statement is not SQL that can be read{at}", "See docs/query.md for what is understood.")
    except RecursionError:
        refuse("the statement is nested too deeply")
    except Exception:  # a foreign parser on any text: whatever it stumbles over is not understood
        refuse("the statement is not SQL that can be read", "See docs/query.md for what is understood.")
    if len(trees) != 1:
        refuse("it takes one statement" if trees else "the statement is empty")
    if not isinstance(trees[0], exp.Select):
        refuse(f"it is no SELECT, but {kind(trees[0])}", "Sums of customers are asked by one plain SELECT.")
    for name, value in trees[0].args.items():
        if value and name not in UNDERSTOOD:
            refuse(f"{PARTS.get(name, name.upper())} is not understood")
    return trees[0]


def only(node: exp.Expr, *known: str) -> None:
    """Refuses a node that has more to it than these parts."""
    for name, value in node.args.items():
        if value and name not in known:
            inner = kind(value) if isinstance(value, exp.Query) else name.replace("_", " ").strip()
            refuse(f"{kind(node)} with {inner} is not understood")


def kind(node: exp.Expr | None) -> str:
    """What sort of syntax it is, in SQL's words as far as there are some."""
    for sort, words in CALLED.items():
        if isinstance(node, sort):
            return words
    if isinstance(node, exp.Func) and not isinstance(
        node, exp.Anonymous | exp.AnonymousAggFunc | exp.Connector
    ):
        return node.sql_name()
    return "a function" if isinstance(node, exp.Func) else type(node).__name__.lower()


def inside(node: exp.Expr) -> exp.Expr:
    """Without its brackets."""
    while isinstance(node, exp.Paren):
        node = node.this
    return node


def operands(node: exp.Expr, sort: type[exp.Connector]) -> Iterator[exp.Expr]:
    """All that a chain of AND, or of OR, joins, from left to right, without going down into anything else."""
    waiting = [node]
    while waiting:
        at = inside(waiting.pop())
        if isinstance(at, sort):
            waiting += [at.expression, at.this]
        else:
            yield at
