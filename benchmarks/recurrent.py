"""AUC of the recurrent net beside the wide-and-deep one, on the sample bank, whose two years of payments it reads.

    python benchmarks/recurrent.py [--seeds 3] [--epsilon 2] [--customers 3000] [--set training.rounds=60 ...]

As benchmarks/tuning.py: the product's own encoding, nets, noise, clipping and calibration, without vaults; the AUC is
exact, on pooled held-out customers, beside that of the true propensity. Each seed is a bank, an initialisation and a
draw of noise. The bank is made up, so nothing private is spent.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from tuning import auc, changed, descend, federate, noise_multiplier

from sfumato.client.features import customer_frame
from sfumato.client.ingest.load import ingest, open_source
from sfumato.client.vault.store import Store
from sfumato.common.contract import Contract, load_contract
from sfumato.common.job import ChurnNetJob, load_job
from sfumato.common.learners import churn_net
from sfumato.common.learners.encoding import Encoded
from sfumato.lab.samplebank import SampleBank, generate
from sfumato.privacy.keys import EphemeralKeys

SEQUENCE = "txn_count_30d,spent_90d,salary_count_90d,complaint_count_365d"
Part = tuple[dict[str, Any], np.ndarray]  # a branch's columns, and its labels


def parts_of(bank: SampleBank, contract: Contract, monthly: tuple[str, ...], scratch: Path) -> list[Part]:
    """Each branch's customers, as its vault would see them."""
    parts = []
    for name, folder in bank.branches.items():
        store = Store.create(scratch / f"{name}.duckdb", contract, EphemeralKeys())
        for table in contract.tables:
            ingest(open_source(next(folder.glob(f"{table.name}.*"))), table.name, contract, store)
        frame = customer_frame(store, contract, monthly)
        store.close()
        columns = {n: frame.column(n) for n in frame.column_names}
        parts.append((columns, np.asarray(columns["label"], dtype=np.float32)))
    return parts


def figure(job: ChurnNetJob, contract: Contract, parts: list[Part], seed: int) -> float:
    """The AUC of one net on those held out of all branches."""
    training = job.training.model_copy(update={"seed": seed})
    job = job.model_copy(update={"training": training})
    encoder, rng = churn_net.encoder(contract, job.model), np.random.default_rng(seed)
    trained: list[tuple[Encoded, np.ndarray]] = []
    outside: list[tuple[Encoded, np.ndarray]] = []
    for columns, labels in parts:
        encoded, held = encoder.transform(columns), rng.random(len(labels)) < contract.holdout_fraction
        trained.append((encoded.take(~held), labels[~held]))
        outside.append((encoded.take(held), labels[held]))
    if job.privacy.mode == "secure-sum":
        net = descend(job, contract, trained)
    else:
        net = federate(job, contract, trained, noise_multiplier(job), by_size=True)
    scores = [churn_net.logits(net, encoded) for encoded, _ in outside]
    return auc(np.concatenate(scores), np.concatenate([labels for _, labels in outside]))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epsilon", type=float, default=2.0)
    parser.add_argument("--customers", type=int, default=3000, help="of a branch; there are four")
    parser.add_argument("--mode", choices=["secure-sum", "local"], default="secure-sum")
    parser.add_argument("--sequence", default=SEQUENCE, help="roll-ups read by month, with commas")
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="TABLE.KEY=VALUE")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    figures: dict[str, list[float]] = {}
    for seed in range(arguments.seeds):
        with tempfile.TemporaryDirectory() as scratch:
            bank = generate(Path(scratch) / "bank", customers_per_branch=arguments.customers, seed=seed)
            contract = load_contract(bank.contract)
            base = load_job(bank.secure_job if arguments.mode == "secure-sum" else bank.job)
            assert isinstance(base, ChurnNetJob)
            general = [f"privacy.target_epsilon={arguments.epsilon}", *arguments.settings]
            recurrent = ["model.architecture=recurrent", f"model.sequence={arguments.sequence}"]
            nets = {"wide-deep": changed(base, [s for s in general if not s.startswith("model.s")])}
            nets["recurrent"] = changed(base, [*recurrent, *general])
            monthly = churn_net.encoder(contract, nets["recurrent"].model).monthly
            parts = parts_of(bank, contract, monthly, Path(scratch))
            for name, job in nets.items():
                started = time.perf_counter()
                found = figure(job, contract, parts, seed)
                figures.setdefault(name, []).append(found)
                weights, seconds = (
                    churn_net.size(churn_net.build(contract, job.model)),
                    time.perf_counter() - started,
                )
                print(f"seed {seed} {name:<10} {100 * found:5.1f}  {weights} weights, {seconds:.0f} s")
            truth = pq.read_table(bank.ground_truth)
            figures.setdefault("truth", []).append(
                auc(np.asarray(truth["propensity"]), np.asarray(truth["churned"], dtype=np.float64))
            )
    print(f"epsilon {arguments.epsilon:g}, {arguments.mode}, AUC x 100, mean of {arguments.seeds} (sd)")
    for name, values in figures.items():
        spread = np.std(values, ddof=1) if len(values) > 1 else 0.0
        print(f"{name:<12} {100 * np.mean(values):5.1f} ({100 * spread:.1f})")


if __name__ == "__main__":
    main()
