"""The coordinator's own ledger: which jobs it ran for whom, what they left, and where each branch's ledger stood.

Branches co-sign its checkpoints (see `sfumato.privacy.witness`), so it cannot show two of them two histories.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sfumato.common.errors import LedgerBroken
from sfumato.common.job import SignedJob
from sfumato.common.messages import LedgerHead
from sfumato.common.notes import Checkpoint, SignedNote
from sfumato.common.private_files import replace
from sfumato.privacy.ledger import Entry, Ledger


def record_start(ledger: Ledger, signed: SignedJob, run: str, *, resumes: int | None = None) -> Entry:
    """A run of this job begins: its hash, who signed it, and which run of the same job it goes on from."""
    body = {"run": run, "name": signed.job.name, "job_hash": signed.job_hash, "signer": signed.key_id}
    if resumes is not None:
        body["resumes"] = str(resumes)
    return ledger.append("start", body, job_id=signed.job_id)


def record_end(
    ledger: Ledger, job_id: str, *, run: str, state: str, files: Iterable[Path], audit: str | None = None
) -> Entry:
    """A run ended: how, the SHA-256 of each file it left (by name), and the verdict of its audit, if it had one."""
    hashes = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(files)}
    body: dict[str, Any] = {"run": run, "state": state, "files": hashes, "audit": audit}
    return ledger.append("end", body, job_id=job_id)


def record_branch(ledger: Ledger, branch: str, head: LedgerHead, *, job_id: str) -> Entry:
    """Where a branch's ledger stood when this job was over; the caller verified the signature."""
    return ledger.append("branch", {"branch": branch, "checkpoint": head.note}, job_id=job_id)


def describe_entry(entry: Entry) -> str:
    """One line for a person."""
    body = entry.body
    match entry.kind:
        case "genesis":
            return str(body["origin"])
        case "start":
            resumed = f", resumes run {body['resumes']}" if "resumes" in body else ""
            return f"run {body['run']}: {body['name']} (job hash {body['job_hash']}){resumed}"
        case "end":
            audit = f", audit {body['audit']}" if body["audit"] else ""
            return f"run {body['run']}: {body['state']}, {len(body['files'])} files{audit}"
        case "branch":
            return f"{body['branch']} at {Checkpoint.parse(body['checkpoint']).size} entries"
    return ""


class CosignedCheckpoint:
    """The latest checkpoint that branches co-signed, in a file beside the ledger; whole or not at all."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def note(self) -> str | None:
        """The note with every cosignature on it. Raises LedgerBroken if the file holds something else."""
        try:
            text = self.path.read_text(encoding="utf-8")
            Checkpoint.parse(text)
        except FileNotFoundError:
            return None
        except ValueError:
            raise LedgerBroken(f"{self.path}: is no checkpoint any more") from None
        return text

    def add(self, checkpoint: str, lines: Iterable[str]) -> str:
        """Keep these signature lines: beside those that the same checkpoint has, or in place of an older one.

        Returns the note. Raises ValueError for what is no checkpoint or no signature line.
        """
        given, kept = SignedNote.parse(checkpoint), self.note
        if kept is not None and SignedNote.parse(kept).text == given.text:
            given = SignedNote.parse(kept).with_signatures(map(str, given.signatures))
        note = str(given.with_signatures(lines))
        if kept is None or Checkpoint.parse(note).size >= Checkpoint.parse(kept).size:
            replace(self.path, note.encode())
        return note
