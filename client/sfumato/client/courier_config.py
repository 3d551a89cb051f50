"""A courier's configuration: where to connect, with which key, and where its vault's socket is.

    courier.toml   superlink, session, ca_file, node_key_file, superexec_secret_file, runtime_port,
                   vault_socket, flwr_home, log_file, vault_timeout_seconds

Relative paths are relative to the file. A courier holds no data and none of the vault's keys.
"""

import secrets
from dataclasses import dataclass
from pathlib import Path

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sfumato.common.bundle import approved_hash
from sfumato.common.contract import read_toml, validation_lines
from sfumato.common.enrolment import Address, Invitation, load_node_key, new_node_key, public_pem
from sfumato.common.errors import BadInput, Insecure
from sfumato.common.private_files import private_directory, read_private, require_private, write_new


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    superlink: Address
    session: Address
    ca_file: Path
    node_key_file: Path
    superexec_secret_file: Path
    runtime_port: int = Field(ge=1, le=65535)
    vault_socket: Path
    flwr_home: Path
    log_file: Path | None = None
    vault_timeout_seconds: float = Field(default=3600, gt=0)


@dataclass(frozen=True)
class CourierConfig:
    """A checked configuration; every path is absolute."""

    superlink: str
    session: str
    ca_file: Path
    node_key_file: Path
    superexec_secret_file: Path
    runtime_port: int
    vault_socket: Path
    flwr_home: Path
    log_file: Path | None
    vault_timeout_seconds: float

    @classmethod
    def load(cls, path: Path) -> "CourierConfig":
        """Read courier.toml. Raises BadInput, or Insecure if a secret is missing or open to others."""
        try:
            file = _File.model_validate(read_toml(path, "courier's configuration"))
        except ValidationError as e:
            raise BadInput(f"{path}: not a valid configuration\n  {validation_lines(e)}") from None
        base = path.resolve().parent
        config = cls(
            superlink=file.superlink,
            session=file.session,
            ca_file=base / file.ca_file,
            node_key_file=base / file.node_key_file,
            superexec_secret_file=base / file.superexec_secret_file,
            runtime_port=file.runtime_port,
            vault_socket=base / file.vault_socket,
            flwr_home=base / file.flwr_home,
            log_file=base / file.log_file if file.log_file else None,
            vault_timeout_seconds=file.vault_timeout_seconds,
        )
        config.require_secure()
        return config

    def require_secure(self) -> None:
        """Raise Insecure unless the CA is there and both secrets are ours alone."""
        require_private(self.node_key_file, "node key")
        require_private(self.superexec_secret_file, "executor secret")
        if not self.ca_file.is_file():
            raise Insecure(f"{self.ca_file}: the coordinator's CA certificate is missing")

    @property
    def superexec_secret(self) -> bytes:
        return read_private(self.superexec_secret_file, "executor secret")

    @property
    def node_key(self) -> bytes:
        return read_private(self.node_key_file, "node key")

    def node_public_key(self) -> str:
        """The node's public key, PEM: what the branch's enrolment carries."""
        try:
            return public_pem(load_node_key(self.node_key)).decode("ascii")
        except ValueError:
            raise Insecure(f"{self.node_key_file}: not an OpenSSH key on P-384 or P-256") from None


def init_courier(
    path: Path, invitation: Invitation, *, runtime_port: int, vault_socket: Path
) -> CourierConfig:
    """Make a courier's directory (0700): a fresh node key and secret, the CA, courier.toml.

    A relative `vault_socket` is relative to `path`. Raises BadInput if one of the files is there already, or
    if the invitation names another bundle than the one this installation runs.
    """
    if invitation.bundle_hash != approved_hash():
        raise BadInput(
            "the invitation is for another bundle than this installation's",
            hint="Coordinator and branch must run the same release.",
        )
    private_directory(path)
    private, _ = new_node_key()
    write_new(path / "node.key", private)
    write_new(path / "superexec.secret", secrets.token_bytes(32))
    write_new(path / "ca.crt", invitation.ca.encode("ascii"))
    private_directory(path / "flwr")
    file = {
        "superlink": invitation.superlink,
        "session": invitation.session,
        "ca_file": "ca.crt",
        "node_key_file": "node.key",
        "superexec_secret_file": "superexec.secret",
        "runtime_port": runtime_port,
        "vault_socket": str(vault_socket),
        "flwr_home": "flwr",
        "log_file": "courier.log",
    }
    write_new(path / "courier.toml", tomli_w.dumps(file).encode())
    return CourierConfig.load(path / "courier.toml")
