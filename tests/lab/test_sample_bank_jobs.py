"""The analyses' example jobs over a sample bank: each is asked of real vaults, and answers what it documents."""

import io
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from rich.console import Console

from sfumato.common import analyses
from sfumato.common.analyses.parts import parts_of
from sfumato.common.contract import Contract, load_contract
from sfumato.common.job import AnalysisJob, load_job, sign_job
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
JOBS = sorted(p.stem for p in EXAMPLES.glob("*.toml"))
OF_AN_EARLIER_RUN = {"drift"}  # asks about what another job left
WITHOUT_AN_EXAMPLE = {"profile", "segments"}  # the bank itself comes with one; the real sets have the other


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> SampleBank:
    return generate(tmp_path_factory.mktemp("jobs") / "bank", branches=3, customers_per_branch=400)


@pytest.fixture(scope="module")
def vaults(bank: SampleBank) -> Iterator[tuple[Mapping[int, Answerer], Ed25519PrivateKey]]:
    with bank_branches(bank, budget_epsilon=1000.0, budget_delta=1e-2) as made:
        yield open_vaults(made.homes), made.key


def test_every_analysis_has_an_example() -> None:
    kinds = set(analyses.CATALOGUE) - OF_AN_EARLIER_RUN - WITHOUT_AN_EXAMPLE
    assert kinds - {load_job(EXAMPLES / f"{name}.toml").kind for name in JOBS} == set()


@pytest.mark.parametrize("name", JOBS)
def test_the_example_costs_what_it_says_and_is_answered(
    name: str, bank: SampleBank, vaults: tuple[Mapping[int, Answerer], Ed25519PrivateKey]
) -> None:
    contract: Contract = load_contract(bank.contract)
    job = load_job(EXAMPLES / f"{name}.toml")
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
    """Every kind is printed, exported and drawn by the same code; none is left out."""
    assert reading.answer is not None
    said = io.StringIO()
    print_answer(reading.summary, reading.answer, Console(file=said, width=2000))
    for part in reading.parts:
        shown = {measured(r.numbers[m], part.units[m]) for r in part.rows[:MOST_ROWS] for m in r.numbers}
        assert [text for text in shown if text not in said.getvalue()] == [], part.name
    answer = answer_of(reading.kind, reading.answer)
    assert answer is not None and all(plot.rows for plot in answer.plots)
    pages = [portrait_page(Portrait.of([reading]), language) for language in ("en", "zh")]
    assert [page.count("<figure") for page in pages] == [len(answer.plots)] * 2
