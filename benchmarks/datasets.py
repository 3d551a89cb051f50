"""The benchmark sets: where they lie beside the project, their example, their natural branches."""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from sfumato.common.contract import Contract, load_contract

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT.parent / "shared" / "data"


@dataclass(frozen=True)
class Dataset:
    """`branch_column` None: four branches at random. `floor` is the AUC to reach at epsilon 2, if one is set.
    `row_number_as` names the id of a file that has none."""

    name: str
    file: str
    branch_column: str | None = None
    min_branch_size: int = 1
    floor: float | None = None
    row_number_as: str | None = None

    @property
    def path(self) -> Path:
        return DATA / self.name / self.file

    @property
    def example(self) -> Path:
        return ROOT / "examples" / self.name

    def contract(self) -> Contract:
        return load_contract(self.example / "contract.toml")

    def frame(self) -> pd.DataFrame:
        return pd.read_parquet(self.path)


DATASETS = (
    Dataset("bank_churners", "bank_churners.parquet", floor=0.87),
    Dataset("telco_ibm", "telco.parquet", floor=0.82),
    Dataset("credit_default_tw", "credit_default_tw.parquet", floor=0.72),
    Dataset("churn_modelling", "churn_modelling.parquet", "Geography"),
    Dataset("bank_branch_churn", "bank_branch_churn.parquet", "city", 500),
    Dataset("cell2cell", "cell2cell.parquet", "Region", 500),
    Dataset("adult", "adult.parquet", row_number_as="row"),
)


def chosen(names: list[str]) -> list[Dataset]:
    """The sets of these names (all if none are given) whose data is there; says which are skipped and why."""
    known = {d.name for d in DATASETS}
    for name in names:
        if name not in known:
            raise SystemExit(f"no benchmark set {name!r}; there are {', '.join(sorted(known))}")
    found = []
    for dataset in DATASETS:
        if names and dataset.name not in names:
            continue
        if dataset.path.exists():
            found.append(dataset)
        else:
            print(f"SKIPPED {dataset.name}: the data file {dataset.file} is not beside the project")
    return found
