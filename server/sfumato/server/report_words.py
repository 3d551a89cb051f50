"""How the report speaks: numbers with no more digits than their interval supports, and sentences for people.

Rounding follows the Particle Data Group (Review of Particle Physics, 5.3): an interval's half width keeps two
digits when it begins with 10 to 35 and one digit else, and the value stops at the same place. Interval ends
are rounded outwards, spending upwards, what is left downwards, so no rounding flatters.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sfumato.common.contract import Contract
from sfumato.common.errors import RefusalCode

NARROW_SPACE = "\u202f"
UNKNOWN = "not known"
_SLACK = 1e-9  # what binary fractions are off by: 0.3 must not be rounded outwards to 0.4


def number(value: float | None, decimals: int = 0) -> str:
    """Fixed decimals, a point for the fraction, narrow spaces between thousands, a true minus sign."""
    if value is None or not math.isfinite(value):
        return UNKNOWN
    text = f"{value:,.{max(0, decimals)}f}".replace(",", NARROW_SPACE)
    if not text.strip("-0." + NARROW_SPACE):
        text = text.removeprefix("-")
    return text.replace("-", "\u2212")


def rounded_up(value: float | None, decimals: int = 2) -> str:
    """For what was spent: the next higher number of that many decimals."""
    if value is None or not math.isfinite(value):
        return UNKNOWN
    return number(math.ceil(value * 10**decimals - _SLACK) / 10**decimals, decimals)


def rounded_down(value: float | None, decimals: int = 2) -> str:
    """For what is left: the next lower number of that many decimals."""
    if value is None or not math.isfinite(value):
        return UNKNOWN
    return number(math.floor(value * 10**decimals + _SLACK) / 10**decimals, decimals)


def size_text(count: int | None) -> str:
    """Bytes as people read them: 12 B, 3.4 kB, 1.2 MB (powers of ten)."""
    if count is None:
        return UNKNOWN
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            return f"{number(size, 0 if unit == 'B' or size >= 100 else 1)}{NARROW_SPACE}{unit}"
        size /= 1000
    raise AssertionError("unreachable")


def duration(seconds: float | None) -> str:
    """Whole seconds below two minutes, then minutes, then hours."""
    if seconds is None or not math.isfinite(seconds):
        return UNKNOWN
    if seconds < 120:
        return f"{number(seconds)} s"
    if seconds < 7200:
        return f"{number(seconds / 60)} min"
    return f"{number(seconds / 3600, 1)} h"


@dataclass(frozen=True)
class Estimate:
    """A value with its interval, in the unit it is shown in (`%`, `×` or none)."""

    value: float
    low: float
    high: float
    unit: str = ""

    @classmethod
    def of(cls, entry: Any, *, unit: str = "") -> "Estimate | None":
        """From a metric {"value", "low", "high"}; None when it is absent, partial or not finite."""
        if not isinstance(entry, Mapping):
            return None
        found = [entry.get(key) for key in ("value", "low", "high")]
        if not all(isinstance(x, int | float) and math.isfinite(x) for x in found):
            return None
        value, low, high = (float(x) for x in found if x is not None)
        factor = 100.0 if unit == "%" else 1.0
        return cls(value * factor, min(low, value) * factor, max(high, value) * factor, unit)

    def scaled(self, factor: float) -> "Estimate":
        return Estimate(self.value * factor, self.low * factor, self.high * factor, self.unit)

    @property
    def decimals(self) -> int:
        """Digits after the point that the interval supports; negative means tens, hundreds, ..."""
        half = (self.high - self.low) / 2
        if half <= 0:
            return 3
        return min(4, -math.floor(math.log10(half / 3.55) + _SLACK))

    @property
    def text(self) -> str:
        return self._ends(round(self.value / self._step)) + self._unit

    @property
    def interval(self) -> str:
        """'0.76 to 0.81', rounded outwards."""
        low = math.floor(self.low / self._step + _SLACK)
        high = math.ceil(self.high / self._step - _SLACK)
        return f"{self._ends(low)} to {self._ends(high)}{self._unit}"

    @property
    def full(self) -> str:
        return f"{self.text} ({self.interval})"

    @property
    def _step(self) -> float:
        return float(10.0 ** (-self.decimals))

    @property
    def _unit(self) -> str:
        return f"{NARROW_SPACE}{self.unit}" if self.unit else ""

    def _ends(self, steps: int) -> str:
        return number(steps * self._step, self.decimals)


@dataclass(frozen=True)
class Outcome:
    """What the label means, in words: the question, what a positive customer does, and the two groups."""

    question: str
    event: str
    positive: str
    negative: str


def outcome_of(contract: Contract | None) -> Outcome:
    """Words for the contract's label; of leaving when there is no contract, as a churn job asks for that."""
    label = contract.label if contract else None
    name = label.name if label else "churn"
    if re.search(r"churn|attri|exit|leav|left|cancel", name, re.IGNORECASE):
        return Outcome("Which customers will leave?", "really leave", "left", "stayed")
    if re.search(r"default|arrear|delinq", name, re.IGNORECASE):
        return Outcome("Which customers will default?", "really default", "defaulted", "paid")
    positive = label.positive if label and label.positive else "1"
    what = f"“{name} = {positive}”"
    return Outcome(f"Which customers will turn out {what}?", f"really be {what}", what, f"not {what}")


