"""The registry of models: what finished runs left at the coordinator, each held against the coordinator's ledger.

There is no list of its own that could differ from the runs. An entry is verified when every file that the ledger's
`end` entry names is there with the stated hash, and the model's header names the job that the ledger names. What is
shown of an entry is read from the very bytes that were hashed; a file that the ledger does not name is not read.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from pydantic import ValidationError

from sfumato.common.enrolment import ed25519_public_key
from sfumato.common.errors import BadInput, LedgerBroken
from sfumato.common.job import SignedJob
from sfumato.common.learners.bins import Schema
from sfumato.common.learners.models import SavedModel
from sfumato.common.messages import LedgerHead
from sfumato.common.notes import SignedNote, branch_origin, verify_checkpoint
from sfumato.privacy import ledger as ledgers
from sfumato.privacy.ledger import Ledger
from sfumato.server.home import CoordinatorHome

MODEL = "model.safetensors"
State = Literal["verified", "altered", "unlisted", "unreadable"]


@dataclass(frozen=True)
class Witnessed:
    """A checkpoint of the coordinator's ledger that has the run in it, and when which branches co-signed it."""

    note: str
    size: int
    root: str
    cosigned: dict[str, datetime]


@dataclass(frozen=True)
class Drift:
    """A later run that asked whether the customers are still those of a model's schema; verified as a model is."""

    run: str
    time: datetime
    epsilon: float | None
    answer: dict[str, Any]


@dataclass(frozen=True)
class Entry:
    """One run's model. `problems` say why its state is not `verified`; `files` are the bytes that were read.

    `unlisted`: the ledger knows no finished end of this run. `altered`: a file is not what the ledger states.
    `unreadable`: it is, but holds no model of this release.
    """

    run: str
    state: State
    problems: tuple[str, ...]
    files: dict[str, bytes] = field(repr=False)
    model: SavedModel | None
    start: ledgers.Entry | None
    end: ledgers.Entry | None
    witnessed: Witnessed | None
    drifts: tuple[Drift, ...] = ()

    @property
    def sha256(self) -> str | None:
        """Of the model's file as it lies there."""
        found = self.files.get(MODEL)
        return hashlib.sha256(found).hexdigest() if found is not None else None

    @cached_property
    def result(self) -> dict[str, Any]:
        return _object(self.files.get("result.json")) or {}

    @cached_property
    def answer(self) -> dict[str, Any] | None:
        """What an analysis found, beside its model."""
        return _object(self.files.get("answer.json"))

    @cached_property
    def signed(self) -> SignedJob | None:
        """The job with its contract; None if the run does not hold it, or holds another."""
        signed = _signed(self.files.get("job.json"))
        job_hash = self.start.body["job_hash"] if self.start else self.model and self.model.header.job_hash
        return signed if signed is not None and signed.job_hash == job_hash else None

    @property
    def name(self) -> str:
        if self.model is not None:
            return self.model.header.name
        return str(self.start.body["name"]) if self.start else str(self.result.get("job", "?"))

    @property
    def made(self) -> datetime | None:
        if self.model is not None:
            return self.model.header.made
        return self.end.time if self.end else None

    def require(self) -> SavedModel:
        """The model. Raises BadInput unless it is verified."""
        if self.state != "verified" or self.model is None:
            raise BadInput(
                f"the model of run {self.run} is {self.state}: {'; '.join(self.problems)}",
                hint="Nothing is made of it. Restore the run's files as the ledger states them, or train again.",
            )
        return self.model


