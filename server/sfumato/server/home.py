"""The coordinator's home: one private directory with everything a coordinator is.

coordinator.toml   where it listens, under which names
invitation.json    public: what a branch needs to trust and reach us
ca.crt ca.key      own CA;  server.crt server.key: TLS of SuperLink and session port
control.token      who holds it may start and stop runs;  superexec.secret: who holds it may take tasks
job.key            the risk team's Ed25519 key, PKCS#8: signs jobs
ledger.key         the coordinator's own, PKCS#8: signs its ledger
ledger.sqlite      its ledger, unless ledger.toml names a database;  checkpoint: what branches co-signed of it
branches/          one enrolment a branch, and the node id it was registered under
superlink.db runs/ logs/ flwr/
"""

import json
import os
import re
import secrets
import shutil
import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

import tomli_w
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sfumato.common.bundle import approved_hash
from sfumato.common.contract import read_toml
from sfumato.common.enrolment import Enrolment, Invitation, Members, ed25519_public_key, ed25519_text
from sfumato.common.errors import BadInput, Insecure
from sfumato.common.notes import coordinator_origin
from sfumato.common.private_files import private_directory, read_private, replace, require_private, write_new
from sfumato.privacy.ledger import Database, Ledger
from sfumato.server.certificates import new_authority, new_server_certificate
from sfumato.server.ledger import CosignedCheckpoint

_NAME = re.compile(r"^[A-Za-z0-9.\-:]{1,253}$")
_SECRETS = {
    "ca.key": "CA key",
    "server.key": "server key",
    "control.token": "control token",
    "superexec.secret": "executor secret",
    "job.key": "job signing key",
    "ledger.key": "ledger signing key",
}


@dataclass(frozen=True)
class Branch:
    """An enrolled branch. `node_id` is Flower's, once the branch's node key was registered."""

    enrolment: Enrolment
    node_id: int | None

    @property
    def name(self) -> str:
        return self.enrolment.name


