"""How near do the learners come to an XGBoost that sees all the data? Test AUC, over secure sums of 16 branches.

    python benchmarks/learners.py [SET ...] [--epsilon 1 2] [--seeds 5] [--branches 16]

Each seed: a quarter of the customers is the test set; the others are dealt out to the branches, each label by its
own Dirichlet(0.5). The pieces are the product's own (schema round, trees, clipping on the grid, exact discrete
Gaussian from the system's entropy); each branch adds 1 / (N - 1) of the variance, as with one colluder, so the total
has N / (N - 1) of it. Masks cancel and are left out. Epsilon pays for all: the schema round takes its share of
mu^2, and delta is n^-1.1 of the n customers who are not in the test set, as in the trial whose figures are the bars.
The central XGBoost sees the same rows, raw, with no privacy. Test customers only measure.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from datasets import DATA, ROOT
from tuning import auc

from sfumato.common.analyses.analysis import NoisySum
from sfumato.common.contract import Contract, load_contract
from sfumato.common.contributions import Contributions, Rows
from sfumato.common.fixed_point import GRID, add, decode
from sfumato.common.learners.encoding import model_features
from sfumato.common.learners.random_trees import Question, RandomTrees
from sfumato.common.learners.schema import Schema, SchemaRound, label_codes
from sfumato.privacy import accounting
from sfumato.privacy.clipping import BoundedSum
from sfumato.privacy.noise import SecureRandom

TEST, ALPHA, COLLUDERS = 0.25, 0.5, 1
SCHEMA_SHARE = 0.2  # of mu^2: it is also the trees' guide
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Bar:
    """At one epsilon: the gap to central XGBoost in points that is allowed, or the AUC to reach."""

    gap: float | None = None
    auc: float | None = None


@dataclass(frozen=True)
class Set:
    file: str
    bars: dict[float, Bar]


SETS = {
    "bank_churners": Set("bank_churners", {1.0: Bar(gap=3.6), 2.0: Bar(gap=2.2)}),
    "telco_ibm": Set("telco", {1.0: Bar(gap=0.8), 2.0: Bar(gap=0.5)}),
    "adult": Set("adult", {1.0: Bar(gap=1.7), 2.0: Bar(gap=1.5)}),
    "bank_marketing": Set("bank_full", {1.0: Bar(gap=2.6), 2.0: Bar(gap=2.1)}),
    "give_me_some_credit": Set("gmsc", {1.0: Bar(auc=0.852)}),
    "credit_default_tw": Set("credit_default_tw", {2.0: Bar(auc=0.765)}),
}


@dataclass(frozen=True)
class Split:
    """One seed of one set: columns by name, the rows of each branch, and the test rows."""

    contract: Contract
    columns: dict[str, "pd.Series[object]"]
    labels: Ints
    branches: tuple[Ints, ...]
    test: Ints

    @property
    def training(self) -> Ints:
        return np.concatenate(self.branches)

    def of(self, rows: Ints) -> dict[str, "pd.Series[object]"]:
        return {name: column.iloc[rows] for name, column in self.columns.items()}


@lru_cache(maxsize=1)
def read(name: str) -> tuple[Contract, pd.DataFrame]:
    contract = ROOT / "examples" / name / "contract.toml"
    if not contract.exists():
        contract = Path(__file__).parent / "contracts" / f"{name}.toml"
    return load_contract(contract), pd.read_parquet(path_of(name))


def path_of(name: str) -> Path:
    return DATA / name / f"{SETS[name].file}.parquet"


def split_of(name: str, seed: int, branches: int) -> Split:
    contract, frame = read(name)
    assert contract.label is not None
    names = [f.name for f in model_features(contract)]
    columns = {n: frame[n] for n in (*names, contract.label.name)}
    labels = label_codes(contract, columns)
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(frame))
    test, training = np.split(order, [round(TEST * len(frame))])
    home = np.zeros(len(training), dtype=np.int64)
    for label in (0, 1):
        own = labels[training] == label
        home[own] = rng.choice(branches, int(own.sum()), p=rng.dirichlet([ALPHA] * branches))
    return Split(contract, columns, labels, tuple(training[home == b] for b in range(branches)), test)


class SecureSums:
    """Totals over branches, as the vaults' shares give them without their masks."""

    def __init__(self) -> None:
        self._rng = SecureRandom()
        self.sums = self.bytes = 0

    def total(self, parts: Sequence[Contributions], max_norm: float, noise_multiplier: float) -> NoisySum:
        variance = math.ceil((noise_multiplier * GRID) ** 2)
        share = math.ceil(variance / (len(parts) - COLLUDERS))
        shares = []
        for part in parts:
            bounded = BoundedSum.of(part, max_norm)
            assert bounded.l2_sensitivity == GRID
            shares.append(bounded.total + self._rng.discrete_gaussian(bounded.total.size, share))
        self.sums += 1
        self.bytes += 8 * shares[0].size
        return NoisySum(decode(add(shares), max_norm), math.sqrt(share * len(parts)) * max_norm / GRID)


