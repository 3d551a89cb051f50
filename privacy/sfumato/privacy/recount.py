"""What a ledger's charges add up to, recomputed from its entries alone: for whoever does not trust the vault."""

from typing import Self

import numpy as np
from dp_accounting.dp_event import DpEvent

from sfumato.common.errors import LedgerBroken
from sfumato.privacy import accounting
from sfumato.privacy.entries import Entry

_SLACK = 1e-9  # relative: many small curves against one large curve


class Account:
    """Takes a ledger's entries in order and adds up its charges, by population."""

    def __init__(self) -> None:
        self.budget: float | None = None
        self.delta = 0.0
        self._curves: dict[str, accounting.Curve] = {}
        self._events: dict[str, list[DpEvent]] = {}

    def copy(self) -> Self:
        other = type(self)()
        other.budget, other.delta = self.budget, self.delta
        other._curves = dict(self._curves)
        other._events = {p: list(e) for p, e in self._events.items()}
        return other

    def take(self, entry: Entry, name: str) -> None:
        """Raises LedgerBroken for a charge without a cost, and for the one that goes beyond entry 0's budget."""
        try:
            if entry.kind == "genesis" and entry.seq == 0 and "budget_epsilon" in entry.body:
                self.budget = float(entry.body["budget_epsilon"])
                self.delta = float(entry.body["budget_delta"])
            if entry.kind != "charge":
                return
            event = accounting.decode_event(entry.body["event"])
            populations = _populations(entry.body["population"])
        except (KeyError, ValueError, TypeError):
            raise LedgerBroken(f"{name}: entry {entry.seq} says nothing that could be added up") from None
        for population in populations:
            curve = self._curves.get(population, accounting.zero_curve()) + accounting.rdp_curve(event)
            self._curves[population] = curve
            self._events.setdefault(population, []).append(event)
            if self.budget is None or self._epsilon(curve) > self.budget * (1 + _SLACK):
                raise LedgerBroken(f"{name}: entry {entry.seq} spends beyond the budget of entry 0")

    def spent(self) -> dict[str, tuple[float, float]]:
        """By population: epsilon at `delta` by the Rényi filter, and by privacy-loss distributions (PLD)."""
        return {
            population: (self._epsilon(curve), accounting.pld_epsilon(self._events[population], self.delta))
            for population, curve in sorted(self._curves.items())
        }

    def _epsilon(self, curve: accounting.Curve) -> float:
        return accounting.filter_epsilon(np.asarray(curve, dtype=np.float64), self.delta)


def _populations(named: str) -> tuple[str, ...]:
    if named not in ("training", "holdout", "all"):
        raise ValueError("not a population")
    return ("training", "holdout") if named == "all" else (named,)
