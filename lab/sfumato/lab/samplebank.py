"""The sample bank: a seeded, made-up bank with branches that differ and churn whose causes are known.

No person, account or address here exists. This is the only file of the product that may use `numpy.random`:
it makes data, never noise. The model of why customers leave is in `samplebank_model`.
"""

import csv
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from numpy.typing import NDArray

from sfumato.common.errors import BadInput
from sfumato.lab import samplebank_campaign as campaign
from sfumato.lab import samplebank_loans as credit
from sfumato.lab import samplebank_tables as tables
from sfumato.lab.samplebank_contract import CONTRACT_TOML
from sfumato.lab.samplebank_identity import distinct_numbers, identities
from sfumato.lab.samplebank_model import (
    COEFFICIENTS,
    INTERCEPT,
    PROFILES,
    SEGMENTS,
    Floats,
    Ints,
    auc,
    draw_people,
    effects,
)
from sfumato.lab.samplebank_text import JOB_TOML, PROFILE_TOML, SECURE_JOB_TOML

PII_KINDS = ("full_name", "national_id", "phone", "email", "iban", "address", "customer_id", "complaint_text")
CHURN_WINDOW_DAYS = 184


@dataclass(frozen=True)
class SampleBank:
    """Where a sample bank was written, and what is true of it. `branches` maps names to folders."""

    contract: Path
    job: Path
    secure_job: Path
    profile: Path
    branches: dict[str, Path]
    ground_truth: Path  # one row a customer: true propensity and counterfactuals
    ground_truth_json: Path  # the model itself, its average effects, the AUC of the true propensity
    customers: int
    churn_rate: float
    propensity_auc: float


def generate(out: Path, *, branches: int = 4, customers_per_branch: int = 3000, seed: int = 7) -> SampleBank:
    """Write a bank of `branches` folders and its contract, job and ground truth into `out`.

    The same arguments give the same bytes. Branch sizes differ and average `customers_per_branch`. Each file
    appears whole or not at all. Raises BadInput on a size out of range, or where `out` holds a larger bank.
    """
    if not 1 <= branches <= 999:
        raise BadInput(f"a sample bank has 1 to 999 branches, not {branches}")
    if not 50 <= customers_per_branch <= 1_000_000:
        raise BadInput(f"a branch has 50 to 1,000,000 customers on average, not {customers_per_branch}")
    _check_folder(out, branches)
    sizes = _sizes(branches, customers_per_branch)
    rng = np.random.default_rng(seed)
    numbers = distinct_numbers(rng, int(sizes.sum()), 10**9)
    truths, folders, start = [], {}, 0
    for b, n in enumerate(sizes.tolist(), start=1):
        name = f"branch-{b}"
        folders[name] = out / name
        later = np.random.default_rng((seed, b))  # of tables that came later: the others stay as they were
        truths.append(_write_branch(rng, later, folders[name], b, numbers[start : start + n]))
        start += n
    truth = pa.concat_tables(truths)
    summary = _summary(truth, seed)
    _write(out / "contract.toml", partial(_text, CONTRACT_TOML))
    _write(out / "job.toml", partial(_text, JOB_TOML))
    _write(out / "job-secure-sum.toml", partial(_text, SECURE_JOB_TOML))
    _write(out / "profile.toml", partial(_text, PROFILE_TOML))
    _write(out / "ground_truth.parquet", partial(pa.parquet.write_table, truth))
    _write(out / "ground_truth.json", partial(_text, json.dumps(summary, indent=2) + "\n"))
    return SampleBank(
        contract=out / "contract.toml",
        job=out / "job.toml",
        secure_job=out / "job-secure-sum.toml",
        profile=out / "profile.toml",
        branches=folders,
        ground_truth=out / "ground_truth.parquet",
        ground_truth_json=out / "ground_truth.json",
        customers=summary["customers"],
        churn_rate=summary["churn_rate"],
        propensity_auc=summary["auc_of_true_propensity"],
    )


def planted_pii(out: Path) -> dict[str, list[str]]:
    """By branch, strings of every kind in `PII_KINDS` that stand in its files and must never leave it.

    Each is at least six bytes long in UTF-8. Raises BadInput if `out` holds no sample bank.
    """
    return {
        branch: list(dict.fromkeys(value for values in kinds.values() for value in values))
        for branch, kinds in planted_pii_by_kind(out).items()
    }


def planted_pii_by_kind(out: Path) -> dict[str, dict[str, list[str]]]:
    """`planted_pii` by branch and kind; Chinese names are among the names where the branch has any."""
    folders = sorted(p for p in out.glob("branch-*") if p.is_dir())
    if not folders:
        raise BadInput(f"{out}: holds no sample bank", hint="Write one with `sfumato sample-bank`.")
    return {folder.name: _planted(folder) for folder in folders}


