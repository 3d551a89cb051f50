"""How near do the learners come to an XGBoost that sees all the data? Test AUC, over secure sums.

    python benchmarks/learners.py [SET ...] [--epsilon 1 2] [--seeds 5] [--net-seeds 5] [--only KIND ...]

Each seed: a quarter of the customers is the test set; the others are dealt out to the branches, each label by its
own Dirichlet(0.5), or are where they belong (bank_branch_churn by city, cell2cell by region). The pieces are the
product's own (schema round, learner, clipping on the grid, exact discrete Gaussian from the system's entropy); each
branch adds 1 / (N - 1) of the variance, as with one colluder, so the total has N / (N - 1) of it. Masks cancel and
are left out. Epsilon pays for all: the schema round takes its share of mu^2, and delta is n^-1.1 of the n customers
who are not in the test set, as in the trial whose figures are the bars. The net trains as in tuning.py, by the
examples' secure-sum.toml. The central XGBoost sees the same rows, raw, with no privacy. Test customers only measure.

Where branches are natural, each also learns alone: the same boosted trees at the same epsilon, with all of the noise,
AUC on its own test customers; beside it the common model's on the same, both weighted by customers.
"""

import argparse
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from datasets import ROOT
from learner_sets import SETS, Bar, Floats, Split, by_branch, central_xgboost, path_of, split_of
from tuning import auc, descend

from sfumato.common.analyses.analysis import NoisySum
from sfumato.common.contributions import Contributions
from sfumato.common.fixed_point import GRID, add, decode
from sfumato.common.job import ChurnNetJob, load_job
from sfumato.common.learners import churn_net
from sfumato.common.learners.catalogue import LEARNERS, Kind
from sfumato.common.learners.encoding import Encoder
from sfumato.common.learners.learner import Coded
from sfumato.common.learners.schema import Schema, SchemaRound
from sfumato.privacy import accounting
from sfumato.privacy.clipping import BoundedSum
from sfumato.privacy.noise import SecureRandom

COLLUDERS = 1
SCHEMA_SHARE = 0.2  # of mu^2: it is also the learners' guide
BEATEN = 0.5  # points beyond a bar that are worth a word
NET = "churn-net"
KINDS = (*LEARNERS, NET)


class SecureSums:
    """Totals over branches, as the vaults' shares give them without their masks."""

    def __init__(self) -> None:
        self._rng = SecureRandom()
        self.sums = self.bytes = 0

    def total(self, parts: Sequence[Contributions], max_norm: float, noise_multiplier: float) -> NoisySum:
        variance = math.ceil((noise_multiplier * GRID) ** 2)
        share = math.ceil(variance / max(len(parts) - COLLUDERS, 1))
        shares = []
        for part in parts:
            bounded = BoundedSum.of(part, max_norm)
            assert bounded.l2_sensitivity == GRID
            shares.append(bounded.total + self._rng.discrete_gaussian(bounded.total.size, share))
        self.sums += 1
        self.bytes += 8 * shares[0].size
        return NoisySum(decode(add(shares), max_norm), math.sqrt(share * len(parts)) * max_norm / GRID)


@dataclass(frozen=True)
class Result:
    """Scores of the test customers, in the order of `split.test`; what one branch sent for the model."""

    scores: Floats
    sums: int
    kilobytes: float


def delta_of(split: Split) -> float:
    return float(len(split.training)) ** -1.1


def schema_of(split: Split, sums: SecureSums, noise_multiplier: float) -> Schema:
    asked = SchemaRound(split.contract)
    parts = [asked.contribute(0, split.of(rows), None) for rows in split.branches]
    return asked.schema(sums.total(parts, asked.max_norm(0), noise_multiplier))


def learned(split: Split, epsilon: float, seed: int, kind: Kind) -> Result:
    """A learner of the catalogue at this epsilon, the schema paid for."""
    sums, module = SecureSums(), LEARNERS[kind]
    whole = accounting.calibrate_gaussian(epsilon, delta_of(split))
    schema = schema_of(split, sums, whole / math.sqrt(SCHEMA_SHARE))
    seeded = {"seed": seed} if "seed" in module.Question.model_fields else {}
    question = module.Question(**seeded)
    learner = module.build(question, schema, split.contract)
    codes, totals = schema.codes(split.columns), list[NoisySum]()
    rounds: int = question.rounds  # type: ignore[attr-defined]
    noise_multiplier = whole / math.sqrt((1 - SCHEMA_SHARE) / rounds)
    customers = [Coded(codes[rows], split.labels[rows]) for rows in split.branches]
    for round_ in range(rounds):
        asked = learner.ask(round_, totals)
        parts = [learner.contribute(round_, c, asked) for c in customers]
        totals.append(sums.total(parts, module.max_norm(question), noise_multiplier))
    scores = learner.logits(codes[split.test], learner.finished(totals))
    return Result(scores, sums.sums, sums.bytes / 1024)


def net(split: Split, epsilon: float, seed: int) -> Result:
    """The churn net by secure sums at this epsilon, as the examples set it; its count of customers is paid for."""
    job = load_job(ROOT / "examples" / "adult" / "secure-sum.toml")  # all examples set the net alike
    assert isinstance(job, ChurnNetJob)
    privacy = job.privacy.model_copy(update={"target_epsilon": epsilon, "delta": delta_of(split)})
    training = job.training.model_copy(update={"seed": seed})
    job = job.model_copy(update={"privacy": privacy, "training": training, "contract": split.contract.name})
    encoder = Encoder(split.contract, job.model.bins)
    encoded = encoder.transform({f.name: split.columns[f.name] for f in encoder.features})
    parts = [
        (encoded.take(rows), split.labels[rows].astype(np.float32)) for rows in split.branches if len(rows)
    ]
    trained = descend(job, split.contract, parts)
    weights = churn_net.flatten(trained).size
    sent = 8 * (training.rounds * weights + 1)
    return Result(churn_net.logits(trained, encoded.take(split.test)), training.rounds + 1, sent / 1024)


