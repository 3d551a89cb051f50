"""SQL over customers nobody sees: 2,000 generated statements, each answered as DuckDB does or refused with a reason;
and some dozens of them through real vaults, where the charge must be the estimate."""

import json
import math
import random
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from scipy import stats

from sfumato.client.vault.customers import WarmData
from sfumato.common.analyses import catalogue, query
from sfumato.common.analyses.analysis import NoisySum
from sfumato.common.analyses.domains import NONE, domain
from sfumato.common.analyses.estimates import REACH
from sfumato.common.analyses.query import Query
from sfumato.common.contract import ZERO_WITHOUT_ROWS, Contract, Role, load_contract
from sfumato.common.contributions import Cells
from sfumato.common.errors import BadInput
from sfumato.common.fixed_point import GRID
from sfumato.common.job import AnalysisAudit, AnalysisJob
from sfumato.lab import query_cli
from sfumato.lab.in_process import Answerer, open_vaults, run_in_process
from sfumato.lab.samplebank import SampleBank, generate
from sfumato.lab.simulate import SimulatedBranches, bank_branches
from sfumato.privacy import accounting
from sfumato.privacy.ledger import Ledger
from sfumato.privacy.mechanisms import SumNoise
from sfumato.privacy.plan import Plan
from sfumato.server.query.asking import Asking
from sfumato.server.query.compile import compiled
from sfumato.server.query.estimate import Estimate

STATEMENTS, SEED = 2000, 20260
EVERY = (
    3  # of those that are answered is asked of the customers, too; 1 passes as well, and takes twice the time
)
SECRET = "Ada Geheim 4711"  # in statements that must not come back from anywhere
TINY = 1e-9
LARGEST = 600_000  # numbers of all customers' vectors that a test computes; longer ones are only planned
READABLE = (Role.FEATURE, Role.LABEL, Role.AMOUNT, Role.ATTRIBUTE)


# --- statements --------------------------------------------------------------------------------------------


@dataclass
class Made:
    """A statement; what DuckDB is asked in its stead (None: not to be compared); whether it must be refused."""

    sql: str
    truth: str | None = None
    refused: bool = False
    groups: int = 0
    asks: list[str] = field(default_factory=list)  # of each measure: count, sum, mean or quantile


