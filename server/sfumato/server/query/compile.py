"""A SELECT to the typed question of the kind `query`, by the contract alone; it knows no data.

Tables: the customers, maybe with one other joined by the customer. Groups and WHERE: columns of the customers and
roll-ups; of the joined rows, WHERE chooses a roll-up. ORDER BY, HAVING and LIMIT are work on the noisy answer.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from pydantic import ValidationError
from sqlglot import exp

from sfumato.common.analyses import query
from sfumato.common.analyses.conditions import Between, Every, Tree
from sfumato.common.analyses.measures import Measure
from sfumato.common.analyses.query import Group, Order, Question
from sfumato.common.contract import Contract, validation_lines
from sfumato.server.query.measures import Aggregates, Asked, is_aggregate
from sfumato.server.query.names import OfCustomer, OfRow, Scope
from sfumato.server.query.rows import RowsKept, RowSums
from sfumato.server.query.statement import inside, kind, only, operands, parse, refuse
from sfumato.server.query.where import COMPARED, TURNED, condition, literal

MOST_COLUMNS = 50


def compiled(sql: str, contract: Contract) -> Question:
    """The question that a statement asks, checked against the contract. Raises BadInput with the reason, and what
    to ask instead."""
    select = parse(sql)
    try:
        question = _Statement.of(select, contract).question()
    except ValidationError as e:
        refuse(f"it makes no question: {validation_lines(e)}")
    except RecursionError:
        refuse("the statement is nested too deeply")
    query.build(question, contract)
    return question


@dataclass
class _Statement:
    select: exp.Select
    scope: Scope
    where: Tree | None
    aggregates: Aggregates
    groups: dict[str, str] = field(default_factory=dict)  # what it is called, by column
    measures: list[Measure] = field(default_factory=list)
    asked: dict[tuple[object, ...], str] = field(default_factory=dict)  # the measure's name, by what it asks

    @classmethod
    def of(cls, select: exp.Select, contract: Contract) -> "_Statement":
        scope = Scope.of(select, contract)
        kept, parts = RowsKept(), list[Tree]()
        if select.args.get("where"):
            for part in operands(select.args["where"].this, exp.And):
                if _of_rows(scope, part):
                    kept.take(scope, part)
                else:
                    parts.append(condition(part, contract, _column_of(scope)))
        where = parts[0] if len(parts) == 1 else Every(of=tuple(parts)) if parts else None
        return cls(select, scope, where, Aggregates(scope, RowSums(scope, kept)))

    def question(self) -> Question:
        expressions = self.select.expressions
        if not 0 < len(expressions) <= MOST_COLUMNS:
            refuse(f"SELECT takes 1 to {MOST_COLUMNS} columns")
        by = self._group_by()
        for node in expressions:
            self._selected(node, by)
        for column in by:
            self.groups.setdefault(column, column)
        if not self.measures:
            refuse("nothing is counted: rows of customers never leave a branch", "Ask for COUNT(*), too.")
        having, order, limit = self._having(), self._order(), self._limit()
        return Question(
            groups=tuple(Group(column=c, name=n) for c, n in self.groups.items()),
            measures=tuple(self.measures),
            where=self._condition(),
            having=having,
            order=order,
            limit=limit,
        )

    def _condition(self) -> Tree | None:
        """With those alone who have rows, where the question is about them."""
        if self.aggregates.present is None:
            return self.where
        rows = Between(column=self.aggregates.present, low=1.0)
        return rows if self.where is None else Every(of=(rows, self.where))

    # --- what is selected, by what ---------------------------------------------------------------------------

    def _group_by(self) -> list[str]:
        """The columns to group by: by name, by number, by what SELECT calls them, or all that are no aggregates."""
        clause = self.select.args.get("group")
        if clause is None:
            return []
        only(clause, "expressions", "all")
        plain = [n for n in map(_bare, self.select.expressions) if not is_aggregate(inside(n))]
        nodes = plain if clause.args.get("all") else clause.expressions
        found = list(dict.fromkeys(self._grouped(inside(n)) for n in nodes))
        return found if found else refuse("GROUP BY names nothing")

    def _grouped(self, node: exp.Expr) -> str:
        if isinstance(node, exp.Literal):
            node = inside(_bare(self._numbered(node)))
        elif isinstance(node, exp.Column) and not node.table and not self.scope.knows(node.name):
            named = [e for e in self.select.expressions if e.alias and e.alias.lower() == node.name.lower()]
            node = inside(_bare(named[0])) if len(named) == 1 else node
        if is_aggregate(node):
            refuse("GROUP BY names an aggregate")
        if not isinstance(node, exp.Column):
            refuse(
                f"{kind(node)} is no group that the contract declares",
                "Group by a column: numbers are grouped by their `edges` in the contract.",
            )
        found = self.scope.column(node)
        if isinstance(found, OfRow):
            refuse(
                f"a customer's rows fall in several groups of {found.name}",
                "Ask for one of them at a time, by WHERE, or group by a column of the customers.",
            )
        return found.name

    def _numbered(self, node: exp.Literal) -> exp.Expr:
        """The selected column of this number."""
        place = (
            int(node.this) if not node.is_string and str(node.this).isdecimal() and len(node.this) < 6 else 0
        )
        if not 1 <= place <= len(self.select.expressions):
            refuse("a number stands for no column of the SELECT")
        found: exp.Expr = self.select.expressions[place - 1]
        return found

    def _selected(self, node: exp.Expr, by: list[str]) -> None:
        bare = inside(_bare(node))
        if isinstance(bare, exp.Column) and not isinstance(bare.this, exp.Star):
            found = self.scope.column(bare)
            if isinstance(found, OfCustomer) and found.name in by:
                if found.name in self.groups:
                    refuse(f"{found.name} is selected twice")
                self.groups[found.name] = node.alias or found.name
                return
        asked = self.aggregates.read(bare)
        self._measure(asked, node.alias or self._free(asked.said))

    def _measure(self, asked: Asked, name: str, *, shown: bool = True) -> str:
        self.measures.append(asked.measure(name, shown=shown))
        self.asked.setdefault(asked.same, name)
        return name

    def _free(self, said: str) -> str:
        """A name that is not taken yet: measures may be asked of one column cut at different ends."""
        taken = {m.name for m in self.measures} | set(self.groups.values())
        names = (said if i == 1 else f"{said} {i}" for i in range(1, 2 * MOST_COLUMNS))
        return next(n for n in names if n not in taken)

    # --- work on the answer ----------------------------------------------------------------------------------

    def _named(self, node: exp.Expr) -> str:
        """The measure or group of the answer that this means; a measure that is not selected is asked, too."""
        if isinstance(node, exp.Literal):
            node = self._numbered(node)
            if node.alias:
                return str(node.alias)
            node = inside(_bare(node))
        names = [*(m.name for m in self.measures if m.shown), *self.groups.values()]
        if isinstance(node, exp.Column):
            if not node.table and (alias := [n for n in names if n.lower() == node.name.lower()]):
                return alias[0]
            found = self.scope.column(node)
            if found.name not in self.groups:
                refuse(f"{found.name} is not in the answer", "Order by what is selected.")
            return self.groups[found.name]
        asked = self.aggregates.read(node)
        known = self.asked.get(asked.same)
        return known or self._measure(asked, self._free(asked.said), shown=False)

    def _having(self) -> tuple[Between, ...]:
        clause = self.select.args.get("having")
        return tuple(map(self._compared, operands(clause.this, exp.And))) if clause else ()

    def _compared(self, node: exp.Expr) -> Between:
        if isinstance(node, exp.Between):
            only(node, "this", "low", "high")
            low, high = (_bound(inside(node.args[end])) for end in ("low", "high"))
            return Between(column=self._of_answer(inside(node.this)), low=low, high=high)
        sign = COMPARED.get(type(node))
        if sign is None or sign in ("=", "<>"):
            refuse("HAVING compares an aggregate with a number, by <, <=, >, >= or BETWEEN, joined by AND")
        left, right = inside(node.this), inside(node.expression)
        if isinstance(left, exp.Literal | exp.Neg):
            left, right, sign = right, left, TURNED[sign]
        bound, below = _bound(right), sign in ("<", "<=")
        return Between(
            column=self._of_answer(left),
            low=None if below else bound,
            high=bound if below else None,
            low_open=sign == ">",
            high_open=sign == "<",
        )

    def _of_answer(self, node: exp.Expr) -> str:
        name = self._named(node)
        if name in self.groups.values():
            refuse("HAVING compares a group", "Put it into WHERE.")
        return name

    def _order(self) -> tuple[Order, ...]:
        clause = self.select.args.get("order")
        if clause is None:
            return ()
        only(clause, "expressions")
        found: dict[str, Order] = {}
        for ordered in clause.expressions:
            only(ordered, "this", "desc", "nulls_first")
            name = self._named(inside(ordered.this))
            found.setdefault(name, Order(by=name, down=bool(ordered.args.get("desc"))))
        return tuple(found.values())

    def _limit(self) -> int | None:
        clause = self.select.args.get("limit")
        if clause is None:
            return None
        only(clause, "expression")
        found = inside(clause.expression) if isinstance(clause, exp.Limit) else None
        whole = isinstance(found, exp.Literal) and not found.is_string and str(found.this).isdecimal()
        if not whole or found is None or not 1 <= (rows := float(found.this)) < 1e9:
            refuse("LIMIT takes a number of rows, from 1 on")
        return int(rows)


def _bare(node: exp.Expr) -> exp.Expr:
    return node.this if isinstance(node, exp.Alias) else node


def _bound(node: exp.Expr) -> float:
    value = literal(node)
    return value if isinstance(value, float) else refuse("HAVING compares with a number")


def _column_of(scope: Scope) -> Callable[[exp.Expr], str]:
    def column(node: exp.Expr) -> str:
        found = scope.column(node)
        if isinstance(found, OfRow):
            refuse(
                f"{found.name} of rows is not understood there",
                "Rows are kept by column = value and by time >= day, all of them joined by AND.",
            )
        return found.name

    return column


def _of_rows(scope: Scope, node: exp.Expr) -> bool:
    """Whether a comparison is of a row's column."""
    if scope.joined is None or not isinstance(node, exp.Binary | exp.In | exp.Between):
        return False
    sides = [inside(s) for s in (node.this, node.args.get("expression")) if isinstance(s, exp.Expr)]
    return any(isinstance(scope.column(s), OfRow) for s in sides if isinstance(s, exp.Column))
