"""What a question will cost, and how well it will be known, before anybody is asked: by its job's plan alone."""

import math
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sfumato.common.analyses.query import Query
from sfumato.common.contract import Contract
from sfumato.common.errors import BadInput
from sfumato.common.job import AnalysisJob
from sfumato.privacy import accounting
from sfumato.privacy.mechanisms import SumNoise
from sfumato.privacy.plan import Plan

CUSTOMERS = 1000  # of the group that widths are told for


@dataclass(frozen=True)
class Width:
    """Half of the expected 95 % interval in a group of CUSTOMERS; a quantile's is a share of ranks."""

    name: str
    unit: str
    half: float
    of_ranks: bool


@dataclass(frozen=True)
class Estimate:
    """`epsilon` is what each branch will hold ready and report: the job's plan. `epsilon_once` is what it charges if
    no branch drops. `numbers` are in the sum; `std` is the noise of each, for vectors of norm 1."""

    epsilon: float
    epsilon_once: float
    delta: float
    branches: int
    groups: int
    numbers: int
    std: float
    widths: tuple[Width, ...]

    @classmethod
    def of(cls, job: AnalysisJob, contract: Contract, branches: int) -> "Estimate":
        """Raises BadInput on a question that cannot be asked, and on fewer branches than the job needs."""
        asked = job.analysis(contract)
        if not isinstance(asked, Query):
            raise BadInput(f"a job of kind {job.kind!r} is no query")
        if branches < job.federation.min_branches:
            raise BadInput(
                f"{branches} branches are enrolled, and the question needs {job.federation.min_branches}"
            )
        plan = Plan.of(job, contract)
        ask, secure = plan.ask(0), job.privacy.mode == "secure-sum"
        noise = SumNoise(ask.noise_multiplier)
        if secure:
            noise = SumNoise(ask.noise_multiplier, plan.times, 1.0, branches, job.privacy.colluders)
        slots = job.audit.empty_slots + job.audit.canaries
        std = noise.total_std(ask.l2_sensitivity(asked.length(0) + slots), ask.max_norm)
        std *= 1.0 if secure else math.sqrt(branches)
        once = accounting.in_every_branch(
            accounting.gaussian(ask.noise_multiplier), 1 if secure else plan.times
        )
        widths = tuple(
            Width(name, m.unit, m.reach(asked.blocks, std, CUSTOMERS), m.measure.at is not None)
            for name, m in asked.measures.items()
            if m.measure.shown
        )
        return cls(
            epsilon=plan.epsilon(),
            epsilon_once=accounting.pld_epsilon([once], plan.delta),
            delta=plan.delta,
            branches=branches,
            groups=len(asked.possible),
            numbers=asked.length(0),
            std=std,
            widths=widths,
        )

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        widths = {w.name: {"half_width": w.half, "of_ranks": w.of_ranks, "unit": w.unit} for w in self.widths}
        plain = {k: v for k, v in vars(self).items() if k != "widths"}
        return plain | {"customers": CUSTOMERS, "measures": widths}

    def show(self, console: Console) -> None:
        """At the terminal."""
        console.print(
            f"{self.groups:,} groups, {self.numbers:,} numbers in one sum over {self.branches} branches. "
            f"Epsilon {self.epsilon:.4f} at delta {self.delta:g}; {self.epsilon_once:.4f} if no branch drops."
        )
        table = Table("measure", f"expected, in a group of {CUSTOMERS:,}", box=None)
        for w in self.widths:
            told = f"±{w.half:,.4g}"
            if w.of_ranks or w.unit == "share":
                told = f"±{100 * min(w.half, 1.0):.2g} points" + (" of rank" if w.of_ranks else "")
            table.add_row(escape(w.name), told)
        console.print(table)
