"""A hostile coordinator, and a hostile branch, at secure sums: refused and in the ledger, or harmless."""

import base64
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from sfumato.client.home import signer
from sfumato.common import codec, messages
from sfumato.common.codec import Vector
from sfumato.common.errors import RefusalCode
from sfumato.common.job import sign_job
from sfumato.lab.in_process import Answerer, InProcessExchange, run_in_process
from sfumato.privacy.secure_sum import JobKey, job_context
from sfumato.server.conversation import JobFailed
from sfumato.server.job_run import JobOutcome, JobRun
from sfumato.server.rounds import Rounds

pytestmark = pytest.mark.slow

HOUR = timedelta(hours=1)
BRANCHES = 5


@pytest.fixture(scope="module")
def village(make_village: Callable[[int], Any]) -> Any:
    return make_village(BRANCHES)


def refused(job: Any, node: int, answer: messages.Answer, code: RefusalCode) -> None:
    """Turned away for this reason, and the branch's ledger says so."""
    assert isinstance(answer, messages.Refused), answer
    assert answer.code is code
    assert job.last_refusal(node)[0] == code.value


# --- the roster ------------------------------------------------------------------------------------------


def test_a_substituted_key_is_refused(village: Any) -> None:
    """A coordinator that knows one pair's secret would read that pair's masks."""
    job = village.opened()
    public = X25519PrivateKey.generate().public_key().public_bytes_raw()
    swapped = job.shares[1].model_copy(update={"x25519": base64.b64encode(public).decode()})
    refused(job, 1, job.roster(1, (job.shares[0], swapped, *job.shares[2:])), RefusalCode.BAD_ROSTER)
    assert job.last_refusal(1)[1] == job.signed.job_id


def test_a_key_signed_by_somebody_else_is_refused(village: Any) -> None:
    job = village.opened()
    forged = JobKey.fresh(job.context, job.names[1], Ed25519PrivateKey.generate()).share
    refused(job, 1, job.roster(1, (job.shares[0], forged, *job.shares[2:])), RefusalCode.BAD_ROSTER)


def test_a_branch_that_is_not_pinned_is_refused(village: Any) -> None:
    """Made-up branches would give the coordinator more colluders than the job says."""
    job = village.opened()
    sybil = JobKey.fresh(job.context, "sybil", Ed25519PrivateKey.generate()).share
    refused(job, 1, job.roster(1, (*job.shares, sybil)), RefusalCode.BAD_ROSTER)


def test_another_jobs_key_is_refused(village: Any) -> None:
    before, job = village.opened(), village.opened()
    replayed = (job.shares[0], before.shares[1], *job.shares[2:])
    refused(job, 1, job.roster(1, replayed), RefusalCode.BAD_ROSTER)


def test_two_jobs_under_one_id_are_no_way_to_less_noise(village: Any) -> None:
    """The one whose branches add little noise would unveil the other's."""
    strict = village.opened()
    loose = strict.signed.job.model_copy(update={"purpose": "The same question, asked with less noise."})
    twin = sign_job(loose, village.contract, village.key, valid_for=HOUR)
    twin = twin.model_copy(update={"job_id": strict.signed.job_id, "signature": ""})
    signature = base64.b64encode(village.key.sign(twin.signed_bytes)).decode()
    twin = twin.model_copy(update={"signature": signature})
    twin.verify({twin.key_id: village.key.public_key()}, datetime.now(UTC))
    answer = strict.ask(1, messages.OpenJob(signed_job=twin))
    assert isinstance(answer, messages.Refused) and answer.code is RefusalCode.UNKNOWN_JOB
    (home,) = (h for h in village.homes if h.name == strict.names[1])
    enrolled = signer(home.open_keyring((home.path / "passphrase").read_text()))
    other = JobKey.fresh(job_context(twin.job_id, twin.job_hash), home.name, enrolled).share
    refused(
        strict, 1, strict.roster(1, (strict.shares[0], other, *strict.shares[2:])), RefusalCode.BAD_ROSTER
    )


def test_a_roster_without_my_own_key_is_refused(village: Any) -> None:
    job = village.opened()
    refused(job, 1, job.roster(1, job.shares[1:]), RefusalCode.BAD_ROSTER)
    refused(job, 1, job.roster(1, (job.shares[0], *job.shares)), RefusalCode.BAD_ROSTER)


def test_no_sum_before_a_roster(village: Any) -> None:
    job = village.opened()
    refused(job, 1, job.ask(1, job.sum(job.names, roster="0" * 64)), RefusalCode.UNKNOWN_ROSTER)
    assert job.charges(1) == []


# --- sets and rounds -------------------------------------------------------------------------------------


def test_a_replayed_round_gives_the_same_bytes_and_no_second_charge(village: Any) -> None:
    job, roster = village.agreed()
    frame = codec.encode(job.sum(job.names, roster=roster))
    first = village.vaults[1].answer(frame)
    assert village.vaults[1].answer(frame) == first
    assert job.charges(1) == [list(job.names)]