def measured(kind: str) -> Callable[[Split, float, int], Result]:
    if kind == NET:
        return net
    return lambda split, epsilon, seed: learned(split, epsilon, seed, kind)  # type: ignore[arg-type]


@dataclass
class Row:
    """One model at one epsilon on one set: AUC of each seed, XGBoost's of the same seeds."""

    kind: str
    auc: list[float] = field(default_factory=list)
    central: list[float] = field(default_factory=list)
    sums: int = 0
    kilobytes: float = 0.0

    @property
    def gap(self) -> float:
        return 100 * float(np.mean(self.central) - np.mean(self.auc))


def figure(values: Sequence[float]) -> str:
    return f"{100 * np.mean(values):.2f} ({100 * np.std(values):.2f})"


def verdict(bar: Bar, row: Row, best: Row | None) -> str:
    """The bar that is set for this model, and whether the means keep it: "holds", "beaten" by BEATEN, or "MISSED"."""
    if row.kind == NET:
        if bar.near is None or best is None:
            return ""
        behind = 100 * float(np.mean(best.auc[: len(row.auc)]) - np.mean(row.auc))
        return f"{behind:.2f} behind {best.kind}, at most {bar.near} {'holds' if behind <= bar.near else 'MISSED'}"
    if row.kind != "boosted-trees":
        return ""
    if bar.gap is not None:
        return f"gap at most {bar.gap} {_word(bar.gap - row.gap)}"
    if bar.auc is not None:
        return f"at least {100 * bar.auc:.1f} {_word(100 * (float(np.mean(row.auc)) - bar.auc))}"
    return ""


def _word(spare: float) -> str:
    return "MISSED" if spare < 0 else "beaten" if spare >= BEATEN else "holds"


def table(
    name: str, splits: list[Split], central: list[float], epsilon: float, arguments: argparse.Namespace
) -> bool:
    """The rows of one set at one epsilon, printed as they come. Returns whether a bar is missed."""
    bar, best, missed = SETS[name].bars.get(epsilon, Bar()), None, False
    for kind in arguments.only:
        row, own, alone = Row(kind), list[float](), list[float]()
        seeds = arguments.net_seeds if kind == NET else arguments.seeds
        for seed, split in enumerate(splits[:seeds]):
            found = measured(kind)(split, epsilon, seed)
            row.auc.append(auc(found.scores, split.labels[split.test]))
            row.central.append(central[seed])
            row.sums, row.kilobytes = found.sums, found.kilobytes
            if SETS[name].branch_column is not None and kind == "boosted-trees":
                each, people = by_branch(split, found.scores)
                own.append(float(np.average(each, weights=people)))
                if seed < arguments.alone_seeds:
                    alone.append(local_only(split, epsilon, seed))
        if kind != NET and (best is None or np.mean(row.auc) > np.mean(best.auc)):
            best = row
        words = verdict(bar, row, best)
        missed |= "MISSED" in words
        print(
            f"| {name} | {epsilon:g} | {kind} | {figure(row.auc)} | {figure(row.central)} | {row.gap:.2f} | {words} "
            f"| {row.sums} | {row.kilobytes:.0f} | {len(row.auc)} |",
            flush=True,
        )
        if alone:
            kept = float(np.mean(own[: len(alone)])) > float(np.mean(alone))
            missed |= bar.local and not kept
            words = f"better than local-only {'holds' if kept else 'MISSED'}" if bar.local else ""
            print(
                f"| {name} | {epsilon:g} | own customers of {len(splits[0].branches)} branches: boosted-trees "
                f"{figure(own[: len(alone)])}, local-only | {figure(alone)} | | | {words} | | | {len(alone)} |",
                flush=True,
            )
    return missed


def local_only(split: Split, epsilon: float, seed: int) -> float:
    """AUC of boosted trees that each branch learns alone, on its own test customers; mean weighted by customers."""
    found, people = [], []
    for branch in range(len(split.branches)):
        alone = split.alone(branch)
        scores = learned(alone, epsilon, seed, "boosted-trees").scores
        found.append(auc(scores, alone.labels[alone.test]))
        people.append(len(alone.test))
    return float(np.average(found, weights=people))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sets", nargs="*", choices=[[], *SETS], help="all, if none is named")
    parser.add_argument("--epsilon", nargs="+", type=float, help="those with a bar, if none is named")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--net-seeds", type=int, default=5, help="the net takes the longest")
    parser.add_argument("--alone-seeds", type=int, default=5, help="of branches that learn alone")
    parser.add_argument("--branches", type=int, default=16)
    parser.add_argument("--only", nargs="+", choices=KINDS, default=list(KINDS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(
        "| set | epsilon | model | AUC x 100 (sd) | central XGBoost (sd) | gap | bar | sums a job "
        "| KiB a branch sends | seeds |"
    )
    print("|---" * 10 + "|", flush=True)
    missed, started = False, time.perf_counter()
    for name in arguments.sets or SETS:
        if not path_of(name).exists():
            print(f"SKIPPED {name}: the data file is not beside the project", file=sys.stderr)
            continue
        most = max(arguments.seeds, arguments.net_seeds)
        splits = [split_of(name, seed, arguments.branches) for seed in range(most)]
        central = [central_xgboost(split) for split in splits]
        for epsilon in arguments.epsilon or SETS[name].bars:
            missed |= table(name, splits, central, epsilon, arguments)
    print(f"{time.perf_counter() - started:.0f} s", file=sys.stderr)
    return int(missed)


if __name__ == "__main__":
    raise SystemExit(main())
