"""A job's rounds over a scripted exchange: drops, refusals, impostors, averages."""

from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sfumato.common import codec, messages
from sfumato.common.contract import load_contract
from sfumato.common.errors import RefusalCode
from sfumato.common.job import Audit, load_job, sign_job
from sfumato.common.learners import churn_net
from sfumato.common.notes import Checkpoint, branch_origin, sign_checkpoint
from sfumato.server.conversation import Enrolled, JobFailed
from sfumato.server.exchange import Gathered
from sfumato.server.job_run import JobRun
from sfumato.server.rounds import Rounds
from sfumato.server.training import federated_average

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "churn_modelling"
CONTRACT = load_contract(EXAMPLE / "contract.toml")
JOB = load_job(EXAMPLE / "job.toml")
JOB = JOB.model_copy(
    update={
        "training": JOB.training.model_copy(update={"rounds": 3}),
        "federation": JOB.federation.model_copy(update={"min_branches": 2}),
        "audit": Audit(empty_slots=0, canaries=0),
    }
)
SIGNED = sign_job(JOB, CONTRACT, Ed25519PrivateKey.generate(), valid_for=timedelta(hours=1))
KEYS = {n: Ed25519PrivateKey.from_private_bytes(bytes([n]) * 32) for n in (1, 2, 3)}
WEIGHTS = churn_net.size(churn_net.build(CONTRACT, JOB.model, 0))
Answerer = Callable[[messages.Question], bytes | None]


def head(node: int, name: str | None = None) -> messages.LedgerHead:
    checkpoint = Checkpoint(branch_origin(name or f"branch-{node}"), 1, "0" * 64)
    return messages.LedgerHead(note=sign_checkpoint(checkpoint, KEYS[node]))


def honest(node: int, name: str | None = None, sizes: Mapping[int, int] = MappingProxyType({})) -> Answerer:
    """A branch that answers everything, with weights all equal to its number."""
    branch = name or f"branch-{node}"
    cost = messages.Cost(event={}, population="training", epsilon_spent=0.5, epsilon_budget=2.0, delta=1e-5)

    def answer(question: messages.Question) -> bytes:
        match question:
            case messages.OpenJob():
                opened = messages.JobOpened(
                    job_id=SIGNED.job_id,
                    branch=branch,
                    planned={},
                    epsilon=2.0,
                    delta=1e-5,
                    noise_multiplier=1.0,
                    ledger=head(node, branch),
                )
                return codec.encode(opened)
            case messages.CloseJob():
                closed = messages.JobClosed(
                    job_id=SIGNED.job_id,
                    branch=branch,
                    epsilon_spent=1.0,
                    epsilon_remaining=1.0,
                    ledger=head(node, branch),
                )
                return codec.encode(closed)
            case messages.Count():
                released = messages.ReleasedAnswer(
                    job_id=SIGNED.job_id,
                    branch=branch,
                    round=0,
                    what="size",
                    cost=cost,
                    ledger=head(node, branch),
                )
                return codec.encode(released, np.array([sizes.get(node, 100)], dtype=np.int64))
            case messages.Train() | messages.Evaluate():
                trains = isinstance(question, messages.Train)
                body = (
                    np.full(WEIGHTS, node, dtype=np.float32)
                    if trains
                    else np.arange(2 * JOB.evaluation.bins, dtype=np.int64)
                )
                released = messages.ReleasedAnswer(
                    job_id=SIGNED.job_id,
                    branch=branch,
                    round=question.round,
                    what="weights" if trains else "score-histogram",
                    cost=cost,
                    ledger=head(node, branch),
                )
                return codec.encode(released, body)
        raise AssertionError(question)

    return answer


class Scripted:
    """An exchange whose branches are functions; None is a drop."""

    def __init__(self, branches: Mapping[int, Answerer]) -> None:
        self.branches = dict(branches)
        self.asked: list[tuple[str, tuple[int, ...]]] = []

    def open(self, *, at_least: int, timeout: float) -> tuple[int, ...]:
        return tuple(self.branches)

    def ask(self, frames: Mapping[int, bytes], *, timeout: float) -> Gathered:
        answers, dropped = {}, {}
        for node, frame in frames.items():
            question, _ = codec.decode(frame, "question")
            reply = self.branches[node](question)
            if reply is None:
                dropped[node] = "timed-out"
            else:
                answers[node] = reply
        kind = codec.decode(next(iter(frames.values())), "question")[0].type
        self.asked.append((kind, tuple(frames)))
        return Gathered(answers, dropped)

    def close(self) -> None: ...


def run(branches: Mapping[int, Answerer], **options: Any) -> tuple[Any, Scripted, list[dict[str, Any]]]:
    exchange, events = Scripted(branches), []
    return JobRun(Rounds(exchange, SIGNED, events.append, **options)).run(), exchange, events


