"""The coordinator: it asks, and never sees a customer. In a notebook: `from sfumato.server import connect`."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from sfumato.common.contract import Contract
    from sfumato.server.api import Connection


def connect(home: "Path | str", contract: "Contract | Path | str | None" = None) -> "Connection":
    """The coordinator whose directory this is. `contract` (or its file) is what `submit` writes jobs for.

    Raises BadInput if there is none, Insecure if its secrets are open to others.
    """
    from pathlib import Path

    from sfumato.server.api import Connection, read_contract
    from sfumato.server.home import CoordinatorHome

    known = read_contract(contract) if contract is not None else None
    return Connection(CoordinatorHome.load(Path(home).expanduser()), known)
