"""Do a portrait's intervals hold the truth, and how far off are its counts? Prints a table.

Every branch's customers go through what a secure sum is made of: contributions, clipping on the grid, a share of the
discrete Gaussian; the shares are added (masks would cancel) and read. The truth is the pooled, exact count of
the same group. Beside it, what the same noise gives without least squares, merging and copies: plain counts.

    python benchmarks/portraits.py [--seeds 20] [--branches 16] [SET ...]

Needs the data beside the project (../shared/data), except for `sample_bank`, which is made up on the spot.
"""

import argparse
import hashlib
import math
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from sfumato.client.features import analysis_frame
from sfumato.client.ingest.load import ingest, open_source
from sfumato.client.vault.store import Store
from sfumato.common.analyses import profile
from sfumato.common.analyses.analysis import NoisySum
from sfumato.common.contract import Contract, load_contract
from sfumato.common.fixed_point import GRID, add, decode
from sfumato.common.job import AnalysisJob, load_job
from sfumato.lab.samplebank import generate
from sfumato.privacy.clipping import BoundedSum
from sfumato.privacy.keys import EphemeralKeys
from sfumato.privacy.noise import SecureRandom
from sfumato.privacy.plan import Plan

ROOT = Path(__file__).resolve().parent.parent
FILES = {
    "adult": "adult",
    "bank_churners": "bank_churners",
    "telco_ibm": "telco",
    "credit_default_tw": "credit_default_tw",
    "bank_branch_churn": "bank_branch_churn",
    "cell2cell": "cell2cell",
    "churn_modelling": "churn_modelling",
}
SAMPLE_BANK = "sample_bank"


@dataclass(frozen=True)
class Case:
    """One portrait to draw: its job, and the columns of each branch's customers."""

    name: str
    job: AnalysisJob
    contract: Contract
    branches: tuple[Mapping[str, Any], ...]


@dataclass
class Score:
    """How often intervals held the truth, by sort of group, and absolute errors of counts."""

    held: dict[str, list[bool]] = field(default_factory=lambda: defaultdict(list))
    errors: list[float] = field(default_factory=list)
    widths: list[float] = field(default_factory=list)
    plain: list[float] = field(default_factory=list)

    @property
    def all(self) -> list[bool]:
        return [h for held in self.held.values() for h in held]

    def rate(self, sort: str) -> str:
        held = self.held[sort]
        return f"{100 * np.mean(held):5.1f} ({len(held)})" if held else "-"


def asked(job: AnalysisJob, contract: Contract) -> profile.Profile:
    """The job's question over its contract."""
    analysis = profile.build(profile.Question.model_validate(job.question), contract)
    assert isinstance(analysis, profile.Profile)
    return analysis


def case_of(name: str, branches: int, directory: Path) -> Case | None:
    """None where the data is not at hand."""
    if name == SAMPLE_BANK:
        return _sample_bank(directory)
    path = ROOT.parent / "shared" / "data" / name / f"{FILES[name]}.parquet"
    if not path.exists():
        print(f"SKIPPED {name}: the data file is not beside the project")
        return None
    contract, job = _question(ROOT / "examples" / name)
    table = pq.read_table(path, columns=list(asked(job, contract).columns))
    rows = np.arange(len(table))
    home = np.array([int.from_bytes(hashlib.sha256(b"%d" % n).digest()[:8]) % branches for n in rows])
    return Case(
        name, job, contract, tuple(_columns(table.filter(pa.array(home == b))) for b in range(branches))
    )


def _question(folder: Path) -> tuple[Contract, AnalysisJob]:
    job = load_job(folder / "profile.toml")
    assert isinstance(job, AnalysisJob)
    return load_contract(folder / "contract.toml"), job


def _sample_bank(directory: Path) -> Case:
    bank = generate(directory / "bank")
    contract, job = _question(directory / "bank")
    branches = []
    for name, folder in bank.branches.items():
        store = Store.create(directory / f"{name}.duckdb", contract, EphemeralKeys())
        try:
            for table in contract.tables:
                file = next(p for p in folder.iterdir() if p.stem == table.name)
                ingest(open_source(file), table.name, contract, store)
            branches.append(_columns(analysis_frame(store, contract, asked(job, contract).columns)))
        finally:
            store.close()
    return Case(SAMPLE_BANK, job, contract, tuple(branches))


def _columns(table: pa.Table) -> dict[str, Any]:
    return {name: table[name] for name in table.column_names}


