"""Where a ledger's budget stands: totals that follow its entries, so that none is read twice.

What is kept is a function of the entries, added up in their order: a fresh reader of the same ledger has the
same totals to the last bit.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy as np
import numpy.typing as npt
from dp_accounting.privacy_accountant import UnsupportedEventError

from sfumato.common.canonical import canonical_bytes
from sfumato.common.errors import LedgerBroken
from sfumato.privacy import accounting
from sfumato.privacy.accounting import POPULATIONS, Curve
from sfumato.privacy.ledger import Entry, Transaction

Curves = npt.NDArray[np.float64]  # [population, order]: one curve of accounting a population
Round = tuple[int, str]  # its number, and what was asked


def nothing() -> Curves:
    return np.zeros((len(POPULATIONS), accounting.zero_curve().size))


@dataclass(slots=True)
class OpenJob:
    """What an open job may cost and has cost, and the set that each of its rounds was last charged for."""

    planned: Curves
    expires_at: datetime
    charged: Curves = field(default_factory=nothing)
    sets: dict[Round, frozenset[str]] = field(default_factory=dict)

    @property
    def last_round(self) -> int | None:
        """The highest that was charged for; None if none was."""
        return max((round_ for round_, _ in self.sets), default=None)


class Standing:
    """Totals over a ledger's first `size` entries. `follow` it inside each transaction that decides on them."""

    def __init__(self) -> None:
        self._forget()

    def _forget(self) -> None:
        self.size, self._root = 0, ""
        self.spent = nothing()
        self.jobs: dict[str, OpenJob] = {}
        self.closed: set[str] = set()
        self._events: dict[str, Counter[bytes]] = {p: Counter() for p in POPULATIONS}

    def follow(self, transaction: Transaction) -> None:
        """Read what was written since, by whichever process.

        Raises LedgerBroken for what cannot be added up, and for a ledger that has lost what was read before.
        """
        size, root = transaction.head()
        if (size, root) == (self.size, self._root):
            return
        if size <= self.size:
            raise LedgerBroken(
                f"the ledger had {self.size} entries, and now has {size} that are not all the same"
            )
        try:
            for entry in transaction.entries("reserve", "charge", "close", after=self.size - 1):
                self._add(entry)
        except BaseException:
            self._forget()  # half of it may be added up
            raise
        self.size, self._root = size, root

    def committed(self, now: datetime) -> Curves:
        """Spent, plus what open jobs may still spend. [population, order]"""
        total = self.spent.copy()
        for job in self.jobs.values():
            if job.expires_at >= now:
                total += accounting.left_of(job.planned, job.charged)
        return total

    def charges(self) -> tuple[Mapping[bytes, int], ...]:
        """Each population's events, encoded, with how often each was charged."""
        return tuple(dict(events) for events in self._events.values())

    def _add(self, entry: Entry) -> None:
        try:
            self._take(entry)
        except (KeyError, ValueError, TypeError, UnsupportedEventError) as e:
            raise LedgerBroken(f"entry {entry.seq} of the ledger says nothing that could be added up") from e

    def _take(self, entry: Entry) -> None:
        body, job_id = entry.body, entry.job_id
        if entry.kind == "charge":
            event, population = body["event"], body["population"]
            cost = of(population, accounting.rdp_curve(accounting.decode_event(event)))
            self.spent += cost
            for p in POPULATIONS:
                if population in (p, "all"):
                    self._events[p][canonical_bytes(event)] += 1
            job = self.jobs.get(job_id or "")
            if job:
                job.charged += cost
                job.sets[body["round"], body["what"]] = frozenset(body.get("members", ()))
        elif job_id is None:
            raise ValueError("Expected a job.")
        elif entry.kind == "reserve" and job_id not in self.closed:
            expires_at = datetime.fromisoformat(body["expires_at"])
            self.jobs.setdefault(job_id, OpenJob(planned_curves(body["planned"]), expires_at))
        elif entry.kind == "close":
            self.jobs.pop(job_id, None)
            self.closed.add(job_id)


def of(population: str, curve: Curve) -> Curves:
    """A cost on the account of its population, or of both. Raises ValueError on any other word."""
    if population not in (*POPULATIONS, "all"):
        raise ValueError(f"Expected a population, got {population!r}.")
    return np.stack([curve if population in (p, "all") else accounting.zero_curve() for p in POPULATIONS])


def planned_curves(planned: Mapping[str, Any]) -> Curves:
    """The curves of events as a `reserve` entry holds them, by population."""
    total = nothing()
    for population, event in planned.items():
        total += of(population, accounting.rdp_curve(accounting.decode_event(event)))
    return total
