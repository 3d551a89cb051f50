"""The customer frame against a naive pandas computation; the holdout as a distribution."""

from datetime import date, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from scipy import stats

from sfumato.client.features import analysis_frame, customer_frame, holdout_mask
from sfumato.client.vault.store import Store
from sfumato.common.analyses.listed import MOST_ROWS
from sfumato.common.contract import Contract
from sfumato.common.errors import BadInput
from sfumato.privacy.fields import Tokenizer, keyed_uniform
from sfumato.privacy.keys import EphemeralKeys, Keyring, PassphraseKeyProvider

AS_OF = date(2026, 6, 30)
CHANNELS = ["web", "branch", "mobile"]
ROLL_UPS = [
    {"name": "n all", "aggregate": "count", "bounds": [0, 1000]},
    {"name": "n clipped", "aggregate": "count", "bounds": [2, 12]},
    {"name": "n web 30", "aggregate": "count", "where": {"channel": "web"}, "days": 30, "bounds": [0, 100]},
    {"name": "n amounts", "aggregate": "count", "column": "amount", "bounds": [0, 100]},
    {"name": "total", "aggregate": "sum", "column": "amount", "bounds": [-1e6, 1e6]},
    {"name": "total clipped", "aggregate": "sum", "column": "amount", "days": 90, "bounds": [0, 500]},
    {"name": "mean", "aggregate": "mean", "column": "amount", "days": 200, "bounds": [-1e4, 1e4]},
    {"name": "least", "aggregate": "min", "column": "amount", "bounds": [-50, 1e4]},
    {
        "name": "most",
        "aggregate": "max",
        "column": "amount",
        "where": {"online": "true", "kind": "3"},
        "bounds": [-1e4, 1e4],
    },
    {"name": "shops", "aggregate": "distinct", "column": "shop", "days": 60, "bounds": [0, 50]},
    {"name": "payees", "aggregate": "distinct", "column": "payee", "bounds": [0, 50]},
    {
        "name": "paid seven",
        "aggregate": "count",
        "where": {"payee": "payee 7"},
        "bounds": [0, 50],
    },
    {"name": "recency", "aggregate": "days_since_last", "bounds": [0, 365]},
    {
        "name": "recency web",
        "aggregate": "days_since_last",
        "where": {"channel": "web"},
        "days": 45,
        "bounds": [0, 365],
    },
    {"name": "known for", "aggregate": "days_since_first", "bounds": [0, 365]},
]


def contract(time_type: str = "datetime", label: str = "category", **changes: object) -> Contract:
    labels = {
        "category": {"type": "category", "categories": ["stays", "goes"], "positive": "goes"},
        "boolean": {"type": "boolean"},
        "integer": {"type": "integer"},
    }
    customers = [
        {"name": "id", "type": "integer", "role": "customer_id"},
        {"name": "name", "type": "string", "role": "pii", "protection": "encrypt"},
        {"name": "age", "type": "integer", "role": "feature", "bounds": [0, 120], "nullable": True},
        {"name": "balance", "type": "number", "role": "amount", "bounds": [0, 1e6]},
        {
            "name": "city .x.",
            "type": "category",
            "role": "feature",
            "categories": ["a", "b"],
        },
        {"name": "comment", "type": "string", "nullable": True},
    ]
    if label:
        customers.append({"name": "churn", "role": "label", **labels[label]})
    transactions = [
        {"name": "customer", "type": "string", "role": "customer_id"},
        {"name": "at", "type": time_type, "role": "time", "nullable": True},
        {"name": "amount", "type": "number", "role": "amount", "bounds": [-1e4, 1e4], "nullable": True},
        {"name": "channel", "type": "category", "categories": CHANNELS},
        {"name": "online", "type": "boolean"},
        {"name": "kind", "type": "integer"},
        {"name": "shop", "type": "string", "nullable": True},
        {"name": "payee", "type": "string", "role": "pii", "protection": "token", "nullable": True},
        {"name": "memo", "type": "string", "role": "pii", "protection": "encrypt", "nullable": True},
    ]
    complaints = [
        {"name": "id", "type": "string", "role": "customer_id"},
        {"name": "points", "type": "integer"},
    ]
    return Contract.model_validate(
        {
            "version": 1,
            "name": "features",
            "purpose": "tests of the customer frame",
            "as_of": AS_OF,
            "tables": [
                {"name": "customers", "columns": customers},
                {"name": "transactions", "columns": transactions},
                {"name": "complaints", "columns": complaints},
            ],
            "features": [
                *[{"table": "transactions", **f} for f in ROLL_UPS],
                {"name": "complaints", "table": "complaints", "aggregate": "count", "bounds": [0, 9]},
                {
                    "name": "points",
                    "table": "complaints",
                    "aggregate": "mean",
                    "column": "points",
                    "bounds": [0, 9],
                },
            ],
            **changes,
        }
    )


