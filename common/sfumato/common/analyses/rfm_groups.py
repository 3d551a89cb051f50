"""The named groups of RFM: what a cell of the cube is called. Public, and the same for 3 and for 5 levels.

Each score, 1 the worst, is low, middle or high: of three levels one each, of five 1 and 2, 3, 4 and 5.
"""

from collections.abc import Mapping

GROUPS: Mapping[str, str] = {
    "champions": "lately, often and for much",
    "loyal": "often, and not long ago",
    "promising": "lately, now and then",
    "new": "lately, and seldom so far",
    "need attention": "a while ago, now and then",
    "about to sleep": "a while ago, and seldom",
    "cannot lose": "long ago, but often and for much",
    "at risk": "long ago, but now and then, often or for much",
    "lost": "long ago, seldom and not for much",
}
NEVER = "never"  # who lacks one of the three numbers: no purchase

_LOW, _MIDDLE, _HIGH = range(3)


def group_of(recency: int, frequency: int, money: int, levels: int) -> str:
    """The group of three scores from 1 to `levels`, the best. Raises ValueError on others."""
    if not all(1 <= score <= levels for score in (recency, frequency, money)):
        raise ValueError(f"Expected scores from 1 to {levels}.")
    r, f, m = (_third(score, levels) for score in (recency, frequency, money))
    if r == _HIGH:
        return "promising" if f == _MIDDLE else "new" if f == _LOW else "champions" if m == _HIGH else "loyal"
    if r == _MIDDLE:
        return {_LOW: "about to sleep", _MIDDLE: "need attention", _HIGH: "loyal"}[f]
    if f == _HIGH:
        return "cannot lose" if m == _HIGH else "at risk"
    return "at risk" if f == _MIDDLE or m == _HIGH else "lost"


def _third(score: int, levels: int) -> int:
    distance = 2 * score - (levels + 1)  # from the middle score, doubled
    return _MIDDLE if distance == 0 else _HIGH if distance > 0 else _LOW
