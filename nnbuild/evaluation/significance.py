"""Significance tests and confidence intervals of metrics."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_Z = 1.96  # of a 95 % interval


class McNemarResult(NamedTuple):
    """A comparison of a challenger with a champion on the same examples.

    Attributes:
        examples: Number of examples.
        only_champion: Number of examples that only the champion classifies correctly.
        only_challenger: Number of examples that only the challenger classifies correctly.
        p_worse: One-sided p-value against the hypothesis that both are equally good; small if the
            challenger is worse.
        p_better: The same for the other side; small if the challenger is better.
        difference: Accuracy of the challenger minus that of the champion.
        low: Lower end of the 95 % confidence interval of the difference.
        high: Upper end of the interval.
    """

    examples: int
    only_champion: int
    only_challenger: int
    p_worse: float
    p_better: float
    difference: float
    low: float
    high: float


def mcnemar_test(champion: NDArray[np.bool_], challenger: NDArray[np.bool_]) -> McNemarResult:
    """Run both one-sided exact McNemar tests, and compute Wald's interval of the difference.

    Sources: McNemar 1947 (doi 10.1007/BF02295996); the exact form is a binomial test with
    probability one half on the examples on which the two differ. The interval of the difference of
    two paired proportions: Agresti, "Categorical Data Analysis", 2nd edition, 10.1.1.

    Args:
        champion: Whether the champion classifies each example correctly, bool, shape (n,), n of 1
            or more.
        challenger: The same for the challenger.
    """
    lost, won = int((champion & ~challenger).sum()), int((challenger & ~champion).sum())
    return mcnemar_test_of_counts(len(champion), lost, won)


def mcnemar_test_of_counts(examples: int, lost: int, won: int) -> McNemarResult:
    """Run the tests of `mcnemar_test` on counts.

    Args:
        examples: Number of examples, 1 or more.
        lost: Number of them that only the champion classifies correctly.
        won: Number of them that only the challenger classifies correctly.
    """
    # Not scipy.stats.binomtest: its import takes three times as long; the last digits differ.
    from scipy.special import bdtrc

    discordant = lost + won

    def at_least(count: int) -> float:
        return float(bdtrc(count - 1, discordant, 0.5)) if count else 1.0

    difference = (won - lost) / examples
    half = _Z * math.sqrt(max(discordant - (won - lost) ** 2 / examples, 0.0)) / examples
    low, high = max(difference - half, -1.0), min(difference + half, 1.0)
    return McNemarResult(examples, lost, won, at_least(lost), at_least(won), difference, low, high)


def holm_correction(p_values: Sequence[float]) -> list[float]:
    """Correct the p-values of several tests for their number, by Holm's method.

    If hypotheses whose corrected p-value is at most 5 % are rejected, the probability that any true
    one is among them is at most 5 %: Holm, Scandinavian Journal of Statistics 6, 1979, 65-70.

    Args:
        p_values: P-value of each test.

    Returns:
        Corrected p-values, in the same order.
    """
    order = np.argsort(p_values, kind="stable")
    factors = len(order) - np.arange(len(order))
    ascending = np.maximum.accumulate(np.asarray(p_values, float)[order] * factors)
    corrected = np.empty(len(order))
    corrected[order] = np.minimum(ascending, 1)
    return [float(each) for each in corrected]


_CONFIDENCE = 0.95


class Spread(NamedTuple):
    """Mean and spread of a metric over independent runs.

    Attributes:
        runs: Number of values, one for each run.
        mean: Mean of the values.
        standard_deviation: Sample standard deviation of the values (divided by count - 1); None for
            fewer than two values.
        low: Lower end of the 95 % confidence interval of the mean; None for fewer than two values.
        high: Upper end of the interval.
    """

    runs: int
    mean: float
    standard_deviation: float | None
    low: float | None
    high: float | None


def mean_confidence_interval(values: Sequence[float]) -> Spread:
    """Compute mean, standard deviation, and the 95 % confidence interval of the mean.

    The interval is mean ± t · s / √n with n - 1 degrees of freedom: Student, "The Probable Error
    of a Mean", 1908 (doi 10.1093/biomet/6.1.1). It assumes independent, roughly normal values.

    Args:
        values: One or more finite values.

    Raises:
        ValueError: There are no values.
    """
    from scipy.special import stdtrit

    count = len(values)
    if not count:
        raise ValueError("cannot compute the mean of no values; give one or more")
    mean = math.fsum(values) / count
    if count == 1:
        return Spread(1, mean, None, None, None)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1))
    half = float(stdtrit(count - 1, (1 + _CONFIDENCE) / 2)) * deviation / math.sqrt(count)
    return Spread(count, mean, deviation, mean - half, mean + half)


def wilson_interval(share: float, count: int) -> tuple[float, float]:
    """Return the 95 % interval of a fraction (Wilson 1927, doi 10.1080/01621459.1927.10502953).

    Args:
        share: The fraction, from 0 to 1.
        count: Number of examples; the interval is 0 to 1 without any.
    """
    if count == 0:
        return 0.0, 1.0
    middle = (share + _Z**2 / (2 * count)) / (1 + _Z**2 / count)
    half = (
        _Z * math.sqrt(share * (1 - share) / count + _Z**2 / (4 * count**2)) / (1 + _Z**2 / count)
    )
    return min(max(0.0, middle - half), share), max(min(1.0, middle + half), share)
