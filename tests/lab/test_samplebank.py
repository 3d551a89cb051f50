"""The sample bank: valid, repeatable, with right check digits, branches that differ and a truth that holds."""

import base64
import csv
import json
from collections import Counter
from datetime import date
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from sfumato.client.ingest.checks import check_batch, check_header
from sfumato.client.ingest.load import open_source
from sfumato.common.analyses import catalogue
from sfumato.common.contract import Contract, Protection, Role, load_contract
from sfumato.common.errors import BadInput
from sfumato.common.job import AnalysisJob, load_job
from sfumato.lab.samplebank import (
    PII_KINDS,
    SampleBank,
    as_of,
    generate,
    planted_pii,
    planted_pii_by_kind,
)
from sfumato.lab.samplebank_identity import (
    iban,
    iban_is_valid,
    mod11_10_check_digit,
    mod97,
    national_id,
    national_id_is_valid,
)
from sfumato.lab.samplebank_model import PROFILES, auc, draw_people, effects, poisson_quantile

FILES = {
    "customers": "customers.csv",
    "accounts": "accounts.csv",
    "transactions": "transactions.parquet",
    "holdings": "holdings.csv",
    "complaints": "complaints.csv",
    "surveys": "surveys.csv",
    "contacts": "contacts.csv",
    "loans": "loans.csv",
}


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> SampleBank:
    return generate(tmp_path_factory.mktemp("bank"))


@pytest.fixture(scope="module")
def contract(bank: SampleBank) -> Contract:
    return load_contract(bank.contract)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as f:
        return list(csv.DictReader(f))


def read(folder: Path, table: str) -> pa.Table:
    path = folder / FILES[table]
    return pq.read_table(path) if path.suffix == ".parquet" else pa.csv.read_csv(path)


def test_contract_and_job_are_valid_and_belong_together(bank: SampleBank, contract: Contract) -> None:
    job = load_job(bank.job)
    assert job.contract == contract.name == "sample-bank"
    assert (job.name, job.privacy.target_epsilon, job.privacy.delta) == ("churn-demo", 2.0, 1e-5)
    assert contract.as_of == as_of()
    assert contract.label is not None and contract.label.name == "churned"
    protections = {c.protection for c in contract.customer_table.with_role(Role.PII)}
    assert protections == set(Protection)
    assert len(bank.branches) == 4
    assert 11_900 <= bank.customers <= 12_100


def test_the_portrait_asks_of_every_side_of_a_customer(bank: SampleBank, contract: Contract) -> None:
    job = load_job(bank.profile)
    assert isinstance(job, AnalysisJob)
    assert (job.contract, job.privacy.mode) == (contract.name, "secure-sum")
    asked = catalogue.build(job.kind, job.question, contract)
    assert {"age", "txn_count_90d", "nps_mean_365d", "tenure_months", "churned"} <= set(asked.columns)
    assert asked.length(0) < 500


def test_every_cell_of_every_table_passes_ingest(bank: SampleBank, contract: Contract) -> None:
    for folder in bank.branches.values():
        assert {p.name for p in folder.iterdir()} == set(FILES.values())
        for table, file in FILES.items():
            source = open_source(folder / file)
            with source.open() as reader:
                check_header(source.name, reader.columns, contract.table(table))
                for batch in reader:
                    checked = check_batch(batch, contract.table(table))
                    assert not checked.faults
                    assert not checked.clipped


def test_roll_ups_name_values_that_occur(bank: SampleBank, contract: Contract) -> None:
    folder = bank.branches["branch-1"]
    for feature in contract.features:
        for column, value in feature.where.items():
            assert value in pc.unique(read(folder, feature.table)[column]).to_pylist()


def test_same_seed_same_bytes_other_seed_other_bank(tmp_path: Path) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        generate(tmp_path / name, branches=2, customers_per_branch=200, seed=seed)
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file())
    same = [f for f in files if f.suffix == ".toml"]  # the contract and the jobs
    assert len(files) == 2 * len(FILES) + len(same) + 2
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file
    differ = [f for f in files if (tmp_path / "a" / f).read_bytes() != (tmp_path / "c" / f).read_bytes()]
    assert sorted(set(files) - set(differ)) == same