def customers(n: int, label: str = "category") -> pd.DataFrame:
    rng = np.random.default_rng(3)
    frame = pd.DataFrame(
        {
            "id": np.arange(1, n + 1),
            "name": [f"名 {i}" for i in range(n)],
            "age": pd.array(rng.integers(18, 90, n), dtype="Int64"),
            "balance": rng.gamma(2, 1000, n).round(2),
            "city .x.": rng.choice(["a", "b"], n),
            "comment": None,
        }
    )
    frame.loc[::7, "age"] = pd.NA
    churn = rng.random(n) < 0.3
    if label:
        frame["churn"] = {
            "category": np.where(churn, "goes", "stays"),
            "boolean": churn,
            "integer": churn.astype(int),
        }[label]
    return frame


def transactions(n_customers: int, n: int) -> pd.DataFrame:
    rng = np.random.default_rng(4)
    at = pd.to_datetime(datetime(2025, 9, 1)) + pd.to_timedelta(rng.integers(0, 340 * 86400, n), unit="s")
    edges = [AS_OF, AS_OF + timedelta(days=1), AS_OF - timedelta(days=29), AS_OF - timedelta(days=30)]
    at = pd.Series(at)
    for i, edge in enumerate(edges):  # the exact borders, by the microsecond
        at.iloc[2 * i] = pd.Timestamp(edge)
        at.iloc[2 * i + 1] = pd.Timestamp(edge) - pd.Timedelta(microseconds=1)
    at.iloc[50::97] = pd.NaT
    amount = rng.normal(20, 80, n).round(2)
    amount[rng.random(n) < 0.1] = np.nan
    shops = np.array([*[f"shop {i}" for i in range(12)], None], dtype=object)
    payees = np.array([*[f"payee {i}" for i in range(9)], None], dtype=object)
    return pd.DataFrame(
        {
            "customer": rng.integers(1, int(n_customers * 0.8), n).astype(str),
            "at": at,
            "amount": amount,
            "channel": rng.choice(CHANNELS, n),
            "online": rng.random(n) < 0.5,
            "kind": rng.integers(0, 5, n),
            "shop": rng.choice(shops, n),
            "payee": rng.choice(payees, n),
            "memo": "x",
        }
    )


def naive(people: pd.DataFrame, rows: pd.DataFrame, roll_up: dict) -> list[float | None]:
    """One roll-up, customer by customer, as a person would do it by hand."""
    day = rows["at"].dt.normalize()
    rows = rows[day.notna() & (day <= pd.Timestamp(AS_OF))]
    age_in_days = (pd.Timestamp(AS_OF) - rows["at"].dt.normalize()).dt.days
    if "days" in roll_up:
        rows = rows[age_in_days < roll_up["days"]]
    wanted = {"true": True, "3": 3}
    for column, value in roll_up.get("where", {}).items():
        rows = rows[rows[column] == wanted.get(value, value)]
    low, high = roll_up["bounds"]
    result: list[float | None] = []
    for customer in people["id"].astype(str):
        own = rows[rows["customer"] == customer]
        column = own[roll_up["column"]].dropna() if "column" in roll_up else own
        value: float | None
        match roll_up["aggregate"]:
            case "count":
                value = len(column)
            case "distinct":
                value = len(set(column))
            case "sum":
                value = sum(column)
            case "days_since_last":
                value = None if own.empty else (pd.Timestamp(AS_OF) - own["at"].max().normalize()).days
            case "days_since_first":
                value = None if own.empty else (pd.Timestamp(AS_OF) - own["at"].min().normalize()).days
            case operation:
                value = None if column.empty else float(getattr(column, operation)())
        result.append(None if value is None else min(max(float(value), low), high))
    return result


