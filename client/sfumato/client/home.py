"""A branch's directory: where each thing lies, and who may read it.

branch.toml       name, and which system user runs the vault
enrolment.json    public keys, to be handed to the coordinator
courier/          node key, CA, configuration: what the network side needs, and nothing else
vault/            0700: keyring, sealed store, ledger, policy, contract; pinned keys: of jobs, of the coordinator's
                  ledger, of other branches; told/: what standing questions were told; to which day the data reach
run/              the unix socket between the two
"""

import contextlib
import os
import pwd
import stat
import tomllib
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, Literal

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from sfumato.client.policy import Policy
from sfumato.common.contract import Contract, load_contract
from sfumato.common.enrolment import Members, ed25519_public_key
from sfumato.common.errors import BadInput, Insecure
from sfumato.common.job import key_id
from sfumato.common.private_files import replace
from sfumato.privacy.keys import Keyring
from sfumato.privacy.ledger import Database, Ledger


@dataclass(frozen=True)
class BranchHome:
    """The layout above, under `path`."""

    path: Path

    @property
    def vault(self) -> Path:
        return self.path / "vault"

    @property
    def courier(self) -> Path:
        return self.path / "courier"

    @property
    def socket(self) -> Path:
        return self.path / "run" / "vault.sock"

    @property
    def keyring(self) -> Path:
        return self.vault / "keyring.json"

    @property
    def store(self) -> Path:
        return self.vault / "store.duckdb"

    @property
    def ledger(self) -> Path | Database:
        """Where the ledger lies: a file, unless `ledger.toml` names a database. Raises BadInput."""
        elsewhere = self.vault / "ledger.toml"
        return Database.load(elsewhere) if elsewhere.exists() else self.vault / "ledger.sqlite"

    @property
    def approvals(self) -> Path:
        return self.vault / "approvals.txt"

    @property
    def pinned(self) -> Path:
        return self.vault / "members.json"

    @property
    def told(self) -> Path:
        """What standing questions were told, sealed."""
        return self.vault / "told"

    def reaches(self, contract: Contract) -> date | None:
        """The last day that the data tell of: the contract's, until `branch reach` says a later one. Read anew each
        time. Raises BadInput if the file is not what was written."""
        path = self.vault / "reaches"
        try:
            return date.fromisoformat(path.read_text(encoding="ascii").strip())
        except FileNotFoundError:
            return contract.as_of
        except ValueError:
            raise BadInput(
                f"{path}: expected a date", hint="Write it anew with `sfumato branch reach`."
            ) from None

    def reach(self, day: date, today: date) -> date:
        """Say that the data now tell of every day until this one. Returns the day until which they did before.

        Raises BadInput for a day before that, or after today, and under a contract without as_of.
        """
        before = self.reaches(self.contract())
        if before is None:
            raise BadInput(f"{self.path}: its contract has no as_of, so no question asks for a day")
        if not before <= day <= today:
            raise BadInput(
                f"{day}: the data reach {before} already, and today is {today}",
                hint="Give the last day of which all rows are loaded.",
            )
        replace(self.vault / "reaches", f"{day.isoformat()}\n".encode(), owner=self.vault.stat())
        return before

    def settings(self) -> dict[str, Any]:
        """branch.toml. Raises BadInput when this is not a branch's directory."""
        try:
            return tomllib.loads((self.path / "branch.toml").read_text())
        except FileNotFoundError:
            raise BadInput(
                f"{self.path}: not a branch's directory (no branch.toml)",
                hint="Set one up with `sfumato branch init`.",
            ) from None

    @property
    def name(self) -> str:
        return str(self.settings()["name"])

    def user(self, process: Literal["vault", "courier"]) -> str | None:
        """The system user that runs this process; None for whoever starts the branch."""
        user = self.settings().get(f"{process}_user")
        return str(user) if user else None

    def contract(self) -> Contract:
        return load_contract(self.vault / "contract.toml")

    def policy(self) -> Policy:
        return Policy.load(self.vault / "policy.toml")

    def approve(self, job_hash: str) -> None:
        """Let this exact job in. Raises BadInput when it was approved before."""
        known = self.approvals.read_text().split() if self.approvals.exists() else []
        if job_hash in known:
            raise BadInput(f"{job_hash[:12]}… is approved already")
        data = "".join(f"{h}\n" for h in [*known, job_hash]).encode()
        replace(self.approvals, data, owner=self.vault.stat())

    def members(self) -> dict[str, Ed25519PublicKey]:
        """The branches that `branch pin` pinned, this one among them, by name; none before. Read anew each time.

        Raises BadInput if the file is not what was written.
        """
        return Members.load(self.pinned).keys if self.pinned.exists() else {}

    def job_keys(self) -> dict[str, Ed25519PublicKey]:
        """The risk team's keys that this branch has pinned, by key id."""
        keys = {}
        for path in sorted((self.vault / "job-keys").glob("*.pem")):
            key = serialization.load_pem_public_key(path.read_bytes())
            if not isinstance(key, Ed25519PublicKey):
                raise BadInput(f"{path}: expected an Ed25519 public key")
            keys[key_id(key)] = key
        if not keys:
            raise BadInput(f"{self.vault / 'job-keys'}: no pinned job key", hint="No job could be verified.")
        return keys

    def coordinator_ledger_key(self) -> Ed25519PublicKey | None:
        """The key of the coordinator's ledger, pinned at init; None where there is no coordinator (simulation).

        Raises BadInput if the file is not what was written.
        """
        path = self.vault / "coordinator-ledger.key"
        try:
            return ed25519_public_key(path.read_text(encoding="ascii").strip())
        except FileNotFoundError:
            return None
        except ValueError:
            raise BadInput(f"{path}: expected an Ed25519 public key in base64") from None

    def open_keyring(self, passphrase: str) -> Keyring:
        return Keyring.open(self.keyring, passphrase=passphrase)

    def open_ledger(self, keyring: Keyring) -> Ledger:
        return Ledger.open(self.ledger, branch=self.name, signer=signer(keyring))

    def check_private(self, owner: int | None = None) -> None:
        """Raise Insecure unless the vault's directory is `owner`'s (a uid; ours if None), and nobody else's."""
        owner = os.geteuid() if owner is None else owner
        for path in [self.vault, *self.vault.iterdir(), *(self.vault / "job-keys").iterdir()]:
            status = path.stat()
            if stat.S_IMODE(status.st_mode) & 0o077:
                raise Insecure(
                    f"{path}: can be read by others", hint=f"chmod go= {path}, and ask who read it meanwhile."
                )
            if status.st_uid != owner:
                raise Insecure(
                    f"{path}: belongs to another user than the vault's", hint=f"chown it to user id {owner}."
                )

    def restore_owner(self) -> None:
        """After root wrote in the vault's directory: all of it belongs to the vault's user again."""
        if os.geteuid() != 0:
            return
        owner = self.vault.stat()
        for path in self.vault.rglob("*"):
            with contextlib.suppress(FileNotFoundError):  # a running vault's spilled data comes and goes
                os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)


def signer(keyring: Keyring) -> Ed25519PrivateKey:
    """The branch's identity: signs the ledger's heads."""
    return Ed25519PrivateKey.from_private_bytes(keyring.data_key("identity"))


def require_user(user: str) -> pwd.struct_passwd:
    """The system user's entry. Raises Insecure when we are not root, BadInput when there is no such user."""
    if os.geteuid() != 0:
        raise Insecure(
            "running the vault as another system user needs root", hint="Start as root, or without it."
        )
    try:
        return pwd.getpwnam(user)
    except KeyError:
        raise BadInput(f"no system user {user!r}", hint=f"useradd --system {user}") from None
