"""A model's card: what it is for, what it cost, how good it is and for whom, what it must not be used for.

After Mitchell et al. 2019 (Model Cards for Model Reporting). Plain JSON; `model_page` makes the page of it.
"""

import math
from typing import Any

from sfumato.common.errors import BadInput
from sfumato.common.job import LearnerJob
from sfumato.server.model_explained import explained
from sfumato.server.registry import MODEL, Drift, Entry
from sfumato.server.report_words import number, odds, rounded_up, surest_guess

VERSION = 1
BY_HOLDOUT = "Measured on customers that the model was never trained on, in one noisy sum over the branches."


def summary(entry: Entry) -> dict[str, Any]:
    """One line of the registry, as JSON."""
    header = entry.model.header if entry.model else None
    return {
        "run": entry.run,
        "name": entry.name,
        "kind": header.kind if header else entry.result.get("kind"),
        "state": entry.state,
        "problems": list(entry.problems),
        "epsilon": header.epsilon if header else None,
        "delta": header.delta if header else None,
        "auc": metrics(entry).get("auc"),
        "branches": len(_branches(entry)) or None,
        "made": entry.made.isoformat() if entry.made else None,
        "contract": {"name": header.contract_name, "hash": header.contract} if header else None,
        "sha256": entry.sha256,
    }


def card(entry: Entry) -> dict[str, Any]:
    """The whole card, as JSON. Raises BadInput where the file holds no model."""
    if entry.model is None:
        raise BadInput(f"the model of run {entry.run} is {entry.state}: {'; '.join(entry.problems)}")
    header, result, signed = entry.model.header, entry.result, entry.signed
    contract = {"name": header.contract_name, "hash": header.contract, "label": header.label}
    if signed is not None:
        contract["purpose"] = signed.contract.purpose
    made: dict[str, Any] = {
        "card": VERSION,
        **summary(entry),
        "purpose": header.purpose,
        "contract": contract,
        "file": {"name": MODEL, "sha256": entry.sha256, "bytes": len(entry.files[MODEL])},
        "job": {
            "id": header.job_id,
            "hash": header.job_hash,
            "signer": entry.start.body.get("signer") if entry.start else None,
            **{key: result.get(key) for key in ("mode", "colluders", "rounds", "sums", "seconds")},
        },
        "privacy": {
            "epsilon": header.epsilon,
            "delta": header.delta,
            "unit": "one customer with all their records",
            "meaning": _meaning(entry),
        },
        "branches": _branches(entry),
        "ledger": _ledger(entry),
        "audit": result.get("audit"),
        "evaluation": {
            "how": BY_HOLDOUT if metrics(entry) else None,
            "level": _level(entry),
            "metrics": metrics(entry),
        },
        "fairness": fairness(entry),
        "drift": [_drift(d) for d in entry.drifts],
        "explanation": explained(entry.model, entry.answer),
    }
    return {**made, "limits": _limits(entry, made), "verify": _verify(entry)}


def metrics(entry: Entry) -> dict[str, dict[str, float]]:
    """Each metric that has a value and an interval."""
    return _intervals(entry.result.get("metrics"))


def fairness(entry: Entry) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    """{column: {group: {metric: {value, low, high}}}}, of what the job declared."""
    given = entry.result.get("fairness")
    return {
        str(column): {str(group): _intervals(found) for group, found in groups.items()}
        for column, groups in (given.items() if isinstance(given, dict) else ())
        if isinstance(groups, dict)
    }


def _drift(given: Drift) -> dict[str, Any]:
    """The columns that moved most first, without their bins: those stand in that run's own answer."""
    columns = given.answer.get("drift")
    found = [
        {"column": str(c.get("column")), "verdict": str(c.get("verdict")), **psi}
        for c in (columns if isinstance(columns, list) else [])
        if isinstance(c, dict) and (psi := _intervals({"psi": c.get("psi")}))
    ]
    return {"run": given.run, "time": given.time.isoformat(), "epsilon": given.epsilon, "columns": found}


def apart(a: dict[str, float], b: dict[str, float]) -> bool:
    """Do these two intervals have no point in common?"""
    return a["high"] < b["low"] or b["high"] < a["low"]


def _intervals(given: Any) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for name, entry in given.items() if isinstance(given, dict) else ():
        if isinstance(entry, dict):
            ends = {end: entry.get(end) for end in ("value", "low", "high")}
            if all(isinstance(v, int | float) and math.isfinite(v) for v in ends.values()):
                found[str(name)] = {end: float(v) for end, v in ends.items() if v is not None}
    return found


def _level(entry: Entry) -> float | None:
    given = entry.result.get("metrics")
    level = given.get("level") if isinstance(given, dict) else None
    return float(level) if isinstance(level, int | float) else None


def _branches(entry: Entry) -> list[dict[str, Any]]:
    given = entry.result.get("per_branch")
    shown = ("name", "epsilon", "rounds_answered", "rounds_missed", "bytes_sent")
    return [
        {key: b.get(key) for key in shown}
        for b in (given if isinstance(given, list) else [])
        if isinstance(b, dict)
    ]


def _ledger(entry: Entry) -> dict[str, Any] | None:
    """Where the ledger says so, and who co-signed it. None for a run that it does not know."""
    if entry.end is None:
        return None
    found: dict[str, Any] = {
        "entry": entry.end.seq,
        "entry_hash": entry.end.hash,
        "time": entry.end.time.isoformat(),
        "checkpoint": None,
    }
    if entry.witnessed is not None:
        w = entry.witnessed
        cosigned = [{"branch": b, "time": t.isoformat()} for b, t in w.cosigned.items()]
        found["checkpoint"] = {"size": w.size, "root": w.root, "cosigned": cosigned, "note": w.note}
    return found