def test_a_set_below_the_minimum_is_refused(village: Any) -> None:
    job, roster = village.agreed()
    refused(job, 1, job.ask(1, job.sum(job.names[:2], roster=roster)), RefusalCode.SET_TOO_SMALL)
    twice = (job.names[0], job.names[0], job.names[1])
    refused(job, 1, job.ask(1, job.sum(twice, roster=roster)), RefusalCode.SET_TOO_SMALL)
    refused(job, 1, job.ask(1, job.sum((), roster=None)), RefusalCode.SET_TOO_SMALL)
    assert job.charges(1) == []


def test_a_set_without_me_or_out_of_order_is_refused(village: Any) -> None:
    job, roster = village.agreed()
    refused(job, 1, job.ask(1, job.sum(job.names[1:], roster=roster)), RefusalCode.BAD_ROSTER)
    backwards = tuple(reversed(job.names))
    refused(job, 1, job.ask(1, job.sum(backwards, roster=roster)), RefusalCode.BAD_ROSTER)
    strangers = (*job.names[:3], "zz-stranger")
    refused(job, 1, job.ask(1, job.sum(strangers, roster=roster)), RefusalCode.BAD_ROSTER)


def test_two_sets_for_one_round_shrink_and_are_both_charged(village: Any) -> None:
    job, roster = village.agreed()
    whole = village.vaults[1].answer(codec.encode(job.sum(job.names, roster=roster)))
    part = village.vaults[1].answer(codec.encode(job.sum(job.names[:4], roster=roster)))
    first, second = (codec.decode(a, "answer")[1] for a in (whole, part))
    assert first is not None and second is not None
    assert (first != second).mean() > 0.99  # fresh masks, fresh noise
    assert job.charges(1) == [list(job.names), list(job.names[:4])]
    for other in (job.names, (*job.names[:3], job.names[4])):
        answer = village.vaults[1].answer(codec.encode(job.sum(other, roster=roster)))
        if other == job.names:
            assert answer == whole  # what was answered is answered again, and no more
        else:
            message = codec.decode(answer, "answer")[0]
            refused(job, 1, message, RefusalCode.SET_NOT_SMALLER)
    assert len(job.charges(1)) == 2


def test_a_job_never_spends_more_than_it_reserved(village: Any) -> None:
    signed = village.job(repeats=0)
    job = village.opened(signed)
    for n in village.vaults:
        job.roster(n)
    answer = job.roster(1)
    assert isinstance(answer, messages.RosterAccepted)
    job.ask(1, job.sum(job.names, roster=answer.roster))
    refused(job, 1, job.ask(1, job.sum(job.names[:4], roster=answer.roster)), RefusalCode.OVER_JOB_PLAN)
    assert len(job.charges(1)) == 1


def test_rounds_beyond_the_plan_are_refused(village: Any) -> None:
    job, roster = village.agreed()
    answer = job.ask(1, job.sum(job.names, round_=1, roster=roster))
    refused(job, 1, answer, RefusalCode.ROUND_OUT_OF_ORDER)


def test_inconsistent_sets_give_nothing(village: Any) -> None:
    """Each branch is told another set: nothing cancels, and each has charged for what it gave."""
    job, roster = village.agreed()
    total = np.zeros(1, dtype=np.uint64)
    parts = []
    for node in village.vaults:
        mine = village.names[node]
        others = [n for n in job.names if n != mine]
        members = tuple(sorted([mine, *others[:3]]))
        frame = codec.encode(job.sum(members, roster=roster))
        _, vector = codec.decode(village.vaults[node].answer(frame), "answer")
        assert vector is not None
        parts.append(vector.view(np.uint64))
        assert job.charges(node) == [list(members)]
    total = np.sum(parts, axis=0, dtype=np.uint64)
    top = np.bincount(
        (total >> np.uint64(60)).astype(np.int64), minlength=16
    )  # a decoded total is near 0 or 15
    assert top[1:15].sum() > 0.7 * total.size


# --- jobs and frames -------------------------------------------------------------------------------------


def test_a_job_that_withstands_too_few_colluders_is_not_admitted(village: Any) -> None:
    job = village.job()
    trusting = job.model_copy(update={"privacy": job.privacy.model_copy(update={"colluders": 0})})
    signed = sign_job(trusting, village.contract, village.key, valid_for=HOUR)
    village.vaults[1]._policy = village.vaults[1]._policy.model_copy(update={"min_colluders": 1})
    village.vaults[1]._sums._policy = village.vaults[1]._policy
    frame = codec.encode(messages.OpenJob(signed_job=signed))
    message, _ = codec.decode(village.vaults[1].answer(frame), "answer")
    assert isinstance(message, messages.Refused) and message.code is RefusalCode.NOT_APPROVED


