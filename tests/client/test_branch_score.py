"""`sfumato branch score` on a branch that was set up and loaded as by hand: what it writes, what the ledger says."""

import csv
import hashlib
import json
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import Result
from typer.testing import CliRunner

from sfumato.client import score_file as score_files
from sfumato.client import scoring
from sfumato.client.cli import app
from sfumato.client.features import analysis_frame
from sfumato.client.home import BranchHome
from sfumato.client.ingest.load import ingest, open_source
from sfumato.client.policy import Policy
from sfumato.client.setup import init_branch
from sfumato.client.status import describe_entry
from sfumato.client.vault.store import Store
from sfumato.common.analyses.analysis import NoisySum
from sfumato.common.contract import Contract
from sfumato.common.errors import BadInput
from sfumato.common.job import Model
from sfumato.common.learners import churn_net, scorecard_fit
from sfumato.common.learners.encoding import inputs_hash
from sfumato.common.learners.learner import Coded
from sfumato.common.learners.models import ModelHeader, SavedModel
from sfumato.common.learners.schema import SchemaRound, label_codes
from sfumato.common.learners.scoring import scorer
from sfumato.common.learners.text import hashed
from sfumato.privacy.entries import Entry
from sfumato.privacy.export import verify_export
from sfumato.privacy.keys import PassphraseKeyProvider
from sfumato.privacy.ledger import Ledger
from sfumato.server.home import CoordinatorHome

PASSPHRASE = "four words of nonsense"
CUSTOMERS = 150
PURPOSE = "Call those who are about to leave, campaign 12"
CONTRACT = """
version = 1
name = "shop"
purpose = "To be scored under, in tests."
customers = "customers"
as_of = 2026-06-30
[[tables]]
name = "customers"
columns = [
  { name = "id", type = "string", role = "customer_id" },
  { name = "full name", type = "string", role = "pii", protection = "encrypt" },
  { name = "phone", type = "string", role = "pii", protection = "encrypt", nullable = true },
  { name = "iban", type = "string", role = "pii", protection = "token" },
  { name = "town", type = "category", role = "feature", categories = ["ash", "elm"] },
  { name = "age", type = "integer", role = "feature", bounds = [18, 100] },
  { name = "left", type = "integer", role = "label" },
]
[[tables]]
name = "orders"
columns = [
  { name = "id", type = "string", role = "customer_id" },
  { name = "day", type = "date", role = "time" },
  { name = "note", type = "string", role = "text", nullable = true },
]
[[features]]
name = "order_count"
table = "orders"
aggregate = "count"
bounds = [0, 20]
"""


@dataclass
class Made:
    """A branch, its source rows by customer id, and a model of each kind that is needed here."""

    home: BranchHome
    contract: Contract
    rows: dict[str, dict[str, str]]
    source: Path
    models: dict[str, Path]
    frame: dict[str, Any]  # the model's inputs, in the order of the tokens
    tokens: list[str]
    ids: dict[str, str]  # by token

    def score(self, kind: str, out: Path, *options: str, typed: tuple[str, ...] = (PASSPHRASE,)) -> Result:
        """The command, with these lines typed at its prompts."""
        words = ["score", str(self.home.path), str(self.models[kind]), "--out", str(out), *options]
        return CliRunner().invoke(app, words, input="".join(f"{line}\n" for line in typed))

    def entries(self) -> list[Entry]:
        ledger = Ledger.read(self.home.ledger)
        try:
            ledger.verify()
            return ledger.entries()
        finally:
            ledger.close()


def refused(result: Result, says: str) -> None:
    assert isinstance(result.exception, BadInput), (result.exception, result.output)
    assert says in str(result.exception)


def source_rows() -> dict[str, dict[str, str]]:
    rng = np.random.default_rng(2)
    return {
        f"C{i:04d}": {
            "id": f"C{i:04d}",
            "full name": f'Ann "{i}", née 名{i}',
            "phone": "" if i % 7 == 0 else f"+41 79 000 {i:04d}",
            "iban": f"CH{i:010d}",
            "town": ["ash", "elm"][i % 2],
            "age": str(rng.integers(18, 100)),
            "left": str(rng.integers(0, 2)),
        }
        for i in range(CUSTOMERS)
    }


