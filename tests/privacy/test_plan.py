"""A job's plan: within its epsilon by dp_accounting's own figure, the same on both sides, and no more than it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dp_accounting.dp_event import DpEvent
from dp_accounting.pld import PLDAccountant
from dp_accounting.privacy_accountant import NeighboringRelation

from sfumato.common.analyses import catalogue
from sfumato.common.contract import Contract, load_contract
from sfumato.common.errors import Refusal, RefusalCode
from sfumato.common.job import AnalysisJob, ChurnNetJob
from sfumato.privacy import accounting
from sfumato.privacy.mechanisms import SumNoise
from sfumato.privacy.plan import Plan, _plan

CONTRACT = load_contract(Path(__file__).parents[2] / "examples" / "bank_branch_churn" / "contract.toml")
DELTA = 1e-6


def contract(times: int = 1) -> Contract:
    return CONTRACT.model_copy(update={"max_branches_per_customer": times})


def churn(mode: str, epsilon: float = 1.0, repeats: int | None = None, **training: Any) -> ChurnNetJob:
    return ChurnNetJob.model_validate(
        {
            "name": "churn",
            "kind": "churn-net",
            "purpose": "who will leave us",
            "contract": CONTRACT.name,
            "privacy": {"target_epsilon": epsilon, "delta": DELTA, "mode": mode},
            "training": {"rounds": 30, "local_steps": 1, "max_grad_norm": 0.5, **training},
            "federation": {"min_branches": 3, "repeats": repeats},
        }
    )


class TwoRounds:
    """An analysis that spends 30% of its budget first, then the rest on longer vectors."""

    shares = (0.3, 0.7)

    def max_norm(self, round_: int) -> float:
        return (1.0, 2.5)[round_]


@pytest.fixture
def analysis(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setattr(catalogue, "build", lambda *_: TwoRounds())
    _plan.cache_clear()

    def job(mode: str, repeats: int | None = None, epsilon: float = 1.0) -> AnalysisJob:
        return AnalysisJob.model_validate(
            {
                "name": "portrait",
                "kind": "profile",
                "purpose": "who are our customers",
                "contract": CONTRACT.name,
                "privacy": {"target_epsilon": epsilon, "delta": DELTA, "mode": mode},
                "question": {"columns": ["age"]},
                "federation": {"min_branches": 3, "repeats": repeats},
            }
        )

    yield job
    _plan.cache_clear()


def theirs(events: list[DpEvent]) -> float:
    """dp_accounting's PLD of the whole, convolved event by event."""
    accountant = PLDAccountant(NeighboringRelation.ADD_OR_REMOVE_ONE, value_discretization_interval=1e-3)
    for event in events:
        accountant.compose(event)
    return float(accountant.get_epsilon(DELTA))


def curve(event: DpEvent) -> np.ndarray:
    return accounting.rdp_curve(event)


@pytest.mark.parametrize("times", [1, 3])
def test_local_training_costs_its_target_as_it_did(times: int) -> None:
    plan = Plan.of(churn("local", local_steps=10), contract(times))
    assert (plan.size_scale, plan.evaluation_scale) == (pytest.approx(50 * times), pytest.approx(2 * times))
    assert plan.repeats == 0
    one = [
        accounting.gaussian_training(plan.noise_multiplier, 0.1, 300),
        accounting.discrete_laplace(plan.size_scale),
    ]
    assert 0.985 < theirs(one * times) <= 1.0
    assert np.allclose(curve(plan.events["training"]), times * (curve(one[0]) + curve(one[1])), rtol=1e-12)
    assert plan.epsilon("holdout") == pytest.approx(0.5, rel=5e-3)
    with pytest.raises(Refusal) as refusal:
        plan.ask(0)
    assert refusal.value.code is RefusalCode.ROUND_OUT_OF_ORDER


def test_local_training_pays_for_repeats_only_if_the_job_says_so() -> None:
    none, two = Plan.of(churn("local"), contract()), Plan.of(churn("local", repeats=2), contract())
    assert two.noise_multiplier > none.noise_multiplier
    assert two.size_scale == 2 * none.size_scale
    assert max(two.epsilon("training"), two.epsilon("holdout")) <= 1.0 + 1e-3
    assert none.epsilon() <= 1.0


