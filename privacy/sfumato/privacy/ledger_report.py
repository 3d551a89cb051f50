"""`sfumato audit verify`: reads what a compliance officer kept, checks an exported ledger, says it in plain words."""

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from sfumato.common.enrolment import Enrolment, ed25519_public_key
from sfumato.common.errors import BadInput, LedgerBroken
from sfumato.common.notes import Checkpoint, branch_origin
from sfumato.privacy.export import Verified, verify_export


def verify_file(
    file: Path, *, since: Sequence[Path] = (), key: str | None = None, cosigners: Sequence[Path] = ()
) -> Verified:
    """Check an export. Raises BadInput for what cannot be read, LedgerBroken for what is not as it was written."""
    named = {
        branch_origin(e.name): ed25519_public_key(e.ledger_public_key) for e in map(Enrolment.load, cosigners)
    }
    pinned = read_key(key) if key is not None else None
    try:
        with file.open("rb") as lines:
            origin = _origin(lines.readline())
            kept = [note for path in since if origin for note in kept_checkpoints(path, origin)]
            lines.seek(0)
            return verify_export(lines, str(file), since=kept, key=pinned, cosigners=named)
    except OSError as e:
        raise BadInput(f"{file}: cannot be read ({e.strerror})") from None


def read_key(given: str) -> Ed25519PublicKey:
    """A ledger's key: base64, or a file with that, an enrolment or an invitation. Raises BadInput."""
    path = Path(given)
    try:
        text = path.read_text(encoding="utf-8").strip() if len(given) < 4096 and path.is_file() else given
        if text.startswith("{"):
            text = str(json.loads(text)["ledger_public_key"])
        return ed25519_public_key(text)
    except (OSError, ValueError, KeyError, TypeError):
        raise BadInput(
            f"{given}: not a ledger's key",
            hint="Give 32 bytes in base64, or enrolment.json or invitation.json.",
        ) from None


def kept_checkpoints(path: Path, origin: str) -> list[str]:
    """The checkpoints of this ledger in a file: a note, an earlier export, or a run's result.json.

    Raises BadInput if there are none.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise BadInput(f"{path}: cannot be read as what was kept") from None
    found = [note for note in _notes(text) if _is_of(note, origin)]
    if not found:
        raise BadInput(
            f"{path}: holds no checkpoint of {origin}",
            hint="Give a signed checkpoint, an earlier export, or result.json of a run.",
        )
    return found


def report(verified: Verified, *, spent: dict[str, tuple[float, float]]) -> list[str]:
    """The finding, a line a statement."""
    v = verified
    lines = [
        f"The ledger of {v.origin} is whole: {v.entries} entries, from {v.first:%Y-%m-%d %H:%M} to "
        f"{v.last:%Y-%m-%d %H:%M} (its own clock).",
        "Every entry is as it was written; every hash and the Merkle root were recomputed.",
        f"  root {base64.b64encode(bytes.fromhex(v.root)).decode()}",
        f"Its checkpoint is signed by the key that entry 0 names.\n  key {v.key}",
    ]
    if v.unsigned:
        lines.append(
            f"The last {_count(v.unsigned)} not signed for yet: the next entry of the vault does that."
        )
    lines.append(
        "That is the key that you gave."
        if v.key_given
        else "NOT PINNED: this key comes from the file itself, so anybody could have made the whole file. "
        "Give the key that you know with --key (enrolment.json, invitation.json)."
    )
    lines += [f"It continues the checkpoint of {size} entries that you kept." for size in v.since]
    lines += [f"Co-signed at {c.size} entries by {c.name}, {c.time:%Y-%m-%d %H:%M} UTC." for c in v.cosigned]
    if v.not_checked:
        lines.append(f"{v.not_checked} more signatures are of keys that were not given: not checked.")
    if v.account.budget is not None:
        lines.append(f"Budget: epsilon {v.account.budget:g} at delta {v.account.delta:g}. Spent, recomputed:")
        lines += [f"  {p}: epsilon {f:.4f} (filter), {r:.4f} (report, PLD)" for p, (f, r) in spent.items()]
        lines += [] if spent else ["  nothing"]
    return lines


def as_json(verified: Verified, *, spent: dict[str, tuple[float, float]]) -> str:
    v = verified
    value: dict[str, Any] = {
        "origin": v.origin,
        "entries": v.entries,
        "unsigned": v.unsigned,
        "root": v.root,
        "key": v.key,
        "key_given": v.key_given,
        "first": v.first.isoformat(),
        "last": v.last.isoformat(),
        "since": list(v.since),
        "cosigned": [{"size": c.size, "by": c.name, "time": c.time.isoformat()} for c in v.cosigned],
        "signatures_not_checked": v.not_checked,
        "budget_epsilon": v.account.budget,
        "budget_delta": v.account.delta if v.account.budget is not None else None,
        "spent": {p: {"filter": f, "pld": r} for p, (f, r) in spent.items()},
    }
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)


def _count(number: int) -> str:
    return "entry is" if number == 1 else f"{number} entries are"


def _origin(first_line: bytes) -> str:
    """What entry 0 says, unchecked; empty if it says nothing."""
    try:
        return str(json.loads(json.loads(first_line)["entry"])["body"]["origin"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""


def _notes(text: str) -> list[str]:
    try:
        kept = json.loads(text)
    except (ValueError, RecursionError):
        lines = [_line(line) for line in text.splitlines() if line.startswith('{"checkpoint"')]
        return [n for n in lines if n] or [text]
    heads = [b.get("ledger_head") for b in _list(kept, "per_branch") if isinstance(b, dict)]
    return [str(h["note"]) for h in heads if isinstance(h, dict) and "note" in h]


def _line(line: str) -> str:
    try:
        return str(json.loads(line)["checkpoint"])
    except (ValueError, KeyError, TypeError, RecursionError):
        raise LedgerBroken("the earlier export's checkpoint is not readable") from None


def _list(value: Any, name: str) -> list[Any]:
    found = value.get(name) if isinstance(value, dict) else None
    return found if isinstance(found, list) else []


def _is_of(note: str, origin: str) -> bool:
    try:
        return Checkpoint.parse(note).origin == origin
    except ValueError:
        return False