class Statements:
    """A seeded grammar over a contract: statements that are understood, and all sorts that are not."""

    def __init__(self, contract: Contract, seed: int) -> None:
        self.rng = random.Random(seed)
        self.contract = contract
        table = contract.customer_table
        columns = [c for c in table.columns if c.role in READABLE]
        self.named = {c.name: c.categories for c in columns if c.categories}
        self.label = contract.label.name if contract.label else ""
        self.numbers = {c.name: c.bounds for c in columns if c.bounds}
        self.numbers |= {f.name: f.bounds for f in contract.features}
        self.nullable = {f.name for f in contract.features if f.aggregate not in ZERO_WITHOUT_ROWS}
        banded = {c.name for c in (*columns, *contract.features) if c.edges}
        few = {n for n, b in self.numbers.items() if b[1] - b[0] < 20} - banded
        whole = {f.name for f in contract.features if f.aggregate.value in ("count", "distinct")}
        self.bands = [n for n in self.numbers if n in banded or (n in few and n in whole)]
        self.pii = [c.name for c in table.columns if c.role is Role.PII]

    def one(self) -> Made:
        sort = self.rng.random()
        if sort < 0.55:
            return self.understood()
        if sort < 0.62:
            return self.joined()
        if sort < 0.80:
            return self.wrong()
        if sort < 0.90:
            return self.hostile()
        return self.broken()

    def understood(self) -> Made:
        """SELECT … FROM customers, in any order, with what may come behind it."""
        rng, groups = self.rng, self._groups()
        aliases = [f"g{i}" if rng.random() < 0.3 else None for i in range(len(groups))]
        measures = [self._measure() for _ in range(rng.choice([1, 1, 2, 2, 3, 5]))]
        selected = [g + (f" AS {a}" if a else "") for g, a in zip(groups, aliases, strict=True)]
        selected += [f"{sql} AS m{i}" for i, (sql, _, _) in enumerate(measures)]
        by = [
            rng.choice([g, str(i), *([a] if a else [])])
            for i, (g, a) in enumerate(zip(groups, aliases, strict=True), 1)
        ]
        where = self._condition(rng.choice([1, 1, 2, 3])) if rng.random() < 0.6 else None
        sql = f"SELECT {', '.join(selected)} FROM customers"
        truth = f"SELECT {', '.join([*map(self._cell, groups), *(t for _, t, _ in measures)])} FROM customers"
        for clause in [f" WHERE {where}"] if where else []:
            sql, truth = sql + clause, truth + clause
        if groups:
            sql += " GROUP BY " + (rng.choice(["ALL", ", ".join(by)]))
            truth += f" GROUP BY {', '.join(str(i) for i in range(1, len(groups) + 1))}"
        asks = [a for _, _, a in measures]
        if rng.random() < 0.15:
            sql += f" HAVING {rng.choice(['COUNT(*)', 'm0'])} {rng.choice(['>', '>=', '<'])} {rng.randint(0, 40)}"
        if rng.random() < 0.3:
            sql += f" ORDER BY {rng.choice(['m0', '1', 'COUNT(*)'])} {rng.choice(['', 'DESC', 'ASC'])}"
        if rng.random() < 0.15:
            sql += f" LIMIT {rng.randint(1, 30)}"
        return Made(self._dressed(sql), truth, groups=len(groups), asks=asks)

    def _groups(self) -> list[str]:
        rng = self.rng
        names = rng.sample([*self.named, self.label, *self.bands], rng.choice([0, 0, 1, 1, 1, 2, 2, 3]))
        return names if math.prod(self._size(n) for n in names) < 3000 else names[:1]

    def _size(self, name: str) -> int:
        return len(domain(self.contract, name, 32).cells)

    def _cell(self, name: str) -> str:
        """The group in DuckDB's words, called as the contract calls it."""
        found = domain(self.contract, name, 32)
        if not found.spec.numeric:
            return f"coalesce(CAST({name} AS VARCHAR), '{NONE}')"
        whens = [f"WHEN {name} IS NULL THEN '{NONE}'"]
        whens += [f"WHEN {name} < {e!r} THEN '{c}'" for e, c in zip(found.edges, found.cells, strict=False)]
        return f"CASE {' '.join(whens)} ELSE '{found.cells[len(found.edges)]}' END"

    def _measure(self) -> tuple[str, str, str]:
        """As asked, as DuckDB is asked, and what it asks."""
        rng = self.rng
        if rng.random() < 0.35:
            what = rng.choice(["*", "1", "DISTINCT customer_id", *self.nullable])
            return f"COUNT({what})", f"count({what if what in self.nullable else '*'})", "count"
        if rng.random() < 0.2:
            ask = rng.choice(["SUM", "AVG"])
            return f"{ask}({self.label})", f"{ask}({self.label})", "sum" if ask == "SUM" else "mean"
        name = rng.choice(list(self.numbers))
        low, high = self.numbers[name]
        asked = truth = name
        if rng.random() < 0.4:
            a, b = sorted(round(rng.uniform(low, high), 1) for _ in range(2))
            if a < b:
                asked = rng.choice(
                    [f"LEAST(GREATEST({name}, {a}), {b})", f"greatest(least({name}, {b}), {a})"]
                )
                truth = f"CASE WHEN {name} IS NULL THEN NULL ELSE least(greatest({name}, {a}), {b}) END"
        rank = rng.choice(["0.5", "0.1", ".9", "0.25"])
        return rng.choice(
            [
                (f"SUM({asked})", f"sum({truth})", "sum"),
                (f"AVG({asked})", f"avg({truth})", "mean"),
                (f"avg( {asked} )", f"avg({truth})", "mean"),
                (f"QUANTILE({asked}, {rank})", f"quantile_cont({truth}, {rank})", "quantile"),
                (f"MEDIAN({asked})", f"median({truth})", "quantile"),
                (
                    f"PERCENTILE_CONT({rank}) WITHIN GROUP (ORDER BY {asked})",
                    f"quantile_cont({truth}, {rank})",
                    "quantile",
                ),
            ]
        )

    def _condition(self, leaves: int) -> str:
        rng = self.rng
        if leaves > 1:
            cut = rng.randint(1, leaves - 1)
            both = f"{self._condition(cut)} {rng.choice(['AND', 'OR'])} {self._condition(leaves - cut)}"
            return f"{rng.choice(['', 'NOT '])}({both})"
        if rng.random() < 0.5:
            name = rng.choice(list(self.named))
            some = [f"'{v}'" for v in rng.sample(self.named[name], min(2, len(self.named[name])))]
            return rng.choice(
                [
                    f"{name} = {some[0]}",
                    f"{name} <> {some[0]}",
                    f"{some[0]} = {name}",
                    f"{name} IN ({', '.join(some)})",
                    f"{name} NOT IN ({', '.join(some)})",
                    f"{name} IS NOT NULL",
                    f"{self.label} = {rng.randint(0, 1)}",
                ]
            )
        name = rng.choice(list(self.numbers))
        low, high = self.numbers[name]
        a, b = sorted(
            rng.choice([round(rng.uniform(low, high), 2), round(rng.uniform(low, high))]) for _ in range(2)
        )
        return rng.choice(
            [
                f"{name} {rng.choice(['<', '<=', '>', '>=', '=', '<>', '!='])} {a}",
                f"{a} < {name}",
                f"{name} BETWEEN {a} AND {b}",
                f"{name} NOT BETWEEN {a} AND {b}",
                f"{name} IN ({a}, {b})",
                f"{name} IS NULL",
                f"NOT {name} >= {b}",
            ]
        )

    def _dressed(self, sql: str) -> str:
        """In other letters, with comments and line ends."""
        rng = self.rng
        if rng.random() < 0.2:
            words = ("SELECT", "FROM", "WHERE", "GROUP BY", "COUNT", "AVG", "AND", "customers")
            sql = re.sub(
                "|".join(words), lambda m: rng.choice([m[0].lower(), m[0].title(), m[0].upper()]), sql
            )
        if rng.random() < 0.2:
            sql = sql.replace(" FROM", f" /* '); DROP TABLE customers; {SECRET} */\n FROM", 1)
        if rng.random() < 0.1:
            sql += rng.choice([" ;", f" -- {SECRET}", "\n\n;\n"])
        return sql

    def joined(self) -> Made:
        """Rows of one other table, by a roll-up that the contract has, or has not."""
        rng = self.rng
        join = rng.choice(
            ["JOIN {} USING (customer_id)", "JOIN {} t ON customers.customer_id = t.customer_id"]
        )
        known = [
            ("accounts", "SUM(balance)", ""),
            ("transactions", "SUM(amount)", "direction = 'out' AND date >= DATE '2025-04-03'"),
            ("transactions", "COUNT(*)", "date > DATE '2025-06-01'"),
            ("transactions", "COUNT(*)", "category = 'salary' AND date >= '2024-07-02'"),
            ("holdings", "COUNT(*)", ""),
            ("complaints", "COUNT(topic)", "date >= DATE '2024-07-02'"),
        ]
        unknown = [
            ("holdings", "COUNT(*)", "product = 'mortgage'"),
            ("accounts", "AVG(balance)", ""),
            ("accounts", "COUNT(DISTINCT customer_id)", ""),
            ("transactions", "SUM(amount)", "amount > 100"),
            ("transactions", "SUM(amount)", f"category = '{SECRET}'"),
            ("complaints", "COUNT(text)", ""),
            ("surveys", "SUM(nps)", "comment = 'x'"),
            ("transactions", "AVG(age)", ""),
            ("transactions", "COUNT(*)", "direction = 'in' OR segment = 'mass'"),
        ]
        wrong = rng.random() < 0.4
        table, ask, rows = rng.choice(unknown if wrong else known)
        mine = rng.choice(["", "segment = 'mass'", "gender <> 'male'"])
        where = " AND ".join(c for c in (rows, mine) if c)
        group = rng.choice(["", "segment", "area"])
        sql = f"SELECT {group + ', ' if group else ''}{ask} AS m0 FROM customers {join.format(table)}"
        sql += f" WHERE {where}" if where else ""
        sql += f" GROUP BY {group}" if group else ""
        return Made(sql, None if wrong else f"raw:{sql}", wrong, groups=int(bool(group)), asks=["sum"])

    def wrong(self) -> Made:
        """Well-formed, and not to be answered."""
        rng = self.rng
        pii, name, number = rng.choice(self.pii), rng.choice(list(self.named)), rng.choice(list(self.numbers))
        good = self._condition(1)
        return Made(
            rng.choice(
                [
                    "SELECT * FROM customers",
                    f"SELECT {name} FROM customers",
                    "SELECT customer_id, COUNT(*) FROM customers GROUP BY 1",
                    f"SELECT {pii}, COUNT(*) FROM customers GROUP BY {pii}",
                    f"SELECT COUNT(*) FROM customers WHERE {pii} = '{SECRET}'",
                    f"SELECT COUNT({pii}) FROM customers",
                    f"SELECT COUNT(DISTINCT {rng.choice([pii, name])}) FROM customers",
                    f"SELECT COUNT(*) FROM customers WHERE {name} = '{SECRET}'",
                    f"SELECT COUNT(*) FROM customers WHERE {name} IN ('{self.named[name][0]}', '{SECRET}')",
                    f"SELECT COUNT(*) FROM customers WHERE {name} LIKE '{SECRET}%'",
                    f"SELECT COUNT(*) FROM customers WHERE {name} < '{self.named[name][0]}'",
                    f"SELECT COUNT(*) FROM customers WHERE {number} = '{SECRET}'",
                    f"SELECT COUNT(*) FROM customers WHERE {number} > 1e12",
                    f"SELECT COUNT(*) FROM customers WHERE {number} > {number}",
                    "SELECT COUNT(*) FROM customers WHERE 1 = 1",
                    "SELECT COUNT(*) FROM customers WHERE TRUE",
                    f"SELECT COUNT(*) FROM customers WHERE {name} = NULL",
                    f"SELECT MAX({number}), MIN({number}) FROM customers",
                    f"SELECT AVG({name}) FROM customers",
                    f"SELECT STDDEV({number}) FROM customers",
                    f"SELECT LIST({number}) FROM customers",
                    f"SELECT FIRST({name}) FROM customers",
                    f"SELECT SUM({number} * 2) FROM customers",
                    f"SELECT SUM({number}) / COUNT(*) FROM customers",
                    f"SELECT AVG({number}) OVER (PARTITION BY {name}) FROM customers",
                    f"SELECT COUNT(*) FILTER (WHERE {good}) FROM customers",
                    "SELECT COUNT(*) FROM (SELECT * FROM customers) c",
                    f"SELECT COUNT(*) FROM customers WHERE {number} > (SELECT AVG({number}) FROM customers)",
                    "SELECT COUNT(*) FROM customers WHERE EXISTS (SELECT 1)",
                    "SELECT COUNT(*) FROM customers WHERE customer_id IN (SELECT customer_id FROM accounts)",
                    "WITH c AS (SELECT * FROM customers) SELECT COUNT(*) FROM c",
                    "SELECT COUNT(*) FROM customers UNION ALL SELECT COUNT(*) FROM customers",
                    "SELECT COUNT(*) FROM accounts",
                    "SELECT COUNT(*) FROM customers, accounts",
                    "SELECT COUNT(*) FROM customers CROSS JOIN accounts",
                    "SELECT COUNT(*) FROM customers JOIN accounts ON customers.age = accounts.balance",
                    "SELECT COUNT(*) FROM customers JOIN accounts USING (customer_id) NATURAL JOIN holdings",
                    "SELECT COUNT(*) FROM customers c JOIN customers d USING (customer_id)",
                    "SELECT COUNT(*)",
                    f"SELECT COUNT(*) FROM customers GROUP BY ROLLUP ({name})",
                    f"SELECT {name}, COUNT(*) FROM customers GROUP BY 2",
                    f"SELECT {name}, COUNT(*) FROM customers GROUP BY 7",
                    f"SELECT {number} + 1, COUNT(*) FROM customers GROUP BY 1",
                    "SELECT birth_year, COUNT(*) FROM customers GROUP BY 1",
                    "SELECT COUNT(*) FROM customers HAVING COUNT(*) = 3",
                    f"SELECT {name}, COUNT(*) FROM customers GROUP BY 1 HAVING {name} = '{self.named[name][0]}'",
                    "SELECT COUNT(*) FROM customers LIMIT 0",
                    "SELECT COUNT(*) FROM customers LIMIT 5 OFFSET 2",
                    "SELECT COUNT(*) FROM customers LIMIT (SELECT 1)",
                    "SELECT DISTINCT segment FROM customers",
                    "SELECT QUANTILE(age, 1.5) FROM customers",
                    "SELECT QUANTILE(age, 0) FROM customers",
                    "SELECT QUANTILE(age) FROM customers",
                    "SELECT COUNT(*) AS a, AVG(age) AS a FROM customers",
                    "SELECT COUNT(*) FROM customers USING SAMPLE 10%",
                    "SELECT COUNT(*) FROM other.customers",
                    "SELECT COUNT(*) FROM customers WHERE nothing_such > 3",
                    f"SELECT COUNT(*), {', '.join(self.named)} FROM customers GROUP BY ALL",
                    "SELECT AVG(SUM(age)) FROM customers",
                    "SELECT AVG(LEAST(age, 5)) FROM customers",
                    f"SELECT read_text('{SECRET}') FROM customers",
                    "SELECT COUNT(*) FROM 'customers.csv'",
                    "SELECT COUNT(*) FROM read_csv('customers.csv')",
                ]
            ),
            refused=True,
        )

    def hostile(self) -> Made:
        """To break a parser, a terminal, a page, or patience."""
        rng, n = self.rng, self.rng.choice([10, 300, 5000])
        return Made(
            rng.choice(
                [
                    f"SELECT COUNT(*) FROM customers; DROP TABLE customers; -- {SECRET}",
                    f"DELETE FROM customers WHERE full_name = '{SECRET}'",
                    f"COPY customers TO '{SECRET}'",
                    f"PRAGMA database_list; ATTACH '{SECRET}'",
                    f"UPDATE customers SET email = '{SECRET}'",
                    f'SELECT COUNT(*) AS "\x1b[31m{SECRET}" FROM customers',
                    f'SELECT COUNT(*) AS "<script>{SECRET}</script>" FROM customers',
                    f'SELECT "{SECRET}" FROM customers',
                    f'SELECT COUNT(*) FROM "{SECRET}"',
                    f"SELECT COUNT(*) FROM customers WHERE city = '\u202e{SECRET}\u0000'",
                    "SELECT COUNT(*) FROM customers WHERE " + "(" * n + "age > 30" + ")" * n,
                    "SELECT COUNT(*) FROM customers WHERE " + "NOT " * n + "age > 30",
                    "SELECT COUNT(*) FROM customers WHERE " + " OR ".join(["age > 30"] * n),
                    f"SELECT COUNT(*) FROM customers WHERE age IN ({', '.join(map(str, range(n)))})",
                    "SELECT " + ", ".join(f"COUNT(*) AS c{i}" for i in range(n)) + " FROM customers",
                    "SELECT " + "-" * n + "1 FROM customers",
                    f"SELECT COUNT(*) FROM customers WHERE age > {'9' * n}",
                    f"SELECT COUNT(*) FROM customers LIMIT {'9' * n}",
                    "SELECT AVG(" + "LEAST(" * 200 + "age" + ", 90)" * 200 + ") FROM customers",
                    "选择 计数(*) 从 客户",
                    "SELECT COUNT(*) FROM 客户",
                    "\x00",
                    "",
                    " ",
                    ";;;",
                    "'",
                    '"',
                    "/*",
                    "--",
                    "SELECT",
                    "💥" * n,
                    "{{7*7}}",
                    "$$" + SECRET,
                    "SELECT COUNT(*) FROM customers WHERE age > 'NaN'::DOUBLE",
                    "SELECT COUNT(*) FROM customers WHERE age > 1e999",
                    "SELECT COUNT(*) FROM customers WHERE age > -1e999",
                    "SELECT COUNT(*) FROM customers WHERE segment = e'\\x41'",
                    f"SELECT COUNT(*) FROM customers WHERE segment = 'mass' OR '{SECRET}' = '{SECRET}'",
                    f"SELECT COUNT(*) FROM customers WHERE CASE WHEN segment = '{SECRET}' THEN 1 ELSE 0 END = 1",
                ]
            )
        )

    def broken(self) -> Made:
        """A good statement with words lost, doubled, moved or exchanged."""
        rng = self.rng
        words = re.findall(
            r"\w+|'[^']*'|\S|\s+", (self.understood() if rng.random() < 0.7 else self.wrong()).sql
        )
        for _ in range(rng.randint(1, 3)):
            i, j = rng.randrange(len(words)), rng.randrange(len(words))
            match rng.randrange(4):
                case 0:
                    words[i] = ""
                case 1:
                    words[i] = words[i] * 2
                case 2:
                    words[i], words[j] = words[j], words[i]
                case _:
                    words[i] = rng.choice(
                        ["(", ")", ",", "*", "'", "NULL", "SELECT", "email", SECRET, "é", "0"]
                    )
        return Made("".join(words))


