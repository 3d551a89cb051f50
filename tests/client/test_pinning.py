"""Pinning the other branches' keys: what a coordinator gets that lies about them, and what junk does."""

import base64
import json
import os
import pwd
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from typer.testing import CliRunner

from sfumato.client import pinning
from sfumato.client.cli import app as branch_cli
from sfumato.client.home import BranchHome
from sfumato.client.pinning import pin, read_members
from sfumato.client.policy import Policy
from sfumato.client.setup import init_branch
from sfumato.client.status import describe_entry, read_status
from sfumato.common.enrolment import Members, ed25519_text, fingerprint
from sfumato.common.errors import BadInput
from sfumato.privacy.ledger import Ledger
from sfumato.server.cli import coordinator as coordinator_cli
from sfumato.server.home import CoordinatorHome

CONTRACT = """
version = 1
name = "toy"
purpose = "A toy contract, to set up branches with."
[[tables]]
name = "customers"
[[tables.columns]]
name = "id"
type = "string"
role = "customer_id"
[[tables.columns]]
name = "visits"
type = "integer"
role = "feature"
bounds = [0, 100]
"""


def new_key() -> Ed25519PublicKey:
    return Ed25519PrivateKey.generate().public_key()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[CoordinatorHome, BranchHome]:
    """One coordinator, one branch `basel`; two more branches that are names and keys only."""
    path = tmp_path_factory.mktemp("pins")
    home = CoordinatorHome.init(path / "c", host="127.0.0.1", port=9092, session_port=9093)
    (path / "contract.toml").write_text(CONTRACT)
    branch = init_branch(
        path / "basel",
        name="basel",
        invitation=home.path / "invitation.json",
        contract=path / "contract.toml",
        passphrase="four words of nonsense",
        budget_epsilon=8.0,
        budget_delta=1e-5,
        policy=Policy(),
    )
    home.enrol(branch.path / "enrolment.json")
    return home, branch


@pytest.fixture
def basel(made: tuple[CoordinatorHome, BranchHome]) -> Iterator[BranchHome]:
    """The branch, with nothing pinned."""
    yield made[1]
    made[1].pinned.unlink(missing_ok=True)


@pytest.fixture
def others() -> dict[str, Ed25519PublicKey]:
    return {"geneva": new_key(), "zug": new_key()}


def own(branch: BranchHome) -> dict[str, Ed25519PublicKey]:
    return {branch.name: Ledger.read(branch.ledger).public_key}


def pins(branch: BranchHome) -> list[dict[str, dict[str, str]]]:
    return [e.body for e in Ledger.read(branch.ledger).entries("pin")]


def write(path: Path, members: Members) -> Path:
    path.write_bytes(members.dump())
    return path


# --- what an operator does ---------------------------------------------------------------------------------


def test_the_coordinators_list_is_pinned_and_stands_in_the_ledger(
    made: tuple[CoordinatorHome, BranchHome], basel: BranchHome, tmp_path: Path
) -> None:
    assert basel.members() == {}
    out = tmp_path / "members.json"
    said = CliRunner().invoke(coordinator_cli, ["roster", str(made[0].path), "--out", str(out)])
    key = own(basel)["basel"]
    assert said.exit_code == 0 and fingerprint(key) in said.stdout
    assert set(json.loads(out.read_bytes())) == {"format", "members"} and out.stat().st_mode & 0o777 == 0o644
    before = len(pins(basel))
    for news in ("new, this branch", "as before, this branch"):
        done = CliRunner().invoke(branch_cli, ["pin", str(basel.path), str(out)], env={"COLUMNS": "150"})
        assert done.exit_code == 0 and fingerprint(key) in done.stdout and news in done.stdout
    assert basel.members() == {"basel": key}
    assert basel.pinned.stat().st_mode & 0o777 == 0o600
    basel.check_private()
    (entry,) = pins(basel)[before:]  # the second time nothing was new
    assert entry == {"added": {"basel": fingerprint(key)}, "changed": {}, "removed": {}}


def test_enrolments_handed_over_directly_are_pinned(basel: BranchHome, tmp_path: Path) -> None:
    enrolment = json.loads((basel.path / "enrolment.json").read_text())
    for name in ("geneva", "zug"):
        other = enrolment | {"name": name, "ledger_public_key": ed25519_text(new_key())}
        (tmp_path / f"{name}.json").write_text(json.dumps(other))
    files = [tmp_path / "geneva.json", tmp_path / "zug.json"]
    done = pin(basel, read_members(files))
    assert done.added == {"basel", "geneva", "zug"} and basel.members().keys() == done.added
    assert read_status(basel.path).pinned == 2
    last = Ledger.read(basel.ledger).entries("pin")[-1]
    assert describe_entry(last) == "3 added"
    assert read_members([*files, *files]) == read_members(files), "the same key twice is no contradiction"


def test_a_branch_that_is_left_out_stays_until_the_list_is_replaced(
    basel: BranchHome, others: dict[str, Ed25519PublicKey]
) -> None:
    pin(basel, Members.of(others))
    pin(basel, Members.of({"geneva": others["geneva"]}))
    assert basel.members() == own(basel) | others
    done = pin(basel, Members.of({"geneva": others["geneva"]}), replace=True)
    assert done.removed == {"zug"} and basel.members() == own(basel) | {"geneva": others["geneva"]}
    assert pins(basel)[-1] == {"added": {}, "changed": {}, "removed": {"zug": fingerprint(others["zug"])}}


# --- a coordinator that lies -------------------------------------------------------------------------------


