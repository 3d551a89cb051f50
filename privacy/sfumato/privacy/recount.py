"""What a ledger's charges add up to, recomputed from its entries alone: for whoever does not trust the vault."""

from typing import Self

from dp_accounting.dp_event import DpEvent
from dp_accounting.privacy_accountant import UnsupportedEventError

from sfumato.common.errors import LedgerBroken
from sfumato.privacy import accounting
from sfumato.privacy.accounting import POPULATIONS, Account
from sfumato.privacy.entries import Entry


class Recount:
    """Takes a ledger's entries in order and adds up its charges, by population."""

    def __init__(self) -> None:
        self.budget: float | None = None
        self.delta = 0.0
        self._accounts: dict[str, Account] = {}
        self._events: dict[str, list[DpEvent]] = {}

    def copy(self) -> Self:
        other = type(self)()
        other.budget, other.delta = self.budget, self.delta
        other._accounts = {p: account.copy() for p, account in self._accounts.items()}
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
            for population in _populations(entry.body["population"]):
                self._accounts.setdefault(population, Account()).add(event)
                self._events.setdefault(population, []).append(event)
        except (KeyError, ValueError, TypeError, UnsupportedEventError):
            raise LedgerBroken(f"{name}: entry {entry.seq} says nothing that could be added up") from None
        spent = max(account.epsilon(self.delta) for account in self._accounts.values())
        if self.budget is None or spent > self.budget * (1 + accounting.SLACK):
            raise LedgerBroken(f"{name}: entry {entry.seq} spends beyond the budget of entry 0")

    def spent(self) -> dict[str, tuple[float, float]]:
        """By population: epsilon at `delta` by the Rényi filter, and by privacy-loss distributions (PLD)."""
        return {
            population: (
                account.epsilon(self.delta),
                accounting.pld_epsilon(self._events[population], self.delta),
            )
            for population, account in sorted(self._accounts.items())
        }


def _populations(named: str) -> tuple[str, ...]:
    if named not in (*POPULATIONS, "all"):
        raise ValueError("not a population")
    return POPULATIONS if named == "all" else (named,)