def test_published_vectors_of_the_check_digit_schemes() -> None:
    assert mod97("WEST12345698765432" + "GB82") == 1  # the registry's example: GB82 WEST 1234 5698 7654 32
    assert mod97("WEST12345698765432" + "GB83") != 1
    assert mod11_10_check_digit("0794") == 5  # the standard's own example
    assert national_id_is_valid(national_id(123456789))
    assert iban_is_valid(iban(1, 1234567890))


@pytest.mark.parametrize("place", range(1, 11))
def test_a_wrong_digit_is_noticed(place: int) -> None:
    good = national_id(271828182)
    changed = good[:place] + str((int(good[place]) + 1) % 10) + good[place + 1 :]
    assert not national_id_is_valid(changed)
    account = iban(2, 3141592653)
    at = place + 3
    assert not iban_is_valid(account[:at] + str((int(account[at]) + 1) % 10) + account[at + 1 :])


def test_check_digits_and_uniqueness_over_the_whole_bank(bank: SampleBank) -> None:
    seen: dict[str, Counter[str]] = {k: Counter() for k in ("customer_id", "national_id", "iban", "phone")}
    for folder in bank.branches.values():
        for row in rows(folder / "customers.csv"):
            assert national_id_is_valid(row["national_id"])
            assert iban_is_valid(row["iban"])
            for kind, counter in seen.items():
                counter[row[kind]] += 1
    for kind, counter in seen.items():
        assert len(counter) == bank.customers, kind  # nobody twice, so nobody in two branches


def test_every_row_belongs_to_a_customer_of_the_branch(bank: SampleBank) -> None:
    for folder in bank.branches.values():
        known = read(folder, "customers")["customer_id"].combine_chunks()
        for table in set(FILES) - {"customers"}:
            owners = read(folder, table)["customer_id"].cast(pa.string())
            assert pc.all(pc.is_in(owners, known)).as_py(), table


def test_nothing_is_dated_on_or_after_as_of(bank: SampleBank) -> None:
    for folder in bank.branches.values():
        for table in set(FILES) - {"customers"}:
            data = read(folder, table)
            for column in data.column_names:
                if pa.types.is_date(data[column].type):
                    assert pc.max(data[column]).as_py() < as_of(), (table, column)
        first = pc.min(read(folder, "transactions")["date"]).as_py()
        assert date(2023, 7, 1) <= first <= date(2023, 7, 5)
    truth = pq.read_table(bank.ground_truth)
    left = truth.filter(truth["churned"])["churn_date"]
    assert left.null_count == 0
    assert pc.min(left).as_py() > as_of()
    assert truth.filter(pc.invert(truth["churned"]))["churn_date"].null_count == truth.num_rows - len(left)


def test_amounts_have_heavy_tails_and_activity_is_real(bank: SampleBank) -> None:
    data = read(bank.branches["branch-1"], "transactions")
    spent = -np.asarray(data["amount"])[np.asarray(data["amount"]) < 0]
    assert np.quantile(spent, 0.9999) > 100 * np.median(spent)
    customers = len(rows(bank.branches["branch-1"] / "customers.csv"))
    assert 20 <= data.num_rows / customers / 2 <= 60


def test_branches_differ(bank: SampleBank) -> None:
    ages, urban, sizes, rates = [], [], [], []
    for folder in bank.branches.values():
        table = read(folder, "customers")
        ages.append(pc.mean(table["age"]).as_py())
        urban.append(pc.mean(pc.equal(table["area"], "urban").cast("int8")).as_py())
        sizes.append(table.num_rows)
        rates.append(pc.mean(table["churned"]).as_py())
    assert max(ages) - min(ages) > 15
    assert max(urban) - min(urban) > 0.7
    assert max(sizes) > 2 * min(sizes)
    assert max(rates) - min(rates) > 0.05  # 5 standard errors of the smallest branch
    assert 0.15 <= bank.churn_rate <= 0.25


