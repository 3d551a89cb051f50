"""Support, confidence and lift of item sets, from counts whose noise is independent (Agrawal et al. 1993, section 2;
Brin et al. 1997, where lift is called interest)."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import sqrt
from typing import Any

from sfumato.common.analyses.estimates import REACH, Number, number, quotient
from sfumato.common.analyses.parts import Unit, part

Items = tuple[str, ...]


@dataclass(frozen=True)
class Count:
    """A noisy count, and the variance of its noise."""

    value: float
    variance: float

    @property
    def number(self) -> Number:
        reach = REACH * sqrt(self.variance)
        return number(self.value, self.value - reach, self.value + reach)

    def times(self, other: "Count") -> "Count":
        """The product, if the two noises are independent; the variances' own product is taken at its estimate."""
        mixed = self.value**2 * other.variance + other.value**2 * self.variance
        return Count(self.value * other.value, mixed + self.variance * other.variance)

    def over(self, whole: "Count", most: float = 1.0) -> Number:
        """The ratio, by Fieller's interval; [0, most] where noise drowns the whole."""
        return quotient(self.value, whole.value, self.variance, whole.variance, 0.0, most=most)


@dataclass(frozen=True)
class ItemSets:
    """How many baskets hold each set, by its items in the order of the contract; `whole` counts all baskets."""

    counts: Mapping[Items, Count]
    whole: Count
    unit: Unit

    def parts(self) -> Iterator[dict[str, Any]]:
        """Tables "items", "pairs" and "triples", the most frequent first; "rules", the surest high lift first."""
        for name, by in (
            ("items", ("item",)),
            ("pairs", ("item", "with")),
            ("triples", ("item", "with", "and")),
        ):
            sets = sorted((s for s in self.counts if len(s) == len(by)), key=lambda s: -self.counts[s].value)
            units: dict[str, Unit] = {"baskets": self.unit, "support": "share"}
            if sets:
                yield part(name, by, units, ({"of": s} | self._set(s) for s in sets))
        rules = sorted(self._rules(), key=lambda r: -r["lift"]["low"])
        measures: dict[str, Unit] = {"support": "share", "confidence": "share", "lift": "number"}
        yield part("rules", ("if", "then"), measures, rules)

    def _set(self, items: Items) -> dict[str, Number]:
        return {"baskets": self.counts[items].number, "support": self.counts[items].over(self.whole)}

    def _rules(self) -> Iterator[dict[str, Any]]:
        """Each item of a set from the others, where those were counted together."""
        most = max(self.whole.number["high"], 1.0)  # no lift is higher than that
        for items, count in self.counts.items():
            for then in items if len(items) > 1 else ():
                rest = tuple(i for i in items if i != then)
                if rest not in self.counts:
                    continue
                apart = self.counts[rest].times(self.counts[(then,)])
                yield {
                    "of": [" + ".join(rest), then],
                    "support": count.over(self.whole),
                    "confidence": count.over(self.counts[rest]),
                    "lift": count.times(self.whole).over(apart, most),
                }
