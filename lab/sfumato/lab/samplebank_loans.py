"""The sample bank's credit: what customers owed a year before `as_of`, their score then, and who failed to pay.

The score is what a bank's own card would have given: it knows some of the causes of default and not all.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from sfumato.lab.samplebank_model import Draws, Floats, People
from sfumato.lab.samplebank_tables import days_before, tenure_days

REVIEWED = 365  # days before `as_of`: default is watched for a year
CREDIT = {"credit card": 0.06, "consumer loan": 0.25, "mortgage": 2.2}  # median owed, in yearly incomes
MOST_OWED = 900_000.0
LOWEST_SCORE, HIGHEST_SCORE = 300, 850

# Log-odds of default within the year, a unit of each cause.
INTERCEPT = -2.0
COEFFICIENTS = {
    "burden": 0.35,  # log of what is owed over a year's income, at least 0.02
    "income": -0.6,  # log of the income over 40,000
    "salary": -0.7,  # paid in here
    "young": 0.8,  # a bump around 23 years
    "tenure_year": -0.06,  # a year, counted up to 20
    "decline": 1.2,  # what the score does not know
}


def owed(draws: Draws, people: People, ids: NDArray[np.str_], holdings: pa.Table) -> Floats:
    """Euro, all credit of a customer together; 0 for those without, or who came later than the review."""
    total = np.zeros(len(ids))
    for product, incomes in CREDIT.items():
        owners = holdings.filter(pc.equal(holdings["product"], product))["customer_id"].to_pylist()
        amount = incomes * people.income * np.exp(0.7 * draws.standard_normal(len(ids)))
        total += np.where(np.isin(ids, owners), amount, 0.0)
    return np.where(tenure_days(people) > REVIEWED, np.minimum(total, MOST_OWED), 0.0)


def default_log_odds(people: People, amount: Floats) -> tuple[Floats, Floats]:
    """What the score knows of them, and all of them."""
    c, age = COEFFICIENTS, people.age.astype(np.float64)
    known: Floats = (
        INTERCEPT
        + c["burden"] * np.log(np.maximum(amount / people.income, 0.02))
        + c["income"] * np.log(people.income / 40e3)
        + c["salary"] * people.salary
        + c["young"] * np.exp(-(((age - 23) / 6) ** 2))
        + c["tenure_year"] * np.minimum(people.tenure_months / 12, 20)
    )
    return known, known + c["decline"] * people.decline


def loans(draws: Draws, people: People, ids: NDArray[np.str_], holdings: pa.Table) -> tuple[pa.Table, Floats]:
    """One row for each customer with credit; and everybody's true probability of default (0 without credit)."""
    amount = owed(draws, people, ids, holdings)
    known, log_odds = default_log_odds(people, amount)
    chance = np.where(amount > 0, 1 / (1 + np.exp(-log_odds)), 0.0)
    score = 600 - 50 * (known + 2.0) + 8 * draws.standard_normal(len(ids))
    whole = np.clip(np.round(score), LOWEST_SCORE, HIGHEST_SCORE).astype(np.int64)
    defaulted = draws.random(len(ids)) < chance
    has = amount > 0
    table = pa.table(
        {
            "customer_id": pa.array(ids[has].tolist(), type=pa.string()),
            "reviewed": days_before(np.full(int(has.sum()), REVIEWED)),
            "score": pa.array(whole[has]),
            "exposure": pa.array(np.round(amount[has], 2)),
            "defaulted": pa.array(defaulted[has]),
        }
    )
    return table, chance