@pytest.fixture
def keyring(tmp_path: Path) -> Keyring:
    provider = PassphraseKeyProvider("a passphrase for tests", iterations=1, lanes=1, memory_kib=8192)
    (tmp_path / "vault").mkdir(mode=0o700)
    return Keyring.create(tmp_path / "vault" / "keyring.json", provider)


def filled(tmp_path: Path, keyring: Keyring, agreed: Contract, frames: dict[str, pd.DataFrame]) -> Store:
    store = Store.create(tmp_path / "vault" / "store.duckdb", agreed, keyring)
    for name, frame in frames.items():
        rows = pa.Table.from_pandas(frame, preserve_index=False)
        with store.load(name) as loader:
            loader.append(rows, np.arange(len(frame), dtype=np.int64))
    return store


@pytest.mark.parametrize("time_type", ["datetime", "date"])
def test_equals_the_naive_computation(tmp_path: Path, keyring: Keyring, time_type: str) -> None:
    people, rows = customers(120), transactions(120, 1500)
    given = rows.copy()
    if time_type == "date":
        rows["at"] = rows["at"].dt.normalize()
        given["at"] = rows["at"].dt.date
    grumbles = pd.DataFrame({"id": ["3", "3", "9"], "points": [4, 30, 2]})
    frames = {"customers": people, "transactions": given, "complaints": grumbles}
    agreed = contract(time_type)
    store = filled(tmp_path, keyring, agreed, frames)
    frame = customer_frame(store, agreed)
    store.close()
    plain = ["age", "balance", "city .x."]
    assert frame.column_names == [
        "token",
        "label",
        *plain,
        *[f["name"] for f in ROLL_UPS],
        "complaints",
        "points",
    ]
    assert frame["token"].to_pylist() == sorted(frame["token"].to_pylist())
    assert frame.schema.field("label").type == pa.int8()
    assert frame.schema.field("age").type == pa.int64()
    assert frame.schema.field("n all").type == pa.float64()

    tokens = Tokenizer(keyring).tokens(people["id"].astype(str).tolist(), purpose="customer-id").to_pylist()
    got = frame.to_pandas().set_index("token").loc[tokens]
    assert got["label"].tolist() == (people["churn"] == "goes").astype(int).tolist()
    assert got["city .x."].tolist() == people["city .x."].tolist()
    assert got["balance"].tolist() == people["balance"].tolist()
    assert [None if pd.isna(a) else a for a in got["age"]] == [
        None if pd.isna(a) else a for a in people["age"]
    ]
    for roll_up in ROLL_UPS:
        expected = np.array(naive(people, rows, roll_up), dtype=float)
        assert len(np.unique(expected)) > 2, f"{roll_up['name']}: the test shows nothing"
        np.testing.assert_allclose(
            got[roll_up["name"]], expected, rtol=1e-12, atol=1e-9, err_msg=roll_up["name"]
        )
    assert got["complaints"].tolist() == [{3: 2.0, 9: 1.0}.get(i, 0.0) for i in people["id"]]
    assert got["points"].dropna().tolist() == [9.0, 2.0]  # (4 + 30) / 2, clipped; and 2