def schema_of(split: Split, sums: SecureSums, noise_multiplier: float) -> Schema:
    asked = SchemaRound(split.contract)
    parts = [asked.contribute(0, split.of(rows), None) for rows in split.branches]
    return asked.schema(sums.total(parts, asked.max_norm(0), noise_multiplier))


def random_trees(split: Split, epsilon: float, seed: int, question: Question, sums: SecureSums) -> float:
    """Test AUC of boosted random trees at this epsilon, the schema paid for."""
    whole = accounting.calibrate_gaussian(epsilon, len(split.training) ** -1.1)
    schema = schema_of(split, sums, whole / math.sqrt(SCHEMA_SHARE))
    learner = RandomTrees(schema, split.contract, question.model_copy(update={"seed": seed}))
    codes, everyone = schema.codes(split.columns), split.training
    ends = np.cumsum([len(rows) for rows in split.branches])[:-1]
    totals: list[NoisySum] = []
    for round_, share in enumerate(learner.shares):
        asked = learner.ask(round_, totals)
        # Every branch would read `asked` for itself; here it is read once.
        rows = learner.contribute_coded(round_, codes[everyone], split.labels[everyone], asked).rows
        parts = [Rows(part) for part in np.split(rows, ends)]
        noise_multiplier = whole / math.sqrt(share * (1 - SCHEMA_SHARE))
        totals.append(sums.total(parts, learner.max_norm(round_), noise_multiplier))
    forest = learner.forest(totals)
    return auc(forest.logits(codes[split.test]), split.labels[split.test])


def central_xgboost(split: Split) -> float:
    """Test AUC of XGBoost on the same customers in one place, raw columns, without privacy."""
    import xgboost

    frame = pd.DataFrame({f.name: split.columns[f.name] for f in model_features(split.contract)})
    for name in frame:
        if not pd.api.types.is_numeric_dtype(frame[name]):
            frame[name] = frame[name].astype("category")
    model = xgboost.XGBClassifier(
        n_estimators=300,
        max_depth=4,
        learning_rate=0.06,
        min_child_weight=5,
        subsample=0.8,
        colsample_bytree=0.8,
        enable_categorical=True,
        tree_method="hist",
        n_jobs=1,
        random_state=0,
    )
    model.fit(frame.iloc[split.training], split.labels[split.training])
    return auc(model.predict_proba(frame.iloc[split.test])[:, 1], split.labels[split.test])


def verdict(bar: Bar | None, scores: npt.NDArray[np.float64], central: npt.NDArray[np.float64]) -> str:
    """The bar, and whether the means keep it."""
    if bar is None:
        return ""
    if bar.gap is not None:
        kept = 100 * (central.mean() - scores.mean()) <= bar.gap
        return f"gap at most {bar.gap} {'holds' if kept else 'MISSED'}"
    assert bar.auc is not None
    return f"at least {100 * bar.auc:.1f} {'holds' if scores.mean() >= bar.auc else 'MISSED'}"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sets", nargs="*", choices=[[], *SETS], help="all, if none is named")
    parser.add_argument("--epsilon", nargs="+", type=float, default=[1.0, 2.0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--branches", type=int, default=16)
    arguments = parser.parse_args()
    print(
        "| set | epsilon | boosted random trees, AUC x 100 (sd) | central XGBoost (sd) | gap | bar | sums a job "
        "| KiB a branch sends |"
    )
    print("|---" * 8 + "|")
    missed = False
    for name in arguments.sets or SETS:
        if not path_of(name).exists():
            print(f"SKIPPED {name}: the data file is not beside the project", file=sys.stderr)
            continue
        splits = [split_of(name, seed, arguments.branches) for seed in range(arguments.seeds)]
        central = np.array([central_xgboost(split) for split in splits])
        for epsilon in arguments.epsilon:
            scores = []
            for seed, split in enumerate(splits):
                sums = SecureSums()
                scores.append(random_trees(split, epsilon, seed, Question(), sums))
            found, judged = np.array(scores), verdict(SETS[name].bars.get(epsilon), np.array(scores), central)
            missed |= "MISSED" in judged
            print(
                f"| {name} | {epsilon:g} | {100 * found.mean():.2f} ({100 * found.std():.2f}) "
                f"| {100 * central.mean():.2f} ({100 * central.std():.2f}) "
                f"| {100 * (central.mean() - found.mean()):.2f} | {judged} | {sums.sums} | {sums.bytes / 1024:.0f} |",
                flush=True,
            )
    return int(missed)


if __name__ == "__main__":
    raise SystemExit(main())