# --- a bank, in vaults and in DuckDB -----------------------------------------------------------------------


@dataclass
class Bank:
    made: SimulatedBranches
    contract: Contract
    vaults: dict[int, Answerer]
    columns: dict[str, pa.ChunkedArray]  # all branches' customers, roll-ups among them
    db: duckdb.DuckDBPyConnection  # `customers` has the columns; the schema `raw` the files as they are

    @property
    def customers(self) -> int:
        return len(next(iter(self.columns.values())))


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> SampleBank:
    return generate(tmp_path_factory.mktemp("query") / "bank", branches=3, customers_per_branch=150)


@pytest.fixture(scope="module")
def bank(sample: SampleBank) -> Iterator[Bank]:
    contract = load_contract(sample.contract)
    names = tuple(c.name for c in contract.customer_table.columns if c.role in (*READABLE, Role.BRANCH))
    names += tuple(f.name for f in contract.features)
    db = duckdb.connect(config={"threads": 1})
    db.execute("CREATE SCHEMA raw")
    for table in contract.tables:
        files = [str(next(f.glob(f"{table.name}.*"))) for f in sample.branches.values()]
        read = " UNION ALL BY NAME ".join(f"SELECT * FROM '{f}'" for f in files)
        db.execute(f"CREATE TABLE raw.{table.name} AS {read}")
    with bank_branches(sample, budget_epsilon=1e5, budget_delta=1e-2) as made:
        vaults = open_vaults(made.homes)
        data: list[WarmData] = [v.__self__._data for v in vaults.values()]  # type: ignore[attr-defined]
        parts = [d.columns(names) for d in data]
        columns = {n: pa.chunked_array([c for p in parts for c in p[n].chunks]) for n in names}
        frame = pa.table(columns)  # noqa: F841 - DuckDB finds it by its name
        db.execute("CREATE TABLE customers AS SELECT * FROM frame")
        yield Bank(made, contract, vaults, columns, db)


