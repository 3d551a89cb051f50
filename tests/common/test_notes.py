"""Signed notes and checkpoints: published notes, known answers, and every way to write one differently."""

import base64
from datetime import UTC, datetime

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from sfumato.common.errors import LedgerBroken
from sfumato.common.notes import (
    COSIGNATURE,
    Checkpoint,
    Signature,
    SignedNote,
    coordinator_origin,
    cosignature,
    key_id,
    sign_checkpoint,
    verify_checkpoint,
)

# The example in the documentation of golang.org/x/mod/sumdb/note.
GO_SEED = base64.b64decode("AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz")[1:]
GO_TEXT = (
    "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n"
)
GO_LINE = (
    "— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJn"
    "AM=\n"
)
# The example of c2sp.org/signed-note.
C2SP_KEY = base64.b64decode("AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k")[1:]
C2SP_NOTE = (
    "This is an example message.\n\n— example.com/foo "
    "Uw2QOkn8srV1yJGh2VYRlL1Tnagv1YEq6TfXppzi2ONncAlTgK7Ztg1ERYNZXsYjOBH3mFXmRKuwHjG1Yu72IneyaQM=\n"
)
# The example of c2sp.org/tlog-cosignature: its layout; the keys are not published.
SOFA = (
    "example.com/behind-the-sofa\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n\n"
    "— example.com/behind-the-sofa Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u5/Zhcyv2q1gGzGku9nTo+"
    "zyWE+xeMcTOAYQ8=\n"
    "— witness.example.com/w1 jWbPPwAAAABkGFDLEZMHwSRaJNiIDoe9DYn/zXcrtPHeolMI5OWXEhZCB9dlrDJsX3b2oyin1nPZqhf5nNo0"
    "xUe+mbIUBkBIfZ+qnA==\n"
)

KEY = Ed25519PrivateKey.from_private_bytes(b"\x01" * 32)
WITNESS = Ed25519PrivateKey.from_private_bytes(b"\x02" * 32)
NORTH = Checkpoint("sfumato/branch/north", 10, "ab" * 32)
# Ed25519 is deterministic: these are what any correct implementation makes.
KNOWN_NOTE = (
    "sfumato/branch/north\n10\nq6urq6urq6urq6urq6urq6urq6urq6urq6urq6urq6s=\n\n"
    "— sfumato/branch/north Vy0R1z0cyNf7IAfQlRIt0st72+obbOHIacWZAjql12ZwTjD"
    "JgF1PWprHDHYGtgKHFfy3+3Ua2zOI9VytJh8l5U39VQw=\n"
)
KNOWN_LINE = (
    "— sfumato/branch/south LBEeWAAAAABptSnd9G4Yl3j7T7m7+hkAFXu6Zp/X8HEwc1t"
    "zBJPLOJ5qvjy9x+FRqCIXCbmys4LRQFxF/QcmYyqaoVAJIC0wmWxsBQ==\n"
)


def test_the_note_of_the_go_implementation() -> None:
    key = Ed25519PrivateKey.from_private_bytes(GO_SEED)
    assert key_id("PeterNeumann", key.public_key()).hex() == "c74f20a3"
    made = Signature("PeterNeumann", bytes.fromhex("c74f20a3"), key.sign(GO_TEXT.encode()))
    assert str(made) == GO_LINE
    note = SignedNote.parse(f"{GO_TEXT}\n{GO_LINE}")
    assert note.text == GO_TEXT and str(note) == f"{GO_TEXT}\n{GO_LINE}"
    note.verify("PeterNeumann", key.public_key())


def test_the_note_of_the_specification() -> None:
    key = Ed25519PublicKey.from_public_bytes(C2SP_KEY)
    assert key_id("example.com/foo", key).hex() == "530d903a"
    SignedNote.parse(C2SP_NOTE).verify("example.com/foo", key)
    with pytest.raises(LedgerBroken, match="signature is wrong"):
        SignedNote.parse(C2SP_NOTE.replace("This is", "That is")).verify("example.com/foo", key)
    with pytest.raises(LedgerBroken, match="not signed by"):
        SignedNote.parse(C2SP_NOTE).verify("example.com/bar", key)


