"""What a node can reach of the SuperLink: the fleet routes, and nothing else.

Flower serves everything on one port: the routes of the nodes, of the risk team, of the executor, and its own
API pages. From another machine only the first have a business here; the rest answers on this machine alone, on
top of token and secret.
"""

from collections.abc import Awaitable, Callable, MutableMapping
from ipaddress import ip_address
from typing import Any

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

FLEET = "/v1/fleet/"


class FleetOnly:
    """An ASGI application around Flower's: 404 for another machine's request beyond the fleet routes.

    A reverse proxy on this machine speaks for everybody behind it; it must do the same.
    """

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or is_local(scope) or str(scope.get("path", "")).startswith(FLEET):
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await send({"type": "http.response.start", "status": 404, "headers": [(b"content-length", b"0")]})
            await send({"type": "http.response.body", "body": b""})
        else:
            await send({"type": "websocket.close", "code": 1008})


def is_local(scope: Scope) -> bool:
    """Whether the request came from this machine: over 127.0.0.1 or ::1, or from the very address it went to."""
    client, server = scope.get("client"), scope.get("server")
    if not client or not server:
        return False
    try:
        ours = ip_address(server[0])
        theirs = ip_address(client[0])
    except ValueError:
        return False
    return theirs == ours or str(theirs) in ("127.0.0.1", "::1")
