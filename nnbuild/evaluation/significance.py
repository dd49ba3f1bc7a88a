"""Two networks on the same examples: are their accuracies really different?"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_Z = 1.96  # of a 95 % interval


class McNemarResult(NamedTuple):
    """A comparison of a challenger with a champion on the same examples.

    Attributes:
        examples: how many there are.
        only_champion: examples that only the champion has right.
        only_challenger: examples that only the challenger has right.
        p_worse: under the hypothesis that both are equally good, the probability that the champion alone is right on
            so many examples, or more, of those on which the two differ; small if the challenger is worse.
        p_better: the same for the challenger; small if it is better.
        difference: the challenger's accuracy less the champion's.
        low: lower end of the difference's 95 % interval.
        high: its upper end.
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
    """The exact one-sided McNemar tests, and Wald's interval of the difference of two paired shares.

    Sources: McNemar 1947 (doi 10.1007/BF02295996); the exact form is a binomial test with probability one half on
    the examples on which the two differ. The interval: Agresti, "Categorical Data Analysis", 2nd edition, 10.1.1.

    Args:
        champion: shape (n,), n of 1 or more: which examples it has right.
        challenger: shape (n,), likewise.
    """
    from scipy.special import bdtrc

    examples = len(champion)
    lost, won = int((champion & ~challenger).sum()), int((challenger & ~champion).sum())
    differing = lost + won

    def at_least(count: int) -> float:
        return float(bdtrc(count - 1, differing, 0.5)) if count else 1.0

    difference = (won - lost) / examples
    spread = _Z * math.sqrt(max(differing - (won - lost) ** 2 / examples, 0.0)) / examples
    low, high = max(difference - spread, -1.0), min(difference + spread, 1.0)
    return McNemarResult(examples, lost, won, at_least(lost), at_least(won), difference, low, high)


_CONFIDENCE = 0.95


class Spread(NamedTuple):
    """Mean and spread of a figure over independent runs.

    Attributes:
        runs: how many values there are, one from each.
        mean: of the values.
        standard_deviation: of a single value, from the sample (divided by count - 1); None for fewer than two.
        low: lower end of the mean's 95 % confidence interval; None for fewer than two values.
        high: its upper end.
    """

    runs: int
    mean: float
    standard_deviation: float | None
    low: float | None
    high: float | None


def mean_confidence_interval(values: Sequence[float]) -> Spread:
    """Mean, standard deviation, and the 95 % confidence interval of the mean by Student's t.

    Source: Student, "The Probable Error of a Mean", 1908 (doi 10.1093/biomet/6.1.1): mean ± t · s / √n with n - 1
    degrees of freedom. It takes the values as independent and about normal.

    Args:
        values: finite, one or more.

    Raises:
        ValueError: there are none.
    """
    from scipy.special import stdtrit

    count = len(values)
    if not count:
        raise ValueError("no values to take the mean of; give one or more")
    mean = math.fsum(values) / count
    if count == 1:
        return Spread(1, mean, None, None, None)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1))
    half = float(stdtrit(count - 1, (1 + _CONFIDENCE) / 2)) * deviation / math.sqrt(count)
    return Spread(count, mean, deviation, mean - half, mean + half)
