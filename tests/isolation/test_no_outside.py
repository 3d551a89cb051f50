"""A federation needs no network but loopback, and tries to reach none.

It runs in a network namespace of its own, which has nothing but `lo`; there every address of the world is made
local, so that an attempt to reach any shows as a packet. A packet socket writes down where packets go (also
those of gRPC's own resolver, which no Python hook sees), an audit hook what each process asked for.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sfumato.lab.samplebank import SampleBank

pytestmark = [pytest.mark.slow, pytest.mark.root, pytest.mark.usefixtures("need_root")]

HOOK = """
import json, os, sys
_OUT = os.open({out!r}, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
_WATCHED = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr",
            "socket.sendto", "socket.sendmsg")
def _note(event, args):
    if event in _WATCHED:
        asked = args[0] if event.startswith("socket.get") else args[1]  # a name; or, after the socket, an address
        os.write(_OUT, (json.dumps([os.getpid(), event, str(asked)]) + "\\n").encode())
sys.addaudithook(_note)
os.write(_OUT, (json.dumps([os.getpid(), "hooked", sys.orig_argv]) + "\\n").encode())
"""

INSIDE = '''
"""Runs in the namespace: argv is the bank, a folder to work in, and where to write what was seen."""
import fcntl, json, os, socket, struct, sys, threading
from pathlib import Path

import numpy  # before the packets count: nothing of a start-up is of interest

ETH_P_ALL, SOL_PACKET, PACKET_STATISTICS, SO_RCVBUFFORCE = 3, 263, 6, 33
SIOCSIFFLAGS, IFF_UP, RTM_NEWROUTE, RTN_LOCAL = 0x8914, 1, 24, 2


def open_the_world():
    """Bring lo up, and make every address local: whatever is tried shows as a packet, and is refused at once."""
    with socket.socket() as s:
        fcntl.ioctl(s, SIOCSIFFLAGS, struct.pack("16sh22x", b"lo", IFF_UP))
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as link:
        for family in (socket.AF_INET, socket.AF_INET6):
            route = struct.pack("BBBBBBBBI", family, 0, 0, 0, 254, 3, 254, RTN_LOCAL, 0)
            route += struct.pack("HHI", 8, 4, socket.if_nametoindex("lo"))
            link.send(struct.pack("IHHII", 16 + len(route), RTM_NEWROUTE, 0x405, 1, 0) + route)
            error = struct.unpack_from("i", link.recv(4096), 16)[0]
            if error:
                raise OSError(-error, "no route")


class Packets(threading.Thread):
    """Every packet's protocol and destination, until `end`."""

    def __init__(self):
        super().__init__(daemon=True)
        self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        self.socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 64 << 20)
        self.socket.settimeout(0.2)
        self.seen, self.count, self.done = {}, 0, threading.Event()

    def run(self):
        while True:
            try:
                packet = self.socket.recv(128)
            except TimeoutError:
                if self.done.is_set():
                    return
                continue
            self.count += 1
            kind = packet[12:14]
            if kind == b"\\x08\\x00":
                where = (socket.inet_ntop(socket.AF_INET, packet[30:34]), packet[23])
            elif kind == b"\\x86\\xdd":
                where = (socket.inet_ntop(socket.AF_INET6, packet[38:54]), packet[20])
            else:
                where = (kind.hex(), -1)
            self.seen[where] = self.seen.get(where, 0) + 1

    def end(self):
        self.done.set()
        self.join()
        lost = struct.unpack("II", self.socket.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))[1]
        return {"count": self.count, "lost": lost, "to": [[*k, n] for k, n in self.seen.items()]}


def run(bank, folder):
    from sfumato.common.job import load_job
    from sfumato.lab.federation import Federation

    with Federation(folder, bank / "contract.toml") as federation:
        for name in ("branch-1", "branch-2"):
            federation.add_branch(name, bank / name)
        federation.await_branches()
        job = load_job(bank / "job.toml")
        job = job.model_copy(update={
            "training": job.training.model_copy(update={"rounds": 2, "local_steps": 2}),
            "federation": job.federation.model_copy(update={"min_branches": 2}),
        })
        run_id = federation.submit(job)
        "".join(federation.control.logs(run_id))
        result = federation.result(run_id)
        federation.ledgers_verify(result)
        return result


