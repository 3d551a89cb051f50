"""Does the running code keep its promise? What the phantom slots showed, held against the claim.

Five tests, each a score test of the claim and none a lower bound on epsilon: a one-run bound (Steinke, Nasr &
Jagielski 2023) stays near 4 even where there is no noise at all. Under correct code each test is flagged (p < 1e-3)
once in a thousand audits; one in a million audits is contradicted in any of its tests.

    noise       empty slots (and the canaries' residuals): chi-squared test of the noise's variance, two-sided
    fresh       empty slots: chi-squared test of their sums over rounds, which noise drawn once would inflate
    canaries    Gaussian score test: signal over noise, mu_hat above the claim by more than 3.09 standard errors
    clip        a phantom that asked for 10 times the bound added no more than the bound, however it was sampled
    rate        phantoms are taken in at the claimed rate (at rate 1: they are not missing)
"""

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np
from scipy import special

from sfumato.common.errors import BadInput
from sfumato.privacy.phantoms import OVERREACH, Floats, Phantoms, split

__all__ = ["Finding", "Phantoms", "SumEvidence", "Verdict", "assess", "from_json", "split", "to_json"]

FLAG, CONTRADICT = 1e-3, 1e-6
SEEN_WITH = 0.95  # the chance with which a power statement's defect is contradicted

_SHIFTS = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 32.0, 64.0)
_BY_RATE = "nothing by itself: see rate, which sees bound times rate"

Outcome = Literal["consistent", "flagged", "contradicted"]
Test = Literal["noise", "fresh", "canaries", "clip", "rate"]


@dataclass(frozen=True, slots=True)
class SumEvidence:
    """What one answer showed in its phantom slots.

    std           of the noise that one release should have on the total, in the contributions' unit
    steps         how many releases are added up in the values: their noise has std * sqrt(steps)
    sample_rate   with which a customer, or a phantom, is taken into one release
    empty         [E], in the contributions' unit;   canary [K] likewise
    coins         [K]: how many of the members took this phantom in; empty if they were never revealed
    members       the branches whose contributions are in the total

    Raises ValueError on numbers that no honest answer has.
    """

    what: str
    round: int
    members: tuple[str, ...]
    std: float
    sample_rate: float
    max_norm: float
    empty: tuple[float, ...]
    canary: tuple[float, ...]
    coins: tuple[int, ...]
    steps: int = 1

    def __post_init__(self) -> None:
        for name in ("members", "empty", "canary", "coins"):
            object.__setattr__(self, name, tuple(np.asarray(getattr(self, name)).tolist()))
        if not (1e-60 <= self.std <= 1e60 and 1e-60 <= self.max_norm <= 1e60):
            raise ValueError("Expected std and max_norm in [1e-60, 1e60].")
        if not (1e-12 <= self.sample_rate <= 1 and 1e-20 <= self.std / self.max_norm <= 1e20):
            raise ValueError("Expected a sample_rate in (0, 1] and noise that has to do with the bound.")
        if not 1 <= self.steps <= 1_000_000_000 or not self.members or not isinstance(self.what, str):
            raise ValueError("Expected at least one step and one member.")
        if not all(abs(x) <= 1e100 * self.std for x in (*self.empty, *self.canary)):
            raise ValueError("Expected finite values in the slots.")
        if self.coins and len(self.coins) != len(self.canary):
            raise ValueError(f"Expected {len(self.canary)} coins, got {len(self.coins)}.")
        if any(not 0 <= c <= len(self.members) for c in self.coins):
            raise ValueError("Expected no coin above the number of members.")


def to_json(evidence: Iterable[SumEvidence]) -> str:
    """The text of a run's audit.json. The verdict is not in it: whoever reads it draws their own."""
    return json.dumps({"version": 1, "evidence": [asdict(e) for e in evidence]}, allow_nan=False)


