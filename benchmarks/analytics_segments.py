"""Segments of the sample bank and of two real sets, by their numbers or by components of all their columns. The
truth is of the customers whom the saved model puts into each segment, in numpy on the pooled raw columns."""

import tempfile
from collections.abc import Iterator, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow.parquet as pq
from analytics_harness import DATA, Case, Columns, Pairs, bank_columns, pooled, split
from portraits import FILES, ROOT

from sfumato.common.contract import Contract, load_contract
from sfumato.common.learners.encoding import FeatureSpec, model_features
from sfumato.lab.samplebank import generate

COMPONENTS = {"dimensions": 4, "segments": 4}
SETS = {"bank_churners": ("components", COMPONENTS), "credit_default_tw": ("numbers", {"segments": 6})}
BRANCHES = 16

Floats = npt.NDArray[np.float64]


def cases() -> Iterator[Case]:
    with tempfile.TemporaryDirectory() as directory:
        bank = generate(Path(directory) / "bank")
        contract = load_contract(bank.contract)
        branches = bank_columns(bank, [f.name for f in model_features(contract)], Path(directory))
    yield case("sample bank, numbers", contract, {}, branches)
    yield case("sample bank, components", contract, COMPONENTS, branches)
    for name, (by, question) in SETS.items():
        path = DATA / name / f"{FILES[name]}.parquet"
        if not path.exists():
            print(f"SKIPPED {name}: the data file is not beside the project")
            continue
        contract, table = load_contract(ROOT / "examples" / name / "contract.toml"), pq.read_table(path)
        branches = split({f.name: table[f.name] for f in model_features(contract)}, BRANCHES)
        yield case(f"{name}, {by}", contract, question, branches)


def case(name: str, contract: Contract, question: Mapping[str, Any], branches: tuple[Columns, ...]) -> Case:
    features = [f for f in model_features(contract) if f.numeric or "dimensions" in question]
    return Case(name, contract, "segments", question, branches, partial(pairs, Customers(features, branches)))


class Customers:
    """All customers' columns, raw and as numbers in [-1, 1]: a number by its bounds and scale, 0 where it is missing;
    a category 1 where it is that value, with one place more for other values and one for none."""

    def __init__(self, features: list[FeatureSpec], branches: tuple[Columns, ...]) -> None:
        columns = pooled([{f.name: b[f.name] for f in features} for b in branches])
        self.features, self.raw = features, {n: pd.Series(v.to_pylist()) for n, v in columns.items()}

    @cached_property
    def columns(self) -> dict[str, Floats]:
        return {f.name: self.column(f) for f in self.features}

    @cached_property
    def inputs(self) -> Floats:
        return np.column_stack(list(self.columns.values()))

    def column(self, f: FeatureSpec) -> Floats:
        values = self.raw[f.name]
        if f.bounds is None:
            words = [str(v).lower() if isinstance(v, bool) else v for v in values]
            places = {c: i for i, c in enumerate(f.categories or ())}
            code = [len(places) + 1 if w is None else places.get(str(w), len(places)) for w in words]
            return np.eye(len(places) + 2)[code]
        low, high = (stretched(b, f) for b in f.bounds)
        number = stretched(np.clip(pd.to_numeric(values).to_numpy(float), *f.bounds), f)
        return np.nan_to_num(2 * (number - low) / (high - low) - 1, nan=0.0)[:, None]

    def segment(self, tensors: Mapping[str, Any]) -> npt.NDArray[np.int64]:
        """The nearest of the model's centres, among the numbers or along its components."""
        places, centres = self.inputs, tensors["centres"].astype(float)
        if "components" in tensors:
            flat, size = tensors["components"].astype(float), self.inputs.shape[1]
            scale, mean, directions = flat[0], flat[1 : 1 + size], flat[1 + size :].reshape(size, -1)
            places = np.clip((self.inputs - mean) @ directions / scale, -1, 1)
        return np.asarray(((places[:, None, :] - centres) ** 2).sum(axis=2).argmin(axis=1))


def stretched(values: Any, f: FeatureSpec) -> Any:
    return np.sign(values) * np.log1p(np.abs(values)) if f.scale == "log" else values


def back(unit: float, f: FeatureSpec) -> float:
    """From [-1, 1] to the number's own unit."""
    assert f.bounds is not None
    low, high = (stretched(b, f) for b in f.bounds)
    at = low + (unit + 1) / 2 * (high - low)
    return float(np.sign(at) * np.expm1(abs(at)) if f.scale == "log" else at)


def pairs(customers: Customers, answer: Mapping[str, Any]) -> Pairs:
    """Every number of the answer beside its truth; of a segment without customers nothing has a mean."""
    segment = customers.segment(answer["saved"]()[0])
    for j, found in enumerate(answer["segments"]):
        own = segment == j
        yield "customers", found["customers"], float(own.sum())
        yield "share", found["share"], float(own.mean())
        if not own.any():
            continue
        for f in customers.features:
            mean = customers.columns[f.name][own].mean(axis=0)
            if f.numeric:
                yield "middle", found["centre"][f.name], back(float(mean[0]), f)
            else:
                for number, share in zip(found["mix"][f.name].values(), mean.tolist(), strict=True):
                    yield "mix", number, share