def test_a_substituted_key_is_refused_and_nothing_changes(
    basel: BranchHome, others: dict[str, Ed25519PublicKey], tmp_path: Path
) -> None:
    pin(basel, Members.of(others))
    held, entries = basel.pinned.read_bytes(), len(pins(basel))
    theirs = new_key()
    file = write(tmp_path / "members.json", Members.of(others | {"zug": theirs, "bern": new_key()}))
    said = CliRunner().invoke(branch_cli, ["pin", str(basel.path), str(file)])
    assert isinstance(said.exception, BadInput) and "given for zug" in str(said.exception)
    assert basel.pinned.read_bytes() == held and len(pins(basel)) == entries
    done = pin(basel, read_members([file]), replace=True)  # the operator asked zug, and means it
    assert done.changed == {"zug"} and basel.members()["zug"] == theirs
    assert pins(basel)[-1]["changed"] == {"zug": fingerprint(theirs)}


@pytest.mark.parametrize("replace", [False, True])
def test_its_own_name_needs_its_own_key(
    basel: BranchHome, others: dict[str, Ed25519PublicKey], replace: bool
) -> None:
    with pytest.raises(BadInput, match="not its own"):
        pin(basel, Members.of(others | {"basel": new_key()}), replace=replace)
    with pytest.raises(BadInput, match="'basel' and 'bern' have the same key"):
        pin(basel, Members.of(others | {"bern": own(basel)["basel"]}), replace=replace)
    assert basel.members() == {} and not basel.pinned.exists()


def test_one_branch_under_two_names_is_refused(others: dict[str, Ed25519PublicKey]) -> None:
    with pytest.raises(BadInput, match="have the same key"):
        Members.of(others | {"bern": others["zug"]})


def test_two_files_that_disagree_are_refused(others: dict[str, Ed25519PublicKey], tmp_path: Path) -> None:
    files = [write(tmp_path / "a", Members.of(others)), write(tmp_path / "b", Members.of({"zug": new_key()}))]
    with pytest.raises(BadInput, match="'zug' another key"):
        read_members(files)


# --- junk --------------------------------------------------------------------------------------------------

KEY = base64.b64encode(bytes(range(32))).decode()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"7", "not a valid list of members"),
        (b"null", "not a valid list of members"),
        (b'"node_public_key"', "not a valid list of members"),
        (b'{"format": 2, "members": []}', "format"),
        (b'{"members": [], "extra": 1}', "extra"),
        (b'{"node_public_key": 1}', "not a valid enrolment"),
        (json.dumps({"members": [{"name": "Zug", "ledger_public_key": KEY}]}).encode(), "name"),
        (json.dumps({"members": [{"name": "../x", "ledger_public_key": KEY}]}).encode(), "name"),
        (json.dumps({"members": [{"name": "zug", "ledger_public_key": KEY[:-4]}]}).encode(), "members"),
        (json.dumps({"members": [{"name": "zug", "ledger_public_key": "é"}]}).encode(), "members"),
        (json.dumps({"members": [{"name": "zug", "ledger_public_key": KEY}] * 2}).encode(), "named twice"),
    ],
)
def test_junk_is_named_and_pins_nothing(basel: BranchHome, tmp_path: Path, text: bytes, said: str) -> None:
    file = tmp_path / "junk.json"
    file.write_bytes(text)
    with pytest.raises(BadInput, match=said) as caught:
        read_members([file])
    assert "junk.json" in str(caught.value) and basel.members() == {}


def test_missing_files_and_directories_are_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no such file"):
        read_members([tmp_path / "none.json"])
    with pytest.raises(BadInput, match="cannot be read"):
        read_members([tmp_path])


def test_a_coordinator_without_branches_has_no_list(tmp_path: Path) -> None:
    home = CoordinatorHome.init(tmp_path / "c", host="127.0.0.1", port=9092, session_port=9093)
    with pytest.raises(BadInput, match="no branch is enrolled"):
        home.members()


# --- the file ----------------------------------------------------------------------------------------------


def test_what_was_pinned_and_altered_by_hand_is_not_used(basel: BranchHome) -> None:
    pin(basel, Members.of({"zug": new_key()}))
    basel.pinned.write_bytes(basel.pinned.read_bytes()[:-20])
    with pytest.raises(BadInput):
        basel.members()


def test_a_pin_that_cannot_be_written_leaves_the_old_one_and_its_entry(
    basel: BranchHome, others: dict[str, Ed25519PublicKey], monkeypatch: pytest.MonkeyPatch
) -> None:
    pin(basel, Members.of({"zug": others["zug"]}))
    held = basel.pinned.read_bytes()

    def full_disk(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pinning, "write", full_disk)
    with pytest.raises(OSError, match="No space"):
        pin(basel, Members.of(others))
    assert basel.pinned.read_bytes() == held
    assert "geneva" in pins(basel)[-1]["added"], "what was tried stands in the ledger, not what was not"


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_what_root_pins_belongs_to_the_vaults_user(basel: BranchHome) -> None:
    user, ours = pwd.getpwnam("nobody"), basel.vault.stat()
    try:
        os.chown(basel.vault, user.pw_uid, user.pw_gid)
        basel.restore_owner()
        pin(basel, Members.of({"zug": new_key()}))
        assert (basel.pinned.stat().st_uid, basel.pinned.stat().st_gid) == (user.pw_uid, user.pw_gid)
        basel.check_private(user.pw_uid)
    finally:
        os.chown(basel.vault, ours.st_uid, ours.st_gid)
        basel.restore_owner()