def from_json(text: str | bytes) -> list[SumEvidence]:
    """Read `to_json`'s text. Raises BadInput on anything else."""
    try:
        data: dict[str, Any] = json.loads(text)
        if data["version"] != 1:
            raise ValueError(f"version {data['version']!r}")
        return [SumEvidence(**e) for e in data["evidence"]]
    except (ValueError, KeyError, TypeError, UnicodeDecodeError) as e:
        raise BadInput(
            f"This is not the evidence of an audit: {e}", hint="A run's directory has it as audit.json."
        ) from None


@dataclass(frozen=True, slots=True)
class Finding:
    """One test on all rounds of one sort of answer. `quantity` names what was claimed and measured; `power` says
    which defect would have been contradicted with 95% chance."""

    test: Test
    what: str
    quantity: str
    claimed: float
    measured: float
    p: float
    outcome: Outcome
    power: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """All findings. `outcome` is the worst of them; "unaudited" if there were no phantom slots to look at."""

    findings: tuple[Finding, ...]
    releases: int

    @property
    def outcome(self) -> Literal["unaudited"] | Outcome:
        found = {f.outcome for f in self.findings}
        for outcome in ("contradicted", "flagged", "consistent"):
            if outcome in found:
                return outcome
        return "unaudited"

    @property
    def contradicted(self) -> bool:
        """What the coordinator asks before it publishes."""
        return self.outcome == "contradicted"

    def to_json(self) -> str:
        return json.dumps({"outcome": self.outcome, **asdict(self)}, allow_nan=False)


def assess(evidence: Sequence[SumEvidence]) -> Verdict:
    """Hold the phantom slots of a job against its claim, over all rounds, for each sort of answer.

    Answers of single branches (mode local) are tested branch by branch: one that is silent about noise would be
    lost among the others.
    """
    groups: dict[str, list[SumEvidence]] = {}
    for e in evidence:
        groups.setdefault(f"{e.what} of {e.members[0]}" if len(e.members) == 1 else e.what, []).append(e)
    level = CONTRADICT / max(1, len(get_args(Test)) * len(groups))
    found = [f for what, group in groups.items() for f in _group(what, group, level)]
    return Verdict(tuple(found), len(evidence))


def _group(what: str, evidence: Sequence[SumEvidence], level: float) -> Iterator[Finding]:
    noise = _Noise.of(evidence)
    if noise.slots:
        yield _noise(what, noise, level)
    if len(evidence) > 1 and evidence[0].empty and len({len(e.empty) for e in evidence}) == 1:
        yield _fresh(what, evidence, level)
    with_coins = [e for e in evidence if any(e.coins)]
    if with_coins:
        share = _Share.of(with_coins)
        yield _canaries(what, share, noise, level)
        yield _clip_always(what, share, level) if share.rate == 1 else _clip_sampled(what, with_coins, level)
        yield _rate(what, share, level)


def _finding(
    test: Test, what: str, quantity: str, claimed: float, measured: float, p: float, level: float, power: str
) -> Finding:
    p = min(1.0, max(0.0, float(p)))
    outcome: Outcome = "contradicted" if p < level else "flagged" if p < FLAG else "consistent"
    return Finding(test, what, quantity, float(claimed), float(measured), p, outcome, power)


@dataclass(frozen=True, slots=True)
class _Noise:
    """Slots of noise alone, in units of the claim: how many (degrees of freedom), and their mean square (1 expected).

    The empty slots; and where nothing is sampled, what a straight line through the canaries' coins leaves of them,
    which is noise however much a canary adds.
    """

    slots: int
    ratio: float

    @classmethod
    def of(cls, evidence: Sequence[SumEvidence]) -> "_Noise":
        square, slots = 0.0, 0
        for e in evidence:
            scale = e.std**2 * e.steps
            square += float(np.square(e.empty).sum()) / scale
            slots += len(e.empty)
            if e.sample_rate == 1 and any(e.coins):
                canary, coins = np.asarray(e.canary), np.asarray(e.coins, dtype=np.float64)
                residual = canary - coins * (coins @ canary) / (coins @ coins)
                square += float(np.square(residual).sum()) / scale
                slots += len(e.coins) - 1
        return cls(slots, square / max(1, slots))