@pytest.mark.parametrize("how", ["unsigned", "altered", "expired"])
def test_a_job_that_is_not_the_risk_teams_is_refused(village: Any, how: str) -> None:
    job, now = village.job(), datetime.now(UTC)
    key = Ed25519PrivateKey.generate() if how == "unsigned" else village.key
    issued = now - timedelta(days=2) if how == "expired" else now
    signed = sign_job(job, village.contract, key, valid_for=HOUR, now=issued)
    if how == "altered":
        cheaper = job.model_copy(update={"federation": job.federation.model_copy(update={"repeats": 99})})
        signed = signed.model_copy(update={"job": cheaper})
    frame = codec.encode(messages.OpenJob(signed_job=signed))
    message, _ = codec.decode(village.vaults[1].answer(frame), "answer")
    code = RefusalCode.EXPIRED if how == "expired" else RefusalCode.BAD_SIGNATURE
    assert isinstance(message, messages.Refused) and message.code is code
    entry = village.ledger(1).entries("refuse")[-1]
    assert (entry.body["code"], entry.job_id) == (code.value, signed.job_id)


def test_a_gradient_is_not_asked_with_other_weights_than_the_nets(village: Any) -> None:
    job = village.opened(village.net())
    (answer, *_) = [job.roster(n) for n in village.vaults]
    assert isinstance(answer, messages.RosterAccepted)
    question = job.sum(job.names, round_=1, roster=answer.roster)
    for body in (None, np.zeros(3, dtype=np.float32), np.zeros(40, dtype=np.int64)):
        refused(job, 1, job.ask(1, question, body), RefusalCode.BAD_VECTOR)
    frame = codec.encode(question, np.zeros(40, dtype=np.float32))
    poisoned = frame[:-4] + np.float32(np.nan).tobytes()
    enormous = codec.PREFIX.pack(codec.MAGIC, 10, 4 * 10**9) + frame[codec.PREFIX.size :]
    for bad in (poisoned, enormous, frame[:-1], b""):
        message, _ = codec.decode(village.vaults[1].answer(bad), "answer")
        refused(job, 1, message, RefusalCode.BAD_FRAME)
    assert job.charges(1) == []


# --- branches that do not play along ---------------------------------------------------------------------


def lying(village: Any, change: Callable[[messages.ReleasedAnswer, Vector], bytes]) -> dict[int, Answerer]:
    """All branches, the last of which changes its share."""
    branches: dict[int, Answerer] = {n: v.answer for n, v in village.vaults.items()}
    honest = branches[BRANCHES]

    def liar(frame: bytes) -> bytes | None:
        answer = honest(frame)
        assert answer is not None
        message, vector = codec.decode(answer, "answer")
        if isinstance(message, messages.ReleasedAnswer) and vector is not None:
            return change(message, vector)
        return answer

    branches[BRANCHES] = liar
    return branches


def test_a_share_of_something_else_is_noticed(village: Any) -> None:
    """In the empty slots: the masks do not cancel there either. Whose share it was nobody can tell."""
    noise = np.random.default_rng(1)

    def garbage(message: messages.ReleasedAnswer, vector: Vector) -> bytes:
        return codec.encode(message, noise.integers(-(2**63), 2**63 - 1, vector.size, dtype=np.int64))

    with pytest.raises(JobFailed, match="shares do not fit together"):
        run_in_process(lying(village, garbage), village.job(), village.contract, village.key)


@pytest.mark.parametrize("how", ["too long", "floats", "another round", "another set"])
def test_a_share_of_the_wrong_form_is_dropped_and_the_round_repeated(village: Any, how: str) -> None:
    def change(message: messages.ReleasedAnswer, vector: Vector) -> bytes:
        if how == "too long":
            return codec.encode(message, np.concatenate([vector, vector]))
        if how == "floats":
            return codec.encode(message, vector.astype(np.float32))
        if how == "another round":
            return codec.encode(message.model_copy(update={"round": 7}), vector)
        return codec.encode(message.model_copy(update={"members": "0" * 64}), vector)

    events: list[dict[str, Any]] = []
    outcome = run_in_process(
        lying(village, change), village.job(), village.contract, village.key, events.append
    )
    assert isinstance(outcome, JobOutcome)
    liar = village.names[BRANCHES]
    assert [e["without"] for e in events if e["event"] == "repeat"] == [[liar]]


def test_a_second_share_changes_nothing(village: Any) -> None:
    """An exchange has one answer a branch and question; a share that comes late fits no later question."""
    late: list[bytes] = []

    def change(message: messages.ReleasedAnswer, vector: Vector) -> bytes:
        late.append(codec.encode(message, vector))
        return late[0]

    signed = sign_job(village.job(), village.contract, village.key, valid_for=HOUR)
    job = JobRun(Rounds(InProcessExchange(lying(village, change)), signed, lambda _: None))
    assert isinstance(job.run(), JobOutcome)
    again = sign_job(village.job(), village.contract, village.key, valid_for=HOUR)
    events: list[dict[str, Any]] = []
    branches = lying(village, change)  # sends the first job's share once more
    outcome = JobRun(Rounds(InProcessExchange(branches), again, events.append)).run()
    assert isinstance(outcome, JobOutcome)
    assert [e["without"] for e in events if e["event"] == "repeat"] == [[village.names[BRANCHES]]]