def total_of(asked: Query, columns: Mapping[str, Any]) -> np.ndarray:
    """Without clipping: whose vector is longer than its bound is found here."""
    found = asked.contribute(0, {n: columns[n] for n in asked.columns}, None)
    if not isinstance(found, Cells):
        assert (np.einsum("ij,ij->i", found.rows, found.rows) <= 1 + 1e-9).all()
        return found.rows.sum(axis=0)
    assert np.linalg.norm(found.weights) <= 1 + 1e-9
    total = np.zeros(found.length)
    for cell, weight in zip(found.cells.T, found.weights, strict=True):
        assert cell.max(initial=-1) < found.length
        total += weight * np.bincount(cell[cell >= 0], minlength=found.length)
    return total


def declared(contract: Contract) -> set[str]:
    """All that a group can be called, by the contract."""
    table = contract.customer_table
    names = [c.name for c in table.columns if c.role in READABLE] + [f.name for f in contract.features]
    cells = set[str]()
    for name in names:
        try:
            cells |= set(domain(contract, name, 32).cells)
        except BadInput:  # no cells: it cannot be a group
            continue
    return cells


def check(bank: Bank, made: Made, answer: Mapping[str, Any], grain: float = 0.0) -> int:
    """Hold an answer without noise against DuckDB's. Returns how many numbers were. `grain` is what the grid may have
    taken off each number of the sum."""
    assert made.truth is not None
    raw = made.truth.removeprefix("raw:")
    bank.db.execute(f"SET search_path = '{'raw' if raw != made.truth else 'memory.main'}'")
    truth = {tuple(row[: made.groups]): row[made.groups :] for row in bank.db.execute(raw).fetchall()}
    (part,) = answer["parts"]
    asked = query.build(compiled(made.sql, bank.contract), bank.contract)
    assert isinstance(asked, Query)
    fine = [m.reach(asked.blocks, grain, 1.0) for m in asked.measures.values() if m.measure.shown]
    compared = 0
    for row in part["rows"]:
        seen = [row[name] for name in part["units"]]
        of = tuple(row["of"])
        if of not in truth:
            for number, ask, more in zip(seen, made.asks, fine, strict=True):
                assert ask not in ("count", "sum") or abs(number["value"]) < 1e-3 + more, (made.sql, of)
            continue
        for number, ask, value, more in zip(seen, made.asks, truth[of], fine, strict=True):
            if value is None:  # nobody has a value there
                continue
            value = float(value)
            slack = 1e-6 * max(abs(value), 1.0) + 1e-3 + (more if ask != "quantile" else 0.0)
            assert number["low"] - slack <= value <= number["high"] + slack, (made.sql, of, number, value)
            if ask != "quantile":
                assert number["value"] == pytest.approx(value, abs=slack), (made.sql, of)
            compared += 1
    return compared


