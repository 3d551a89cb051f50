"""The vault's process: a unix socket, one peer, one question at a time. No network.

The launcher binds the socket (see `listener`) and hands it down, so that the vault never needs a privilege.
"""

import argparse
import logging
import os
import signal
import socket
import sys
from pathlib import Path
from types import FrameType

import torch

from sfumato.client.hardening import end_with_launcher, protect_memory
from sfumato.client.home import BranchHome
from sfumato.client.vault.answer import Vault
from sfumato.client.vault.listener import READY, peer_uid
from sfumato.client.vault.standing import Memory
from sfumato.client.vault.store import Store
from sfumato.common import codec
from sfumato.common.codec import FrameError
from sfumato.common.errors import BadInput, SfumatoError

log = logging.getLogger("sfumato.vault")
IDLE_SECONDS = 3600


def serve(listener: socket.socket, vault: Vault, *, courier_uid: int) -> None:
    """Answer until the socket is closed. A peer that is not the courier is dropped without a word."""
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        with connection:
            if peer_uid(connection) != courier_uid:
                log.warning("a process of another user tried the vault's socket")
                continue
            connection.settimeout(IDLE_SECONDS)
            try:
                _converse(connection, vault)
            except (OSError, FrameError) as e:
                log.info("connection ended: %s", type(e).__name__)


def _converse(connection: socket.socket, vault: Vault) -> None:
    while prefix := _read(connection, codec.PREFIX.size):
        frame = prefix + _read(connection, codec.frame_length(prefix) - len(prefix))
        connection.sendall(vault.answer(frame))


def _read(connection: socket.socket, length: int) -> bytes:
    """Exactly `length` bytes, or b"" at a clean end. Raises FrameError when it ends in the middle."""
    data = bytearray()
    while len(data) < length:
        chunk = connection.recv(min(1 << 20, length - len(data)))
        if not chunk:
            if data:
                raise FrameError("truncated frame")
            return b""
        data += chunk
    return bytes(data)


def open_vault(home: BranchHome, passphrase: str) -> Vault:
    """The vault of a branch's directory, ready to answer. Raises Insecure, BadInput or LedgerBroken."""
    home.check_private()
    keyring = home.open_keyring(passphrase)
    ledger = home.open_ledger(keyring)
    ledger.verify()
    contract = home.contract()
    if contract.hash != ledger.genesis["contract"]:
        raise BadInput(
            f"{home.vault / 'contract.toml'}: is not the contract that this branch's ledger began with",
            hint="Put the old one back, or set up a new branch: another contract would mix up who is held out.",
        )
    return Vault(
        branch=home.name,
        contract=contract,
        store=Store.open(home.store, contract, keyring, read_only=True),
        keyring=keyring,
        ledger=ledger,
        policy=home.policy(),
        job_keys=home.job_keys(),
        approved=lambda: approved_jobs(home),
        members=home.members,
        coordinator=home.coordinator_ledger_key(),
        memory=Memory(home.told, keyring),
        reaches=lambda: home.reaches(contract),
    )


def approved_jobs(home: BranchHome) -> frozenset[str]:
    """Job hashes that an operator approved, read anew each time: an approval needs no restart."""
    try:
        return frozenset(home.approvals.read_text().split())
    except FileNotFoundError:
        return frozenset()


def _leave(number: int, frame: FrameType | None) -> None:
    """At once: what must last is in a transaction, and an exception here would land in the middle of one."""
    logging.shutdown()
    os._exit(0)


def main() -> None:
    """`python -m sfumato.client.vault.service`: started by `sfumato branch start`, passphrase on a socket pair."""
    parser = argparse.ArgumentParser(description="Run a branch's vault (use `sfumato branch start`).")
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--socket-fd", type=int, required=True)
    parser.add_argument("--control-fd", type=int, required=True)
    parser.add_argument("--courier-uid", type=int, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    control = socket.socket(fileno=arguments.control_fd)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stdout)
    signal.signal(signal.SIGTERM, _leave)
    try:
        protect_memory()  # before a secret is in it
        end_with_launcher()
        passphrase = b"".join(iter(lambda: control.recv(4096), b"")).decode()
        vault = open_vault(BranchHome(arguments.home), passphrase)
    except SfumatoError as e:
        log.error("the vault did not start: %s", e)
        sys.exit(e.exit_code)
    listener = socket.socket(fileno=arguments.socket_fd)
    log.info("vault of %s is ready", vault.branch)
    control.sendall(READY)
    control.close()
    serve(listener, vault, courier_uid=arguments.courier_uid)


if __name__ == "__main__":
    main()
