"""Churn nets of every sort over a small sample bank: whole jobs with real vaults, in one process."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from scipy.special import expit

from sfumato.common import codec, messages
from sfumato.common.contract import Contract, load_contract
from sfumato.common.errors import BadInput
from sfumato.common.job import ChurnNetJob, Model
from sfumato.common.learners import churn_net
from sfumato.common.learners.encoding import model_features
from sfumato.common.learners.models import SavedModel
from sfumato.common.learners.scoring import scorer
from sfumato.lab.in_process import Answerer, open_vaults, run_in_process
from sfumato.lab.samplebank import generate
from sfumato.lab.simulate import SimulatedBranches, bank_branches
from sfumato.privacy.adaptive_clipping import AdaptiveBound
from sfumato.privacy.ledger import Ledger
from sfumato.server.conversation import JobFailed
from sfumato.server.job_run import JobOutcome
from sfumato.server.onnx_export import onnx_bytes

RECURRENT = {
    "architecture": "recurrent",
    "sequence": ["txn_count_30d", "spent_90d", "complaint_count_365d"],
    "months": 6,
    "state": 3,
    "hidden": [4],
}


STEP = {"rounds": 3, "local_steps": 1, "sample_rate": 1.0}


@dataclass
class Bank:
    branches: Mapping[int, Answerer]
    contract: Contract
    made: SimulatedBranches

    def job(self, *, mode: str, model: Mapping[str, Any] | None = None, **training: Any) -> ChurnNetJob:
        return ChurnNetJob.model_validate(
            {
                "name": "net",
                "kind": "churn-net",
                "purpose": "Who leaves the bank?",
                "contract": self.contract.name,
                "privacy": {"target_epsilon": 2.0, "delta": 1e-5, "mode": mode},
                "model": model or {},
                "training": (STEP if mode == "secure-sum" else {"rounds": 3, "local_steps": 2}) | training,
                "federation": {"min_branches": 3},
                "audit": {"empty_slots": 8, "canaries": 4},
            }
        )

    def run(self, **settings: Any) -> JobOutcome:
        return run_in_process(self.branches, self.job(**settings), self.contract, self.made.key)


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bank]:
    torch.set_num_threads(1)
    sample = generate(tmp_path_factory.mktemp("bank"), branches=3, customers_per_branch=60)
    with bank_branches(sample, budget_epsilon=100.0, budget_delta=1e-3) as made:
        yield Bank(open_vaults(made.homes), load_contract(sample.contract), made)


@pytest.mark.parametrize("mode", ["local", "secure-sum"])
def test_a_recurrent_net_is_trained_end_to_end(bank: Bank, mode: str) -> None:
    outcome = bank.run(mode=mode, model=RECURRENT)
    start = churn_net.flatten(churn_net.build(bank.contract, Model.model_validate(RECURRENT), 0))
    assert outcome.weights is not None
    assert (outcome.weights != start).all()  # the unit's too
    assert outcome.summary["audit"] == "consistent"
    assert outcome.summary["epsilon"] <= 2.0


def test_its_model_scores_as_the_net_does_and_so_does_its_onnx(bank: Bank) -> None:
    outcome = bank.run(mode="secure-sum", model=RECURRENT)
    assert outcome.model is not None and outcome.weights is not None
    rng, n = np.random.default_rng(0), 40
    weights = rng.normal(0, 0.7, outcome.weights.size).astype(np.float32)
    model = replace(outcome.model, tensors={"weights": weights})
    saved = scorer(SavedModel.of_bytes(model.to_bytes(), "model"), bank.contract)
    assert {"txn_count_30d@0", "spent_90d@5"} < set(saved.columns)
    categories = {f.name: f.categories for f in model_features(bank.contract) if f.categories}
    columns = {
        c: rng.choice([*categories[c], None], n)
        if c in categories
        else rng.choice([*rng.normal(0, 300, 20), np.nan], n)
        for c in saved.columns
    }
    shape = Model.model_validate(RECURRENT)
    net = churn_net.build(bank.contract, shape)
    churn_net.load(net, weights)
    logits = churn_net.logits(net, churn_net.encoder(bank.contract, shape).transform(columns))
    assert np.ptp(logits) > 1.0
    scores = saved.score(columns, reasons=2)
    assert scores.probability is not None and scores.reasons is not None
    assert np.allclose(scores.probability, expit(logits), rtol=1e-12)
    session = onnxruntime.InferenceSession(
        onnx_bytes(model, bank.contract), providers=["CPUExecutionProvider"]
    )
    given = {
        i.name: np.array([v or "" for v in columns[i.name]], dtype=object)
        if i.name in categories
        else columns[i.name]
        for i in session.get_inputs()
    }
    (found,) = session.run(["log_odds"], given)
    assert np.abs(found - logits).max() < 1e-5


def test_an_adaptive_bound_moves_and_the_audit_agrees(bank: Bank) -> None:
    """A start far too large comes down: each round by the factor exp(-rate (within - quantile)), 0.37 at most."""
    seen: list[float] = []
    asked = AdaptiveBound.after
    with pytest.MonkeyPatch.context() as patch:

        def after(self: AdaptiveBound, within: float, **more: float) -> AdaptiveBound:
            seen.append(within)
            return asked(self, within, **more)

        patch.setattr(AdaptiveBound, "after", after)
        outcome = bank.run(
            mode="secure-sum",
            clipping="adaptive",
            clipping_rate=1.0,
            clipping_share=0.3,
            max_grad_norm=50.0,
        )
    assert outcome.summary["audit"] == "consistent"
    bounds = [e.max_norm for e in outcome.evidence if e.what == "step"]
    assert bounds == [1.0] * 3
    assert len(seen) == 3
    assert (
        seen[0] > 0.7
    )  # everybody is within 50; of some 140 customers, whose noisy number may be a third off


def test_a_hostile_bound_is_refused_and_costs_nothing(bank: Bank) -> None:
    job = bank.job(mode="secure-sum", clipping="adaptive")

    def poisoned(answer: Answerer) -> Answerer:
        def ask(frame: bytes) -> bytes | None:
            question, body = codec.decode(frame, "question")
            if isinstance(question, messages.Sum) and question.round == 1 and body is not None:
                body = np.append(body[:-1], np.float32(-1.0))
                frame = codec.encode(question, body)
            return answer(frame)

        return ask

    branches = {n: poisoned(answer) for n, answer in bank.branches.items()}
    with pytest.raises(JobFailed):
        run_in_process(branches, job, bank.contract, bank.made.key)
    ledger = Ledger.read(bank.made.homes[0].ledger)
    job_id = ledger.entries("reserve")[-1].job_id
    assert [e.body["round"] for e in ledger.entries("charge", job_id=job_id)] == [0]
    assert ledger.entries("refuse", job_id=job_id)[-1].body["code"] == "bad-vector"


def test_strategies_reach_the_branches_and_the_coordinator(bank: Bank) -> None:
    """With the noise all but gone: a strong pull keeps the branches near, a small server step moves little."""
    start = churn_net.flatten(churn_net.build(bank.contract, Model(), 0))

    def way(**training: Any) -> float:
        outcome = bank.run(
            mode="local", rounds=1, local_steps=6, optimizer="sgd", learning_rate=0.1, **training
        )
        assert outcome.weights is not None
        return float(np.abs(outcome.weights - start).mean())

    mean = way()
    assert way(strategy="fedprox", proximal_mu=9.0) < 0.5 * mean
    assert way(strategy="fedadam", server_learning_rate=1e-4) < 2e-4


def test_a_job_that_asks_months_of_what_has_none_is_not_signed(bank: Bank) -> None:
    with pytest.raises(BadInput, match="'product_count' cannot be read by month"):
        bank.run(mode="local", model={"architecture": "recurrent", "sequence": ["product_count"]})
