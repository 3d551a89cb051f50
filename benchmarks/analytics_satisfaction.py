"""Satisfaction of the sample bank's customers, and the bar: NPS from a thousand answers."""

import tempfile
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
from analytics_harness import Bar, Case, Columns, Pairs, answers, bank_columns, pooled, split

from sfumato.common.analyses.domains import domain
from sfumato.common.contract import Contract, load_contract
from sfumato.common.learners.driver_moments import Driver
from sfumato.lab.samplebank import generate

Floats = npt.NDArray[np.float64]

QUESTIONS: dict[str, dict[str, Any]] = {
    "sample bank, NPS": {"nps": "surveys.nps", "moves_share": 0.2},
    "sample bank, all parts": {
        "nps": "surveys.nps",
        "csat": "surveys.csat",
        "by": ["segment", "area", "channel"],
        "drivers": ["complaint_count_365d", "txn_count_90d", "days_since_last_txn", "area", "channel"],
    },
    "sample bank, CSAT of a year": {
        "csat": "surveys.csat",
        "days": 365,
        "latest": 2,
        "by": ["churned"],
        "drivers": ["complaint_count_365d", "tenure_months", "segment", "product_count"],
        "moves_share": 0.1,
    },
}
DRIVEN = ("fit", "drivers", "effects")
ANSWERS, POINTS = 1000, 1.0


def cases() -> Iterator[Case]:
    columns = dict.fromkeys(
        c for q in QUESTIONS.values() for key in ("nps", "csat", "by", "drivers") for c in _listed(q.get(key))
    )
    with tempfile.TemporaryDirectory() as directory:
        bank = generate(Path(directory) / "bank")
        contract = load_contract(bank.contract)
        branches = bank_columns(bank, (*columns, "surveys.date"), Path(directory))
    for name, question in QUESTIONS.items():
        yield Case(
            name, contract, "satisfaction", question, branches, Truth(contract, question, branches).pairs
        )


def _listed(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value or ())


class Truth:
    """The same numbers, by pandas and least squares on everybody's rows in one place."""

    def __init__(
        self, contract: Contract, question: Mapping[str, Any], branches: tuple[Columns, ...]
    ) -> None:
        self.contract, self.question = contract, question
        self.columns = pooled(branches)
        self.customers = len(next(iter(self.columns.values())))
        self.rows = {s: self._answers(question[s]) for s in ("nps", "csat") if s in question}
        self.voice = {s: self._voices(rows, question.get("latest", 1)) for s, rows in self.rows.items()}

    def _answers(self, column: str) -> pd.DataFrame:
        """One row an answer, newest first: whose, and what."""
        frame = pd.DataFrame({"answer": self.columns[column].to_pylist()})
        if "." in column:
            frame["date"] = self.columns["surveys.date"].to_pylist()
            frame = frame.explode(["answer", "date"])
        frame = frame.dropna(subset=["answer"]).rename_axis("customer").reset_index()
        if "days" in self.question:
            assert self.contract.as_of is not None
            since = self.contract.as_of - pd.Timedelta(days=self.question["days"] - 1)
            frame = frame[[d >= since for d in frame["date"]]]
        return frame

    @staticmethod
    def _voices(rows: pd.DataFrame, latest: int) -> pd.DataFrame:
        """The latest answers of each, and how much of a voice each is."""
        few = rows[rows.groupby("customer").cumcount() < latest].copy()
        few["part"] = 1.0 / few.groupby("customer")["answer"].transform("size")
        return few

    def _score(self, score: str, voices: pd.DataFrame) -> dict[str, float]:
        answer, part = voices["answer"].astype(float), voices["part"]
        n = float(part.sum())

        def share(mask: "pd.Series[bool]") -> float:
            return float(part[mask].sum()) / n if n else 0.0

        if score == "csat":
            mean = float((part * answer).sum()) / n if n else 1.0
            return {"answered": n, "content": share(answer >= 4), "mean": mean}
        kinds = {"promoters": share(answer >= 9), "detractors": share(answer <= 6)}
        kinds["passives"] = share((answer > 6) & (answer < 9))
        return {"answered": n, "nps": 100 * (kinds["promoters"] - kinds["detractors"]), **kinds}

    def pairs(self, answer: Mapping[str, Any]) -> Pairs:
        yield "customers", answer["customers"], self.customers
        regression = self._regression(answer["ridge"]) if answer.get("ridge") is not None else {}
        for part in answer["parts"]:
            for row in part["rows"]:
                truth = self._row(part["name"], row["of"]) if part["name"] not in DRIVEN else regression
                for measure, shown in row.items():
                    if isinstance(shown, dict):
                        key: Any = measure if truth is not regression else (*row["of"], measure)
                        yield f"{part['name']} {measure}", shown, truth[key]

    def _row(self, part: str, of: list[str]) -> dict[str, float]:
        if part in self.voice:
            found = self._score(part, self.voice[part])
            return found | {"response": found["answered"] / self.customers}
        if part == "answers":
            voices = self.voice[of[0]]
            n = float(voices["part"][voices["answer"] == int(of[1])].sum())
            return {"customers": n, "share": n / float(voices["part"].sum())}
        if part.endswith(" by group"):
            (column, value), score = of, part.partition(" ")[0]
            inside = np.array([str(v) == value for v in self.columns[column].to_pylist()])
            voices = self.voice[score]
            found = self._score(score, voices[inside[voices["customer"]]])
            return found | {"response": found["answered"] / max(int(inside.sum()), 1)}
        return self._moved(*of)

    def _moved(self, before: str, latest: str) -> dict[str, float]:
        score, rows = next(iter(self.rows.items()))
        rank = rows.groupby("customer").cumcount()
        kind = rows["answer"].map(lambda a: _kind(score, a))
        pairs = pd.DataFrame(
            {
                "latest": kind[rank == 0].set_axis(rows["customer"][rank == 0]),
                "before": kind[rank == 1].set_axis(rows["customer"][rank == 1]),
            }
        ).dropna()
        was = pairs[pairs["before"] == before]
        n = int((was["latest"] == latest).sum())
        return {"customers": n, "share": n / max(len(was), 1)}

    def _regression(self, ridge: float) -> dict[tuple[str, ...], float]:
        """Ridge regression on all inputs, with the intercept free; Shapley values over all orders of drivers."""
        score = next(iter(self.voice))
        voices = self.voice[score]
        mean = (voices["part"] * voices["answer"].astype(float)).groupby(voices["customer"]).sum()
        who = mean.index.to_numpy()
        half = 5.0 if score == "nps" else 2.0
        y = (mean.to_numpy() - (5.0 if score == "nps" else 3.0)) / half
        drivers = [Driver(domain(self.contract, name, 5)) for name in self.question["drivers"]]
        inputs = [d.inputs(self.columns[d.domain.name].take(pa.array(who))) for d in drivers]
        fits = {s: _ridge([inputs[j] for j in s], y, ridge) for s in _subsets(len(drivers))}
        variance = float(y.var())
        everybody = tuple(range(len(drivers)))
        found: dict[tuple[str, ...], float] = {(score, "explained"): fits[everybody][1] / variance}
        splits = np.cumsum([i.shape[1] for i in inputs])[:-1]
        for j, b in enumerate(np.split(fits[everybody][0], splits)):
            name, spec = drivers[j].domain.name, drivers[j]
            found[name, "explained"] = (
                _shapley(j, len(drivers), {s: v for s, (_, v) in fits.items()}) / variance
            )
            if spec.numeric:
                found[name, "effect"] = float(b[0] * inputs[j][:, 0].std() / y.std())
                continue
            effects = (inputs[j] @ b).mean()
            for value, row in zip(spec.domain.cells, spec.contrasts, strict=True):
                found[name, value, "effect"] = float((row @ b - effects) / y.std())
        return found


