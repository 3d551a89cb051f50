"""`sfumato branch pin`: which keys this branch takes for those of the other branches.

Whoever decides that decides whose masks protect a secure sum: a coordinator that could slip in keys of its own
would hold every pair secret. So a known name's key never changes unasked, and every pin stands in the ledger.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from sfumato.client.home import BranchHome
from sfumato.common.enrolment import Enrolment, Member, Members, fingerprint
from sfumato.common.errors import BadInput
from sfumato.common.private_files import replace as write
from sfumato.privacy.ledger import Ledger


@dataclass(frozen=True)
class Pinned:
    """What is pinned now, by name, and what is new about it."""

    members: dict[str, Ed25519PublicKey]
    added: frozenset[str]
    changed: frozenset[str]
    removed: frozenset[str]

    def news(self, name: str) -> str:
        return "new" if name in self.added else "changed" if name in self.changed else "as before"


def read_members(files: list[Path]) -> Members:
    """The members that these files name: a coordinator's list, or branches' enrolments.

    Raises BadInput when a file is neither, or when two of them give one name two keys.
    """
    found: dict[str, Ed25519PublicKey] = {}
    for file in files:
        for member in _read(file):
            known = found.setdefault(member.name, member.key)
            if known != member.key:
                raise BadInput(f"{file}: gives branch {member.name!r} another key than a file before it")
    return Members.of(found)


def _read(file: Path) -> tuple[Member, ...]:
    try:
        data = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        data = None  # loading it says what is wrong
    if not isinstance(data, dict) or "node_public_key" not in data:
        return Members.load(file).members
    enrolment = Enrolment.load(file)
    return (Member(name=enrolment.name, ledger_public_key=enrolment.ledger_public_key),)


def pin(home: BranchHome, members: Members, *, replace: bool = False) -> Pinned:
    """Add these members to the pinned ones; with `replace`, take them for the whole list. Ledger entry first.

    The branch's own name is always among them, with its own key. Raises BadInput, and changes nothing, when its
    own name comes with another key, when another name comes with its key, or when a known name comes with
    another key without `replace`.
    """
    ledger = Ledger.read(home.ledger)
    own, given, before = {home.name: ledger.public_key}, members.keys, home.members()
    if given.get(home.name, ledger.public_key) != ledger.public_key:
        raise BadInput(
            f"branch {home.name!r} is this one, and the key given for it is not its own",
            hint=f"Its fingerprint is {fingerprint(ledger.public_key)}. Do not trust that list; ask who made it.",
        )
    changed = {name for name, key in given.items() if before.get(name, key) != key}
    if changed and not replace:
        raise BadInput(
            f"another key than the pinned one is given for {', '.join(sorted(changed))}",
            hint="Ask these branches whether they were set up anew. If so, pin the whole list with --replace.",
        )
    after = Members.of(given | own if replace else before | given | own)
    done = Pinned(
        members=after.keys,
        added=frozenset(after.keys.keys() - before.keys()),
        changed=frozenset(changed),
        removed=frozenset(before.keys() - after.keys.keys()),
    )
    if done.added or done.changed or done.removed:
        ledger.append("pin", _entry(done, before))
        write(home.pinned, after.dump(), owner=home.vault.stat())
    home.restore_owner()
    return done


def _entry(done: Pinned, before: dict[str, Ed25519PublicKey]) -> dict[str, dict[str, str]]:
    def prints(names: frozenset[str], keys: dict[str, Ed25519PublicKey]) -> dict[str, str]:
        return {name: fingerprint(keys[name]) for name in sorted(names)}

    return {
        "added": prints(done.added, done.members),
        "changed": prints(done.changed, done.members),
        "removed": prints(done.removed, before),
    }
