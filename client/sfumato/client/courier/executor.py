"""Our executor on a stock SuperNode (`--isolation process`): runs one installed ClientApp, and no other code.

Flower's own unpacks the bundle into a folder, puts that folder first on sys.path and imports from it: whoever
may submit a run then runs code here. Ours hashes the bundle's bytes, refuses all but the approved one, and
unpacks nothing. What goes wrong leaves as a code.
"""

import logging
import threading

import httpx
from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode, SubStatus
from flwr.supercore.constant import TaskType
from flwr.supernode.runtime.run_clientapp import pull_task_input, push_message

from sfumato.client.courier.app import reply_with
from sfumato.client.courier.vault_link import refusal
from sfumato.common.bundle import approved_hash, bundle_hash
from sfumato.common.errors import RefusalCode
from sfumato.common.flower_tasks import (
    Heartbeat,
    RunEnded,
    Runtime,
    Task,
    TaskSource,
    finish_task,
    http_reason,
)

log = logging.getLogger("sfumato.courier")

POLL = 0.1
PATIENCE = 10.0

# An AgentApp bundle makes the SuperNode wait for ever for a reply nobody writes; so it is taken, and refused.
TASK_TYPES = (TaskType.CLIENT_APP, TaskType.AGENT_APP)


def run_tasks(runtime: Runtime, secret: bytes, app: ClientApp, stop: threading.Event) -> None:
    """Serve tasks until `stop`. Outlives every task and every restart of the SuperNode."""
    source = TaskSource(runtime, secret, tuple(str(t) for t in TASK_TYPES))
    approved = approved_hash()
    try:
        for task in source.tasks(stop, POLL):
            # A thread each. The SuperNode hands out one message at a time, but when a run ends just as its
            # message is on the way, it leaves a task behind whose content never comes, and which Flower's
            # pull awaits for a long time: that must not keep the next run waiting.
            threading.Thread(
                target=_guarded, args=(runtime, task, app, approved), name=f"task-{task.run_id}", daemon=True
            ).start()
    finally:
        source.close()


def _guarded(runtime: Runtime, task: Task, app: ClientApp, approved: str) -> None:
    try:
        _run(runtime, task, app, approved)
    except (httpx.HTTPError, RunEnded) as e:
        log.warning("a task was lost (%s)", http_reason(e))
    except Exception:
        log.exception("a task failed")  # to the branch's own log; nothing of it leaves


def _run(runtime: Runtime, task: Task, app: ClientApp, approved: str) -> None:
    with runtime.for_task(task.token, patience=PATIENCE) as client:
        with Heartbeat(client, threading.Event()):
            message, context, _, fab = pull_task_input(client)
            if task.type != TaskType.CLIENT_APP or bundle_hash(fab.content) != approved:
                log.warning("refused a foreign bundle (run %d)", task.run_id)
                reply = reply_with(message, refusal(RefusalCode.FOREIGN_BUNDLE))
            else:
                reply = _answer(app, message, context)
            push_message(client, reply, context)
        finish_task(client, SubStatus.COMPLETED, "")


def _answer(app: ClientApp, message: Message, context: Context) -> Message:
    try:
        return app(message, context)
    except Exception:
        log.exception("the ClientApp failed")  # to the branch's own log; only a code leaves
        code = RefusalCode.INTERNAL.value
        return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, code), reply_to=message)
