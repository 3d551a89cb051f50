"""The portrait of the sample bank's customers, and of adult's where it is beside the project."""

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import portraits
from analytics_harness import Case, Pairs

SETS = ("adult", portraits.SAMPLE_BANK)


def cases() -> Iterator[Case]:
    with tempfile.TemporaryDirectory() as directory:
        for name in SETS:
            drawn = portraits.case_of(name, 16, Path(directory))
            if drawn is not None:
                yield _case(drawn)


def _case(drawn: portraits.Case) -> Case:
    analysis, truth = portraits.asked(drawn.job, drawn.contract), portraits.exact_counts(drawn)

    def pairs(answer: Mapping[str, Any]) -> Pairs:
        yield from portraits.numbers(analysis, answer, truth)

    return Case(drawn.name, drawn.contract, "profile", drawn.job.question, drawn.branches, pairs)
