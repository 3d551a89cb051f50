"""Key derivation, wrapping, and a keyring file that stays whole, private and silent about its keys."""

import base64
import copy
import json
import logging
import os
import pickle
import subprocess
import sys
import textwrap
import threading
import traceback
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sfumato.common import private_files
from sfumato.common.errors import BadInput, Insecure, SfumatoError
from sfumato.privacy import keys
from sfumato.privacy.keys import EphemeralKeys, Keyring, PassphraseKeyProvider, UnwrapFailed

PASSPHRASE = "correct horse battery staple"
OTHER = "Tr0ub4dor&3 and then some"


def provider(passphrase: str = PASSPHRASE) -> PassphraseKeyProvider:
    return PassphraseKeyProvider(passphrase, iterations=1, lanes=1, memory_kib=8192)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keyring.json"


@pytest.fixture
def keyring(path: Path) -> Keyring:
    return Keyring.create(path, provider())


class TestVectors:
    def test_argon2id_rfc_9106_section_5_3(self) -> None:
        kdf = Argon2id(
            salt=b"\x02" * 16,
            length=32,
            iterations=3,
            lanes=4,
            memory_cost=32,
            ad=b"\x04" * 12,
            secret=b"\x03" * 8,
        )
        expected = "0d640df58d78766c08c037a34a8b53c9d01ef0452d75b65eb52520e96b01e659"
        assert kdf.derive(b"\x01" * 32).hex() == expected

    def test_aes_256_gcm_mcgrew_viega_test_case_16(self) -> None:
        key = bytes.fromhex("feffe9928665731c6d6a8f9467308308" * 2)
        nonce = bytes.fromhex("cafebabefacedbaddecaf888")
        text = bytes.fromhex(
            "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72"
            "1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39"
        )
        bound = bytes.fromhex("feedfacedeadbeeffeedfacedeadbeefabaddad2")
        expected = (
            "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa"
            "8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662"
            "76fc6ece0f4e1768cddf8853bb2d551b"
        )
        assert AESGCM(key).encrypt(nonce, text, bound).hex() == expected

    def test_the_provider_is_argon2id_and_aes_gcm_with_the_context(self) -> None:
        made = PassphraseKeyProvider(PASSPHRASE, salt=b"s" * 16, iterations=2, lanes=2, memory_kib=8192)
        kek = Argon2id(salt=b"s" * 16, length=32, iterations=2, lanes=2, memory_cost=8192).derive(
            PASSPHRASE.encode()
        )
        wrapped = made.wrap(b"k" * 32, b"context")
        assert AESGCM(kek).decrypt(wrapped[:12], wrapped[12:], b"context") == b"k" * 32

    def test_the_defaults_are_rfc_9106_second_recommended(self) -> None:
        said = PassphraseKeyProvider(PASSPHRASE).describe()
        assert (said["iterations"], said["lanes"], said["memory_kib"]) == (3, 4, 65536)


class TestProvider:
    @settings(max_examples=50, deadline=None)
    @given(key=st.binary(min_size=1, max_size=64), context=st.binary(max_size=50), data=st.data())
    def test_round_trip_and_tampering(self, key: bytes, context: bytes, data: st.DataObject) -> None:
        wrapped = SHARED.wrap(key, context)
        assert SHARED.unwrap(wrapped, context) == key
        assert SHARED.wrap(key, context) != wrapped
        bad = bytearray(wrapped)
        bad[data.draw(st.integers(0, len(bad) - 1))] ^= data.draw(st.integers(1, 255))
        attempts = [(bytes(bad), context), (wrapped, context + b"x"), (wrapped[:-1], context), (b"", context)]
        for broken, bound in attempts:
            with pytest.raises(UnwrapFailed):
                SHARED.unwrap(broken, bound)

    def test_passphrases_are_normalised(self) -> None:
        composed, decomposed = "Pässwörter größer 密碼", "Pa\u0308sswo\u0308rter gro\u0308ßer 密碼"
        assert composed != decomposed
        one = PassphraseKeyProvider(composed, salt=b"s" * 16, iterations=1, lanes=1, memory_kib=8192)
        two = PassphraseKeyProvider.from_description(one.describe(), decomposed)
        assert two.unwrap(one.wrap(b"k", b""), b"") == b"k"

    def test_short_passphrase(self) -> None:
        with pytest.raises(BadInput, match="fewer than 8"):
            PassphraseKeyProvider("short")

    @pytest.mark.parametrize(
        "change",
        [
            {"memory_kib": 2**31},
            {"memory_kib": 8},
            {"iterations": 10**9},
            {"iterations": 0},
            {"lanes": 1000},
            {"iterations": True},
            {"iterations": "3"},
            {"salt": "AAAA"},
            {"salt": "!!!"},
            {"salt": None},
            {"kdf": "argon2d"},
            {"kind": "kms"},
            {"extra": 1},
        ],
    )
    def test_a_file_cannot_ask_for_absurd_or_weak_parameters(
        self, keyring: Keyring, path: Path, change: dict[str, Any]
    ) -> None:
        document = json.loads(path.read_text())
        document["provider"] |= change
        path.write_text(json.dumps(document))
        with pytest.raises(BadInput, match="parameters"):
            Keyring.open(path, PASSPHRASE)

    def test_another_provider_fits(self, path: Path) -> None:
        """What an HSM or KMS would look like: its key never leaves it, the keyring cannot tell."""

        class Remote:
            def __init__(self) -> None:
                self._aead = AESGCM(os.urandom(32))

            def wrap(self, key: bytes, context: bytes) -> bytes:
                nonce = os.urandom(12)
                return nonce + self._aead.encrypt(nonce, key, context)

            def unwrap(self, wrapped: bytes, context: bytes) -> bytes:
                try:
                    return self._aead.decrypt(wrapped[:12], wrapped[12:], context)
                except Exception:
                    raise UnwrapFailed from None

            def describe(self) -> dict[str, Any]:
                return {"kind": "remote", "key": "7"}

        remote = Remote()
        key = Keyring.create(path, remote).data_key("a")
        assert Keyring.open(path, provider=remote).data_key("a") == key
        with pytest.raises(BadInput):
            Keyring.open(path, provider=Remote())
        with pytest.raises(BadInput):
            Keyring.open(path, PASSPHRASE)
        with pytest.raises(TypeError):
            Keyring.open(path)


