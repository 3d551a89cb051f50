"""Nothing personal leaves: every byte on the courier's network side, and every file outside the vault, is scanned.

TLS hides what crosses, so relays with certificates of the coordinator's own CA stand between the couriers and
the coordinator and write down the plain text, both ways. The vault's unix socket is tapped too. While jobs run
(of local training and of secure sums, by session, by messages, refused), files outside the vaults are copied
whenever they change.
"""

import asyncio
import base64
import contextlib
import gzip
import json
import os
import secrets
import shutil
import ssl
import struct
import tempfile
import threading
import tomllib
import urllib.parse
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
import pytest
import tomli_w
from safetensors.numpy import load_file

from sfumato.common.codec import MAGIC
from sfumato.common.enrolment import Invitation
from sfumato.common.job import Job, load_job
from sfumato.common.private_files import replace
from sfumato.common.processes import free_ports
from sfumato.lab.federation import Federation
from sfumato.lab.samplebank import SampleBank, planted_pii
from sfumato.server.certificates import KeyedCertificate, new_server_certificate
from sfumato.server.home import CoordinatorHome
from sfumato.server.report import write_report
from sfumato.server.run_files import read_answer, read_histogram, run_directory

PREFIX = 6  # bytes; every planted string is at least as long, in every encoding


# --- the scanner ---------------------------------------------------------------------------------------------


