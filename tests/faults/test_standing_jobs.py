"""A standing question over real vaults: asked month by month for one charge over all of them, of branches that
restart, load new rows, are away, or drop; and against who would be told more than that charge counts."""

import contextlib
import csv
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from sfumato.client import cli
from sfumato.client.ingest.load import ingest, open_source
from sfumato.client.vault.answer import Vault
from sfumato.client.vault.service import open_vault
from sfumato.client.vault.store import Store
from sfumato.common import messages
from sfumato.common.analyses.standing import StandingPaths
from sfumato.common.codec import decode, encode
from sfumato.common.contract import Contract, load_contract
from sfumato.common.enrolment import Enrolment, ed25519_text
from sfumato.common.errors import BadInput, SfumatoError
from sfumato.common.job import AnalysisJob, SignedJob, sign_job
from sfumato.lab.in_process import InProcessExchange
from sfumato.lab.simulate import SimulatedBranches, simulated_branches
from sfumato.privacy import accounting
from sfumato.privacy.ledger import Entry, Ledger
from sfumato.privacy.plan import Plan
from sfumato.server.conversation import JobFailed
from sfumato.server.home import Branch, CoordinatorHome
from sfumato.server.interrupted import find_interrupted, give_up, job_to_resume, waiting_run
from sfumato.server.job_run import JobOutcome
from sfumato.server.results import run_job
from sfumato.server.run_files import JOURNAL, left_open, read_result, waits_for
from sfumato.server.standing import valid_for

pytestmark = pytest.mark.slow

MONTHS, AHEAD = 6, 3
AS_OF = date(2025, 7, 1)
DAYS = [AS_OF + timedelta(days=30 * (t - (MONTHS - 1 - AHEAD))) for t in range(MONTHS)]
TOWNS = ("ash", "elm")
CONTRACT = """
version = 1
name = "visits"
purpose = "Made-up visits, for tests."
as_of = 2025-07-01

[[tables]]
name = "customers"
columns = [
  { name = "id", type = "string", role = "customer_id" },
  { name = "town", type = "category", role = "feature", categories = ["ash", "elm"] },
]

[[tables]]
name = "visits"
columns = [
  { name = "id", type = "string", role = "customer_id" },
  { name = "day", type = "date", role = "time" },
]
"""


@dataclass
class Bank:
    """Branches whose rows reach far ahead, and a coordinator's desk over them. `lives` are the months in which each
    customer visits, by branch and id: what nobody else may know."""

    made: SimulatedBranches
    contract: Contract
    home: CoordinatorHome
    lives: list[dict[str, tuple[str, list[bool]]]]
    vaults: dict[int, Vault] = field(default_factory=dict)
    away: set[int] = field(default_factory=set)
    drops: dict[int, int] = field(default_factory=dict)  # a branch, and the round at which it drops

    def restart(self) -> None:
        """Every vault comes up anew: its keys of open jobs are gone."""
        for vault in self.vaults.values():
            vault._store.close()
        self.vaults = {
            n: open_vault(home, (home.path / "passphrase").read_text())
            for n, home in enumerate(self.made.homes, 1)
        }

    def reach(self, day: date) -> None:
        for home in self.made.homes:
            home.reach(day, date.today())

    def job(self, **more: Any) -> AnalysisJob:
        question = {"follow": "visits", "months": MONTHS, "ahead": AHEAD, "changes": 1, "group": "town"}
        return AnalysisJob.model_validate(
            {
                "name": "who-stays",
                "kind": "trend",
                "purpose": "See who stops to visit.",
                "contract": "visits",
                "privacy": {"target_epsilon": 20.0, "delta": 1e-3, "mode": "secure-sum"} | more,
                "federation": {"min_branches": 3, "repeats": 1},
                "question": question,
                "audit": {"empty_slots": 8, "canaries": 8},
            }
        )

    def sign(self, job: AnalysisJob | None = None) -> SignedJob:
        asked = job or self.job()
        return sign_job(asked, self.contract, self.made.key, valid_for=valid_for(asked, self.contract))

    @property
    def runs(self) -> Path:
        return self.home.directory("runs")

    def run(self, signed: SignedJob) -> tuple[Path, JobOutcome | SfumatoError]:
        directory = self.runs / str(len(list(self.runs.iterdir())) + 1)
        directory.mkdir(mode=0o700)
        branches = {
            n: Branch(
                Enrolment.model_construct(
                    name=vault.branch, ledger_public_key=ed25519_text(self.ledger(n).public_key)
                ),
                node_id=n,
            )
            for n, vault in self.vaults.items()
        }
        exchange = InProcessExchange({n: self._ears(n) for n in self.vaults})
        with contextlib.closing(self.home.open_ledger()) as ledger:
            try:
                outcome: JobOutcome | SfumatoError = run_job(
                    exchange,
                    signed,
                    branches=branches,
                    out_dir=directory,
                    report=lambda _: None,
                    ledger=ledger,
                    cosigned=self.home.cosigned,
                )
            except SfumatoError as e:
                outcome = e
        return directory, outcome

    def _ears(self, node: int) -> Any:
        def hear(frame: bytes) -> bytes | None:
            question, _ = decode(frame, "question")
            if node in self.away:
                return None
            if isinstance(question, messages.Sum) and question.round == self.drops.get(node):
                return None
            return self.vaults[node].answer(frame)

        return hear

    def ledger(self, node: int) -> Ledger:
        return Ledger.read(self.made.homes[node - 1].ledger)

    def charges(self, signed: SignedJob, node: int) -> list[Entry]:
        return self.ledger(node).entries("charge", job_id=signed.job_id)

    def is_closed(self, signed: SignedJob, node: int) -> bool:
        return bool(self.ledger(node).entries("close", job_id=signed.job_id))

    def told_files(self, signed: SignedJob, node: int) -> list[str]:
        return sorted(p.name for p in self.made.homes[node - 1].told.glob(f"{signed.job_id}-*"))