def _meaning(entry: Entry) -> str:
    assert entry.model is not None
    header, job = entry.model.header, entry.result
    factor = "within a fixed factor as likely"
    if header.epsilon < 20:
        factor = f"at most {rounded_up(math.exp(header.epsilon), 1)} times more or less likely"
    sure = number(math.ceil(surest_guess(header.epsilon) - 1e-9))
    colluders = job.get("colluders")
    against = "the coordinator and the other branches"
    if job.get("mode") == "secure-sum":
        branches = "any one branch that works" if colluders == 1 else f"any {colluders} branches that work"
        against = f"the coordinator and {branches} with it"
    return (
        "Had any one customer not been in the data, all that left the branches for this model would have been "
        f"{factor}, but for a chance of {odds(header.delta)}. Whoever held it for a 50:50 matter that a certain "
        f"customer is in the data could be at most {sure} % sure after seeing it. This holds against {against}."
    )


_NOT_FOR: dict[str, str] = {
    "segments": "Segments are a description: they are no verdict on a customer, and were tested against none.",
    "sentiment": "Not to judge by one text what a customer thinks: it is often wrong on a single one, and knows no "
    "irony.",
    "clv": "Not a promise of what one customer will spend: it is a mean over customers with the same history, if "
    "they go on as they did.",
    "offer": "Not for what an offer brings about: the plan counts on the take-up of a time without these offers.",
    "anomaly": "Not to judge anybody: it says who is unlike the others, which has honest reasons more often than "
    "not.",
}


def _limits(entry: Entry, made: dict[str, Any]) -> list[str]:
    """What the model must not be used for; what its own figures say comes first."""
    assert entry.model is not None
    header = entry.model.header
    found = [*_of_figures(made)]
    purpose = made["contract"].get("purpose")
    found.append(
        f"Not for another purpose than the contract’s: {purpose}"
        if purpose
        else f"Not for another purpose than that of contract {header.contract_name}."
    )
    found += [
        "Not as the only ground of a decision that weighs on a customer: a person decides, and can be asked why.",
        "Not for reasons why customers act: it knows what goes together, not what causes what.",
        f"Not on data whose columns are declared otherwise than in contract {header.contract_name} of this hash, nor "
        "on customers unlike those of the branches that took part: nothing was measured there.",
        "Its file is public, its scores are not: a customer’s score is computed at the branch, and stays there.",
    ]
    found.append(
        _NOT_FOR.get(header.kind)
        or f"Its probabilities are those of the time of training ({header.made:%Y-%m-%d}): where the share of "
        f"{header.label} has changed since, they are off."
    )
    if (
        entry.signed is not None
        and isinstance(entry.signed.job, LearnerJob)
        and entry.signed.job.binning.known
    ):
        found.append(
            "Its bins come from an earlier job, which was charged for by itself: not in this epsilon."
        )
    return found


def _of_figures(made: dict[str, Any]) -> list[str]:
    found = []
    if made["state"] != "verified":
        found.append(f"Not at all, as it lies here: it is {made['state']} ({'; '.join(made['problems'])}).")
    whole = made["evaluation"]["metrics"]
    auc = whole.get("auc")
    if auc is not None and auc["low"] <= 0.5:
        found.append("Not at all yet: its AUC cannot be told from a coin’s.")
    if made["audit"] not in (None, "consistent"):
        found.append(f"Not before somebody has looked: the audit of the running code says {made['audit']}.")
    if made["audit"] is None:
        found.append("The running code was not audited in this job.")
    for column, groups in made["fairness"].items():
        for group, of_group in groups.items():
            own = of_group.get("auc")
            if own is None or auc is None:
                continue
            if own["low"] <= 0 and own["high"] >= 1:
                found.append(f"Nothing is known of how good it is for {column} = {group}: too few customers.")
            elif own["high"] < auc["low"]:
                found.append(
                    f"Not without care for {column} = {group}: its AUC is lower there than over all."
                )
    for drift in made["drift"][-1:]:
        shifted = [c["column"] for c in drift["columns"] if c["verdict"] == "shifted"]
        if shifted:
            found.append(
                f"Not without care since {drift['time'][:10]}: customers are others now by {', '.join(shifted)} "
                f"(run {drift['run']})."
            )
    if not made["fairness"] and whole:
        found.append(
            "No groups were declared: whether it is as good for all kinds of customers is not known."
        )
    return found


def _verify(entry: Entry) -> list[dict[str, str]]:
    """Steps for somebody who trusts neither the coordinator nor this card."""
    steps: list[dict[str, str]] = [
        {
            "do": "sha256sum model.safetensors",
            "expect": f"{entry.sha256}: the hash that the ledger’s entry states, and this card.",
        },
        {
            "do": "sfumato coordinator ledger HOME --export coordinator.jsonl",
            "expect": f"At the coordinator. Entry {entry.end.seq if entry.end else '?'} in it is the end of run "
            f"{entry.run}, with the SHA-256 of every file of the run.",
        },
        {
            "do": "sfumato audit verify coordinator.jsonl --key invitation.json",
            "expect": "Anywhere, with the invitation that every branch holds: the ledger is whole, and who "
            "co-signed it.",
        },
        {
            "do": "sfumato branch ledger HOME --verify",
            "expect": "At each branch: what it released for this job, and what that was charged.",
        },
    ]
    if entry.witnessed is not None:
        says = f"The same with what you kept: the branches signed the checkpoint of {entry.witnessed.size} entries."
        steps.append(
            {
                "do": "sfumato audit verify coordinator.jsonl --key invitation.json --since checkpoint",
                "expect": says,
            }
        )
    return steps
