"""A run that was cut short goes on from its last finished round: nothing is charged twice, and what comes out is what
an uninterrupted run would have made of the same totals."""

import contextlib
import math
import shutil
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sfumato.common import codec, fixed_point, messages
from sfumato.common.analyses import catalogue
from sfumato.common.analyses.analysis import NoisySum
from sfumato.common.enrolment import Enrolment, ed25519_text
from sfumato.common.errors import BadInput, SfumatoError, Unavailable
from sfumato.common.job import AnalysisJob, AnyJob, ChurnNetJob, LearnerJob, SignedJob, sign_job
from sfumato.lab.in_process import InProcessExchange
from sfumato.privacy import secure_sum
from sfumato.privacy.audit import SumEvidence
from sfumato.privacy.ledger import Entry, Ledger
from sfumato.server import journal
from sfumato.server.conversation import BranchRecord, JobFailed
from sfumato.server.exchange import Gathered
from sfumato.server.home import Branch, CoordinatorHome
from sfumato.server.interrupted import find_interrupted, give_up, job_to_resume, waiting_run
from sfumato.server.job_run import JobOutcome
from sfumato.server.learning import learn
from sfumato.server.results import run_job
from sfumato.server.rounds import Rounds
from sfumato.server.run_files import INTERRUPTED, JOURNAL, read_result, results
from sfumato.server.training import train

pytestmark = pytest.mark.slow

BRANCHES = 4
Asked = dict[tuple[str, int], list[bytes]]  # the questions of each sort and round, in order


class Killed(BaseException):
    """kill -9: nothing of what the coordinator would do about it counts."""


@dataclass
class Kill:
    """When the coordinator dies: at the question of this sort and round, before anybody hears it, when half of the
    branches have answered, or when all have and nothing is kept yet."""

    question: str
    round: int
    moment: str
    at: Callable[[], None] = lambda: None


