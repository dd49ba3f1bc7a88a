"""How a figure varies from seed to seed."""

import math
from collections.abc import Sequence
from typing import NamedTuple

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


def spread(values: Sequence[float]) -> Spread:
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
