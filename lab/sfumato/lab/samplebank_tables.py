"""The sample bank's tables: what each branch's systems would have recorded before `as_of`.

Every table is a `pyarrow.Table`; dates are days strictly before `as_of`, amounts are euro.
"""

from datetime import date

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sfumato.lab import samplebank_text as words
from sfumato.lab.samplebank_model import (
    AREAS,
    CHANNELS,
    GENDERS,
    INCOME_BANDS,
    INCOME_CUTS,
    MARITAL,
    SEGMENTS,
    BranchProfile,
    Draws,
    Floats,
    Ints,
    People,
    choose,
)

AS_OF = date(2025, 7, 1)
HISTORY_DAYS = 730
RECENT_DAYS = 182  # the half-year in which a tired customer's activity declines
LARGEST_AMOUNT = 900_000.0

ACCOUNT_TYPES = ("current", "savings", "deposit")
PRODUCTS = (
    "savings plan",
    "credit card",
    "mortgage",
    "consumer loan",
    "investment fund",
    "insurance",
    "pension",
)
PRODUCT_WEIGHT = (1.0, 1.2, 0.5, 0.5, 0.4, 0.6, 0.4)
# Category: share of customer-initiated transactions, median euro, sigma of its logarithm.
SPENDING = {
    "groceries": (0.32, 28, 0.6),
    "dining": (0.14, 24, 0.7),
    "shopping": (0.16, 48, 1.0),
    "utilities": (0.08, 85, 0.5),
    "rent": (0.05, 780, 0.4),
    "healthcare": (0.05, 42, 1.0),
    "travel": (0.05, 190, 1.1),
    "cash": (0.08, 90, 0.6),
    "transfer": (0.07, 150, 1.5),
}
CATEGORIES = (*SPENDING, "salary")
TRANSACTION_CHANNELS = ("card", "mobile", "web", "branch", "standing order")


def days_before(age_in_days: Ints) -> pa.Array:
    """Dates from how many days before `as_of` they lie (at least 1)."""
    return pa.array(np.datetime64(AS_OF, "D") - age_in_days.astype("timedelta64[D]"), type=pa.date32())


def named(names: tuple[str, ...], indices: Ints) -> pa.Array:
    return pa.array(np.array(names, dtype=object)[indices], type=pa.string())


def tenure_days(people: People) -> Ints:
    """How many days before `as_of` each customer came; nothing is recorded earlier."""
    return people.tenure_months * 30 + 15


def _cents(amount: Floats) -> Floats:
    return np.asarray(np.round(np.clip(amount, -LARGEST_AMOUNT, LARGEST_AMOUNT), 2), dtype=np.float64)


def customers(
    people: People,
    profile: BranchProfile,
    branch: str,
    ids: NDArray[np.str_],
    pii: dict[str, list[str | None]],
    churned: NDArray[np.bool_],
) -> pa.Table:
    """One row a customer: who, where, what kind, and whether the customer left after `as_of`."""
    band = np.searchsorted(np.array(INCOME_CUTS), people.income, side="right")
    return pa.table(
        {
            "customer_id": pa.array(ids.tolist(), type=pa.string()),
            **{name: pa.array(values, type=pa.string()) for name, values in pii.items()},
            "branch": pa.array([branch] * len(ids)),
            "birth_year": pa.array(AS_OF.year - people.age),
            "age": pa.array(people.age),
            "gender": named(GENDERS, people.gender),
            "marital_status": named(MARITAL, people.marital),
            "segment": named(SEGMENTS, people.segment),
            "income_band": named(INCOME_BANDS, band),
            "city": named(profile.cities, people.city),
            "area": named(AREAS, people.area),
            "channel": named(CHANNELS, people.channel),
            "tenure_months": pa.array(people.tenure_months),
            "churned": pa.array(churned.astype(np.int64)),
        }
    )


def accounts(draws: Draws, people: People, ids: NDArray[np.str_]) -> pa.Table:
    """A current account each; savings and deposits for those who hold more. Balances have a heavy tail."""
    n = len(ids)
    has = np.stack(
        [np.ones(n, bool), draws.random(n) < 0.25 + 0.08 * people.products, draws.random(n) < 0.12], axis=1
    )
    owner, kind = np.nonzero(has)
    m = len(owner)
    median = people.income[owner] / 12 * np.array([0.9, 3.0, 8.0])[kind] * (1 - 0.6 * people.decline[owner])
    balance = median * np.exp(1.1 * draws.standard_normal(m))
    balance *= np.where(draws.random(m) < 0.01, np.exp(1.2 * draws.standard_exponential(m)), 1.0)
    overdrawn = (kind == 0) & (draws.random(m) < 0.06)
    balance = np.where(overdrawn, -0.25 * balance, balance)
    opened = np.maximum(1, tenure_days(people)[owner] * np.where(kind == 0, 1.0, draws.random(m))).astype(
        np.int64
    )
    return pa.table(
        {
            "customer_id": pa.array(ids[owner].tolist(), type=pa.string()),
            "account_type": named(ACCOUNT_TYPES, kind.astype(np.int64)),
            "balance": pa.array(_cents(balance)),
            "opened": days_before(opened),
        }
    )