def write_csv(path: Path, rows: list[dict[str, str]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_models(folder: Path, contract: Contract, frame: dict[str, Any]) -> dict[str, Path]:
    def saved(kind: Any, tensors: Any, parameters: dict[str, Any], **more: Any) -> Path:
        header = ModelHeader(
            kind=kind,
            name=f"the-{kind}",
            purpose="tests",
            job_id="0f" * 16,
            job_hash="ab" * 32,
            contract=contract.hash,
            contract_name=contract.name,
            inputs=inputs_hash(contract),
            label=None if kind in ("segments", "sentiment", "clv") else "left",
            epsilon=1.0,
            delta=1e-6,
            made=datetime(2026, 1, 1, tzinfo=UTC),
            parameters=parameters,
            **more,
        )
        path = folder / f"{len(list(folder.glob('*.safetensors')))}.safetensors"
        path.write_bytes(SavedModel(header, tensors).to_bytes())
        return path

    def net(**shape: Any) -> Path:
        model, rng = Model(hidden=(4,), **shape), np.random.default_rng(1)
        size = churn_net.size(churn_net.build(contract, model))
        weights = rng.normal(0, 0.5, size).astype(np.float32)
        return saved("churn-net", {"weights": weights}, {"model": model.model_dump(mode="json")})

    labelled = {**frame, "left": (frame["age"].to_numpy() > 55).astype(np.int64)}
    asked = SchemaRound(contract)
    cells = asked.contribute(0, labelled, None).cells
    schema = asked.schema(NoisySum(np.bincount(cells.ravel(), minlength=asked.length(0)).astype(float), 1.0))
    learner = scorecard_fit.build(scorecard_fit.Question(rounds=2), schema, contract)
    customers, totals = Coded(schema.codes(labelled), label_codes(contract, labelled)), list[NoisySum]()
    for r in range(2):
        given = learner.contribute(r, customers, learner.ask(r, totals)).rows  # type: ignore[union-attr]
        totals.append(NoisySum(given.sum(axis=0), 0.0))
    tensors, parameters = learner.saved(totals)
    centres = np.array([[-0.5, -0.5], [0.5, 0.5]], dtype=np.float32)
    return {
        "churn-net": net(),
        "recurrent": net(architecture="recurrent", sequence=["order_count"], months=6),
        "scorecard": saved("scorecard", tensors, dict(parameters), schema_=schema),
        "segments": saved("segments", {"centres": centres}, {"names": ["age", "order_count"]}),
        "clv": saved(
            "clv",
            {"parameters": np.array([0.7, 60.0, 0.1, 2.4])},
            {"question": {"purchases": "orders.day", "amount": None}},
        ),
        "sentiment": saved("sentiment", {"weights": of_words("good", "bad")}, {"text": "orders.note"}),
    }


def of_words(good: str, bad: str) -> Any:
    """Weights that know these two."""
    known = hashed([good, bad], 64).toarray()
    return np.append(known[0] - known[1], 0.0).astype(np.float32)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    torch.set_num_threads(1)
    path = tmp_path_factory.mktemp("score")
    coordinator = CoordinatorHome.init(path / "c", host="127.0.0.1", port=9092, session_port=9093)
    (path / "contract.toml").write_text(CONTRACT)
    home = init_branch(
        path / "basel",
        name="basel",
        invitation=coordinator.path / "invitation.json",
        contract=path / "contract.toml",
        passphrase=PASSPHRASE,
        budget_epsilon=8.0,
        budget_delta=1e-5,
        policy=Policy(),
    )
    rows, contract = source_rows(), home.contract()
    source = write_csv(path / "customers.csv", list(rows.values()))
    orders = write_csv(
        path / "orders.csv",
        [
            {
                "id": f"C{i:04d}",
                "day": f"2026-0{6 - k}-15",
                "note": ["", "good", "bad"][(k > 0) + (i + k) % 2 * (k > 0)],
            }
            for i in range(60)
            for k in range(i % 5)
        ],
    )
    keyring = home.open_keyring(PASSPHRASE)
    keyring.rotate(PassphraseKeyProvider(PASSPHRASE, iterations=1, lanes=1, memory_kib=8192))  # quick
    store = Store.open(home.store, contract, keyring)
    ingest(open_source(source), "customers", contract, store)
    ingest(open_source(orders), "orders", contract, store)
    found = analysis_frame(store, contract, ["town", "age", "order_count"])
    tokens = scoring.customer_tokens(store, contract)
    ids = {str(store.token("customers", "id", i)): i for i in rows}
    store.close()
    frame = {name: found.column(name) for name in found.column_names}
    models = write_models(path, contract, frame)
    return Made(home, contract, rows, source, models, frame, tokens, ids)


@pytest.fixture
def out(tmp_path: Path) -> Iterator[Path]:
    """Where to write; afterwards nothing else may lie there."""
    yield tmp_path / "scores.csv"
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


# --- scores ------------------------------------------------------------------------------------------------


def test_every_customer_has_a_row_and_nobody_a_name(made: Made, out: Path) -> None:
    before = made.entries()
    result = made.score("churn-net", out)
    assert result.exit_code == 0, result.output
    assert f"Scored {CUSTOMERS} customers with the-churn-net" in result.output
    rows = read_csv(out)
    assert list(rows[0]) == ["token", "probability", "reason_1", "reason_2", "reason_3"]
    assert [r["token"] for r in rows] == made.tokens and set(made.tokens) == set(made.ids)
    ready = scorer(SavedModel.read(made.models["churn-net"]), made.contract, made.frame)
    own = ready.score(made.frame, reasons=3)
    assert own.probability is not None and own.reasons is not None
    assert [float(r["probability"]) for r in rows] == own.probability.tolist()
    said = [[f"{r.column}: {r.bin}" for r in reasons] for reasons in own.reasons]
    assert [[r[f"reason_{i}"] for i in (1, 2, 3) if r[f"reason_{i}"]] for r in rows] == said
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    text = out.read_text(encoding="utf-8")
    assert not any(r[c] and r[c] in text for r in made.rows.values() for c in ("full name", "phone", "iban"))
    assert not any(customer in text for customer in made.rows)
    (entry,) = made.entries()[len(before) :]
    assert (entry.kind, entry.job_id) == ("score", "0f" * 16)
    assert entry.body == {
        "model": result_hash(made, "churn-net"),
        "name": "the-churn-net",
        "kind": "churn-net",
        "job_hash": "ab" * 32,
        "customers": "all",
        "operator": scoring.operator(),
        "revealed": [],
    }
    assert str(CUSTOMERS) not in json.dumps(entry.body), "how many customers there are is no free statistic"
    assert describe_entry(entry).startswith("the-churn-net (churn-net, ")


def result_hash(made: Made, kind: str) -> str:
    return hashlib.sha256(made.models[kind].read_bytes()).hexdigest()


def test_points_and_segments(made: Made, tmp_path: Path) -> None:
    card, segments = tmp_path / "card.PARQUET", tmp_path / "segments.parquet"
    assert made.score("scorecard", card, "--reasons", "1").exit_code == 0
    table = pq.read_table(card)
    assert table.column_names == ["token", "probability", "points", "reason_1"]
    assert [str(t) for t in table.schema.types] == ["string", "double", "int64", "string"]
    own = scorer(SavedModel.read(made.models["scorecard"]), made.contract).score(made.frame)
    assert own.points is not None and len(set(own.points.tolist())) > 5
    assert table["points"].to_pylist() == own.points.tolist()
    assert made.score("segments", segments).exit_code == 0
    table = pq.read_table(segments)
    assert table.column_names == ["token", "segment"] and set(table["segment"].to_pylist()) == {0, 1}
    refused(made.score("segments", tmp_path / "x.csv", "--reasons", "2"), "gives no reasons")
    assert made.score("segments", tmp_path / "x.csv", "--reasons", "0").exit_code == 0


def test_the_newest_text_is_scored_and_nothing_where_there_is_none(made: Made, out: Path) -> None:
    """Of the orders the newest has no note, the next is "bad" where the customer's number and 1 are odd together."""
    assert made.score("sentiment", out).exit_code == 0
    rows = {made.ids[r["token"]]: r["probability"] for r in read_csv(out)}
    assert len(rows) == CUSTOMERS
    for customer, probability in rows.items():
        i = int(customer[1:])
        if i >= 60 or i % 5 < 2:
            assert probability == ""
        else:
            assert (float(probability) > 0.5) == (i % 2 == 1)
    assert not {"good", "bad"} & set(out.read_text(encoding="utf-8").replace(",", "\n").split())
    refused(made.score("sentiment", out.with_name("x.csv"), "--reasons", "1"), "gives no reasons")


def test_lifetime_is_reckoned_from_the_store_and_empty_for_who_never_bought(made: Made, out: Path) -> None:
    assert made.score("clv", out).exit_code == 0
    rows = {made.ids[r["token"]]: r for r in read_csv(out)}
    assert set(next(iter(rows.values()))) == {"token", "alive", "purchases"}
    for customer, row in rows.items():
        i = int(customer[1:])
        orders = i % 5 if i < 60 else 0
        assert bool(row["alive"]) == bool(row["purchases"]) == (orders > 0)
        if orders == 1:
            assert float(row["alive"]) == 1.0
        if orders:
            assert 0 < float(row["alive"]) <= 1 and 0 < float(row["purchases"]) < 365
    refused(made.score("clv", out.with_name("x.csv"), "--reasons", "1"), "gives no reasons")


def test_months_are_read_from_the_store(made: Made, out: Path) -> None:
    """Some ordered in each of the last months, most never."""
    assert made.score("recurrent", out, "--reasons", "9").exit_code == 0
    by_token = {r["token"]: r for r in read_csv(out)}
    orders = {made.ids[t]: int(i[1:]) % 5 if (i := made.ids[t]) < "C0060" else 0 for t in by_token}
    frame = {n: made.frame[n] for n in ("town", "age", "order_count")}
    times = np.array([orders[made.ids[t]] for t in made.tokens])
    frame |= {f"order_count@{m}": (times > m).astype(float) for m in range(6)}
    ready = scorer(SavedModel.read(made.models["recurrent"]), made.contract, frame)
    own = ready.score(frame).probability
    assert own is not None
    assert [float(by_token[t]["probability"]) for t in made.tokens] == pytest.approx(own.tolist(), abs=1e-9)
    assert "order_count by month: the last 6 months" in out.read_text()


def test_in_parts_it_is_the_same(made: Made, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = out.with_name("parts.csv")
    assert made.score("scorecard", out).exit_code == 0
    monkeypatch.setattr(scoring, "ROWS", 40)
    assert made.score("scorecard", parts).exit_code == 0
    assert parts.read_bytes() == out.read_bytes()


def test_the_ledger_verifies_and_nothing_was_spent(made: Made, out: Path) -> None:
    assert made.score(
        "churn-net", out, "--reveal", "full name", "--purpose", PURPOSE, typed=(PASSPHRASE,) * 2
    )
    ledger = Ledger.read(made.home.ledger)
    try:
        lines = [f"{line}\n".encode() for line in ledger.export()]
        verified = verify_export(lines, "basel", key=ledger.public_key)
    finally:
        ledger.close()
    assert verified.unsigned == 0 and verified.account.spent() == {}
    kinds = [json.loads(json.loads(line)["entry"])["kind"] for line in lines[:-1]]
    assert kinds[-2:] == ["reveal", "score"]


# --- who is who --------------------------------------------------------------------------------------------


def test_names_are_opened_by_a_second_passphrase_and_a_purpose(made: Made, out: Path) -> None:
    before = made.entries()
    options = ("--reveal", "id, full name,phone", "--ids", str(made.source), "--purpose", PURPOSE)
    result = made.score("churn-net", out, *options, typed=(PASSPHRASE, PASSPHRASE))
    assert result.exit_code == 0, result.output
    assert "again, to open id, full name, phone of all customers" in result.output
    assert "personal data in the clear" in result.output
    rows = read_csv(out)
    assert list(rows[0])[-3:] == ["id", "full name", "phone"] and len(rows) == CUSTOMERS
    for row in rows:
        mine = made.rows[made.ids[row["token"]]]
        assert {c: row[c] for c in ("id", "full name", "phone")} == {
            c: mine[c] for c in ("id", "full name", "phone")
        }
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    new = made.entries()[len(before) :]
    assert [(e.kind, e.body.get("column")) for e in new] == [
        ("reveal", "id"),
        ("reveal", "full name"),
        ("reveal", "phone"),
        ("score", None),
    ]
    for entry in new[:3]:
        assert entry.body == {
            "table": "customers",
            "column": entry.body["column"],
            "customers": "all",
            "reason": PURPOSE,
            "model": result_hash(made, "churn-net"),
            "operator": scoring.operator(),
        }
        assert describe_entry(entry) == f"customers.{entry.body['column']} of all customers: {PURPOSE}"
    assert new[3].body["revealed"] == ["id", "full name", "phone"]


def test_a_customer_whose_id_is_not_in_the_file_has_none(made: Made, out: Path, tmp_path: Path) -> None:
    some = [{"id": i} for i in [*list(made.rows)[:20], "C9999"]]
    ids = tmp_path / "ids.parquet"
    pq.write_table(pa.Table.from_pylist(some), ids)
    options = ("--reveal", "id", "--ids", str(ids), "--purpose", PURPOSE)
    assert made.score("segments", out, *options, typed=(PASSPHRASE,) * 2).exit_code == 0
    found = {r["token"]: r["id"] for r in read_csv(out)}
    assert {made.ids[t]: i for t, i in found.items() if i} == {i: i for i in list(made.rows)[:20]}
    ids = write_csv(tmp_path / "other.csv", [{"number": "C0001", "b": ""}])
    options = ("--reveal", "id", "--ids", str(ids), "--purpose", PURPOSE, "--force")
    refused(made.score("segments", out, *options, typed=(PASSPHRASE,) * 2), "has no column 'id'")


@pytest.mark.parametrize("typed", [("wrong words here", PASSPHRASE), (PASSPHRASE, "wrong words here")])
def test_a_wrong_passphrase_opens_and_writes_nothing(made: Made, out: Path, typed: tuple[str, str]) -> None:
    before = made.entries()
    options = ("--reveal", "full name", "--purpose", PURPOSE)
    refused(made.score("churn-net", out, *options, typed=typed), "passphrase")
    assert not out.exists() and made.entries() == before


def test_a_file_with_the_passphrase_is_not_enough_to_reveal(made: Made, out: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.touch(0o600)
    secret.write_text(PASSPHRASE)
    file = ("--passphrase-file", str(secret))
    before = made.entries()
    names = ("--reveal", "full name", "--purpose", PURPOSE)
    assert made.score("churn-net", out, *file, *names, typed=()).exit_code == 1  # nobody at the terminal
    assert not out.exists() and made.entries() == before
    assert made.score("churn-net", out, *file, typed=()).exit_code == 0
    assert made.score("churn-net", out, *file, *names, "--force", typed=(PASSPHRASE,)).exit_code == 0


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--reveal", "full name"), "a purpose has 8 to 500"),
        (("--reveal", "full name", "--purpose", "   why   "), "a purpose has 8 to 500"),
        (("--reveal", "surname", "--purpose", PURPOSE), "no column 'surname'"),
        (("--reveal", "", "--purpose", PURPOSE), "no column ''"),
        (("--reveal", "age", "--purpose", PURPOSE), "not a sealed column"),
        (("--reveal", "iban", "--purpose", PURPOSE), "not a sealed column"),
        (("--reveal", "id", "--purpose", PURPOSE), "as a token only"),
        (("--reveal", "phone,phone", "--purpose", PURPOSE), "two columns 'phone'"),
        (("--reveal", "phone", "--purpose", PURPOSE, "--ids", "x.csv"), "for --reveal id only"),
        (("--purpose", PURPOSE), "go with --reveal"),
    ],
)
def test_what_cannot_be_opened_is_said_before_anything_is_asked(
    made: Made, out: Path, options: tuple[str, ...], says: str
) -> None:
    before = made.entries()
    refused(made.score("churn-net", out, *options, typed=()), says)
    assert not out.exists() and made.entries() == before


# --- the file and the model --------------------------------------------------------------------------------


def test_a_file_is_not_written_over_by_chance(made: Made, out: Path, tmp_path: Path) -> None:
    out.write_text("precious")
    out.chmod(0o644)
    refused(made.score("segments", out, typed=()), "is there already")
    assert out.read_text() == "precious"
    assert made.score("segments", out, "--force").exit_code == 0
    assert len(read_csv(out)) == CUSTOMERS and stat.S_IMODE(out.stat().st_mode) == 0o600
    for wrong, says in (
        (tmp_path / "scores.xlsx", "not a .csv or .parquet"),
        (tmp_path / "no" / "scores.csv", "its directory is not there"),
    ):
        refused(made.score("segments", wrong, typed=()), says)
    (tmp_path / "d.csv").mkdir()
    refused(made.score("segments", tmp_path / "d.csv", "--force", typed=()), "is a directory")
    (tmp_path / "link.csv").symlink_to(tmp_path / "nowhere")
    refused(made.score("segments", tmp_path / "link.csv", typed=()), "is there already")


def test_who_comes_first_keeps_the_name(made: Made, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that appears while the scoring runs is not lost either."""
    monkeypatch.setattr(score_files, "check_place", lambda path, force: None)
    out.write_text("precious")
    refused(made.score("segments", out), "is there already")
    assert out.read_text() == "precious"


def test_what_ends_early_leaves_nothing(made: Made, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, done = made.entries(), list[int]()
    monkeypatch.setattr(scoring, "ROWS", 40)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    def interrupted(*rows: Any) -> Any:
        done.append(1)
        if len(done) > 2:
            raise KeyboardInterrupt
        return right(*rows)

    right = scoring._scores
    with monkeypatch.context() as patch:
        patch.setattr(scoring, "_scores", interrupted)
        assert made.score("churn-net", out).exit_code != 0
    assert len(done) == 3 and not out.exists() and made.entries() == before
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        refused(made.score("churn-net", out), "cannot be written (No space left on device)")
    assert not out.exists()


def test_another_contracts_model_and_a_damaged_one(made: Made, out: Path, tmp_path: Path) -> None:
    before, model = made.entries(), SavedModel.read(made.models["churn-net"])
    foreign = SavedModel(
        model.header.model_copy(update={"contract": "0" * 64, "inputs": "0" * 64}), model.tensors
    ).to_bytes()
    damaged = SavedModel(model.header, {"weights": np.zeros(5, dtype=np.float32)}).to_bytes()
    for data, says in (
        (foreign, "was trained under another version of contract 'shop'"),
        (damaged, "weights, got 5"),
        (foreign[:400], "not a model file"),
        (b"", "not a model file"),
    ):
        made.models["it"] = tmp_path / "it.safetensors"
        made.models["it"].write_bytes(data)
        refused(made.score("it", out, typed=()), says)
    made.models["it"] = tmp_path / "none.safetensors"
    refused(made.score("it", out, typed=()), "no such file")
    made.models["it"] = tmp_path
    refused(made.score("it", out, typed=()), "cannot be read")
    assert not out.exists() and made.entries() == before


def test_a_branch_without_customers(made: Made, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "customer_tokens", lambda store, contract: [])
    refused(made.score("churn-net", out), "nothing has been ingested")


def test_cells_that_a_spreadsheet_would_run(tmp_path: Path) -> None:
    values = [
        "=HYPERLINK(1)",
        "@SUM(A1)",
        '+cmd|"x"',
        "\t=1",
        "+41 79 123 45 67",
        "-5",
        'a "b", c\nd',
        "",
        None,
    ]
    schema = pa.schema({"token": pa.string(), "=x": pa.string()})
    table = pa.table([[str(i) for i in range(len(values))], values], schema=schema)
    path = tmp_path / "x.csv"
    with score_files.score_file(path, schema, force=False) as sheet:
        sheet.write(table)
        sheet.write(table.slice(0, 0))
    with path.open(newline="", encoding="utf-8") as file:
        cells = [row[1] for row in csv.reader(file)][1:]
    assert cells == ["'=HYPERLINK(1)", "'@SUM(A1)", '\'+cmd|"x"', "'\t=1", *values[4:7], "", ""]
    plain = tmp_path / "x.parquet"
    with score_files.score_file(plain, schema, force=False) as sheet:
        sheet.write(table)
    assert pq.read_table(plain).column(1).to_pylist() == values
