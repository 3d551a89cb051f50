"""What a central model could reach with all the data in one place and no privacy: a bar to compare with."""

import numpy as np
import pandas as pd
import pyarrow as pa

from sfumato.common.errors import BadInput

SEEDS = 3
TEST_SHARE = 0.25
PARAMETERS = {
    "n_estimators": 300,
    "max_depth": 5,
    "learning_rate": 0.05,
    "subsample": 0.8,
    "colsample_bytree": 0.8,
}


def central_auc(frame: pa.Table) -> float:
    """Mean test AUC of XGBoost over three stratified 75/25 splits of a customer frame (see client.features).

    Raises BadInput when the `bench` extra is not installed.
    """
    try:
        from sklearn.metrics import roc_auc_score
        from sklearn.model_selection import train_test_split
        from xgboost import XGBClassifier
    except ModuleNotFoundError as e:
        raise BadInput(f"{e.name} is not installed", hint="pip install 'sfumato[bench]'") from None
    table = frame.drop_columns(["token"]).to_pandas()
    labels = table.pop("label").to_numpy().astype(np.int64)
    for name in table.columns:
        if not pd.api.types.is_numeric_dtype(table[name]):
            table[name] = table[name].astype("category")
    scores = []
    for seed in range(SEEDS):
        split = train_test_split(table, labels, test_size=TEST_SHARE, random_state=seed, stratify=labels)
        x_train, x_test, y_train, y_test = split
        model = XGBClassifier(**PARAMETERS, enable_categorical=True, random_state=seed, n_jobs=1)
        model.fit(x_train, y_train)
        scores.append(roc_auc_score(y_test, model.predict_proba(x_test)[:, 1]))
    return float(np.mean(scores))