@pytest.mark.parametrize("time_type", ["datetime", "date"])
def test_months_equal_the_naive_computation(tmp_path: Path, keyring: Keyring, time_type: str) -> None:
    """Of every roll-up, whatever its own `days`: the days (as_of - 30 (m + 1), as_of - 30 m], m counted back."""
    people, rows = customers(60), transactions(60, 1200)
    given = rows.copy()
    if time_type == "date":
        rows["at"] = rows["at"].dt.normalize()
        given["at"] = rows["at"].dt.date
    agreed = contract(time_type)
    store = filled(tmp_path, keyring, agreed, {"customers": people, "transactions": given})
    roll_ups = [f for f in ROLL_UPS if not f["aggregate"].startswith("days_since")]
    months = [0, 4]
    names = [f"{f['name']}@{m}" for f in roll_ups for m in months]
    frame = customer_frame(store, agreed, names)
    assert frame.column_names[-len(names) :] == names
    assert analysis_frame(store, agreed, [names[3], "age", names[0]]).column_names == [
        names[3],
        "age",
        names[0],
    ]
    assert analysis_frame(store, agreed, names).equals(frame.select(names))
    store.close()
    tokens = Tokenizer(keyring).tokens(people["id"].astype(str).tolist(), purpose="customer-id").to_pylist()
    got = frame.to_pandas().set_index("token").loc[tokens]
    ago = (pd.Timestamp(AS_OF) - rows["at"].dt.normalize()).dt.days
    for f in roll_ups:
        for m in months:
            own = rows[(ago >= 30 * m) & (ago < 30 * (m + 1))]
            wanted = np.array(naive(people, own, {k: v for k, v in f.items() if k != "days"}), dtype=float)
            assert len(np.unique(wanted[~np.isnan(wanted)])) > 1, f"{f['name']}: the test shows nothing"
            np.testing.assert_allclose(
                got[f"{f['name']}@{m}"], wanted, rtol=1e-12, atol=1e-9, err_msg=f["name"]
            )


def test_months_that_cannot_be_are_refused(tmp_path: Path, keyring: Keyring) -> None:
    agreed = contract()
    store = filled(tmp_path, keyring, agreed, {"customers": customers(5)})
    empty = analysis_frame(store, agreed, ["n all@3", "mean@3"]).to_pydict()
    assert empty == {"n all@3": [0.0] * 5, "mean@3": [None] * 5}
    for name, message in (
        ("recency@0", "cannot be read by month"),
        ("complaints@0", "cannot be read by month"),  # its table has no time
        ("age@0", "is no roll-up"),
        ("n all@60", "is no column to analyse"),
        ("n all@-1", "is no column to analyse"),
    ):
        with pytest.raises(BadInput, match=message):
            analysis_frame(store, agreed, [name])
    store.close()


def test_rows_after_as_of_change_nothing(tmp_path: Path, keyring: Keyring) -> None:
    people, rows = customers(40), transactions(40, 400)
    agreed = contract()
    store = filled(tmp_path, keyring, agreed, {"customers": people, "transactions": rows})
    before = customer_frame(store, agreed)
    later = rows.copy()
    later["at"] = pd.Timestamp(AS_OF) + pd.to_timedelta(np.arange(1, len(rows) + 1), unit="D")
    with store.load("transactions", mode="append") as loader:
        loader.append(
            pa.Table.from_pandas(later, preserve_index=False), np.arange(len(later), dtype=np.int64)
        )
    assert customer_frame(store, agreed).equals(before)
    store.close()


@pytest.mark.parametrize("label", ["boolean", "integer", ""])
def test_labels(tmp_path: Path, keyring: Keyring, label: str) -> None:
    people = customers(30, label)
    agreed = contract(label=label)
    store = filled(tmp_path, keyring, agreed, {"customers": people})
    frame = customer_frame(store, agreed)
    store.close()
    assert ("label" in frame.column_names) == bool(label)
    if label:
        assert sum(frame["label"].to_pylist()) == int(people["churn"].sum())
    assert set(frame["n all"].to_pylist()) == {0.0}  # an empty table: no rows for anybody
    assert set(frame["n clipped"].to_pylist()) == {2.0}
    assert frame["recency"].null_count == frame["mean"].null_count == 30


def test_a_label_is_0_or_1(tmp_path: Path, keyring: Keyring) -> None:
    people = customers(30, "integer")
    people.loc[[3, 5], "churn"] = [2, -1]
    agreed = contract(label="integer")
    store = filled(tmp_path, keyring, agreed, {"customers": people})
    with pytest.raises(BadInput, match="2 customers have neither 0 nor 1"):
        customer_frame(store, agreed)
    store.close()


