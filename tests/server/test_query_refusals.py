"""SQL that is refused says why and what to ask instead; SQL that is understood becomes the question it means."""

import json
import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sfumato.common.contract import Contract
from sfumato.common.errors import BadInput
from sfumato.common.job import sign_job
from sfumato.server.home import CoordinatorHome
from sfumato.server.query.asking import Asking, known_contract, left_at
from sfumato.server.query.compile import compiled
from sfumato.server.query.estimate import Estimate

ID: dict[str, Any] = {"name": "cid", "type": "string", "role": "customer_id"}
CONTRACT = Contract.model_validate(
    {
        "version": 1,
        "name": "shop",
        "purpose": "to be tested",
        "as_of": "2025-07-01",
        "customers": "people",
        "tables": [
            {
                "name": "people",
                "columns": [
                    ID,
                    {"name": "email", "type": "string", "role": "pii", "protection": "encrypt"},
                    {"name": "town", "type": "category", "categories": ["ash", "elm"], "nullable": True},
                    {
                        "name": "age",
                        "type": "integer",
                        "role": "feature",
                        "bounds": [18, 100],
                        "edges": [40, 60],
                    },
                    {"name": "wealth", "type": "number", "role": "amount", "bounds": [0, 1000]},
                    {"name": "since", "type": "date"},
                    {"name": "vip", "type": "boolean"},
                    {"name": "left", "type": "integer", "role": "label"},
                ],
            },
            {
                "name": "orders",
                "columns": [
                    ID,
                    {"name": "day", "type": "date", "role": "time"},
                    {"name": "paid", "type": "number", "role": "amount", "bounds": [0, 500]},
                    {"name": "kind", "type": "category", "categories": ["book", "toy"]},
                    {"name": "size", "type": "integer", "bounds": [1, 9]},
                    {"name": "note", "type": "string", "role": "pii", "protection": "encrypt"},
                ],
            },
            {"name": "visits", "columns": [{**ID, "name": "who"}, {"name": "pages", "type": "integer"}]},
        ],
        "features": [
            {"name": "orders_all", "table": "orders", "aggregate": "count", "bounds": [0, 50]},
            {
                "name": "paid_all",
                "table": "orders",
                "aggregate": "sum",
                "column": "paid",
                "bounds": [0, 2000],
            },
            {
                "name": "toys_30d",
                "table": "orders",
                "aggregate": "sum",
                "column": "paid",
                "where": {"kind": "toy", "size": "3"},
                "days": 30,
                "bounds": [0, 300],
            },
        ],
    }
)
JOIN = "FROM people JOIN orders USING (cid)"


def question(sql: str) -> dict[str, Any]:
    return compiled(sql, CONTRACT).model_dump(mode="json", exclude_defaults=True)