def _noise(what: str, noise: _Noise, level: float) -> Finding:
    n, square = noise.slots, noise.slots * noise.ratio
    p = 2 * min(special.chdtr(n, square), special.chdtrc(n, square))
    low, high = _chi2(n, level / 2), special.chdtri(n, level / 2)
    below = math.sqrt(low / _chi2(n, SEEN_WITH))
    above = math.sqrt(high / _chi2(n, 1 - SEEN_WITH))
    power = f"noise below {below:.0%} or above {above:.0%} of the claim"
    return _finding(
        "noise", what, "noise, as a part of the claim", 1, math.sqrt(noise.ratio), p, level, power
    )


def _chi2(n: int, p: float) -> float:
    """The chi-squared quantile below which lies `p`."""
    return float(2 * special.gammaincinv(n / 2, p))


def _fresh(what: str, evidence: Sequence[SumEvidence], level: float) -> Finding:
    rounds = len(evidence)
    units = [np.asarray(e.empty) / (e.std * math.sqrt(e.steps)) for e in evidence]
    total = np.sum(units, axis=0)
    slots, square = total.size, float(np.square(total).sum()) / rounds
    correlation = (square / slots - 1) / (rounds - 1)
    seen = (special.chdtri(slots, level) / _chi2(slots, 1 - SEEN_WITH) - 1) / (rounds - 1)
    power = f"a correlation above {seen:.2g}" if seen < 1 else "nothing: too few slots"
    p = special.chdtrc(slots, square)
    return _finding("fresh", what, "correlation of two rounds' noise", 0, correlation, p, level, power)


@dataclass(frozen=True, slots=True)
class _Share:
    """What the canaries added, over what bound and rate allow: `ratio` (1 expected) with its standard error.

    A least-squares slope through zero. Its weights are the inverse variances under the claim: noise, and the
    binomial number of times that a canary is taken in.
    """

    ratio: float
    error: float
    skew: float
    rate: float
    strength: float  # what one canary adds to one release, in units of its noise

    @classmethod
    def of(cls, evidence: Sequence[SumEvidence]) -> "_Share":
        product = information = third = releases = rate = strength = 0.0
        for e in evidence:
            q, noise = e.sample_rate, (e.std / e.max_norm) ** 2
            coins = np.asarray(e.coins, dtype=np.float64)
            expected = q * e.steps * coins
            variance = e.steps * (noise + coins * q * (1 - q))
            product += float((expected * np.asarray(e.canary) / e.max_norm / variance).sum())
            information += float((expected**2 / variance).sum())
            third += float(((expected / variance) ** 3 * coins).sum()) * e.steps * q * (1 - q) * (1 - 2 * q)
            releases += e.steps
            rate += e.steps * q
            strength += e.steps * q / math.sqrt(noise)
        error = 1 / math.sqrt(information)
        return cls(product / information, error, third * error**3, rate / releases, strength / releases)

    def seen_above(self, level: float) -> float:
        return 1 + float(special.ndtri(SEEN_WITH) - special.ndtri(level)) * self.error


def _tail(z: float, skew: float) -> float:
    """The chance of at least `z` under mean 0, variance 1 and this skewness: Pearson's type III, else Gaussian.

    Few releases at a low rate are skewed, and a Gaussian's tail would call the honest ones too rare.
    """
    if abs(skew) < 1e-3:
        return float(special.ndtr(-z))
    shape = 4 / skew**2
    if skew > 0:
        return float(special.gammaincc(shape, max(0.0, shape + z * math.sqrt(shape))))
    return float(special.gammainc(shape, max(0.0, shape - z * math.sqrt(shape))))