def test_the_layout_of_the_specified_cosignature() -> None:
    note = SignedNote.parse(SOFA)
    assert str(note) == SOFA
    assert Checkpoint.parse(SOFA).size == 20852163
    cosigned = note.signatures[1]
    assert (cosigned.name, cosigned.key_id.hex()) == ("witness.example.com/w1", "8d66cf3f")
    assert int.from_bytes(cosigned.data[:8]) == 1679315147 and len(cosigned.data) == 8 + 64


def test_a_known_checkpoint_and_cosignature() -> None:
    note = sign_checkpoint(NORTH, KEY)
    assert note == KNOWN_NOTE
    line = cosignature(note, "sfumato/branch/south", WITNESS, datetime(2026, 3, 14, 9, 26, 53, tzinfo=UTC))
    assert line == KNOWN_LINE
    both = SignedNote.parse(note).with_signatures([line, line])
    assert len(both.signatures) == 2 and str(both) == note + line
    assert verify_checkpoint(str(both), NORTH.origin, KEY.public_key()) == NORTH
    seen = both.cosigned_at("sfumato/branch/south", WITNESS.public_key())
    assert seen == datetime(2026, 3, 14, 9, 26, 53, tzinfo=UTC)
    # What was signed is exactly what the specification says.
    data = both.signatures[1].data
    WITNESS.public_key().verify(data[8:], f"cosignature/v1\ntime 1773480413\n{NORTH.text}".encode())
    assert both.signatures[1].key_id == key_id("sfumato/branch/south", WITNESS.public_key(), COSIGNATURE)


def test_every_flipped_bit_of_a_note_is_seen() -> None:
    note = KNOWN_NOTE + KNOWN_LINE
    raw = note.encode()
    for at in range(len(raw)):
        for bit in range(8):
            altered = bytearray(raw)
            altered[at] ^= 1 << bit
            with pytest.raises((LedgerBroken, ValueError)):
                text = altered.decode()
                verify_checkpoint(text, NORTH.origin, KEY.public_key())
                SignedNote.parse(text).cosigned_at("sfumato/branch/south", WITNESS.public_key())


@pytest.mark.parametrize(
    "note",
    [
        "",
        "a\n",
        "a\n\n",
        "\n\n— a AAAAAAA=\n",
        KNOWN_NOTE.removesuffix("\n"),
        KNOWN_NOTE + "\n",
        KNOWN_NOTE.replace("\n10", "\r\n10"),
        KNOWN_NOTE.replace("— ", "- "),
        KNOWN_NOTE.replace("— ", "—  "),
        KNOWN_NOTE + "— sfumato/branch/x AAAA\n",
        KNOWN_NOTE + "— a+b AAAAAAAA\n",
        KNOWN_NOTE + "— a AAAAAAAA AAAA\n",
        KNOWN_NOTE + "— a AAAAAA_-\n",
    ],
)
def test_what_is_no_signed_note_is_refused(note: str) -> None:
    with pytest.raises(ValueError, match=r"sign|base64"):
        SignedNote.parse(note)


@pytest.mark.parametrize(
    "text",
    [
        NORTH.text.replace("\n10\n", "\n010\n"),
        NORTH.text.replace("\n10\n", "\n-1\n"),
        NORTH.text.replace("\n10\n", "\n1e1\n"),
        NORTH.text.replace("\n10\n", "\n٣\n"),
        NORTH.text + "an extension\n",
        NORTH.text.replace("q6ur", "AA=="),
        NORTH.text.replace("6s=\n", "6t=\n"),
        "\n" + NORTH.text.split("\n", 1)[1],
    ],
)
def test_what_is_no_checkpoint_is_refused_though_it_is_signed(text: str) -> None:
    line = Signature(NORTH.origin, key_id(NORTH.origin, KEY.public_key()), KEY.sign(text.encode()))
    with pytest.raises(LedgerBroken, match="none"):
        verify_checkpoint(f"{text}\n{line}", NORTH.origin, KEY.public_key())


def test_a_coordinator_is_called_by_its_key() -> None:
    assert coordinator_origin(KEY.public_key()) != coordinator_origin(WITNESS.public_key())
    assert coordinator_origin(KEY.public_key()).startswith("sfumato/coordinator/")
