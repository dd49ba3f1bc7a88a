"""Test as often as one likes whether an accuracy has dropped, or a challenger is better.

The evidence is an e-value that is valid at any time.
"""

import math

import numpy as np
from numpy.typing import NDArray

_PRIOR = 20.0  # of the accuracy after a drop: Beta(20, 1) below the floor, a twentieth of it wide
_WIN_PRIOR = 5.0  # of the share of won examples: Beta(5, 5) above 1/2


def lower_bound(correct: int, examples: int, rate: float) -> float:
    """Return the one-sided lower confidence bound of an accuracy.

    Clopper and Pearson 1934 (doi 10.1093/biomet/26.4.404): the true accuracy is below the bound
    with a probability of at most `rate`.

    Args:
        correct: Number of correctly classified examples.
        examples: Number of examples, 1 or more.
        rate: Probability, from 0 to 1.
    """
    from scipy.special import betaincinv

    return float(betaincinv(correct, examples - correct + 1, rate)) if correct else 0.0


def drop_evidence(
    labelled: NDArray[np.int64],
    correct: NDArray[np.int64],
    floor: float,
    looks: NDArray[np.int64] | None = None,
) -> NDArray[np.float64]:
    """Return the evidence that the accuracy has dropped below a floor, at each look.

    The evidence is an e-process. As long as the accuracy is at least the floor, the probability
    that it ever reaches 1 / a is at most a, however often one looks: Ville's inequality; Ramdas et
    al., "Game-theoretic statistics and safe anytime-valid inference", Statistical Science 38, 2023.

    For a drop that begins with a step, the evidence is the likelihood ratio of the later examples
    under accuracies below the floor to that under the floor, averaged over a Beta distribution
    truncated there: a mixture of test martingales (Robbins 1970, doi 10.1214/aoms/1177696786), and
    a supermartingale for every accuracy above the floor. It is then averaged over all first steps k
    with the weights 1 / (k (k + 1)), which sum to 1, so that a late drop is found after a long good
    time too.

    Args:
        labelled: Number of labelled examples of each step, in the order in which they became
            known, shape (steps,). The order must not depend on whether they are correct.
        correct: Number of them that were classified correctly, shape (steps,).
        floor: Accuracy above 0 and below 1.
        looks: Indices of the steps after which one looks, ascending; all of them if not given.

    Returns:
        Evidence after each look, 0 or more, shape (looks,); at most about 1e300.
    """
    from scipy.special import betainc, betaln

    steps = len(labelled)
    hits = np.concatenate([[0], np.cumsum(correct)]).astype(np.float64)
    misses = np.concatenate([[0], np.cumsum(labelled - correct)]).astype(np.float64)
    first = np.arange(1, steps + 1)
    weights = 1.0 / (first * (first + 1.0))
    prior = betaln(_PRIOR, 1.0) + np.log(betainc(_PRIOR, 1.0, floor))
    evidence = []
    for look in range(steps) if looks is None else looks:
        s, f = hits[look + 1] - hits[: look + 1], misses[look + 1] - misses[: look + 1]
        with np.errstate(divide="ignore"):
            posterior = betaln(_PRIOR + s, 1.0 + f) + np.log(betainc(_PRIOR + s, 1.0 + f, floor))
        ratio = posterior - prior - s * np.log(floor) - f * np.log1p(-floor)
        total = (weights[: look + 1] * np.exp(np.minimum(ratio, 690.0))).sum()
        evidence.append(total + 1.0 / (look + 2))  # the ratio of drops that begin later is 1
    return np.array(evidence)


def win_evidence(won: int, lost: int) -> float:
    """Return the evidence that a challenger is more accurate than a champion on the same examples.

    Only the examples count that exactly one of the two classifies correctly. As long as the
    challenger is not more likely than the champion to be that one, each of them is won with a
    probability of at most 1/2, and the evidence is a nonnegative supermartingale that begins with
    1. So the probability that it ever reaches 1 / a is at most a, however often one looks and
    whenever one stops: Ville's inequality; Ramdas et al., "Game-theoretic statistics and safe
    anytime-valid inference", Statistical Science 38, 2023. It is McNemar's test made sequential.

    It is the likelihood ratio of the examples so far under shares p above 1/2 to that under 1/2,
    averaged over a Beta distribution truncated there (Robbins 1970, doi 10.1214/aoms/1177696786):
    for a share q of at most 1/2, the factor of the next example has the expectation
    2 q p + 2 (1 - q) (1 - p), which is at most 1. It depends on the counts only, not on the order.

    Args:
        won: Number of examples that only the challenger classifies correctly.
        lost: Number of examples that only the champion classifies correctly.

    Returns:
        Evidence, above 0; at most about 1e300.
    """
    from scipy.special import betainc, betaln

    above = betainc(_WIN_PRIOR + lost, _WIN_PRIOR + won, 0.5)
    if above <= 0:  # smaller than the smallest number
        return 1e-300
    ratio = betaln(_WIN_PRIOR + won, _WIN_PRIOR + lost) - betaln(_WIN_PRIOR, _WIN_PRIOR)
    ratio += math.log(2 * above) + (won + lost) * math.log(2)
    return math.exp(min(float(ratio), 690.0))


def examples_for_evidence(won: int, lost: int, examples: int, threshold: float) -> int | None:
    """Estimate how many examples the evidence of `win_evidence` needs to reach a threshold.

    The shares of won and lost examples are assumed to remain what they are.

    Args:
        won: Number of examples that only the challenger classifies correctly.
        lost: Number of examples that only the champion classifies correctly.
        examples: Number of examples so far.
        threshold: Evidence to reach.

    Returns:
        Number of examples in all, rounded up to two digits; None if the challenger is not ahead.
    """
    if won <= lost:
        return None

    def reached(factor: float) -> bool:
        return win_evidence(round(won * factor), round(lost * factor)) >= threshold

    low, high = 1.0, 1.0
    while not reached(high):
        low, high = high, high * 2
    while high - low > 0.01 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if reached(middle) else (middle, high)
    needed = math.ceil(examples * high)
    unit: int = 10 ** max(math.floor(math.log10(needed)) - 1, 0)
    return math.ceil(needed / unit) * unit
