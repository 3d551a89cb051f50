"""The sample bank's structural model: who the customers are, and why some of them leave.

Written down once, so that the ground truth is known. Causes point downwards; nothing else points at `churned`:

    branch ─▶ age, income, area, service failures
    age, income ─▶ segment, channel, salary account, products
    engagement ─▶ activity, products, decline (a tired customer uses the bank less in the last half-year)
    decline, service failures ─▶ dissatisfaction ─▶ complaints, survey answers
    decline, dissatisfaction, complaints, tenure, products, salary, age, branch ─▶ churn after `as_of`

`churn_log_odds` is the last line. Interventions (`do`) are evaluated on the same random terms, so a customer's
counterfactual propensity is exact under the model (Pearl, Causality, 2nd ed., section 7.1).
"""

from dataclasses import dataclass, fields, replace
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class Draws(Protocol):
    """What the generator needs of a seeded source (numpy's Generator has it). Never used for noise."""

    def random(self, size: int) -> Floats: ...
    def integers(self, low: int, high: int, size: int) -> Ints: ...
    def standard_normal(self, size: int) -> Floats: ...
    def standard_exponential(self, size: int) -> Floats: ...
    def poisson(self, lam: Floats) -> Ints: ...
    def permutation(self, x: int) -> Ints: ...


@dataclass(frozen=True)
class BranchProfile:
    """What makes a branch itself. `log_odds` is its own effect on churn, all else equal."""

    cities: tuple[str, ...]
    area: tuple[float, float, float]  # shares of urban, suburban, rural
    size: float  # relative to the mean branch
    age: tuple[float, float]  # mean and standard deviation, years
    income: float  # median yearly income, euro
    failures: float  # service failures a customer meets in a year, mean
    log_odds: float
    chinese: float  # share of customers with a Chinese name


PROFILES = (
    BranchProfile(
        ("Port Alder", "Quayside", "Millrace"), (0.8, 0.2, 0.0), 1.3, (40, 13), 46e3, 0.45, 0.10, 0.3
    ),
    BranchProfile(
        ("Elmstead", "Fairhaven", "Oakridge"), (0.2, 0.7, 0.1), 1.0, (47, 13), 54e3, 0.30, -0.10, 0.12
    ),
    BranchProfile(
        ("Highfold", "Stonebeck", "Larkmoor"), (0.0, 0.2, 0.8), 0.6, (57, 15), 34e3, 0.35, -0.10, 0.06
    ),
    BranchProfile(
        ("Northgate", "Campus Hill", "Ironbridge"), (0.9, 0.1, 0.0), 1.1, (34, 12), 36e3, 0.60, 0.35, 0.2
    ),
)
AREAS = ("urban", "suburban", "rural")
SEGMENTS = ("mass", "affluent", "private", "student", "senior")
GENDERS = ("female", "male", "undisclosed")
CHANNELS = ("mobile", "web", "branch", "phone")
MARITAL = ("single", "married", "divorced", "widowed")
INCOME_BANDS = ("under 20k", "20k to 35k", "35k to 50k", "50k to 80k", "80k to 120k", "over 120k")
INCOME_CUTS = (20e3, 35e3, 50e3, 80e3, 120e3)
MAX_PRODUCTS = 7

# Log-odds of churn in the half-year after `as_of`, a unit of each cause.
INTERCEPT = -1.6
COEFFICIENTS = {
    "decline": 2.9,  # share of activity lost in the last half-year, 0 to 1
    "dissatisfaction": 1.05,  # latent, about standard deviation 1
    "complaint": 0.65,  # a complaint in the last year, counted up to three
    "tenure_year": -0.08,  # a year, counted up to 25
    "extra_product": -0.50,  # a product beyond the first
    "salary": -0.80,  # the salary is paid in here
    "young": 1.10,  # a bump around 27 years: movers and first-job switchers
    "old": 0.80,  # a bump around 74 years: accounts that go to the family
}


@dataclass(frozen=True)
class People:
    """One branch's customers by column, each an array of the same length. Indices point into the lists above."""

    age: Ints
    gender: Ints
    area: Ints
    city: Ints
    income: Floats
    segment: Ints
    channel: Ints
    marital: Ints
    tenure_months: Ints
    products: Ints
    salary: NDArray[np.bool_]
    chinese: NDArray[np.bool_]
    activity: Floats  # transactions a year before any decline, salary left out
    decline: Floats
    failures: Ints
    unease: Floats  # the part of dissatisfaction that nothing here explains
    complaint_draw: Floats  # uniform: which quantile of the complaint count is realised
    branch_log_odds: float

    @property
    def dissatisfaction(self) -> Floats:
        return 1.3 * self.decline + 0.7 * self.failures + self.unease - 0.7

    @property
    def complaints(self) -> Ints:
        """Complaints of the last year: the Poisson quantile of a fixed draw, so interventions are comparable."""
        return poisson_quantile(self.complaint_draw, np.exp(-1.7 + 0.85 * self.dissatisfaction))

    @property
    def churn_log_odds(self) -> Floats:
        c = COEFFICIENTS
        age = self.age.astype(np.float64)
        log_odds: Floats = (
            INTERCEPT
            + self.branch_log_odds
            + c["decline"] * self.decline
            + c["dissatisfaction"] * self.dissatisfaction
            + c["complaint"] * np.minimum(self.complaints, 3)
            + c["tenure_year"] * np.minimum(self.tenure_months / 12, 25)
            + c["extra_product"] * (self.products - 1)
            + c["salary"] * self.salary
            + c["young"] * np.exp(-(((age - 27) / 7) ** 2))
            + c["old"] * np.exp(-(((age - 74) / 9) ** 2))
        )
        return log_odds

    @property
    def propensity(self) -> Floats:
        """The true probability to churn in the half-year after `as_of`."""
        return 1 / (1 + np.exp(-self.churn_log_odds))

    def do(self, **columns: NDArray[np.generic]) -> Self:
        """The same customers with some columns set by intervention; what follows from them follows."""
        known = {f.name for f in fields(self)}
        if not set(columns) <= known:
            raise KeyError(f"no such column: {sorted(set(columns) - known)}")
        return replace(self, **columns)  # type: ignore[arg-type]