def transactions(draws: Draws, people: People, ids: NDArray[np.str_]) -> pa.Table:
    """Two years of signed amounts: spending at each customer's pace, which fades as they do, and salaries."""
    early = draws.poisson(people.activity * (HISTORY_DAYS - RECENT_DAYS) / 365)
    late = draws.poisson(people.activity * RECENT_DAYS / 365 * (1 - people.decline))
    owner_early, owner_late = (np.repeat(np.arange(len(ids)), k) for k in (early, late))
    before_early = RECENT_DAYS + draws.integers(1, HISTORY_DAYS - RECENT_DAYS + 1, len(owner_early))
    # Within the half-year the fading customer's transactions lie further back.
    lean = 1 / (1 + 1.5 * people.decline[owner_late])
    before_late = 1 + np.floor((RECENT_DAYS - 1) * draws.random(len(owner_late)) ** lean).astype(np.int64)
    owner, before = np.concatenate([owner_early, owner_late]), np.concatenate([before_early, before_late])
    here = before <= tenure_days(people)[owner]
    owner, before = owner[here], before[here]
    shares = np.cumsum([s for s, _, _ in SPENDING.values()])
    kind = np.searchsorted(shares / shares[-1], draws.random(len(owner)), side="right").astype(np.int64)
    amount = _spent(draws, kind, people.income[owner])
    salary_owner, salary_before = _salary_days(draws, people)
    pay = people.income[salary_owner] / 14 * np.exp(0.05 * draws.standard_normal(len(salary_owner)))
    m = len(salary_owner)
    channel = choose(draws, np.tile(np.array([0.62, 0.2, 0.1, 0.05, 0.03]), (len(owner), 1)))
    owner = np.concatenate([owner, salary_owner])
    rows = draws.permutation(len(owner))
    table = {
        "date": np.concatenate([before, salary_before]),
        "amount": _cents(np.concatenate([amount, pay])),
        "category": np.concatenate([kind, np.full(m, len(SPENDING))]),
        "channel": np.concatenate([channel, np.full(m, len(TRANSACTION_CHANNELS) - 1)]),
    }
    ordered = {name: column[rows] for name, column in table.items()}
    return pa.table(
        {
            "customer_id": pa.array(ids).take(pa.array(owner[rows])),
            "date": days_before(ordered["date"]),
            "amount": pa.array(ordered["amount"]),
            "direction": pa.array(["out", "in"]).take(pa.array((ordered["amount"] > 0).astype(np.int64))),
            "category": pa.array(CATEGORIES).take(pa.array(ordered["category"])),
            "channel": pa.array(TRANSACTION_CHANNELS).take(pa.array(ordered["channel"])),
        }
    )


def _spent(draws: Draws, kind: Ints, income: Floats) -> Floats:
    """Negative amounts, log-normal in the body and Pareto (index 1.3) in one of a hundred; some transfers come in."""
    n = len(kind)
    median = np.array([m for _, m, _ in SPENDING.values()])[kind]
    sigma = np.array([s for _, _, s in SPENDING.values()])[kind]
    amount = median * (income / 40e3) ** 0.5 * np.exp(sigma * draws.standard_normal(n))
    amount *= np.where(draws.random(n) < 0.01, np.exp(draws.standard_exponential(n) / 1.3), 1.0)
    incoming = (kind == list(SPENDING).index("transfer")) & (draws.random(n) < 0.4)
    return np.where(incoming, amount, -amount)


def _salary_days(draws: Draws, people: People) -> tuple[Ints, Ints]:
    """Who is paid, and how many days before `as_of`: each month, until a fading customer moves the salary away."""
    months = 24
    owner = np.repeat(np.nonzero(people.salary)[0], months)
    month = np.tile(np.arange(months), int(people.salary.sum()))
    moves = draws.random(len(people.salary)) < 0.6 * people.decline
    moved_at = draws.integers(0, 6, len(moves)) * moves  # months before `as_of` since when nothing came in
    before = 1 + month * 365 // 12 + draws.integers(0, 6, len(owner))
    kept = (month >= moved_at[owner]) & (before <= tenure_days(people)[owner])
    return owner[kept], before[kept]