def _kind(score: str, answer: int) -> str:
    if score == "csat":
        return "content" if answer >= 4 else "not content"
    return "promoter" if answer >= 9 else "passive" if answer >= 7 else "detractor"


def _subsets(count: int) -> Iterator[tuple[int, ...]]:
    return (tuple(j for j in range(count) if bits >> j & 1) for bits in range(1 << count))


def _ridge(inputs: list[Floats], y: Floats, ridge: float) -> tuple[Floats, float]:
    """Coefficients, and how much of the variance they explain."""
    if not inputs:
        return np.zeros(0), 0.0
    x = np.hstack(inputs)
    x, y = x - x.mean(axis=0), y - y.mean()
    rows = np.vstack([x, np.sqrt(ridge * len(y)) * np.eye(x.shape[1])])
    b = np.linalg.lstsq(rows, np.concatenate([y, np.zeros(x.shape[1])]), rcond=None)[0]
    return b, float(y @ x @ b) / len(y)


def _shapley(j: int, count: int, value: Mapping[tuple[int, ...], float]) -> float:
    """The mean over all orders of what j adds to those before it."""
    gains = []
    for order in permutations(range(count)):
        before = tuple(sorted(order[: order.index(j)]))
        gains.append(value[tuple(sorted((*before, j)))] - value[before])
    return float(np.mean(gains))


# --- the bar -------------------------------------------------------------------------------------------------


def bars(seeds: int) -> Iterator[Bar]:
    """A thousand answers, nothing but NPS asked, and no repeat reserved for a branch that drops."""
    for branches in (4, 16):
        for nps in (-10, 30, 50):
            case = thousand(nps, branches)
            errors = [_error(a, nps) for a in answers(case, 0.5, seeds)]
            mean = float(np.mean(errors))
            name = f"NPS {nps:+d} from {ANSWERS:,} answers at epsilon 0.5, {branches} branches, mean error"
            yield Bar(name, f"at most {POINTS:g} point", f"{mean:.2f}", mean <= POINTS)


def _error(answer: Mapping[str, Any], truth: float) -> float:
    return abs(float(answer["parts"][0]["rows"][0]["nps"]["value"]) - truth)


def thousand(nps: int, branches: int) -> Case:
    """So many answers with that score, among five times as many customers; the job reserves no repeat."""
    contract = Contract.model_validate(
        {
            "version": 1,
            "name": "answers",
            "purpose": "See who would recommend us.",
            "tables": [
                {
                    "name": "customers",
                    "columns": [
                        {"name": "id", "type": "string", "role": "customer_id"},
                        {"name": "nps", "type": "integer", "bounds": [0, 10], "nullable": True},
                    ],
                }
            ],
        }
    )
    promoters = (700 + 10 * nps) // 2
    given = [9.0] * promoters + [3.0] * (700 - promoters) + [7.0] * 300
    columns = {"nps": pa.array(given + [None] * (4 * ANSWERS), pa.int64())}
    return Case(
        "a thousand answers",
        contract,
        "satisfaction",
        {"nps": "nps"},
        split(columns, branches),
        partial(_no),
        repeats=0,
    )


def _no(_: Mapping[str, Any]) -> Pairs:
    yield from ()
