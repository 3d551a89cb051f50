"""Attacks on a real vault's answers: whatever is asked, it gives a charged release or an enumerated code."""

import json
import random
import tracemalloc
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from typer.testing import CliRunner

from sfumato.client.cli import app as branch_cli
from sfumato.client.home import BranchHome
from sfumato.client.ingest.load import ingest, open_source
from sfumato.client.policy import Policy
from sfumato.client.setup import init_branch
from sfumato.client.vault.answer import Vault
from sfumato.client.vault.service import open_vault
from sfumato.client.vault.store import Store
from sfumato.common import codec, messages
from sfumato.common.contract import Contract, load_contract
from sfumato.common.errors import RefusalCode
from sfumato.common.job import Job, SignedJob, load_job, sign_job
from sfumato.common.learners import churn_net
from sfumato.lab.samplebank import SampleBank, generate
from sfumato.privacy.ledger import Ledger
from sfumato.server.home import CoordinatorHome

pytestmark = pytest.mark.slow

HOUR = timedelta(hours=1)
PASSPHRASE = "correct horse battery staple"
SECRET = "account 4711 of Ms Example"
ROUNDS = 3


class Branch:
    """A branch made by the same functions as `branch init` and `branch ingest`, with its vault in this process."""

    def __init__(self, path: Path, bank: SampleBank) -> None:
        self.coordinator = CoordinatorHome.init(path / "c", host="127.0.0.1", port=9092, session_port=9093)
        self.key = self.coordinator.job_key()
        self.home = init_branch(
            path / "branch-1",
            name="branch-1",
            invitation=self.coordinator.path / "invitation.json",
            contract=bank.contract,
            passphrase=PASSPHRASE,
            budget_epsilon=8.0,
            budget_delta=1e-5,
            policy=Policy(),
        )
        self.contract: Contract = load_contract(bank.contract)
        base = load_job(bank.job)
        self.job: Job = base.model_copy(
            update={
                "privacy": base.privacy.model_copy(update={"target_epsilon": 0.4}),
                "training": base.training.model_copy(update={"rounds": ROUNDS, "local_steps": 2}),
            }
        )
        keyring = self.home.open_keyring(PASSPHRASE)
        store = Store.open(self.home.store, self.contract, keyring)
        for table in self.contract.tables:
            file = next(f for f in bank.branches["branch-1"].iterdir() if f.stem == table.name)
            ingest(open_source(file), table.name, self.contract, store)
        store.close()
        self.vault = self.restart()

    def restart(self) -> Vault:
        self.vault = open_vault(BranchHome(self.home.path), PASSPHRASE)
        return self.vault

    @property
    def weights(self) -> np.ndarray:
        return churn_net.flatten(churn_net.build(self.contract, self.job.model, self.job.training.seed))

    def signed(self, job: Job | None = None, key: Ed25519PrivateKey | None = None, **when: Any) -> SignedJob:
        return sign_job(job or self.job, self.contract, key or self.key, **({"valid_for": HOUR} | when))

    def ask(self, question: messages.Question, body: codec.Vector | None = None) -> messages.Answer:
        return codec.decode(self.vault.answer(codec.encode(question, body)), "answer")[0]

    def opened(self, job: Job | None = None) -> str:
        signed = self.signed(job)
        answer = self.ask(messages.OpenJob(signed_job=signed))
        assert isinstance(answer, messages.JobOpened), answer
        return signed.job_id

    def charges(self, job_id: str | None = None) -> list[tuple[str, int]]:
        entries = Ledger.read(self.home.ledger).entries("charge", job_id=job_id)
        return [(e.body["what"], e.body["round"]) for e in entries]

    def last(self) -> Any:
        return Ledger.read(self.home.ledger).entries()[-1]


@pytest.fixture(scope="module")
def branch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Branch]:
    torch.set_num_threads(1)
    path = tmp_path_factory.mktemp("vault")
    yield Branch(path, generate(path / "bank", branches=2, customers_per_branch=120))