def make_bank(path: Path, seed: int = 1) -> tuple[Path, Path, list[dict[str, tuple[str, list[bool]]]]]:
    rng, data, lives = np.random.default_rng(seed), path / "data", []
    (path / "contract.toml").write_text(CONTRACT)
    for b in range(3):
        folder = data / f"branch-{b}"
        folder.mkdir(parents=True)
        own: dict[str, tuple[str, list[bool]]] = {}
        for i in range(60):
            active = [bool(rng.random() < 0.7)]
            for _ in range(MONTHS - 1):
                active.append(active[-1] if rng.random() < 0.75 else not active[-1])
            own[f"c{b}-{i:03}"] = (str(rng.choice(TOWNS)), active)
        write(folder, own)
        lives.append(own)
    return path / "contract.toml", data, lives


def write(folder: Path, own: dict[str, tuple[str, list[bool]]]) -> None:
    with (folder / "customers.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["id", "town"], *([c, town] for c, (town, _) in own.items())])
    visits = [
        [c, (day - timedelta(days=5)).isoformat()]
        for c, (_, active) in own.items()
        for day, there in zip(DAYS, active, strict=True)
        if there
    ]
    with (folder / "visits.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["id", "day"], *visits])


@pytest.fixture(scope="module")
def branches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bank]:
    path = tmp_path_factory.mktemp("standing")
    contract, data, lives = make_bank(path)
    home = CoordinatorHome.init(path / "coordinator", host="127.0.0.1", port=9092, session_port=9093)
    with simulated_branches(contract, data, budget_epsilon=1000.0, budget_delta=1e-3) as made:
        yield Bank(made, load_contract(contract), home, lives)


@pytest.fixture
def bank(branches: Bank) -> Bank:
    """As if no test had asked anything: nobody is away, and the data reach the contract's day."""
    branches.away, branches.drops = set(), {}
    for home in branches.made.homes:
        (home.vault / "reaches").unlink(missing_ok=True)
    branches.restart()
    return branches


def followed(
    lives: list[dict[str, tuple[str, list[bool]]]], missed: frozenset[tuple[int, int]] = frozenset()
) -> dict[tuple[str, ...], int]:
    """Counts by town, day and state of customers who may change once, one after the other. `missed` are branches and
    months in which they were not asked."""
    counts: Counter[tuple[str, ...]] = Counter()
    for branch, own in enumerate(lives):
        for town, active in own.values():
            state, left = active[0], 1
            for t, (day, there) in enumerate(zip(DAYS, active, strict=True)):
                if (branch, t) in missed:
                    continue
                if there != state and left:
                    state, left = there, left - 1
                counts[town, day.isoformat(), "active" if state else "quiet"] += 1
    return dict(counts)


def assert_holds(outcome: JobOutcome | SfumatoError, truth: dict[tuple[str, ...], int], months: int) -> None:
    """Noise of about one customer at epsilon 20: all numbers within five deviations, none of them by chance alone."""
    assert isinstance(outcome, JobOutcome), outcome
    assert outcome.answer is not None
    groups = next(p for p in outcome.answer["parts"] if p["name"] == "groups")
    shown = {tuple(row["of"]): row["customers"] for row in groups["rows"]}
    assert {day for _, day, _ in shown} == {d.isoformat() for d in DAYS[:months]}
    for of, number in shown.items():
        half = max(number["high"] - number["value"], number["value"] - number["low"])
        assert half < 12 and abs(number["value"] - truth.get(of, 0)) <= 5 / 1.96 * half, (of, number)


def test_months_are_told_as_they_come_for_the_one_charge(bank: Bank) -> None:
    signed, truth = bank.sign(), followed(bank.lives)
    assert signed.expires_at - signed.issued_at > timedelta(days=90)
    first, outcome = bank.run(signed)
    assert_holds(outcome, truth, 3)
    result = read_result(first)
    assert (result["state"], result["waits_for"]) == ("finished", DAYS[3].isoformat())
    assert result["behind"] == sorted(v.branch for v in bank.vaults.values())
    (begun := bank.runs / "99").mkdir()
    assert waits_for(first) == DAYS[3].isoformat() and waits_for(begun) is None
    begun.rmdir()
    assert left_open(bank.runs) == {}  # the branches keep what is set aside for it
    with contextlib.closing(bank.home.open_ledger()) as ledger:
        assert find_interrupted(bank.runs, ledger) == []  # and it was not cut short
        assert ledger.entries("end")[-1].body["state"] == "waits"

    again, outcome = bank.run(job_to_resume(bank.runs, int(first.name)))  # no month is over yet
    assert_holds(outcome, truth, 3)
    assert [len(bank.charges(signed, n)) for n in bank.vaults] == [3, 3, 3]
    with pytest.raises(BadInput, match="was resumed as run 2"):
        job_to_resume(bank.runs, int(first.name))

    bank.reach(DAYS[3])
    bank.restart()
    third, outcome = bank.run(job_to_resume(bank.runs, int(again.name)))
    assert_holds(outcome, truth, 4)
    reserved = bank.vaults[1].door.spending()
    assert reserved.reserved > reserved.spent
    bank.reach(DAYS[-1])
    last, outcome = bank.run(job_to_resume(bank.runs, int(third.name)))
    assert_holds(outcome, truth, 6)
    assert "waits_for" not in read_result(last) and not (last / JOURNAL).exists()
    with pytest.raises(BadInput, match="nothing to resume"):
        job_to_resume(bank.runs, int(last.name))

    plan = Plan.of(signed.job, bank.contract)
    for n, vault in bank.vaults.items():
        charges = bank.charges(signed, n)
        assert [e.body["round"] for e in charges] == list(range(6))
        events = [accounting.decode_event(e.body["event"]) for e in charges]
        spent = sum(1 / e.noise_multiplier**2 for e in events)
        noise = plan.ask(1).noise_multiplier * plan.ask(1).max_norm
        # One path, not six sums: what the ledger adds up to is the longest path over the noise.
        assert spent == pytest.approx(StandingPaths(4, MONTHS, 1).bounds[-1] / noise**2)
        assert accounting.pld_epsilon(events, 1e-3) < plan.epsilon() <= 20.0
        assert bank.is_closed(signed, n) and bank.told_files(signed, n) == []
        assert vault.door.spending().reserved == vault.door.spending().spent
        assert bank.ledger(n).verify() > 8


def test_a_month_without_a_branch_is_not_shown_and_the_next_is_right(bank: Bank) -> None:
    signed, truth = bank.sign(bank.job(mode="local")), followed(bank.lives, frozenset({(1, 3)}))
    # Locally each branch adds all the noise, and two of three may go on.
    two = signed.job.model_copy(
        update={"federation": signed.job.federation.model_copy(update={"min_branches": 2})}
    )
    assert isinstance(two, AnalysisJob)
    signed = bank.sign(two)
    bank.run(signed)
    bank.away = {2}
    bank.reach(DAYS[3])
    _, outcome = bank.run(signed)
    assert isinstance(outcome, JobOutcome) and outcome.answer is not None
    days = {row["of"][0] for row in outcome.answer["parts"][0]["rows"]}
    assert days == {d.isoformat() for d in DAYS[:3]}
    assert any(DAYS[3].isoformat() in note and "not shown" in note for note in outcome.answer["notes"])
    bank.away = set()
    bank.reach(DAYS[4])
    _, outcome = bank.run(signed)
    assert isinstance(outcome, JobOutcome) and outcome.answer is not None
    groups = next(p for p in outcome.answer["parts"] if p["name"] == "groups")
    shown = {tuple(row["of"]): row for row in groups["rows"]}
    assert {day for _, day, _ in shown} == {d.isoformat() for i, d in enumerate(DAYS[:5]) if i != 3}
    for (town, day, state), row in shown.items():
        number = row["customers"]
        half = max(number["high"] - number["value"], number["value"] - number["low"])
        assert abs(number["value"] - truth.get((town, day, state), 0)) <= 5 / 1.96 * half
        assert ("change" in row) == (day not in (DAYS[0].isoformat(), DAYS[4].isoformat()))
    # It pays for the month that it missed when it tells of it: its customers' paths went on.
    (one, two_) = (bank.charges(signed, n) for n in (1, 2))
    assert [e.body["round"] for e in one] == [0, 1, 2, 3, 4] and [e.body["round"] for e in two_] == [
        0,
        1,
        2,
        4,
    ]
    assert "composed" in str(two_[-1].body["event"])

    def whole(charges: list[Entry]) -> float:
        return accounting.pld_epsilon([accounting.decode_event(e.body["event"]) for e in charges], 1e-3)

    assert whole(one) == pytest.approx(whole(two_))


def test_a_repeat_costs_a_sum_and_a_question_that_failed_goes_on(bank: Bank) -> None:
    four = bank.sign()
    bank.drops = {3: 2}
    directory, outcome = bank.run(four)
    assert isinstance(outcome, JobFailed) and "at least 3" in outcome.message
    assert waiting_run(bank.runs, four) == int(directory.name)  # what it told is not lost
    bank.drops = {}
    _, outcome = bank.run(four)  # the question that was out, word for word: the stored answers
    assert_holds(outcome, followed(bank.lives), 3)
    assert [[e.body["round"] for e in bank.charges(four, n)] for n in (1, 2, 3)] == [[0, 1, 2]] * 3
    assert give_up(bank.runs, waiting_run(bank.runs, four) or 0)
    other = bank.sign()
    bank.run(other)
    assert [bank.is_closed(four, n) for n in (1, 2, 3)] == [True] * 3  # by the next run
    assert [bank.told_files(four, n) for n in (1, 2, 3)] == [[]] * 3


def ask(vault: Vault, question: messages.Question, body: Any = None) -> messages.Answer:
    return decode(vault.answer(encode(question, body)), "answer")[0]


def refused(answer: messages.Answer) -> str:
    assert isinstance(answer, messages.Refused), answer
    return str(answer.code)


def test_a_hostile_coordinator_learns_nothing_more(bank: Bank) -> None:
    signed, vault = bank.sign(bank.job(mode="local")), bank.vaults[1]
    opened = ask(vault, messages.OpenJob(signed_job=signed))
    assert isinstance(opened, messages.JobOpened) and opened.reaches == AS_OF

    def month(t: int, body: Any = None) -> messages.Answer:
        return ask(vault, messages.Sum(job_id=signed.job_id, round=t), body)

    assert refused(month(3)) == "not-yet" and bank.charges(signed, 1) == []
    assert refused(month(MONTHS)) == "round-out-of-order"
    assert refused(month(0, np.zeros(2, np.float32))) == "bad-vector"
    first = month(1)
    assert isinstance(first, messages.ReleasedAnswer)
    assert vault.answer(encode(messages.Sum(job_id=signed.job_id, round=1))) == vault.answer(
        encode(messages.Sum(job_id=signed.job_id, round=1))
    )
    assert refused(month(0)) == "round-out-of-order"
    assert len(bank.charges(signed, 1)) == 1
    bank.reach(DAYS[3])
    (home, told) = bank.made.homes[0], bank.told_files(signed, 1)
    assert told == [f"{signed.job_id}-0001"]
    path = home.told / told[0]
    kept = path.read_bytes()
    assert b"ash" not in kept and b"c0-0" not in kept and path.stat().st_mode & 0o077 == 0
    for bad in (kept[:-1] + bytes([kept[-1] ^ 1]), kept[:40], b""):
        path.write_bytes(bad)
        assert refused(month(2)) == "memory-lost"
    path.unlink()
    assert refused(month(2)) == "memory-lost"
    assert len(bank.charges(signed, 1)) == 1  # nothing was charged, nothing left
    path.write_bytes(kept)
    bank.restart()
    vault = bank.vaults[1]
    assert isinstance(month(3), messages.ReleasedAnswer)
    later, charges = (home.told / f"{signed.job_id}-0003").read_bytes(), bank.charges(signed, 1)
    assert later != kept and [e.body["round"] for e in charges] == [1, 3]
    path.write_bytes(kept)
    (home.told / f"{signed.job_id}-0003").write_bytes(kept)  # an older memory in the newer one's place
    bank.reach(DAYS[4])
    assert refused(month(4)) == "memory-lost"
    assert vault.door.spending().reserved <= vault.door.budget

    # What is remembered of a job that nobody can ask any more goes when the vault comes up.
    vault._now = vault.door._now = lambda: signed.expires_at + timedelta(days=1)
    assert vault.door.open_jobs() == frozenset()
    vault._standing._memory.keep(vault.door.open_jobs())
    assert bank.told_files(signed, 1) == []


def test_the_operator_says_how_far_the_data_reach(bank: Bank) -> None:
    home, run = bank.made.homes[0], CliRunner()
    assert home.reaches(bank.contract) == AS_OF
    said = run.invoke(cli.app, ["reach", str(home.path), "2025-07-31"])
    assert said.exit_code == 0 and "reach 2025-07-31 (before: 2025-07-01)" in said.output
    assert home.reaches(bank.contract) == DAYS[3]
    assert (home.vault / "reaches").stat().st_mode & 0o077 == 0
    for day in ("2025-07-30", (datetime.now(UTC) + timedelta(days=2)).date().isoformat()):
        again = run.invoke(cli.app, ["reach", str(home.path), day])
        assert isinstance(again.exception, BadInput) and "reach 2025-07-31 already" in again.exception.message
    (home.vault / "reaches").write_text("soon")
    with pytest.raises(BadInput, match="expected a date"):
        home.reaches(bank.contract)


def test_any_analysis_can_be_asked_as_of_another_day_that_the_data_reach(bank: Bank) -> None:
    question = {"follow": "visits", "months": 2, "quiet": 1}
    later = bank.job().model_copy(update={"question": question, "as_of": DAYS[4]})
    signed = bank.sign(later)
    refusal = ask(bank.vaults[1], messages.OpenJob(signed_job=signed))
    assert refused(refusal) == "not-yet" and not bank.ledger(1).entries("reserve", job_id=signed.job_id)
    for home in bank.made.homes:
        (home.vault / "reaches").write_text(DAYS[5].isoformat())
    _, outcome = bank.run(bank.sign(later))
    assert isinstance(outcome, JobOutcome) and outcome.answer is not None
    assert outcome.summary["as_of"] == DAYS[4].isoformat()
    for row in outcome.answer["parts"][0]["rows"]:
        day, state = row["of"]
        t = [d.isoformat() for d in DAYS].index(day)
        truth = sum(a[t] == (state == "active") for own in bank.lives for _, a in own.values())
        number = row["customers"]
        half = max(number["high"] - number["value"], number["value"] - number["low"])
        assert t in (3, 4) and abs(number["value"] - truth) <= 5 / 1.96 * half
    with pytest.raises(BadInput, match="has no as_of"):
        bank.contract.model_copy(update={"as_of": None}).on(AS_OF)


def test_rows_that_change_meanwhile_are_told_within_the_bound(bank: Bank) -> None:
    signed = bank.sign()
    bank.run(signed)
    # A branch loads the past anew: all who were active were not, some customers are gone, others are new.
    own = bank.lives[0]
    after = {c: (town, [not a for a in active]) for c, (town, active) in list(own.items())[:40]}
    after |= {f"new-{i}": ("elm", [True] * MONTHS) for i in range(10)}
    folder = bank.home.path / "anew"
    folder.mkdir()
    write(folder, after)
    for vault in bank.vaults.values():
        vault._store.close()
    home = bank.made.homes[0]
    keyring = home.open_keyring((home.path / "passphrase").read_text())
    with contextlib.closing(Store.open(home.store, bank.contract, keyring)) as store:
        for table in ("customers", "visits"):
            ingest(open_source(folder / f"{table}.csv"), table, bank.contract, store, mode="replace")
    bank.vaults = {}
    bank.restart()
    bank.reach(DAYS[3])
    _, outcome = bank.run(signed)
    assert isinstance(outcome, JobOutcome) and outcome.answer is not None
    truth: Counter[tuple[str, str]] = Counter()
    for b, branch in enumerate(bank.lives):
        for c, (town, active) in branch.items():
            state, left = active[0], 1
            for t in range(4):
                if b == 0 and t == 3 and c not in after:
                    break  # let go
                there = after[c][1][t] if b == 0 and t == 3 else active[t]
                if there != state and left:
                    state, left = there, left - 1
            else:
                truth[town, "active" if state else "quiet"] += 1
    truth["elm", "active"] += 10
    day = DAYS[3].isoformat()
    groups = next(p for p in outcome.answer["parts"] if p["name"] == "groups")
    for row in groups["rows"]:
        town, until, state = row["of"]
        if until == day:
            number = row["customers"]
            half = max(number["high"] - number["value"], number["value"] - number["low"])
            assert abs(number["value"] - truth[town, state]) <= 5 / 1.96 * half, (row["of"], truth)