# --- 2,000 statements --------------------------------------------------------------------------------------


def test_2000_statements_are_answered_rightly_or_refused_with_a_reason(bank: Bank) -> None:
    """Of one seed. What is answered costs what was estimated, as a vault reckons it from the job's bytes, shows no
    cell that the contract does not declare, and says without noise what DuckDB says."""
    statements, cells = Statements(bank.contract, SEED), declared(bank.contract)
    answered = refused = numbers = 0
    for i in range(STATEMENTS):
        made = statements.one()
        asking = Asking((0.3, 1.0, 2.0)[i % 3], 1e-5)
        try:
            job = asking.job(made.sql, bank.contract)
        except BadInput as e:
            refused += 1
            assert len(e.message) > 10, made.sql
            assert SECRET not in str(e) and "\x1b" not in str(e) and "<script" not in str(e)
            assert made.truth is None or "numbers can be read" in e.message, (made.sql, str(e))
            continue
        assert not made.refused, made.sql
        answered += 1
        assert SECRET not in job.model_dump_json()
        estimate = Estimate.of(job, bank.contract, 3)
        asked = catalogue.build(job.kind, job.question, bank.contract)
        assert isinstance(asked, Query)
        assert (estimate.numbers, estimate.groups) == (asked.length(0), len(asked.possible))
        assert 0 < estimate.epsilon_once < estimate.epsilon <= asking.epsilon
        if answered % EVERY:
            continue
        received = AnalysisJob.model_validate_json(job.model_dump_json())
        assert Plan.of(received, bank.contract).epsilon() == estimate.epsilon
        if asked.length(0) * bank.customers > LARGEST:
            continue
        answer = asked.read([NoisySum(total_of(asked, bank.columns), TINY)])
        json.dumps(answer, allow_nan=False)
        (part,) = answer["parts"]
        assert {of for row in part["rows"] for of in row["of"]} <= cells
        if made.truth is not None and not made.truth.startswith("raw:"):
            numbers += check(bank, made, answer)
    assert answered > 0.5 * STATEMENTS and refused > 0.25 * STATEMENTS and numbers > 12_000 / EVERY