def test_ground_truth_is_the_label_s_own_propensity(bank: SampleBank) -> None:
    truth = pq.read_table(bank.ground_truth)
    p, y = np.asarray(truth["propensity"]), np.asarray(truth["churned"])
    assert 0.86 <= auc(p, y) <= 0.90
    assert auc(p, y) == pytest.approx(bank.propensity_auc, abs=1e-12)
    # Calibration: in each tenth of the propensity the churners are binomial. False alarm 10 * 6e-5 at 4 sd.
    for part in np.array_split(np.argsort(p), 10):
        sd = np.sqrt((p[part] * (1 - p[part])).sum())
        assert abs(y[part].sum() - p[part].sum()) < 4 * sd
    labels = {
        r["customer_id"]: r["churned"] for f in bank.branches.values() for r in rows(f / "customers.csv")
    }
    told = zip(truth["customer_id"].to_pylist(), y.tolist(), strict=True)
    assert {c: str(int(v)) for c, v in told} == labels


def test_effects_have_their_signs_and_follow_the_graph(bank: SampleBank) -> None:
    summary = json.loads(bank.ground_truth_json.read_text())
    truth = pq.read_table(bank.ground_truth)
    p = np.asarray(truth["propensity"])
    for name, mean in summary["average_effects"].items():
        effect = np.asarray(truth[name]) - p
        assert effect.mean() == pytest.approx(mean)
        assert (effect <= 1e-12).all(), name  # every one of these interventions protects, or does nothing
        assert mean < -0.005, name
    # What a customer without decline gains by undoing it is small; the tired ones gain much.
    decline = np.asarray(truth["decline"])
    gain = p - np.asarray(truth["do_no_decline"])
    assert gain[decline > 0.6].mean() > 5 * gain[decline < 0.05].mean()


def test_an_intervention_moves_its_mediators_too() -> None:
    people = draw_people(np.random.default_rng(1), PROFILES[0], 2000)
    calm = people.do(decline=np.zeros(2000))
    assert (calm.dissatisfaction <= people.dissatisfaction).all()
    assert calm.complaints.sum() < people.complaints.sum()
    assert (calm.age == people.age).all()
    assert set(effects(people)) >= {"propensity", "do_no_decline"}
    with pytest.raises(KeyError, match="no such column"):
        people.do(mood=np.zeros(2000))


def test_poisson_quantile_against_its_definition() -> None:
    rng = np.random.default_rng(2)
    mean = np.full(200_000, 0.8)
    drawn = poisson_quantile(rng.random(len(mean)), mean)
    share = np.bincount(drawn, minlength=4)[:4] / len(mean)
    expected = np.exp(-0.8) * np.array([1, 0.8, 0.32, 0.8**3 / 6])
    assert np.abs(share - expected).max() < 5 * np.sqrt(0.25 / len(mean))  # false alarm below 1e-5


def test_auc_against_counting_pairs() -> None:
    rng = np.random.default_rng(3)
    score, label = rng.random(60), rng.random(60) < 0.4
    pairs = [a > b for a in score[label] for b in score[~label]]
    assert auc(score, label) == pytest.approx(np.mean(pairs))


def test_planted_strings_are_in_their_branch_and_nowhere_else(bank: SampleBank) -> None:
    out = bank.contract.parent
    public = [bank.contract, bank.job, bank.profile, bank.ground_truth_json]
    everything = b"".join(p.read_bytes() for p in public)
    by_kind = planted_pii_by_kind(out)
    assert set(by_kind) == set(bank.branches)
    contents = {
        b: "\n".join(
            cell
            for table in ("customers", "complaints")
            for row in rows(f / FILES[table])
            for cell in row.values()
        )
        for b, f in bank.branches.items()
    }
    for branch, kinds in by_kind.items():
        assert set(kinds) == set(PII_KINDS)
        assert any(not name.isascii() for name in kinds["full_name"])
        for kind, values in kinds.items():
            assert len(set(values)) >= 5, (branch, kind)
            for value in values:
                raw = value.encode()
                assert len(raw) >= 6
                assert value in contents[branch]
                assert raw not in everything
                assert base64.b64encode(raw) not in everything
                if kind not in ("full_name", "complaint_text"):  # two people may bear one name
                    assert not any(value in text for b, text in contents.items() if b != branch)
    flat = planted_pii(out)
    assert flat.keys() == by_kind.keys()
    for branch, values in flat.items():
        assert set(values) == {v for kind in by_kind[branch].values() for v in kind}