class Registry:
    """The models of one coordinator. Reads only."""

    def __init__(self, runs: Path, ledger: Ledger, branches: dict[str, Ed25519PublicKey]) -> None:
        self._runs, self._ledger, self._branches = runs, ledger, branches
        self._ends = {str(e.body["run"]): e for e in ledger.entries("end")}
        self._starts = {str(e.body["run"]): e for e in ledger.entries("start")}

    @classmethod
    def of(cls, home: CoordinatorHome) -> Self:
        """Raises LedgerBroken if the ledger does not verify, is another's than the invitation says, or contradicts
        what the branches co-signed: then it proves nothing about any model."""
        ledger = Ledger.read(home.ledger)
        if ledger.public_key != ed25519_public_key(home.invitation.ledger_public_key):
            raise LedgerBroken("the coordinator's ledger is signed by another key than its invitation names")
        ledger.verify(*([LedgerHead(note=note)] if (note := home.cosigned.note) else []))
        keys = {b.name: ed25519_public_key(b.enrolment.ledger_public_key) for b in home.branches()}
        return cls(home.path / "runs", ledger, keys)

    def entries(self) -> list[Entry]:
        """Every run that left a model, or that the ledger says left one; the latest last."""
        runs = sorted(set(self._on_disk()) | set(self._in_ledger()), key=int)
        found = [self._read(run) for run in runs]
        return sorted(found, key=lambda e: (e.end.time.timestamp() if e.end else float("inf"), int(e.run)))

    def entry(self, run: str) -> Entry:
        """With what later runs say of its schema. Raises BadInput where there is none."""
        known = {*self._on_disk(), *self._in_ledger()}
        if run not in known:
            there = (self._runs / run).is_dir() if run.isdigit() else False
            raise BadInput(
                f"run {run} left no model" if there else f"there is no run {run} with a model",
                hint="See `sfumato model list`.",
            )
        found = self._read(run)
        return replace(found, drifts=tuple(self._drifts(found.model)) if found.model else ())

    def _drifts(self, model: SavedModel) -> Iterator[Drift]:
        """Runs of kind `drift` against exactly this model's schema, the latest last."""
        needed = {"answer.json", "job.json", "result.json"}
        for run, end in self._ends.items():
            stated = end.body["files"]
            if model.header.schema_ is None or not needed <= set(stated) or MODEL in stated:
                continue
            files, problems = _files(self._runs / run, dict.fromkeys(needed, ""), stated)
            signed, answer = _signed(files.get("job.json")), _object(files.get("answer.json"))
            if problems or signed is None or answer is None or signed.job.kind != "drift":
                continue
            if Schema.model_validate(signed.job.question["known"]) == model.header.schema_:
                epsilon = (_object(files["result.json"]) or {}).get("epsilon")
                yield Drift(run, end.time, epsilon if isinstance(epsilon, int | float) else None, answer)

    def _on_disk(self) -> Iterator[str]:
        if self._runs.is_dir():
            yield from (
                p.parent.name
                for p in self._runs.glob(f"*/{MODEL}")
                if p.parent.name.isdigit() and p.parent.name.isascii()
            )

    def _in_ledger(self) -> Iterator[str]:
        yield from (run for run, e in self._ends.items() if MODEL in e.body["files"] and run.isdigit())

    def _read(self, run: str) -> Entry:
        start, end = self._starts.get(run), self._ends.get(run)
        directory = self._runs / run
        listed = end is not None and end.body["state"] == "finished" and MODEL in end.body["files"]
        stated = dict(end.body["files"]) if end is not None and listed else {}
        files, problems = _files(directory, stated or _names(directory), stated)
        state: State = "altered" if problems else "verified"
        model = None
        if MODEL in files:
            try:
                model = SavedModel.of_bytes(files[MODEL], MODEL)
            except BadInput as e:
                problems.append(e.message)
                state = "unreadable" if state == "verified" else state
        if not listed:
            problems.append("the coordinator's ledger knows no finished end of this run")
            state = "unlisted"
        witnessed = None
        if end is not None and listed:
            try:
                witnessed = self._witnessed(directory / "checkpoint", end)
            except LedgerBroken as e:
                problems.append(f"checkpoint: {e.message}")
                state = "altered"
        if model is not None and state == "verified" and (wrong := _another(model, start, end)):
            problems.append(wrong)
            state = "altered"
        return Entry(run, state, tuple(problems), files, model, start, end, witnessed)

    def _witnessed(self, path: Path, end: ledgers.Entry) -> Witnessed | None:
        """The run's checkpoint, verified. None if there is none. Raises LedgerBroken."""
        try:
            note = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError):
            raise LedgerBroken("is no checkpoint any more") from None
        found = verify_checkpoint(note, self._ledger.origin, self._ledger.public_key)
        try:
            known = SignedNote.parse(self._ledger.checkpoint(found.size)).text
        except ValueError:
            known = ""
        if known != found.text or found.size <= end.seq:
            raise LedgerBroken("is not one of this ledger with this run in it")
        cosigned = {}
        names = {s.name for s in SignedNote.parse(note).signatures}
        for branch, key in sorted(self._branches.items()):
            if branch_origin(branch) in names:
                cosigned[branch] = SignedNote.parse(note).cosigned_at(branch_origin(branch), key)
        return Witnessed(note, found.size, found.root, cosigned)


def _names(directory: Path) -> dict[str, str]:
    """Of a run that the ledger does not know: what lies there."""
    return {p.name: "" for p in directory.iterdir() if p.is_file() and not p.name.startswith(".")}


def _files(
    directory: Path, names: dict[str, str], stated: dict[str, str]
) -> tuple[dict[str, bytes], list[str]]:
    """The content of these files, and what is wrong with them."""
    files, problems = {}, []
    for name in sorted(names):
        if Path(name).name != name:
            problems.append(f"{name!r} is no file of a run")
            continue
        try:
            files[name] = (directory / name).read_bytes()
        except OSError:
            problems.append(f"{name} is missing")
            continue
        if stated and hashlib.sha256(files[name]).hexdigest() != stated[name]:
            problems.append(f"{name} is not the file whose hash the ledger states")
    return files, problems


def _another(model: SavedModel, start: ledgers.Entry | None, end: ledgers.Entry | None) -> str | None:
    """What is wrong if the model's header and the ledger name different jobs."""
    header = model.header
    if end is not None and header.job_id != end.job_id:
        return "its header names another job than the ledger"
    if start is not None and header.job_hash != start.body["job_hash"]:
        return "its header names another hash of its job than the ledger"
    return None


def _object(content: bytes | None) -> dict[str, Any] | None:
    try:
        found = json.loads(content or b"")
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _signed(content: bytes | None) -> SignedJob | None:
    try:
        return SignedJob.model_validate_json(content or b"")
    except ValidationError:
        return None
