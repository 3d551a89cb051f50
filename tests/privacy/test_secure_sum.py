"""The secure sum: masks that cancel, shares that say nothing, and coordinators that try.

Statistical tests have fixed seeds; the stated rate is that of a false alarm per new seed.
"""

import base64
import copy
import hashlib
import hmac
import os
import pickle
from collections.abc import Sequence

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR
from dp_accounting.dp_event import GaussianDpEvent, PoissonSampledDpEvent
from scipy import stats

from sfumato.common.contributions import Rows
from sfumato.common.errors import Refusal, RefusalCode
from sfumato.common.fixed_point import GRID, add, decode
from sfumato.common.messages import KeyShare
from sfumato.privacy import keystream
from sfumato.privacy.clipping import BoundedSum
from sfumato.privacy.mechanisms import GaussianSum, SumNoise
from sfumato.privacy.noise import SecureRandom
from sfumato.privacy.secure_sum import JobKey, Pairing, check_roster, roster_hash, set_hash

ALARM = 1e-4
JOB = "0123456789abcdef" * 2
OTHER_JOB = "f" * 32


def seed(*words: object) -> bytes:
    return hashlib.sha256(repr(words).encode()).digest()


class Ring:
    """Branches with keys that repeat: enrolled, for one job, and paired."""

    def __init__(self, count: int, job_id: str = JOB, tag: str = "") -> None:
        self.names = [f"b{i:03}" for i in range(count)]
        self.signers = {n: Ed25519PrivateKey.from_private_bytes(seed("sign", n)) for n in self.names}
        self.pinned = {n: s.public_key() for n, s in self.signers.items()}
        self.keys = {
            n: JobKey(job_id, n, X25519PrivateKey.from_private_bytes(seed("dh", tag, n)), s)
            for n, s in self.signers.items()
        }
        self.shares = [key.share for key in self.keys.values()]
        self.job_id = job_id

    def pairing(self, name: str) -> Pairing:
        roster = check_roster(self.shares, self.pinned, self.job_id, self.keys[name].share)
        return Pairing(self.keys[name], roster)

    def mask(self, name: str, length: int, *, round_: int = 1, members: Sequence[str] = ()) -> np.ndarray:
        vector = np.zeros(length, dtype=np.uint64)
        self.keys[name]._masked.clear()
        self.pairing(name).mask(vector, round_=round_, members=members or self.names)
        return vector

    def refused(self, shares: Sequence[KeyShare], name: str = "b000") -> None:
        with pytest.raises(Refusal) as refusal:
            check_roster(shares, self.pinned, self.job_id, self.keys[name].share)
        assert refusal.value.code == RefusalCode.BAD_ROSTER