# --- through real vaults -----------------------------------------------------------------------------------


@pytest.fixture
def without_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shares of (almost) no noise, so that totals can be held against DuckDB's."""
    monkeypatch.setattr(SumNoise, "share_variance", lambda self, l2: 1)


@pytest.mark.usefixtures("without_noise")
def test_what_vaults_answer_and_charge_is_what_was_asked_and_estimated(bank: Bank) -> None:
    """24 statements, joins among them: the sum is DuckDB's, each ledger's charge the estimate's to the last bit."""
    statements, numbers = Statements(bank.contract, 7), 0
    several = [m for m in (statements.joined() for _ in range(60)) if m.truth][:9]
    several += [statements.understood() for _ in range(15)]
    for i, made in enumerate(several):
        asking = Asking((0.5, 1.0)[i % 2], 1e-5, repeats=(None, 0)[i % 2])
        try:
            job = asking.job(made.sql, bank.contract)
        except BadInput as e:
            assert "numbers can be read" in e.message
            continue
        job = job.model_copy(update={"audit": AnalysisAudit(empty_slots=0, canaries=0)})
        estimate = Estimate.of(job, bank.contract, 3)
        outcome = run_in_process(bank.vaults, job, bank.contract, bank.made.key)
        assert outcome.summary["epsilon"] == estimate.epsilon
        for home in bank.made.homes:
            charges = Ledger.read(home.ledger).entries("charge", job_id=outcome.summary["job_id"])
            events = [accounting.decode_event(c.body["event"]) for c in charges]
            assert accounting.pld_epsilon(events, job.privacy.delta) == estimate.epsilon_once
        assert (estimate.epsilon == estimate.epsilon_once) is (job.federation.repeats == 0)
        assert outcome.answer is not None and made.truth is not None
        numbers += check(bank, made, outcome.answer, grain=bank.customers / GRID)
    assert numbers > 150