def odds(value: float) -> str:
    """A probability as 'one in N'."""
    return f"one in {number(1 / value)}" if value > 0 else "nil"


def power_of_ten(value: float) -> str:
    """1e-06 as '10⁻⁶', 2.5e-06 as '2.5 × 10⁻⁶'."""
    if value <= 0 or not math.isfinite(value):
        return number(value)
    exponent = math.floor(math.log10(value) + _SLACK)
    power = "10" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    mantissa = f"{value / 10**exponent:.3g}"
    return power if mantissa == "1" else f"{mantissa} × {power}"


def surest_guess(epsilon: float) -> float:
    """The most that a 50:50 guess on one customer's presence can rise to under epsilon, as a percentage.

    Posterior odds move by at most exp(epsilon) (Dwork & Roth 2014, 2.3), delta apart.
    """
    return 100.0 / (1.0 + math.exp(-epsilon))


ADVICE: dict[RefusalCode, str] = {
    RefusalCode.BAD_FRAME: "Install the same release of Sfumato at the branch and at the coordinator.",
    RefusalCode.BAD_SIGNATURE: "Check with the coordinator, by another channel, which key signs its jobs.",
    RefusalCode.EXPIRED: "Submit the job again; check the clocks of both machines.",
    RefusalCode.UNKNOWN_JOB: "The branch joined after the start: it can take part in the next job.",
    RefusalCode.NOT_APPROVED: "Have the branch's operator read the job and approve it, then submit it again.",
    RefusalCode.WRONG_CONTRACT: "Agree on one data contract, ingest by it at the branch, and submit again.",
    RefusalCode.OVER_BUDGET: "Ask for a smaller epsilon, or wait for the branch's next budget period.",
    RefusalCode.OVER_JOB_LIMIT: "Ask for a smaller epsilon, or have the branch raise its limit for one job.",
    RefusalCode.ROUND_OUT_OF_ORDER: "Look for a second coordinator driving this job; then submit it again.",
    RefusalCode.ROUND_ALREADY_ANSWERED: "Look for a second coordinator driving this job; then submit it again.",
    RefusalCode.BAD_VECTOR: "Install the same release of Sfumato at the branch and at the coordinator.",
    RefusalCode.BAD_ROSTER: "Give each branch the enrolled keys of all branches of the job, then submit it again.",
    RefusalCode.UNKNOWN_ROSTER: "The branch's vault was restarted in mid-run: submit the job again.",
    RefusalCode.SET_TOO_SMALL: "Bring more branches online, or agree on a smaller minimum set in the policies.",
    RefusalCode.SET_NOT_SMALLER: "Look for a second coordinator driving this job; then submit it again.",
    RefusalCode.OVER_JOB_PLAN: "Raise federation.repeats, or keep the branches online, and submit the job again.",
    RefusalCode.UNKNOWN_CHECKPOINT: "Send the proof again, from the size that this branch co-signed last.",
    RefusalCode.EQUIVOCATION: "Stop. Compare the coordinator's ledger with the branch's kept checkpoint first.",
    RefusalCode.NO_DATA: "Ingest the branch's customers, then submit the job again.",
    RefusalCode.NOT_YET: "Ask when the branch has loaded that day and said so (sfumato branch reach).",
    RefusalCode.MEMORY_LOST: "Go on without this branch, or stop the question and ask it anew.",
    RefusalCode.JOB_CLOSED: "Submit the job again: a closed job stays closed.",
    RefusalCode.FOREIGN_BUNDLE: "Someone sent other code than the approved app. Find out who before trying again.",
    RefusalCode.VAULT_UNREACHABLE: "Start the branch's vault and look at its log, then submit the job again.",
    RefusalCode.INTERNAL: "The branch's operator finds the cause in the branch's own log.",
}


def advice(code: Any) -> str:
    """What to do about a refusal; a plain way out for a code this release does not know."""
    try:
        return ADVICE[RefusalCode(str(code))]
    except ValueError:
        return "Ask the branch's operator; the branch's own log says why."