def holdings(draws: Draws, people: People, ids: NDArray[np.str_]) -> pa.Table:
    """The products beyond the current account: as many as the customer holds, the popular ones more often."""
    n = len(ids)
    # Gumbel top-k: the k smallest of exponential draws over weights are a weighted sample without replacement.
    clock = draws.standard_exponential(n * len(PRODUCTS)).reshape(n, -1) / np.array(PRODUCT_WEIGHT)
    rank = np.argsort(np.argsort(clock, axis=1), axis=1)
    owner, product = np.nonzero(rank < (people.products - 1)[:, None])
    opened = 1 + (draws.random(len(owner)) * tenure_days(people)[owner]).astype(np.int64)
    return pa.table(
        {
            "customer_id": pa.array(ids[owner].tolist(), type=pa.string()),
            "product": named(PRODUCTS, product.astype(np.int64)),
            "opened": days_before(opened),
        }
    )


def complaints(
    draws: Draws, people: People, ids: NDArray[np.str_], pii: dict[str, list[str | None]]
) -> pa.Table:
    """Last year's complaints (a cause of churn) and older ones (not); four in ten texts name the customer."""
    recent, older = people.complaints, draws.poisson(np.full(len(ids), 0.12))
    tenure = tenure_days(people)
    older[tenure < HISTORY_DAYS] = 0
    owner = np.concatenate([np.repeat(np.arange(len(ids)), k) for k in (recent, older)])
    n = len(owner)
    before = 1 + (draws.random(n) * np.minimum(tenure, 365)[owner]).astype(np.int64)
    before += 365 * (np.arange(n) >= recent.sum())
    topic, pick = draws.integers(0, len(words.TOPICS), n), draws.integers(0, 10**6, n)
    severity = 1.4 + 0.9 * people.dissatisfaction[owner] + 0.9 * draws.standard_normal(n)
    texts = []
    for i, t, p in zip(owner.tolist(), topic.tolist(), pick.tolist(), strict=True):
        text = words.COMPLAINTS[words.TOPICS[t]][p % 3]
        if p // 3 % 10 < 4:
            form = words.CALL_ME[p // 30 % len(words.CALL_ME)]
            text += form.format(
                phone=pii["phone"][i],
                iban=pii["iban"][i],
                name=pii["full_name"][i],
                email=pii["email"][i] or pii["phone"][i],
            )
        texts.append(text)
    return pa.table(
        {
            "customer_id": pa.array(ids[owner].tolist(), type=pa.string()),
            "date": days_before(before),
            "topic": named(words.TOPICS, topic),
            "severity": pa.array(np.clip(np.round(severity), 1, 5).astype(np.int64)),
            "text": pa.array(texts, type=pa.string()),
        }
    )


def surveys(draws: Draws, people: People, ids: NDArray[np.str_]) -> pa.Table:
    """Answers of those who answer: the recommendation (NPS, 0-10), satisfaction (CSAT, 1-5), and some text."""
    answers = draws.poisson(np.full(len(ids), 1.6))
    owner = np.repeat(np.arange(len(ids)), answers)
    before = draws.integers(1, HISTORY_DAYS + 1, len(owner))
    here = before <= tenure_days(people)[owner]
    owner, before = owner[here], before[here]
    n = len(owner)
    # Older answers know less of what has happened since.
    mood = people.dissatisfaction[owner] * np.where(before <= 365, 1.0, 0.4)
    nps = np.clip(np.round(7.8 - 1.9 * mood + 1.2 * draws.standard_normal(n)), 0, 10).astype(np.int64)
    csat = np.clip(np.round(4.0 - 0.9 * mood + 0.7 * draws.standard_normal(n)), 1, 5).astype(np.int64)
    pick, written = draws.integers(0, 10**6, n), draws.random(n) < 0.55
    texts: list[str | None] = []
    for score, p, w in zip(nps.tolist(), pick.tolist(), written.tolist(), strict=True):
        kind = (
            words.SURVEY_UNHAPPY if score <= 6 else words.SURVEY_NEUTRAL if score <= 8 else words.SURVEY_HAPPY
        )
        texts.append(kind[p % len(kind)] if w else None)
    return pa.table(
        {
            "customer_id": pa.array(ids[owner].tolist(), type=pa.string()),
            "date": days_before(before),
            "nps": pa.array(nps),
            "csat": pa.array(csat),
            "comment": pa.array(texts, type=pa.string()),
        }
    )
