"""The SuperLink answers nobody without our token, gives no task without our secret, and errors are clear."""

import base64
import dataclasses
import ssl
import stat
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
    StreamLogsRequest,
)
from flwr.proto.fab_pb2 import Fab
from flwr.proto.runtime_pb2 import AcquireTaskRequest, GetNodesRequest, PullTaskInputRequest
from flwr.supercore.constant import TaskType
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.runtime import RuntimeHttpClient

from sfumato.common.bundle import build_bundle, bundle_hash
from sfumato.common.enrolment import Enrolment, ed25519_text, new_node_key
from sfumato.common.errors import BadInput, Insecure, Unavailable
from sfumato.common.flower_tasks import Runtime, TaskSource
from sfumato.common.processes import free_ports
from sfumato.server import superlink
from sfumato.server.certificates import new_authority
from sfumato.server.control import ControlClient, register_branches
from sfumato.server.home import CoordinatorHome

pytestmark = pytest.mark.slow

SERVER_APP = (str(TaskType.SERVER_APP),)


@pytest.fixture(scope="module")
def federation(make_federation: Any) -> Any:
    return make_federation(couriers=0)


@pytest.fixture
def control(federation: Any) -> Iterator[ControlClient]:
    client = federation.control()
    yield client
    client.close()


class _Header:
    def __init__(self, value: str | None) -> None:
        self._value = value

    def intercept(self, context: Any, call_next: Any) -> httpx.Response:
        if self._value is not None:
            context.request.headers["Authorization"] = self._value
        return call_next(context)


