"""The shares of a secure sum as the vaults stored them; and what a repeat or a crash makes of them."""

import contextlib
import sqlite3
from collections.abc import Callable
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from scipy import stats

from sfumato.common import codec, messages
from sfumato.common.analyses import catalogue
from sfumato.common.errors import RefusalCode
from sfumato.common.fixed_point import GRID
from sfumato.lab.in_process import Answerer, run_in_process
from sfumato.privacy import mechanisms
from sfumato.privacy.ledger import Transaction
from sfumato.privacy.plan import Plan
from sfumato.server.job_run import JobOutcome

pytestmark = pytest.mark.slow

BRANCHES = 4
CHANCE = 1e-6  # of a false alarm, in each test of a distribution


@pytest.fixture(scope="module")
def village(make_village: Callable[[int], Any]) -> Any:
    return make_village(BRANCHES)


# --- what lies in the ledgers ---------------------------------------------------------------------------------


def stored(village: Any, node: int, job_id: str) -> list[bytes]:
    with contextlib.closing(sqlite3.connect(village.homes[node - 1].ledger)) as connection:
        found = connection.execute("SELECT answer FROM answers WHERE job_id = ?", (job_id,))
        return [answer for (answer,) in found]


def truth(village: Any, job: Any, slots: int) -> np.ndarray:
    """The plain sum in grid steps, by the analysis' own contribution and nothing else; the slots stay empty."""
    analysis = catalogue.build(job.kind, job.question, village.contract)
    columns = {c: [x[c] for x in village.customers] for c in analysis.columns}
    given = analysis.contribute(0, columns, None)
    total = np.zeros(analysis.length(0) + slots)
    for j, weight in enumerate(given.weights):
        cells = given.cells[:, j]
        np.add.at(total, cells[cells >= 0], weight * GRID / analysis.max_norm(0))
    return total


def top_bytes_are_uniform(vector: np.ndarray) -> bool:
    """A sum that decodes is small: its top byte is 0 or 255."""
    counts = np.bincount((vector >> np.uint64(56)).astype(np.int64), minlength=256)
    return bool(stats.chisquare(counts).pvalue > CHANCE)


def test_the_stored_shares_add_up_to_the_plain_sum_and_any_three_of_four_to_nothing(village: Any) -> None:
    """A wide question, for the chi-squared tests: every value of the top byte is expected some 32 times."""
    slots = {"empty_slots": 8192, "canaries": 0}
    job = village.job()
    job = job.model_copy(update={"audit": job.audit.model_copy(update=slots)})
    events: list[dict[str, Any]] = []
    outcome = run_in_process(
        {n: v.answer for n, v in village.vaults.items()}, job, village.contract, village.key, events.append
    )
    assert isinstance(outcome, JobOutcome)
    shares: dict[int, np.ndarray] = {}
    for node in village.vaults:
        (frame,) = stored(village, node, outcome.summary["job_id"])
        message, vector = codec.decode(frame, "answer")
        assert isinstance(message, messages.ReleasedAnswer) and message.what == "share"
        assert vector is not None and vector.dtype == np.int64
        shares[node] = vector.view(np.uint64)
    plain = truth(village, job, slots["empty_slots"])
    noise = np.sum(list(shares.values()), axis=0, dtype=np.uint64).view(np.int64) - plain
    z = Plan.of(job, village.contract).noise_multiplier
    std = z * GRID * np.sqrt(BRANCHES / (BRANCHES - job.privacy.colluders))
    assert np.abs(noise).max() < 6.5 * std
    assert stats.kstest(noise / std, "norm").pvalue > CHANCE
    assert noise.var() / std**2 == pytest.approx(1, abs=5 * np.sqrt(2 / noise.size))
    assert not top_bytes_are_uniform(noise.astype(np.int64).view(np.uint64))
    for fewer in range(1, BRANCHES):
        for some in combinations(shares, fewer):
            assert top_bytes_are_uniform(np.sum([shares[n] for n in some], axis=0, dtype=np.uint64)), some


# --- asked again ----------------------------------------------------------------------------------------------


def refused(answer: bytes, code: RefusalCode) -> None:
    message, _ = codec.decode(answer, "answer")
    assert isinstance(message, messages.Refused) and message.code is code, message


def test_a_repeat_after_a_restart_or_the_end_of_the_job_gets_the_stored_bytes(village: Any) -> None:
    job, roster = village.agreed()
    frame = codec.encode(job.sum(job.names, roster=roster))
    first = village.vaults[1].answer(frame)
    assert codec.decode(first, "answer")[0].type == "released"
    village.restart(1)
    assert village.vaults[1].answer(frame) == first
    assert isinstance(job.ask(1, messages.CloseJob(job_id=job.signed.job_id)), messages.JobClosed)
    assert village.vaults[1].answer(frame) == first
    refused(
        village.vaults[1].answer(codec.encode(job.sum(job.names[:3], roster=roster))), RefusalCode.JOB_CLOSED
    )
    assert job.charges(1) == [list(job.names)]
    other = codec.encode(job.sum(job.names, roster="0" * 64))
    refused(village.vaults[1].answer(other), RefusalCode.ROUND_ALREADY_ANSWERED)


