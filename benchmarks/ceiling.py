"""The ceiling: XGBoost on all customers in one place, without any privacy, on the contract's raw features.

python benchmarks/ceiling.py [SET ...]     (needs the bench extra)
"""

import sys

import numpy as np
import pandas as pd
from datasets import chosen
from tuning import auc, labels_of

from sfumato.common.contract import Contract
from sfumato.common.learners.encoding import model_features


def central_xgboost(contract: Contract, frame: pd.DataFrame, seeds: int = 3) -> tuple[float, float]:
    """Mean and standard deviation of the AUC over `seeds` random 75/25 splits."""
    import xgboost

    specs = [f for f in model_features(contract) if not f.derived]
    features = pd.DataFrame({f.name: frame[f.name] for f in specs})
    for f in specs:
        if f.categories is not None:
            features[f.name] = pd.Categorical(
                features[f.name].astype("string"), categories=list(f.categories)
            )
        else:
            features[f.name] = pd.to_numeric(features[f.name]).astype(float)
    labels, figures = labels_of(contract, frame), []
    for seed in range(seeds):
        held_out = np.random.default_rng(seed).random(len(frame)) < 0.25
        model = xgboost.XGBClassifier(
            n_estimators=300, max_depth=4, learning_rate=0.06, subsample=0.8, colsample_bytree=0.8,
            min_child_weight=5, enable_categorical=True, random_state=seed, n_jobs=1,
        )  # fmt: skip
        model.fit(features[~held_out], labels[~held_out])
        figures.append(auc(model.predict_proba(features[held_out])[:, 1], labels[held_out]))
    return float(np.mean(figures)), float(np.std(figures))


def main() -> None:
    for dataset in chosen(sys.argv[1:]):
        mean, sd = central_xgboost(dataset.contract(), dataset.frame())
        print(f"{dataset.name:18} central XGBoost, no privacy: AUC {mean:.4f} sd {sd:.4f}", flush=True)


if __name__ == "__main__":
    main()