@dataclass(frozen=True)
class CoordinatorHome:
    """An initialised home. Build one with `init` or `load`."""

    path: Path
    host: str
    port: int
    session_port: int
    names: tuple[str, ...]

    @classmethod
    def init(
        cls,
        path: Path,
        *,
        host: str,
        port: int,
        session_port: int,
        names: tuple[str, ...] = (),
        ledger_url: str | None = None,
    ) -> Self:
        """Make a home at `path`, which must not exist or be empty; whole or not at all.

        `host` is the address to listen on, `names` the DNS names or IP addresses branches use (the first is
        the one invitations give; default: `host`). `ledger_url` puts the ledger into PostgreSQL; it holds no
        password. Raises BadInput.
        """
        names = names or (host,)
        _check_listening(host, port, session_port, names)
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise BadInput(f"{path}: is there already", hint="Give a path that does not exist yet.")
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))  # mkdtemp makes it 0700
        try:
            _fill(temporary, host, port, session_port, names, ledger_url)
            temporary.rename(path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        return cls.load(path)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a home. Raises BadInput if it is none, Insecure if a secret is missing or open to others."""
        if not (path / "coordinator.toml").is_file():
            raise BadInput(f"{path}: no coordinator's home", hint="Make one with: sfumato coordinator init")
        private_directory(path)
        config = read_toml(path / "coordinator.toml", "coordinator's configuration")
        try:
            home = cls(
                path=path.resolve(),
                host=str(config["host"]),
                port=int(str(config["port"])),
                session_port=int(str(config["session_port"])),
                names=tuple(str(n) for n in _list(config["names"])),
            )
        except (KeyError, ValueError):
            raise BadInput(f"{path / 'coordinator.toml'}: needs host, port, session_port, names") from None
        _check_listening(home.host, home.port, home.session_port, home.names)
        home.require_secure()
        return home

    def require_secure(self) -> None:
        """Raise Insecure unless every secret is there and ours alone."""
        for name, what in _SECRETS.items():
            require_private(self.path / name, what)
        for name in ("ca.crt", "server.crt"):
            if not (self.path / name).is_file():
                raise Insecure(f"{self.path / name}: the certificate is missing")

    @property
    def local_host(self) -> str:
        """Where our own processes reach us."""
        return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104

    @property
    def local_address(self) -> str:
        host = self.local_host
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"

    @cached_property
    def ca(self) -> bytes:
        return (self.path / "ca.crt").read_bytes()

    @cached_property
    def invitation(self) -> Invitation:
        return Invitation.load(self.path / "invitation.json")

    @property
    def control_token(self) -> str:
        return read_private(self.path / "control.token", "control token").decode("ascii").strip()

    @property
    def superexec_secret(self) -> bytes:
        return read_private(self.path / "superexec.secret", "executor secret")

    @property
    def server_certificate(self) -> tuple[bytes, bytes]:
        """The server's certificate and private key, PEM."""
        key = read_private(self.path / "server.key", "server key")
        return (self.path / "server.crt").read_bytes(), key

    def job_key(self) -> Ed25519PrivateKey:
        """The key that signs jobs. Raises Insecure."""
        return self._signing_key("job.key")

    def _signing_key(self, name: str) -> Ed25519PrivateKey:
        key = serialization.load_pem_private_key(read_private(self.path / name, _SECRETS[name]), None)
        if not isinstance(key, Ed25519PrivateKey):
            raise Insecure(f"{self.path / name}: not an Ed25519 key")
        return key

    @property
    def ledger(self) -> Path | Database:
        """Where the coordinator's own ledger lies."""
        elsewhere = self.path / "ledger.toml"
        return Database.load(elsewhere) if elsewhere.exists() else self.path / "ledger.sqlite"

    def open_ledger(self) -> Ledger:
        """The coordinator's own ledger, to be written. Raises BadInput, Insecure or LedgerBroken."""
        return Ledger.open(self.ledger, signer=self._signing_key("ledger.key"))

    @property
    def cosigned(self) -> CosignedCheckpoint:
        """What branches co-signed of it last."""
        return CosignedCheckpoint(self.path / "checkpoint")

    def directory(self, name: str) -> Path:
        """A private directory inside the home, made when needed."""
        return private_directory(self.path / name)

    def enrol(self, enrolment: Path) -> Branch:
        """Take in a branch's enrolment file. A second one for the same name must be the same. Raises BadInput.

        It counts with Flower once `control.register_branches` has run (at every start, or at once).
        """
        new = Enrolment.load(enrolment)
        for known in self.branches():
            same = known.enrolment == new
            if same:
                return known
            if known.name == new.name:
                raise BadInput(f"{enrolment}: branch {new.name!r} is enrolled with other keys")
            if new.node_public_key == known.enrolment.node_public_key:
                raise BadInput(f"{enrolment}: branch {known.name!r} is enrolled with this node key")
            if new.ledger_public_key == known.enrolment.ledger_public_key:
                raise BadInput(f"{enrolment}: branch {known.name!r} is enrolled with this ledger key")
        write_new(self.directory("branches") / f"{new.name}.json", new.dump())
        return Branch(new, None)

    def branches(self) -> tuple[Branch, ...]:
        """Every enrolled branch, by name."""
        folder = self.directory("branches")
        return tuple(
            Branch(Enrolment.load(p), _node_id(p.with_suffix(".node"))) for p in sorted(folder.glob("*.json"))
        )

    def members(self) -> Members:
        """What every branch pins: the enrolled ones' names and ledger keys. Raises BadInput if there are none."""
        branches = self.branches()
        if not branches:
            raise BadInput(f"{self.path}: no branch is enrolled", hint="sfumato coordinator enrol")
        return Members.of({b.name: ed25519_public_key(b.enrolment.ledger_public_key) for b in branches})

    def note_node(self, name: str, node_id: int) -> None:
        """Remember under which node id Flower knows the branch."""
        replace(self.directory("branches") / f"{name}.node", json.dumps(node_id).encode())


def _fill(
    path: Path, host: str, port: int, session_port: int, names: tuple[str, ...], ledger_url: str | None
) -> None:
    authority = new_authority(names[0])
    local = ("localhost", "127.0.0.1", "::1")
    try:
        server = new_server_certificate(authority, tuple(dict.fromkeys((*names, host, *local))))
    except ValueError as e:
        raise BadInput(f"the names do not fit a certificate: {e}") from None
    job_key, ledger_key = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    advertised = f"[{names[0]}]" if ":" in names[0] else names[0]
    invitation = Invitation(
        superlink=f"{advertised}:{port}",
        session=f"{advertised}:{session_port}",
        ca=authority.certificate.decode("ascii"),
        job_public_key=ed25519_text(job_key.public_key()),
        ledger_public_key=ed25519_text(ledger_key.public_key()),
        bundle_hash=approved_hash(),
    )
    config = {"host": host, "port": port, "session_port": session_port, "names": list(names)}
    for name, data in {
        "ca.crt": authority.certificate,
        "ca.key": authority.key,
        "server.crt": server.certificate,
        "server.key": server.key,
        "control.token": secrets.token_urlsafe(32).encode(),
        "superexec.secret": secrets.token_bytes(32),
        "job.key": _pkcs8(job_key),
        "ledger.key": _pkcs8(ledger_key),
        "coordinator.toml": tomli_w.dumps(config).encode(),
        "invitation.json": invitation.dump(),
    }.items():
        write_new(path / name, data)
    for name in ("branches", "runs", "logs", "flwr"):
        (path / name).mkdir(mode=0o700)
    place: Path | Database = path / "ledger.sqlite"
    if ledger_url is not None:
        origin = coordinator_origin(ledger_key.public_key())
        place = Database.of(ledger_url, origin, passfile=os.environ.get("PGPASSFILE"))
        place.write(path / "ledger.toml")
    Ledger.create(place, signer=ledger_key, genesis={"names": list(names)}).close()


def _pkcs8(key: Ed25519PrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _check_listening(host: str, port: int, session_port: int, names: tuple[str, ...]) -> None:
    for name in (host, *names):
        if not _NAME.match(name):
            raise BadInput(f"{name!r}: not a host name or IP address")
    for number in (port, session_port):
        if not 1 <= number <= 65535:
            raise BadInput(f"port {number}: must be 1 to 65535")
    if port == session_port:
        raise BadInput("port and session_port must differ")


def _list(value: object) -> list[object]:
    if not isinstance(value, list) or not value:
        raise ValueError
    return value


def _node_id(path: Path) -> int | None:
    try:
        return int(json.loads(path.read_bytes()))
    except FileNotFoundError:
        return None


HOME_VARIABLE = "SFUMATO_COORDINATOR_HOME"


def home_from_environment() -> CoordinatorHome:
    """The home that SFUMATO_COORDINATOR_HOME names. Raises BadInput."""
    path = os.environ.get(HOME_VARIABLE)
    if not path:
        raise BadInput(f"{HOME_VARIABLE} is not set", hint="It names the coordinator's home.")
    return CoordinatorHome.load(Path(path))
