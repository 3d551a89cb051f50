"""What is read from the sums of lifetime value: see clv."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from math import sqrt
from typing import Any

import numpy as np
import numpy.typing as npt

from sfumato.common.analyses.analysis import NoisySum
from sfumato.common.analyses.clv_groups import ALL, BIN_WEIGHT, BINS, TIMES, WEIGHTS, Groups, Level, Sums
from sfumato.common.analyses.estimates import LEVEL, REACH, Number, number, quotient
from sfumato.common.analyses.parts import Unit, part
from sfumato.common.learners.lifetime import Lifetime

UNITS: dict[str, Unit] = {
    "customers": "customers",
    "alive": "share",
    "purchases": "number",
    "purchases_each": "number",
    "value": "amount",
    "value_each": "amount",
    "lifetime": "amount",
    "lifetime_each": "amount",
}

Floats = npt.NDArray[np.float64]
Pairs = Iterable[tuple[float, float]]


@dataclass(frozen=True)
class Answer:
    """All sums, read."""

    sums: Sums
    ceilings: Floats
    level: Level
    total: NoisySum

    @property
    def groups(self) -> Groups:
        return self.sums.groups

    @property
    def _ceilings(self) -> Floats:
        """[measures that are sums, groups by repeat purchases]."""
        return self.ceilings.reshape(-1, self.groups.shape[0])

    @cached_property
    def _unit(self) -> Floats:
        """What a number of the total stands for, [measures, groups]."""
        often, since = self.groups.shape
        ones, ceilings = np.ones((2, often)), self._ceilings
        weights = np.array([WEIGHTS[m] for m in self.groups.measures])
        return np.asarray(np.repeat(np.concatenate([ones, ceilings]), since, axis=1) / weights[:, None])

    @cached_property
    def _found(self) -> Floats:
        cut = self._unit.size
        return np.asarray(self.total.values[:cut].reshape(self._unit.shape) * self._unit)

    @cached_property
    def _moves(self) -> Floats:
        """By how much every number would move with other parameters, [pairs, 2, measures, groups]."""
        alive, purchases, _ = self.sums.of_times(self.sums.u[:TIMES])
        moves = []
        for pair in self.sums.fits[0].others:
            by = np.zeros((2, *self._found.shape))
            for side, u in enumerate(pair):
                other = self.sums.of_times(u)
                by[side, 1] = _relative(other[0], alive)
                by[side, 2:] = _relative(other[1], purchases)
                by[side, 3:4] = 0.0
            moves.append(by)
        if self.groups.amounts:
            mean = self.sums.of_values(self.sums.u[TIMES:])
            for pair in self.sums.fits[1].others:
                by = np.zeros((2, *self._found.shape))
                by[:, 4] = [_relative(self.sums.of_values(u), mean) for u in pair]
                moves.append(by)
        return np.asarray(np.stack(moves) * self._found)

    def _sum(self, measure: str, groups: Sequence[int]) -> tuple[Number, float]:
        """With its standard deviation."""
        i = self.groups.measures.index(measure)
        value = float(self._found[i, groups].sum())
        noise = REACH * self.total.std * float(np.linalg.norm(self._unit[i, groups]))
        moved = value + self._moves[:, :, i][:, :, list(groups)].sum(axis=2)
        low, high = _reach(value, ((a, b) for a, b in moved.tolist()), noise)
        return number(value, low, high), (high - low) / 2 / REACH

    def _row(self, groups: Sequence[int]) -> dict[str, Number]:
        """Sums, and what they are for each customer."""
        customers, error = self._sum("customers", groups)
        row = {"customers": customers}
        most = self._unit[:, groups].max(axis=1) * [WEIGHTS[m] for m in self.groups.measures]
        for i, measure in enumerate(self.groups.measures[1:], 1):
            found, off = self._sum(measure, groups)
            x, n = float(self._found[i, groups].sum()), float(self._found[0, groups].sum())
            each = quotient(x, n, off**2, error**2, 0.0, 0.0, float(most[i]))
            row |= {"alive": each} if measure == "alive" else {measure: found, f"{measure}_each": each}
        if max(groups) < self.groups.shape[1]:  # nobody of them came twice: the model has them all alive
            row["alive"] = number(1.0, 1.0, 1.0)
        return row

    def answer(self) -> dict[str, Any]:
        """Parts: parameters, a new customer, all customers, by purchases, alive; none where noise drowns a fit."""
        customers, std = self._customers
        count = number(customers, customers - REACH * std, customers + REACH * std)
        if any(fit.drowned for fit in self.sums.fits):
            note = "There are too few customers for so much noise: the models were not fitted."
            return {"level": LEVEL, "customers": count, "notes": [note], "parts": []}
        units = {m: u for m, u in UNITS.items() if m.split("_")[0] in self.groups.measures}
        rows = [{"of": list(of), **self._row([g])} for g, of in enumerate(self.groups.words())]
        return {
            "level": LEVEL,
            "customers": count,
            "ceilings": dict(zip(self.groups.measures[2:], self._ceilings.tolist(), strict=True)),
            "notes": self._notes(),
            "parts": [
                part("parameters", ["parameter"], {"value": "number"}, self._parameters()),
                part("a new customer", [], self._new_units(), [self._new()]),
                part("all customers", [], units, [{"of": [], **self._all()}]),
                part("by purchases", ["repeat purchases", "days since the last"], units, rows),
                part("alive", ["probability of being alive"], {"customers": "customers"}, self._alive()),
                part("ceilings", ["repeat purchases"], {}, self._ceiling_rows()),
            ],
        }

    @property
    def _customers(self) -> tuple[float, float]:
        """All of them, and its standard deviation: by both ways to count them."""
        alone, groups = ALL["customers"] ** 2, WEIGHTS["customers"] ** 2 / self.groups.size
        own = self.total.values[-len(ALL)] / ALL["customers"]
        value = (alone * own + groups * self._found[0].sum()) / (alone + groups)
        return float(value), self.total.std / sqrt(alone + groups)

    def _all(self) -> dict[str, Number]:
        """Of all customers: like a group's, but counted by itself where that has less noise."""
        (n, std), row = self._customers, self._row(range(self.groups.size))
        reach, u, fit = self.level.reach / ALL["purchases"], self.sums.u[:TIMES], self.sums.fits[0]
        noise = np.hypot(reach * self.total.std, self.level.centre * std)
        at = self.sums.all_purchases(u, self.level)
        found = float(reach * self.total.values[-1] + self.level.centre * n)
        moved = [[found + self.sums.all_purchases(v, self.level) - at for v in pair] for pair in fit.others]
        low, high = _reach(found, ((a, b) for a, b in moved), float(REACH * noise))
        off = ((high - low) / 2 / REACH) ** 2
        alive = float(self.total.values[1 - len(ALL)]) / ALL["alive"]
        shift = self._moves[:, :, 1].sum(axis=2).tolist()
        ends = _reach(
            alive, ((alive + a, alive + b) for a, b in shift), REACH * self.total.std / ALL["alive"]
        )
        row["alive"] = quotient(alive, n, ((ends[1] - ends[0]) / 2 / REACH) ** 2, std**2, 0.0)
        row["customers"] = number(n, n - REACH * std, n + REACH * std)
        row["purchases"] = number(found, low, high)
        most = self.ceilings[: self.groups.shape[0]].max()
        row["purchases_each"] = quotient(found, n, off, std**2, self.level.centre * std**2, 0.0, float(most))
        return row

    def _ceiling_rows(self) -> Iterator[dict[str, Any]]:
        for often, above in zip(
            dict.fromkeys(w for w, _ in self.groups.words()), self._ceilings.T, strict=True
        ):
            each = zip(self.groups.measures[2:], above, strict=True)
            yield {"of": [often]} | {name: f"{most:,.{0 if most >= 100 else 2}f}" for name, most in each}

    def _notes(self) -> list[str]:
        months = self.sums.model(self.sums.u).months
        notes = [
            f"Purchases and lifetime are of the next {months} months. In groups, and in values, a customer counts up "
            "to the ceiling of their number of repeat purchases.",
            "Who bought once counts as alive for certain: so BG/NBD has it.",
        ]
        if self._open:
            notes.append("How unlike customers' drop-out is cannot be told: a and b may lie anywhere.")
        return notes

    # --- what the parameters say by themselves ---------------------------------------------------------

    @cached_property
    def _open(self) -> bool:
        """Whether how unlike the drop-out is could be at one of its limits: then it may be anything."""
        fit = self.sums.fits[0]
        spreads = [u[3] for u in (fit.top, *(u for pair in fit.others for u in pair))]
        low, high = fit.stand_ins.model.low[3], fit.stand_ins.model.high[3]
        return bool(min(spreads) < low + 0.05 or max(spreads) > high - 0.05)

    def _of(
        self, what: Callable[[Lifetime], float], most: float = float("inf"), ends: bool = False
    ) -> Number:
        fits, u = self.sums.fits, self.sums.u
        pairs = [(np.concatenate([v, u[TIMES:]]), np.concatenate([w, u[TIMES:]])) for v, w in fits[0].others]
        if self.groups.amounts:
            pairs += [
                (np.concatenate([u[:TIMES], v]), np.concatenate([u[:TIMES], w])) for v, w in fits[1].others
            ]
        if ends and self._open:
            model = fits[0].stand_ins.model
            pairs.append((_with(u, 3, model.low[3]), _with(u, 3, model.high[3])))
        of = [(what(self.sums.model(v)), what(self.sums.model(w))) for v, w in pairs]
        value = what(self.sums.model(u))
        return number(value, *_reach(value, of, 0.0), most)

    def _parameters(self) -> Iterator[dict[str, Any]]:
        for name in ("r", "alpha", "a", "b", "drop_out"):
            value = self._of(_named("times", name), ends=name in "ab")
            yield {"of": [name.replace("_", "-")], "value": value, "model": "BG/NBD"}
        for name in ("p", "q", "v") if self.groups.amounts else ():
            value = self._of(_named("values", name))
            yield {"of": [name], "value": value, "model": "gamma-gamma"}

    def _new_units(self) -> dict[str, Unit]:
        more: dict[str, Unit] = {"value_each": "amount", "lifetime": "amount"} if self.groups.amounts else {}
        return {"purchases": "number", **more}

    def _new(self) -> dict[str, Any]:
        row = {"purchases": self._of(lambda m: m.new[0])}
        if self.groups.amounts:
            row |= {"value_each": self._of(lambda m: m.new[1]), "lifetime": self._of(lambda m: m.new[2])}
        return {"of": [], **row}

    def _alive(self) -> Iterator[dict[str, Any]]:
        bins = self.total.values[self._unit.size : -len(ALL)] / BIN_WEIGHT
        at = self.sums.of_times(self.sums.u[:TIMES])[2]
        others = [[self.sums.of_times(u)[2] - at for u in pair] for pair in self.sums.fits[0].others]
        noise = REACH * self.total.std / BIN_WEIGHT
        for i, (low, high) in enumerate(pairwise((0.0, *BINS, 1.0))):
            value = float(bins[i])
            pairs = [(value + float(a[i]), value + float(b[i])) for a, b in others]
            yield {"of": [f"{low:g} to {high:g}"], "customers": number(value, *_reach(value, pairs, noise))}


def _reach(value: float, pairs: Pairs, noise: float) -> tuple[float, float]:
    """An interval from what else the number could be, along independent directions, and noise of its own."""
    up = down = noise**2
    for pair in pairs:
        up += max(*(p - value for p in pair), 0.0) ** 2
        down += min(*(p - value for p in pair), 0.0) ** 2
    return value - sqrt(down), value + sqrt(up)


def _relative(other: Floats, at: Floats) -> Floats:
    return np.divide(other, at, out=np.ones(len(at)), where=at > 0) - 1


def _named(model: str, name: str) -> Callable[[Lifetime], float]:
    return lambda m: float(getattr(getattr(m, model), name))


def _with(u: Floats, place: int, value: float) -> Floats:
    changed = u.copy()
    changed[place] = value
    return changed