def test_free_text_is_in_two_languages_and_some_of_it_names_people(bank: SampleBank) -> None:
    complaints = [r["text"] for r in rows(bank.branches["branch-1"] / "complaints.csv")]
    comments = [r["comment"] for r in rows(bank.branches["branch-1"] / "surveys.csv")]
    for texts in (complaints, [c for c in comments if c]):
        chinese = sum(not t.isascii() for t in texts) / len(texts)
        assert 0.2 < chinese < 0.8
    assert 0.2 < sum("0555 " in t or "XF" in t or "@" in t for t in complaints) / len(complaints) < 0.6
    assert 0.3 < comments.count("") / len(comments) < 0.6


def test_a_larger_bank_is_never_left_half_replaced(tmp_path: Path) -> None:
    generate(tmp_path, branches=3, customers_per_branch=60)
    with pytest.raises(BadInput, match="branch-3"):
        generate(tmp_path, branches=2, customers_per_branch=60)
    again = generate(tmp_path, branches=3, customers_per_branch=60, seed=8)
    assert len(again.branches) == 3
    assert not [p for p in tmp_path.rglob("*") if p.name.endswith(".part")]


@pytest.mark.parametrize(("branches", "size"), [(0, 100), (1000, 100), (2, 49), (2, 1_000_001)])
def test_sizes_out_of_range_are_refused(tmp_path: Path, branches: int, size: int) -> None:
    with pytest.raises(BadInput):
        generate(tmp_path / "bank", branches=branches, customers_per_branch=size)
    assert not (tmp_path / "bank").exists()


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bank").write_text("x")
    with pytest.raises(BadInput, match="not a folder"):
        generate(tmp_path / "bank")


def test_planted_strings_of_no_bank_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no sample bank"):
        planted_pii(tmp_path)


def test_the_lot_is_fair_and_responses_follow_their_known_chances(bank: SampleBank) -> None:
    truth = pq.read_table(bank.ground_truth)
    row = {c: i for i, c in enumerate(truth["customer_id"].to_pylist())}
    contacts = pa.concat_tables(read(f, "contacts") for f in bank.branches.values())
    places = np.array([row[c] for c in contacts["customer_id"].to_pylist()])
    assert len(set(places.tolist())) == len(places)  # nobody is drawn twice
    rewards, responded = np.asarray(contacts["reward"]), np.asarray(contacts["responded"])
    segments = np.asarray(truth["segment"])[places]
    for reward in ("none", "points", "cashback", "voucher"):
        mine = rewards == reward
        assert abs(mine.mean() - 0.25) < 4 * np.sqrt(0.1875 / len(mine))
        assert abs(mine[segments == "mass"].mean() - mine.mean()) < 0.03  # whoever they are
        p = np.asarray(truth[f"response_{reward}"])[places[mine]]
        assert abs(responded[mine].sum() - p.sum()) < 4 * np.sqrt((p * (1 - p)).sum())
    assert ((np.asarray(contacts["spent"]) > 0) == responded).all()


def test_who_owes_has_credit_and_defaults_as_the_truth_says(bank: SampleBank) -> None:
    truth = pq.read_table(bank.ground_truth)
    p = np.asarray(truth["default_propensity"])
    loans = pa.concat_tables(read(f, "loans") for f in bank.branches.values())
    holdings = pa.concat_tables(read(f, "holdings") for f in bank.branches.values())
    credit = holdings.filter(
        pc.is_in(holdings["product"], pa.array(["credit card", "consumer loan", "mortgage"]))
    )
    assert set(loans["customer_id"].to_pylist()) <= set(credit["customer_id"].to_pylist())
    assert loans.num_rows == (p > 0).sum()
    assert abs(np.asarray(loans["defaulted"]).sum() - p.sum()) < 4 * np.sqrt((p * (1 - p)).sum())
    score, bad = np.asarray(loans["score"], dtype=float), np.asarray(loans["defaulted"])
    spread = np.random.default_rng(0).random(len(score))  # auc takes no ties
    assert 0.65 < auc(-score + 1e-3 * spread, bad) < 0.85
