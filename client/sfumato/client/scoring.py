"""`sfumato branch score`: a model over the branch's own customers, into a file. Nothing leaves the branch.

A row is a customer, known by their token. Who they are stands there only if it is asked for, column by column: that
takes the passphrase a second time and a purpose, and stands in the ledger before anything is opened. The scoring
itself stands there before its file has a name. Neither entry says how many customers a branch has: a ledger is handed
on, and there are no free statistics.
"""

import hashlib
import os
import pwd
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from sfumato.client.features import analysis_frame, customer_tokens
from sfumato.client.home import BranchHome
from sfumato.client.ingest.convert import convert
from sfumato.client.ingest.load import open_source
from sfumato.client.score_file import check_place, score_file
from sfumato.client.vault.loader import ID_PURPOSE, is_sealed
from sfumato.client.vault.store import Store
from sfumato.common.contract import Contract
from sfumato.common.errors import BadInput
from sfumato.common.learners.models import SavedModel, Scorer, Scores
from sfumato.common.learners.scoring import HAS_REASONS, scorer
from sfumato.privacy.fields import Tokenizer
from sfumato.privacy.keys import Keyring
from sfumato.privacy.ledger import Ledger

ROWS = 65_536  # scored and written at a time
TYPICAL_ROWS = 10_000  # tokens are keyed hashes: the first so many are a sample drawn at random
USUAL_REASONS = 3
LEAST_PURPOSE, MOST_PURPOSE = 8, 500  # characters
OUTLOOK = ("alive", "purchases", "value_each", "lifetime")  # of lifetime value: see learners.lifetime.Outlook


@dataclass(frozen=True)
class Reveal:
    """Which columns of the customers table to open, and why. `ids` is a file with the customers' ids, which the
    store itself holds as tokens only."""

    columns: tuple[str, ...]
    purpose: str
    ids: Path | None = None


@dataclass(frozen=True)
class Order:
    """What to score with, into which file."""

    model: Path
    out: Path
    reasons: int | None = None  # None: as many as are usual, if the kind has them
    reveal: Reveal | None = None
    force: bool = False


@dataclass(frozen=True)
class Scored:
    """What was done: customers, and the model's name, kind and SHA-256."""

    customers: int
    name: str
    kind: str
    model: str


@dataclass(frozen=True)
class _Checked:
    """An order that this branch could carry out, as far as one can tell without a key."""

    contract: Contract
    saved: SavedModel
    model: str
    columns: tuple[str, ...]
    reasons: int
    reveal: Reveal


def score_customers(
    home: BranchHome,
    order: Order,
    passphrase: Callable[[], str],
    *,
    again: Callable[[], str],
    progress: Callable[[int, int], None] = lambda done, all_: None,
) -> Scored:
    """Score every customer of the branch. `passphrase` is asked once all that needs no key is checked, and `again`
    only where something is to be revealed; `progress` is told customers done and in all.

    Raises BadInput (model, contract, column, passphrase, file) with nothing written, Insecure or LedgerBroken.
    """
    checked = _check(home, order)
    keyring = home.open_keyring(passphrase())
    opener = home.open_keyring(again()) if checked.reveal.columns else keyring
    with ExitStack() as stack:
        stack.callback(home.restore_owner)
        ledger = home.open_ledger(keyring)
        stack.callback(ledger.close)
        store = Store.open(home.store, checked.contract, opener, read_only=True)
        stack.callback(store.close)
        return _score(store, ledger, opener, order, checked, progress)


def _check(home: BranchHome, order: Order) -> _Checked:
    check_place(order.out, force=order.force)
    contract = home.contract()
    try:
        data = order.model.read_bytes()
    except FileNotFoundError:
        raise BadInput(f"{order.model}: no such file", hint="Ask the risk team for the model.") from None
    except OSError as e:
        raise BadInput(f"{order.model}: cannot be read ({e.strerror})") from None
    saved = SavedModel.of_bytes(data, str(order.model))
    columns = scorer(saved, contract).columns
    can = saved.header.kind in HAS_REASONS
    if order.reasons and not can:
        raise BadInput(f"a model of kind {saved.header.kind} gives no reasons", hint="Leave --reasons away.")
    usual = USUAL_REASONS if can else 0
    reasons = usual if order.reasons is None else order.reasons
    reveal = order.reveal or Reveal((), "")
    _check_reveal(contract, reveal, tuple(_types(saved, reasons)))
    return _Checked(contract, saved, hashlib.sha256(data).hexdigest(), columns, reasons, reveal)