def poisson_quantile(u: Floats, mean: Floats, most: int = 12) -> Ints:
    """The smallest k with P(Poisson(mean) <= k) >= u, for each pair; k at most `most`."""
    term = np.exp(-mean)
    cumulative, k = term.copy(), np.zeros(len(u), dtype=np.int64)
    for i in range(1, most + 1):
        k += u > cumulative
        term = term * mean / i
        cumulative = cumulative + term
    return k


def choose(draws: Draws, shares: Floats) -> Ints:
    """One category a row, from unnormalised shares of shape (rows, categories)."""
    cumulative = np.cumsum(shares, axis=1)
    u = draws.random(len(shares)) * cumulative[:, -1]
    return np.asarray((u[:, None] >= cumulative).sum(axis=1), dtype=np.int64)


def draw_people(draws: Draws, profile: BranchProfile, n: int) -> People:
    """Draw `n` customers of a branch, causes before effects."""
    age = np.clip(profile.age[0] + profile.age[1] * draws.standard_normal(n), 18, 96).astype(np.int64)
    chinese = draws.random(n) < profile.chinese
    area = choose(draws, np.tile(np.array(profile.area), (n, 1)))
    prime = 0.55 + 0.45 * np.exp(-(((age - 50) / 17.0) ** 2))
    income = profile.income * prime * np.exp(0.55 * draws.standard_normal(n)) + 6000
    working = np.where((age >= 22) & (age < 66), 0.72, 0.22)
    engagement = draws.standard_normal(n)
    tired = draws.random(n) < 1 / (1 + np.exp(1.15 + 0.6 * engagement))
    decline = np.where(tired, 0.25 + 0.73 * draws.random(n) ** 0.7, 0.12 * draws.random(n))
    tenure = np.minimum(3 + draws.standard_exponential(n) * 95, (age - 17) * 12.0)
    wish = np.exp(0.25 + 0.3 * engagement + 0.25 * np.log(income / 40e3))
    return People(
        age=age,
        gender=choose(draws, np.tile(np.array([0.505, 0.485, 0.01]), (n, 1))),
        area=area,
        city=draws.integers(0, len(profile.cities), n),
        income=income,
        segment=_segment(draws, age, income),
        channel=choose(draws, _channel_shares(age)),
        marital=choose(draws, _marital_shares(age)),
        tenure_months=tenure.astype(np.int64),
        products=np.minimum(1 + draws.poisson(wish), MAX_PRODUCTS),
        salary=draws.random(n) < working,
        chinese=chinese,
        activity=np.clip(26 * np.exp(0.35 * engagement + 0.25 * draws.standard_normal(n)), 4, 160),
        decline=decline,
        failures=draws.poisson(np.full(n, profile.failures)),
        unease=0.75 * draws.standard_normal(n),
        complaint_draw=draws.random(n),
        branch_log_odds=profile.log_odds,
    )


def _segment(draws: Draws, age: Ints, income: Floats) -> Ints:
    student = (age < 27) & (draws.random(len(age)) < 0.55)
    conditions = [student, income > 150e3, income > 75e3, age >= 65]
    return np.select(conditions, [3, 2, 1, 4], default=0).astype(np.int64)


def _channel_shares(age: Ints) -> Floats:
    a = (age - 18) / 70.0
    return np.stack([np.exp(1.6 - 3.2 * a), 0.9 + 0 * a, np.exp(-1.2 + 2.8 * a), 0.25 + 0.3 * a], axis=1)


def _marital_shares(age: Ints) -> Floats:
    a = (age - 18) / 70.0
    return np.stack([np.exp(1.2 - 5 * a), 0.4 + 2.2 * a, 0.1 + 0.7 * a, 0.01 + 2.0 * a**3], axis=1)


def effects(people: People) -> dict[str, Floats]:
    """Each customer's propensity under interventions: total effects, mediators following."""
    n = len(people.age)
    satisfied = people.do(failures=np.zeros(n, dtype=np.int64))
    return {
        "propensity": people.propensity,
        "do_no_decline": people.do(decline=np.zeros(n)).propensity,
        "do_no_service_failure": satisfied.propensity,
        "do_no_complaint": people.do(complaint_draw=np.zeros(n)).propensity,
        "do_one_more_product": people.do(products=people.products + 1).propensity,
        "do_one_more_year": people.do(tenure_months=people.tenure_months + 12).propensity,
        "do_salary_here": people.do(salary=np.ones(n, dtype=np.bool_)).propensity,
    }


def auc(score: Floats, label: NDArray[np.bool_]) -> float:
    """Area under the ROC curve by the rank sum (Mann and Whitney 1947); scores are taken as tie-free."""
    ranks = np.empty(len(score))
    ranks[np.argsort(score, kind="stable")] = np.arange(1, len(score) + 1)
    positives = int(label.sum())
    return float(
        (ranks[label].sum() - positives * (positives + 1) / 2) / (positives * (len(score) - positives))
    )
