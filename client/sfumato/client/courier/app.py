"""The branch's Flower ClientApp: it passes frames to the vault and understands none of them.

`query`: a frame to the vault, its answer back. `query.session`: dial the session port and pump until closed.
"""

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from sfumato.client.courier.session import UNREACHABLE, Session
from sfumato.client.courier.vault_link import VaultLink, refusal
from sfumato.client.courier_config import CourierConfig
from sfumato.common.errors import RefusalCode
from sfumato.common.flower_tasks import FRAME_RECORD

CONFIG_VARIABLE = "SFUMATO_COURIER_CONFIG"

Ask = Callable[[bytes, Context], bytes]


def reply_with(message: Message, frame: bytes) -> Message:
    """A reply that carries one frame."""
    return Message(RecordDict({FRAME_RECORD: ConfigRecord({"frame": frame})}), reply_to=message)


def make_app(ask: Ask, session: Session | None = None) -> ClientApp:
    """A ClientApp over any way to a vault: the socket here, a call in simulation (`context` tells which node).

    Without `session` it says that it cannot dial, and is asked by messages.
    """
    app = ClientApp()

    @app.query()
    def query(message: Message, context: Context) -> Message:
        frame = _frame(message)
        if frame is None:
            return reply_with(message, refusal(RefusalCode.BAD_FRAME))
        return reply_with(message, ask(frame, context))

    @app.query("session")
    def open_session(message: Message, context: Context) -> Message:
        name = _frame(message)
        if session is None or name is None or len(name) > 64:
            return reply_with(message, UNREACHABLE)
        outcome = session.pump(
            message.metadata.run_id,
            message.metadata.dst_node_id,
            name.decode("ascii", "replace"),
            lambda frame: ask(frame, context),
        )
        return reply_with(message, outcome)

    return app


def app_of(config: CourierConfig) -> ClientApp:
    """The ClientApp of an installed courier."""
    link = VaultLink(config.vault_socket, timeout=config.vault_timeout_seconds)
    session = Session(config.session, config.ca_file.read_bytes(), config.node_key)
    return make_app(lambda frame, _: link.ask(frame), session)


def _frame(message: Message) -> bytes | None:
    record = message.content.config_records.get(FRAME_RECORD) if message.has_content() else None
    frame = record.get("frame") if record is not None else None
    return frame if isinstance(frame, bytes) else None


@cache
def _installed_vault() -> VaultLink:
    config = CourierConfig.load(Path(os.environ[CONFIG_VARIABLE]))
    return VaultLink(config.vault_socket, timeout=config.vault_timeout_seconds)


# What the bundle's component name resolves to. Our executor builds its own with `app_of`.
app = make_app(lambda frame, _: _installed_vault().ask(frame))
