"""Expected loss by grade of the sample bank's loans, with the bound found and stated, and of credit_default_tw."""

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
from analytics_harness import DATA, Case, Columns, Pairs, bank_columns, pooled, split

from sfumato.common.analyses import catalogue
from sfumato.common.analyses.latest import latest
from sfumato.common.contract import Contract, load_contract
from sfumato.lab.samplebank import generate

CREDIT = DATA / "credit_default_tw" / "credit_default_tw.parquet"
BANK: dict[str, Any] = {
    "score": "loans.score",
    "cuts": [600, 630, 660, 690],
    "bad": "loans.defaulted",
    "exposure": "loans.exposure",
}
CARDS: dict[str, Any] = {
    "score": "worst_delay",
    "safer": "low",
    "cuts": [0.5, 1.5, 2.5],
    "exposure": "owed",
    "exposure_bound": 300_000.0,
    "lgd": 0.6,
    "pd": [0.15, 0.2, 0.4, 0.6],
    "reference": [0.66, 0.09, 0.22, 0.03],
}


def card_contract() -> Contract:
    columns = [
        {"name": "id", "type": "string", "role": "customer_id"},
        {"name": "worst_delay", "type": "integer", "bounds": [0, 9]},
        {"name": "owed", "type": "number", "role": "amount", "bounds": [0, 1_000_000]},
        {"name": "default", "type": "integer", "role": "label"},
    ]
    return Contract.model_validate(
        {
            "version": 1,
            "name": "cards",
            "purpose": "See what cards cost.",
            "tables": [{"name": "customers", "columns": columns}],
        }
    )


def cases() -> Iterator[Case]:
    with tempfile.TemporaryDirectory() as directory:
        bank = generate(Path(directory) / "bank")
        contract = load_contract(bank.contract)
        names = catalogue.build("risk", BANK, contract).columns
        branches = bank_columns(bank, names, Path(directory))
    yield case("sample bank", contract, BANK, branches)
    yield case("sample bank, bound stated", contract, BANK | {"exposure_bound": 400_000.0}, branches)
    if not CREDIT.exists():
        print("SKIPPED credit_default_tw: the data file is not beside the project")
        return
    table = pq.read_table(CREDIT).to_pandas()
    late = [c for c in table.columns if c.upper().startswith("PAY_") and "AMT" not in c.upper()]
    bill = next(c for c in table.columns if c.upper() == "BILL_AMT1")
    label = next(c for c in table.columns if "default" in c.lower())
    columns = {
        "worst_delay": np.clip(table[late[0]].to_numpy(dtype=np.int64), 0, 9),
        "owed": np.clip(table[bill].to_numpy(dtype=np.float64), 0, 1_000_000),
        "default": table[label].to_numpy(dtype=np.int64),
    }
    yield case("credit_default_tw", card_contract(), CARDS, split(columns, 16))


def case(name: str, contract: Contract, question: dict[str, Any], branches: tuple[Columns, ...]) -> Case:
    truth = Naive(question, contract, pooled(branches))

    def pairs(answer: Mapping[str, Any]) -> Pairs:
        yield from truth.pairs(answer)

    return Case(name, contract, "risk", question, branches, pairs)


class Naive:
    """Pooled loans in numpy."""

    def __init__(self, question: dict[str, Any], contract: Contract, columns: Mapping[str, Any]) -> None:
        label = contract.label
        bad = question.get("bad") or (label.name if label else "")
        raw = {n: np.asarray(latest(v).to_pylist(), dtype=object) for n, v in columns.items()}
        inside = raw[question["score"]] != None  # noqa: E711 - elementwise
        score = raw[question["score"]][inside].astype(float)
        self.bad, self.owed = raw[bad][inside].astype(float), raw[question["exposure"]][inside].astype(float)
        self.grade = np.searchsorted(question["cuts"], score, side="right")
        self.question, self.grades = question, len(question["cuts"]) + 1

    def pairs(self, answer: Mapping[str, Any]) -> Pairs:
        grades, portfolio = answer["parts"]
        bound = self.question.get("exposure_bound") or float(
            next(n for n in answer["notes"] if "counts as" in n).split("above ")[1].split(" counts")[0]
        )
        owed, lgd = np.minimum(self.owed, bound), self.question.get("lgd", 0.45)
        high = self.question.get("safer", "high") == "high"
        order = list(range(self.grades)) if high else list(range(self.grades))[::-1]
        yield "customers", answer["customers"], float(len(owed))
        expected = 0.0
        for grade, row in zip(order, grades["rows"], strict=True):
            mine = self.grade == grade
            rate = self.bad[mine].mean()
            pd = self.question["pd"][grade] if "pd" in self.question else rate
            expected += lgd * pd * owed[mine].sum()
            yield "customers", row["customers"], float(mine.sum())
            yield "share", row["share"], float(mine.mean())
            yield "bad rate", row["bad rate"], float(rate)
            yield "exposure", row["exposure"], float(owed[mine].sum())
            yield "expected loss", row["expected loss"], float(lgd * pd * owed[mine].sum())
            yield "observed loss", row["observed loss"], float(lgd * (self.bad * owed)[mine].sum())
        (whole,) = portfolio["rows"]
        yield "all bad rate", whole["bad rate"], float(self.bad.mean())
        yield "all exposure", whole["exposure"], float(owed.sum())
        yield "all expected loss", whole["expected loss"], float(expected)
        yield "all observed loss", whole["observed loss"], float(lgd * (self.bad * owed).sum())
        gini, ks = self.metrics(order)
        yield "gini", whole["gini"], gini
        yield "ks", whole["ks"], ks
        if "reference" in self.question:
            then = np.array(self.question["reference"]) / sum(self.question["reference"])
            now = np.bincount(self.grade, minlength=self.grades) / len(self.grade)
            index = ((now - then) * np.log(now / then)).sum()
            yield "stability index", whole["stability index"], float(index)

    def metrics(self, order: list[int]) -> tuple[float, float]:
        """By counting pairs; ties count nothing."""
        bad: npt.NDArray[np.float64] = np.array([(self.bad * (self.grade == g)).sum() for g in order])
        good = np.array([((1 - self.bad) * (self.grade == g)).sum() for g in order])
        won = sum(b * g * np.sign(j - i) for i, b in enumerate(bad) for j, g in enumerate(good))
        gaps = np.cumsum(bad) / bad.sum() - np.cumsum(good) / good.sum()
        return float(won / (bad.sum() * good.sum())), float(gaps[:-1].max())
