"""The noise source. Statistical tests have fixed seeds; the stated rate is that of a false alarm per new seed."""

import copy
import os
import pickle
from fractions import Fraction

import numpy as np
import pytest
from scipy import stats

from sfumato.privacy.noise import SecureRandom

SEED = bytes(range(32))
ALARM = 1e-4


@pytest.fixture
def rng() -> SecureRandom:
    return SecureRandom(SEED)


def test_the_keystream_is_aes_256_ctr_as_published() -> None:
    """FIPS 197, C.3: AES-256 of 00112233..ff under key 000102..1f; and our stream starts with counter 0."""
    from cryptography.hazmat.primitives.ciphers import Cipher
    from cryptography.hazmat.primitives.ciphers.algorithms import AES
    from cryptography.hazmat.primitives.ciphers.modes import ECB

    ecb = Cipher(AES(SEED), ECB()).encryptor()
    assert (
        ecb.update(bytes.fromhex("00112233445566778899aabbccddeeff")).hex()
        == "8ea2b7ca516745bfeafc49904b496089"
    )
    counters = b"".join(i.to_bytes(16, "big") for i in range(4))
    assert SecureRandom(SEED).keystream(64) == ecb.update(counters)


def test_the_keystream_of_the_zero_key_is_the_known_one() -> None:
    """AES-256, key and block of zeros (NIST AESAVS, the well-known dc95c078...)."""
    assert SecureRandom(bytes(32)).keystream(16).hex() == "dc95c078a2408989ad48a21492842087"


def test_a_stream_goes_on_and_two_streams_differ() -> None:
    one, two = SecureRandom(SEED), SecureRandom(SEED)
    assert one.keystream(7) + one.keystream(25) == two.keystream(32)
    assert SecureRandom().keystream(32) != SecureRandom().keystream(32)


@pytest.mark.parametrize("seed", [b"", bytes(31), bytes(33)])
def test_a_seed_of_another_length_is_refused(seed: bytes) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        SecureRandom(seed)


def test_a_stream_is_never_copied_or_carried_over_a_fork(
    rng: SecureRandom, monkeypatch: pytest.MonkeyPatch
) -> None:
    for attempt in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="never copied"):
            attempt(rng)
    monkeypatch.setattr(os, "getpid", lambda: -1)
    with pytest.raises(RuntimeError, match="process"):
        rng.keystream(1)


@pytest.mark.statistical
@pytest.mark.parametrize("std", [1.0, 7.5])
def test_gaussian_is_normal(rng: SecureRandom, std: float) -> None:
    """KS on 200,000 draws (sees a std wrong by 1%), variance by chi-squared. False alarm 1e-4 each."""
    x = rng.gaussian(200_000, std)
    assert x.dtype == np.float64
    assert stats.kstest(x, "norm", args=(0, std)).pvalue > ALARM
    assert (
        stats.kstest(x, "norm", args=(0, std * 1.01)).pvalue < stats.kstest(x, "norm", args=(0, std)).pvalue
    )
    low, high = stats.chi2.ppf([ALARM / 2, 1 - ALARM / 2], x.size)
    assert low < (x**2).sum() / std**2 < high


@pytest.mark.statistical
def test_gaussian_draws_are_uncorrelated(rng: SecureRandom) -> None:
    """Lags 1 to 8 and halves (Box-Muller partners): |r| sqrt(n) < 4.4 each, false alarm 1e-4 in all."""
    x = rng.gaussian(200_000, 1.0)
    pairs = [(x[:-k], x[k:]) for k in range(1, 9)] + [(x[:100_000], x[100_000:])]
    pairs += [(np.abs(a), np.abs(b)) for a, b in pairs]
    for a, b in pairs:
        assert abs(np.corrcoef(a, b)[0, 1]) * np.sqrt(len(a)) < 4.4


def test_gaussian_is_the_naive_formula() -> None:
    words = np.frombuffer(SecureRandom(SEED).keystream(8 * 4 * 5), dtype="<u8").reshape(2, 10)
    u = [[(int(w) >> 11) for w in row] for row in words]
    naive = []
    for a, b in zip(*u, strict=True):
        radius = np.sqrt(-2 * np.log((a + 1) / 2**53))
        naive.append((radius * np.cos(2 * np.pi * b / 2**53), radius * np.sin(2 * np.pi * b / 2**53)))
    flat = [c for c, _ in naive] + [s for _, s in naive]
    expected = [sum(flat[i + 5 * j] for j in range(4)) / 2 * 3.0 for i in range(5)]
    assert np.allclose(SecureRandom(SEED).gaussian(5, 3.0), expected, rtol=1e-12)


@pytest.mark.parametrize("std", [-1.0, float("nan"), float("inf")])
def test_gaussian_refuses_a_bad_std(rng: SecureRandom, std: float) -> None:
    with pytest.raises(ValueError, match="std"):
        rng.gaussian(3, std)


