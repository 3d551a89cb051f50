"""Test AUC of the additive model and of its scorecard, over secure sums of 16 branches.

    python benchmarks/additive.py [SET ...] [--epsilon 1 2] [--seeds 3] [--branches 16]

Splits, schema round, noise and central XGBoost are those of learners.py; the schema's counts by label are the
model's, and are paid for by its share of the budget. Beside them a central logistic regression on the categories and
the scaled numbers, without privacy.
"""

import argparse
import math
import sys
from dataclasses import dataclass

import numpy as np
from learner_sets import SETS, Split, central_xgboost, path_of, split_of
from learners import SCHEMA_SHARE, SecureSums, schema_of
from sklearn.linear_model import LogisticRegression
from tuning import auc

from sfumato.common.analyses.analysis import NoisySum
from sfumato.common.learners.additive import Question, build
from sfumato.common.learners.curves import counts_of, of_schema
from sfumato.common.learners.encoding import Encoder
from sfumato.common.learners.scorecard import scorecard
from sfumato.privacy import accounting


@dataclass(frozen=True)
class Result:
    """Test AUC of the curves and of the whole points, and what the job sent."""

    curves: float
    points: float
    sums: int
    kilobytes: float


def additive(split: Split, epsilon: float, question: Question) -> Result:
    """The whole job at this epsilon: schema, then steps."""
    sums = SecureSums()
    whole = accounting.calibrate_gaussian(epsilon, len(split.training) ** -1.1)
    schema = schema_of(split, sums, whole / math.sqrt(SCHEMA_SHARE))
    learner = build(question, of_schema(schema), counts_of(schema))
    codes, totals = schema.codes(split.columns), list[NoisySum]()
    for round_, share in enumerate(learner.shares):
        asked = learner.ask(round_, totals)
        parts = [
            learner.contribute(round_, {"codes": codes[rows], "label": split.labels[rows]}, asked)
            for rows in split.branches
        ]
        noise_multiplier = whole / math.sqrt(share * (1 - SCHEMA_SHARE))
        totals.append(sums.total(parts, learner.max_norm(round_), noise_multiplier))
    model, tested, labels = learner.model(totals), codes[split.test], split.labels[split.test]
    card = scorecard(model)
    return Result(
        auc(model.logits(tested), labels), auc(card.log_odds(tested), labels), sums.sums, sums.bytes / 1024
    )


def central_regression(split: Split) -> float:
    """Test AUC of logistic regression over the same customers in one place, without privacy."""
    encoder = Encoder(split.contract)
    encoded = encoder.transform({f.name: split.columns[f.name] for f in encoder.features})
    parts = [encoded.numeric]
    for f, spec in enumerate(encoder.features):
        if not spec.numeric:
            parts.append(np.eye(encoded.cardinalities[f], dtype=np.float32)[encoded.codes[:, f]])
    inputs = np.concatenate(parts, axis=1)
    model = LogisticRegression(max_iter=500).fit(inputs[split.training], split.labels[split.training])
    return auc(model.decision_function(inputs[split.test]), split.labels[split.test])


def figure(values: list[float]) -> str:
    return f"{100 * np.mean(values):.2f} ({100 * np.std(values):.2f})"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sets", nargs="*", choices=[[], *SETS], help="all, if none is named")
    parser.add_argument("--epsilon", nargs="+", type=float, default=[1.0, 2.0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--branches", type=int, default=16)
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="KEY=VALUE")
    arguments = parser.parse_args()
    question = Question.model_validate(dict(s.split("=", 1) for s in arguments.settings))
    print("| set | epsilon | additive, AUC x 100 (sd) | its scorecard | central XGBoost | central logistic "
          "| sums a job | KiB a branch sends |")  # fmt: skip
    print("|---" * 8 + "|")
    for name in arguments.sets or SETS:
        if not path_of(name).exists():
            print(f"SKIPPED {name}: the data file is not beside the project", file=sys.stderr)
            continue
        splits = [split_of(name, seed, arguments.branches) for seed in range(arguments.seeds)]
        boosted = figure([central_xgboost(s) for s in splits])
        plain = figure([central_regression(s) for s in splits])
        for epsilon in arguments.epsilon:
            found = [additive(s, epsilon, question) for s in splits]
            curves, points = figure([f.curves for f in found]), figure([f.points for f in found])
            print(f"| {name} | {epsilon:g} | {curves} | {points} | {boosted} | {plain} "
                  f"| {found[0].sums} | {found[0].kilobytes:.0f} |", flush=True)  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
