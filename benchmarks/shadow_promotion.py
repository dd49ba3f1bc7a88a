"""Simulate a daily `nnbuild promote --if-better`: wrong promotions, and days until right ones.

    python benchmarks/shadow_promotion.py [--periods 1000] [--days 365] [--significance 0.05]

On each day, a number of images that the champion and its shadow have scored get a label. A share of
the images is classified correctly by exactly one of the two. 2 % of these have a wrong first label,
which exchanges the two and is corrected a week later.

For comparison, the exact McNemar test at the same level is applied every day, and once at the end.
"""

import argparse
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtrc

from nnbuild.live.promotion import judge
from nnbuild.live.shadows import PairedCounts

_CORRECTED, _DAYS_UNTIL_CORRECTED = 0.02, 7


class Period(NamedTuple):
    """Cumulative counts of a period as they are known on each day.

    Attributes:
        labelled: Number of labelled images.
        won: Number of images that only the shadow classifies correctly.
        lost: Number of images that only the champion classifies correctly.
    """

    labelled: NDArray[np.int64]
    won: NDArray[np.int64]
    lost: NDArray[np.int64]


def simulate(
    draw: np.random.Generator, days: int, labels: int, share: float, difference: float
) -> Period:
    """Return a period.

    Args:
        draw: Random generator.
        days: Number of days.
        labels: Number of labels on each day.
        share: Share of the images that exactly one of the two classifies correctly.
        difference: Accuracy of the shadow minus that of the champion.
    """
    outcomes = [(share + difference) / 2, (share - difference) / 2, 1 - share]
    won, lost, _ = draw.multinomial(labels, outcomes, size=days).T
    exchanged = draw.binomial(won, _CORRECTED), draw.binomial(lost, _CORRECTED)
    net = exchanged[1] - exchanged[0]  # added to the won ones for a week
    late = np.concatenate([np.zeros(_DAYS_UNTIL_CORRECTED, np.int64), net])[:days]
    wrong = np.cumsum(net - late)
    return Period(labels * np.arange(1, days + 1), np.cumsum(won) + wrong, np.cumsum(lost) - wrong)


def first_promotion(period: Period, threshold: float) -> int | None:
    """Return the first day, from 1, on which the challenger would be promoted; None if never."""
    for day, (labelled, won, lost) in enumerate(zip(*period, strict=True), start=1):
        if won <= lost:
            continue  # no evidence, so that the simulation is faster
        counts = PairedCounts(int(labelled), 0, int(lost), int(won))
        if judge(counts, threshold).outcome == "promoted":
            return day
    return None


def mcnemar_p_values(period: Period) -> NDArray[np.float64]:
    """Return the one-sided p-value of the exact McNemar test on each day."""
    p_values = bdtrc(np.maximum(period.won - 1, 0), period.won + period.lost, 0.5)
    return np.where(period.won > 0, p_values, 1.0)


def main() -> None:
    """Print a table of wrong promotions, and one of the days until a better shadow is promoted."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--periods", type=int, default=1000)
    parser.add_argument("--days", type=int, default=365)
    parser.add_argument("--significance", type=float, default=0.05)
    options = parser.parse_args()
    draw, level = np.random.default_rng(0), options.significance
    print(
        f"Equally accurate shadows that were promoted at any of {options.days} daily calls, of "
        f"{options.periods}, at {level:g}:\n"
    )
    print("| labels a day | only one correct | --if-better | McNemar daily | McNemar at the end |")
    print("| --- | --- | --- | --- | --- |")
    for labels in (20, 100, 1000):
        for share in (0.01, 0.05):
            counts = np.zeros(3, int)
            for _ in range(options.periods):
                period = simulate(draw, options.days, labels, share, 0.0)
                below = mcnemar_p_values(period) <= level
                promoted = first_promotion(period, 1 / level) is not None
                counts += [promoted, below.any(), below[-1]]
            shares = " | ".join(f"{each / options.periods:.1%}" for each in counts)
            print(f"| {labels:,} | {share:.0%} | {shares} |", flush=True)
    found = max(options.periods // 10, 10)
    print(f"\nDays until a more accurate shadow is promoted, {found} periods each:\n")
    print("| labels a day | only one correct | difference | median | 9 of 10 within | never |")
    print("| --- | --- | --- | --- | --- | --- |")
    for labels in (20, 100, 1000):
        for share, difference in ((0.01, 0.002), (0.01, 0.005), (0.05, 0.01), (0.05, 0.03)):
            days = [
                first_promotion(simulate(draw, options.days, labels, share, difference), 1 / level)
                for _ in range(found)
            ]
            waits = np.array([np.inf if day is None else day for day in days])
            median, most = (
                f"{value:.0f}" if value <= options.days else f"over {options.days}"
                for value in (
                    np.quantile(waits, level_of, method="higher") for level_of in (0.5, 0.9)
                )
            )
            print(
                f"| {labels:,} | {share:.0%} | {100 * difference:.1f} points | {median} | {most} | "
                f"{sum(day is None for day in days)} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
