"""A session with a branch that cannot dial, and with one that goes away in good order."""

import logging
import os
import signal
import time
from typing import Any

import pytest

from sfumato.common.codec import encode
from sfumato.common.messages import Ping
from sfumato.server.exchange import GONE
from sfumato.server.session import SessionExchange

pytestmark = pytest.mark.slow


def test_who_cannot_dial_is_asked_by_messages_and_who_leaves_is_noticed(
    make_federation: Any, caplog: pytest.LogCaptureFixture
) -> None:
    federation = make_federation(couriers=2, cannot_dial=1)
    shut, leaving = federation.couriers
    home = federation.home
    question = encode(Ping())
    both = {shut.node_id: question, leaving.node_id: question}
    with federation.drive() as grid, caplog.at_level(logging.WARNING, "sfumato.session"):
        exchange = SessionExchange(
            grid, address=f"127.0.0.1:{home.session_port}", certificate=home.server_certificate, expected=2
        )
        try:
            assert set(exchange.open(at_least=2, timeout=60.0)) == set(both)
            assert f"node {shut.node_id} cannot dial" in caplog.text
            gathered = exchange.ask(both, timeout=20.0)
            assert (gathered.answers, gathered.dropped) == (both, {})

            # SIGTERM in mid-session: the courier and its SuperNode end at once, and the next round knows.
            os.kill(leaving.process.pid, signal.SIGTERM)
            assert leaving.process.wait(10) == 0
            start = time.monotonic()
            gathered = exchange.ask({leaving.node_id: question}, timeout=10.0)
            assert gathered.dropped == {leaving.node_id: GONE}
            assert time.monotonic() - start < 1.0
        finally:
            exchange.close()