class Watched(InProcessExchange):
    """Writes down what is asked, and dies as it is told."""

    def __init__(self, branches: Mapping[int, Any], kill: Kill | None) -> None:
        super().__init__(branches)
        self.asked: Asked = {}
        self._kill = kill

    def ask(self, frames: Mapping[int, bytes], *, timeout: float) -> Gathered:
        frame = next(iter(frames.values()))
        question, _ = codec.decode(frame, "question")
        key = (question.type, getattr(question, "round", 0))
        self.asked.setdefault(key, []).append(frame)
        kill = self._kill
        if kill is None or (kill.question, kill.round) != key:
            return super().ask(frames, timeout=timeout)
        heard = {"before": 0, "half": len(frames) // 2, "after": len(frames)}[kill.moment]
        super().ask(dict(list(frames.items())[:heard]), timeout=timeout)
        kill.at()
        raise Killed


@dataclass
class Ended:
    """One run: its directory, what it ended with, what was asked, what was told."""

    directory: Path
    outcome: JobOutcome | BaseException
    asked: Asked
    events: list[dict[str, Any]] = field(default_factory=list)
    rounds: Rounds | None = None

    @property
    def number(self) -> int:
        return int(self.directory.name)


@dataclass
class Desk:
    """A coordinator's directory, and runs in it over the village's vaults."""

    village: Any
    home: CoordinatorHome
    ledgers: dict[int, Ledger]
    away: set[int] = field(default_factory=set)

    def sign(self, job: AnyJob, *, valid_for: timedelta = timedelta(hours=1)) -> SignedJob:
        return sign_job(job, self.village.contract, self.village.key, valid_for=valid_for)

    @property
    def runs(self) -> Path:
        return self.home.directory("runs")

    @property
    def branches(self) -> dict[int, Branch]:
        keys = {n: ed25519_text(ledger.public_key) for n, ledger in self.ledgers.items()}
        return {
            n: Branch(Enrolment.model_construct(name=self.village.names[n], ledger_public_key=key), node_id=n)
            for n, key in keys.items()
        }

    def run(self, signed: SignedJob, kill: Kill | None = None, *, resumes: int | None = None) -> Ended:
        """A run as the executor runs it, less the network. Where it is killed, the directory stays as it was then,
        and the next coordinator finds it so. `resumes` is the run that it must go on from."""
        assert waiting_run(self.runs, signed) == resumes
        directory = self.runs / str(len(list(self.runs.iterdir())) + 1)
        directory.mkdir(mode=0o700)
        then = self.home.path / f"then-{directory.name}"
        if kill is not None:
            kill.at = lambda: shutil.copytree(directory, then)
        vaults = {n: self._ears(n) for n in self.village.vaults}
        exchange, events = Watched(vaults, kill), []
        ended = Ended(directory, Killed(), exchange.asked, events)
        with self._ledger() as ledger:
            try:
                ended.outcome = run_job(
                    exchange,
                    signed,
                    branches=self.branches,
                    out_dir=directory,
                    report=events.append,
                    ledger=ledger,
                    cosigned=self.home.cosigned,
                )
            except SfumatoError as e:
                ended.outcome = e
            except Killed:
                shutil.rmtree(directory)
                then.rename(directory)
                assert directory.name in [str(n) for n in find_interrupted(self.runs, ledger)]
        return ended

    def _ears(self, node: int) -> Callable[[bytes], bytes | None]:
        return lambda frame: None if node in self.away else self.village.vaults[node].answer(frame)

    def _ledger(self) -> Any:
        return contextlib.closing(self.home.open_ledger())

    # --- what the branches say ---------------------------------------------------------------------------

    def charges(self, signed: SignedJob, node: int) -> list[Entry]:
        return self.ledgers[node].entries("charge", job_id=signed.job_id)

    def times_charged(self, signed: SignedJob, node: int) -> Counter[tuple[str, int]]:
        return Counter((e.body["what"], e.body["round"]) for e in self.charges(signed, node))

    def open_at(self, signed: SignedJob) -> set[int]:
        """Branches that hold what they reserved for the job."""
        kinds = {
            n: [e.kind for e in ledger.entries(job_id=signed.job_id)] for n, ledger in self.ledgers.items()
        }
        return {n for n, found in kinds.items() if "reserve" in found and "close" not in found}


@pytest.fixture(scope="module")
def village(make_village: Callable[[int], Any]) -> Any:
    return make_village(BRANCHES)


@pytest.fixture(scope="module")
def coordinator(tmp_path_factory: pytest.TempPathFactory) -> CoordinatorHome:
    path = tmp_path_factory.mktemp("resume") / "coordinator"
    return CoordinatorHome.init(path, host="127.0.0.1", port=9092, session_port=9093)


@pytest.fixture(scope="module")
def ledgers(village: Any) -> dict[int, Ledger]:
    return {n: village.ledger(n) for n in village.vaults}


@pytest.fixture
def desk(village: Any, coordinator: CoordinatorHome, ledgers: dict[int, Ledger]) -> Iterator[Desk]:
    yield Desk(village, coordinator, ledgers)
    for waiting in coordinator.directory("runs").iterdir():
        give_up(waiting.parent, int(waiting.name))


def local_net(village: Any) -> ChurnNetJob:
    job = village.net()
    return job.model_copy(
        update={
            "privacy": job.privacy.model_copy(update={"mode": "local"}),
            "training": job.training.model_copy(update={"rounds": 2, "local_steps": 2}),
        }
    )


def trees(village: Any) -> LearnerJob:
    net = village.net()
    return LearnerJob.model_validate(
        {
            "name": "trees",
            "kind": "boosted-trees",
            "purpose": "Who leaves the village?",
            "contract": "village",
            "privacy": {"target_epsilon": 20.0, "delta": 1e-5, "mode": "secure-sum"},
            "federation": net.federation.model_dump(),
            "audit": net.audit.model_dump(),
            "learner": {"rounds": 3},
        }
    )


def portrait(village: Any, mode: str) -> AnalysisJob:
    job = village.job()
    return job.model_copy(update={"privacy": job.privacy.model_copy(update={"mode": mode})})


# --- what an uninterrupted run would have made of it ---------------------------------------------------------


SORTS = {"size": "count", "weights": "train", "score-histogram": "evaluate", "share": "sum", "sum": "sum"}


def stored(ledger: Path, job_id: str) -> list[tuple[messages.ReleasedAnswer, Any]]:
    with contextlib.closing(sqlite3.connect(ledger, timeout=30)) as connection:
        rows = list(connection.execute("SELECT answer FROM answers WHERE job_id = ?", (job_id,)))
    return [codec.decode(frame, "answer") for (frame,) in rows]  # type: ignore[misc]


class Told(Rounds):
    """Rounds of which the branches' ledgers say what came out."""

    def __init__(self, desk: Desk, signed: SignedJob, asked: Asked, evidence: Iterable[SumEvidence]) -> None:
        super().__init__(InProcessExchange({}), signed, lambda _: None)
        self._std = {e.round: e.std for e in evidence}
        self.branches = {n: BranchRecord(name, n) for n, name in desk.village.names.items()}
        self._desk, self._asked_for = desk, asked

    def _answers(self, kind: str, round_: int, body: Any) -> dict[int, Any]:
        """What each branch has stored as its answer to the last question of this round, if that is asked here too."""
        question, sent = codec.decode(self._asked_for[kind, round_][-1], "question")
        assert (sent is None and body is None) or np.array_equal(sent, body), (kind, round_)
        members = secure_sum.set_hash(question.members) if getattr(question, "members", ()) else None
        found = {}
        for n, home in enumerate(self._desk.village.homes, 1):
            for message, vector in stored(home.ledger, self.signed.job_id):
                if (SORTS[message.what], message.round, message.members) == (kind, round_, members):
                    found[n] = vector
        return found

    def total(self, round_: int, length: int, body: Any = None, *, bins: Any = None) -> NoisySum:
        ask = self.plan.ask(round_)
        answers = self._answers("sum", round_, body)
        sums = 1 if self.job.privacy.mode == "secure-sum" else len(answers)
        whole = fixed_point.add(answers.values())[:length]
        return NoisySum(fixed_point.decode(whole, ask.max_norm), self._std[round_] * math.sqrt(sums))

    def released(self, question: Any, body: Any, what: Any, *, round_: int, length: int) -> dict[int, Any]:
        return self._answers(question.type, getattr(question, "round", 0), body)

    def report_progress(self, *_: Any) -> None: ...


def assert_as_if_never_cut(desk: Desk, signed: SignedJob, runs: list[Ended]) -> None:
    """What was published is what the totals that the vaults still have give, by the job's arithmetic alone."""
    asked: Asked = {}
    for run in runs:
        asked.update(run.asked)
    job, outcome = signed.job, runs[-1].outcome
    assert isinstance(outcome, JobOutcome)
    told = Told(desk, signed, asked, outcome.evidence)
    if isinstance(job, AnalysisJob):
        analysis = catalogue.build(job.kind, job.question, signed.contract)
        assert outcome.answer == analysis.read([told.total(0, analysis.length(0))])
        return
    again = learn(told, job) if isinstance(job, LearnerJob) else train(told, job)
    assert outcome.model is not None and outcome.histogram is not None
    assert set(outcome.model.tensors) == set(again.tensors)
    for name, tensor in outcome.model.tensors.items():
        assert tensor.tobytes() == np.asarray(again.tensors[name]).tobytes(), name
    assert outcome.histogram.tobytes() == again.histogram.tobytes()


def assert_finished(desk: Desk, run: Ended, signed: SignedJob, *, resumed: int) -> None:
    assert isinstance(run.outcome, JobOutcome), run.outcome
    result = read_result(run.directory)
    assert (result["state"], result["resumes"], result["open_at"]) == ("finished", resumed, [])
    assert not (run.directory / JOURNAL).exists()
    with desk._ledger() as ledger:
        (start,) = [e for e in ledger.entries("start") if e.body["run"] == run.directory.name]
        (end,) = [e for e in ledger.entries("end") if e.body["run"] == run.directory.name]
        assert ledger.verify() > 0
    assert (start.body["resumes"], end.body["state"]) == (str(resumed), "finished")
    assert not desk.open_at(signed)
    assert all(not r["open_at"] for d, r in results(desk.runs) if r["job_id"] == signed.job_id)


JOBS: dict[str, tuple[Callable[[Any], AnyJob], dict[tuple[str, int], int]]] = {
    # What each branch is charged for, in all; secure sums as `share`.
    "net": (lambda v: v.net(), {("share", r): 1 for r in range(5)}),
    "trees": (trees, {("share", r): 1 for r in range(5)}),
    "local-net": (
        local_net,
        {("size", 0): 1, ("weights", 1): 1, ("weights", 2): 1, ("score-histogram", 2): 1},
    ),
    "portrait": (lambda v: portrait(v, "secure-sum"), {("share", 0): 1}),
    "local-portrait": (lambda v: portrait(v, "local"), {("sum", 0): 1}),
}
KILLS = [
    ("net", "sum", 0, "before"),
    ("net", "sum", 2, "half"),
    ("net", "sum", 4, "after"),
    ("net", "close-job", 0, "half"),
    ("trees", "sum", 2, "half"),
    ("local-net", "train", 2, "half"),
    ("portrait", "sum", 0, "half"),
    ("local-portrait", "sum", 0, "half"),
]


@pytest.mark.parametrize(("name", "question", "round_", "moment"), KILLS)
def test_killed_at_any_moment_it_goes_on(
    desk: Desk, name: str, question: str, round_: int, moment: str
) -> None:
    make, paid = JOBS[name]
    signed = desk.sign(make(desk.village))
    first = desk.run(signed, Kill(question, round_, moment))
    assert isinstance(first.outcome, Killed)
    result = read_result(first.directory)
    assert (result["state"], result["reason"]) == ("failed", INTERRUPTED)
    assert job_to_resume(desk.runs, first.number) == signed
    assert desk.open_at(signed) == ({3, 4} if question == "close-job" else {1, 2, 3, 4})

    second = desk.run(signed, resumes=first.number)
    assert_finished(desk, second, signed, resumed=first.number)
    for n in desk.village.vaults:
        assert desk.times_charged(signed, n) == paid, n
    kept = {
        k for k in first.asked if k != (question, round_) and k[0] not in ("open-job", "roster", "close-job")
    }
    assert not kept & set(second.asked), "what came out is not asked for again"
    if question != "close-job":
        assert second.asked[question, round_] == first.asked[question, round_], "word for word"
    assert_as_if_never_cut(desk, signed, [first, second])
    assert second.outcome.summary["sums"] == sum(k[0] in ("share", "sum") for k in paid)
    with pytest.raises(BadInput, match=f"run {first.number} was resumed as run {second.number}"):
        job_to_resume(desk.runs, first.number)


def test_cut_short_again_and_again(desk: Desk) -> None:
    """Each run leaves the journal where the next finds it; also one for which too few branches are back."""
    signed = desk.sign(desk.village.net())
    runs = [desk.run(signed, Kill("sum", 1, "half"))]
    runs.append(desk.run(signed, Kill("sum", 1, "after"), resumes=runs[-1].number))
    desk.away = {1, 2}
    runs.append(desk.run(signed, resumes=runs[-1].number))
    assert isinstance(runs[-1].outcome, JobFailed) and "opened the job" in runs[-1].outcome.message
    assert runs[-1].events[-1]["resumable"] is True
    desk.away = set()
    runs.append(desk.run(signed, resumes=runs[-1].number))
    assert_finished(desk, runs[-1], signed, resumed=runs[-2].number)
    for n in desk.village.vaults:
        assert desk.times_charged(signed, n) == JOBS["net"][1]
    assert_as_if_never_cut(desk, signed, runs)
    per_branch = {b["name"]: b["rounds_answered"] for b in read_result(runs[-1].directory)["per_branch"]}
    assert per_branch == dict.fromkeys(desk.village.names.values(), 5)


# --- meanwhile -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("moment", "restarted"), [("half", [1]), ("before", [1, 2, 3, 4])])
def test_vaults_restart_meanwhile_and_none_is_charged_twice(
    desk: Desk, moment: str, restarted: list[int]
) -> None:
    """One that had answered has its answer still. Where none had, the set is asked by its new roster."""
    signed = desk.sign(desk.village.net())
    first = desk.run(signed, Kill("sum", 2, moment))
    for n in restarted:
        desk.village.restart(n)
    second = desk.run(signed, resumes=first.number)
    assert_finished(desk, second, signed, resumed=first.number)
    for n in desk.village.vaults:
        assert desk.times_charged(signed, n) == JOBS["net"][1]
    assert_as_if_never_cut(desk, signed, [first, second])
    assert not [e for e in second.events if e["event"] == "repeat"]


def test_a_vault_that_restarts_before_it_answered_costs_the_others_a_repeat(desk: Desk) -> None:
    signed = desk.sign(desk.village.net())
    first = desk.run(signed, Kill("sum", 2, "half"))
    desk.village.restart(4)
    second = desk.run(signed, resumes=first.number)
    assert_finished(desk, second, signed, resumed=first.number)
    lost = desk.village.names[4]
    assert [(e["round"], e["without"]) for e in second.events if e["event"] == "repeat"] == [(2, [lost])]
    for n in desk.village.vaults:
        assert desk.times_charged(signed, n)["share", 2] == (0 if n == 4 else 2)
        assert desk.times_charged(signed, n)["share", 3] == 1, "it is back in the next round"
    assert_as_if_never_cut(desk, signed, [first, second])


def test_a_branch_that_is_not_back_is_left_out_of_a_repeat_charged_once(desk: Desk) -> None:
    signed = desk.sign(desk.village.net())
    first = desk.run(signed, Kill("sum", 2, "half"))
    desk.away = {4}
    second = desk.run(signed, resumes=first.number)
    assert isinstance(second.outcome, JobOutcome)
    lost = desk.village.names[4]
    assert [(e["round"], e["without"]) for e in second.events if e["event"] == "repeat"] == [(2, [lost])]
    answered = {1: 2, 2: 2, 3: 1, 4: 0}  # of the first question two had answered
    for n, times in answered.items():
        assert desk.times_charged(signed, n)["share", 2] == times, n
        assert desk.times_charged(signed, n)["share", 1] == 1
    records = {b["name"]: b for b in read_result(second.directory)["per_branch"]}
    assert records[lost]["rounds_answered"] == 2, "what it did before is not forgotten"
    assert read_result(second.directory)["open_at"] == [lost]
    assert_as_if_never_cut(desk, signed, [first, second])


def test_a_branch_that_is_not_back_still_counts_where_it_answered(desk: Desk) -> None:
    """Local: what it released before the restart is part of the first averages, and its size of the weights."""
    signed = desk.sign(local_net(desk.village))
    first = desk.run(signed, Kill("train", 2, "before"))
    desk.away = {2}
    second = desk.run(signed, resumes=first.number)
    assert isinstance(second.outcome, JobOutcome)
    for n in desk.village.vaults:
        assert desk.times_charged(signed, n)["weights", 1] == 1
        assert desk.times_charged(signed, n)["weights", 2] == (n != 2)
    assert_as_if_never_cut(desk, signed, [first, second])
    assert len({s.members for s in second.outcome.evidence}) == BRANCHES


def test_a_set_that_had_shrunk_is_asked_as_it_was_and_then_is_whole_again(desk: Desk) -> None:
    signed = desk.sign(desk.village.net())
    desk.away = set()
    kill = Kill("sum", 2, "half")
    ears = desk._ears
    desk._ears = lambda n: (  # type: ignore[method-assign]
        lambda frame: None if n == 4 and codec.decode(frame, "question")[0].type == "sum" else ears(n)(frame)
    )
    first = desk.run(signed, kill)
    desk._ears = ears  # type: ignore[method-assign]
    second = desk.run(signed, resumes=first.number)
    assert_finished(desk, second, signed, resumed=first.number)
    sets = {
        r: len(codec.decode(frames[-1], "question")[0].members)
        for (_, r), frames in second.asked.items()
        if _ == "sum"
    }
    assert sets == {2: 3, 3: 4, 4: 4}
    for n in desk.village.vaults:
        charged = desk.times_charged(signed, n)
        assert [charged["share", r] for r in range(5)] == ([0, 0, 0, 1, 1] if n == 4 else [2, 1, 1, 1, 1])
    assert_as_if_never_cut(desk, signed, [first, second])


def test_other_jobs_leave_it_open_until_it_is_given_up(desk: Desk) -> None:
    signed, other = desk.sign(desk.village.net()), desk.sign(portrait(desk.village, "local"))
    first = desk.run(signed, Kill("sum", 0, "half"))
    assert isinstance(desk.run(other).outcome, JobOutcome)
    assert desk.open_at(signed) == {1, 2, 3, 4} and job_to_resume(desk.runs, first.number) == signed
    assert give_up(desk.runs, first.number) and not give_up(desk.runs, first.number)
    with pytest.raises(BadInput, match="has no journal: it was given up"):
        job_to_resume(desk.runs, first.number)
    desk.run(desk.sign(portrait(desk.village, "local")))
    assert not desk.open_at(signed)
    assert read_result(first.directory)["open_at"] == []


def test_a_coordinator_that_is_stopped_leaves_the_job_open(desk: Desk) -> None:
    """Not killed: what it does about a signal counts."""
    signed = desk.sign(desk.village.net())
    run = desk.runs / str(len(list(desk.runs.iterdir())) + 1)
    run.mkdir()
    vaults = {n: v.answer for n, v in desk.village.vaults.items()}
    events: list[dict[str, Any]] = []
    with desk._ledger() as ledger:
        with pytest.raises(Killed):
            run_job(
                Watched(vaults, Kill("sum", 2, "half")),
                signed,
                branches=desk.branches,
                out_dir=run,
                report=events.append,
                ledger=ledger,
                cosigned=desk.home.cosigned,
            )
        (end,) = [e for e in ledger.entries("end") if e.body["run"] == run.name]
    assert end.body["state"] == "interrupted"
    assert (events[-1]["reason"], events[-1]["resumable"]) == (INTERRUPTED, True)
    assert sorted(read_result(run)["open_at"]) == sorted(desk.village.names.values())
    assert desk.open_at(signed) == {1, 2, 3, 4}
    assert job_to_resume(desk.runs, int(run.name)) == signed


# --- what is refused -----------------------------------------------------------------------------------------


def test_a_journal_that_is_damaged_is_refused(desk: Desk) -> None:
    """Nobody is asked anything, and the journal stays where it is. What else damage can be: test_journal.py."""
    signed = desk.sign(desk.village.net())
    first = desk.run(signed, Kill("sum", 1, "before"))
    entry = first.directory / JOURNAL / "000002"
    whole = entry.read_bytes()
    entry.write_bytes(whole[:-1])
    refused = desk.run(signed, resumes=first.number)
    assert isinstance(refused.outcome, BadInput) and "the journal is damaged" in refused.outcome.message
    result = read_result(refused.directory)
    assert (result["state"], result["reason"], refused.asked) == ("failed", refused.outcome.message, {})
    entry.write_bytes(whole)
    last = desk.run(signed, resumes=first.number)
    assert_finished(desk, last, signed, resumed=first.number)
    for n in desk.village.vaults:
        assert desk.times_charged(signed, n) == JOBS["net"][1]
    once_more = desk.run(signed)
    assert (
        isinstance(once_more.outcome, BadInput) and "this job ran before, as run" in once_more.outcome.message
    )


def test_what_cannot_be_resumed_is_said(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadInput, match="no result of a job here"):
        job_to_resume(desk.runs, 10**6)
    done = desk.run(desk.sign(portrait(desk.village, "local")))
    with pytest.raises(BadInput, match="has finished"):
        job_to_resume(desk.runs, done.number)
    desk.away = {1, 2}
    failed = desk.run(desk.sign(desk.village.net()))
    desk.away = set()
    with pytest.raises(BadInput, match=r"was not cut short, it failed \(only 2 of at least 3"):
        job_to_resume(desk.runs, failed.number)
    short = desk.sign(desk.village.net(), valid_for=timedelta(minutes=5))
    first = desk.run(short, Kill("sum", 1, "half"))
    later = datetime.now(UTC) + timedelta(minutes=6)

    class Later(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return later

    monkeypatch.setattr("sfumato.server.interrupted.datetime", Later)
    with pytest.raises(BadInput, match="its job expired at"):
        job_to_resume(desk.runs, first.number)
    with desk._ledger() as ledger:
        assert first.number not in find_interrupted(desk.runs, ledger)
    assert not (first.directory / JOURNAL).exists(), "of no use to anybody"


def test_a_full_disk_cuts_a_run_short(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    signed, written = desk.sign(desk.village.net()), journal.write_whole

    def full(path: Path, content: bytes) -> None:
        if path.name == "000004":
            raise OSError(28, "No space left on device")
        written(path, content)

    monkeypatch.setattr(journal, "write_whole", full)
    first = desk.run(signed)
    assert isinstance(first.outcome, Unavailable) and "No space left" in first.outcome.message
    monkeypatch.setattr(journal, "write_whole", written)
    second = desk.run(signed, resumes=first.number)
    assert_finished(desk, second, signed, resumed=first.number)
    for n in desk.village.vaults:
        assert desk.times_charged(signed, n) == JOBS["net"][1]