def control():
    """What the test must be able to see: a connection, a look-up, and one that no Python hook sees."""
    import ctypes
    for address in ("192.0.2.1", "2001:db8::1"):
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as s:
            s.settimeout(2)
            s.connect_ex((address, 443))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.sendto(b"?", ("192.0.2.53", 53))
        there = struct.pack("HH4s8x", socket.AF_INET, socket.htons(53), socket.inet_aton("192.0.2.54"))
        ctypes.CDLL(None).sendto(s.fileno(), b"?", 1, 0, there, len(there))


bank, folder, out = map(Path, sys.argv[1:])
open_the_world()
interfaces = [name for _, name in socket.if_nameindex()]
packets = Packets()
packets.start()
result = run(bank, folder)
during = packets.end()
hooked = Path(os.environ["SFUMATO_TEST_AUDIT"]).read_text()
packets = Packets()
packets.start()
control()
seen = {"interfaces": interfaces, "result": result, "packets": during, "control": packets.end()}
out.write_text(json.dumps(seen))
out.with_suffix(".audit").write_text(hooked)
'''


@pytest.fixture(scope="module")
def seen(bank: SampleBank) -> Iterator[dict[str, Any]]:
    unshare = shutil.which("unshare")
    if unshare is None or subprocess.run([unshare, "-n", "true"]).returncode != 0:
        pytest.skip("NOT TESTED: no network namespace to be had here (unshare -n)")
    root = Path(tempfile.mkdtemp(prefix="sfumato-"))
    try:
        audit, out = root / "audit.jsonl", root / "seen.json"
        (root / "hook").mkdir()
        (root / "hook" / "sitecustomize.py").write_text(HOOK.format(out=str(audit)))
        done = subprocess.run(
            [
                unshare,
                "-n",
                sys.executable,
                "-c",
                INSIDE,
                str(bank.contract.parent),
                str(root / "fed"),
                str(out),
            ],
            env=os.environ | {"PYTHONPATH": str(root / "hook"), "SFUMATO_TEST_AUDIT": str(audit)},
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        events = [json.loads(line) for line in out.with_suffix(".audit").read_text().splitlines()]
        later = [json.loads(line) for line in audit.read_text().splitlines()][len(events) :]
        yield {**json.loads(out.read_text()), "events": events, "later": later, "root": str(root)}
    finally:
        shutil.rmtree(root, ignore_errors=True)


def beyond_loopback(packets: dict[str, Any]) -> set[tuple[str, int]]:
    """Destinations of packets that are not loopback's, and any datagram: a look-up, even one at a local resolver."""
    return {
        (to, protocol)
        for to, protocol, _ in packets["to"]
        if not (to.startswith("127.") or to == "::1") or protocol == 17
    }


def test_a_job_runs_without_any_network(seen: dict[str, Any]) -> None:
    assert seen["interfaces"] == ["lo"]
    assert seen["result"]["state"] == "finished"
    assert seen["result"]["branches"] == 2 and seen["result"]["rounds"] == 2


def test_no_packet_went_beyond_loopback(seen: dict[str, Any]) -> None:
    assert seen["packets"]["count"] > 500, "the federation's own traffic was not seen"
    assert seen["packets"]["lost"] == 0
    assert beyond_loopback(seen["packets"]) == set()


def test_the_packet_socket_would_have_seen_it(seen: dict[str, Any]) -> None:
    """Positive control: two connections and two datagrams to addresses for documentation (RFC 5737, RFC 3849)."""
    expected = {("192.0.2.1", 6), ("2001:db8::1", 6), ("192.0.2.53", 17), ("192.0.2.54", 17)}
    assert expected <= beyond_loopback(seen["control"])


def test_no_process_asked_for_an_address_outside(seen: dict[str, Any]) -> None:
    programs = {pid: " ".join(asked) for pid, event, asked in seen["events"] if event == "hooked"}
    for part in (
        "server.superlink",
        "server.executor",
        "client.courier",
        "client.vault.service",
        "supernode",
    ):
        assert any(part in line for line in programs.values()), f"the hook was not in {part}"
    asked = [(event, address) for _, event, address in seen["events"] if event != "hooked"]
    assert len(asked) > 20
    assert [a for a in asked if not _local(*a, seen["root"])] == []
    assert any("192.0.2.1" in str(address) for _, _, address in seen["later"]), "the control failed"


def _local(event: str, address: str, root: str) -> bool:
    """`address` is what a look-up named, or the repr of a socket's address (a path for a unix socket)."""
    if event.startswith("socket.get"):
        return address.removeprefix("b").strip("'") in ("127.0.0.1", "::1", "localhost", "None")
    return address.startswith(("('127.0.0.1',", "('::1',", root, "/proc/self/fd/"))