def encodings(text: str) -> dict[str, bytes]:
    """The ways in which a string could hide in bytes; each found wherever it stands in a longer text."""
    raw = text.encode()
    found = {"utf-8": raw, "utf-16-le": text.encode("utf-16-le"), "utf-16-be": text.encode("utf-16-be")}
    found |= {"hex": raw.hex().encode(), "HEX": raw.hex().upper().encode()}
    found |= {"json": json.dumps(text)[1:-1].encode(), "url": urllib.parse.quote(text).encode()}
    for shift in range(3):  # where the string begins, modulo three bytes
        encoded = base64.b64encode(bytes(shift) + raw)
        sure = encoded[-(-8 * shift // 6) : 8 * (shift + len(raw)) // 6]  # what its neighbours do not change
        found[f"base64+{shift}"] = sure
        found[f"base64url+{shift}"] = sure.translate(bytes.maketrans(b"+/", b"-_"))
    return found


class Scanner:
    """Finds planted strings in bytes: a table of their first three bytes sifts, a dictionary of six decides."""

    def __init__(self, strings: Iterable[str]) -> None:
        self.strings = list(dict.fromkeys(strings))
        self._table = np.zeros(1 << 24, dtype=np.bool_)
        self._by_prefix: dict[bytes, dict[bytes, tuple[str, str]]] = defaultdict(dict)
        for text in self.strings:
            for name, pattern in encodings(text).items():
                assert len(pattern) >= PREFIX, "too short a pattern to look for"
                self._by_prefix[pattern[:PREFIX]][pattern] = (text, name)
                self._table[int.from_bytes(pattern[:3], "little")] = True

    def find(self, data: bytes, *, depth: int = 2) -> set[tuple[str, str]]:
        """(string, encoding) of every hit, also in what can be inflated."""
        found: set[tuple[str, str]] = set()
        for start in range(0, len(data), 1 << 20):
            piece = np.frombuffer(data[start : start + (1 << 20) + 2], dtype=np.uint8).astype(np.uint32)
            triples = piece[:-2] | piece[1:-1] << 8 | piece[2:] << 16
            for i in (start + np.flatnonzero(self._table[triples])).tolist():
                for pattern, hit in self._by_prefix.get(data[i : i + PREFIX], {}).items():
                    if data.startswith(pattern, i):
                        found.add(hit)
        for inner in inflated(data) if depth else ():
            found |= self.find(inner, depth=depth - 1)
        return found


def inflated(data: bytes) -> Iterator[bytes]:
    """Whatever gzip, zlib or zip member stands anywhere in the data, also cut off."""
    starts = {b"\x1f\x8b\x08": 31, b"\x78\x01": 15, b"\x78\x5e": 15, b"\x78\x9c": 15, b"\x78\xda": 15}
    for mark, bits in starts.items():
        at = data.find(mark)
        while at >= 0:
            yield from _inflate(data[at:], bits)
            at = data.find(mark, at + 1)
    at = data.find(b"PK\x03\x04")
    while at >= 0:
        if len(data) >= at + 30:
            name, extra = struct.unpack_from("<HH", data, at + 26)
            yield from _inflate(data[at + 30 + name + extra :], -15)
        at = data.find(b"PK\x03\x04", at + 1)


def _inflate(data: bytes, bits: int) -> Iterator[bytes]:
    try:
        out = zlib.decompressobj(bits).decompress(data, 1 << 26)
    except zlib.error:
        return
    if len(out) >= PREFIX:
        yield out


# --- the taps ------------------------------------------------------------------------------------------------


@dataclass
class Recording:
    """What crossed one place: a stream a connection and direction ("up": towards the coordinator or vault)."""

    streams: list[tuple[str, bytearray]] = field(default_factory=list)

    def open(self, direction: str) -> bytearray:
        stream = bytearray()
        self.streams.append((direction, stream))
        return stream

    def plain(self, direction: str | None = None) -> list[bytes]:
        return [bytes(s) for d, s in self.streams if direction in (None, d) and s]

    def payloads(self, direction: str) -> list[bytes]:
        """HTTP/2: the DATA of each stream, without the framing that would cut a string in two (RFC 9113, 4.1)."""
        return [p for s in self.plain(direction) for p in http2_payloads(s)]


def http2_payloads(connection: bytes) -> list[bytes]:
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    at = len(preface) if connection.startswith(preface) else 0
    bodies: dict[int, bytearray] = defaultdict(bytearray)
    while at + 9 <= len(connection):
        length = int.from_bytes(connection[at : at + 3], "big")
        kind, flags, stream = struct.unpack_from(">BBI", connection, at + 3)
        content = connection[at + 9 : at + 9 + length]
        if kind == 0:
            bodies[stream] += content[1 : length - content[0]] if flags & 8 else content
        at += 9 + length
    return [bytes(b) for b in bodies.values()]


class Taps:
    """Relays in one thread: whoever connects here is passed on, and every byte is written down in plain."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def tls(self, home: CoordinatorHome, target: int, alpn: str) -> tuple[int, Recording]:
        """A TLS-terminating relay to a port of the coordinator. Returns its own port."""
        authority = KeyedCertificate(home.ca, (home.path / "ca.key").read_bytes())
        made = new_server_certificate(authority, ("127.0.0.1", "localhost"))
        front = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        with tempfile.TemporaryDirectory() as folder:
            chain, key = Path(folder, "c"), Path(folder, "k")
            chain.write_bytes(made.certificate)
            key.write_bytes(made.key)
            front.load_cert_chain(chain, key)
        back = ssl.create_default_context(cadata=home.ca.decode())
        for context in (front, back):
            context.set_alpn_protocols([alpn])
        port, recording = free_ports(1)[0], Recording()

        async def listen() -> None:
            async def dial() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
                return await asyncio.open_connection(
                    "127.0.0.1", target, ssl=back, server_hostname="127.0.0.1"
                )

            await asyncio.start_server(_relay(dial, recording), "127.0.0.1", port, ssl=front)

        asyncio.run_coroutine_threadsafe(listen(), self._loop).result(10)
        return port, recording

    def unix(self, path: Path, target: Path) -> Recording:
        """A relay before a unix socket."""
        recording = Recording()

        async def listen() -> None:
            await asyncio.start_unix_server(
                _relay(lambda: asyncio.open_unix_connection(target), recording), path
            )

        asyncio.run_coroutine_threadsafe(listen(), self._loop).result(10)
        return recording

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)


def _relay(dial, recording: Recording):
    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, into: bytearray) -> None:
        with contextlib.suppress(OSError, ssl.SSLError):
            while data := await reader.read(1 << 16):
                into += data
                writer.write(data)
                await writer.drain()
        with contextlib.suppress(OSError, RuntimeError):
            writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            up_reader, up_writer = await dial()
        except OSError:
            writer.close()
            return
        up, down = recording.open("up"), recording.open("down")
        await asyncio.gather(pump(reader, up_writer, up), pump(up_reader, writer, down))

    return serve


class Snapshots:
    """Every version seen of every file outside the vaults, while a `with` block runs."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.versions: dict[tuple[Path, int, int], bytes] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Snapshots":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.look()

    def _watch(self) -> None:
        while not self._stop.wait(2.0):
            self.look()

    def look(self) -> None:
        for folder, inner, names in os.walk(self.root):
            if "vault" in inner:
                inner.remove("vault")
            for path in (Path(folder, n) for n in names):
                with contextlib.suppress(OSError):  # a socket, or gone already
                    status = path.stat()
                    key = (path, status.st_mtime_ns, status.st_size)
                    if key not in self.versions:
                        self.versions[key] = path.read_bytes()


# --- the run -------------------------------------------------------------------------------------------------


@dataclass
class Captured:
    bank: SampleBank
    scanner: Scanner
    superlink: Recording
    session: Recording
    vaults: Recording
    files: Snapshots
    results: dict[str, dict]
    weights: bytes
    summed: bytes
    leak: Recording
    leaked: list[str]

    @property
    def network(self) -> list[bytes]:
        framed = [p for d in ("up", "down") for p in self.session.payloads(d)]
        return [*self.superlink.plain(), *self.session.plain(), *framed]


def small(job: Job, travel: str, rounds: int, epsilon: float = 1.0) -> Job:
    return job.model_copy(
        update={
            "name": f"capture-{travel}",
            "privacy": job.privacy.model_copy(update={"target_epsilon": epsilon}),
            "training": job.training.model_copy(update={"rounds": rounds, "local_steps": 2}),
            "federation": job.federation.model_copy(update={"travel": travel}),
        }
    )


def secure(job: Job, rounds: int) -> Job:
    return job.model_copy(
        update={
            "name": "capture-secure",
            "privacy": job.privacy.model_copy(update={"target_epsilon": 1.0}),
            "training": job.training.model_copy(update={"rounds": rounds}),
        }
    )


def by_messages(job: Job) -> Job:
    federation = job.federation.model_copy(update={"travel": "messages"})
    return job.model_copy(update={"name": "capture-portrait", "federation": federation})


def run_job(federation: Federation, job: Job) -> tuple[int, dict]:
    run_id = federation.submit(job)
    "".join(federation.control.logs(run_id))  # until it has ended
    return run_id, federation.result(run_id)


@pytest.fixture(scope="module")
def captured(bank: SampleBank) -> Iterator[Captured]:
    planted = [text for texts in planted_pii(bank.contract.parent).values() for text in texts]
    root = Path(tempfile.mkdtemp(prefix="sfumato-"))  # a unix socket's path must be short
    taps = Taps()
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, root, ignore_errors=True)
        stack.callback(taps.close)
        temporary = root / "tmp"
        temporary.mkdir()
        patch.setenv("TMPDIR", str(temporary))
        patch.setattr(tempfile, "tempdir", str(temporary))
        files = stack.enter_context(Snapshots(root))
        with Federation(root / "fed", bank.contract) as federation:
            home = federation.home
            link_port, superlink = taps.tls(home, home.port, "http/1.1")
            session_port, session = taps.tls(home, home.session_port, "h2")
            invited = Invitation.load(home.path / "invitation.json").model_copy(
                update={"superlink": f"127.0.0.1:{link_port}", "session": f"127.0.0.1:{session_port}"}
            )
            replace(home.path / "invitation.json", invited.dump())
            vaults = Recording()
            for name, folder in bank.branches.items():
                branch = federation.add_branch(name, folder, start=False)
                tap = taps.unix(root / f"{name}.sock", branch.socket)
                vaults.streams = tap.streams = vaults.streams  # one recording for all
                config = branch.courier / "courier.toml"
                changed = tomllib.loads(config.read_text()) | {"vault_socket": str(root / f"{name}.sock")}
                replace(config, tomli_w.dumps(changed).encode())
                federation.start_branch(name)
            federation.await_branches()
            job = load_job(bank.job)
            results = {}
            run_id, results["session"] = run_job(federation, small(job, "session", 2))
            model = load_file(run_directory(home, run_id) / "model.safetensors")["weights"]
            _, results["messages"] = run_job(federation, small(job, "messages", 1))
            _, results["refused"] = run_job(federation, small(job, "session", 1, epsilon=5.0))
            by_sums, results["secure"] = run_job(federation, secure(load_job(bank.secure_job), rounds=2))
            summed = load_file(run_directory(home, by_sums) / "model.safetensors")["weights"]
            drawn, results["portrait"] = run_job(federation, by_messages(load_job(bank.profile)))
            portrait = read_answer(run_directory(home, drawn))
            assert portrait is not None
            write_report(
                root / "report.html",
                results["session"],
                read_histogram(run_directory(home, run_id)),
                portrait=portrait,
                contract=federation.contract,
            )
            leak = leak_on_purpose(taps, home, *planted[:2])
        files.look()
        yield Captured(
            bank=bank,
            scanner=Scanner(planted),
            superlink=superlink,
            session=session,
            vaults=vaults,
            files=files,
            results=results,
            weights=model.astype("<f4").tobytes(),
            summed=summed.astype("<f4").tobytes(),
            leak=leak,
            leaked=planted[:2],
        )


def leak_on_purpose(taps: Taps, home: CoordinatorHome, first: str, second: str) -> Recording:
    """What a courier gone wrong would send: a string in a header in base64, another in a compressed body."""
    port, recording = taps.tls(home, home.port, "http/1.1")
    headers = {"x-note": base64.b64encode(b"a note: " + first.encode()).decode()}
    trusted = ssl.create_default_context(cadata=home.ca.decode())
    httpx.post(
        f"https://127.0.0.1:{port}/", content=gzip.compress(second.encode()), headers=headers, verify=trusted
    )
    return recording


# --- positive controls ---------------------------------------------------------------------------------------

PLANTED = ["Zoë Ångström-Okafor", "李梦瑶", "XF20042000011291456256"]


@pytest.mark.parametrize("text", PLANTED)
@pytest.mark.parametrize("way", [*encodings(PLANTED[0]), "gzip", "zlib in gzip", "whole file in base64"])
def test_the_scanner_finds_what_is_planted(text: str, way: str) -> None:
    """In noise that ends and starts anywhere; base64 also within the encoding of a longer text."""
    scanner = Scanner(PLANTED)
    noise = [secrets.token_bytes(secrets.randbelow(300_000) if i else (1 << 20) - 8) for i in range(2)]
    around = [secrets.token_bytes(30), secrets.token_bytes(30)]
    hidden = {
        **encodings(text),
        "gzip": gzip.compress(b"." * 99 + text.encode()),
        "zlib in gzip": gzip.compress(zlib.compress(text.encode() * 9) + b"tail"),
        "whole file in base64": base64.b64encode(
            around[0][: secrets.randbelow(30)] + text.encode() + around[1]
        ),
    }
    assert scanner.find(b"".join(noise)) == set(), "should happen once in 10^8 runs"
    assert text in {found for found, _ in scanner.find(noise[0] + hidden[way] + noise[1])}


def test_the_scanner_finds_the_bank_itself(bank: SampleBank) -> None:
    """Every string that it looks for later stands in the branches' files: it looks for the right ones."""
    planted = planted_pii(bank.contract.parent)
    assert sorted(planted) == sorted(bank.branches)
    for name, folder in bank.branches.items():
        scanner = Scanner(planted[name])
        assert len(scanner.strings) >= 50
        hits = set().union(*(scanner.find(file.read_bytes(), depth=0) for file in folder.glob("*.csv")))
        assert {text for text, _ in hits} == set(planted[name])


# --- the tests -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_capture_holds_the_traffic(captured: Captured) -> None:
    """Else the next tests would be glad of nothing."""
    assert captured.results["session"]["state"] == captured.results["messages"]["state"] == "finished"
    assert captured.results["refused"]["state"] == "failed"
    questions = b"".join(captured.session.payloads("down"))
    answers = b"".join(captured.session.payloads("up"))
    assert captured.weights in questions, "the final model went out to be evaluated"
    vault_answers = b"".join(captured.vaults.plain("down"))
    by_message = b"".join(captured.superlink.plain("up"))
    for what, rounds in (("weights", 2), ("score-histogram", 1)):  # of each of three branches
        mark = f'"what":"{what}"'.encode()
        assert answers.count(mark) == 3 * rounds
        assert by_message.count(mark) >= 3
        assert vault_answers.count(mark) == 3 * rounds + 3
    assert answers.count(MAGIC) > 3 * 5
    assert questions.count(b'"type":"train"') == 3 * 2
    assert answers.count(b"over-job-limit") == vault_answers.count(b"over-job-limit") == 3
    assert_holds_secure_sums(captured)
    names = {path.name for path, *_ in captured.files.versions}
    assert {"superlink.db", "courier.log", "result.json", "report.html", "model.safetensors"} <= names
    assert {"answer.json", "audit.json", "checkpoint"} <= names
    assert not any("vault" in path.parts for path, *_ in captured.files.versions)
    print(
        f"superlink {sum(map(len, captured.superlink.plain())):,} bytes,"
        f" session {sum(map(len, captured.session.plain())):,},"
        f" vault sockets {sum(map(len, captured.vaults.plain())):,},"
        f" {len(captured.files.versions)} file versions {sum(map(len, captured.files.versions.values())):,},"
        f" {len(captured.scanner.strings)} strings"
    )


def assert_holds_secure_sums(captured: Captured) -> None:
    """A net's by session, a portrait's by message: keys, rosters, shares, the coins at the end, cosignatures."""
    for job in ("secure", "portrait"):
        assert captured.results[job]["state"] == "finished", captured.results[job]
    questions = b"".join(captured.session.payloads("down"))
    answers = b"".join(captured.session.payloads("up"))
    vault_answers = b"".join(captured.vaults.plain("down"))
    asked, by_message = (b"".join(captured.superlink.plain(way)) for way in ("down", "up"))
    assert captured.summed in questions, "the final model went out to be evaluated"
    for mark, in_net, in_portrait in (
        (b'"what":"share"', 3 * (1 + 2 + 1), 3),
        (b'"type":"roster-accepted"', 3, 3),
        (b'"x25519":', 3, 3),
    ):
        assert answers.count(mark) == in_net, mark
        assert by_message.count(mark) >= in_portrait, mark
        assert vault_answers.count(mark) == in_net + in_portrait, mark
    for mark in (b'"type":"job-closed"', b'"type":"cosigned"'):
        assert vault_answers.count(mark) == 3 * 4, "of three branches; one of five jobs was not opened"
    for mark in (b'"type":"roster"', b'"type":"sum"', b'"type":"cosign"'):
        assert questions.count(mark) >= 3 and asked.count(mark) >= 3, mark


@pytest.mark.slow
def test_a_leak_on_purpose_is_found(captured: Captured) -> None:
    found = set().union(*(captured.scanner.find(stream) for stream in captured.leak.plain()))
    assert {text for text, _ in found} >= set(captured.leaked)


@pytest.mark.slow
def test_nothing_personal_crosses_the_network(captured: Captured) -> None:
    assert set().union(*(captured.scanner.find(stream) for stream in captured.network)) == set()


@pytest.mark.slow
def test_nothing_personal_crosses_the_vaults_socket(captured: Captured) -> None:
    assert set().union(*(captured.scanner.find(stream) for stream in captured.vaults.plain())) == set()


@pytest.mark.slow
def test_nothing_personal_in_any_file_outside_the_vaults(captured: Captured) -> None:
    hits = {p: h for (p, *_), data in captured.files.versions.items() if (h := captured.scanner.find(data))}
    assert hits == {}


@pytest.mark.slow
def test_not_even_in_the_vaults_own_files(captured: Captured) -> None:
    """Beyond the bar: the store, the ledger and the log of a vault are sealed or free of it."""
    vaults = list((captured.files.root / "fed").glob("*/vault"))
    files = [f for v in vaults for f in v.rglob("*") if f.is_file()]
    assert len(vaults) == 3 and len(files) >= 3 * 6
    hits = {f: h for f in files if (h := captured.scanner.find(f.read_bytes(), depth=0))}
    assert hits == {}
