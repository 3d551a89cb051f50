"""An analysis over branches' customers with the noise that its job would get, and whether its intervals hold.

Contributions, clipping on the grid and noise multipliers are the real ones; shares and masks are left out (they add
up to the same total), and the noise is drawn from the Gaussian that the discrete one cannot be told from.
"""

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sfumato.client.features import analysis_frame
from sfumato.client.ingest.load import ingest, open_source
from sfumato.client.vault.store import Store
from sfumato.common.analyses import catalogue
from sfumato.common.analyses.analysis import NoisySum, SavesModel
from sfumato.common.analyses.standing import Standing
from sfumato.common.contract import Contract, load_contract
from sfumato.common.contributions import Contributions
from sfumato.common.fixed_point import GRID, add, decode
from sfumato.common.job import AnalysisJob, Job
from sfumato.lab.samplebank import SampleBank
from sfumato.privacy.clipping import BoundedSum
from sfumato.privacy.keys import EphemeralKeys
from sfumato.privacy.plan import Ask, Plan

DATA = Path(__file__).resolve().parent.parent.parent / "shared" / "data"
EPSILONS = (0.5, 1.0, 2.0)
DELTA = 1e-5

Columns = Mapping[str, Any]
Pairs = Iterator[tuple[str, Mapping[str, float], float]]  # what it is, the number shown, the truth
Drawn = Callable[[float, np.random.Generator], Mapping[str, Any]]  # by epsilon
_NOTHING: Mapping[str, Any] = {}


@dataclass(frozen=True)
class Case:
    """One question over one set. `branches` are the columns that the analysis reads, a mapping a branch; `pairs`
    holds every number of an answer against the same number on the pooled data without privacy."""

    name: str
    contract: Contract
    kind: Any
    question: Mapping[str, Any]
    branches: tuple[Columns, ...]
    pairs: Callable[[Mapping[str, Any]], Pairs]
    drawn: Drawn | None = None  # more of the question, which an earlier job left: anew for every seed
    repeats: int | None = None  # as the job reserves them

    def job(self, epsilon: float, more: Mapping[str, Any] = _NOTHING) -> AnalysisJob:
        return AnalysisJob.model_validate(
            {
                "name": "benchmark",
                "kind": self.kind,
                "purpose": "to measure an analysis",
                "contract": self.contract.name,
                "privacy": {"mode": "secure-sum", "target_epsilon": epsilon, "delta": DELTA, "colluders": 1},
                "federation": {"min_branches": max(3, len(self.branches)), "repeats": self.repeats},
                "question": {**self.question, **more},
            }
        )


@dataclass(frozen=True)
class Bar:
    """A bar of the catalogue: what was wanted, what was seen."""

    name: str
    wanted: str
    seen: str
    holds: bool


@dataclass
class Score:
    """How often intervals held the truth, by what they are of."""

    held: dict[str, list[bool]] = field(default_factory=dict)

    def hold(self, what: str, number: Mapping[str, float], truth: float) -> None:
        slack = 1e-6 * max(abs(truth), 1.0)  # the grid: a customer adds a whole number of steps
        held = number["low"] - slack <= truth <= number["high"] + slack
        self.held.setdefault(what, []).append(held)

    @property
    def all(self) -> list[bool]:
        return [h for held in self.held.values() for h in held]


def answers(case: Case, epsilon: float, seeds: int, *, start: int = 0) -> Iterator[dict[str, Any]]:
    """The answers of `seeds` jobs, each with its own noise. Beside an answer what was drawn for its question and,
    where it is a model, too, `saved` to be called for that."""
    known: list[npt.NDArray[np.float64]] = []
    for seed in range(start, start + seeds):
        rng = np.random.default_rng([seed, round(1000 * epsilon)])
        more = case.drawn(epsilon, rng) if case.drawn else {}
        if not known or more:
            job = case.job(epsilon, more)
            analysis, plan = (
                catalogue.build(job.kind, job.question, case.contract),
                Plan.of(job, case.contract),
            )
            if isinstance(analysis, Standing):
                known = _told(case, analysis, plan)
            else:
                known = [_total(case, analysis, plan, 0, None)]
        totals: list[NoisySum] = []
        for round_ in range(len(analysis.shares)):
            asked = analysis.ask(round_, totals)
            fresh = asked is not None or round_ >= len(known)
            total = _total(case, analysis, plan, round_, asked) if fresh else known[round_]
            ask = plan.ask(round_)
            totals.append(noisy(total, job, case.contract, ask, len(case.branches), rng))
        model = {"saved": partial(analysis.saved, totals)} if isinstance(analysis, SavesModel) else {}
        yield {**analysis.read(totals), **more, **model}


