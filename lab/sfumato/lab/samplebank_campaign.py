"""The sample bank's reward campaign: who was offered what by lot, and what came of it.

Last spring most customers were drawn into a trial: one of three rewards, or none, for using the bank's card at its
partners. Which reward works depends on the customer's segment, by `GAINS`; so the effects are known.
"""

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sfumato.lab.samplebank_model import SEGMENTS, Draws, Floats, People
from sfumato.lab.samplebank_tables import days_before, named, tenure_days

REWARDS = ("none", "points", "cashback", "voucher")  # with equal chances
DRAWN = 0.85  # share of the customers who were there in time
BEFORE = (95, 125)  # days before `as_of` that the letters went out
MOST_SPENT = 2000.0

# Log-odds of a response without any reward, a unit of each cause.
INTERCEPT = -2.1
COEFFICIENTS = {"busy": 0.5, "dissatisfaction": -0.25}  # busy: log of transactions a year over 26
# What a reward adds, by segment in the order of SEGMENTS.
GAINS = {
    "none": (0.0, 0.0, 0.0, 0.0, 0.0),
    "points": (0.15, 0.9, 1.1, 0.1, 0.0),
    "cashback": (0.8, 0.3, -0.4, 1.2, 0.2),
    "voucher": (0.3, 0.2, 0.0, 0.4, 0.9),
}


def responses(people: People) -> dict[str, Floats]:
    """The true probability of a response under each reward, whatever the lot gave."""
    c = COEFFICIENTS
    plain = INTERCEPT + c["busy"] * np.log(people.activity / 26)
    plain = plain + c["dissatisfaction"] * people.dissatisfaction
    gains = {reward: np.array(gain)[people.segment] for reward, gain in GAINS.items()}
    return {f"response_{reward}": 1 / (1 + np.exp(-plain - gain)) for reward, gain in gains.items()}


def contacts(draws: Draws, people: People, ids: NDArray[np.str_]) -> pa.Table:
    """One row for each customer drawn: the reward, whether they responded within two months, what they spent."""
    n = len(ids)
    drawn = (draws.random(n) < DRAWN) & (tenure_days(people) > BEFORE[1])
    reward = draws.integers(0, len(REWARDS), n)
    chance = np.stack(list(responses(people).values()), axis=1)[np.arange(n), reward]
    responded = draws.random(n) < chance
    median = 90 * (people.income / 40e3) ** 0.5
    spent = np.clip(median * np.exp(0.8 * draws.standard_normal(n)), 1, MOST_SPENT)
    before = draws.integers(BEFORE[0], BEFORE[1] + 1, n)
    return pa.table(
        {
            "customer_id": pa.array(ids[drawn].tolist(), type=pa.string()),
            "date": days_before(before[drawn]),
            "reward": named(REWARDS, reward[drawn]),
            "responded": pa.array(responded[drawn]),
            "spent": pa.array(np.round(np.where(responded, spent, 0.0), 2)[drawn]),
        }
    )


def average_responses(truth: dict[str, NDArray[np.generic]]) -> dict[str, dict[str, float]]:
    """The mean of each reward's true probability, for all customers and by segment."""
    everyone = np.ones(len(truth["segment"]), dtype=np.bool_)
    groups = {"all": everyone, **{name: truth["segment"] == name for name in SEGMENTS}}
    return {
        name: {reward: float(truth[f"response_{reward}"][rows].mean()) for reward in REWARDS}
        for name, rows in groups.items()
        if rows.any()
    }