def noisy_totals(case: Case, seeds: int) -> Iterator[NoisySum]:
    """What the coordinator would have decoded, from fresh noise each time (of a seeded keystream)."""
    analysis, ask = asked(case.job, case.contract), Plan.of(case.job, case.contract).ask(0)
    sums = [BoundedSum.of(analysis.contribute(0, c, None), ask.max_norm) for c in case.branches]
    honest = len(sums) - case.job.privacy.colluders
    sensitivity = sums[0].l2_sensitivity * case.contract.max_branches_per_customer
    variance = math.ceil((ask.noise_multiplier * sensitivity) ** 2)
    share = math.ceil(variance / honest)
    std = math.sqrt(share * len(sums)) * ask.max_norm / GRID
    for seed in range(seeds):
        rng = SecureRandom(seed.to_bytes(32))
        total = add(s.total + rng.discrete_gaussian(s.total.size, share) for s in sums)
        yield NoisySum(decode(total, ask.max_norm), std)


def exact_counts(case: Case) -> npt.NDArray[np.float64]:
    """Everybody in one place, counted without noise: float64 [length]."""
    analysis = asked(case.job, case.contract)
    cells = np.concatenate([analysis.contribute(0, c, None).cells for c in case.branches])
    return np.bincount(cells[cells >= 0], minlength=analysis.length(0)).astype(np.float64)


def numbers(
    analysis: profile.Profile, answer: Mapping[str, Any], truth: npt.NDArray[np.float64]
) -> Iterator[tuple[str, Mapping[str, float], float]]:
    """Every number of an answer with what it is of and the exact one."""
    everyone = truth[list(analysis.tables[0].places)].sum()
    yield "total", answer["customers"], everyone
    for table, shown in zip(analysis.tables, answer["tables"], strict=True):
        place = {tuple(name): p for p, name in zip(table.places, table.names(table.places), strict=True)}
        for group in shown["groups"]:
            places = [place[tuple(cell)] for cell in group["cells"]]
            count = truth[places].sum()
            sort = "few" if "fewer_than" in group else "merged" if len(places) > 1 else "alone"
            yield sort, group["customers"], count
            yield "share", group["share"], count / everyone
            if "share_of_row" in group:
                row = next(r for r in table.rows() if places[0] in r)
                yield "share of row", group["share_of_row"], count / max(truth[list(row)].sum(), 1.0)


def score(
    analysis: profile.Profile, answer: Mapping[str, Any], truth: npt.NDArray[np.float64], into: Score
) -> None:
    """Hold every number of an answer against the exact counts."""
    for sort, number, count in numbers(analysis, answer, truth):
        slack = 1e-6 * max(count, 1.0)  # the grid: a customer adds a whole number of steps
        into.held[sort].append(number["low"] - slack <= count <= number["high"] + slack)
        if sort == "alone":
            into.errors.append(abs(number["value"] - count))
            into.widths.append(number["high"] - number["low"])


def measure(case: Case, seeds: int) -> Score:
    """Draw the portrait `seeds` times and score each."""
    analysis, truth, found = asked(case.job, case.contract), exact_counts(case), Score()
    for total in noisy_totals(case, seeds):
        found.plain += np.abs(total.values - truth).tolist()
        score(analysis, analysis.read([total]), truth, found)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sets", nargs="*", default=["adult", "bank_churners", SAMPLE_BANK])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--branches", type=int, default=16)
    arguments = parser.parse_args()
    unknown = set(arguments.sets) - {*FILES, SAMPLE_BANK}
    if unknown:
        parser.error(f"no set {min(unknown)!r}; there are {', '.join(sorted({*FILES, SAMPLE_BANK}))}")
    print("Intervals that hold the pooled truth, % (and how many); 95 % are promised. Errors in customers.")
    sorts = ("total", "alone", "merged", "few", "share", "share of row")
    print(
        "| set | branches | tables | epsilon | all | "
        + " | ".join(sorts)
        + " | mean error | interval | plain error |"
    )
    print("|---" * (8 + len(sorts)) + "|")
    with tempfile.TemporaryDirectory() as directory:
        for name in arguments.sets:
            case = case_of(name, arguments.branches, Path(directory))
            if case is None:
                continue
            found = measure(case, arguments.seeds)
            tables = len(asked(case.job, case.contract).tables)
            print(
                f"| {name} | {len(case.branches)} | {tables} | {case.job.privacy.target_epsilon:g} "
                f"| {100 * np.mean(found.all):.1f} ({len(found.all)}) | "
                + " | ".join(found.rate(sort) for sort in sorts)
                + f" | {np.mean(found.errors):.1f} | ±{np.mean(found.widths) / 2:.0f} | {np.mean(found.plain):.1f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
