"""Bad contracts and bad job files, each with the message it must give: the file, the place, what is wrong."""

from pathlib import Path

import pytest

from sfumato.common.contract import load_contract
from sfumato.common.errors import BadInput
from sfumato.common.job import load_job

GOOD_CONTRACT = """
version = 1
name = "bank"
purpose = "Churn of retail customers"
as_of = 2024-12-31

[[tables]]
name = "customers"
columns = [
  { name = "id", type = "string", role = "customer_id" },
  { name = "phone", type = "string", role = "pii", protection = "encrypt" },
  { name = "age", type = "integer", role = "feature", bounds = [18, 100], edges = [30, 50] },
  { name = "city", type = "category", role = "feature", categories = ["Basel", "Bern"] },
  { name = "churned", type = "boolean", role = "label" },
]

[[tables]]
name = "visits"
columns = [
  { name = "id", type = "string", role = "customer_id" },
  { name = "day", type = "date", role = "time" },
  { name = "minutes", type = "integer" },
  { name = "desk", type = "string" },
]

[[features]]
name = "minutes_90d"
table = "visits"
aggregate = "sum"
column = "minutes"
days = 90
bounds = [0, 600]
"""

# name, text to replace in the good contract, its replacement, what the message must say
BAD_CONTRACTS = [
    ("not-toml", "version = 1", "version = ", "not TOML"),
    ("wrong-version", "version = 1", "version = 2", "version: Input should be 1"),
    ("no-version", "version = 1\n", "", "version: Field required"),
    ("unknown-key", "version = 1", "version = 1\nepsilon = 3", "epsilon: Extra inputs are not permitted"),
    (
        "short-purpose",
        "Churn of retail customers",
        "Churn",
        "purpose: String should have at least 8 characters",
    ),
    ("wrong-unit", "version = 1", 'version = 1\nunit = "row"', "unit: Input should be 'customer'"),
    (
        "no-branches",
        "version = 1",
        "version = 1\nmax_branches_per_customer = 0",
        "greater than or equal to 1",
    ),
    (
        "unknown-type",
        'type = "boolean"',
        'type = "bool"',
        "tables.customers.columns.churned.type: Input should be 'string', 'integer'",
    ),
    (
        "unknown-role",
        'role = "label"',
        'role = "target"',
        "tables.customers.columns.churned.role: Input should be 'customer_id'",
    ),
    ("odd-name", '"phone"', '"phone;drop"', "tables.customers.columns.#2.name: String should match pattern"),
    (
        "no-customer-id",
        'name = "id", type = "string", role = "customer_id"',
        'name = "id", type = "string"',
        "table 'customers': needs exactly one customer_id, has 0",
    ),
    (
        "two-customer-ids",
        'role = "pii", protection = "encrypt"',
        'role = "customer_id"',
        "table 'customers': needs exactly one customer_id, has 2",
    ),
    ("column-twice", '"city"', '"age"', "table 'customers': column 'age' is declared twice"),
    ("table-twice", 'name = "visits"', 'name = "customers"', "a table is declared twice"),
    (
        "no-customers-table",
        "version = 1",
        'version = 1\ncustomers = "clients"',
        "names table 'clients', which is not declared",
    ),
    (
        "pii-without-protection",
        ', protection = "encrypt"',
        "",
        "column 'phone': PII needs `protection` = encrypt, token or drop",
    ),
    (
        "unknown-protection",
        '"encrypt"',
        '"rot13"',
        "tables.customers.columns.phone.protection: Input should be 'encrypt', 'token' or 'drop'",
    ),
    (
        "protected-feature",
        "bounds = [18, 100],",
        'bounds = [18, 100], protection = "drop",',
        '`protection` goes with role = "pii"',
    ),
    (
        "open-customer-id",
        'role = "customer_id" },\n  { name = "phone"',
        'role = "customer_id", protection = "drop" },\n  { name = "phone"',
        "column 'id': the customer id is always kept as a token",
    ),
    (
        "unbounded-feature",
        ", bounds = [18, 100], edges = [30, 50]",
        "",
        "column 'age': a numeric feature needs public `bounds`",
    ),
    (
        "bounds-upside-down",
        "[18, 100]",
        "[100, 18]",
        "bounds must be [low, high] with low < high, got [100.0, 18.0]",
    ),
    ("bounds-nan", "[18, 100]", "[18, nan]", "with low < high"),
    ("bounds-infinite", "[18, 100], edges = [30, 50]", "[18, inf]", "bounds must be finite"),
    (
        "edges-outside",
        "[30, 50]",
        "[30, 500]",
        "tables.customers.columns.age: edges must lie strictly inside the bounds",
    ),
    ("edges-fall", "[30, 50]", "[50, 30]", "edges must be strictly increasing"),
    (
        "category-without-list",
        ', categories = ["Basel", "Bern"]',
        "",
        "column 'city': a category needs its public list `categories`",
    ),
    ("categories-repeat", '"Bern"', '"Basel"', "column 'city': categories repeat"),
    (
        "categories-of-a-number",
        'name = "minutes", type = "integer"',
        'name = "minutes", type = "integer", categories = ["a"]',
        "column 'minutes': `categories` goes with type = \"category\"",
    ),
    (
        "label-without-positive",
        'name = "churned", type = "boolean"',
        'name = "churned", type = "category", categories = ["y", "n"]',
        "column 'churned': `positive` must be one of the label's categories",
    ),
    (
        "nullable-label",
        'role = "label"',
        'role = "label", nullable = true',
        "column 'churned': a label cannot be nullable",
    ),
    (
        "label-elsewhere",
        'name = "minutes", type = "integer"',
        'name = "minutes", type = "integer", role = "label"',
        "at most one label, and in table 'customers'",
    ),
    (
        "text-as-feature",
        'name = "desk", type = "string"',
        'name = "desk", type = "string", role = "feature"',
        "column 'desk': a feature is an integer, number, category or boolean",
    ),
    (
        "feature-of-no-table",
        'table = "visits"',
        'table = "loans"',
        "feature 'minutes_90d': table 'loans' must be declared",
    ),
    (
        "feature-of-no-column",
        'column = "minutes"',
        'column = "hours"',
        "table 'visits' has no column 'hours'",
    ),
    (
        "sum-of-text",
        'column = "minutes"',
        'column = "desk"',
        "feature 'minutes_90d': sum needs a numeric `column`",
    ),
    ("days-without-as-of", "as_of = 2024-12-31\n", "", "feature 'minutes_90d': needs the contract's `as_of`"),
    ("unbounded-roll-up", "bounds = [0, 600]\n", "", "features.minutes_90d.bounds: Field required"),
    (
        "feature-name-taken",
        '"minutes_90d"',
        '"age"',
        "feature 'age': the customers table has a column of that name",
    ),
]

