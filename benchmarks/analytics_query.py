"""SQL questions over the sample bank: each number's interval against the pooled, exact answer of DuckDB."""

import tempfile
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
from analytics_harness import Case, Columns, Pairs, bank_columns, pooled

from sfumato.common.analyses.query import Query, Question, build
from sfumato.common.contract import Contract, load_contract
from sfumato.lab.samplebank import generate
from sfumato.server.query.compile import compiled

# What is asked, and the same in DuckDB's words where groups are bands or functions are called otherwise.
BANDS = {
    "age": "CASE WHEN age < 22 THEN '18 to 21' "
    + " ".join(
        f"WHEN age < {b} THEN '{a} to {b - 1}'"
        for a, b in zip(
            (22, 25, 28, 31, 35, 40, 45, 50, 55, 60, 65, 70, 75, 80),
            (25, 28, 31, 35, 40, 45, 50, 55, 60, 65, 70, 75, 80, 85),
            strict=True,
        )
    )
    + " ELSE '85 to 100' END",
}
QUESTIONS = {
    "whole": (
        "SELECT COUNT(*), AVG(churned), AVG(age), SUM(txn_count_90d), AVG(nps_mean_365d), MEDIAN(balance_total), "
        "QUANTILE(spent_365d, 0.9) FROM customers",
        None,
    ),
    "by segment": (
        "SELECT segment, COUNT(*), AVG(churned), AVG(tenure_months), MEDIAN(balance_total) FROM customers GROUP BY 1",
        None,
    ),
    "churn by two": (
        "SELECT segment, area, COUNT(*), AVG(churned), SUM(churned) FROM customers WHERE age >= 25 GROUP BY 1, 2",
        None,
    ),
    "by age": (
        "SELECT age, COUNT(*), AVG(txn_count_30d), COUNT(nps_mean_365d) FROM customers GROUP BY 1",
        "SELECT {age}, COUNT(*), AVG(txn_count_30d), COUNT(nps_mean_365d) FROM customers GROUP BY 1",
    ),
    "money, cut": (
        "SELECT income_band, AVG(LEAST(GREATEST(balance_total, -5000), 50000)) AS a, "
        "SUM(GREATEST(spent_365d, -20000)) AS b, QUANTILE(age, 0.25) FROM customers "
        "WHERE channel IN ('mobile', 'web') OR NOT city = 'Oakridge' GROUP BY 1",
        None,
    ),
    "the largest": (
        "SELECT city, channel, COUNT(*) AS n, AVG(churned) FROM customers GROUP BY 1, 2 HAVING COUNT(*) > 50 "
        "ORDER BY n DESC LIMIT 12",
        "SELECT city, channel, COUNT(*) AS n, AVG(churned) FROM customers GROUP BY 1, 2",
    ),
}


def cases() -> Iterator[Case]:
    with tempfile.TemporaryDirectory() as directory:
        bank = generate(Path(directory) / "bank")
        contract = load_contract(bank.contract)
        names = {n for sql, _ in QUESTIONS.values() for n in _asked(sql, contract).columns}
        branches = bank_columns(bank, sorted(names), Path(directory))
        yield from (_case(name, contract, branches) for name in QUESTIONS)


def _asked(sql: str, contract: Contract) -> Query:
    asked = build(compiled(sql, contract), contract)
    assert isinstance(asked, Query)
    return asked


def _case(name: str, contract: Contract, branches: tuple[Columns, ...]) -> Case:
    sql, exact = QUESTIONS[name]
    question: Question = compiled(sql, contract)
    customers = pa.table(pooled(branches))
    db = duckdb.connect(config={"threads": 1})
    db.register("customers", customers)
    groups = len(question.groups)
    rows = db.execute((exact or sql).format(**BANDS)).fetchall()
    truth = {
        row[:groups]: dict(zip((m.name for m in question.measures), row[groups:], strict=True))
        for row in rows
    }
    everyone = db.execute(f"SELECT COUNT(*) FROM customers{_where(sql)}").fetchone()
    assert everyone is not None
    return Case(
        name,
        contract,
        "query",
        question.model_dump(mode="json"),
        branches,
        partial(_pairs, truth, everyone[0]),
    )


def _where(sql: str) -> str:
    """The condition, as it stands."""
    return " WHERE" + sql.split(" WHERE", 1)[1].split(" GROUP BY", 1)[0] if " WHERE" in sql else ""


def _pairs(
    truth: Mapping[tuple[str, ...], Mapping[str, Any]], everyone: int, answer: Mapping[str, Any]
) -> Pairs:
    """Where nobody is, a count's truth is 0, and a mean or quantile has none."""
    yield "all customers", answer["customers"], everyone
    (part,) = answer["parts"]
    for row in part["rows"]:
        known = truth.get(tuple(row["of"]))
        for measure, unit in part["units"].items():
            exact = known[measure] if known else 0 if unit == "customers" or "SUM" in measure else None
            if exact is not None:
                yield measure.split("(")[0], row[measure], float(exact)
