"""What came out of a job's rounds, kept as it comes, so that a coordinator that ends in the middle can go on.

Between two rounds the coordinator only computes from what came out so far: a net's step, a tree, the next question.
So the noisy totals are the whole checkpoint. A run that is resumed takes them from here instead of asking, and asks
on from the first that is missing: no branch is charged for any of them again. Of the question that was out, the
very bytes are here: whoever answered them has that answer still, and gives it again at no charge.

A directory of its own in the run's: `job.json`, the signed job; `000001`, `000002` …, an entry each, in order;
`000003.asked`, the question whose answer will be the third. Each file is whole or not there, and begins with the
SHA-256 of what follows; each entry names the one before it. Nothing in it was not sent to the coordinator: noisy
numbers, and what follows from them.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load, save

from sfumato.common.codec import Vector
from sfumato.common.errors import BadInput, Unavailable
from sfumato.common.job import SignedJob
from sfumato.common.messages import What
from sfumato.privacy.secure_sum import job_context
from sfumato.server.run_files import SIGNED, write_whole

VERSION = 1
ASKED = ".asked"
DIGEST = 32  # bytes of SHA-256
OPENED = "opened"
Kept = Mapping[tuple[str, ...], Vector]


@dataclass(frozen=True)
class Standing:
    """How far a job is: sums asked for, repeats among them, and what is known of each branch that opened it."""

    sums: int = 0
    repeats: int = 0
    branches: tuple[dict[str, Any], ...] = ()


class Journal:
    """The journal of one job, being written; of none at all without a directory (a simulation keeps nothing).

    What cannot be written raises Unavailable: the job stays as it is, to be resumed.
    """

    def __init__(self, directory: Path | None = None, context: str = "") -> None:
        self.standing = Standing()
        self.entries = 0
        self._directory = directory
        self._context = context
        self._last = ""  # SHA-256 of the latest entry, hex
        self._kept: dict[tuple[str, int], tuple[str, Kept]] = {}  # with the question's hash
        self._asked: tuple[str, int, str, bytes] | None = None
        self._question = ""  # SHA-256 of the question at hand, hex

    @classmethod
    def begin(cls, directory: Path, signed: SignedJob) -> "Journal":
        """An empty one, in a directory that is not there yet."""
        journal = cls(directory, job_context(signed.job_id, signed.job_hash))
        try:
            directory.mkdir(mode=0o700)
        except OSError as e:
            raise _unwritable(directory, e) from None
        journal._write(directory / SIGNED, signed.model_dump_json().encode())
        return journal

    @classmethod
    def resume(cls, directory: Path, signed: SignedJob) -> "Journal":
        """One that is there. Raises BadInput where a file is damaged, missing, or of another job."""
        if read_job(directory) != signed:
            raise BadInput(f"{directory}: is the journal of another job")
        journal = cls(directory, job_context(signed.job_id, signed.job_hash))
        for number, path in enumerate(sorted(p for p in directory.iterdir() if p.name.isdigit()), 1):
            head, vectors = journal._read(path)
            if (head["number"], head["previous"], path.name) != (number, journal._last, f"{number:06}"):
                raise _damaged(path, "an entry before it is missing")
            journal._last = path.read_bytes()[:DIGEST].hex()
            journal.standing, journal.entries = _standing(head), number
            if head["what"] != OPENED:
                journal._kept[head["what"], head["round"]] = head["question"], vectors
        if (asked := journal._path(ASKED)).is_file():
            head, vectors = journal._read(asked)
            journal._asked = (head["what"], head["round"], head["question"], vectors[()].tobytes())
            journal.standing = _standing(head)
        return journal

    @property
    def rounds(self) -> int:
        """How many rounds came out before this run."""
        return len(self._kept)

    # --- reading -----------------------------------------------------------------------------------------

    def kept(self, what: What, round_: int, question: bytes) -> Kept | None:
        """What came out: vectors by the names of those who are in each. None for what is to be asked.

        A round begins with this: `question` is its frame, whoever it goes to. Raises BadInput where another one was
        asked; an answer to that would be read as one to this.
        """
        self._question = hashlib.sha256(question).hexdigest()
        known, kept = self._kept.get((what, round_), (self._question, None))
        if self._asked is not None and self._asked[:2] == (what, round_):
            known = self._asked[2]
        if known != self._question:
            raise BadInput(
                f"round {round_} was asked another question than the one that follows from the rounds before",
                hint="Another version of Sfumato began this run: resume it with that one, or give it up.",
            )
        return kept

    def asked(self, what: What, round_: int) -> bytes | None:
        """The frame of the question that was out when the coordinator ended, if it was this one."""
        if self._asked is None or self._asked[:2] != (what, round_):
            return None
        return self._asked[3]

    # --- writing -----------------------------------------------------------------------------------------

    def opened(self, standing: Standing) -> None:
        """The job is open at these branches: from now on there is something to resume."""
        self._append(OPENED, self.entries, {}, standing)

    def ask(self, what: What, round_: int, frame: bytes, standing: Standing) -> None:
        """This question goes out now. `standing` is as of before it."""
        if self._directory is None or self.asked(what, round_) == frame:
            return
        vectors: Kept = {(): np.frombuffer(frame, dtype=np.uint8)}  # type: ignore[dict-item]
        self._write(self._path(ASKED), _file(self._head(what, round_, standing), vectors))

    def keep(self, what: What, round_: int, vectors: Kept, standing: Standing) -> None:
        """This came out. `standing` is as of after it."""
        self._append(what, round_, vectors, standing)

    def move(self, directory: Path) -> None:
        """To another run's directory, in one step."""
        if self._directory is not None:
            self._directory.rename(directory)
            self._directory = directory

    def _append(self, what: str, round_: int, vectors: Kept, standing: Standing) -> None:
        if self._directory is None:
            return
        head = self._head(what, round_, standing)
        content, asked = _file(head, vectors), self._path(ASKED)
        self._write(self._path(), content)
        self._last, self.standing = content[:DIGEST].hex(), standing
        self.entries += 1
        asked.unlink(missing_ok=True)  # where a crash comes first, the next entry has another number

    def _head(self, what: str, round_: int, standing: Standing) -> dict[str, Any]:
        return {
            "version": VERSION,
            "job": self._context,
            "number": self.entries + 1,
            "previous": self._last,
            "what": what,
            "round": round_,
            "question": self._question,
            "standing": asdict(standing),
        }

    def _path(self, suffix: str = "") -> Path:
        """Of the next entry."""
        return (self._directory or Path()) / f"{self.entries + 1:06}{suffix}"

    @staticmethod
    def _write(path: Path, content: bytes) -> None:
        try:
            write_whole(path, content)
        except OSError as e:
            raise _unwritable(path.parent, e) from None

    def _read(self, path: Path) -> tuple[dict[str, Any], dict[tuple[str, ...], Any]]:
        try:
            content = path.read_bytes()
        except OSError as e:
            raise _damaged(path, os.strerror(e.errno or 0)) from None
        digest, payload = content[:DIGEST], content[DIGEST:]
        if hashlib.sha256(payload).digest() != digest:
            raise _damaged(path, "its bytes are not those that were written")
        try:
            tensors = load(payload)
            head = json.loads(tensors.pop("head").tobytes())
            names = [tuple(members) for members in head["members"]]
            version, job = head["version"], head["job"]
        except (SafetensorError, ValueError, KeyError, TypeError):
            raise _damaged(path, "it is no entry") from None
        if version != VERSION:
            raise BadInput(f"{path}: is of another version of Sfumato", hint="Resume with that version.")
        if job != self._context:
            raise BadInput(f"{path}: is of another job", hint="Files of two journals were mixed.")
        return head, {members: tensors[str(i)] for i, members in enumerate(names)}


