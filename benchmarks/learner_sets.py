"""The sets of learners.py: their bars, and who is in which branch and in the test set."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from datasets import DATA, ROOT
from tuning import auc

from sfumato.common.contract import Contract, load_contract
from sfumato.common.learners.encoding import model_features
from sfumato.common.learners.schema import label_codes

TEST, ALPHA = 0.25, 0.5
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Bar:
    """At one epsilon: the gap to central XGBoost in points that is allowed, or the AUC to reach; `near` is how many
    points the net may lie behind the best learner, `local` whether pooling has to beat each branch by itself."""

    gap: float | None = None
    auc: float | None = None
    near: float | None = None
    local: bool = False


@dataclass(frozen=True)
class Set:
    """`branch_column`: the natural branches, those of fewer than `smallest` customers in one; None: dealt out."""

    file: str
    bars: dict[float, Bar]
    branch_column: str | None = None
    smallest: int = 500


SETS = {
    "bank_churners": Set("bank_churners", {1.0: Bar(gap=3.6), 2.0: Bar(gap=2.2)}),
    "telco_ibm": Set("telco", {1.0: Bar(gap=0.8), 2.0: Bar(gap=0.5, near=1.5)}),
    "adult": Set("adult", {1.0: Bar(gap=1.7), 2.0: Bar(gap=1.5, near=1.5)}),
    "bank_marketing": Set("bank_full", {1.0: Bar(gap=2.6), 2.0: Bar(gap=2.1)}),
    "give_me_some_credit": Set("gmsc", {1.0: Bar(auc=0.852)}),
    "credit_default_tw": Set("credit_default_tw", {2.0: Bar(auc=0.765)}),
    "bank_branch_churn": Set("bank_branch_churn", {2.0: Bar(auc=0.80)}, "city"),
    "cell2cell": Set("cell2cell", {2.0: Bar(local=True)}, "Region"),
}


@dataclass(frozen=True)
class Split:
    """One seed of one set: columns by name, the rows of each branch for training, and the test rows of each."""

    contract: Contract
    columns: dict[str, "pd.Series[object]"]
    labels: Ints
    branches: tuple[Ints, ...]
    tests: tuple[Ints, ...]

    @property
    def training(self) -> Ints:
        return np.concatenate(self.branches)

    @property
    def test(self) -> Ints:
        return np.concatenate(self.tests)

    def of(self, rows: Ints) -> dict[str, "pd.Series[object]"]:
        return {name: column.iloc[rows] for name, column in self.columns.items()}

    def alone(self, branch: int) -> "Split":
        """That branch by itself."""
        return Split(
            self.contract, self.columns, self.labels, (self.branches[branch],), (self.tests[branch],)
        )


@lru_cache(maxsize=1)
def read(name: str) -> tuple[Contract, pd.DataFrame]:
    contract = ROOT / "examples" / name / "contract.toml"
    if not contract.exists():
        contract = Path(__file__).parent / "contracts" / f"{name}.toml"
    return load_contract(contract), pd.read_parquet(path_of(name))


def path_of(name: str) -> Path:
    return DATA / name / f"{SETS[name].file}.parquet"


def split_of(name: str, seed: int, branches: int) -> Split:
    """A quarter is the test set; the others are in their natural branch, or each label is dealt out by its own
    Dirichlet(0.5) over so many branches."""
    contract, frame = read(name)
    assert contract.label is not None
    names = [f.name for f in model_features(contract)]
    columns = {n: frame[n] for n in (*names, contract.label.name)}
    labels = label_codes(contract, columns)
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(frame))
    test, training = np.split(order, [round(TEST * len(frame))])
    known = SETS[name]
    if known.branch_column is not None:
        values = frame[known.branch_column].astype("string").fillna("")
        size = values.map(values.value_counts())
        home = np.unique(values.where(size >= known.smallest, "").to_numpy(str), return_inverse=True)[1]
        places = range(int(home.max()) + 1)
        return Split(
            contract,
            columns,
            labels,
            tuple(training[home[training] == b] for b in places),
            tuple(test[home[test] == b] for b in places),
        )
    home = np.zeros(len(training), dtype=np.int64)
    for label in (0, 1):
        own = labels[training] == label
        home[own] = rng.choice(branches, int(own.sum()), p=rng.dirichlet([ALPHA] * branches))
    return Split(contract, columns, labels, tuple(training[home == b] for b in range(branches)), (test,))


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


def by_branch(split: Split, scores: Floats) -> tuple[Floats, Floats]:
    """AUC on each branch's own test customers, whose scores stand in the order of `split.test`; how many they are."""
    parts = np.split(scores, np.cumsum([len(rows) for rows in split.tests])[:-1])
    found = [auc(s, split.labels[rows]) for s, rows in zip(parts, split.tests, strict=True)]
    return np.array(found), np.array([len(rows) for rows in split.tests], dtype=np.float64)