@pytest.mark.parametrize(
    ("sql", "fragment", "hint"),
    [
        ("SELECT * FROM people", "rows of customers never leave", "COUNT"),
        ("SELECT town FROM people", "rows of customers never leave", "Group by it"),
        ("SELECT town FROM people GROUP BY 1", "nothing is counted", "COUNT"),
        ("SELECT email, COUNT(*) FROM people GROUP BY 1", "personal data", "choose features"),
        ("SELECT COUNT(*) FROM people WHERE income > 3", "'income' is not declared", "town, age, wealth"),
        ('SELECT COUNT(*) FROM people WHERE "in;come" > 3', "column is not declared", "town"),
        ("SELECT COUNT(*) FROM clients", "'clients' is not declared", "people, orders"),
        ("SELECT COUNT(*) FROM people WHERE town = 'oak'", "town has no such value", "ash, elm"),
        ("SELECT COUNT(*) FROM people WHERE town > 'ash'", "no order", "ash, elm"),
        ("SELECT COUNT(*) FROM people WHERE town LIKE 'a%'", "like is no condition", "IN with the values"),
        ("SELECT COUNT(*) FROM people WHERE age > 100.5", "no customer can meet", "between 18 and 100"),
        ("SELECT COUNT(*) FROM people WHERE age = 'x'", "age is a number", "Compare"),
        ("SELECT COUNT(*) FROM people WHERE since > 3", "since is a date", "DATE '2025-01-31'"),
        ("SELECT COUNT(*) FROM people WHERE since > DATE 'soon'", "cannot be read", "DATE '2025-01-31'"),
        ("SELECT COUNT(*) FROM people WHERE cid = 'c1'", "the customer id", "No analysis"),
        ("SELECT MIN(age) FROM people", "one customer's own", "QUANTILE(x, 0.01)"),
        ("SELECT AVG(town) FROM people", "no number", "Group by it"),
        ("SELECT COUNT(DISTINCT town) FROM people", "counts customers alone", "COUNT(DISTINCT cid)"),
        ("SELECT wealth, COUNT(*) FROM people GROUP BY 1", "no declared groups", "Declare edges"),
        ("SELECT age / 10, COUNT(*) FROM people GROUP BY 1", "arithmetic is no group", "edges"),
        ("SELECT SUM(wealth) / COUNT(*) FROM people", "arithmetic is no aggregate", "afterwards"),
        ("SELECT AVG(wealth) OVER () FROM people", "a window function", "understood"),
        ("SELECT COUNT(*) FROM (SELECT * FROM people) p", "a subquery", ""),
        ("SELECT COUNT(*) FROM people WHERE age IN (SELECT 3)", "a subquery", ""),
        ("SELECT town, COUNT(*) FROM people GROUP BY 1 HAVING town = 'ash'", "HAVING compares", ""),
        ("SELECT town, COUNT(*) FROM people GROUP BY 1 HAVING town > 3", "HAVING compares a group", "WHERE"),
        ("SELECT COUNT(*) FROM people; SELECT 1", "takes one statement", ""),
        ("DROP TABLE people", "no SELECT, but a command", "one plain SELECT"),
        ("SELECT COUNT(* FROM people", "not SQL that can be read (line 1", "docs/query.md"),
        ("SELECT COUNT(*) FROM orders", "orders has rows", "FROM people JOIN orders USING (cid)"),
        ("SELECT COUNT(*) FROM people, orders", "tables are joined", "USING"),
        ("SELECT AVG(wealth) " + JOIN, "once for each row", "Leave the join out"),
        ("SELECT AVG(paid) " + JOIN, "SUM and COUNT alone", "ask for both"),
        ("SELECT kind, COUNT(*) " + JOIN + " GROUP BY 1", "several groups of kind", "one of them at a time"),
        ("SELECT COUNT(*) " + JOIN + " WHERE kind = 'car'", "kind has no such value", "book, toy"),
        ("SELECT COUNT(*) " + JOIN + " WHERE paid > 3", "rows cannot be kept by paid", "time >= day"),
        ("SELECT COUNT(*) " + JOIN + " WHERE kind = 'toy' OR age > 30", "kind of rows", "joined by AND"),
        ("SELECT COUNT(note) " + JOIN + " WHERE note = 'x'", "personal data", "No question"),
        ("SELECT SUM(note) " + JOIN, "no number that can be added", ""),
        ("SELECT COUNT(*) " + JOIN + " WHERE day >= DATE '2026-01-01'", "no row lies in that time", ""),
        (
            "SELECT COUNT(*) FROM people LEFT JOIN orders USING (cid)",
            "without rows as a row",
            "COUNT of a column",
        ),
        ("SELECT COUNT(*) FROM people JOIN visits USING (cid)", "joined by the customer alone", "USING"),
    ],
)
def test_a_refusal_says_why_and_what_to_ask_instead(sql: str, fragment: str, hint: str) -> None:
    with pytest.raises(BadInput) as refused:
        compiled(sql, CONTRACT)
    assert fragment in refused.value.message and hint in refused.value.hint


def test_a_missing_rollup_is_written_out_to_be_declared() -> None:
    with pytest.raises(BadInput) as refused:
        compiled(f"SELECT SUM(paid) {JOIN} WHERE kind = 'book' AND day >= DATE '2025-06-02'", CONTRACT)
    declared = [line.strip() for line in refused.value.hint.splitlines()[1:]]
    assert declared == [
        "[[features]]",
        'name = "orders_paid_sum"',
        'table = "orders"',
        'aggregate = "sum"',
        'column = "paid"',
        'where = { "kind" = "book" }',
        "days = 30",
        "bounds = [LOW, HIGH]",
    ]


COUNT = {"name": "COUNT(*)", "ask": "count"}
TOYS = {"name": "SUM(paid)", "ask": "sum", "column": "toys_30d"}