GOOD_JOB = """
[job]
name = "churn-q4"
kind = "churn-net"
purpose = "Whom to call before they leave"
contract = "bank"

[privacy]
target_epsilon = 2.0

[training]
rounds = 10
sample_rate = 0.1

[federation]
weights = { basel = 1.0 }
"""

BAD_JOBS = [
    ("not-toml", "[job]", "[job", "not TOML"),
    ("no-job-table", "[job]", "[work]", "has no [job] table"),
    ("no-name", 'name = "churn-q4"\n', "", "name: Field required"),
    ("odd-name", '"churn-q4"', '"Churn Q4!"', "name: String should match pattern"),
    (
        "unknown-kind",
        '"churn-net"',
        '"pickle"',
        "kind: Input should be one of churn-net, boosted-trees, scorecard",
    ),
    (
        "short-purpose",
        "Whom to call before they leave",
        "calls",
        "purpose: String should have at least 8 characters",
    ),
    ("no-contract", 'contract = "bank"\n', "", "contract: Field required"),
    ("no-privacy", "[privacy]\ntarget_epsilon = 2.0\n", "", "privacy: Field required"),
    ("no-epsilon", "target_epsilon = 2.0", "delta = 1e-6", "privacy.target_epsilon: Field required"),
    ("zero-epsilon", "= 2.0", "= 0", "privacy.target_epsilon: Input should be greater than 0"),
    ("endless-epsilon", "= 2.0", "= inf", "privacy.target_epsilon: Input should be less than or equal to 20"),
    ("nan-epsilon", "= 2.0", "= nan", "privacy.target_epsilon: Input should be"),
    (
        "large-delta",
        "= 2.0",
        "= 2.0\ndelta = 0.1",
        "privacy.delta: Input should be less than or equal to 0.001",
    ),
    (
        "nothing-left-for-training",
        "= 2.0",
        "= 2.0\nevaluation_share = 1.2",
        "evaluation_share: Input should be less than or equal to 1",
    ),
    ("epsilon-as-text", "= 2.0", '= "lots"', "privacy.target_epsilon: Input should be a valid number"),
    ("no-rounds", "rounds = 10", "rounds = 0", "training.rounds: Input should be greater than or equal to 1"),
    (
        "rate-above-one",
        "sample_rate = 0.1",
        "sample_rate = 1.5",
        "training.sample_rate: Input should be less than or equal to 1",
    ),
    (
        "unknown-optimizer",
        "rounds = 10",
        'rounds = 10\noptimizer = "lbfgs"',
        "training.optimizer: Input should be 'adam' or 'sgd'",
    ),
    (
        "pull-without-fedprox",
        "rounds = 10",
        "rounds = 10\nproximal_mu = 0.5",
        'training: proximal_mu goes with strategy = "fedprox"',
    ),
    (
        "server-step-without-fedadam",
        "rounds = 10",
        'rounds = 10\nstrategy = "fedprox"\nserver_tau = 0.5',
        'training: server_tau goes with strategy = "fedadam"',
    ),
    (
        "strategy-of-secure-sums",
        "= 2.0\n\n[training]\nrounds = 10\nsample_rate = 0.1\n\n[federation]\n",
        '= 2.0\nmode = "secure-sum"\n\n[training]\nlocal_steps = 1\nstrategy = "fedadam"\n\n'
        "[federation]\nmin_branches = 3\n",
        "training.strategy is for mode local",
    ),
    (
        "quantile-of-a-fixed-bound",
        "rounds = 10",
        "rounds = 10\nclipping_quantile = 0.6",
        'training: clipping_quantile goes with clipping = "adaptive"',
    ),
    (
        "adaptive-clipping-in-a-branch",
        "rounds = 10",
        'rounds = 10\nclipping = "adaptive"',
        "training.clipping is for mode secure-sum",
    ),
    (
        "no-clipping",
        "rounds = 10",
        "rounds = 10\nmax_grad_norm = 0",
        "training.max_grad_norm: Input should be greater than 0",
    ),
    (
        "deep-net",
        "[training]",
        "[model]\nhidden = [1, 2, 3, 4, 5]\n\n[training]",
        "model.hidden: Tuple should have at most 4 items",
    ),
    (
        "negative-weight",
        "basel = 1.0",
        "basel = -1.0",
        "federation.weights.basel: Input should be greater than 0",
    ),
    (
        "unknown-travel",
        "weights =",
        'travel = "post"\nweights =',
        "federation.travel: Input should be 'session' or 'messages'",
    ),
    (
        "unknown-key",
        "rounds = 10",
        'rounds = 10\ncode = "import os"',
        "training.code: Extra inputs are not permitted",
    ),
    ("unknown-table", "[training]", "[shell]\n\n[training]", "shell: Extra inputs are not permitted"),
]