def test_a_restarted_vault_answers_nothing_new_without_a_new_key(village: Any) -> None:
    job, roster = village.agreed()
    village.restart(1)
    frame = codec.encode(job.sum(job.names, roster=roster))
    refused(village.vaults[1].answer(frame), RefusalCode.UNKNOWN_ROSTER)
    assert job.charges(1) == []


# --- a crash between the charge and the answer ----------------------------------------------------------------


class Crash(BaseException):
    """As kill -9 would: nothing catches it."""


def crash(*_: Any, **__: Any) -> Any:
    raise Crash


def fail(*_: Any, **__: Any) -> Any:
    raise OSError("no space left on device")


def test_after_a_failure_before_the_mask_the_question_is_charged_again_and_answered(
    village: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing left, but what was charged stays charged: one repeat of the job's is gone."""
    job, roster = village.agreed()
    frame = codec.encode(job.sum(job.names, roster=roster))
    with monkeypatch.context() as patched:
        patched.setattr(mechanisms.GaussianSum, "run", fail)
        refused(village.vaults[1].answer(frame), RefusalCode.INTERNAL)
    assert job.charges(1) == [list(job.names)]
    assert stored(village, 1, job.signed.job_id) == []
    answer = village.vaults[1].answer(frame)
    assert codec.decode(answer, "answer")[0].type == "released"
    assert job.charges(1) == [list(job.names)] * 2


def test_without_a_repeat_left_it_is_refused_and_not_charged(
    village: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, roster = village.agreed(village.job(repeats=0))
    frame = codec.encode(job.sum(job.names, roster=roster))
    with monkeypatch.context() as patched:
        patched.setattr(mechanisms.GaussianSum, "run", fail)
        refused(village.vaults[1].answer(frame), RefusalCode.INTERNAL)
    refused(village.vaults[1].answer(frame), RefusalCode.OVER_JOB_PLAN)
    assert job.charges(1) == [list(job.names)]


def test_after_the_mask_the_question_is_refused_and_not_charged_again(
    village: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two vectors under one mask would give away their difference; a smaller set has other masks."""
    job, roster = village.agreed()
    frame = codec.encode(job.sum(job.names, roster=roster))
    with monkeypatch.context() as patched:
        patched.setattr(Transaction, "store_answer", fail)
        refused(village.vaults[1].answer(frame), RefusalCode.INTERNAL)
    assert job.charges(1) == [list(job.names)]
    refused(village.vaults[1].answer(frame), RefusalCode.ROUND_ALREADY_ANSWERED)
    assert job.charges(1) == [list(job.names)]
    assert job.last_refusal(1) == ("round-already-answered", job.signed.job_id)
    smaller = village.vaults[1].answer(codec.encode(job.sum(job.names[:3], roster=roster)))
    assert codec.decode(smaller, "answer")[0].type == "released"
    assert job.charges(1) == [list(job.names), list(job.names[:3])]


@pytest.mark.parametrize("where", ["run", "store_answer"])
def test_a_killed_vault_comes_back_with_what_it_charged(
    village: Any, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, roster = village.agreed()
    frame = codec.encode(job.sum(job.names, roster=roster))
    with monkeypatch.context() as patched, pytest.raises(Crash):
        patched.setattr({"run": mechanisms.GaussianSum, "store_answer": Transaction}[where], where, crash)
        village.vaults[1].answer(frame)
    village.restart(1)
    assert job.charges(1) == [list(job.names)]
    refused(village.vaults[1].answer(frame), RefusalCode.UNKNOWN_ROSTER)
    answer = job.ask(1, messages.OpenJob(signed_job=job.signed))
    assert isinstance(answer, messages.JobOpened) and answer.key is not None
    assert answer.key not in job.shares
    assert job.charges(1) == [list(job.names)]
    village.ledger(1).verify()


def test_a_job_goes_on_without_the_branch_that_lost_its_answer(
    village: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    branches: dict[int, Answerer] = {n: v.answer for n, v in village.vaults.items()}

    def full_disk(frame: bytes) -> bytes:
        with monkeypatch.context() as patched:
            patched.setattr(Transaction, "store_answer", fail)
            return village.vaults[2].answer(frame)

    branches[2] = full_disk
    events: list[dict[str, Any]] = []
    outcome = run_in_process(branches, village.job(), village.contract, village.key, events.append)
    assert isinstance(outcome, JobOutcome)
    assert [e["without"] for e in events if e["event"] == "repeat"] == [[village.names[2]]]
    charges = village.ledger(2).entries("charge", job_id=outcome.summary["job_id"])
    assert [e.body["members"] for e in charges] == [sorted(village.names.values())]