def sums(ring: Ring, noise: SumNoise, rows: int, length: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Every branch's share of a round, and the plain total of what they hold."""
    shares, plain = [], np.zeros(length, dtype=np.int64)
    for i, name in enumerate(ring.names):
        bounded = BoundedSum.of(Rows(np.random.default_rng(i).normal(size=(rows, length))), 1.0)
        plain += bounded.total
        pairing = ring.pairing(name)
        mechanism = GaussianSum(
            lambda b=bounded: b,
            noise,
            GRID,
            SecureRandom(seed("noise", name)),
            lambda v, p=pairing: p.mask(v, round_=1, members=ring.names),
        )
        shares.append(mechanism.run())
    return shares, plain


def uniform(words: np.ndarray) -> bool:
    """Chi-squared on the bytes, and on each of the 64 bits: false alarm 1e-4 each."""
    counts = np.bincount(np.ascontiguousarray(words).view(np.uint8), minlength=256)
    ones = np.array([int(((words.view(np.uint64) >> np.uint64(b)) & np.uint64(1)).sum()) for b in range(64)])
    by_bit = float((((ones - words.size / 2) ** 2) / (words.size / 4)).sum())
    return stats.chisquare(counts).pvalue > ALARM and stats.chi2.sf(by_bit, 64) > ALARM


# --- the sum -----------------------------------------------------------------------------------------------


@pytest.mark.statistical
@pytest.mark.parametrize(("members", "colluders"), [(3, 1), (10, 1), (50, 7)])
def test_the_total_is_the_plain_sum_and_the_claimed_noise(members: int, colluders: int) -> None:
    """KS and chi-squared of the variance at the claimed sigma; and 5% less or more would be seen.

    False alarm 1e-4 each.
    """
    length, noise = 20_000, SumNoise(1.7, members=members, colluders=colluders)
    shares, plain = sums(Ring(members), noise, 3, length)
    residual = decode(add(shares) - plain, 1.0)
    std = noise.total_std(GRID, 1.0)
    assert np.isclose(std, 1.7 * np.sqrt(members / (members - colluders)), rtol=1e-6)
    assert stats.kstest(residual / std, "norm").pvalue > ALARM
    low, high = stats.chi2.ppf([ALARM / 2, 1 - ALARM / 2], length)
    assert low < ((residual / std) ** 2).sum() < high
    for wrong in (0.95, 1.05):
        assert not low < ((residual / std / wrong) ** 2).sum() < high


@pytest.mark.statistical
@pytest.mark.parametrize("members", [3, 10])
def test_a_share_is_uniform_and_so_is_every_sum_but_the_whole(members: int) -> None:
    """Every single share, and the total without any one of them; false alarm 4e-4 a share."""
    shares, plain = sums(Ring(members), SumNoise(1.0, members=members, colluders=1), 1, 20_000)
    for i in range(members):
        assert uniform(shares[i])
        assert uniform(add([s for j, s in enumerate(shares) if j != i]) - plain)
    assert not uniform(add(shares))


def test_the_colluders_alone_cannot_open_a_share() -> None:
    """Two of five give all they have; what is left of an honest share is its masks with the other honest ones."""
    ring = Ring(5)
    mask = ring.mask("b000", 20_000)
    for colluder in ("b003", "b004"):
        stream = np.zeros(20_000, dtype=np.uint64)
        pairing = ring.pairing(colluder)
        keystream.apply(stream, [(pairing._key("b000", 1, set_hash(ring.names), stream.size), True)])
        mask -= stream
    assert uniform(mask.view(np.int64))


def test_the_masks_cancel_over_the_set_alone() -> None:
    ring = Ring(5)
    for length in (1, 7, keystream.BLOCK + 3):
        total = sum(ring.mask(n, length) for n in ring.names)
        assert not total.any()
        assert (total - ring.mask("b002", length)).any()
    small = ["b000", "b002", "b004"]
    assert not sum(ring.mask(n, 9, members=small) for n in small).any()


def test_masks_differ_between_rounds_sets_lengths_rosters_and_jobs() -> None:
    """Nothing that was learnt of one mask helps with another: all pairs differ in every word."""
    ring = Ring(4)
    stranger = Ring(5)
    stranger.names = stranger.names[:4]
    masks = [
        ring.mask("b000", 64),
        ring.mask("b000", 64, round_=2),
        ring.mask("b000", 64, members=ring.names[:3]),
        ring.mask("b000", 65)[:64],
        stranger.mask("b000", 64),  # the same set in a longer roster
        Ring(4, tag="restarted").mask("b000", 64),
        Ring(4, job_id=OTHER_JOB).mask("b000", 64),
    ]
    for i, a in enumerate(masks):
        for b in masks[:i]:
            assert (a != b).all()
    assert (ring.mask("b000", 64) == masks[0]).all()


# --- keys and streams: as another implementation would make them -------------------------------------------


def test_the_keystream_is_plain_ctr_from_block_two() -> None:
    """Against another mode of the library, over more than one block, added and subtracted."""
    key, length = bytes(range(32)), 2 * keystream.BLOCK + 5
    plain = Cipher(AES(key), CTR((2).to_bytes(16, "big"))).encryptor().update(bytes(8 * length))
    vector = np.full(length, 2**64 - 1, dtype=np.uint64)
    keystream.apply(vector, [(key, True)])
    assert (vector + np.uint64(1) == np.frombuffer(plain, dtype="<u8")).all()
    keystream.apply(vector, [(key, False)])
    assert (vector == np.uint64(2**64 - 1)).all()


def test_many_streams_in_two_threads_are_the_sum_of_each_alone() -> None:
    streams = [(os.urandom(32), i % 3 != 0) for i in range(7)]
    length = keystream._WORTH_A_THREAD // len(streams) + 1
    alone = np.arange(length, dtype=np.uint64)
    together = alone.copy()
    for stream in streams:
        keystream.apply(alone, [stream])
    keystream.apply(together, streams)
    assert (alone == together).all()


def test_the_keystream_of_the_zero_key_is_the_published_one() -> None:
    """AES-256-GCM, test case 14 (McGrew & Viega): a block of zeros under zero key and nonce: cea7403d..."""
    vector = np.zeros(2, dtype=np.uint64)
    keystream.apply(vector, [(bytes(32), True)])
    assert vector.astype("<u8").tobytes().hex() == "cea7403d4d606b6e074ec5d3baf39d18"


@pytest.mark.parametrize(
    "vector",
    [np.zeros(4, dtype=np.int64), np.zeros((2, 2), dtype=np.uint64), np.zeros(4, dtype=np.uint64)[::2]],
)
def test_a_vector_that_cannot_be_masked_in_place_is_refused(vector: np.ndarray) -> None:
    with pytest.raises(ValueError, match="contiguous"):
        keystream.apply(vector, [(bytes(32), True)])
    with pytest.raises(ValueError, match="32 bytes"):
        keystream.apply(np.zeros(2, dtype=np.uint64), [(bytes(16), True)])


# Job 0123456789abcdef0123456789abcdef; branches a, b, c with X25519 private keys 32 x 01, 02, 03 and Ed25519 seeds
# 32 x 11, 12, 13; round 1, all three, 4 words. Made once by this code, and kept: another implementation can check.
VECTORS = {
    "x25519 of a": "a4e09292b651c278b9772c569f5fa9bb13d906b46ab68c9df9dc2b4409f8a209",
    "x25519 of b": "ce8d3ad1ccb633ec7b70c17814a5c76ecd029685050d344745ba05870e587d59",
    "x25519 of c": "5dfedd3b6bd47f6fa28ee15d969d5bb0ea53774d488bdaf9df1c6e0124b3ef22",
    # Ed25519 over "sfumato-key-share-v1\0" and {"branch":"a","job_id":"0123...","x25519":"pOCSkrZR...="}
    "signature of a": "f6f8d7bd790fb8546d709b39d229a8f8233c866719453b5979dbf07fc1701773"
    "9ff5c7e74d17adc579aa1cc0f8f6ff427efba801482f527c10575a71cffebf08",
    # SHA-256 of "sfumato-roster-v1\0" and [{"branch":"a","x25519":"pOCSkrZR...="}, ...]
    "roster": "478b6d142a9dab723e4ec6e8c0e952073e92e76b59d7dbc0174f0b41084e579a",
    # SHA-256 of "sfumato-set-v1\0" and ["a","b","c"]
    "set": "856f38ba9a4e8b69e638d7c458264e68ed165ba29158140927a436ab4eebb092",
    "secret of a and b": "2ed76ab549b1e73c031eb49c9448f0798aea81b698279a0c3dc3e49fbfc4b953",
    # HKDF-SHA256, no salt, info "sfumato-mask-v1\0" and
    # {"job_id":"0123...","length":4,"pair":["a","b"],"roster":"478b...","round":1,"set":"856f..."}
    "key of a and b": "1abb13691151c4968893a500b167ddc2b208cdf499b8ea5e8303c5cd3f308d85",
    "key of a and c": "8c0c9b2de0ac907424c483ec105a25d4ddfe48234559550ea6e4105e9cda5770",
    # the masks, little-endian: a adds both its streams, b subtracts a's and adds c's, c subtracts both
    "mask of a": "4c701553315f6337c4b44d6a2898100836c2b36de8bb7ed8cc262f0a71cbac88",
    "mask of b": "43d54164e5fe10a5f7732f0d6005e083818c8dabb0b161accadaec1241e9039d",
    "mask of c": "71baa848e9a18b2345d7828877620f7449b1bee666921f7b6afee3e24d4b4fda",
}


def known() -> dict[str, JobKey]:
    return {
        n: JobKey(
            JOB,
            n,
            X25519PrivateKey.from_private_bytes(bytes([i]) * 32),
            Ed25519PrivateKey.from_private_bytes(bytes([16 + i]) * 32),
        )
        for i, n in enumerate("abc", 1)
    }


def test_our_keys_and_masks_are_the_ones_written_down() -> None:
    keys = known()
    pinned = {
        n: Ed25519PrivateKey.from_private_bytes(bytes([16 + i]) * 32).public_key()
        for i, n in enumerate("abc", 1)
    }
    shares = [k.share for k in keys.values()]
    roster = check_roster(shares, pinned, JOB, shares[0])
    found = {f"x25519 of {s.branch}": base64.b64decode(s.x25519).hex() for s in shares}
    found |= {"signature of a": base64.b64decode(shares[0].signature).hex()}
    found |= {"roster": roster.hash, "set": set_hash("abc")}
    found["secret of a and b"] = keys["a"].agree(roster.keys["b"]).hex()
    for n in "bc":
        found[f"key of a and {n}"] = Pairing(keys["a"], roster)._key(n, 1, set_hash("abc"), 4).hex()
    for n in "abc":
        vector = np.zeros(4, dtype=np.uint64)
        Pairing(keys[n], roster).mask(vector, round_=1, members=["a", "b", "c"])
        found[f"mask of {n}"] = vector.astype("<u8").tobytes().hex()
    assert found == VECTORS


def test_the_vectors_follow_from_the_standards_alone() -> None:
    """HKDF spelled out from HMAC (RFC 5869), JSON spelled out by hand, plain AES-CTR: no line of ours."""
    info = b'sfumato-mask-v1\0{"job_id":"%s","length":4,"pair":["a","%s"],"roster":"%s","round":1,"set":"%s"}'
    public = {n: base64.b64encode(bytes.fromhex(VECTORS[f"x25519 of {n}"])).decode() for n in "abc"}
    listed = ",".join(f'{{"branch":"{n}","x25519":"{public[n]}"}}' for n in "abc")
    roster = hashlib.sha256(b"sfumato-roster-v1\0" + f"[{listed}]".encode()).hexdigest()
    named = hashlib.sha256(b'sfumato-set-v1\0["a","b","c"]').hexdigest()
    mask = np.zeros(4, dtype=np.uint64)
    for n, private in (("b", bytes([2]) * 32), ("c", bytes([3]) * 32)):
        a = X25519PublicKey.from_public_bytes(bytes.fromhex(VECTORS["x25519 of a"]))
        secret = X25519PrivateKey.from_private_bytes(private).exchange(a)
        extracted = hmac.digest(bytes(32), secret, "sha256")
        filled = info % (JOB.encode(), n.encode(), roster.encode(), named.encode())
        key = hmac.digest(extracted, filled + b"\x01", "sha256")
        assert key.hex() == VECTORS[f"key of a and {n}"]
        stream = Cipher(AES(key), CTR((2).to_bytes(16, "big"))).encryptor().update(bytes(32))
        mask += np.frombuffer(stream, dtype="<u8")
    assert mask.astype("<u8").tobytes().hex() == VECTORS["mask of a"]


# --- the attacker ------------------------------------------------------------------------------------------


def test_a_substituted_key_is_refused() -> None:
    """The coordinator puts in a key of its own: unsigned, signed by itself, or under another branch's signature."""
    ring = Ring(4)
    public = base64.b64encode(X25519PrivateKey.generate().public_key().public_bytes_raw()).decode()
    mallory = JobKey.fresh(JOB, "b001", Ed25519PrivateKey.generate()).share
    others = [s for s in ring.shares if s.branch != "b001"]
    ring.refused([ring.shares[1].model_copy(update={"x25519": public}), *others])
    ring.refused([mallory, *others])
    ring.refused([ring.shares[2].model_copy(update={"branch": "b001"}), *others])
    ring.refused([ring.shares[1].model_copy(update={"signature": ring.shares[2].signature}), *others])


def test_another_jobs_share_is_refused() -> None:
    ring, earlier = Ring(4), Ring(4, job_id=OTHER_JOB)
    ring.refused([*ring.shares[:3], earlier.shares[3]])


def test_an_unknown_branch_or_a_name_twice_is_refused() -> None:
    ring = Ring(4)
    fresh = JobKey.fresh(JOB, "b001", ring.signers["b001"]).share
    ring.refused([*ring.shares, fresh])
    ring.refused([*ring.shares, ring.shares[1]])
    ring.refused([*ring.shares, JobKey.fresh(JOB, "nobody", Ed25519PrivateKey.generate()).share])


def test_the_own_share_must_be_there_unchanged() -> None:
    """Missing, or an older one of this very branch, signed for this very job."""
    ring = Ring(4)
    ring.refused(ring.shares[1:])
    ring.refused([JobKey.fresh(JOB, "b000", ring.signers["b000"]).share, *ring.shares[1:]])


def test_one_key_under_two_names_is_refused() -> None:
    ring = Ring(4)
    private = X25519PrivateKey.from_private_bytes(seed("dh", "", "b002"))
    copied = JobKey(JOB, "b001", private, ring.signers["b001"]).share
    ring.refused([ring.shares[0], copied, *ring.shares[2:]])


# RFC 7748, section 6.1 asks for the check; the points of order 1, 2, 4 and 8, and p and p + 1, which mean 0 and 1.
LOW_ORDER = [
    "0000000000000000000000000000000000000000000000000000000000000000",
    "0100000000000000000000000000000000000000000000000000000000000000",
    "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
    "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
]


@pytest.mark.parametrize("point", LOW_ORDER)
def test_a_point_of_low_order_is_refused(point: str) -> None:
    """A branch that signs one would make the pair's secret a constant that everyone knows."""

    class Fixed:
        def public_key(self) -> X25519PublicKey:
            return X25519PublicKey.from_public_bytes(bytes.fromhex(point))

    ring = Ring(4)
    low = JobKey(JOB, "b003", Fixed(), ring.signers["b003"]).share  # type: ignore[arg-type]
    ring.refused([*ring.shares[:3], low])


@pytest.mark.parametrize(
    ("members", "code"),
    [
        (["b000", "b001"], RefusalCode.SET_TOO_SMALL),
        (["b000"], RefusalCode.SET_TOO_SMALL),
        ([], RefusalCode.BAD_FRAME),
        (["b001", "b002", "b003"], RefusalCode.BAD_FRAME),
        (["b001", "b000", "b002"], RefusalCode.BAD_FRAME),
        (["b000", "b001", "b001", "b002"], RefusalCode.BAD_FRAME),
        (["b000", "b001", "b002", "b004"], RefusalCode.UNKNOWN_ROSTER),
    ],
)
def test_a_wrong_set_is_refused_and_the_vector_untouched(members: list[str], code: RefusalCode) -> None:
    vector = np.arange(5, dtype=np.uint64)
    with pytest.raises(Refusal) as refusal:
        Ring(4).pairing("b000").mask(vector, round_=1, members=members)
    assert refusal.value.code == code
    assert vector.tolist() == [0, 1, 2, 3, 4]


def test_a_mask_is_used_once() -> None:
    """Two vectors under one mask give away their difference. The key remembers, even if the roster comes again."""
    ring = Ring(4)
    pairing, vector = ring.pairing("b000"), np.zeros(3, dtype=np.uint64)
    for _ in range(2):
        pairing.check(round_=1, members=ring.names)  # to ask is not to use
    pairing.mask(vector, round_=1, members=ring.names)
    for again in (pairing, ring.pairing("b000")):
        with pytest.raises(Refusal) as refusal:
            again.mask(vector, round_=1, members=ring.names)
        assert refusal.value.code == RefusalCode.ROUND_ALREADY_ANSWERED
        with pytest.raises(Refusal) as refusal:
            again.check(round_=1, members=ring.names)
        assert refusal.value.code == RefusalCode.ROUND_ALREADY_ANSWERED
    pairing.mask(vector, round_=1, members=ring.names[:3])
    pairing.mask(vector, round_=2, members=ring.names)


def test_a_pairing_is_of_one_key_and_its_roster() -> None:
    ring = Ring(4)
    roster = check_roster(ring.shares, ring.pinned, JOB, ring.shares[0])
    assert roster.names == tuple(ring.names)
    for key in (Ring(4, tag="restarted").keys["b000"], Ring(4, job_id=OTHER_JOB).keys["b000"]):
        with pytest.raises(ValueError, match="this key"):
            Pairing(key, roster)


def test_secrets_are_neither_shown_nor_copied() -> None:
    ring = Ring(3)
    private = seed("dh", "", "b000")
    for secret in (ring.keys["b000"], ring.pairing("b000")):
        assert private.hex() not in repr(secret) and repr(private) not in repr(secret)
        for attempt in (copy.copy, copy.deepcopy, pickle.dumps):
            with pytest.raises(TypeError, match="never copied"):
                attempt(secret)
    assert JobKey.fresh(JOB, "b000", ring.signers["b000"]).share != ring.shares[0]


def test_hashes_do_not_depend_on_order() -> None:
    ring = Ring(4)
    assert roster_hash(ring.shares) == roster_hash(ring.shares[::-1]) != roster_hash(ring.shares[:3])
    assert set_hash(["a", "b"]) == set_hash(["b", "a"]) != set_hash(["ab"])


# --- the mechanism -----------------------------------------------------------------------------------------


def test_the_cost_of_a_sum_is_known_beforehand() -> None:
    assert SumNoise(2.0, members=5, colluders=2).event == GaussianDpEvent(2.0)
    sampled = SumNoise(2.0, times=3, sample_rate=0.1).event
    assert isinstance(sampled, PoissonSampledDpEvent) and sampled.event == GaussianDpEvent(2.0)
    assert np.isclose(sampled.sampling_probability, 0.271)
    assert SumNoise(0.5, times=3, members=5, colluders=2).share_variance(7) == -(-111 // 3)  # 10.5^2 = 110.25
    assert SumNoise(3.0).total_std(GRID, 2.0) == 6.0
    assert SumNoise(3.0, times=2, members=4, colluders=0).total_std(GRID, 1.0) == 6.0


@pytest.mark.parametrize(
    "wrong",
    [
        {"noise_multiplier": 0.0},
        {"noise_multiplier": float("nan")},
        {"noise_multiplier": float("inf")},
        {"times": 0},
        {"sample_rate": 0.0},
        {"sample_rate": 1.1},
        {"members": 3, "colluders": 3},
        {"colluders": -1},
        {"members": 0},
    ],
)
def test_impossible_noise_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="Expected"):
        SumNoise(**{"noise_multiplier": 1.0, **wrong})  # type: ignore[arg-type]


def test_a_sum_more_sensitive_than_declared_is_not_released() -> None:
    rng = SecureRandom(seed("rng"))
    clipped = BoundedSum.of_clipped(np.ones(4) / 2, 1.0, 1)
    with pytest.raises(ValueError, match="declared"):
        GaussianSum(lambda: clipped, SumNoise(1.0), GRID, rng).run()
    assert GaussianSum(lambda: clipped, SumNoise(1.0), clipped.l2_sensitivity, rng).run().dtype == np.int64


def test_nothing_is_computed_before_it_is_charged() -> None:
    def never() -> BoundedSum:
        raise AssertionError("computed")

    mechanism = GaussianSum(never, SumNoise(1.0), GRID, SecureRandom(seed("rng")))
    assert mechanism.event == GaussianDpEvent(1.0)
    assert "private" not in repr(mechanism)