def read_job(directory: Path) -> SignedJob:
    """The signed job of a journal. Raises BadInput where there is none."""
    try:
        return SignedJob.model_validate_json((directory / SIGNED).read_bytes())
    except FileNotFoundError:
        raise BadInput(f"{directory}: no journal here") from None
    except ValidationError:
        raise _damaged(directory / SIGNED, "it is no signed job") from None


def discard(directory: Path) -> None:
    """Remove a journal, if there is one; what is left should that be cut short counts as none."""
    (directory / SIGNED).unlink(missing_ok=True)
    shutil.rmtree(directory, ignore_errors=True)


def _file(head: dict[str, Any], vectors: Kept) -> bytes:
    head = {**head, "members": [list(members) for members in vectors]}
    tensors: dict[str, Any] = {str(i): np.ascontiguousarray(v) for i, v in enumerate(vectors.values())}
    tensors["head"] = np.frombuffer(json.dumps(head, allow_nan=False).encode(), dtype=np.uint8)
    payload = save(tensors)
    return hashlib.sha256(payload).digest() + payload


def _standing(head: Mapping[str, Any]) -> Standing:
    standing = head["standing"]
    return Standing(standing["sums"], standing["repeats"], tuple(standing["branches"]))


def _damaged(path: Path, why: str) -> BadInput:
    return BadInput(
        f"{path}: the journal is damaged ({why})",
        hint="Give the run up (sfumato job stop) and submit the job again. What it spent stays spent.",
    )


def _unwritable(directory: Path, error: OSError) -> Unavailable:
    return Unavailable(
        f"{directory}: cannot be written ({os.strerror(error.errno or 0)})",
        hint="Make room, then resume the run.",
    )