def write(path: Path, good: str, old: str, new: str) -> Path:
    assert old in good, "the case does not change the good file"
    path.write_text(good.replace(old, new, 1), encoding="utf-8")
    return path


def test_the_good_ones_are_good(tmp_path: Path) -> None:
    assert load_contract(write(tmp_path / "c.toml", GOOD_CONTRACT, "", "")).name == "bank"
    assert load_job(write(tmp_path / "j.toml", GOOD_JOB, "", "")).name == "churn-q4"


@pytest.mark.parametrize(("name", "old", "new", "expected"), BAD_CONTRACTS, ids=[c[0] for c in BAD_CONTRACTS])
def test_bad_contract(name: str, old: str, new: str, expected: str, tmp_path: Path) -> None:
    path = write(tmp_path / "contract.toml", GOOD_CONTRACT, old, new)
    with pytest.raises(BadInput) as caught:
        load_contract(path)
    assert expected in str(caught.value)
    assert str(path) in str(caught.value)
    assert caught.value.hint


@pytest.mark.parametrize(("name", "old", "new", "expected"), BAD_JOBS, ids=[c[0] for c in BAD_JOBS])
def test_bad_job(name: str, old: str, new: str, expected: str, tmp_path: Path) -> None:
    path = write(tmp_path / "job.toml", GOOD_JOB, old, new)
    with pytest.raises(BadInput) as caught:
        load_job(path)
    assert expected in str(caught.value)
    assert str(path) in str(caught.value)
    assert caught.value.hint


@pytest.mark.parametrize("load", [load_contract, load_job])
def test_no_file_a_folder_and_another_encoding(load: object, tmp_path: Path) -> None:
    assert callable(load)
    with pytest.raises(BadInput, match="no such file"):
        load(tmp_path / "none.toml")
    with pytest.raises(BadInput, match="cannot be read"):
        load(tmp_path)
    (tmp_path / "latin.toml").write_bytes("name = 'Zürich'".encode("latin-1"))
    with pytest.raises(BadInput, match=r"not UTF-8 \(byte 9\)"):
        load(tmp_path / "latin.toml")


def test_the_table_is_long_and_has_no_twin() -> None:
    for cases, least in ((BAD_CONTRACTS, 15), (BAD_JOBS, 10)):
        assert len({c[0] for c in cases}) == len(cases) >= least