def _canaries(what: str, share: _Share, noise: _Noise, level: float) -> Finding:
    """mu = signal over noise, both measured: what a distinguisher of one customer would have to work with."""
    measured_noise = math.sqrt(noise.ratio) if noise.slots else 1.0
    error = math.hypot(share.error, math.sqrt(0.5 / noise.slots) if noise.slots else 0.0)
    p = _tail((share.ratio - measured_noise) / error, share.skew * (share.error / error) ** 3)
    mu = share.strength * share.ratio / max(measured_noise, 1e-9)
    seen = 1 + float(special.ndtri(SEEN_WITH) - special.ndtri(level)) * error
    power = f"a mu above {share.strength * seen:.3g}"
    return _finding("canaries", what, "mu of one customer", share.strength, mu, p, level, power)


def _clip_always(what: str, share: _Share, level: float) -> Finding:
    p = special.ndtr((1 - share.ratio) / share.error)  # nothing is sampled: Gaussian
    power = f"a customer who adds {share.seen_above(level):.2f} bounds or more"
    return _finding("clip", what, "bounds that one customer adds", 1, share.ratio, p, level, power)


def _clip_sampled(what: str, evidence: Sequence[SumEvidence], level: float) -> Finding:
    """Whatever the sampling: no release may exceed all its coins' bounds by more than noise does.

    For a Gaussian z of mean at most zero, 1 - w + w exp(s z - s^2 / 2) has an expectation of at most 1 (s > 0),
    and so have products of it over releases and averages of those over shares w and shifts s: an e-value, and
    p <= 1 / e (Markov's inequality). Rare large excesses are seen that vanish in the mean.
    """
    parts = []
    for e in evidence:
        coins = np.asarray(e.coins)
        over = np.asarray(e.canary) - coins * e.max_norm * e.steps
        parts.append((over / (e.std * math.sqrt(e.steps)))[coins > 0])
    z = np.concatenate(parts)
    shifts, shares = np.meshgrid(_SHIFTS, [0.01, 0.03, 0.1, 0.3, 1])
    logs = [_log_e(z, s, w) for s, w in zip(shifts.flat, shares.flat, strict=True)]
    p = math.exp(min(0.0, math.log(len(logs)) - float(special.logsumexp(logs))))
    allowed = float(-special.ndtri(FLAG / z.size))
    quantity = "most above the bound, in stds of noise"
    return _finding(
        "clip", what, quantity, allowed, float(z.max()), p, level, _clip_power(evidence, z.size, level)
    )


def _clip_power(evidence: Sequence[SumEvidence], releases: int, level: float) -> str:
    """Roughly: the bounds that must be added for the e-value to be expected to reach twice what is needed."""
    e = evidence[0]
    coins = float(np.mean([c for c in e.coins if c]))
    tries = coins * e.steps
    share = -math.expm1(tries * math.log1p(-e.sample_rate))
    for shift in _SHIFTS:
        growth = share * (special.log1p(share * math.expm1(min(700.0, shift**2 / 2))))
        if releases * growth > 2 * math.log(1 / level):
            bounds = (tries + shift * e.std * math.sqrt(e.steps) / e.max_norm) / max(
                1.0, tries * e.sample_rate
            )
            return f"a customer who adds some {bounds:.2g} bounds or more" if bounds < OVERREACH else _BY_RATE
    return _BY_RATE


def _log_e(z: Floats, shift: float, share: float) -> float:
    tilted = math.log(share) + shift * z - shift**2 / 2
    return float((np.logaddexp(math.log1p(-share), tilted) if share < 1 else tilted).sum())


def _rate(what: str, share: _Share, level: float) -> Finding:
    z = (share.ratio - 1) / share.error
    below, above = _tail(-z, -share.skew), _tail(z, share.skew)
    p = below if share.rate == 1 else 2 * min(below, above)
    high = share.seen_above(level / 2) * share.rate
    low = 2 * share.rate - high
    seen = [f"below {low:.3g}"] * (low > 0) + [f"above {high:.3g}"] * (high < 1)
    power = f"a rate {' or '.join(seen)}" if seen else "nothing: too few canaries"
    return _finding("rate", what, "rate of sampling", share.rate, share.ratio * share.rate, p, level, power)