def _check_reveal(contract: Contract, reveal: Reveal, taken: Sequence[str]) -> None:
    table = contract.customer_table
    if reveal.columns and not LEAST_PURPOSE <= len(reveal.purpose.strip()) <= MOST_PURPOSE:
        raise BadInput(
            f"a purpose has {LEAST_PURPOSE} to {MOST_PURPOSE} characters",
            hint='Say what the names are for: --purpose "…". It stands in the ledger, so name nobody in it.',
        )
    if reveal.ids is not None and table.customer_id.name not in reveal.columns:
        raise BadInput(f"a file of ids is read for --reveal {table.customer_id.name} only")
    for name in reveal.columns:
        if not table.has(name):
            raise BadInput(f"table {table.name!r} has no column {name!r}")
        if name == table.customer_id.name:
            if reveal.ids is None:
                raise BadInput(
                    f"{name!r} is kept as a token only, which cannot be turned back",
                    hint="Give the file with your customers' ids (the one that was loaded will do): --ids FILE.",
                )
        elif not is_sealed(table.column(name)):
            raise BadInput(
                f"{table.name}.{name} is not a sealed column", hint="Only protection = encrypt is."
            )
        if name in taken or reveal.columns.count(name) > 1:
            raise BadInput(f"the file would have two columns {name!r}")


def _score(
    store: Store,
    ledger: Ledger,
    keyring: Keyring,
    order: Order,
    checked: _Checked,
    progress: Callable[[int, int], None],
) -> Scored:
    contract, saved, reveal = checked.contract, checked.saved, checked.reveal
    tokens = customer_tokens(store, contract)
    if not tokens:
        raise BadInput("nothing has been ingested at this branch", hint="`sfumato branch ingest` first.")
    by_whom = {"model": checked.model, "operator": operator()}
    frame = analysis_frame(store, contract, checked.columns)
    ready = scorer(saved, contract, _columns(frame.slice(0, TYPICAL_ROWS)))

    def audit(table: str, column: str, count: int) -> None:
        entry = {"table": table, "column": column, "customers": "all", "reason": reveal.purpose}
        ledger.append("reveal", entry | by_whom)

    revealed = {
        name: _opened(store, contract, keyring, name, reveal, tokens, audit) for name in reveal.columns
    }
    header = saved.header
    types = _types(saved, checked.reasons) | dict.fromkeys(revealed, pa.string())
    with score_file(order.out, pa.schema(types), force=order.force) as sheet:
        for start in range(0, len(tokens), ROWS):
            named = {"token": pa.array(tokens[start : start + ROWS], type=pa.string())}
            part = _scores(ready, _columns(frame.slice(start, ROWS)) | named, checked.reasons)
            opened = {name: values.slice(start, ROWS) for name, values in revealed.items()}
            sheet.write(pa.table(named | part | opened, schema=pa.schema(types)))
            progress(min(start + ROWS, len(tokens)), len(tokens))
        entry = {"name": header.name, "kind": header.kind, "job_hash": header.job_hash, "customers": "all"}
        ledger.append("score", entry | by_whom | {"revealed": list(revealed)}, job_id=header.job_id)
    return Scored(len(tokens), header.name, header.kind, checked.model)


def operator() -> str:
    """The system user who types the command, as the ledger names them."""
    user = os.getuid()
    try:
        name = pwd.getpwuid(user).pw_name
    except KeyError:
        name = f"user id {user}"
    by = os.environ.get("SUDO_USER")
    return f"{name} (sudo by {by[:64]})" if by and user == 0 else name