def code(answer: messages.Answer) -> RefusalCode:
    assert isinstance(answer, messages.Refused), answer
    return answer.code


def train(job_id: str, round_: int) -> messages.Train:
    return messages.Train(job_id=job_id, round=round_)


# --- rounds ----------------------------------------------------------------------------------------------


def test_a_repeated_round_is_the_same_bytes_and_no_charge_also_after_a_restart(branch: Branch) -> None:
    job_id = branch.opened()
    frame = codec.encode(train(job_id, 1), branch.weights)
    first = branch.vault.answer(frame)
    message, vector = codec.decode(first, "answer")
    assert isinstance(message, messages.ReleasedAnswer) and vector is not None
    assert not np.array_equal(vector, branch.weights)
    paid = branch.charges(job_id)
    assert paid == [("size", 0), ("weights", 1)]
    assert branch.vault.answer(frame) == first
    branch.restart()
    assert branch.vault.answer(frame) == first
    assert branch.charges(job_id) == paid


def test_the_same_round_with_other_weights_is_refused(branch: Branch) -> None:
    job_id = branch.opened()
    branch.ask(train(job_id, 1), branch.weights)
    paid = branch.charges(job_id)
    answer = branch.ask(train(job_id, 1), branch.weights + np.float32(0.01))
    assert code(answer) is RefusalCode.ROUND_ALREADY_ANSWERED
    assert branch.charges(job_id) == paid


def test_rounds_go_neither_back_nor_beyond_the_plan(branch: Branch) -> None:
    job_id = branch.opened()
    branch.ask(train(job_id, 2), branch.weights)
    paid = branch.charges(job_id)
    for round_ in (1, ROUNDS + 1, 10**12):
        answer = branch.ask(train(job_id, round_), branch.weights)
        assert code(answer) is RefusalCode.ROUND_OUT_OF_ORDER
    assert branch.charges(job_id) == paid
    assert branch.ask(train(job_id, ROUNDS), branch.weights).type == "released"


def test_a_job_is_evaluated_once_whatever_is_asked(branch: Branch) -> None:
    """The plan pays for one histogram: a second one, under another round's name, would exceed the promise."""
    job_id = branch.opened()
    question = messages.Evaluate(job_id=job_id, round=ROUNDS)
    frame = codec.encode(question, branch.weights)
    assert branch.vault.answer(frame) == branch.vault.answer(frame)
    assert branch.charges(job_id) == [("score-histogram", ROUNDS)]
    for round_ in (1, ROUNDS - 1, ROUNDS + 1):
        answer = branch.ask(messages.Evaluate(job_id=job_id, round=round_), branch.weights)
        assert code(answer) is RefusalCode.ROUND_OUT_OF_ORDER
    assert code(branch.ask(question, branch.weights * 2)) is RefusalCode.ROUND_ALREADY_ANSWERED
    assert branch.charges(job_id) == [("score-histogram", ROUNDS)]


def test_after_its_close_a_job_answers_nothing_new(branch: Branch) -> None:
    job_id = branch.opened()
    branch.ask(train(job_id, 1), branch.weights)
    assert branch.ask(messages.CloseJob(job_id=job_id)).type == "job-closed"
    assert code(branch.ask(train(job_id, 2), branch.weights)) is RefusalCode.JOB_CLOSED
    evaluate = messages.Evaluate(job_id=job_id, round=ROUNDS)
    assert code(branch.ask(evaluate, branch.weights)) is RefusalCode.JOB_CLOSED
    assert branch.charges(job_id) == [("size", 0), ("weights", 1)]


def test_an_unknown_job_is_refused(branch: Branch) -> None:
    for question in (
        train("f" * 32, 1),
        messages.Evaluate(job_id="f" * 32, round=1),
        messages.CloseJob(job_id="f" * 32),
    ):
        assert code(branch.ask(question, branch.weights)) is RefusalCode.UNKNOWN_JOB


