"""The risk team's side of Flower's Control API: submit, list, stop, follow, register. Always with the token."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import httpx
from flwr.common.serde import user_config_to_proto
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
    StreamLogsRequest,
)
from flwr.proto.fab_pb2 import Fab
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.error import ApiErrorCode, FlowerError
from flwr.supercore.protobuf.client import ProtobufCall, ProtobufRequestContext

from sfumato.common.bundle import build_bundle, bundle_hash
from sfumato.common.enrolment import Enrolment, node_public_key
from sfumato.common.errors import BadInput, Insecure, SfumatoError, Unavailable
from sfumato.common.job import SignedJob
from sfumato.server.home import CoordinatorHome

T = TypeVar("T")


@dataclass(frozen=True)
class RunState:
    """A run as Flower sees it. `status` is pending, starting, running or finished; times are ISO 8601."""

    run_id: int
    status: str
    sub_status: str  # of a finished run: completed, failed or stopped
    details: str
    submitted_at: str
    finished_at: str
    job: str  # the signed job, JSON; empty for a run that is none of ours

    @property
    def finished(self) -> bool:
        return self.status == "finished"


@dataclass(frozen=True)
class NodeState:
    node_id: int
    status: str  # registered, online or offline
    public_key: bytes  # PEM


class _Bearer:
    def __init__(self, token: str) -> None:
        self._header = f"Bearer {token}"

    def intercept(self, context: ProtobufRequestContext, call_next: ProtobufCall) -> httpx.Response:
        context.request.headers["Authorization"] = self._header
        return call_next(context)


class ControlClient:
    """Speaks to the SuperLink at host:port, trusting only `ca` (PEM). Errors are SfumatoError."""

    def __init__(self, address: str, ca: bytes, token: str) -> None:
        self._address = address
        self._client = ControlHttpClient.from_server_address(
            server_address=address, insecure=False, root_certificates=ca, interceptors=[_Bearer(token)]
        )

    @classmethod
    def of(cls, home: CoordinatorHome) -> "ControlClient":
        """The client of the coordinator that lives here."""
        return cls(home.local_address, home.ca, home.control_token)

    def submit(self, signed_job: SignedJob) -> int:
        """Start a run of the approved bundle with this job; it goes on from the run of it that was cut short, if
        there is one. Returns the run id."""
        return self.start_run(build_bundle(), {"job": signed_job.model_dump_json()})

    def start_run(self, bundle: bytes, config: dict[str, str]) -> int:
        """Start a run of any bundle; branches and executor will refuse all but the approved one."""
        fab = Fab(hash_str=bundle_hash(bundle), content=bundle)
        request = StartRunRequest(fab=fab, override_config=user_config_to_proto(dict(config)))
        response = self._call(lambda: self._client.StartRun(request))
        if not response.HasField("run_id"):
            raise BadInput("the SuperLink did not start the run", hint="Its log says why.")
        return int(response.run_id)

    def list_runs(self) -> list[RunState]:
        """The latest 100 runs, newest first."""
        response = self._call(lambda: self._client.ListRuns(ListRunsRequest(limit=100)))
        runs = [_run_state(run) for run in response.run_dict.values()]
        return sorted(runs, key=lambda r: r.submitted_at, reverse=True)

    def run(self, run_id: int) -> RunState:
        """One run. Raises BadInput if there is none of that id."""
        response = self._call(lambda: self._client.ListRuns(ListRunsRequest(run_id=run_id)))
        return _run_state(response.run_dict[run_id])

    def stop(self, run_id: int) -> bool:
        """Stop a run. Raises BadInput if it is unknown or finished."""
        return bool(self._call(lambda: self._client.StopRun(StopRunRequest(run_id=run_id))).success)

    def logs(self, run_id: int, after: float = 0.0) -> Iterator[str]:
        """The run's log as it grows, until the run ends."""
        stream = self._call(
            lambda: self._client.StreamLogs(StreamLogsRequest(run_id=run_id, after_timestamp=after))
        )
        while True:
            part = self._call(lambda: next(stream, None))
            if part is None:
                return
            yield str(part.log_output)

    def register_node(self, public_key: str, name: str = "") -> int:
        """Admit a node by its public key (PEM). Returns its node id, also when it was admitted before."""
        pem = _canonical_pem(public_key)
        for node in self.nodes():
            if node.public_key == pem:
                return node.node_id
        request = RegisterNodeRequest(public_key=pem, name=name or None)
        return int(self._call(lambda: self._client.RegisterNode(request)).node_id)

    def nodes(self) -> list[NodeState]:
        """Every registered node."""
        response = self._call(lambda: self._client.ListNodes(ListNodesRequest()))
        return [NodeState(n.node_id, n.status, n.public_key) for n in response.nodes_info]

    def close(self) -> None:
        self._client.close()

    def _call(self, request: Callable[[], T]) -> T:
        try:
            return request()
        except httpx.HTTPStatusError as e:
            raise self._refused(e) from None
        except httpx.TransportError as e:
            raise self._unreachable(e) from None

    def _unreachable(self, error: httpx.TransportError) -> SfumatoError:
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            return Insecure(
                f"{self._address}: its certificate is not signed by the CA we pinned, or not for this name",
                hint="Another server answers there, or the invitation is of another coordinator.",
            )
        return Unavailable(
            f"{self._address}: the SuperLink does not answer", hint="Is the coordinator started?"
        )

    def _refused(self, error: httpx.HTTPStatusError) -> SfumatoError:
        status = error.response.status_code
        if status == httpx.codes.UNAUTHORIZED:
            return BadInput(
                "the SuperLink refuses the control token", hint="Use the coordinator's control.token."
            )
        known = FlowerError.from_json(error.response.text)
        if known is not None:
            texts: dict[int, str] = {
                ApiErrorCode.RUN_ID_NOT_FOUND: "there is no such run",
                ApiErrorCode.RUN_ALREADY_FINISHED: "the run has ended already",
                ApiErrorCode.PUBLIC_KEY_ALREADY_IN_USE: "this node key is registered already",
                ApiErrorCode.PUBLIC_KEY_NOT_VALID: "this is no key that Flower admits",
            }
            return BadInput(texts.get(known.code, f"the SuperLink refuses (code {known.code})"))
        if status in (502, 503, 504):
            return Unavailable(f"{self._address}: the SuperLink is not ready (HTTP {status})")
        return BadInput(f"the SuperLink refuses (HTTP {status})")


def register_branches(home: CoordinatorHome, control: ControlClient) -> dict[str, int]:
    """Admit every enrolled branch to the running SuperLink; remembers and returns the node ids by name."""
    ids = {}
    for branch in home.branches():
        node_id = control.register_node(branch.enrolment.node_public_key, branch.name)
        if node_id != branch.node_id:
            home.note_node(branch.name, node_id)
        ids[branch.name] = node_id
    return ids


def enrolled_key(enrolment: Enrolment) -> bytes:
    """The branch's node key in the one PEM form that Flower compares."""
    return _canonical_pem(enrolment.node_public_key)


def _canonical_pem(text: str) -> bytes:
    from cryptography.hazmat.primitives import serialization

    try:
        key = node_public_key(text.encode())
    except ValueError as e:
        raise BadInput(str(e)) from None
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def _run_state(run: "object") -> RunState:
    from flwr.common.serde import run_from_proto

    known = run_from_proto(run)  # type: ignore[arg-type]
    return RunState(
        run_id=known.run_id,
        status=known.status.status,
        sub_status=known.status.sub_status,
        details=known.status.details,
        submitted_at=known.pending_at,
        finished_at=known.finished_at,
        job=str(known.override_config.get("job", "")),
    )
