"""A small real federation on loopback, and what the tests of failures ask of it."""

import contextlib
import csv
import json
import os
import random
import shutil
import signal
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sfumato.client.home import BranchHome
from sfumato.client.launch import state_file
from sfumato.client.vault.answer import Vault
from sfumato.client.vault.service import open_vault
from sfumato.common import messages
from sfumato.common.codec import Vector, decode, encode
from sfumato.common.contract import Contract, load_contract
from sfumato.common.job import AnalysisJob, ChurnNetJob, Job, SignedJob, load_job, sign_job
from sfumato.common.messages import LedgerHead, ReleasedAnswer
from sfumato.lab.federation import Federation
from sfumato.lab.samplebank import SampleBank, generate
from sfumato.lab.simulate import simulated_branches
from sfumato.privacy.ledger import Ledger
from sfumato.privacy.secure_sum import job_context
from sfumato.server.control import RunState
from sfumato.server.coordinator import Coordinator
from sfumato.server.watching import Event, events

BACK_SECONDS = 120.0
MEMORY = Path("/dev/shm")


@pytest.fixture(scope="session")
def bank(tmp_path_factory: pytest.TempPathFactory) -> SampleBank:
    return generate(tmp_path_factory.mktemp("faults") / "bank", branches=3, customers_per_branch=300)


@pytest.fixture(scope="session")
def base_job(bank: SampleBank) -> Job:
    return load_job(bank.job)


VILLAGE = """
version = 1
name = "village"
purpose = "A few hundred made-up customers, for tests."
holdout_fraction = 0.2

[[tables]]
name = "customers"
columns = [
  { name = "id", type = "string", role = "customer_id" },
  { name = "place", type = "string", role = "branch" },
  { name = "age", type = "integer", role = "feature", bounds = [18, 90] },
  { name = "product", type = "category", role = "feature", categories = ["card", "loan", "deposit"] },
  { name = "churned", type = "boolean", role = "label" },
]
"""


