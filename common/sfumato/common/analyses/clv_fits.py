"""Both models' fits of lifetime value, from the rounds so far: see clv and likelihood_sums."""

from collections.abc import Sequence

from sfumato.common.analyses.analysis import NoisySum
from sfumato.common.analyses.clv_groups import TIMES
from sfumato.common.analyses.likelihood_sums import Fit
from sfumato.common.analyses.purchase_grids import TimesGrid, ValuesGrid
from sfumato.common.learners.bgnbd import BgNbdLikelihood, GammaGammaLikelihood

VALUES = 3  # parameters of gamma-gamma
# A whitened score is cut to this many times the root of customers over noise: fewer long ones are cut where the noise
# is small. Measured on shops and banks: beyond the upper end noise costs more than cutting.
LENGTH, SHORTEST, LONGEST = 0.75, 6.0, 24.0


def fitted(
    times: TimesGrid,
    values: ValuesGrid | None,
    totals: Sequence[NoisySum],
    weights: tuple[float, float],
    noise: float,
) -> list[Fit]:
    """Of the times and, where there are amounts, of the values. `totals` are the grids' counts, then sums of scores,
    whose two blocks have these weights and, over a vector's length, this noise."""
    first, cut = totals[0], times.size
    counts = NoisySum(first.values[:cut], first.std)
    found = [Fit.of(BgNbdLikelihood(), times.points, counts, times.start)]
    if values:
        counts = NoisySum(first.values[cut:], first.std)
        found.append(Fit.of(GammaGammaLikelihood(), values.points, counts, values.start(counts)))
    blocks = slice(0, TIMES), slice(TIMES, TIMES + VALUES)
    for i, (block, weight) in enumerate(zip(blocks[: len(found)], weights, strict=False)):
        found[i] = found[i].with_bound(LENGTH, noise / weight, SHORTEST, LONGEST)
        for total in totals[1:]:
            found[i] = found[i].moved(NoisySum(total.values[block] / weight, total.std / weight))
    return found
