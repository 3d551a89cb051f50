"""How often customers will buy, and for how much: BG/NBD and gamma-gamma.

BG/NBD (Fader, Hardie & Lee 2005, Marketing Science 24(2)): a customer buys at a rate of their own, gamma(r, alpha)
over customers, until they drop out, after any purchase with a probability of their own, beta(a, b). All that is
needed of one customer are x repeat purchases (days with a purchase but the first), t_x, days from the first to the
last, and T, days from the first to today. Gamma-gamma (Fader & Hardie 2013): purchases' values are gamma(p, nu) with
nu gamma(q, v) over customers; needed are x and m, their mean over the repeat purchases.

Both are searched inside public limits, in coordinates `u` in which no ridge leads to infinity. Of BG/NBD: the mean
rate r / alpha, how unlike the rates are (1 / r), the mean drop-out a / (a + b), how unlike those are (1 / (a + b)),
each as a logarithm of itself and a small number: customers who are all alike, or never leave, are a point and not an
infinite way off. A likelihood that goes on rising beyond a limit is all but flat there. Of gamma-gamma: the scale
p v / q, how unlike one customer's purchases are (1 / p) and how unlike customers (1 / q), in the same way.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy.special import expit, gammaln, psi

NODES = 24  # of the quadrature over the drop-out probability
# What is added below the logarithms: of 1 / r and 1 / (a + b), of the drop-out, of 1 / p and 1 / q.
ALIKE, STAYING, EVEN = 0.1, 0.01, 0.05

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class BgNbd:
    """The four parameters; days are the unit of time."""

    r: float
    alpha: float
    a: float
    b: float

    @staticmethod
    def of(u: Floats) -> "BgNbd":
        rate, odds = float(np.exp(u[0])), float(np.exp(u[2]))
        r, spread = 1 / (float(np.exp(u[1])) - ALIKE), float(np.exp(u[3])) - ALIKE
        drop = (odds - STAYING) / (1 + odds)
        return BgNbd(r, r / rate, drop / spread, (1 - drop) / spread)

    @property
    def u(self) -> Floats:
        """The other way round."""
        drop, spread = self.drop_out, 1 / (self.a + self.b)
        odds = (drop + STAYING) / (1 - drop)
        return np.log([self.r / self.alpha, 1 / self.r + ALIKE, odds, spread + ALIKE])

    @property
    def drop_out(self) -> float:
        """The mean probability to leave after a purchase."""
        return self.a / (self.a + self.b)

    def alive(self, x: Floats, t_x: Floats, t: Floats) -> Floats:
        """P(alive), [n]: Fader & Hardie 2008, "Computing P(alive) using the BG/NBD model". 1 without a repeat."""
        late = (self.r + x) * np.log((self.alpha + t) / (self.alpha + t_x))
        odds = np.log(self.a / (self.b + np.maximum(x, 1) - 1)) + late
        return np.asarray(np.where(x > 0, expit(-odds), 1.0))

    def expected(
        self, days: Sequence[float], x: Floats, t_x: Floats, t: Floats, *, alive: bool = False
    ) -> Floats:
        """Purchases in so many days from now on, [n, len(days)] (equation 10); of who is `alive` for certain, if set.

        The paper's hypergeometric function is an integral over the beta distribution of the drop-out probability p of
        (1 - (A / (A + p days)) ** (r + x)) / p with A = alpha + T: by Gauss and Jacobi, it does not overflow.
        """
        if not len(x):
            return np.zeros((0, len(days)))
        counts, place = np.unique(x, return_inverse=True)
        rules = [_jacobi(self.a, self.b + count) for count in counts]
        p, weights = np.stack([n for n, _ in rules])[place], np.stack([w for _, w in rules])[place]
        rate = np.asarray(days)[None, :, None] / (self.alpha + t)[:, None, None]
        falls = -np.expm1(-(self.r + x)[:, None, None] * np.log1p(rate * p[:, None, :])) / p[:, None, :]
        found = np.einsum("ndk,nk->nd", falls, weights)
        return np.asarray(found if alive else found * self.alive(x, t_x, t)[:, None])

    def expected_new(self, days: float) -> float:
        """Repeat purchases of a new customer within so many days of the first purchase (equation 9)."""
        none = np.zeros(1)
        return float(self.expected([days], none, none, none)[0, 0])


@lru_cache(maxsize=4096)
def _jacobi(a: float, b: float) -> tuple[Floats, Floats]:
    """Nodes and weights of the expectation over beta(a, b) (Golub & Welsch 1969)."""
    n = np.arange(1, NODES)
    s = a + b - 2 + 2 * n
    middle = np.concatenate([[(a - b) / (a + b)], (a - b) * (a + b - 2) / (s * (s + 2))])
    beside = 4 * n * (n + b - 1) * (n + a - 1) * (s - n) / (s**2 * (s + 1) * np.where(n > 1, s - 1, 1.0))
    beside[0] = 4 * a * b / ((a + b) ** 2 * (a + b + 1))
    values, vectors = np.linalg.eigh(np.diag(middle) + np.diag(np.sqrt(beside), -1), "L")
    return np.maximum((1 + values) / 2, 1e-12), vectors[0] ** 2


@dataclass(frozen=True)
class GammaGamma:
    """The three parameters; q is above 1, so that the mean value is finite."""

    p: float
    q: float
    v: float

    @staticmethod
    def of(u: Floats) -> "GammaGamma":
        p, q = (1 / (float(np.exp(each)) - EVEN) for each in u[1:])
        return GammaGamma(p, q, float(np.exp(u[0])) * q / p)

    @property
    def u(self) -> Floats:
        """The other way round."""
        return np.log([self.p * self.v / self.q, 1 / self.p + EVEN, 1 / self.q + EVEN])

    @property
    def mean(self) -> float:
        """Of a purchase's value, over customers."""
        return self.p * self.v / (self.q - 1)

    def expected(self, x: Floats, m: Floats) -> Floats:
        """Each customer's mean value of a purchase, [n] (equation 5); that of all for one without a repeat."""
        px = self.p * x
        return np.asarray(self.p * (self.v + m * x) / (px + self.q - 1))