def test_the_analyses_frame_has_what_was_asked_and_agrees_with_the_customer_frame(
    tmp_path: Path, keyring: Keyring
) -> None:
    people, rows = customers(120), transactions(120, 1500)
    agreed = contract()
    store = filled(tmp_path, keyring, agreed, {"customers": people, "transactions": rows})
    whole = customer_frame(store, agreed)
    names = ["churn", "total", "age", "comment", "city .x.", "recency web", "points"]
    frame = analysis_frame(store, agreed, names)
    alone = analysis_frame(store, agreed, ["age"])
    store.close()
    assert frame.column_names == names
    assert frame.num_rows == alone.num_rows == 120
    assert alone["age"].equals(whole["age"])
    assert [c == "goes" for c in frame["churn"].to_pylist()] == [v == 1 for v in whole["label"].to_pylist()]
    assert frame["city .x."].equals(whole["city .x."])
    for name in ("total", "recency web", "points"):  # sums of floats may end in another digit
        np.testing.assert_allclose(frame[name].to_pandas(), whole[name].to_pandas(), rtol=1e-12)
    assert frame["comment"].null_count == 120


@pytest.mark.parametrize("name", ["id", "name", "payee", "memo", "amount", "wages", "token"])
def test_an_analysis_never_sees_the_id_nor_personal_data(tmp_path: Path, keyring: Keyring, name: str) -> None:
    agreed = contract()
    store = filled(tmp_path, keyring, agreed, {"customers": customers(5)})
    with pytest.raises(BadInput, match=f"'{name}' is no column to analyse"):
        analysis_frame(store, agreed, ["age", name])
    store.close()


@pytest.mark.parametrize(
    ("roll_up", "message"),
    [
        ({"name": "x", "aggregate": "distinct", "column": "memo"}, "'memo' is sealed or dropped"),
        ({"name": "x", "aggregate": "count", "where": {"memo": "a"}}, "'memo', which is sealed or dropped"),
        ({"name": "x", "aggregate": "count", "where": {"channel": "fax"}}, "'fax' is no value of column"),
        ({"name": "x", "aggregate": "count", "where": {"kind": "3; DROP"}}, "is no value of column 'kind'"),
        (
            {"name": "x", "aggregate": "count", "where": {"online": "perhaps"}},
            "is no value of column 'online'",
        ),
        ({"name": "token", "aggregate": "count"}, "'token': the name is taken"),
        ({"name": "label", "aggregate": "count"}, "'label': the name is taken"),
    ],
)
def test_bad_roll_ups(tmp_path: Path, keyring: Keyring, roll_up: dict, message: str) -> None:
    agreed = contract(features=[{"table": "transactions", "bounds": [0, 1], **roll_up}])
    store = filled(tmp_path, keyring, agreed, {"customers": customers(5)})
    with pytest.raises(BadInput, match=message):
        customer_frame(store, agreed)
    store.close()


def test_a_where_value_is_data_not_sql(tmp_path: Path, keyring: Keyring) -> None:
    hostile = "x' OR 1=1 --"
    agreed = contract(
        features=[
            {
                "table": "transactions",
                "name": "hostile",
                "aggregate": "count",
                "where": {"shop": hostile},
                "bounds": [0, 99],
            }
        ]
    )
    rows = transactions(30, 200)
    rows.loc[7, ["shop", "at"]] = [hostile, pd.Timestamp(AS_OF)]
    store = filled(tmp_path, keyring, agreed, {"customers": customers(30), "transactions": rows})
    assert sum(customer_frame(store, agreed)["hostile"].to_pylist()) == 1.0
    store.close()


