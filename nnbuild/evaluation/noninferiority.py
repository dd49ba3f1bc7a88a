"""Exact confidence bounds of the difference of two accuracies on the same examples.

Of n examples, the challenger alone classifies `won` correctly, the other run alone `lost`; both are
multinomial counts with unknown probabilities. The challenger is not inferior if the lower bound of
the difference of the probabilities, the difference of the two accuracies, is above minus a margin.

Approximate bounds do not keep their level when counts are small or unbalanced. At a level of 5 %,
Wald's bound is too high with a probability of up to 86 % for 30 examples and a difference of -0.5
points, Tango's score bound with one of up to 8.9 % for 8 examples and -10 points. So the bound is
exact, in three steps:

1. Tango's lower score bound (Statistics in Medicine 17, 1998, 891-908) orders all tables of counts:
   the larger the bound, the larger the evidence for the challenger.
2. For a difference d and a share s of discordant examples, the p-value is the probability of all
   tables with at least the evidence of the observed one. It grows with d for every s, so among the
   differences of the null hypothesis "at most d", d itself has the largest p-value (Lloyd &
   Moldovan, Statistics in Medicine 26, 2007, 3369-3384).
3. s is unknown. The p-value is the largest over a confidence interval of s, plus the probability
   that the interval misses s (Berger & Boos, Journal of the American Statistical Association 89,
   1994, 1012-1016).

The exact lower bound is the largest difference whose p-value is at most the significance level.
Because the order does not depend on d, bound and p-value always agree.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

_MISSED = 1 / 50  # of the significance level: the probability that the interval of s misses s
_SHARES = 17  # values of s in its interval; neighbours are 0.4 standard deviations apart
_NEGLIGIBLE = 1e-10  # all tables of a less probable number of discordant examples count
_POWER = 0.8  # of `examples_needed`


def tango_score(
    won: NDArray[np.float64] | int,
    lost: NDArray[np.float64] | int,
    examples: int,
    difference: float,
) -> NDArray[np.float64]:
    """Compute Tango's score statistic; it is large if the difference is larger than the given one.

    Its variance uses the maximum likelihood estimate of the probability of a lost example under the
    hypothesis that the difference is the given one.

    Args:
        won: Number of examples that only the challenger classifies correctly.
        lost: Number of examples that only the other run classifies correctly.
        examples: Number of examples.
        difference: Difference of the hypothesis, above -1 and below 1.
    """
    middle = -won - lost + (2 * examples - won + lost) * difference
    end = -lost * difference * (1 - difference)
    root = np.sqrt(np.maximum(middle**2 - 8 * examples * end, 0))
    # Two forms of the same root of the quadratic equation: each cancels digits where the other
    # does not.
    divisor = np.where(middle > 0, middle + root, 1)
    probability = np.where(middle > 0, -2 * end / divisor, (root - middle) / (4 * examples))
    variance = examples * (2 * probability + difference * (1 - difference))
    excess = won - lost - examples * difference
    return excess / np.sqrt(np.maximum(variance, np.finfo(float).tiny))


@lru_cache(maxsize=4096)
def lower_bound(won: int, lost: int, examples: int, significance: float) -> float:
    """Return the exact lower confidence bound of the difference.

    It is above the true difference with a probability of at most `significance`, for any number of
    examples and any probabilities.

    Args:
        won: Number of examples that only the challenger classifies correctly.
        lost: Number of examples that only the other run classifies correctly.
        examples: Number of examples, 1 or more.
        significance: Significance level, the same as 1 - confidence.
    """
    from scipy.special import ndtri

    if lost == examples:
        return -1.0
    tables = _tables_with_evidence(won, lost, examples, significance)
    target = ndtri(significance)

    def excess(difference: float) -> float:
        # Nearly linear in the difference, so that interpolation converges fast.
        return float(ndtri(np.clip(tables.p_value(difference), 1e-300, 1 - 1e-16)) - target)

    # Between Tango's bound and the observed difference, the excess grows by about the quantile.
    width = (won - lost) / examples - tables.bound
    return _last_not_above_zero(
        excess, tables.bound, slope=-float(target) / width, tolerance=width * 1e-4
    )


def p_value(won: int, lost: int, examples: int, *, difference: float, significance: float) -> float:
    """Return the p-value of the hypothesis that the true difference is at most the given one.

    Args:
        won: Number of examples that only the challenger classifies correctly.
        lost: Number of examples that only the other run classifies correctly.
        examples: Number of examples, 1 or more.
        difference: Difference of the hypothesis.
        significance: Level that the p-value is compared with. The p-value is valid at any level,
            and sharpest at this one.
    """
    return _tables_with_evidence(won, lost, examples, significance).p_value(difference)


def examples_needed(
    won: int, lost: int, examples: int, *, margin: float, significance: float
) -> int:
    """Estimate how many examples an equally good challenger needs to pass with probability 0.8.

    The estimate is rounded up to two digits.

    This is Connett's formula for paired proportions (Connett, Smith & McHugh, Statistics in
    Medicine 6, 1987, 581-587) with the observed share of discordant examples, which is at least the
    margin under the hypothesis that is to be refuted.

    Args:
        won: Number of examples that only the challenger classifies correctly.
        lost: Number of examples that only the other run classifies correctly.
        examples: Number of examples, 1 or more.
        margin: Largest loss of accuracy that is allowed.
        significance: Significance level of the test.
    """
    from scipy.special import ndtri

    share = max((won + lost) / examples, margin)
    needed = share * float((ndtri(1 - significance) + ndtri(_POWER)) / margin) ** 2
    unit: int = 10 ** max(math.floor(math.log10(needed)) - 1, 0)
    return math.ceil(needed / unit) * unit


@dataclass(frozen=True)
class _Tables:
    """The tables of counts with at least the evidence of the observed one.

    Attributes:
        examples: Number of examples.
        bound: Tango's lower bound of the observed table.
        discordant: Numbers of discordant examples, shape (m,); all others are improbable.
        won: Smallest number of won examples with that evidence, for each of them; one more than
            `discordant` if there is none.
        shares: Ends of the confidence interval of the share of discordant examples.
        missed: Probability that the interval misses the share.
    """

    examples: int
    bound: float
    discordant: NDArray[np.int64]
    won: NDArray[np.int64]
    shares: tuple[float, float]
    missed: float

    def p_value(self, difference: float) -> float:
        """Return the p-value of the hypothesis that the true difference is at most this one."""
        from scipy.special import betainc, gammaln, xlog1py, xlogy

        lowest, highest = max(self.shares[0], -difference), self.shares[1]
        if lowest > highest:  # the share would be outside of its interval
            return self.missed
        share = np.linspace(lowest, highest, _SHARES)[:, None]
        share = np.maximum(share, np.finfo(float).tiny)
        n, discordant, won = self.examples, self.discordant, self.won
        probability = np.exp(
            gammaln(n + 1)
            - gammaln(discordant + 1)
            - gammaln(n - discordant + 1)
            + xlogy(discordant, share)
            + xlog1py(n - discordant, -share)
        )
        # Of the discordant examples, the part that is won; 1 if the difference needs more of them.
        part = np.broadcast_to(np.clip((1 + difference / share) / 2, 0, 1), probability.shape)
        tail = np.broadcast_to((won <= 0).astype(float), probability.shape).copy()
        row, column = np.nonzero((probability > _NEGLIGIBLE) & (won > 0) & (won <= discordant))
        needed = won[column]
        tail[row, column] = betainc(
            needed, discordant[column] - needed + 1, part[row, column]
        )  # the binomial probability of at least `needed`
        ignored = np.maximum(1 - probability.sum(axis=1), 0) + _NEGLIGIBLE * len(discordant)
        return min(float(((probability * tail).sum(axis=1) + ignored).max()) + self.missed, 1.0)


@lru_cache(maxsize=64)
def _tables_with_evidence(won: int, lost: int, examples: int, significance: float) -> _Tables:
    from scipy.special import betaincinv, ndtri

    quantile = float(-ndtri(significance))
    bound = _tango_bound(won, lost, examples, quantile)
    seen, missed = won + lost, significance * _MISSED
    # Clopper & Pearson's interval (Biometrika 26, 1934, 404-413).
    low = float(betaincinv(seen, examples - seen + 1, missed / 2)) if seen else 0.0
    high = float(betaincinv(seen + 1, examples - seen, 1 - missed / 2)) if seen < examples else 1.0
    reach = [5 * math.sqrt(examples * each * (1 - each)) + 10 for each in (low, high)]
    discordant = np.arange(
        max(math.floor(examples * low - reach[0]), 0),
        min(math.ceil(examples * high + reach[1]), examples) + 1,
    )
    # The score grows with the number of won examples: find the smallest by bisection.
    least, most = np.zeros_like(discordant), discordant + 1
    while (least < most).any():
        middle = (least + most) // 2
        score = tango_score(
            middle.astype(float), (discordant - middle).astype(float), examples, bound
        )
        enough = (middle > discordant) | (score >= quantile - 1e-9)
        least, most = np.where(enough, least, middle + 1), np.where(enough, middle, most)
    return _Tables(examples, bound, discordant, most, (low, high), missed)


def _tango_bound(won: int, lost: int, examples: int, quantile: float) -> float:
    """Return a difference at which the score is the quantile, or a little more."""
    low, high = -1.0, (won - lost) / examples
    while high - low > 1e-14:
        middle = (low + high) / 2
        score = tango_score(won, lost, examples, middle)
        low, high = (middle, high) if score >= quantile else (low, middle)
    return low


def _last_not_above_zero(
    function: Callable[[float], float], start: float, *, slope: float, tolerance: float
) -> float:
    """Return a value below the root of an increasing function, at most about `tolerance` from it.

    Newton's method with an estimated slope, and bisection where it leaves the interval of the root.

    Args:
        function: Function on -1 to 1 that is not above 0 at -1, and above 0 at 1.
        start: Guess of the root.
        slope: Guess of the slope.
        tolerance: Largest error.
    """
    low, high, point, previous = -1.0, 1.0, start, None
    while high - low > tolerance:
        value = function(point)
        if value <= 0:
            low = point
            if -value <= slope * tolerance:
                break
        else:
            high = point
        if previous is not None and value != previous[1]:
            slope = max((value - previous[1]) / (point - previous[0]), slope / 4)
        previous = point, value
        point -= value / slope + tolerance / 4
        if not low < point < high:
            point = (low + high) / 2
    return low
