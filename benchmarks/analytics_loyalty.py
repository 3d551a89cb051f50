"""Rewards of the sample bank, by segment and by area. Leads and who wins are about other customers: see the tests."""

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from analytics_campaign import Naive
from analytics_harness import Case, Pairs, bank_columns, pooled

from sfumato.common.analyses import catalogue
from sfumato.common.contract import load_contract
from sfumato.lab.samplebank import generate

QUESTION = {
    "reward": "contacts.reward",
    "outcome": "contacts.responded",
    "control": "none",
    "groups": ["segment", "area"],
}


def cases() -> Iterator[Case]:
    with tempfile.TemporaryDirectory() as directory:
        bank = generate(Path(directory) / "bank")
        contract = load_contract(bank.contract)
        names = catalogue.build("loyalty", QUESTION, contract).columns
        branches = bank_columns(bank, names, Path(directory))
    naive = Naive({"treatment": QUESTION["reward"], "control": "none"}, pooled(branches))

    def pairs(answer: Mapping[str, Any]) -> Pairs:
        yield "customers", answer["customers"], naive.inside.sum()
        for row in answer["parts"][1]["rows"]:
            by, group, reward = row["of"]
            values = naive.values("contacts.responded", reward, None if by == "-" else (by, group), 1.0)
            yield f"{by} customers", row["customers"], float(len(values))
            if len(values):
                yield f"{by} rate", row["rate"], float(values.mean())

    yield Case("sample bank", contract, "loyalty", QUESTION, branches, pairs)
