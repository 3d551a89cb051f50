"""Standing questions at the vault: what this branch told of each customer, and what is new since.

After each period the tokens, cells and changes left lie sealed on the disk (AES-256-GCM, a key of its own), and the
charge in the ledger names their SHA-256. The next period is answered from those very bytes or not at all: from
anything else a customer could be told of more often than the bound counts.
"""

import hashlib
import os
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from sfumato.client.vault.customers import WarmData
from sfumato.common.analyses.standing import NOWHERE, Standing, Told
from sfumato.common.contributions import Cells
from sfumato.common.errors import Refusal, RefusalCode
from sfumato.common.private_files import private_directory, replace
from sfumato.privacy.keys import KeySource

NONCE = 12
KEY = "told"
Tokens = npt.NDArray[np.bytes_]


@dataclass(frozen=True, repr=False)
class Remembered:
    """What was told of whom; the tokens are sorted."""

    tokens: Tokens
    told: Told

    def of(self, tokens: Tokens, nothing: Told) -> Told:
        """In the order of `tokens`, which hold all of ours; of the others, `nothing`."""
        place = np.searchsorted(tokens, self.tokens)
        columns = {}
        for name in Told.__dataclass_fields__:
            columns[name] = getattr(nothing, name).copy()
            columns[name][place] = getattr(self.told, name)
        return Told(**columns)


class Memory:
    """A folder (0700) with a sealed file for each standing job's latest periods."""

    def __init__(self, folder: Path, keyring: KeySource) -> None:
        self._folder = folder
        self._keyring = keyring

    def write(self, job_id: str, period: int, what: Remembered) -> str:
        """Durable when it returns. The SHA-256 of the file, hex."""
        private_directory(self._folder)
        columns = {"token": pa.array(what.tokens.tolist(), pa.binary())}
        columns |= {name: pa.array(getattr(what.told, name)) for name in Told.__dataclass_fields__}
        table, sink = pa.table(columns), pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(table)
        nonce = os.urandom(NONCE)
        sealed = nonce + self._cipher.encrypt(nonce, sink.getvalue().to_pybytes(), _bound_to(job_id, period))
        replace(self._path(job_id, period), sealed)
        return hashlib.sha256(sealed).hexdigest()

    def read(self, job_id: str, period: int, digest: str) -> Remembered:
        """What was written. Raises Refusal(MEMORY_LOST) unless it is there and is what the ledger names."""
        try:
            sealed = self._path(job_id, period).read_bytes()
            if hashlib.sha256(sealed).hexdigest() != digest:
                raise Refusal(RefusalCode.MEMORY_LOST)
            data = self._cipher.decrypt(sealed[:NONCE], sealed[NONCE:], _bound_to(job_id, period))
        except (OSError, InvalidTag):
            raise Refusal(RefusalCode.MEMORY_LOST) from None
        table = pa.ipc.open_stream(data).read_all()
        told = Told(**{name: np.array(table[name]) for name in Told.__dataclass_fields__})
        return Remembered(np.array(table["token"].to_pylist(), dtype=np.bytes_), told)

    def keep(self, job_ids: Container[str]) -> None:
        """Of these jobs alone: nobody can ask the others any more."""
        for path in self._folder.glob("*-*"):
            if path.name.partition("-")[0] not in job_ids:
                path.unlink(missing_ok=True)

    def forget(self, job_id: str, *, before: int | None = None) -> None:
        """The job's files; of the periods before this one, if one is given."""
        for path in self._folder.glob(f"{job_id}-*"):
            if before is None or int(path.name.rpartition("-")[2]) < before:
                path.unlink(missing_ok=True)

    @property
    def _cipher(self) -> AESGCM:
        return AESGCM(self._keyring.data_key(KEY))

    def _path(self, job_id: str, period: int) -> Path:
        return self._folder / f"{job_id}-{period:04}"


def _bound_to(job_id: str, period: int) -> bytes:
    return f"sfumato-told-v1 {job_id} {period}".encode()


@dataclass(frozen=True, repr=False)
class News:
    """One period's contributions of so many customers, some at a time, and what is remembered after it."""

    customers: int
    part: Callable[[slice], Cells]
    digest: str


class StandingAnswers:
    """What is new in each period. `reaches` says to which day the branch's data reach."""

    def __init__(self, data: WarmData, memory: Memory, reaches: Callable[[], date | None]) -> None:
        self._data = data
        self._memory = memory
        self._reaches = reaches

    @property
    def reaches(self) -> date | None:
        return self._reaches()

    def require(self, day: date | None) -> None:
        """Raises Refusal(NOT_YET) unless the data reach this day; None: the contract's, which they do."""
        reaches = self._reaches()
        if day is not None and (reaches is None or reaches < day):
            raise Refusal(RefusalCode.NOT_YET)

    def news(self, job_id: str, analysis: Standing, period: int, charged: Mapping[int, str]) -> News:
        """`charged`: by period what was remembered after it, as the ledger has it.

        Raises Refusal: NOT_YET where the data do not reach the period's day, MEMORY_LOST.
        """
        self.require(analysis.days[period])
        last = max((p for p in charged if p < period), default=None)
        was = None if last is None else self._memory.read(job_id, last, charged[last])
        if period in charged:  # asked again: what was told stands, whatever was loaded since
            digest = charged[period]
            now = self._memory.read(job_id, period, digest)
        else:
            now = self._tell(analysis, period, was)
            digest = self._memory.write(job_id, period, now)
            if last is not None:
                self._memory.forget(job_id, before=last)
        before = _before(analysis, was, now.tokens)
        apart = None if last is None else period - last

        def part(some: slice) -> Cells:
            return analysis.paths.contribution(period, apart, before[some], now.told[some])

        return News(len(now.tokens), part, digest)

    def forget(self, job_id: str) -> None:
        self._memory.forget(job_id)

    def _tell(self, analysis: Standing, period: int, was: Remembered | None) -> Remembered:
        """Of whoever was told of before or is here now."""
        states = analysis.states(period, self._data.columns(analysis.columns, analysis.days[period]))
        here = np.array(self._data.tokens, dtype=np.bytes_)
        tokens = np.unique(here) if was is None else np.union1d(here, was.tokens)
        everyone = np.full(len(tokens), NOWHERE, dtype=np.int64)
        everyone[np.searchsorted(tokens, here)] = states
        return Remembered(tokens, analysis.paths.tell(_before(analysis, was, tokens), everyone))


def _before(analysis: Standing, was: Remembered | None, tokens: Tokens) -> Told:
    nothing = analysis.paths.nothing(len(tokens))
    return nothing if was is None else was.of(tokens, nothing)
