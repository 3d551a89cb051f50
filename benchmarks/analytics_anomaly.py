"""Anomaly scores of the sample bank, and of real sets where they are beside the project: what is above the threshold,
and whether it means anything: planted customers found, and the label among the flagged.

Planted customers have each column from another customer of the set: every value is usual, together they are not.
"""

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from analytics_harness import DATA, Bar, Case, Columns, Pairs, answers, bank_columns, pooled, split
from portraits import FILES, ROOT

from sfumato.common.analyses.anomaly import Question
from sfumato.common.contract import Contract, load_contract
from sfumato.common.learners.anomalies import Autoencoder
from sfumato.common.learners.components import Inputs
from sfumato.common.learners.encoding import model_features
from sfumato.lab.samplebank import generate

SETS = ("credit_default_tw", "bank_churners")
BRANCHES = 16
QUESTION = {"flag": 0.02}


def cases() -> Iterator[Case]:
    with tempfile.TemporaryDirectory() as directory:
        bank = generate(Path(directory) / "bank")
        contract = load_contract(bank.contract)
        names = [f.name for f in model_features(contract)]
        branches = bank_columns(bank, names, Path(directory))
    yield case("sample bank", contract, branches)
    for name in SETS:
        found = real(name)
        if found is not None:
            yield case(name, found[0], split(found[1], BRANCHES))


def real(name: str) -> tuple[Contract, dict[str, Any], npt.NDArray[np.bool_]] | None:
    """A set's contract, columns and label; None where it is not at hand."""
    path = DATA / name / f"{FILES[name]}.parquet"
    if not path.exists():
        print(f"SKIPPED {name}: the data file is not beside the project")
        return None
    contract = load_contract(ROOT / "examples" / name / "contract.toml")
    table = pq.read_table(path)
    assert contract.label is not None
    label = np.array(
        [str(v) in ("1", "True", contract.label.positive) for v in table[contract.label.name].to_pylist()]
    )
    return contract, {f.name: table[f.name] for f in model_features(contract)}, label


def scores(contract: Contract, answer: Mapping[str, Any], columns: Columns) -> npt.NDArray[np.float64]:
    """Each customer's, by the answer's own autoencoder."""
    inputs = Inputs(model_features(contract))
    dimensions = Question().dimensions
    vector = np.array(answer["model"], np.float32)
    found = Autoencoder.of(vector, inputs.size, dimensions).errors(inputs.matrix(columns))
    return np.asarray(found.sum(axis=1))


def case(name: str, contract: Contract, branches: tuple[Columns, ...]) -> Case:
    everyone = pooled(branches)

    def pairs(answer: Mapping[str, Any]) -> Pairs:
        found = scores(contract, answer, everyone)
        yield "customers", answer["customers"], float(len(found))
        flagged, table = answer["parts"]
        (row,) = flagged["rows"]
        yield "threshold", row["threshold"], float(np.quantile(found, 1 - QUESTION["flag"], method="higher"))
        yield "flagged", row["customers"], float((found > row["threshold"]["value"]).sum())
        yield "flagged share", row["share"], float((found > row["threshold"]["value"]).mean())
        ends = [-np.inf, *2.0 ** np.arange(-1, 5.01), np.inf]
        for row, low, high in zip(table["rows"], ends[:-1], ends[1:], strict=True):
            inside = (found > low) & (found <= high)
            yield "band", row["customers"], float(inside.sum())
            yield "band share", row["share"], float(inside.mean())

    return Case(name, contract, "anomaly", QUESTION, branches, pairs)


def bars(seeds: int) -> Iterator[Bar]:
    """No bar of the catalogue: what the scores are worth, at epsilon 1 and without noise."""
    for name in SETS:
        found = real(name)
        if found is None:
            continue
        contract, columns, label = found
        mixed, planted = with_planted(columns)
        for epsilon in (1.0, 20.0):
            seen = [
                worth(scores(contract, answer, mixed), planted, label, answer)
                for answer in answers(
                    Case(name, contract, "anomaly", QUESTION, split(mixed, BRANCHES), lambda _: iter(())),
                    epsilon,
                    min(seeds, 3),
                )
            ]
            auc, caught, labelled = np.mean(seen, axis=0)
            yield Bar(
                f"{name}, epsilon {epsilon:g}: planted found (AUC), flagged of them; label among the other "
                f"flagged (of all {label.mean():.1%})",
                "AUC above .5",
                f"{auc:.2f}, {caught:.0%}; {labelled:.1%}",
                bool(auc > 0.5),
            )


def with_planted(columns: Mapping[str, Any]) -> tuple[dict[str, Any], npt.NDArray[np.bool_]]:
    """One customer in a hundred more, each column from somebody else."""
    rng, n = np.random.default_rng(0), len(next(iter(columns.values())))
    more = {name: values.take(pa.array(rng.integers(0, n, n // 100))) for name, values in columns.items()}
    mixed = {name: pa.chunked_array([*columns[name].chunks, *more[name].chunks]) for name in columns}
    return mixed, np.arange(n + n // 100) >= n


def worth(
    found: npt.NDArray[np.float64],
    planted: npt.NDArray[np.bool_],
    label: npt.NDArray[np.bool_],
    answer: Mapping[str, Any],
) -> tuple[float, float, float]:
    rank = found.argsort().argsort() + 1.0
    k = planted.sum()
    auc = (rank[planted].sum() - k * (k + 1) / 2) / (k * (len(found) - k))
    flagged = found > answer["parts"][0]["rows"][0]["threshold"]["value"]
    return float(auc), float(flagged[planted].mean()), float(label[flagged[~planted]].mean())
