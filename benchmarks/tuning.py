"""AUC of the churn net, by local DP-SGD or by secure sums, in one process: for choosing hyper-parameters.

    python benchmarks/tuning.py [SET ...] [--seeds 3] [--epsilon 2] [--set training.learning_rate=0.05 ...]

Plain loops with the product's own encoding, net, sampling, noise, clipping and calibration; no
Flower, no vault. The AUC is exact, on pooled held-out customers: these sets are public, and what is chosen on
them becomes a default, so nothing private is spent. Never tune like this on customers' data.
"""

import argparse
import time
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from datasets import Dataset, chosen

from sfumato.common.contract import Contract
from sfumato.common.job import ChurnNetJob, load_job
from sfumato.common.learners import churn_net
from sfumato.common.learners.encoding import Encoded, Encoder
from sfumato.privacy import accounting, dpsgd
from sfumato.privacy.noise import SecureRandom
from sfumato.privacy.plan import Plan
from sfumato.server import strategies
from sfumato.server.training import Clipping, Descent


@dataclass(frozen=True)
class Result:
    auc: float
    auc_by_size: float  # FedAvg weighted by the charged noisy sizes, for comparison
    noise_multiplier: float
    seconds: float


def labels_of(contract: Contract, frame: pd.DataFrame) -> np.ndarray:
    """0/1 of the contract's label, float32 [n]."""
    label = contract.label
    assert label is not None
    values = frame[label.name]
    return np.asarray(values == label.positive if label.positive else values == 1, dtype=np.float32)


def branches_of(dataset: Dataset, frame: pd.DataFrame, rng: np.random.Generator, count: int) -> np.ndarray:
    """The branch number of each row."""
    if dataset.branch_column is None:
        return rng.permutation(np.arange(len(frame)) % count)
    values = frame[dataset.branch_column].astype("string").fillna("")
    size = values.map(values.value_counts())
    return np.unique(values.where(size >= dataset.min_branch_size, "").to_numpy(str), return_inverse=True)[1]


def auc(scores: np.ndarray, labels: np.ndarray) -> float:
    """Area under the ROC curve, ties counting half (Mann-Whitney)."""
    ranks = pd.Series(scores).rank().to_numpy()
    positives = float(labels.sum())
    spare = ranks[labels == 1].sum() - positives * (positives + 1) / 2
    return float(spare / (positives * (len(labels) - positives)))


def noise_multiplier(job: ChurnNetJob) -> float:
    """As the vault calibrates it: the size count is paid from the same epsilon, the evaluation by others."""
    p, t = job.privacy, job.training
    others = [accounting.discrete_laplace(1 / (p.size_share * p.target_epsilon))]
    return accounting.calibrate_noise_multiplier(
        p.target_epsilon, p.delta, t.sample_rate, t.rounds * t.local_steps, others
    )


def federate(
    job: ChurnNetJob,
    contract: Contract,
    parts: list[tuple[Encoded, np.ndarray]],
    sigma: float,
    *,
    by_size: bool,
    keep_state: bool = False,
) -> churn_net.ChurnNet:
    """Rounds of local DP-SGD from the same weights, then their adapted average (equal, or by noisy size)."""
    t, rng = job.training, SecureRandom()
    net = churn_net.build(contract, job.model, t.seed)
    weights = churn_net.flatten(net)
    scale = 1 / (job.privacy.size_share * job.privacy.target_epsilon)
    sizes = [max(1, len(y) + int(rng.discrete_laplace(1, scale)[0])) for _, y in parts]
    shares = np.array(sizes, dtype=np.float64) if by_size else np.ones(len(parts))
    states: list[dpsgd.OptimizerState | None] = [None] * len(parts)
    adapt = strategies.strategy(t)
    for round_ in range(1, t.rounds + 1):
        total = np.zeros(weights.size)
        for i, (encoded, y) in enumerate(parts):
            churn_net.load(net, weights)
            state = dpsgd.train(
                net,
                encoded,
                y,
                steps=t.local_steps,
                sample_rate=t.sample_rate,
                noise_multiplier=sigma,
                max_grad_norm=t.max_grad_norm,
                learning_rate=t.learning_rate,
                optimizer=t.optimizer,
                expected_batch_size=max(1.0, t.sample_rate * sizes[i]),
                proximal_mu=t.proximal_mu if t.strategy == "fedprox" else 0.0,
                rng=rng,
                state=states[i],
            )
            states[i] = state if keep_state else None  # the vault starts each round afresh
            total += churn_net.flatten(net) * (shares[i] / shares.sum())
        weights = adapt.step(round_, weights, total.astype(np.float32))
    churn_net.load(net, weights)
    return net


