"""The example contracts: valid, and true of the real files wherever these are at hand."""

from datetime import timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sfumato.client.ingest.checks import check_batch, check_header
from sfumato.client.ingest.load import open_source
from sfumato.client.ingest.sources import Source
from sfumato.common.analyses import catalogue
from sfumato.common.contract import Column, ColumnType, Contract, OutOfDomain, Role, load_contract
from sfumato.common.contributions import Cells
from sfumato.common.job import AnalysisJob, ChurnNetJob, load_job, sign_job
from sfumato.common.learners.encoding import Encoder
from sfumato.lab.partition import NumberedSource
from sfumato.privacy.plan import Plan

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
DATA = ROOT.parent / "shared" / "data"
# Example: file, natural branch, rows, churners. The last two as published with the data.
KNOWN = {
    "bank_branch_churn": ("bank_branch_churn", "city", 28_382, 5_260),
    "churn_modelling": ("churn_modelling", "Geography", 10_000, 2_037),
    "bank_churners": ("bank_churners", None, 10_127, 1_627),
    "telco_ibm": ("telco", None, 7_043, 1_869),
    "credit_default_tw": ("credit_default_tw", None, 30_000, 6_636),
    "cell2cell": ("cell2cell", "Region", 51_047, 14_711),
    "adult": ("adult", None, 48_842, 11_687),
}
NUMBERED = {"adult": "row"}  # no id in the file
LEAKY = {"branch_code", "ServiceArea"}


def contract_of(example: str) -> Contract:
    return load_contract(EXAMPLES / example / "contract.toml")


def data_of(example: str) -> Path:
    path = DATA / example / f"{KNOWN[example][0]}.parquet"
    if not path.exists():
        pytest.skip("the benchmark data is not at hand (../shared/data)")
    return path


def test_every_example_is_known_here() -> None:
    assert {p.name for p in EXAMPLES.iterdir() if (p / "contract.toml").exists()} == set(KNOWN)


@pytest.mark.parametrize("example", KNOWN)
def test_contract_and_job_are_valid_and_belong_together(example: str) -> None:
    contract, job = contract_of(example), load_job(EXAMPLES / example / "job.toml")
    _, branch, rows, _ = KNOWN[example]
    assert job.contract == contract.name
    assert job.privacy.target_epsilon == 2.0
    assert job.privacy.delta <= 1 / rows
    assert job.federation.travel == "session"
    assert job.federation.min_branches == (3 if branch == "Geography" else 2)
    assert contract.label is not None
    assert [c.name for c in contract.customer_table.with_role(Role.BRANCH)] == ([branch] if branch else [])
    features = {c.name for c in contract.customer_table.with_role(Role.FEATURE)}
    assert not features & LEAKY


@pytest.mark.parametrize("example", KNOWN)
def test_the_net_by_secure_sums_is_the_same_net_for_the_same_contract(example: str) -> None:
    contract, local = contract_of(example), load_job(EXAMPLES / example / "job.toml")
    job = load_job(EXAMPLES / example / "secure-sum.toml")
    assert isinstance(job, ChurnNetJob) and isinstance(local, ChurnNetJob)
    assert job.contract == contract.name and job.name != local.name
    assert (job.model, job.evaluation, job.purpose) == (local.model, local.evaluation, local.purpose)
    assert job.privacy.mode == "secure-sum" and job.privacy.colluders == 1
    assert job.privacy.delta <= 1 / KNOWN[example][2]
    assert Plan.of(job, contract).epsilon() <= job.privacy.target_epsilon == 1.0


def test_all_nets_by_secure_sums_are_trained_alike() -> None:
    jobs = [load_job(EXAMPLES / example / "secure-sum.toml") for example in KNOWN]
    assert len({job.training.model_dump_json() for job in jobs if isinstance(job, ChurnNetJob)}) == 1


@pytest.mark.parametrize("example", KNOWN)
@pytest.mark.parametrize("kind", ["boosted-trees", "scorecard", "segments"])
def test_learners_and_segments_fit_the_contract_and_cost_what_they_say(example: str, kind: str) -> None:
    contract, job = contract_of(example), load_job(EXAMPLES / example / f"{kind}.toml")
    assert (job.kind, job.contract, job.privacy.mode) == (kind, contract.name, "secure-sum")
    assert job.privacy.delta <= 1 / KNOWN[example][2]
    sign_job(job, contract, Ed25519PrivateKey.generate(), valid_for=timedelta(hours=1))
    assert 0.97 * job.privacy.target_epsilon < Plan.of(job, contract).epsilon() <= job.privacy.target_epsilon


@pytest.mark.parametrize("example", KNOWN)
def test_the_portrait_is_valid_and_reads_every_real_customer_once_a_table(example: str) -> None:
    contract, job = contract_of(example), load_job(EXAMPLES / example / "profile.toml")
    assert isinstance(job, AnalysisJob)
    assert job.contract == contract.name
    assert job.privacy.delta <= 1 / KNOWN[example][2]
    asked = catalogue.build(job.kind, job.question, contract)
    data = pq.read_table(data_of(example), columns=list(asked.columns))
    found = asked.contribute(0, {name: data[name] for name in asked.columns}, None)
    assert isinstance(found, Cells)
    assert found.cells.shape == (KNOWN[example][2], len(job.question["columns"] + job.question["cross"]))
    assert (found.cells >= 0).all()