class TestHoldout:
    TOKENS = [f"{i:032x}" for i in range(200_000)]  # noqa: RUF012

    def test_depends_on_nobody_else(self, keyring: Keyring) -> None:
        whole = holdout_mask(self.TOKENS[:1000], keyring, 0.2)
        assert (holdout_mask(self.TOKENS[:1000:3], keyring, 0.2) == whole[::3]).all()
        assert (holdout_mask(self.TOKENS[:1000][::-1], keyring, 0.2)[::-1] == whole).all()
        reopened = Keyring.open(keyring.path, "a passphrase for tests")
        assert (holdout_mask(self.TOKENS[:1000], reopened, 0.2) == whole).all()
        assert (whole <= holdout_mask(self.TOKENS[:1000], keyring, 0.5)).all()

    def test_another_key_another_holdout(self) -> None:
        a, b = (holdout_mask(self.TOKENS[:5000], EphemeralKeys(), 0.5) for _ in range(2))
        # agreement of independent halves: 5000 coin throws, sd 35; false alarm below 1e-9 (Chernoff at 6.2 sd)
        assert abs(int((a == b).sum()) - 2500) < 220

    def test_ends(self, keyring: Keyring) -> None:
        assert holdout_mask([], keyring, 0.2).shape == (0,)
        assert not holdout_mask(self.TOKENS[:1000], keyring, 0.0).any()
        assert holdout_mask(self.TOKENS[:1000], keyring, 1.0).all()

    @pytest.mark.statistical
    def test_uniform(self) -> None:
        """Chi-squared over 100 cells of fraction; a fixed key, so the outcome is fixed: a priori alarm 1e-6."""

        class Fixed:
            def data_key(self, name: str) -> bytes:
                return bytes(range(32))

        edges = np.linspace(0, 1, 101)[1:-1]
        inside = [int(holdout_mask(self.TOKENS[:50_000], Fixed(), float(e)).sum()) for e in edges[::11]]
        assert inside == sorted(inside)
        u = keyed_uniform(self.TOKENS, bytes(range(32)), purpose="holdout")
        counts = np.histogram(u, bins=100, range=(0, 1))[0]
        assert stats.chisquare(counts).pvalue > 1e-6
        # neighbours in the list share nothing: pairs are uniform on the square
        pairs = np.histogram2d(u[::2], u[1::2], bins=10, range=[[0, 1], [0, 1]])[0].ravel()
        assert stats.chisquare(pairs).pvalue > 1e-6


# --- lists -------------------------------------------------------------------------------------------------


def test_lists_equal_the_naive_computation(tmp_path: Path, keyring: Keyring) -> None:
    agreed, people, rows = contract("date"), customers(60), transactions(60, 900)
    rows["at"] = rows["at"].dt.normalize()
    store = filled(tmp_path, keyring, agreed, {"customers": people, "transactions": rows})
    names = ["transactions.amount", "age", "transactions.at", "transactions.channel", "complaints.points"]
    frame = analysis_frame(store, agreed, names)
    assert frame.column_names == names
    got = frame.to_pydict()
    used = rows[rows["at"].notna() & (rows["at"] <= pd.Timestamp(AS_OF))]
    # Who is who is the vault's secret; what the lists are is not.
    want = sorted(
        sorted(zip(g["at"].dt.date, g["channel"], g["amount"].fillna(-1e9), strict=True))
        for _, g in used.groupby("customer")
    )
    lists = zip(got["transactions.at"], got["transactions.channel"], got["transactions.amount"], strict=True)
    side_by_side = [
        list(zip(at, channel, [-1e9 if a is None else a for a in amount], strict=True))
        for at, channel, amount in lists
    ]
    assert sorted(sorted(rows) for rows in side_by_side if rows) == want
    assert sum(not rows for rows in side_by_side) == len(people) - used["customer"].nunique() > 0
    for own_rows in side_by_side:
        days = [at for at, _, _ in own_rows]
        assert days == sorted(days, reverse=True), "newest first"
    assert got["complaints.points"] == [[]] * len(people)
    again = analysis_frame(store, agreed, names[::-1])
    assert all(again[n].to_pylist() == got[n] for n in names)
    store.close()


def test_a_list_has_the_newest_rows_and_no_more(tmp_path: Path, keyring: Keyring) -> None:
    agreed, people, rows = contract(), customers(3), transactions(3, MOST_ROWS + 600)
    store = filled(tmp_path, keyring, agreed, {"customers": people, "transactions": rows})
    (kept,) = [
        v for v in analysis_frame(store, agreed, ["transactions.at"])["transactions.at"].to_pylist() if v
    ]
    day = rows["at"].dt.normalize()
    newest = rows["at"][day.notna() & (day <= pd.Timestamp(AS_OF))].sort_values(ascending=False)
    assert len(newest) > MOST_ROWS
    assert [pd.Timestamp(at) for at in kept] == newest.head(MOST_ROWS).tolist()
    store.close()


@pytest.mark.parametrize(
    "name", ["transactions.payee", "transactions.memo", "transactions.customer", "transactions.no"]
)
def test_a_list_of_personal_data_is_refused(tmp_path: Path, keyring: Keyring, name: str) -> None:
    agreed = contract()
    store = filled(tmp_path, keyring, agreed, {"customers": customers(5)})
    with pytest.raises(BadInput, match=name):
        analysis_frame(store, agreed, [name])
    store.close()