def noisy(
    total: npt.NDArray[np.float64],
    job: Job,
    contract: Contract,
    ask: Ask,
    branches: int,
    rng: np.random.Generator,
) -> NoisySum:
    """A total of so many branches with its job's noise."""
    variance = (ask.noise_multiplier * GRID * contract.max_branches_per_customer) ** 2
    std = math.sqrt(variance / (branches - job.privacy.colluders) * branches) * ask.max_norm / GRID
    return NoisySum(total + std * rng.standard_normal(total.size), std)


def exact(case: Case) -> dict[str, Any]:
    """The answer with next to no noise: where reading is what is to be checked, and not the counting."""
    job = case.job(1.0)
    analysis = catalogue.build(job.kind, job.question, case.contract)
    plan, totals = Plan.of(job, case.contract), list[NoisySum]()
    for round_ in range(len(analysis.shares)):
        asked = analysis.ask(round_, totals)
        totals.append(NoisySum(_total(case, analysis, plan, round_, asked), 1e-9))
    return analysis.read(totals)


def _total(
    case: Case, analysis: Any, plan: Plan, round_: int, asked: npt.NDArray[np.float32] | None
) -> npt.NDArray[np.float64]:
    bound = plan.ask(round_).max_norm
    return total_of((analysis.contribute(round_, c, asked) for c in case.branches), bound)


def _told(case: Case, analysis: Standing, plan: Plan) -> list[npt.NDArray[np.float64]]:
    """The periods' totals of a standing question, each branch going on from what it told before."""
    paths, totals = analysis.paths, []
    before = [paths.nothing(len(next(iter(c.values())))) for c in case.branches]
    for t in range(len(analysis.shares)):
        now = [
            paths.tell(b, analysis.states(t, columns))
            for b, columns in zip(before, case.branches, strict=True)
        ]
        apart = 1 if t else None
        cells = (paths.contribution(t, apart, b, n) for b, n in zip(before, now, strict=True))
        totals.append(total_of(cells, plan.ask(t).max_norm))
        before = now
    return totals


def total_of(contributions: Iterable[Contributions], bound: float) -> npt.NDArray[np.float64]:
    """What the branches' contributions add up to, each customer's vector within the bound and on the grid."""
    return np.asarray(decode(add(BoundedSum.of(c, bound).total for c in contributions), bound))


def coverage(case: Case, epsilon: float, seeds: int) -> Score:
    """Ask `seeds` times and hold every number against its truth."""
    score = Score()
    for answer in answers(case, epsilon, seeds):
        for what, number, truth in case.pairs(answer):
            score.hold(what, number, truth)
    return score


def split(columns: Columns, branches: int) -> tuple[Columns, ...]:
    """These customers over so many branches, by a fixed hash of their number."""
    rows = len(next(iter(columns.values())))
    home = [int.from_bytes(hashlib.sha256(b"%d" % n).digest()[:8]) % branches for n in range(rows)]
    return by_branch(columns, np.array(home))


def by_branch(columns: Columns, home: npt.NDArray[Any]) -> tuple[Columns, ...]:
    """These customers, each at the branch that `home` names."""

    def at(branch: Any) -> Columns:
        mask = pa.array(home == branch)
        return {name: pa.chunked_array(values).filter(mask) for name, values in map(_arrow, columns.items())}

    return tuple(map(at, np.unique(home)))


def _arrow(item: tuple[str, Any]) -> tuple[str, Any]:
    name, values = item
    if isinstance(values, pa.ChunkedArray):
        return name, values.chunks or pa.chunked_array([values.combine_chunks()]).chunks
    return name, [values if isinstance(values, pa.Array) else pa.array(values)]


def pooled(branches: Sequence[Columns]) -> dict[str, Any]:
    """All branches' customers side by side, as pyarrow columns."""
    chunks: dict[str, list[Any]] = {name: [] for name in branches[0]}
    for branch in branches:
        for name, values in map(_arrow, branch.items()):
            chunks[name] += values
    return {name: pa.chunked_array(parts) for name, parts in chunks.items()}


def bank_columns(bank: SampleBank, names: Sequence[str], directory: Path) -> tuple[Columns, ...]:
    """These columns of a sample bank's customers, as the vaults would read them, a mapping a branch."""
    contract = load_contract(bank.contract)
    return tuple(map(partial(_branch, contract, names, directory), bank.branches.values()))


def _branch(contract: Contract, names: Sequence[str], directory: Path, folder: Path) -> Columns:
    path = directory / f"{folder.name}.duckdb"
    store = Store.create(path, contract, EphemeralKeys())
    try:
        for table in contract.tables:
            file = next(p for p in folder.iterdir() if p.stem == table.name)
            ingest(open_source(file), table.name, contract, store)
        frame = analysis_frame(store, contract, names)
    finally:
        store.close()
        path.unlink()
    return {name: frame[name] for name in frame.column_names}
