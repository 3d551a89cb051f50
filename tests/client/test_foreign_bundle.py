"""A hostile bundle, submitted with the valid token: refused by hash at both ends, and unpacked at neither.

Flower would put the bundle's folder first on sys.path, so a `sfumato` package in it would shadow ours.
"""

import io
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest

from sfumato.common.bundle import approved_hash, build_bundle, bundle_hash
from sfumato.common.codec import decode, encode
from sfumato.common.errors import RefusalCode, Unavailable
from sfumato.common.messages import Ping, Refused
from sfumato.server.exchange import MessageExchange
from sfumato.server.session import SessionExchange

pytestmark = pytest.mark.slow

MARK = "planted-by-the-bundle"


def hostile_bundle(target: Path) -> bytes:
    """The approved bundle's configuration, with a `sfumato` package that writes a file when imported."""
    evil = f"open({str(target)!r}, 'a').write({MARK!r})\napp = None\n".encode()
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(build_bundle())) as good, zipfile.ZipFile(out, "w") as bad:
        for name in good.namelist():
            bad.writestr(name, good.read(name))
        for module in (
            "sfumato/server/app.py",
            "sfumato/client/courier/app.py",
            "sfumato/client/__init__.py",
        ):
            bad.writestr(module, evil)
    return out.getvalue()


def files_with(root: Path, needle: bytes) -> list[Path]:
    """Every file below that carries the bytes. The SuperLink's database does: it stores bundles, packed or not."""
    found = []
    for path in root.rglob("*"):
        if path.is_file() and not path.name.startswith("superlink.db") and needle in path.read_bytes():
            found.append(path)
    return found


@pytest.fixture(scope="module")
def bare(make_federation: Any) -> Any:
    """Without the coordinator's executor: somebody who took its place has the run, token, secret and all."""
    return make_federation(couriers=1)


@pytest.fixture(scope="module")
def whole(make_federation: Any) -> Any:
    return make_federation(couriers=0, start_executor=True)


def test_the_bundle_is_small_public_and_always_the_same() -> None:
    from flwr.common.config import get_fab_config

    build_bundle.cache_clear()
    first = build_bundle()
    build_bundle.cache_clear()
    assert build_bundle() == first and bundle_hash(first) == approved_hash()
    with zipfile.ZipFile(io.BytesIO(first)) as archive:
        assert archive.namelist() == ["pyproject.toml", "LICENSE", "README.md", ".info/CONTENT"]
        assert not any(name.endswith(".py") for name in archive.namelist())
    config = get_fab_config(first)
    assert config["project"]["dependencies"] == []
    assert config["tool"]["flwr"]["app"]["components"] == {
        "serverapp": "sfumato.server.app:app",
        "clientapp": "sfumato.client.courier.app:app",
    }


def test_one_changed_bit_is_another_bundle() -> None:
    good = build_bundle()
    for at in (0, len(good) // 2, len(good) - 1):
        bad = bytearray(good)
        bad[at] ^= 1
        assert bundle_hash(bytes(bad)) != approved_hash()


@pytest.mark.parametrize("way", ["messages", "session"])
def test_the_branch_refuses_it(bare: Any, way: str) -> None:
    target = bare.root / f"harm-{way}"
    courier = bare.couriers[0]
    asked = courier.vault.asked
    log = courier.directory / "courier.log"
    seen = len(log.read_text()) if log.exists() else 0
    with bare.drive(hostile_bundle(target)) as grid:
        if way == "messages":
            exchange = MessageExchange(grid, expected=1)
            exchange.open(at_least=1, timeout=30.0)
            for _ in range(
                10
            ):  # a courier that is just starting signs its last session off, and is gone for a moment
                gathered = exchange.ask({courier.node_id: encode(Ping())}, timeout=30.0)
                if gathered.dropped != {courier.node_id: "gone"}:
                    break
                time.sleep(1)
            assert gathered.dropped == {}
            message, _ = decode(gathered.answers[courier.node_id], "answer")
            assert message == Refused(code=RefusalCode.FOREIGN_BUNDLE)
        else:
            home = bare.home
            session = SessionExchange(
                grid,
                address=f"127.0.0.1:{home.session_port}",
                certificate=home.server_certificate,
                expected=1,
            )
            deadline = time.monotonic() + 60  # the courier may be starting still
            while "refused a foreign bundle" not in (log.read_text() if log.exists() else "")[seen:]:
                assert time.monotonic() < deadline
                with pytest.raises(Unavailable, match="0 of at least 1"):
                    session.open(at_least=1, timeout=3.0)
            assert session.ask({courier.node_id: encode(Ping())}, timeout=3.0).answers == {}
            session.close()
    assert courier.vault.asked == asked, "a foreign run reached the vault"
    assert not target.exists()
    assert files_with(courier.directory, MARK.encode()) == []
    assert "refused a foreign bundle" in log.read_text()[seen:]
    unpacked = [p for p in bare.root.rglob("*") if p.name in ("app.py", "CONTENT", "pyproject.toml")]
    assert unpacked == []


def test_the_branch_still_serves_the_approved_one(bare: Any) -> None:
    node = bare.couriers[0].node_id
    with bare.drive() as grid:
        exchange = MessageExchange(grid, expected=1)
        exchange.open(at_least=1, timeout=30.0)
        assert exchange.ask({node: encode(Ping())}, timeout=30.0).answers == {node: encode(Ping())}


def test_the_coordinators_executor_refuses_it(whole: Any) -> None:
    target = whole.root / "harm"
    control = whole.control()
    run_id = control.start_run(hostile_bundle(target), {"job": "{}"})
    state = _finished(control, run_id)
    assert (state.sub_status, state.details[:15]) == ("failed", "foreign-bundle:")
    assert "refused: its bundle" in "".join(control.logs(run_id))
    assert not target.exists()
    assert files_with(whole.home.path, MARK.encode()) == []
    assert [p for p in whole.root.rglob("*") if p.name in ("app.py", "CONTENT", "pyproject.toml")] == []

    # and it is still there for the next run, which fails for a reason of its own
    state = _finished(control, control.start_run(build_bundle(), {"job": "{}"}))
    assert (state.sub_status, state.details) == ("failed", "the run carries no signed job")
    control.close()


def _finished(control: Any, run_id: int) -> Any:
    deadline = time.monotonic() + 20
    while not (state := control.run(run_id)).finished:
        assert time.monotonic() < deadline, state
        time.sleep(0.1)
    return state
