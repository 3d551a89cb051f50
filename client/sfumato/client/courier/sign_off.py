"""Telling the SuperLink that a killed SuperNode is gone, so that the next one is let in at once.

A SuperNode that ends in good order signs off. One that is killed does not: the SuperLink believes its last
heartbeat for a minute, turns the next one away (Flower's exit code 305), and sends questions into the void.
"""

import logging
import ssl

import httpx
from flwr.proto.fleet_pb2 import ActivateNodeRequest, DeactivateNodeRequest
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.protobuf.client import ProtobufClientInterceptor
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from sfumato.client.courier_config import CourierConfig
from sfumato.common.enrolment import load_node_key, public_pem
from sfumato.common.private_files import replace

log = logging.getLogger("sfumato.courier")

SECONDS = 5.0
HEARTBEAT_SECONDS = 10.0  # the shortest that the SuperLink admits; it is over with the next line


def sign_off(config: CourierConfig) -> None:
    """Set this node offline at the SuperLink, in its own name and before a SuperNode is started.

    Only the answer to an activation says a node's number, and a node that is believed online gets none: so the
    number is kept in `node-id` from one start to the next. A SuperLink that does not answer is left to the
    SuperNode, which waits for it.
    """
    key = load_node_key(config.node_key)
    remembered = config.flwr_home / "node-id"
    context = ssl.create_default_context(cadata=config.ca_file.read_text("ascii"))
    signed: list[ProtobufClientInterceptor] = [
        RuntimeVersionHttpInterceptor(component_name="SuperNode"),
        NodeAuthHttpInterceptor(key, key.public_key()),
    ]
    request = ActivateNodeRequest(public_key=public_pem(key), heartbeat_interval=HEARTBEAT_SECONDS)
    try:
        with FleetHttpClient(
            f"https://{config.superlink}", interceptors=signed, verify=context, timeout=SECONDS
        ) as client:
            try:
                node_id = int(client.ActivateNode(request).node_id)
                replace(remembered, str(node_id).encode())
            except httpx.HTTPStatusError:
                if not remembered.is_file():
                    return
                node_id = int(remembered.read_text())
                log.info("the SuperLink believes the last SuperNode online; signing it off")
            client.DeactivateNode(DeactivateNodeRequest(node_id=node_id))
    except (httpx.HTTPError, ValueError) as e:
        log.info("could not sign off the last SuperNode (%s)", type(e).__name__)