# --- vectors and frames ----------------------------------------------------------------------------------


def raw(message: messages.Question, header: dict[str, Any], body: bytes) -> bytes:
    """A frame as an attacker would pack it: nothing is checked."""
    head = json.dumps({"message": message.model_dump(mode="json"), **header}).encode()
    return codec.PREFIX.pack(codec.MAGIC, len(head), len(body)) + head + body


def test_a_vector_of_another_form_is_refused_with_its_code(branch: Branch) -> None:
    job_id = branch.opened()
    good = branch.weights
    for body in (good.astype(np.int64), good[:-1], np.append(good, np.float32(0)), good[:0], None):
        assert code(branch.ask(train(job_id, 1), body)) is RefusalCode.BAD_VECTOR
        evaluate = messages.Evaluate(job_id=job_id, round=ROUNDS)
        assert code(branch.ask(evaluate, body)) is RefusalCode.BAD_VECTOR
    question = train(job_id, 1)
    for value in (np.nan, np.inf, -np.inf):
        poisoned = good.copy()
        poisoned[7] = value
        assert code(branch.ask(question, poisoned)) is RefusalCode.BAD_FRAME
    four = good[:4].tobytes()
    for header, body in (
        ({"dtype": "float64", "length": 2}, four),
        ({"dtype": "object", "length": 2}, four),
        ({"dtype": "float32", "length": -4}, four),
        ({"dtype": "float32", "length": 4.0}, four),
        ({"dtype": "float32", "length": True}, four[:4]),
        ({"dtype": "float32"}, four),
        ({"dtype": "float32", "length": 4, "extra": 1}, four),
        ({}, four),
    ):
        answer, _ = codec.decode(branch.vault.answer(raw(question, header, body)), "answer")
        assert code(answer) is RefusalCode.BAD_FRAME, header
    assert branch.charges(job_id) == []


def test_a_claimed_length_allocates_nothing(branch: Branch) -> None:
    question = train("f" * 32, 1)
    claims = [raw(question, {"dtype": "float32", "length": 10**9}, b"\0" * 16)]
    for head, body in ((2**32 - 1, 2**63), (2**20 + 1, 0), (100, 2**28 + 1), (100, 2**28), (2**20, 2**28)):
        claims.append(codec.PREFIX.pack(codec.MAGIC, head, body) + b"\0" * 16)
    tracemalloc.start()
    try:
        for claim in claims:
            answer, _ = codec.decode(branch.vault.answer(claim), "answer")
            assert code(answer) is RefusalCode.BAD_FRAME
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_weights_that_overflow_are_charged_and_answered_with_a_code_or_a_release(branch: Branch) -> None:
    job_id = branch.opened()
    huge = np.full_like(branch.weights, 3e38)
    answers = [
        branch.ask(train(job_id, 1), huge),
        branch.ask(messages.Evaluate(job_id=job_id, round=ROUNDS), huge),
    ]
    for answer in answers:
        assert answer.type == "released" or code(answer) is RefusalCode.INTERNAL
    assert ("weights", 1) in branch.charges(job_id), "what was computed from data was paid for"