@dataclass
class Opened:
    """A job that every branch has opened, as a coordinator of any mind would hold it."""

    village: "Village"
    signed: SignedJob
    shares: tuple[messages.KeyShare, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(s.branch for s in self.shares)

    @property
    def context(self) -> str:
        return job_context(self.signed.job_id, self.signed.job_hash)

    def ask(self, node: int, question: messages.Question, body: Vector | None = None) -> messages.Answer:
        return decode(self.village.vaults[node].answer(encode(question, body)), "answer")[0]

    def roster(self, node: int, shares: tuple[messages.KeyShare, ...] | None = None) -> messages.Answer:
        members = self.shares if shares is None else shares
        return self.ask(node, messages.Roster(job_id=self.signed.job_id, members=members))

    def sum(self, members: tuple[str, ...], round_: int = 0, roster: str | None = None) -> messages.Sum:
        return messages.Sum(job_id=self.signed.job_id, round=round_, members=members, roster=roster)

    def charges(self, node: int) -> list[list[str]]:
        entries = self.village.ledger(node).entries("charge", job_id=self.signed.job_id)
        return [e.body["members"] for e in entries]

    def last_refusal(self, node: int) -> tuple[str, str | None]:
        entry = self.village.ledger(node).entries("refuse")[-1]
        return entry.body["code"], entry.job_id


@dataclass
class Village:
    """Branches of real vaults in this process, and who signs for them. `truth` is what nobody else may know."""

    homes: list[BranchHome]
    vaults: dict[int, Vault]
    contract: Contract
    key: Ed25519PrivateKey
    customers: list[dict[str, Any]]

    def job(self, *, epsilon: float = 0.5, repeats: int = 6, **federation: Any) -> AnalysisJob:
        """How many customers there are of each product and age: one secure sum."""
        return AnalysisJob.model_validate(
            {
                "name": "count",
                "kind": "profile",
                "purpose": "Count the village.",
                "contract": "village",
                "privacy": {"target_epsilon": epsilon, "delta": 1e-5, "mode": "secure-sum"},
                "federation": {"min_branches": 3, "repeats": repeats} | federation,
                "question": {"columns": ["product", "age"], "min_group": 1},
                "audit": {"empty_slots": 8, "canaries": 8},
            }
        )

    def net(self) -> ChurnNetJob:
        """Who leaves: three steps of a small net, a secure sum each."""
        return ChurnNetJob.model_validate(
            {
                "name": "net",
                "kind": "churn-net",
                "purpose": "Who leaves the village?",
                "contract": "village",
                "privacy": {"target_epsilon": 1.0, "delta": 1e-5, "mode": "secure-sum"},
                "model": {"hidden": [4], "embedding_dim": 1, "bins": 4},
                "training": {"rounds": 3, "local_steps": 1, "sample_rate": 1.0},
                "federation": {"min_branches": 3},
                "audit": {"empty_slots": 4, "canaries": 4},
            }
        )

    @property
    def names(self) -> dict[int, str]:
        return {n: vault.branch for n, vault in self.vaults.items()}

    def ledger(self, node: int) -> Ledger:
        return Ledger.read(self.homes[node - 1].ledger)

    def opened(self, job: Any = None) -> Opened:
        signed = sign_job(job or self.job(), self.contract, self.key, valid_for=timedelta(hours=1))
        shares = []
        for vault in self.vaults.values():
            frame = encode(messages.OpenJob(signed_job=signed))
            message, _ = decode(vault.answer(frame), "answer")
            assert isinstance(message, messages.JobOpened) and message.key is not None, message
            shares.append(message.key)
        return Opened(self, signed, tuple(sorted(shares, key=lambda s: s.branch)))

    def agreed(self, job: Any = None) -> tuple[Opened, str]:
        """Opened, and every branch has everyone's keys. Also the roster's hash."""
        made = self.opened(job)
        answers = [made.roster(n) for n in self.vaults]
        assert all(isinstance(a, messages.RosterAccepted) for a in answers), answers
        (roster,) = {a.roster for a in answers}
        return made, roster

    def restart(self, node: int) -> None:
        home = self.homes[node - 1]
        self.vaults[node] = open_vault(home, (home.path / "passphrase").read_text())


@pytest.fixture(scope="session")
def make_village(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[int], Village]]:
    """make_village(branches): some dozens of customers in each."""
    torch.set_num_threads(1)
    with ExitStack() as stack:

        def make(branches: int, budget_epsilon: float = 1000.0) -> Village:
            path = tmp_path_factory.mktemp("village")
            rng = random.Random(branches)
            customers = [
                {
                    "id": f"c{i:05}",
                    "place": f"place-{i % branches:02}",
                    "age": rng.randint(18, 90),
                    "product": rng.choice(["card", "card", "loan", "deposit"]),
                    "churned": rng.random() < 0.3,
                }
                for i in range(40 * branches)
            ]
            (path / "contract.toml").write_text(VILLAGE)
            with (path / "customers.csv").open("w", newline="") as file:
                writer = csv.DictWriter(file, list(customers[0]))
                writer.writeheader()
                writer.writerows(customers)
            with pytest.MonkeyPatch.context() as patch:
                if MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > 1 << 30:
                    # Hundreds of jobs sync some ten thousand times; these tests are not about the disk.
                    patch.setattr(tempfile, "tempdir", str(MEMORY))
                made = stack.enter_context(
                    simulated_branches(
                        path / "contract.toml",
                        path / "customers.csv",
                        branch_column="place",
                        budget_epsilon=budget_epsilon,
                        budget_delta=1e-5,
                    )
                )
            vaults = {
                n: open_vault(home, (home.path / "passphrase").read_text())
                for n, home in enumerate(made.homes, 1)
            }
            return Village(made.homes, vaults, load_contract(path / "contract.toml"), made.key, customers)

        yield make