@pytest.mark.parametrize(
    ("sql", "meant"),
    [
        ("select count(*) from PEOPLE", {"measures": [COUNT]}),
        ("SELECT COUNT(cid) AS n FROM people p", {"measures": [{"name": "n", "ask": "count"}]}),
        (
            "SELECT p.town AS t, COUNT(*) FROM people AS p GROUP BY t ORDER BY 2 DESC, t LIMIT 3",
            {
                "groups": [{"column": "town", "name": "t"}],
                "measures": [COUNT],
                "order": [{"by": "COUNT(*)", "down": True}, {"by": "t"}],
                "limit": 3,
            },
        ),
        (
            "SELECT AVG(GREATEST(LEAST(wealth, 500), 10)) AS w FROM people HAVING COUNT(*) > 5 AND w <= 40",
            {
                "measures": [
                    {"name": "w", "ask": "mean", "column": "wealth", "low": 10.0, "high": 500.0},
                    {**COUNT, "shown": False},
                ],
                "having": [
                    {"column": "COUNT(*)", "low": 5.0, "low_open": True},
                    {"column": "w", "high": 40.0},
                ],
            },
        ),
        (
            f"SELECT SUM(paid) {JOIN} WHERE kind = 'toy' AND size = 3 AND day > '2025-06-01'",
            {"measures": [TOYS]},
        ),
        (
            f"SELECT COUNT(DISTINCT cid) AS buyers, SUM(orders.paid) {JOIN} WHERE age < 30",
            {
                "measures": [
                    {"name": "buyers", "ask": "count"},
                    {"name": "SUM(paid)", "ask": "sum", "column": "paid_all"},
                ],
                "where": {
                    "of": [
                        {"column": "orders_all", "low": 1.0},
                        {"column": "age", "high": 30.0, "high_open": True},
                    ]
                },
            },
        ),
        (
            "SELECT COUNT(DISTINCT cid) AS n FROM people LEFT JOIN orders o ON o.cid = people.cid",
            {"measures": [{"name": "n", "ask": "count"}]},
        ),
        (
            "SELECT COUNT(kind) FROM people LEFT JOIN orders USING (cid)",
            {"measures": [{"name": "COUNT(kind)", "ask": "sum", "column": "orders_all"}]},
        ),
        (
            "SELECT AVG(left::INT) AS gone, AVG(CAST(vip AS DOUBLE)) AS v FROM people WHERE NOT vip",
            {
                "measures": [
                    {"name": "gone", "ask": "mean", "column": "left"},
                    {"name": "v", "ask": "mean", "column": "vip"},
                ],
                "where": {"of": {"column": "vip", "values": ["true"]}},
            },
        ),
    ],
)
def test_sql_becomes_the_question_that_it_means(sql: str, meant: dict[str, Any]) -> None:
    assert question(sql) == meant


def test_a_refusal_never_repeats_a_literal() -> None:
    for sql in (
        "SELECT COUNT(*) FROM people WHERE town = '{}'",
        "SELECT COUNT(*) FROM people WHERE since > DATE '{}'",
        "SELECT COUNT(*) {join} WHERE kind = '{}'",
        "SELECT '{}' FROM people",
        "SELECT COUNT(*) FROM people WHERE f('{}')",
        'SELECT COUNT(*) AS "{}<" FROM people',
        'SELECT COUNT(*) FROM "{}"',
        "SELECT '{}",
    ):
        with pytest.raises(BadInput) as refused:
            compiled(sql.format("Ada Geheim", join=JOIN), CONTRACT)
        assert "Geheim" not in str(refused.value)


# --- cost --------------------------------------------------------------------------------------------------


def test_the_estimate_knows_branches_repeats_and_mode() -> None:
    sql = "SELECT town, COUNT(*), AVG(wealth), MEDIAN(age) FROM people GROUP BY 1"
    four = Estimate.of(Asking(1.0, 1e-5).job(sql, CONTRACT), CONTRACT, 4)
    assert four.epsilon_once < four.epsilon <= 1.0 and (four.groups, four.numbers) == (3, 3 * (2 + 6 * 17))
    once = Estimate.of(Asking(1.0, 1e-5, repeats=0).job(sql, CONTRACT), CONTRACT, 4)
    assert once.epsilon == once.epsilon_once and once.std < 0.75 * four.std
    many = Estimate.of(Asking(1.0, 1e-5).job(sql, CONTRACT), CONTRACT, 16)
    assert many.std < four.std  # a colluder's share is a smaller part
    local = Estimate.of(Asking(1.0, 1e-5, "local").job(sql, CONTRACT), CONTRACT, 16)
    assert local.std > 3 * once.std
    assert [w.of_ranks for w in four.widths] == [False, False, True]
    json.dumps(four.as_dict(), allow_nan=False)
    with pytest.raises(BadInput, match="2 branches are enrolled"):
        Estimate.of(Asking(1.0, 1e-5).job(sql, CONTRACT), CONTRACT, 2)


def test_the_contract_and_what_is_left_are_known_from_earlier_runs(tmp_path: Path) -> None:
    home = CoordinatorHome.init(tmp_path / "home", host="127.0.0.1", port=29092, session_port=29093)
    with pytest.raises(BadInput, match="no run here says"):
        known_contract(home)
    key, job = Ed25519PrivateKey.generate(), Asking().job("SELECT COUNT(*) FROM people", CONTRACT)
    other = CONTRACT.model_copy(update={"name": "other"})
    for number, contract, left in ((7, CONTRACT, 3.0), (3, CONTRACT, 2.5), (4, other, 1.0)):
        run = home.directory("runs") / str(number)
        run.mkdir()
        named = job.model_copy(update={"contract": contract.name})
        signed = sign_job(named, contract, key, valid_for=timedelta(hours=1))
        (run / "job.json").write_text(signed.model_dump_json())
        result = {"state": "finished", "per_branch": [{"name": "a", "epsilon_remaining": left}]}
        (run / "result.json").write_text(json.dumps(result))
        os.utime(run / "result.json", (1e9 + 10 * left, 1e9 - 10 * left))  # the least is left by the latest
        if number == 3:
            assert known_contract(home) == CONTRACT and left_at(home) == {"a": 2.5}
    assert left_at(home) == {"a": 1.0}
    with pytest.raises(BadInput, match="several contracts"):
        known_contract(home)