def test_random_bytes_and_mutated_frames_get_a_refusal(branch: Branch) -> None:
    """Fixed seed: 200 random strings, 300 mutants. Nothing raises, nothing is released, nothing is charged."""
    rng = random.Random(20261123)
    job_id = branch.opened()
    branch.ask(train(job_id, 1), branch.weights)
    branch.ask(messages.CloseJob(job_id=job_id))
    frames = [rng.randbytes(rng.randrange(0, 400)) for _ in range(150)]
    frames += [codec.MAGIC + rng.randbytes(rng.randrange(0, 400)) for _ in range(50)]
    seeds = [
        codec.encode(messages.Ping()),
        codec.encode(messages.OpenJob(signed_job=self_signed(branch))),
        codec.encode(train(job_id, 2), branch.weights),
        codec.encode(messages.Evaluate(job_id=job_id, round=ROUNDS), branch.weights),
    ]
    frames += [mutated(rng, rng.choice(seeds)) for _ in range(300)]
    before = branch.charges()
    kinds = set()
    for frame in frames:
        answer, vector = codec.decode(branch.vault.answer(frame), "answer")
        assert vector is None
        assert isinstance(answer, messages.Refused | messages.Pong), answer
        kinds.add(answer.code if isinstance(answer, messages.Refused) else answer.type)
    assert branch.charges() == before
    assert RefusalCode.INTERNAL not in kinds, "every one of these is foreseen"
    assert {RefusalCode.BAD_FRAME, RefusalCode.BAD_SIGNATURE, RefusalCode.JOB_CLOSED} <= kinds
    assert Ledger.read(branch.home.ledger).verify() > 0


def self_signed(branch: Branch) -> SignedJob:
    return branch.signed(key=Ed25519PrivateKey.generate())


def mutated(rng: random.Random, frame: bytes) -> bytes:
    changed = bytearray(frame)
    match rng.randrange(4):
        case 0:
            for _ in range(rng.randrange(1, 4)):
                changed[rng.randrange(min(len(changed), 600))] = rng.randrange(256)
        case 1:
            del changed[rng.randrange(len(changed)) :]
        case 2:
            at = rng.randrange(len(changed))
            changed[at:at] = rng.randbytes(rng.randrange(1, 9))
        case _:
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def test_an_internal_error_leaves_a_code_and_no_text(branch: Branch, monkeypatch: pytest.MonkeyPatch) -> None:
    job_id = branch.opened()

    def fail(*_: Any) -> None:
        raise ValueError(SECRET)

    vault = branch.vault
    for owner, target in ((vault, "_phantoms"), (vault._training, "size"), (vault, "_opened")):
        with monkeypatch.context() as patched:
            patched.setattr(owner, target, fail)
            answer = branch.vault.answer(codec.encode(train(job_id, 1), branch.weights))
        expected = {"version": 1, "type": "refused", "code": "internal", "requested": None, "remaining": None}
        head = json.loads(answer[codec.PREFIX.size :])
        assert head == {"message": expected}
        assert SECRET.encode() not in answer
        entry = branch.last()
        assert (entry.kind, entry.body) == ("refuse", {"code": "internal", "question": "train"})
        assert entry.job_id == job_id


# --- admission -------------------------------------------------------------------------------------------


def test_a_job_of_another_hand_time_or_contract_is_refused_and_stands_in_the_ledger(branch: Branch) -> None:
    good = branch.signed()
    dearer = good.job.model_copy(
        update={"privacy": good.job.privacy.model_copy(update={"target_epsilon": 0.1})}
    )
    long_ago = datetime.now(UTC) - timedelta(days=2)
    other = branch.contract.model_copy(update={"purpose": branch.contract.purpose + " And more."})
    attempts = {
        "wrong key": (self_signed(branch), RefusalCode.BAD_SIGNATURE),
        "unsigned": (good.model_copy(update={"signature": ""}), RefusalCode.BAD_SIGNATURE),
        "not base64": (good.model_copy(update={"signature": "%" * 88}), RefusalCode.BAD_SIGNATURE),
        "altered job": (good.model_copy(update={"job": dearer}), RefusalCode.BAD_SIGNATURE),
        "altered contract": (good.model_copy(update={"contract": other}), RefusalCode.BAD_SIGNATURE),
        "longer life": (
            good.model_copy(update={"expires_at": good.expires_at + HOUR}),
            RefusalCode.BAD_SIGNATURE,
        ),
        "expired": (branch.signed(now=long_ago), RefusalCode.EXPIRED),
        "not yet": (branch.signed(now=datetime.now(UTC) + HOUR), RefusalCode.EXPIRED),
        "other contract": (
            sign_job(branch.job, other, branch.key, valid_for=HOUR),
            RefusalCode.WRONG_CONTRACT,
        ),
    }
    for name, (signed, expected) in attempts.items():
        answer = branch.ask(messages.OpenJob(signed_job=signed))
        assert code(answer) is expected, name
        entry = branch.last()
        assert (entry.kind, entry.body["code"], entry.job_id) == ("refuse", expected.value, signed.job_id)
        assert code(branch.ask(train(signed.job_id, 1), branch.weights)) is RefusalCode.UNKNOWN_JOB