CALLS: dict[str, Callable[[ControlHttpClient], object]] = {
    "list": lambda c: c.ListRuns(ListRunsRequest()),
    "start": lambda c: c.StartRun(
        StartRunRequest(fab=Fab(hash_str=bundle_hash(build_bundle()), content=build_bundle()))
    ),
    "stop": lambda c: c.StopRun(StopRunRequest(run_id=1)),
    "logs": lambda c: list(c.StreamLogs(StreamLogsRequest(run_id=1))),
    "nodes": lambda c: c.ListNodes(ListNodesRequest()),
    "register": lambda c: c.RegisterNode(RegisterNodeRequest(public_key=new_node_key()[1])),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("header", [None, "Bearer " + "x" * 43, "Bearer", "Basic eDp5", "Bearer \xff\xfe"])
def test_without_the_token_nothing_is_answered(federation: Any, call: str, header: str | None) -> None:
    home = federation.home
    client = ControlHttpClient.from_server_address(
        server_address=home.local_address,
        insecure=False,
        root_certificates=home.ca,
        interceptors=[_Header(header)],
    )
    with client, pytest.raises(httpx.HTTPStatusError) as refused:
        CALLS[call](client)
    assert refused.value.response.status_code == 401


def test_the_token_is_no_prefix_game(federation: Any) -> None:
    home = federation.home
    for token in (home.control_token[:-1], home.control_token + "x", home.control_token.upper()):
        with pytest.raises(BadInput, match="refuses the control token"):
            ControlClient(home.local_address, home.ca, token).list_runs()


def test_every_control_route_is_behind_the_token(federation: Any) -> None:
    """Also those that this test does not know: the server's own list of routes, one by one."""
    home = federation.home
    from flwr.superlink.routers.control import router

    paths = {route.path for route in router.routes}
    assert len(paths) > 20
    login = {
        "/v1/control/get-login-details",
        "/v1/control/get-auth-tokens",
        "/v1/control/refresh-auth-tokens",
    }
    verify = ControlHttpClient.from_server_address(home.local_address, False, home.ca, [])
    with verify:
        for path in sorted(paths):
            answer = verify._client.post(
                f"https://{home.local_address}{path}", headers={"content-type": "application/x-protobuf"}
            )
            expected = answer.status_code == 401 or (path in login and b"token" not in answer.content[:40])
            assert expected, (path, answer.status_code)
            assert home.control_token.encode() not in answer.content


def test_from_another_machine_only_the_fleet_routes_are_there(federation: Any) -> None:
    """127.0.0.2 plays the other machine: it is not the address that was dialled, nor 127.0.0.1."""
    home = federation.home
    trust = ssl.create_default_context(cadata=home.ca.decode())
    token = {"authorization": f"Bearer {home.control_token}"}
    paths = ("/v1/control/list-runs", "/v1/runtime/acquire-task", "/docs", "/openapi.json", "/health", "/")
    for path in (*paths, "//v1/fleet/x", "/v1/fleet", "/V1/fleet/x", "/v1/fleet/../control/list-runs"):
        far = httpx.HTTPTransport(verify=trust, local_address="127.0.0.2")
        with httpx.Client(transport=far, base_url=f"https://{home.local_address}") as client:
            answer = client.post(path, headers=token)
            assert (answer.status_code, answer.content) == (404, b""), path
            assert client.post("/v1/fleet/%2e%2e/control/list-runs", headers=token).status_code == 404
            # the fleet routes answer, and refuse who has no node key
            assert client.post("/v1/fleet/pull-messages").status_code in (400, 401, 415, 422)
    near = httpx.HTTPTransport(verify=trust, local_address="127.0.0.1")
    with httpx.Client(transport=near, base_url=f"https://{home.local_address}") as client:
        assert client.post("/v1/control/list-runs", headers=token).status_code not in (401, 404)


def test_no_task_without_the_secret(federation: Any, control: ControlClient) -> None:
    home = federation.home
    run_id = control.start_run(build_bundle(), {"job": "{}"})
    plain = RuntimeHttpClient.from_server_address(
        server_address=home.local_address, insecure=False, root_certificates=home.ca, interceptors=[]
    )
    with plain:
        for request in (
            lambda: plain.AcquireTask(AcquireTaskRequest(supported_task_types=SERVER_APP)),
            lambda: plain.PullTaskInput(PullTaskInputRequest()),
            lambda: plain.GetNodes(GetNodesRequest()),
        ):
            with pytest.raises(httpx.HTTPStatusError) as refused:
                request()
            assert refused.value.response.status_code == 401
    wrong = TaskSource(Runtime(home.local_address, home.ca, "flwr-serverapp"), b"y" * 32, SERVER_APP)
    with pytest.raises(httpx.HTTPStatusError) as refused:
        wrong.acquire()
    assert refused.value.response.status_code == 401
    assert control.run(run_id).status == "pending"
    control.stop(run_id)


def test_with_the_token_it_works(federation: Any, control: ControlClient) -> None:
    run_id = control.start_run(build_bundle(), {"job": '{"a": 1}'})
    state = next(r for r in control.list_runs() if r.run_id == run_id)
    assert (state.status, state.job) == ("pending", '{"a": 1}')
    assert control.stop(run_id)
    assert control.run(run_id).sub_status == "stopped"
    assert "".join(control.logs(run_id)) == ""
    with pytest.raises(BadInput, match="ended already"):
        control.stop(run_id)
    with pytest.raises(BadInput, match="no such run"):
        control.run(42)
    with pytest.raises(BadInput, match="no such run"):
        list(control.logs(42))


def test_registering_twice_gives_the_same_node(control: ControlClient) -> None:
    pem = new_node_key()[1].decode()
    first = control.register_node(pem)
    assert control.register_node(pem + "\n") == first
    assert [n.status for n in control.nodes() if n.node_id == first] == ["registered"]
    ed25519 = Ed25519PrivateKey.generate().public_key()
    with pytest.raises(BadInput, match="PEM"):
        control.register_node(base64.b64encode(ed25519.public_bytes_raw()).decode())


def test_a_branch_enrolled_while_running_is_registered(federation: Any, control: ControlClient) -> None:
    enrolment = Enrolment(
        name="late",
        node_public_key=new_node_key()[1].decode(),
        ledger_public_key=ed25519_text(Ed25519PrivateKey.generate().public_key()),
    )
    file = federation.root / "late.json"
    file.write_bytes(enrolment.dump())
    federation.home.enrol(file)
    ids = register_branches(federation.home, control)
    assert ids == register_branches(federation.home, control)
    assert {b.name: b.node_id for b in federation.home.branches()} == ids
    assert ids["late"] in {n.node_id for n in control.nodes()}


def test_another_ca_and_nobody_there(federation: Any) -> None:
    home = federation.home
    with pytest.raises(Insecure, match="not signed by the CA"):
        ControlClient(home.local_address, new_authority("other").certificate, home.control_token).list_runs()
    with pytest.raises(Unavailable, match="does not answer"):
        ControlClient(f"127.0.0.1:{free_ports(1)[0]}", home.ca, home.control_token).list_runs()


def make_home(path: Any) -> CoordinatorHome:
    return CoordinatorHome.init(path, host="127.0.0.1", port=9092, session_port=9093, names=("c.example",))


def test_a_home_is_private_and_never_overwritten(tmp_path: Any) -> None:
    home = make_home(tmp_path / "home")
    for path in [home.path, *home.path.rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path
    before = {p: p.read_bytes() for p in home.path.rglob("*") if p.is_file()}
    with pytest.raises(BadInput, match="there already"):
        make_home(tmp_path / "home")
    assert before == {p: p.read_bytes() for p in home.path.rglob("*") if p.is_file()}
    public = home.invitation.dump()
    assert home.invitation.superlink == "c.example:9092"
    assert home.control_token.encode() not in public and b"PRIVATE" not in public


@pytest.mark.parametrize("name", ["server.key", "control.token", "superexec.secret", "job.key", "ca.key"])
def test_a_loose_or_missing_secret_stops_the_start(tmp_path: Any, name: str) -> None:
    home = make_home(tmp_path / "home")
    (home.path / name).chmod(0o644)
    with pytest.raises(Insecure, match="others may use it"):
        superlink.start(home)
    assert superlink.main(["--home", str(home.path)]) == Insecure.exit_code
    (home.path / name).unlink()
    with pytest.raises(Insecure, match="missing"):
        superlink.start(home)


def test_a_missing_certificate_stops_the_start(tmp_path: Any) -> None:
    home = make_home(tmp_path / "home")
    (home.path / "server.crt").unlink()
    with pytest.raises(Insecure, match="certificate is missing"):
        CoordinatorHome.load(home.path)


def test_no_command_line_without_its_locks(tmp_path: Any) -> None:
    line = superlink.arguments(make_home(tmp_path / "home"))
    superlink.require_locks(line)
    for lock in ("--enable-supernode-auth", "--ssl-keyfile", "--superexec-auth-secret-file"):
        with pytest.raises(Insecure):
            superlink.require_locks([a for a in line if a != lock])
    with pytest.raises(Insecure):
        superlink.require_locks([*line, "--insecure"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"port": 0}, "1 to 65535"),
        ({"session_port": 9092}, "must differ"),
        ({"host": "not a host"}, "not a host name"),
        ({"names": ("a b",)}, "not a host name"),
    ],
)
def test_a_home_needs_sensible_addresses(tmp_path: Any, change: dict[str, Any], message: str) -> None:
    good: dict[str, Any] = {"host": "127.0.0.1", "port": 9092, "session_port": 9093}
    with pytest.raises(BadInput, match=message):
        CoordinatorHome.init(tmp_path / "home", **(good | change))
    assert list(tmp_path.iterdir()) == []