# --- columns of the file -----------------------------------------------------------------------------------


def _types(saved: SavedModel, reasons: int) -> dict[str, pa.DataType]:
    most = saved.header.parameters.get("most_offers", 0)
    kinds = {
        "segments": {"segment": pa.int64()},
        "anomaly": {"anomaly": pa.float64(), "flagged": pa.bool_()},
        "clv": dict.fromkeys(_outlook(saved), pa.float64()),
        "scorecard": {"probability": pa.float64(), "points": pa.int64()},
        "offer": {f"offer_{i}": pa.string() for i in range(1, most + 1)},
    }
    own = kinds.get(saved.header.kind, {"probability": pa.float64()})
    return {"token": pa.string()} | own | {f"reason_{i}": pa.string() for i in range(1, reasons + 1)}


def _outlook(saved: SavedModel) -> tuple[str, ...]:
    """Of lifetime value: without amounts there are no values."""
    amounts = saved.header.kind == "clv" and saved.header.parameters["question"].get("amount")
    return OUTLOOK if amounts else OUTLOOK[:2]


def _columns(frame: pa.Table) -> dict[str, Any]:
    return {name: frame.column(name) for name in frame.column_names}


def _scores(ready: Scorer, columns: Mapping[str, Any], reasons: int) -> dict[str, pa.Array]:
    scores = ready.score(columns, reasons=reasons)
    given: dict[str, Any] = {"probability": scores.probability, "points": scores.points}
    given |= {"segment": scores.segment, "anomaly": scores.anomaly, "flagged": scores.flagged}
    found = {
        name: pa.array(v, from_pandas=True) for name, v in given.items() if v is not None
    }  # NaN: nothing
    offers = zip(*(scores.offers or ()), strict=True)
    found |= {f"offer_{i}": pa.array(given, type=pa.string()) for i, given in enumerate(offers, 1)}
    if (ahead := scores.outlook) is not None:
        each = zip(OUTLOOK, (ahead.alive, ahead.purchases, ahead.mean, ahead.lifetime), strict=True)
        found |= {name: pa.array(v, from_pandas=True) for name, v in each if v is not None}
    return found | {f"reason_{i + 1}": pa.array(_said(scores, i), type=pa.string()) for i in range(reasons)}


def _said(scores: Scores, place: int) -> Iterator[str | None]:
    """Each customer's reason at this place, in words; None for who has no more."""
    for reasons in scores.reasons or ():
        yield f"{reasons[place].column}: {reasons[place].bin}" if place < len(reasons) else None


def _opened(
    store: Store,
    contract: Contract,
    keyring: Keyring,
    column: str,
    reveal: Reveal,
    tokens: Sequence[str],
    audit: Callable[[str, str, int], None],
) -> pa.Array:
    """The column in the clear, in the order of the tokens."""
    table = contract.customer_table
    if column == table.customer_id.name:
        assert reveal.ids is not None  # it has been checked
        audit(table.name, column, len(tokens))
        known = _ids(reveal.ids, contract, keyring)
        return pa.array([known.get(t) for t in tokens], type=pa.string())
    values = store.reveal(table.name, column, None, audit=audit)
    return pa.array([values[t][0] for t in tokens], type=pa.string())


def _ids(path: Path, contract: Contract, keyring: Keyring) -> dict[str, str]:
    """Token → id of the customers whose ids stand in this file. Raises BadInput if it has no such column."""
    column, tokenizer = contract.customer_table.customer_id, Tokenizer(keyring)
    found: dict[str, str] = {}
    with open_source(path).open() as reader:
        if column.name not in reader.columns:
            raise BadInput(f"{path}: has no column {column.name!r}")
        for batch in reader:
            ids = convert(column.type, batch.table.column(column.name).combine_chunks()).values
            text = ids.drop_null().cast(pa.string())
            words = text.to_pylist()
            found.update(zip(tokenizer.tokens(text, purpose=ID_PURPOSE).to_pylist(), words, strict=True))
    return found
