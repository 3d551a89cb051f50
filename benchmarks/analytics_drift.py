"""Drift since a schema that a scorecard's job left, at the same epsilon: of the sample bank's customers, all or
those who stayed, and of bank_marketing's, the first half of its calls against the second (two years later)."""

import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from analytics_harness import DELTA, Case, Columns, Pairs, bank_columns, noisy, pooled, split, total_of
from learner_sets import path_of

from sfumato.common.contract import Contract, load_contract
from sfumato.common.job import LearnerJob
from sfumato.common.learners.bins import Column, Schema
from sfumato.common.learners.schema import SchemaRound
from sfumato.lab.samplebank import generate
from sfumato.privacy.plan import Plan

MARKETING, BRANCHES = "bank_marketing", 16
FEWEST = 0.5  # no count is taken for less, so that its logarithm is one

Floats = npt.NDArray[np.float64]


def cases() -> Iterator[Case]:
    with tempfile.TemporaryDirectory() as directory:
        bank = generate(Path(directory) / "bank")
        contract = load_contract(bank.contract)
        branches = bank_columns(bank, SchemaRound(contract).columns, Path(directory))
    stayed = tuple(_where(c, ~_yes(c["churned"])) for c in branches)
    yield case("sample bank, unchanged", contract, branches, branches)
    yield case("sample bank, who stayed", contract, branches, stayed)
    if not path_of(MARKETING).exists():
        print(f"SKIPPED {MARKETING}: the data file is not beside the project")
        return
    contract = load_contract(Path(__file__).parent / "contracts" / f"{MARKETING}.toml")
    table = pq.read_table(path_of(MARKETING))
    columns = {n: table[n] for n in SchemaRound(contract).columns}
    early = np.arange(len(table)) < len(table) // 2
    then, now = (split(_where(columns, rows), BRANCHES) for rows in (early, ~early))
    yield case(MARKETING, contract, then, now)


def _where(columns: Columns, rows: npt.NDArray[np.bool_]) -> Columns:
    return {name: values.filter(pa.array(rows)) for name, values in columns.items()}


def _yes(values: Any) -> npt.NDArray[np.bool_]:
    return np.array([str(v) in ("1", "True") for v in values.to_pylist()])


def case(name: str, contract: Contract, then: tuple[Columns, ...], now: tuple[Columns, ...]) -> Case:
    truth = partial(pairs, pooled(then), pooled(now))
    return Case(name, contract, "drift", {}, now, truth, partial(schema, contract, then))


def schema(
    contract: Contract, branches: tuple[Columns, ...], epsilon: float, rng: np.random.Generator
) -> dict[str, Any]:
    """What the first sum of a scorecard's job leaves, with its noise."""
    job = LearnerJob.model_validate(
        {
            "name": "scorecard",
            "kind": "scorecard",
            "purpose": "to leave a schema",
            "contract": contract.name,
            "privacy": {"mode": "secure-sum", "target_epsilon": epsilon, "delta": DELTA, "colluders": 1},
            "federation": {"min_branches": max(3, len(branches))},
        }
    )
    ask, round_ = Plan.of(job, contract).ask(0), SchemaRound(contract, job.binning.bins)
    total = total_of((round_.contribute(0, c, None) for c in branches), ask.max_norm)
    return {"known": round_.read([noisy(total, job, contract, ask, len(branches), rng)])}


def pairs(then: Columns, now: Columns, answer: Mapping[str, Any]) -> Pairs:
    """Every number of the answer beside its truth: customers in the schema's bins, counted one by one."""
    columns = {c.name: c for c in Schema.model_validate(answer["known"]).columns}
    yield "customers", answer["customers"], float(len(next(iter(now.values()))))
    for found in answer["drift"]:
        column = columns[found["column"]]
        exact = [counted(column, c[column.name].to_pylist()) for c in (then, now)]
        for row, *shares in zip(found["bins"], *(e / e.sum() for e in exact), strict=True):
            for when, share in zip(("then", "now"), shares, strict=True):
                yield when, row[when], float(share)
        p, q = (np.maximum(e, FEWEST) / np.maximum(e, FEWEST).sum() for e in exact)
        yield "psi", found["psi"], float(((p - q) * np.log(p / q)).sum())


def counted(column: Column, values: list[Any]) -> Floats:
    counts = np.zeros(len(column.counts))
    for value, customers in Counter(values).items():
        if value is None:
            place = column.null
        elif column.categories is not None:
            place = column.categories.get(_word(value), column.other or 0)
        else:
            place = sum(value >= c for c in column.cuts or ())
        counts[place] += customers
    return counts


def _word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