def test_bad_enrolments(tmp_path: Any) -> None:
    home = make_home(tmp_path / "home")

    def enrol(enrolment: Enrolment | dict[str, Any]) -> None:
        file = tmp_path / "e.json"
        import json

        data = enrolment.model_dump(mode="json") if isinstance(enrolment, Enrolment) else enrolment
        file.write_text(json.dumps(data))
        home.enrol(file)

    def fresh(name: str) -> Enrolment:
        return Enrolment(
            name=name,
            node_public_key=new_node_key()[1].decode(),
            ledger_public_key=ed25519_text(Ed25519PrivateKey.generate().public_key()),
        )

    first = fresh("a")
    enrol(first)
    enrol(first)
    assert [b.name for b in home.branches()] == ["a"]
    with pytest.raises(BadInput, match="enrolled with other keys"):
        enrol(fresh("a"))
    with pytest.raises(BadInput, match="with this node key"):
        enrol(fresh("b").model_copy(update={"node_public_key": first.node_public_key}))
    with pytest.raises(BadInput, match="with this ledger key"):
        enrol(fresh("b").model_copy(update={"ledger_public_key": first.ledger_public_key}))
    for bad in ({"name": "../x"}, {"node_public_key": "x"}, {"ledger_public_key": "AAAA"}, {"extra": 1}):
        with pytest.raises(BadInput, match="not a valid enrolment"):
            enrol(first.model_dump(mode="json") | bad)
    with pytest.raises(BadInput, match="no such file"):
        home.enrol(tmp_path / "none.json")
    assert dataclasses.asdict(home.branches()[0])["node_id"] is None