def test_more_than_the_policy_or_the_budget_allows_is_refused_with_numbers(branch: Branch) -> None:
    def of(epsilon: float) -> Job:
        privacy = branch.job.privacy.model_copy(update={"target_epsilon": epsilon})
        return branch.job.model_copy(update={"privacy": privacy})

    answer = branch.ask(messages.OpenJob(signed_job=branch.signed(of(3.5))))
    assert isinstance(answer, messages.Refused)
    assert (answer.code, answer.requested, answer.remaining) == (RefusalCode.OVER_JOB_LIMIT, 3.5, 3.0)

    held = []
    refused = None
    while refused is None:
        signed = branch.signed(of(2.9))
        answer = branch.ask(messages.OpenJob(signed_job=signed))
        if isinstance(answer, messages.Refused):
            refused = answer
        else:
            held.append(signed.job_id)
            assert len(held) < 20
    assert refused.code is RefusalCode.OVER_BUDGET
    spending = branch.vault.door.spending()
    assert refused.remaining == pytest.approx(spending.remaining, rel=1e-6)
    assert refused.requested is not None and refused.requested > spending.remaining > 0
    branch.restart()
    assert branch.ask(messages.OpenJob(signed_job=branch.signed(of(2.9)))) == refused
    for job_id in held:
        branch.ask(messages.CloseJob(job_id=job_id))
    assert branch.ask(messages.OpenJob(signed_job=branch.signed(of(2.9)))).type == "job-opened"


def test_where_an_operator_must_approve_only_that_very_job_gets_in(branch: Branch) -> None:
    policy = branch.home.vault / "policy.toml"
    before = policy.read_text()
    try:
        policy.write_text(Policy(approval="operator").to_toml())
        branch.restart()
        signed = branch.signed(branch.job.model_copy(update={"name": "to-be-approved"}))
        question = messages.OpenJob(signed_job=signed)
        assert code(branch.ask(question)) is RefusalCode.NOT_APPROVED
        entry = branch.last()
        assert (entry.body["code"], entry.body["job_hash"]) == ("not-approved", signed.job_hash)

        run = CliRunner().invoke(branch_cli, ["approve", str(branch.home.path), entry.body["job_hash"]])
        assert run.exit_code == 0, run.output
        assert branch.ask(question).type == "job-opened", "without a restart"
        again = branch.ask(messages.OpenJob(signed_job=branch.signed(signed.job)))
        assert again.type == "job-opened", "the approval is of the question, not of one signature"
        other = branch.signed(branch.job.model_copy(update={"name": "another"}))
        assert code(branch.ask(messages.OpenJob(signed_job=other))) is RefusalCode.NOT_APPROVED
    finally:
        policy.write_text(before)
        branch.restart()


def test_refusals_fill_a_ledger_only_so_far(branch: Branch, monkeypatch: pytest.MonkeyPatch) -> None:
    known = len(Ledger.read(branch.home.ledger).entries("refuse"))
    monkeypatch.setattr("sfumato.client.vault.answer.MOST_REFUSALS_A_DAY", known + 3)
    stranger = Ed25519PrivateKey.generate()
    for _ in range(6):
        answer = branch.ask(messages.OpenJob(signed_job=branch.signed(key=stranger)))
        assert code(answer) is RefusalCode.BAD_SIGNATURE
    assert len(Ledger.read(branch.home.ledger).entries("refuse")) == known + 3