class Small:
    """Three branches, and ways to look at them and to hurt them."""

    def __init__(self, federation: Federation, base: Job) -> None:
        self.whole = federation
        self.base = base

    def job(self, name: str, *, epsilon: float = 0.5, rounds: int = 2, min_branches: int = 2) -> Job:
        """The bank's job, smaller: a few local steps a round, so that a round takes a blink."""
        job = self.base
        return job.model_copy(
            update={
                "name": name,
                "privacy": job.privacy.model_copy(update={"target_epsilon": epsilon}),
                "training": job.training.model_copy(update={"rounds": rounds, "local_steps": 2}),
                "federation": job.federation.model_copy(
                    update={"min_branches": min_branches, "round_timeout_seconds": 30.0}
                ),
            }
        )

    def ended(self, run_id: int, *, timeout: float = BACK_SECONDS) -> tuple[RunState, dict[str, Any]]:
        """Wait until the run has ended; its state in Flower's list, and its result."""
        return self.end_of(run_id, timeout=timeout), self.whole.result(run_id)

    def end_of(self, run_id: int, *, timeout: float = BACK_SECONDS) -> RunState:
        """Wait until the run has ended; its state, as `job list` has it."""
        deadline = time.monotonic() + timeout
        while not (state := self._listed(run_id)).finished:
            assert time.monotonic() < deadline, f"run {run_id} is still {state.status}"
            time.sleep(0.1)
        return state

    def events(self, run_id: int) -> list[Event]:
        """What the risk team's screen was told of a run that has ended."""
        return list(events(self.whole.control.logs(run_id)))

    def in_mid_run(self, run_id: int) -> Event:
        """Follow the run until its second round is done."""
        for event in events(self.whole.control.logs(run_id)):
            assert event["event"] not in ("failed", "finished"), event
            if event["event"] == "round" and event["round"] >= 2:
                return event
        raise AssertionError("the run ended before its second round")

    def works_again(self) -> dict[str, Any]:
        """A new job runs to its end with all three branches."""
        self.whole.await_branches(timeout=BACK_SECONDS)
        run_id = self.whole.submit(self.job("afterwards", epsilon=0.1, min_branches=3))
        state, result = self.ended(run_id)
        assert (state.sub_status, result["state"]) == ("completed", "finished"), (state.details, result)
        assert [b["name"] for b in result["per_branch"]] == sorted(self.whole.branches)
        assert all(b["rounds_missed"] == 0 for b in result["per_branch"])
        return result

    def restart_coordinator(self) -> None:
        """A fresh coordinator on the same directory, as an operator would start it after a crash."""
        self.whole.coordinator.stop()
        self.whole.coordinator = self.whole._stack.enter_context(Coordinator(self.whole.home))

    def _listed(self, run_id: int) -> RunState:
        return next(r for r in self.whole.control.list_runs() if r.run_id == run_id)

    # --- ledgers -----------------------------------------------------------------------------------------

    def assert_nothing_uncharged(self, result: dict[str, Any] | None = None) -> None:
        """Every stored answer has its charge, of the same event, before it; every chain and kept head verifies.

        With the result of a run: the coordinator got no more weights or shares of a branch than it was charged for.
        """
        heads = {b["name"]: b["ledger_head"] for b in (result or {}).get("per_branch", ())}
        for name, home in self.whole.branches.items():
            ledger = Ledger.read(home.ledger)
            kept = [LedgerHead.model_validate(heads[name])] if heads.get(name) else []
            assert ledger.verify(*kept) > 0
            charges = {
                (c.job_id, c.body["round"], c.body["what"], c.body["question"]): c
                for c in ledger.entries("charge")
            }
            for job_id, round_, what, question, frame in self.answers(name):
                charge = charges[job_id, round_, what, question]
                message, vector = decode(frame, "answer")
                assert isinstance(message, ReleasedAnswer) and vector is not None
                assert message.cost.event == charge.body["event"]
                assert message.ledger.size > charge.seq
            for branch in (result or {}).get("per_branch", ()):
                if branch["name"] == name:
                    rounds = ("weights", "share", "sum")
                    paid = [k for k in charges if k[0] == result["job_id"] and k[2] in rounds]
                    assert branch["rounds_answered"] <= len(paid)

    def answers(self, branch: str) -> list[tuple[str, int, str, str, bytes]]:
        """The stored answers: job, round, what, hash of the question, frame."""
        query = "SELECT job_id, round, what, question, answer FROM answers"
        with contextlib.closing(
            sqlite3.connect(self.whole.branches[branch].ledger, timeout=30)
        ) as connection:
            return list(connection.execute(query))

    # --- processes ---------------------------------------------------------------------------------------

    def pid(self, branch: str, process: str) -> int | None:
        """As the launcher's state.json says."""
        state = json.loads(state_file(self.whole.branches[branch]).read_text())
        found = state[process]
        assert found is None or isinstance(found, int)
        return found

    def held_in_mid_answer(self, branch: str, vault: int | None) -> None:
        """Stop the vault while it works on an answer: it has charged for it, and nobody has it yet.

        A question that it has not taken up would wait in the socket for the vault that is started in its place.
        """
        assert vault is not None
        for attempt in range(200):
            os.kill(vault, signal.SIGSTOP)
            with contextlib.suppress(sqlite3.OperationalError):  # it was stopped while it wrote
                if self._at_work(branch):
                    return
            os.kill(vault, signal.SIGCONT)
            time.sleep(0.05 + 0.013 * (attempt % 7))
        raise AssertionError(f"the vault of {branch} was never found at work")

    def _at_work(self, branch: str) -> bool:
        """Whether the last charge of its ledger has no answer."""
        path = self.whole.branches[branch].ledger
        with contextlib.closing(sqlite3.connect(path, timeout=0.2)) as connection:
            (entry,) = connection.execute(
                "SELECT entry FROM entries WHERE kind = 'charge' ORDER BY seq DESC LIMIT 1"
            ).fetchone()
            charge = json.loads(entry)
            question = charge["job_id"], charge["body"]["round"], charge["body"]["what"]
            found = "SELECT 1 FROM answers WHERE job_id = ? AND round = ? AND what = ?"
            return connection.execute(found, question).fetchone() is None

    def await_restart(self, branch: str, process: str, old: int, *, timeout: float = 60.0) -> int:
        """The number of the process that the launcher started in place of `old`."""
        deadline = time.monotonic() + timeout
        while (new := self.pid(branch, process)) in (None, old):
            assert time.monotonic() < deadline, f"{process} of {branch} was not started again"
            time.sleep(0.1)
        assert new is not None
        return new

    @staticmethod
    def kill_tree(*roots: int | None) -> int:
        """kill -9 of processes and of all that they started. Returns how many that were."""
        children: dict[int, list[int]] = {}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                parent = int(stat.read_text().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(stat.parent.name))
        doomed = [root for root in roots if root is not None]
        assert doomed
        for pid in doomed:
            doomed += children.get(pid, [])
        for pid in doomed:
            os.kill(pid, signal.SIGKILL)
        return len(doomed)


@pytest.fixture(scope="session")
def make_small(
    tmp_path_factory: pytest.TempPathFactory, bank: SampleBank, base_job: Job
) -> Iterator[Callable[..., Small]]:
    """make_small(budget_epsilon=…, policy=…): running until all tests are done."""
    with ExitStack() as stack:

        def make(**settings: Any) -> Small:
            path = tmp_path_factory.mktemp("federation")
            whole = stack.enter_context(Federation(path, bank.contract, **settings))
            for name, folder in bank.branches.items():
                whole.add_branch(name, folder)
            whole.await_branches()
            return Small(whole, base_job)

        yield make


@pytest.fixture(scope="session")
def small(make_small: Callable[..., Small]) -> Small:
    """One federation for all tests: each leaves it working, with room in its budgets for the others."""
    started = time.monotonic()
    made = make_small(budget_epsilon=2.5)
    print(f"federation of three up in {time.monotonic() - started:.1f} s")
    return made