@pytest.mark.parametrize("example", KNOWN)
def test_the_readme_shows_the_command_with_the_natural_branch(example: str) -> None:
    text = (EXAMPLES / example / "README.md").read_text(encoding="utf-8")
    branch = KNOWN[example][1]
    assert f"sfumato simulate examples/{example}/job.toml --contract examples/{example}/contract.toml" in text
    assert f"sfumato simulate examples/{example}/secure-sum.toml" in text
    assert (f"--branch-column {branch}" if branch else "--branches 4") in text


@pytest.mark.parametrize("example", KNOWN)
def test_heavy_numbers_have_cut_points_and_bins_are_few(example: str) -> None:
    for c in contract_of(example).customer_table.with_role(Role.FEATURE):
        if c.bounds is None:
            continue
        assert len(c.edges or ()) <= 20, c.name
        if c.bounds[1] - c.bounds[0] > 20:
            assert c.edges, c.name


@pytest.mark.parametrize("example", KNOWN)
def test_ingest_accepts_the_real_file_whole(example: str) -> None:
    path, contract = data_of(example), contract_of(example)
    source: Source = open_source(path)
    if example in NUMBERED:
        source = NumberedSource(source, NUMBERED[example])
    rows = positives = 0
    clipped: dict[str, int] = {}
    with source.open() as reader:
        check_header(source.name, reader.columns, contract.customer_table)
        for batch in reader:
            checked = check_batch(batch, contract.customer_table)
            assert not checked.faults
            rows += len(checked.bad)
            positives += _positives(checked.values, contract)
            for column, count in checked.clipped.items():
                clipped[column] = clipped.get(column, 0) + count
    assert (rows, positives) == KNOWN[example][2:]
    assert max(clipped.values(), default=0) <= rows / 1000, clipped


def _positives(values: pa.Table, contract: Contract) -> int:
    label = contract.label
    assert label is not None
    positive = pa.scalar(label.positive) if label.positive else pa.scalar(1, pa.int64())
    return int(pc.sum(pc.equal(values[label.name], positive)).as_py() or 0)


@pytest.mark.parametrize("example", KNOWN)
def test_columns_cover_the_real_file_and_do_not_copy_it(example: str) -> None:
    data = pq.read_table(data_of(example))
    table = contract_of(example).customer_table
    numbered = {NUMBERED[example]} if example in NUMBERED else set()
    assert {c.name for c in table.columns} == set(data.column_names) | numbered
    for column in table.columns:
        if column.name in numbered:
            continue
        values = data[column.name]
        assert (values.null_count > 0) == column.nullable, column.name
        _check_type(column, values)
        if column.categories is not None:
            inside = pc.is_in(values.drop_null().cast(pa.string()), pa.array(column.categories))
            assert pc.all(inside).as_py(), column.name
            assert set(column.categories) == set(values.drop_null().cast(pa.string()).unique().to_pylist())
        if column.bounds is not None:
            _check_bounds(column, values)


def _check_type(column: Column, values: pa.ChunkedArray) -> None:
    text = pa.types.is_string(values.type) or pa.types.is_large_string(values.type)
    if column.type is ColumnType.STRING:
        assert text, column.name
    elif column.type in (ColumnType.INTEGER, ColumnType.NUMBER):
        assert not text, column.name
        if column.type is ColumnType.INTEGER:
            numbers = values.drop_null().cast(pa.float64(), safe=False).to_numpy()
            assert (numbers == np.floor(numbers)).all(), column.name


def _check_bounds(column: Column, values: pa.ChunkedArray) -> None:
    assert column.bounds is not None
    numbers = values.drop_null().cast(pa.float64(), safe=False).to_numpy()
    outside = np.mean((numbers < column.bounds[0]) | (numbers > column.bounds[1]))
    assert outside <= 0.001, column.name
    if outside > 0:
        assert column.out_of_domain is OutOfDomain.CLIP, column.name
    if column.type is ColumnType.NUMBER:
        assert column.bounds != (numbers.min(), numbers.max()), column.name
        copied = {round(float(q), 6) for q in np.quantile(numbers, np.linspace(0.05, 0.95, 19))}
        matching = [e for e in column.edges or () if e in copied and e != round(e, -1)]
        assert len(matching) <= len(column.edges or ()) / 2, column.name


@pytest.mark.parametrize("example", KNOWN)
def test_the_encoding_spreads_customers_over_the_bins(example: str) -> None:
    """Cut points where the mass is: in half of the numeric columns no bin holds more than 55 %."""
    data = pq.read_table(data_of(example))
    encoder = Encoder(contract_of(example))
    encoded = encoder.transform({name: data[name] for name in data.column_names})
    largest = [
        np.bincount(encoded.codes[:, i]).max() / len(encoded)
        for i, f in enumerate(encoder.features)
        if f.numeric and f.bounds is not None and f.bounds[1] - f.bounds[0] > 20
    ]
    assert np.percentile(largest, 50, method="lower") < 0.55
