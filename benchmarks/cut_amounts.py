"""Where a campaign cuts amounts, over many drawn trials: does the effect's interval hold what the whole amounts say?

Only the two noisy sums are drawn, and not a job: histogram, bound, cut sums and intervals are a campaign's own.
Beside it stands the rule that was here before: the largest bound that has twice the noise's customers above it.

    python benchmarks/cut_amounts.py [--draws 12]

Trials of real amounts need the data beside the project (../shared/data) and are skipped, loudly, where they are not.
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from math import sqrt

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
from analytics_harness import DATA

from sfumato.common.analyses import catalogue
from sfumato.common.analyses.analysis import NoisySum
from sfumato.common.analyses.campaign import Campaign
from sfumato.common.analyses.estimates import REACH
from sfumato.common.contract import Contract
from sfumato.common.contributions import Cells
from sfumato.common.learners.uplift import difference
from sfumato.common.learners.winsor import GRID, STEPS

Floats = npt.NDArray[np.float64]
Draw = Callable[[np.random.Generator, int], Floats]

STD = 5.25  # of a job's whole budget at epsilon 1, delta 1e-5, one reserved repeat, 1 colluder among 16 branches
DESIGNS = ((64_000, 0.01, 3), (30_000, 0.05, 2), (12_000, 0.3, 3))  # customers, buyers among them, arms
FAR = (1.0, 8.0)  # the contract's bound, over the largest amount of 5,000
TAILS: dict[str, Draw] = {
    "narrow lognormal": lambda rng, n: np.exp(0.7 * rng.standard_normal(n)),
    "lognormal": lambda rng, n: np.exp(rng.standard_normal(n)),
    "wide lognormal": lambda rng, n: np.exp(1.3 * rng.standard_normal(n)),
    "exponential": lambda rng, n: rng.exponential(1, n),
    "Pareto": lambda rng, n: rng.pareto(2.5, n) + 1,
    "Lomax": lambda rng, n: rng.pareto(3, n),
    "two sorts": lambda rng, n: np.where(rng.random(n) < 0.6, 1, np.exp(1 + 0.8 * rng.standard_normal(n))),
}
EFFECTS = ("no effect", "more buyers", "more small buyers", "larger amounts")
REAL = {
    "bank_branch_churn": ("current_balance", "current_month_credit", "current_month_debit"),
    "bank_marketing": ("balance",),
    "credit_default_tw": ("BILL_AMT1", "PAY_AMT1"),
    "give_me_some_credit": ("MonthlyIncome",),
    "santander_satisfaction": ("saldo_var30",),
}


@dataclass(frozen=True)
class Drawn:
    """Each customer's arm and what they spent, and the contract's bound."""

    arm: npt.NDArray[np.int64]
    spent: Floats
    most: float

    @property
    def arms(self) -> int:
        return int(self.arm.max()) + 1

    def analysis(self) -> Campaign:
        names = [f"arm {a}" for a in range(self.arms)]
        columns = [
            {"name": "id", "type": "string", "role": "customer_id"},
            {"name": "arm", "type": "category", "categories": names},
            {"name": "spent", "type": "number", "bounds": [0, self.most]},
        ]
        contract = Contract.model_validate(
            {
                "version": 1,
                "name": "drawn",
                "purpose": "to be measured",
                "tables": [{"name": "customers", "columns": columns}],
            }
        )
        question = {"treatment": "arm", "control": names[0], "outcomes": ["spent"]}
        found = catalogue.build("campaign", question, contract)
        assert isinstance(found, Campaign)
        return found


def trial(
    rng: np.random.Generator, design: tuple[int, float, int], draw: Draw, effect: str, far: float
) -> Drawn:
    """A treatment that does nothing, or makes more customers buy, or buy for more."""
    n, rate, arms = design
    sizes, arm = draw(rng, 5000), rng.integers(0, arms, n)
    bought = rng.random(n) < rate
    spent = np.where(bought, draw(rng, n), 0.0)
    more = (arm > 0) & ~bought & (rng.random(n) < 0.5 * rate)
    if effect == "more buyers":
        spent = np.where(more, draw(rng, n), spent)
    elif effect == "more small buyers":
        spent = np.where(more, np.minimum(draw(rng, n), np.median(sizes)), spent)
    elif effect == "larger amounts":
        spent = np.where(arm > 0, 1.5 * spent, spent)
    most = far * float(sizes.max())
    return Drawn(arm, np.minimum(spent, most), most)


def amounts() -> Iterator[Draw]:
    """To draw from columns of real sets."""
    for name, columns in REAL.items():
        for file in sorted((DATA / name).glob("*.parquet")):
            for column in set(columns) & set(pq.read_schema(file).names):
                found = np.asarray(pq.read_table(file, columns=[column])[column].to_numpy(), dtype=np.float64)
                yield partial(_pick, found[np.isfinite(found) & (found > 0)])


def _pick(values: Floats, rng: np.random.Generator, n: int) -> Floats:
    return rng.choice(values, n)


@dataclass
class Seen:
    """Over a sort of trials: how often the interval held, and its width over the one without privacy."""

    held: list[float]
    widths: list[float]
    widest: list[float]

    def __str__(self) -> str:
        middle, high = (float(np.exp(np.mean(np.log(w)))) for w in (self.widths, self.widest))
        return f"{100 * np.mean(self.held):.1f} | {middle:.2f} | {high:.2f}"


def measure(drawn: Drawn, rng: np.random.Generator, draws: int) -> Iterator[tuple[list[bool], list[float]]]:
    """By the former rule and by the one that is: of each draw and arm whether the interval held, and its width."""
    analysis, reads = drawn.analysis(), 8  # of the second sum, for each bound
    made = analysis.contribute(0, {"arm": [f"arm {a}" for a in drawn.arm], "spent": drawn.spent}, None)
    assert isinstance(made, Cells)
    counts = np.bincount(made.cells[made.cells >= 0], minlength=made.length)
    first, second = (STD / sqrt(share) for share in analysis.shares)
    enough = 2 * drawn.arms * analysis.arms.sum_noise(second)
    held: tuple[list[bool], list[bool]] = ([], [])
    widths: tuple[list[float], list[float]] = ([], [])
    for _ in range(draws):
        total = NoisySum(counts + first * rng.standard_normal(STEPS), first)
        above = np.cumsum(total.values) >= enough
        former = drawn.most * float(GRID[above.argmax() + 1 if above.any() else STEPS])
        asked = analysis.ask(1, [total])
        assert asked is not None
        raised = analysis.raised([total, total])[0]
        for rule, (bound, factor) in enumerate(((former, 1.0), (float(asked[0]), raised))):
            for ok, width in intervals(drawn, analysis, bound, factor, second, rng, reads):
                held[rule].append(ok)
                widths[rule].append(width)
    yield from zip(held, widths, strict=True)


def intervals(
    drawn: Drawn,
    analysis: Campaign,
    bound: float,
    factor: float,
    std: float,
    rng: np.random.Generator,
    reads: int,
) -> Iterator[tuple[bool, float]]:
    """Of each arm's effect: does it hold the whole amounts' difference, and how wide is it?"""
    y, arms = np.minimum(drawn.spent / bound, 1.0), range(drawn.arms)
    _, weights = analysis.arms._weights
    by = [drawn.arm == a for a in arms]
    raw = np.array([(m.sum(), (2 * y[m] - 1).sum(), (8 * y[m] * (1 - y[m]) - 1).sum()) for m in by])
    for _ in range(reads):
        noisy = raw * weights + std * rng.standard_normal(raw.shape)
        table = analysis.arms.read(NoisySum(noisy.ravel(), std))
        for a in arms[1:]:
            found = difference(table.cell(0, a), table.cell(0, 0), 0, False)
            low, high = (factor * bound * x for x in (found.low, found.high))
            one, other = drawn.spent[by[a]], drawn.spent[by[0]]
            error = sqrt(one.var() / len(one) + other.var() / len(other))
            yield low <= one.mean() - other.mean() <= high, (high - low) / (2 * REACH * error)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--draws", type=int, default=12)
    draws = parser.parse_args().draws
    real = list(amounts())
    if not real:
        print("SKIPPED trials of real amounts: the data files are not beside the project")
    sorts = [(effect, list(TAILS.values()), effect) for effect in EFFECTS]
    sorts += [("real amounts, more buyers", real, "more buyers")] if real else []
    print("| trials | contract's bound | rule | holds, % | width, mean | 1 in 20 is wider than |")
    print("|---" * 6 + "|")
    rng = np.random.default_rng(1)
    for name, sources, effect in sorts:
        for far in FAR:
            seen = (Seen([], [], []), Seen([], [], []))
            for draw in sources:
                for design in DESIGNS:
                    found = measure(trial(rng, design, draw, effect, far), rng, draws)
                    for one, (held, widths) in zip(seen, found, strict=True):
                        one.held.append(float(np.mean(held)))
                        one.widths.append(float(np.mean(widths)))
                        one.widest.append(float(np.quantile(widths, 0.95)))
            where = "near" if far == 1 else f"{far:g} times as large"
            for rule, one in zip(("former", "now"), seen, strict=True):
                print(f"| {name} | {where} | {rule} | {one} |", flush=True)


if __name__ == "__main__":
    main()