def enrolled(*nodes: int) -> dict[int, Enrolled]:
    return {n: Enrolled(f"branch-{n}", KEYS[n].public_key()) for n in nodes}


def test_three_branches_are_averaged_and_evaluated() -> None:
    outcome, exchange, events = run({n: honest(n) for n in (1, 2, 3)}, enrolled=enrolled(1, 2, 3))
    assert np.allclose(outcome.weights, 2.0)
    assert outcome.histogram.tolist() == (3 * np.arange(2 * JOB.evaluation.bins)).tolist()
    assert outcome.summary["branches"] == 3
    assert [k for k, _ in exchange.asked] == [
        "open-job",
        "count",
        "train",
        "train",
        "train",
        "evaluate",
        "close-job",
    ]
    assert [e["round"] for e in events if e["event"] == "round"] == [1, 2, 3]


def test_a_branch_that_drops_is_left_out_and_may_come_back() -> None:
    def sometimes(question: messages.Question) -> bytes | None:
        if isinstance(question, messages.Train) and question.round == 2:
            return None
        return honest(3)(question)

    outcome, _, events = run({1: honest(1), 2: honest(2), 3: sometimes})
    rounds = {e["round"]: e["branches"] for e in events if e["event"] == "round"}
    assert rounds[2] == ["branch-1", "branch-2"]
    assert rounds[3] == ["branch-1", "branch-2", "branch-3"]
    record = {b["name"]: b for b in outcome.summary["per_branch"]}["branch-3"]
    assert (record["rounds_answered"], record["rounds_missed"]) == (2, 1)


def test_below_the_minimum_the_job_fails_with_a_reason_and_closes() -> None:
    def refuses(question: messages.Question) -> bytes:
        return codec.encode(messages.Refused(code=RefusalCode.OVER_BUDGET, requested=2.3, remaining=0.4))

    exchange = Scripted({1: honest(1), 2: refuses})
    events: list[dict[str, Any]] = []
    with pytest.raises(JobFailed, match=r"only 1 of at least 2 branches opened.*budget would be exceeded"):
        JobRun(Rounds(exchange, SIGNED, events.append, enrolled=enrolled(1, 2))).run()
    refusal = next(e for e in events if e["event"] == "refused")
    assert (refusal["branch"], refusal["requested"], refusal["remaining"]) == ("branch-2", 2.3, 0.4)
    assert exchange.asked[-1] == ("close-job", (1,))


@pytest.mark.parametrize(
    "impostor",
    [
        pytest.param(honest(3, name="branch-1"), id="another branch's name"),
        pytest.param(honest(2), id="another branch's key"),
    ],
)
def test_a_branch_that_is_not_who_it_says_is_dropped(impostor: Answerer) -> None:
    outcome, _, events = run({1: honest(1), 2: honest(2), 3: impostor}, enrolled=enrolled(1, 2, 3))
    assert outcome.summary["branches"] == 2
    assert any(e["event"] == "dropped" and "not who it says" in e["reason"] for e in events)


@pytest.mark.parametrize("body", [np.zeros(3, dtype=np.float32), np.zeros(WEIGHTS, dtype=np.int64)])
def test_an_answer_of_the_wrong_form_never_reaches_the_average(body: codec.Vector) -> None:
    def odd(question: messages.Question) -> bytes | None:
        frame = honest(3)(question)
        if isinstance(question, messages.Train):
            message, _ = codec.decode(frame, "answer")
            return codec.encode(message, body)
        return frame

    outcome, _, events = run({1: honest(1), 2: honest(2), 3: odd})
    assert np.allclose(outcome.weights, 1.5)
    assert sum(e["event"] == "dropped" for e in events) == 3


def test_garbage_and_questions_as_answers_are_dropped() -> None:
    outcome, _, _ = run({1: honest(1), 2: honest(2), 3: lambda q: b"\x00" * 40})
    assert outcome.summary["branches"] == 2


def test_branches_weigh_by_their_noisy_sizes() -> None:
    sizes = {1: 300, 2: 100, 3: -5}
    outcome, _, _ = run({n: honest(n, sizes=sizes) for n in (1, 2, 3)})
    assert np.allclose(outcome.weights, (300 * 1 + 100 * 2 + 1 * 3) / 401)
    assert outcome.summary["customers"] == round(401 / 0.8)


def test_public_weights_weigh() -> None:
    one, three = np.ones(2, dtype=np.float32), np.full(2, 3, dtype=np.float32)
    assert federated_average([("a", one), ("b", three)], {}).tolist() == [2.0, 2.0]
    assert federated_average([("a", one), ("b", three)], {"b": 3.0}).tolist() == [2.5, 2.5]
    with pytest.raises(ValueError, match="no update"):
        federated_average([], {})
