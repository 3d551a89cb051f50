"""`sfumato branch init`: a branch's directory, made once."""

import os
import re
import shutil
from pathlib import Path
from typing import Any

import tomli_w
from cryptography.hazmat.primitives import serialization

from sfumato.client.courier_config import init_courier
from sfumato.client.home import BranchHome, require_user, signer
from sfumato.client.policy import Policy
from sfumato.client.vault.store import Store
from sfumato.common.bundle import approved_hash
from sfumato.common.contract import Contract, load_contract
from sfumato.common.enrolment import Enrolment, Invitation, ed25519_public_key, ed25519_text
from sfumato.common.errors import BadInput
from sfumato.common.notes import branch_origin
from sfumato.common.private_files import write_new
from sfumato.common.processes import free_ports
from sfumato.privacy.keys import Keyring, PassphraseKeyProvider
from sfumato.privacy.ledger import Database, Ledger


def init_branch(
    path: Path,
    *,
    name: str,
    invitation: Path,
    contract: Path,
    passphrase: str,
    budget_epsilon: float,
    budget_delta: float,
    policy: Policy,
    vault_user: str | None = None,
    courier_user: str | None = None,
    ledger_url: str | None = None,
) -> BranchHome:
    """Make a branch: keys, empty store, ledger with its budget; the whole directory or none. Raises BadInput.

    `ledger_url` puts the ledger into PostgreSQL (see `sfumato.privacy.ledger_storage`); it holds no password.
    """
    if path.exists() and any(path.iterdir()):
        raise BadInput(f"{path}: is not empty", hint="Give a new directory; a branch is never overwritten.")
    checked = load_contract(contract)
    invited = Invitation.load(invitation)
    if invited.bundle_hash != approved_hash():
        raise BadInput(
            f"{invitation}: the coordinator runs another release of Sfumato (its app bundle differs)",
            hint="Install the same version at both sides.",
        )
    if re.fullmatch(r"[a-z0-9][a-z0-9\-]{0,62}", name) is None:
        raise BadInput(f"branch name {name!r}: use a-z, 0-9 and -, at most 63 characters")
    for user in (vault_user, courier_user):
        if user is not None:
            require_user(user)
    database = (
        Database.of(ledger_url, branch_origin(name), passfile=os.environ.get("PGPASSFILE"))
        if ledger_url is not None
        else None
    )
    genesis = {
        "budget_epsilon": budget_epsilon,
        "budget_delta": budget_delta,
        "contract": checked.hash,
        "unit": checked.unit,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    home = BranchHome(path.with_name(f".{path.name}.part"))
    shutil.rmtree(home.path, ignore_errors=True)
    try:
        _fill(home, name, checked, contract, invited, passphrase, genesis, policy, database)
        settings = {"name": name, "contract": checked.name}
        settings |= {"vault_user": vault_user} if vault_user else {}
        settings |= {"courier_user": courier_user} if courier_user else {}
        write_new(home.path / "branch.toml", tomli_w.dumps(settings).encode(), mode=0o644)
        _give(home.vault, vault_user)
        _give(home.courier, courier_user)
        home.path.rename(path)
    except BaseException:
        shutil.rmtree(home.path, ignore_errors=True)
        raise
    return BranchHome(path)


def _fill(
    home: BranchHome,
    name: str,
    contract: Contract,
    contract_file: Path,
    invited: Invitation,
    passphrase: str,
    genesis: dict[str, Any],
    policy: Policy,
    database: Database | None,
) -> None:
    for directory, mode in (
        (home.path, 0o755),
        (home.vault, 0o700),
        (home.courier, 0o700),
        (home.socket.parent, 0o755),
        (home.vault / "job-keys", 0o700),
    ):
        directory.mkdir(parents=True, exist_ok=True)
        directory.chmod(mode)
    keyring = Keyring.create(home.keyring, PassphraseKeyProvider(passphrase))
    write_new(home.vault / "contract.toml", contract_file.read_bytes())
    write_new(home.vault / "policy.toml", policy.to_toml().encode())
    job_key = ed25519_public_key(invited.job_public_key).public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    write_new(home.vault / "job-keys" / "coordinator.pem", job_key)
    write_new(home.vault / "coordinator-ledger.key", f"{invited.ledger_public_key}\n".encode())
    Store.create(home.store, contract, keyring).close()
    courier = init_courier(
        home.courier, invited, runtime_port=free_ports(1)[0], vault_socket=Path("..", "run", "vault.sock")
    )
    enrolment = Enrolment(
        name=name,
        node_public_key=courier.node_public_key(),
        ledger_public_key=ed25519_text(signer(keyring).public_key()),
    )
    write_new(home.path / "enrolment.json", enrolment.dump(), mode=0o644)
    if database is not None:
        database.write(home.vault / "ledger.toml")
    # Last: what stands in a database does not go away with the directory.
    Ledger.create(home.ledger, branch=name, signer=signer(keyring), genesis=genesis).close()


def _give(directory: Path, user: str | None) -> None:
    """Hand a directory and all in it to its own system user (needs root)."""
    if user is None:
        return
    entry = require_user(user)
    for path in [directory, *directory.rglob("*")]:
        os.chown(path, entry.pw_uid, entry.pw_gid)