SHARED = provider()


class TestKeyring:
    def test_keys_last(self, keyring: Keyring, path: Path) -> None:
        made = {
            name: keyring.data_key(name) for name in ("store", "token", "field:customers.full name", "鍵")
        }
        assert all(len(key) == 32 for key in made.values()) and len(set(made.values())) == 4
        again = Keyring.open(path, PASSPHRASE)
        assert again.names() == sorted(made)
        assert {name: again.data_key(name) for name in made} == made

    def test_file_is_0600_and_never_overwritten(self, path: Path) -> None:
        previous = os.umask(0)
        try:
            keyring = Keyring.create(path, provider())
            keyring.data_key("a")
        finally:
            os.umask(previous)
        assert path.stat().st_mode & 0o777 == 0o600
        before = path.read_bytes()
        with pytest.raises(BadInput, match="there already"):
            Keyring.create(path, provider())
        assert path.read_bytes() == before
        assert [p.name for p in path.parent.iterdir()] == [path.name]

    @pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644, 0o620])
    def test_open_to_others(self, keyring: Keyring, path: Path, mode: int) -> None:
        path.chmod(mode)
        with pytest.raises(Insecure, match=f"{mode:04o}"):
            Keyring.open(path, PASSPHRASE)
        with pytest.raises(Insecure):
            keyring.data_key("new")

    def test_symlinks_folders_absence(self, keyring: Keyring, path: Path) -> None:
        link = path.with_name("link")
        link.symlink_to(path)
        with pytest.raises(BadInput):
            Keyring.open(link, PASSPHRASE)
        with pytest.raises(BadInput, match="not a regular file"):
            Keyring.open(path.parent, PASSPHRASE)
        pipe = path.with_name("pipe")
        os.mkfifo(pipe, 0o600)
        with pytest.raises(BadInput, match="not a regular file"):
            Keyring.open(pipe, PASSPHRASE)
        with pytest.raises(BadInput, match="no such keyring"):
            Keyring.open(path.with_name("nothing"), PASSPHRASE)

    def test_wrong_passphrase_and_altered_file_give_one_answer(self, keyring: Keyring, path: Path) -> None:
        keyring.data_key("a")
        good = path.read_text()
        answers = set()
        for wrong in (OTHER, PASSPHRASE + " ", "", "short"):
            with pytest.raises(BadInput) as caught:
                Keyring.open(path, wrong)
            answers.add(str(caught.value))
        document = json.loads(good)
        for change in ("a", "b"):
            altered = copy.deepcopy(document)
            altered["keys"][change] = base64.b64encode(bytes(60)).decode()
            path.write_text(json.dumps(altered))
            with pytest.raises(BadInput) as caught:
                Keyring.open(path, PASSPHRASE)
            answers.add(str(caught.value))
        assert len(answers) == 1

    def test_every_byte_counts(self, keyring: Keyring, path: Path) -> None:
        """Flip any byte of the file: it does not open, or means exactly the same (white space, say)."""
        keyring.data_key("a")
        expected = keyring.data_key("b")
        good = path.read_bytes()
        for position in range(0, len(good), 3):
            bad = bytearray(good)
            bad[position] ^= 1 + position % 7
            path.write_bytes(bad)
            try:
                opened = Keyring.open(path, PASSPHRASE)
            except BadInput:
                continue
            assert opened.names() == ["a", "b"] and opened.data_key("b") == expected

    def test_entries_cannot_be_removed_swapped_or_brought_from_elsewhere(
        self, keyring: Keyring, path: Path, tmp_path: Path
    ) -> None:
        keyring.data_key("a")
        keyring.data_key("b")
        document = json.loads(path.read_text())
        removed, swapped = copy.deepcopy(document), copy.deepcopy(document)
        del removed["keys"]["a"]
        swapped["keys"]["a"], swapped["keys"]["b"] = document["keys"]["b"], document["keys"]["a"]
        for altered in (removed, swapped):
            path.write_text(json.dumps(altered))
            with pytest.raises(BadInput, match="does not open"):
                Keyring.open(path, PASSPHRASE)
        # even with a valid seal, a key wrapped for another name does not open under this one
        seal = keys._sealed_bytes({k: v for k, v in swapped.items() if k != "seal"}, keyring._provider)
        path.write_bytes(seal)
        with pytest.raises(BadInput, match="does not open"):
            Keyring.open(path, PASSPHRASE).data_key("a")

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"{}",
            b"[]",
            b"null",
            b"\xff\xfe",
            b'{"format": "sfumato-keyring", "version": 2}',
            b"[" * 100000,
            b"x" * (keys.MAX_FILE_BYTES + 5),
        ],
        ids=["empty", "object", "list", "null", "encoding", "version", "deep", "large"],
    )
    def test_not_a_keyring(self, path: Path, content: bytes) -> None:
        path.write_bytes(content)
        path.chmod(0o600)
        with pytest.raises(BadInput, match="not a keyring"):
            Keyring.open(path, PASSPHRASE)

    def test_threads_get_one_key(self, keyring: Keyring) -> None:
        got: list[bytes] = []
        threads = [threading.Thread(target=lambda: got.append(keyring.data_key("one"))) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(set(got)) == 1 and len(got) == 8

    def test_processes_get_one_key(self, keyring: Keyring, path: Path) -> None:
        """Two processes that use a name for the first time at once agree: neither overwrites the other's key."""
        program = textwrap.dedent(
            """
            import sys
            from pathlib import Path
            from sfumato.privacy.keys import Keyring
            keyring = Keyring.open(Path(sys.argv[1]), sys.argv[2])
            print("ready", flush=True)
            sys.stdin.readline()
            print(*(keyring.data_key(f"raced-{i}").hex() for i in range(30)))
            """
        )
        command = [sys.executable, "-c", program, str(path), PASSPHRASE]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        workers = [subprocess.Popen(command, **pipes) for _ in range(3)]
        for worker in workers:
            assert worker.stdout.readline() == "ready\n"
        for worker in workers:
            worker.stdin.write("go\n")
            worker.stdin.flush()
        answers = [worker.communicate(timeout=60)[0].split() for worker in workers]
        assert answers[0] == answers[1] == answers[2]
        assert answers[0] == [keyring.data_key(f"raced-{i}").hex() for i in range(30)]


class TestSilence:
    def test_keys_show_nowhere(
        self,
        keyring: Keyring,
        path: Path,
        caplog: pytest.LogCaptureFixture,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        caplog.set_level(logging.DEBUG)
        ephemeral = EphemeralKeys()
        secrets = [keyring.data_key("a"), ephemeral.data_key("a")]
        shown = [repr(keyring), str(keyring), repr(ephemeral), repr(keyring._provider), path.read_text()]
        keyring.destroy("a")
        for act in (
            lambda: keyring.data_key("a"),
            lambda: keyring.destroy("a"),
            lambda: Keyring.open(path, OTHER),
        ):
            with pytest.raises(SfumatoError) as caught:
                act()
            shown.append("".join(traceback.format_exception(caught.value)))
        shown += [caplog.text, *capsys.readouterr()]
        for secret in secrets:
            for form in (secret.hex(), base64.b64encode(secret).decode(), repr(secret)[2:-1]):
                assert not any(form in text for text in shown)
        assert not any(PASSPHRASE in text or OTHER in text for text in shown)

    def test_no_pickling(self, keyring: Keyring) -> None:
        for holder in (keyring, keyring._provider, EphemeralKeys()):
            with pytest.raises(TypeError, match="holds keys"):
                pickle.dumps(holder)
            with pytest.raises(TypeError, match="holds keys"):
                copy.deepcopy(holder)


class TestRotation:
    def test_keys_stay_the_passphrase_changes(self, keyring: Keyring, path: Path) -> None:
        made = {name: keyring.data_key(name) for name in "abc"}
        before = json.loads(path.read_text())
        keyring.rotate(provider(OTHER))
        after = json.loads(path.read_text())
        assert not set(before["keys"].values()) & set(after["keys"].values())
        assert before["provider"]["salt"] != after["provider"]["salt"]
        with pytest.raises(BadInput, match="does not open"):
            Keyring.open(path, PASSPHRASE)
        again = Keyring.open(path, OTHER)
        assert {name: again.data_key(name) for name in "abc"} == made
        assert path.stat().st_mode & 0o777 == 0o600
        keyring.data_key("d")  # the object goes on under the new passphrase
        assert Keyring.open(path, OTHER).data_key("d") == keyring.data_key("d")

    def test_a_stale_object_cannot_undo_it(self, keyring: Keyring, path: Path) -> None:
        stale = Keyring.open(path, PASSPHRASE)
        keyring.rotate(provider(OTHER))
        with pytest.raises(BadInput, match="rotated"):
            stale.data_key("new")
        assert Keyring.open(path, OTHER).names() == []

    @pytest.mark.parametrize("step", ["_write_beside", "fsync", "replace", "_sync_directory"])
    def test_a_failure_leaves_the_old_or_the_new(
        self, keyring: Keyring, path: Path, step: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        key = keyring.data_key("a")

        def fail(*_: object, **__: object) -> None:
            raise OSError("disk full")

        with monkeypatch.context() as patch:
            patch.setattr({"replace": Path, "fsync": os}.get(step, private_files), step, fail)
            with pytest.raises(OSError, match="disk full"):
                keyring.rotate(provider(OTHER))
        passphrase = OTHER if step == "_sync_directory" else PASSPHRASE
        assert Keyring.open(path, passphrase).data_key("a") == key
        assert [p.name for p in path.parent.iterdir()] == [path.name]

    @pytest.mark.parametrize("call", range(1, 10))
    def test_killed_at_any_system_call(self, keyring: Keyring, path: Path, call: int) -> None:
        """A child is killed hard at the n-th call that touches the disk: one of the two passphrases opens."""
        key = keyring.data_key("a")
        program = textwrap.dedent(
            """
            import os, sys
            from pathlib import Path
            from sfumato.privacy.keys import Keyring, PassphraseKeyProvider
            path, old, new, call = Path(sys.argv[1]), *sys.argv[2:4], int(sys.argv[4])
            keyring = Keyring.open(path, old)
            after = PassphraseKeyProvider(new, iterations=1, lanes=1, memory_kib=8192)
            left = [call]
            def dying(function):
                def called(*a, **k):
                    left[0] -= 1
                    if left[0] == 0:
                        os._exit(9)
                    return function(*a, **k)
                return called
            for name in ("open", "fsync", "fchmod", "rename", "replace"):
                setattr(os, name, dying(getattr(os, name)))
            keyring.rotate(after)
            os._exit(0)
            """
        )
        ended = subprocess.run(
            [sys.executable, "-c", program, str(path), PASSPHRASE, OTHER, str(call)], timeout=60
        )
        assert ended.returncode == (9 if call <= 8 else 0)  # eight calls, so every gap between two is tried
        opened = []
        for passphrase in (PASSPHRASE, OTHER):
            try:
                opened.append(Keyring.open(path, passphrase).data_key("a"))
            except BadInput:
                continue
        assert opened == [key]


class TestDestruction:
    def test_gone_for_good(self, keyring: Keyring, path: Path) -> None:
        keyring.data_key("a")
        kept = keyring.data_key("b")
        wrapped = json.loads(path.read_text())["keys"]["a"]
        keyring.destroy("a")
        assert wrapped not in path.read_text()
        for ring in (keyring, Keyring.open(path, PASSPHRASE)):
            with pytest.raises(BadInput, match="was destroyed"):
                ring.data_key("a")
            assert ring.data_key("b") == kept
        keyring.rotate(provider(OTHER))
        with pytest.raises(BadInput, match="was destroyed"):
            Keyring.open(path, OTHER).data_key("a")

    def test_unknown(self, keyring: Keyring) -> None:
        with pytest.raises(BadInput, match="holds no key 'x'"):
            keyring.destroy("x")


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    names=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=30), unique=True, max_size=5)
)
def test_any_name(tmp_path: Path, names: list[str]) -> None:
    path = tmp_path / "any.json"
    path.unlink(missing_ok=True)
    made = {name: Keyring.create(path, SHARED).data_key(name) for name in names[:1]}
    if made:
        assert Keyring.open(path, PASSPHRASE).data_key(names[0]) == made[names[0]]