# --- what a fit needs: limits, log-likelihood and score in u, customers as rows of `data` -------------------


@dataclass(frozen=True)
class BgNbdLikelihood:
    """`data` [n, 3]: x, t_x, T."""

    low = BgNbd(r=50.0, alpha=50.0 / 1e-5, a=1.0, b=999.0).u
    high = BgNbd(r=0.02, alpha=0.02 / 2.0, a=0.3, b=0.03).u
    inner = (BgNbd(r=30.0, alpha=30.0 / 2e-5, a=0.25, b=49.75).u, BgNbd(r=0.05, alpha=0.05, a=0.6, b=0.4).u)

    def log_likelihood(self, u: Floats, data: Floats) -> Floats:
        """Of each customer, [n] (equation 3)."""
        m, (x, _, _) = BgNbd.of(u), data.T
        before, after = self._cases(m, data)
        purchases = gammaln(m.r + x) - gammaln(m.r) + m.r * np.log(m.alpha)
        stays = gammaln(m.a + m.b) + gammaln(m.b + x) - gammaln(m.b) - gammaln(m.a + m.b + x)
        return np.asarray(purchases + stays + np.logaddexp(before, after))

    def score(self, u: Floats, data: Floats) -> Floats:
        """Its gradient, [n, 4]."""
        m, (x, t_x, t) = BgNbd.of(u), data.T
        gone = expit(np.subtract(*self._cases(m, data)[::-1]))  # 1 - P(alive)
        s = m.a + m.b
        both = psi(s) - psi(s + x)
        by_a = both + gone / m.a
        by_b = both + psi(m.b + x) - psi(m.b) - gone / (m.b + np.maximum(x, 1) - 1)
        waited = (1 - gone) * np.log(m.alpha + t) + gone * np.log(m.alpha + t_x)
        by_r = psi(m.r + x) - psi(m.r) + np.log(m.alpha) - waited
        a_day = (1 - gone) / (m.alpha + t) + gone / (m.alpha + t_x)
        by_alpha = m.r - m.alpha * (m.r + x) * a_day  # times alpha
        by_unlike = -(1 + ALIKE * m.r) * (m.r * by_r + by_alpha)
        by_drop = (m.drop_out + STAYING) * (1 - m.drop_out) / (1 + STAYING) * s * (by_a - by_b)
        by_spread = -(1 + ALIKE * s) * (m.a * by_a + m.b * by_b)
        return np.stack([-by_alpha, by_unlike, by_drop, by_spread], 1)

    def _cases(self, m: BgNbd, data: Floats) -> tuple[Floats, Floats]:
        """Logarithms of what being still there, and having left at t_x, have for themselves."""
        x, t_x, t = data.T
        left = np.log(m.a) - np.log(m.b + np.maximum(x, 1) - 1) - (m.r + x) * np.log(m.alpha + t_x)
        return -(m.r + x) * np.log(m.alpha + t), np.where(x > 0, left, -np.inf)


@dataclass(frozen=True)
class GammaGammaLikelihood:
    """`data` [n, 2]: x and m, both above 0."""

    low = GammaGamma(p=100.0, q=100.0, v=1e-4).u
    high = GammaGamma(p=0.1, q=1.2, v=1e10).u
    inner = GammaGamma(p=40.0, q=40.0, v=1e-3).u, GammaGamma(p=0.2, q=1.5, v=1e9).u

    def log_likelihood(self, u: Floats, data: Floats) -> Floats:
        """Of each customer, [n] (equation 1a)."""
        g, (x, m) = GammaGamma.of(u), data.T
        px = g.p * x
        start = gammaln(px + g.q) - gammaln(px) - gammaln(g.q) + g.q * np.log(g.v)
        return np.asarray(start + (px - 1) * np.log(m) + px * np.log(x) - (px + g.q) * np.log(g.v + x * m))

    def score(self, u: Floats, data: Floats) -> Floats:
        """Its gradient, [n, 3]."""
        g, (x, m) = GammaGamma.of(u), data.T
        px, whole = g.p * x, g.v + x * m
        by_p = x * (psi(px + g.q) - psi(px) + np.log(x * m / whole))
        by_q = psi(px + g.q) - psi(g.q) + np.log(g.v / whole)
        by_v = g.q - (px + g.q) * g.v / whole  # times v
        by_within, by_between = -(1 + EVEN * g.p), -(1 + EVEN * g.q)
        return np.stack([by_v, by_within * (g.p * by_p - by_v), by_between * (g.q * by_q + by_v)], 1)