def descend(
    job: ChurnNetJob,
    contract: Contract,
    parts: list[tuple[Encoded, np.ndarray]],
) -> churn_net.ChurnNet:
    """Steps along the noisy total of all branches' clipped gradients, as secure sums give it."""
    t, rng, plan = job.training, SecureRandom(), Plan.of(job, contract)
    net = churn_net.build(contract, job.model, t.seed)
    norm = plan.ask(1).max_norm
    sums = [dpsgd.GradientSums(net, encoded, y, max_grad_norm=norm) for encoded, y in parts]
    excess = np.sqrt(len(parts) / (len(parts) - job.privacy.colluders))
    customers = sum(len(y) for _, y in parts) + rng.gaussian(1, excess * plan.ask(0).noise_multiplier)[0]
    weights = churn_net.flatten(net)
    descent, clip = Descent(weights, t), Clipping(t, max(1.0, customers))
    for round_ in range(1, t.rounds + 1):
        churn_net.load(net, weights)
        total = np.sum([s(sample_rate=t.sample_rate, rng=rng, adaptive=clip.bound) for s in sums], axis=0)
        std = excess * plan.ask(round_).noise_multiplier * norm
        weights = descent.step(clip.read(total + rng.gaussian(total.size, std)))
    churn_net.load(net, weights)
    return net


def experiment(
    dataset: Dataset,
    job: ChurnNetJob,
    seed: int,
    *,
    branches: int = 4,
    compare_sizes: bool = False,
    keep_state: bool = False,
) -> Result:
    """One split, one initialisation, one draw of noise."""
    contract, frame = dataset.contract(), dataset.frame()
    job = job.model_copy(update={"training": job.training.model_copy(update={"seed": seed})})
    encoder = Encoder(contract, job.model.bins)
    encoded = encoder.transform({f.name: frame[f.name] for f in encoder.features})
    labels, rng = labels_of(contract, frame), np.random.default_rng(seed)
    branch = branches_of(dataset, frame, rng, branches)
    held_out = rng.random(len(frame)) < contract.holdout_fraction
    rows = [np.flatnonzero((branch == b) & ~held_out) for b in np.unique(branch)]
    parts = [(encoded.take(r), labels[r]) for r in rows if len(r)]
    started = time.perf_counter()
    if job.privacy.mode == "secure-sum":
        net = descend(job, contract, parts)
        figure = auc(churn_net.logits(net, encoded.take(held_out)), labels[held_out])
        sigma = Plan.of(job, contract).noise_multiplier
        return Result(figure, figure, sigma, time.perf_counter() - started)
    sigma = noise_multiplier(job)
    figures = []
    for by_size in (False, True)[: 1 + compare_sizes]:
        net = federate(job, contract, parts, sigma, by_size=by_size, keep_state=keep_state)
        figures.append(auc(churn_net.logits(net, encoded.take(held_out)), labels[held_out]))
    seconds = (time.perf_counter() - started) / len(figures)
    return Result(figures[0], figures[-1], sigma, seconds)


def changed(job: ChurnNetJob, settings: list[str]) -> ChurnNetJob:
    """The job with `table.key=value` settings; checked like a file. Raises SystemExit on a bad one."""
    data = job.model_dump(mode="json")
    for setting in settings:
        place, _, value = setting.partition("=")
        table, _, key = place.partition(".")
        if table not in data or not isinstance(data[table], dict) or key not in data[table]:
            raise SystemExit(f"no setting {place!r}; for example training.learning_rate=0.05")
        data[table][key] = value.split(",") if isinstance(data[table][key], list) else value
    return ChurnNetJob.model_validate(data)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sets", nargs="*")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epsilon", type=float)
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="TABLE.KEY=VALUE")
    parser.add_argument("--branches", type=int, default=4, help="of a set without natural ones")
    parser.add_argument("--sizes", action="store_true", help="also FedAvg weighted by noisy branch sizes")
    parser.add_argument("--keep-state", action="store_true", help="optimiser moments survive a round")
    arguments = parser.parse_args()
    if arguments.epsilon:
        arguments.settings.append(f"privacy.target_epsilon={arguments.epsilon}")
    torch.set_num_threads(1)
    failed = False
    for dataset in chosen(arguments.sets):
        job = changed(load_job(dataset.example / "job.toml"), arguments.settings)
        results = [
            experiment(
                dataset,
                job,
                s,
                branches=arguments.branches,
                compare_sizes=arguments.sizes,
                keep_state=arguments.keep_state,
            )
            for s in range(arguments.seeds)
        ]
        figures = np.array([r.auc for r in results])
        verdict = ""
        if dataset.floor is not None:
            failed |= bool(figures.mean() < dataset.floor)
            verdict = f"floor {dataset.floor:.2f} " + (
                "BELOW" if figures.mean() < dataset.floor else "reached"
            )
        sized = f"by size {np.mean([r.auc_by_size for r in results]):.4f}" if arguments.sizes else ""
        print(
            f"{dataset.name:18} AUC {figures.mean():.4f} sd {figures.std():.4f} {sized} {verdict} "
            f"(noise multiplier {results[0].noise_multiplier:.3f}, {np.mean([r.seconds for r in results]):.1f} s)",
            flush=True,
        )
    raise SystemExit(int(failed))


if __name__ == "__main__":
    main()
