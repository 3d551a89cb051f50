"""Texts as numbers: words and pairs of neighbours, hashed into buckets. One way for every language, without a list.

A text is normalised (Unicode NFKC, lower case) and cut into tokens: a run of letters and digits is one, and so is
each sign of a script that is written without blanks (Chinese, Japanese, Korean), and each mark. A bucket has the
square root of how often its tokens and pairs stand there, and the whole is scaled to length 1 (feature hashing,
Weinberger et al. 2009, without the signs). The hash is public: what is in a bucket can be tried, but not read off.
"""

import re
import unicodedata
import zlib
from collections.abc import Iterable, Sequence
from itertools import chain, repeat
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

_SIGNS = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff"
_TOKEN = re.compile(rf"[{_SIGNS}]|[^\W_{_SIGNS}]+|[^\w\s]")
_FACTORS = np.array([0xBF58476D1CE4E5B9, 0x94D049BB133111EB], dtype=np.uint64)
_PAIR = np.uint64(0x9E3779B97F4A7C15)

Hashes = npt.NDArray[np.uint64]


def tokens(text: str) -> list[str]:
    """The text's tokens, in their order."""
    return _TOKEN.findall(unicodedata.normalize("NFKC", text).lower())


def newest(texts: Any, ratings: Any = None) -> tuple[list[str | None], npt.NDArray[np.float64]]:
    """Each customer's newest text that is not blank, and the rating beside it; None and NaN where there is none.

    Of arrow columns with one value a customer, or lists with the newest first that run side by side.
    """
    found, beside = list[str | None](), list[float]()
    rated = repeat(None, len(texts)) if ratings is None else ratings.to_pylist()
    for written, rating in zip(texts.to_pylist(), rated, strict=True):
        rows = written if isinstance(written, list) else [written]
        place = next((i for i, t in enumerate(rows) if t is not None and t.strip()), None)
        found.append(None if place is None else rows[place])
        of_it = None if place is None or rating is None else rating[place] if rows is written else rating
        beside.append(float("nan") if of_it is None else float(of_it))
    return found, np.array(beside, dtype=np.float64)


def hashed(texts: Sequence[str], buckets: int) -> Any:
    """csr_array float64 [texts, buckets], each row of l2 norm 1, or 0 where a text has no token."""
    cut = [tokens(text) for text in texts]
    text_of = np.repeat(np.arange(len(cut)), np.array([len(c) for c in cut], dtype=np.int64))
    single = np.fromiter(map(_Codes().__getitem__, chain.from_iterable(cut)), np.uint64, text_of.size)
    pairs = single[:-1] * _PAIR + single[1:]
    inside = text_of[1:] == text_of[:-1]
    rows = np.concatenate([text_of, text_of[1:][inside]])
    places = _mixed(np.concatenate([single, pairs[inside]])) % np.uint64(buckets)
    counts = csr_array((np.ones(rows.size), (rows, places.astype(np.int64))), shape=(len(cut), buckets))
    counts.data = np.sqrt(counts.data)
    lengths = np.sqrt(np.asarray(counts.power(2).sum(axis=1)).ravel())
    counts.data /= np.repeat(np.maximum(lengths, 1.0), np.diff(counts.indptr))
    return counts


class _Codes(dict[str, int]):
    """CRC-32 of a token's UTF-8, each computed once."""

    def __missing__(self, token: str) -> int:
        self[token] = zlib.crc32(token.encode("utf-8", "replace"))
        return self[token]


def _mixed(values: Hashes) -> Hashes:
    """The finaliser of splitmix64 (Steele, Lea & Flood 2014): buckets without a pattern."""
    for shift, factor in zip((np.uint64(30), np.uint64(27)), _FACTORS, strict=True):
        values = (values ^ (values >> shift)) * factor
    return values ^ (values >> np.uint64(31))


class Keywords:
    """Which texts name one of some words or phrases: whole tokens next to each other, so that "app" is not in
    "happy". Raises ValueError on a keyword without a token."""

    def __init__(self, keywords: Iterable[str]) -> None:
        cut = [tokens(k) for k in keywords]
        if not all(cut):
            raise ValueError("a keyword has no letter, digit or mark")
        self._phrases = tuple(_spaced(c) for c in cut)

    def named_in(self, texts: Sequence[str]) -> npt.NDArray[np.bool_]:
        """bool [texts]."""
        spaced = (_spaced(tokens(text)) for text in texts)
        return np.fromiter((any(p in s for p in self._phrases) for s in spaced), np.bool_, len(texts))


def _spaced(cut: Sequence[str]) -> str:
    return f" {' '.join(cut)} "