def _planted(folder: Path) -> dict[str, list[str]]:
    with (folder / "customers.csv").open(encoding="utf-8", newline="") as f:
        rows = {row["customer_id"]: row for row in csv.DictReader(f)}
    found = {kind: _distinct([row[kind] for row in rows.values()], 8) for kind in PII_KINDS[:-1]}
    chinese = _distinct([row["full_name"] for row in rows.values() if not row["full_name"].isascii()], 8)
    found["full_name"] = _distinct(found["full_name"] + chinese, 16)
    with (folder / "complaints.csv").open(encoding="utf-8", newline="") as f:
        # The sentences are a public list; a text that ends with its customer's name is nobody else's.
        signed = [
            r["text"] for r in csv.DictReader(f) if r["text"].endswith(rows[r["customer_id"]]["full_name"])
        ]
    found["complaint_text"] = _distinct(signed, 8)
    return found


def _distinct(values: list[str], most: int) -> list[str]:
    return [v for v in dict.fromkeys(values) if len(v.encode()) >= 6][:most]


def _check_folder(out: Path, branches: int) -> None:
    if out.exists() and not out.is_dir():
        raise BadInput(f"{out}: not a folder", hint="Give a folder for the sample bank.")
    beyond = {p.name for p in out.glob("branch-*")} - {f"branch-{b}" for b in range(1, branches + 1)}
    if beyond:
        raise BadInput(
            f"{out}: holds {sorted(beyond)[0]} of another, larger bank", hint="Give an empty folder."
        )


def _sizes(branches: int, mean: int) -> Ints:
    relative = np.array([PROFILES[b % len(PROFILES)].size for b in range(branches)])
    return np.asarray(np.round(relative / relative.mean() * mean), dtype=np.int64)


def _write_branch(
    rng: np.random.Generator, later: np.random.Generator, folder: Path, branch: int, numbers: Ints
) -> pa.Table:
    """Draw and write one branch. Returns its customers' ground truth."""
    profile, n = PROFILES[(branch - 1) % len(PROFILES)], len(numbers)
    people = draw_people(rng, profile, n)
    ids: NDArray[np.str_] = np.array([f"C{number:09d}" for number in rng.permutation(numbers).tolist()])
    pii = identities(rng, people, profile, branch, numbers)
    truth = effects(people)
    churned = rng.random(n) < truth["propensity"]
    left = np.datetime64(tables.AS_OF, "D") + rng.integers(1, CHURN_WINDOW_DAYS + 1, n)
    files = {
        "customers": tables.customers(people, profile, folder.name, ids, pii, churned),
        "accounts": tables.accounts(rng, people, ids),
        "transactions": tables.transactions(rng, people, ids),
        "holdings": tables.holdings(rng, people, ids),
        "complaints": tables.complaints(rng, people, ids, pii),
        "surveys": tables.surveys(rng, people, ids),
    }
    files["contacts"] = campaign.contacts(later, people, ids)
    files["loans"], defaults = credit.loans(later, people, ids, files["holdings"])
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in files.items():
        if name == "transactions":
            _write(folder / f"{name}.parquet", partial(pa.parquet.write_table, table))
        else:
            _write(folder / f"{name}.csv", partial(_csv, table))
    return pa.table(
        {
            "customer_id": pa.array(ids.tolist(), type=pa.string()),
            "branch": [folder.name] * n,
            "churned": churned,
            "churn_date": pa.array(left, type=pa.date32(), mask=~churned),
            "decline": people.decline,
            "dissatisfaction": people.dissatisfaction,
            **truth,
            "segment": np.array(SEGMENTS, dtype=object)[people.segment],
            **campaign.responses(people),
            "default_propensity": defaults,
        }
    )


def _summary(truth: pa.Table, seed: int) -> dict[str, Any]:
    columns = {name: np.asarray(truth[name]) for name in truth.column_names if name != "churn_date"}
    propensity: Floats = columns["propensity"]
    by_branch = {}
    for b, name in enumerate(dict.fromkeys(columns["branch"].tolist())):
        mine = columns["branch"] == name
        by_branch[name] = {
            "customers": int(mine.sum()),
            "churn_rate": float(columns["churned"][mine].mean()),
            "mean_propensity": float(propensity[mine].mean()),
            "log_odds": PROFILES[b % len(PROFILES)].log_odds,
        }
    return {
        "made_up": True,
        "seed": seed,
        "as_of": tables.AS_OF.isoformat(),
        "churn_window_days": CHURN_WINDOW_DAYS,
        "customers": truth.num_rows,
        "churn_rate": float(columns["churned"].mean()),
        "auc_of_true_propensity": auc(propensity, columns["churned"]),
        "log_odds": {"intercept": INTERCEPT, **COEFFICIENTS},
        "average_effects": {
            name: float((values - propensity).mean())
            for name, values in columns.items()
            if name.startswith("do_")
        },
        "average_responses": campaign.average_responses(columns),
        "default_rate": float(columns["default_propensity"][columns["default_propensity"] > 0].mean()),
        "branches": by_branch,
    }


def _csv(table: pa.Table, path: Path) -> None:
    pa.csv.write_csv(table, path, pa.csv.WriteOptions(quoting_style="needed"))


def _text(text: str, path: Path) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")


def _write(path: Path, write: Callable[[Path], None]) -> None:
    """Write beside the target, flush to disk, rename: a reader sees the old file or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    try:
        write(part)
        with part.open("rb") as f:
            os.fsync(f.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def as_of() -> date:
    """The day that the contract's roll-ups look back from."""
    return tables.AS_OF