def test_the_noise_is_the_estimated_one(bank: Bank) -> None:
    """What a count is off by, over 40 groups, has the standard deviation that was told beforehand: a chi-square test
    that fails by chance once in 10,000 times."""
    sql = "SELECT city, channel, COUNT(*) AS n FROM customers GROUP BY ALL"
    job = Asking(1.0, 1e-5).job(sql, bank.contract)
    estimate = Estimate.of(job, bank.contract, 3)
    outcome = run_in_process(bank.vaults, job, bank.contract, bank.made.key)
    bank.db.execute("SET search_path = 'memory.main'")
    truth = {row[:2]: row[2] for row in bank.db.execute(sql).fetchall()}
    assert outcome.answer is not None
    (part,) = outcome.answer["parts"]
    # Where an interval begins at 0 the estimate may have been cut; elsewhere it is as it came.
    off = [r["n"]["high"] - estimate.widths[0].half - truth.get(tuple(r["of"]), 0) for r in part["rows"]]
    assert len(off) == 48
    chi = sum((x / (estimate.widths[0].half / REACH)) ** 2 for x in off)
    low, high = stats.chi2.ppf([5e-5, 1 - 5e-5], len(off))
    assert low < chi < high


# --- the command -------------------------------------------------------------------------------------------


def ask(sql: str, sample: SampleBank, **more: Any) -> None:
    """`sfumato query` over the sample bank's files."""
    given: dict[str, Any] = {
        "contract": sample.contract,
        "data": sample.contract.parent,
        "epsilon": 1.0,
        **more,
    }
    query_cli.query(sql, **given)