@pytest.mark.parametrize(("repeats", "times"), [(None, 1), (0, 3), (7, 3)])
def test_secure_training_within_its_target_with_every_repeat(repeats: int | None, times: int) -> None:
    plan = Plan.of(churn("secure-sum", repeats=repeats), contract(times))
    expected = 2 if repeats is None else repeats
    assert plan.repeats == expected
    counts = 2 if expected else 1
    asks = [plan.ask(r) for r in range(32)]
    assert [a.what for a in asks] == ["size", *["step"] * 30, "evaluation"]
    assert {a.what: (a.population, a.sample_rate, a.max_norm) for a in asks} == {
        "size": ("training", 1.0, 1.0),
        "step": ("training", 0.1, 0.5),
        "evaluation": ("holdout", 1.0, 1.0),
    }
    charges = [
        SumNoise(a.noise_multiplier, times=times, sample_rate=a.sample_rate, members=5, colluders=1).event
        for a in asks
    ]
    size, step, evaluation = charges[0], charges[1], charges[31]
    training = [size] * counts + [step] * (30 + expected)
    assert 0.985 < theirs(training) <= 1.0, "what the vault's own mechanism states costs what was promised"
    spent = np.sum([curve(e) for e in training], axis=0)
    assert accounting.within(curve(plan.events["training"]), spent), "all of it fits in the plan"
    assert not accounting.within(curve(plan.events["training"]), spent + curve(step))
    assert accounting.within(curve(plan.events["holdout"]), counts * curve(evaluation))
    assert not accounting.within(curve(plan.events["holdout"]), (counts + 1) * curve(evaluation))
    assert theirs([evaluation]) <= 0.5 and plan.epsilon("holdout") <= 1.0


@pytest.mark.parametrize("round_", [-1, 32, 1000])
def test_a_round_beyond_the_plan_is_refused(round_: int) -> None:
    with pytest.raises(Refusal) as refusal:
        Plan.of(churn("secure-sum"), contract()).ask(round_)
    assert refusal.value.code is RefusalCode.ROUND_OUT_OF_ORDER


def test_two_evaluations_at_the_whole_share_stay_within_the_target() -> None:
    job = churn("secure-sum", repeats=1)
    job = job.model_copy(update={"privacy": job.privacy.model_copy(update={"evaluation_share": 1.0})})
    assert 0.99 < Plan.of(job, contract()).epsilon("holdout") <= 1.0


def test_all_customers_at_every_step_needs_no_sampling() -> None:
    plan = Plan.of(churn("secure-sum", sample_rate=1.0), contract(2))
    assert 0.985 < plan.epsilon("training") <= 1.0


def test_an_adaptive_bound_costs_what_a_fixed_one_does_and_its_vectors_are_one_long() -> None:
    fixed, adaptive = (Plan.of(churn("secure-sum", clipping=c), contract(2)) for c in ("fixed", "adaptive"))
    assert adaptive.events == fixed.events
    assert (fixed.ask(1).max_norm, adaptive.ask(1).max_norm) == (0.5, 1.0)
    assert adaptive.ask(1).noise_multiplier == fixed.ask(1).noise_multiplier


@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("mode", ["local", "secure-sum"])
@pytest.mark.parametrize("repeats", [None, 0, 3])
def test_an_analysis_within_its_target(analysis: Any, mode: str, times: int, repeats: int | None) -> None:
    plan = Plan.of(analysis(mode, repeats), contract(times))
    expected = {None: 1 if mode == "secure-sum" else 0}.get(repeats, repeats)
    first, second = plan.ask(0), plan.ask(1)
    assert [(a.what, a.population, a.sample_rate, a.max_norm) for a in (first, second)] == [
        ("round-0", "all", 1.0, 1.0),
        ("round-1", "all", 1.0, 2.5),
    ]
    assert (second.noise_multiplier / first.noise_multiplier) ** 2 == pytest.approx(3 / 7, rel=3e-3)
    one = [accounting.gaussian(a.noise_multiplier) for a in (first, second, *[second] * expected)]
    branches = times if mode == "local" else 1
    assert 0.99 < accounting.pld_epsilon(one * branches, DELTA) <= 1.0
    assert np.allclose(curve(plan.events["all"]), branches * sum(curve(e) for e in one), rtol=1e-12)
    assert plan.epsilon() == plan.epsilon("all") <= 1.0
    with pytest.raises(Refusal):
        plan.ask(2)
    with pytest.raises(KeyError):
        plan.epsilon("training")


def test_both_sides_compute_the_same_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the job as it was read from a file, and from the job as it came back out of a ledger."""
    job = churn("secure-sum")
    mine = Plan.of(job, contract())
    _plan.cache_clear()
    accounting._calibrated.cache_clear()
    accounting.calibrate_gaussian.cache_clear()
    again = ChurnNetJob.model_validate(job.model_dump(mode="json"))
    other = Plan.of(again, Contract.model_validate(contract().model_dump(mode="json")))
    assert other == mine and other is not mine
    with pytest.raises(TypeError):
        mine.events["training"] = accounting.gaussian(1e9)  # type: ignore[index]