@pytest.mark.statistical
def test_poisson_sample_takes_each_index_independently(rng: SecureRandom) -> None:
    """Inclusion by index, batch size as binomial, pairs of neighbours. False alarm 1e-4 each."""
    population, rate, rounds = 40, 0.3, 20_000
    taken = np.zeros((rounds, population), dtype=np.int64)
    for row in taken:
        row[rng.poisson_sample(population, rate)] = 1
    chi = ((taken.sum(0) - rounds * rate) ** 2 / (rounds * rate * (1 - rate))).sum()
    assert stats.chi2.sf(chi, population) > ALARM
    sizes = np.bincount(taken.sum(1), minlength=population + 1)
    expected = rounds * stats.binom.pmf(np.arange(population + 1), population, rate)
    keep = expected > 10
    assert (
        stats.chisquare(sizes[keep], expected[keep] * sizes[keep].sum() / expected[keep].sum()).pvalue > ALARM
    )
    both = (taken[:, :-1] * taken[:, 1:]).sum()
    assert stats.binomtest(int(both), rounds * (population - 1), rate**2).pvalue > ALARM


def test_poisson_sample_at_the_ends(rng: SecureRandom) -> None:
    assert rng.poisson_sample(5, 0.0).tolist() == []
    assert rng.poisson_sample(5, 1.0).tolist() == [0, 1, 2, 3, 4]
    assert rng.poisson_sample(0, 0.5).tolist() == []
    assert rng.poisson_sample(3, 0.5).dtype == np.int64
    for rate in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="rate"):
            rng.poisson_sample(5, rate)


def test_poisson_sample_over_more_than_one_chunk_is_the_naive_comparison() -> None:
    n = (1 << 20) + 1000
    words = np.frombuffer(SecureRandom(SEED).keystream(8 * n), dtype="<u8")
    naive = [
        i for i, w in enumerate(words[-3000:].tolist(), n - 3000) if Fraction(w >> 11, 2**53) < Fraction(0.01)
    ]
    sample = SecureRandom(SEED).poisson_sample(n, 0.01)
    assert sample[sample >= n - 3000].tolist() == naive


@pytest.mark.statistical
@pytest.mark.parametrize("scale", [0.4, 1.0, 5.3, 1 / 0.2])
def test_discrete_laplace_has_its_mass_function(scale: float) -> None:
    """Chi-squared against (1-p)/(1+p) p^|x|, and symmetry by binomial test. False alarm 1e-4 each."""
    x = SecureRandom(SEED).discrete_laplace(20_000, scale)
    assert x.dtype == np.int64
    p = np.exp(-1 / scale)
    reach = int(np.ceil(scale * 6))
    values = np.arange(-reach, reach + 1)
    expected = x.size * (1 - p) / (1 + p) * p ** np.abs(values)
    counts = np.array([(x == v).sum() for v in values])
    tail = [(np.abs(x) > reach).sum(), x.size - expected.sum()]
    keep = expected > 8
    observed = np.append(counts[keep], counts[~keep].sum() + tail[0])
    wanted = np.append(expected[keep], expected[~keep].sum() + tail[1])
    assert stats.chisquare(observed, wanted * observed.sum() / wanted.sum()).pvalue > ALARM
    assert stats.binomtest(int((x > 0).sum()), int((x != 0).sum())).pvalue > ALARM


def test_a_wrong_discrete_laplace_would_be_seen() -> None:
    """Rounded continuous Laplace, the usual mistake: its mass at zero is too small, and the test above's sees it."""
    x = np.round(np.random.default_rng(0).laplace(0, 1.0, 20_000))
    p = np.exp(-1.0)
    assert stats.binomtest(int((x == 0).sum()), x.size, (1 - p) / (1 + p)).pvalue < ALARM


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), 2.0**41])
def test_discrete_laplace_refuses_a_bad_scale(rng: SecureRandom, scale: float) -> None:
    with pytest.raises(ValueError, match="scale"):
        rng.discrete_laplace(1, scale)


@pytest.mark.statistical
def test_below_is_uniform(rng: SecureRandom) -> None:
    for bound in (1, 2, 3, 7, 257):
        counts = np.bincount([rng.below(bound) for _ in range(50 * bound)], minlength=bound)
        assert bound == 1 or stats.chisquare(counts).pvalue > ALARM
    assert 0 <= rng.below(10**40) < 10**40
    with pytest.raises(ValueError, match="bound"):
        rng.below(0)


@pytest.mark.statistical
def test_permutation_is_uniform(rng: SecureRandom) -> None:
    seen = [tuple(rng.permutation(3).tolist()) for _ in range(6000)]
    assert stats.chisquare([seen.count(p) for p in sorted(set(seen))]).pvalue > ALARM
    assert len(set(seen)) == 6
    assert sorted(rng.permutation(1000).tolist()) == list(range(1000))