SQL = "SELECT segment, COUNT(*) AS customers, AVG(churned) FROM customers WHERE age > 30 GROUP BY 1 ORDER BY 2 DESC"


def test_the_command_estimates_and_answers_over_files(
    sample: SampleBank, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ask(SQL, sample, estimate=True, json_file=tmp_path / "estimate.json")
    told = json.loads((tmp_path / "estimate.json").read_text())
    assert "5 groups, 10 numbers in one sum over 3 branches" in capsys.readouterr().out
    ask(SQL, sample, json_file=tmp_path / "a.json", csv_file=tmp_path / "a.csv")
    shown = capsys.readouterr().out
    assert "3 branches" in shown and "mass" in shown and "AVG(churned)" in shown
    (answer,) = json.loads((tmp_path / "a.json").read_text())["answers"]
    assert answer["epsilon"] == told["epsilon"]
    rows = [r for r in answer["rows"] if r["measure"] == "customers" and r["by"]]
    assert rows[0]["of"] == ["mass"] and len(rows) == 5
    assert (tmp_path / "a.csv").read_text().count("\n") == 1 + 1 + 10


@pytest.mark.parametrize(
    ("more", "fragment"),
    [
        ({"data": None}, "say whom to ask"),
        ({"home": Path("x")}, "say whom to ask"),
        ({"contract": None}, "needs the contract"),
        ({"mode": "open"}, "--mode is one of"),
        ({"colluders": 2}, "needs 4"),
        ({"epsilon": 99.0}, "target_epsilon"),
        ({"purpose": "why"}, "purpose"),
    ],
)
def test_bad_options_are_refused(sample: SampleBank, more: dict[str, Any], fragment: str) -> None:
    with pytest.raises(BadInput, match=fragment):
        ask(SQL, sample, **{"estimate": True, **more})
