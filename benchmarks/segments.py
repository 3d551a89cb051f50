"""Inertia of private segments against non-private k-means, on the numbers of four public sets.

    python benchmarks/segments.py [SET ...] [--epsilon 1] [--segments 4 6] [--seeds 3] [--branches 16]

The numbers are scaled by the contract alone. Sums are those of all branches, with the noise that a secure sum of
that many has where one of them may collude; epsilon is that of the whole job. Exit status 1 where a bar is missed.
"""

import argparse
import sys
from dataclasses import dataclass

import numpy as np
from learner_sets import path_of, read
from rounds import rounds_of
from sklearn.cluster import KMeans

from sfumato.common.analyses.segments import Question
from sfumato.common.learners.encoding import Encoder
from sfumato.common.learners.segments import Segmentation, assign

SETS = ("bank_churners", "telco_ibm", "bank_marketing", "credit_default_tw")
LEFT = 1 - Question().inputs_share  # of the budget: the last sum says who is in each segment
BARS = {4: 1.03, 6: 1.06}  # at epsilon 1


@dataclass(frozen=True)
class Numbers:
    """A set's numbers in [-1, 1], float64 [n, G]."""

    names: tuple[str, ...]
    values: np.ndarray

    @classmethod
    def of(cls, name: str) -> "Numbers":
        contract, frame = read(name)
        encoder = Encoder(contract)
        numeric = encoder.transform({f.name: frame[f.name] for f in encoder.features}).numeric
        return cls(tuple(f.name for f in encoder.features if f.numeric), numeric.astype(np.float64))

    def inertia(self, centres: np.ndarray) -> float:
        return float(((self.values - centres[assign(self.values, centres)]) ** 2).sum())


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sets", nargs="*", choices=[[], *SETS], help="all, if none is named")
    parser.add_argument("--epsilon", type=float, default=1.0)
    parser.add_argument("--segments", type=int, nargs="*", default=[4, 6])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--branches", type=int, default=16)
    options = parser.parse_args()
    missed = False
    print(f"{'set':18} {'k':>2} {'inertia ratio, each seed':28} {'mean':>6}  {'bar':12} chosen k  sums")
    for name in options.sets or SETS:
        if not path_of(name).exists():
            print(f"SKIPPED {name}: the data file is not beside the project", file=sys.stderr)
            continue
        numbers = Numbers.of(name)
        frame = {"numeric": numbers.values}
        free = [
            rounds_of(
                Segmentation(numbers.names, Question()),
                frame,
                options.epsilon,
                s,
                options.branches,
                share=LEFT,
            )
            for s in range(options.seeds)
        ]
        taken = [Segmentation(numbers.names, Question()).chosen(totals)["segments"] for totals in free]
        for k in options.segments:
            plain = KMeans(k, n_init=10, random_state=0).fit(numbers.values).inertia_
            model = Segmentation(numbers.names, Question(segments=k))
            ratios = []
            for seed in range(options.seeds):
                totals = rounds_of(model, frame, options.epsilon, seed, options.branches, share=LEFT)
                ratios.append(numbers.inertia(model.centres(totals).astype(np.float64)) / plain)
            mean, bar = float(np.mean(ratios)), BARS.get(k) if options.epsilon == 1 else None
            verdict = "" if bar is None else f"{bar:.2f} {'MISSED' if mean > bar else 'kept'}"
            missed |= "MISSED" in verdict
            each = " ".join(f"{r:.3f}" for r in ratios)
            print(
                f"{name:18} {k:2} {each:28} {mean:6.3f}  {verdict:12} {taken}  {len(totals)}",
                flush=True,
            )
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
