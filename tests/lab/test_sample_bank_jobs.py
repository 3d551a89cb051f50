"""The analyses' example jobs over a sample bank: each is asked of real vaults, and answers what it documents."""

import io
import shutil
from collections.abc import Iterator, Mapping
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from rich.console import Console

from sfumato.common.analyses import catalogue
from sfumato.common.analyses.parts import parts_of
from sfumato.common.contract import Contract, load_contract
from sfumato.common.job import AnalysisJob, AnyJob, load_job, sign_job
from sfumato.lab.in_process import Answerer, open_vaults, run_in_process
from sfumato.lab.samplebank import SampleBank, generate
from sfumato.lab.simulate import bank_branches
from sfumato.privacy.plan import Plan
from sfumato.server.answers import MOST_ROWS, measured, print_answer
from sfumato.server.portrait import Portrait
from sfumato.server.portrait_page import portrait_page
from sfumato.server.reading import Reading
from sfumato.server.report_answers import answer_of

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "sample_bank"
LEARNER, OF_ITS_RUN = "scorecard", "drift"  # one leaves the schema that the other asks by
JOBS = sorted({p.stem for p in EXAMPLES.glob("*.toml")} - {LEARNER, OF_ITS_RUN})
OF_THEIR_OWN = {"profile", "segments", "drift"}  # views: see server.answers
Vaults = tuple[Mapping[int, Answerer], Ed25519PrivateKey]


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> SampleBank:
    return generate(tmp_path_factory.mktemp("jobs") / "bank", branches=3, customers_per_branch=400)


@pytest.fixture(scope="module")
def vaults(bank: SampleBank) -> Iterator[Vaults]:
    with bank_branches(bank, budget_epsilon=1000.0, budget_delta=1e-2) as made:
        yield open_vaults(made.homes), made.key


def test_every_analysis_has_an_example() -> None:
    assert set(catalogue.CATALOGUE) - {load_job(EXAMPLES / f"{name}.toml").kind for name in JOBS} == {
        OF_ITS_RUN
    }


@pytest.mark.parametrize("name", JOBS)
def test_the_example_costs_what_it_says_and_is_answered(name: str, bank: SampleBank, vaults: Vaults) -> None:
    assert_answered(load_job(EXAMPLES / f"{name}.toml"), load_contract(bank.contract), vaults)


def test_drift_is_asked_by_the_schema_that_the_scorecard_left(
    bank: SampleBank, vaults: Vaults, tmp_path: Path
) -> None:
    contract, learner = load_contract(bank.contract), load_job(EXAMPLES / f"{LEARNER}.toml")
    sign_job(learner, contract, vaults[1], valid_for=timedelta(hours=1))
    short = learner.model_copy(update={"learner": {"rounds": 1}})
    model = run_in_process(vaults[0], short, contract, vaults[1]).model
    assert model is not None and model.header.schema_ is not None
    (tmp_path / "schema.json").write_text(model.header.schema_.model_dump_json(), encoding="utf-8")
    shutil.copy(EXAMPLES / f"{OF_ITS_RUN}.toml", tmp_path)
    job = load_job(tmp_path / f"{OF_ITS_RUN}.toml")
    for day in (None, date(2025, 6, 1)):
        assert_answered(job.model_copy(update={"as_of": day}), contract, vaults)


def assert_answered(job: AnyJob, contract: Contract, vaults: Vaults) -> None:
    assert isinstance(job, AnalysisJob)
    assert (job.contract, job.privacy.mode) == (contract.name, "secure-sum")
    sign_job(job, contract, vaults[1], valid_for=timedelta(hours=1))
    assert 0.97 * job.privacy.target_epsilon < Plan.of(job, contract).epsilon() <= job.privacy.target_epsilon
    three = job.federation.model_copy(update={"min_branches": 3})
    outcome = run_in_process(vaults[0], job.model_copy(update={"federation": three}), contract, vaults[1])
    assert outcome.answer is not None and outcome.answer["level"] == 0.95
    parts = list(parts_of(outcome.answer))
    numbers: list[Mapping[str, Any]] = [n for p in parts for r in p.rows for n in r.numbers.values()]
    assert numbers
    assert all(n["low"] <= n["value"] <= n["high"] for n in numbers)
    assert_readable(Reading.of("run 1", outcome.summary, outcome.answer))


def assert_readable(reading: Reading) -> None:
    """Every kind is printed, exported and drawn, all but those of a view of their own by the same code."""
    assert reading.answer is not None
    said = io.StringIO()
    print_answer(reading.summary, reading.answer, Console(file=said, width=2000))
    pages = [portrait_page(Portrait.of([reading]), language) for language in ("en", "zh")]
    if reading.kind in OF_THEIR_OWN:
        assert said.getvalue().count("\n") > 5 and all("<figure" in page for page in pages)
        return
    for part in reading.parts:
        shown = {measured(r.numbers[m], part.units[m]) for r in part.rows[:MOST_ROWS] for m in r.numbers}
        assert [text for text in shown if text not in said.getvalue()] == [], part.name
    answer = answer_of(reading.kind, reading.answer)
    assert answer is not None and all(plot.rows for plot in answer.plots)
    assert [page.count("<figure") for page in pages] == [len(answer.plots)] * 2
