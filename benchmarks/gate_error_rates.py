"""Simulate the champion gate: how often it promotes which challenger, also over a year of nights.

    python benchmarks/gate_error_rates.py [--challengers 2000] [--years 20]
                                          [--part rates|exact|year]

Every decision is made by `nnbuild.evaluation.promotion.decide`. A model is a true accuracy: half of
the first champion's errors are errors of every model, the others are independent of each other.
`rates` draws challengers for one champion; `exact` computes without simulation the largest
probability, over all shares of images that only one model classifies correctly, that a challenger
passes that is worse by exactly the margin; `year` runs 365 nights, each with a challenger for the
champion of the day.
"""

import argparse
import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import betainc, gammaln, xlog1py, xlogy

from nnbuild.config.sections import GateConfig
from nnbuild.evaluation import noninferiority, promotion
from nnbuild.evaluation.promotion import Candidate, PairedResult

SIZES = (300, 1000, 10_000)
LOSSES = (0.0, 0.005, 0.01, 0.02)  # the second is the default margin
ACCURACIES = (0.95, 0.99)
RULES = ("not-worse", "better")
CLASSES = 10
NIGHTS = 365
METRICS = {"accuracy": 1.0, "expected_calibration_error": 0.0}


class Images:
    """Test images of which a part is too hard for every model."""

    def __init__(self, random: np.random.Generator, size: int, hard: float) -> None:
        """Draw the images.

        Args:
            random: Source of randomness.
            size: Number of images.
            hard: Probability that an image is too hard for every model.
        """
        self.random = random
        self.labels = random.integers(CLASSES, size=size).astype(np.int16)
        self.easy = random.random(size) >= hard
        self.hard = hard

    def predict(self, accuracy: float) -> NDArray[np.bool_]:
        """Draw which images a model of this true accuracy classifies correctly."""
        return self.easy & (self.random.random(len(self.easy)) < accuracy / (1 - self.hard))


def compare(
    labels: NDArray[np.int16], challenger: NDArray[np.bool_], other: NDArray[np.bool_]
) -> PairedResult:
    """Return the comparison of two models by the images that each classifies correctly."""
    return PairedResult("other", labels, challenger, other)


def print_table(head: Sequence[str], rows: Iterator[Sequence[str]]) -> None:
    """Print a Markdown table, row by row."""
    print(f"\n| {' | '.join(head)} |\n| {' | '.join('---' for _ in head)} |", flush=True)
    for row in rows:
        print(f"| {' | '.join(row)} |", flush=True)


def percent(count: int, total: int) -> str:
    """Return a percentage with its binomial margin of 1.96 standard errors."""
    share = count / total
    margin = 1.96 * (share * (1 - share) / total) ** 0.5
    return f"{100 * share:.1f} % ± {100 * margin:.1f}"


def rates(challengers: int, seed: int) -> Iterator[Sequence[str]]:
    """Yield rows with the share of promoted challengers."""
    for accuracy, size, loss in itertools.product(ACCURACIES, SIZES, LOSSES):
        random = np.random.default_rng([seed, size, round(1e4 * accuracy), round(1e4 * loss)])
        outcomes: dict[str, Counter[str]] = {rule: Counter() for rule in RULES}
        for _ in range(challengers):
            images = Images(random, size, (1 - accuracy) / 2)
            champion, challenger = images.predict(accuracy), images.predict(accuracy - loss)
            result = compare(images.labels, challenger, champion)
            for rule in RULES:
                decision = promotion.decide(
                    Candidate("challenger", METRICS), result, GateConfig(rule=rule)
                )
                outcomes[rule][decision.outcome] += 1
        counts = outcomes["not-worse"]
        yield (
            f"{accuracy:g}",
            f"{size:,}",
            f"{100 * loss:g}",
            percent(counts["promoted"], challengers),
            percent(counts["not-enough-evidence"], challengers),
            percent(counts["rejected"], challengers),
            percent(outcomes["better"]["promoted"], challengers),
        )


def exact(most_discordant: float) -> Iterator[Sequence[str]]:
    """Yield rows with the exact probability to pass the bound at the margin and of `rates`.

    Args:
        most_discordant: Largest share of images that only one model classifies correctly.
    """
    config = GateConfig()
    for size in SIZES:
        discordant = np.arange(min(round(size * most_discordant * 1.3) + 40, size) + 1)
        needed, won = [], 0
        for each in discordant:
            # One more discordant image needs at most one more that is won.
            while won <= each and not _passes(won, int(each) - won, size, config):
                won += 1
            needed.append(won)
        least = np.array(needed)
        shares = np.linspace(config.margin, most_discordant, 400)
        at_margin = [_chance(size, share, -config.margin, discordant, least) for share in shares]
        worst = int(np.argmax(at_margin))
        yield (
            f"{size:,}",
            f"{100 * at_margin[worst]:.2f} % (of {100 * shares[worst]:.1f} %)",
            *(
                f"{100 * _chance(size, 1 - accuracy + loss, -loss, discordant, least):.3g} %"
                for accuracy, loss in itertools.product(ACCURACIES, LOSSES)
            ),
        )


def _passes(won: int, lost: int, size: int, config: GateConfig) -> bool:
    bound = promotion.lower_bound(won, lost, size, config.significance)
    return bool(bound >= -config.margin)


def _chance(
    size: int,
    share: float,
    difference: float,
    discordant: NDArray[np.int64],
    least: NDArray[np.int64],
) -> float:
    """Return the probability of at least so many won images, given numbers of discordant ones."""
    seen = np.exp(
        gammaln(size + 1)
        - gammaln(discordant + 1)
        - gammaln(size - discordant + 1)
        + xlogy(discordant, share)
        + xlog1py(size - discordant, -share)
    )
    part = (1 + difference / share) / 2
    tail = betainc(np.maximum(least, 1), np.maximum(discordant - least + 1, 1e-9), part)
    tail = np.where(least == 0, 1.0, np.where(least > discordant, 0.0, tail))
    return float((seen * tail).sum())


@dataclass
class Model:
    """A model of the simulated year: its name, true accuracy, and predictions on the images."""

    name: str
    accuracy: float
    correct: NDArray[np.bool_]


class Strategy(NamedTuple):
    """True accuracy of each night's challenger: that of a model, plus a normal deviate."""

    relative_to: str
    mean: float
    deviation: float = 0.0


STRATEGIES = {
    "a margin below the champion": Strategy("champion", -0.005),
    "half a margin below the champion": Strategy("champion", -0.0025),
    "as good as the first champion": Strategy("first", 0.0),
    "random around the first champion": Strategy("first", 0.0, 0.005),
}


def one_year(
    random: np.random.Generator, size: int, strategy: str, *, anchored: bool, fixed: bool
) -> tuple[float, float, int]:
    """Run 365 nights, and return the last and lowest true accuracy minus the first; promotions."""
    first = ACCURACIES[0]
    hard = (1 - first) / 2
    images = Images(random, size, hard)
    champion = anchor = Model("first", first, images.predict(first))
    lowest, promotions = first, 0
    for night in range(NIGHTS):
        relative_to, mean, deviation = STRATEGIES[strategy]
        base = champion.accuracy if relative_to == "champion" else first
        accuracy = min(base + random.normal(mean, deviation), 1 - hard)
        challenger = Model(f"night {night}", accuracy, images.predict(accuracy))
        if not fixed:
            images = Images(random, size, hard)
            for model in {id(each): each for each in (challenger, champion, anchor)}.values():
                model.correct = images.predict(model.accuracy)
        decision = promotion.decide(
            Candidate(challenger.name, METRICS),
            compare(images.labels, challenger.correct, champion.correct),
            GateConfig(),
            anchor=compare(images.labels, challenger.correct, anchor.correct)
            if anchored and anchor is not champion
            else None,
        )
        if decision.promote:
            champion, promotions = challenger, promotions + 1
            anchor = challenger if decision.next_anchor == challenger.name else anchor
            lowest = min(lowest, champion.accuracy)
    return champion.accuracy - first, lowest - first, promotions


def year(years: int, seed: int) -> Iterator[Sequence[str]]:
    """Yield rows with the change of the champion's true accuracy over a year, in points."""
    for strategy, size, fixed in itertools.product(STRATEGIES, SIZES, (True, False)):
        cells = []
        for anchored in (True, False):
            random = np.random.default_rng([seed, size, fixed])
            ends = [
                one_year(random, size, strategy, anchored=anchored, fixed=fixed)
                for _ in range(years)
            ]
            last, lowest, promotions = (np.array(each) for each in zip(*ends, strict=True))
            cells += [
                f"{100 * last.mean():+.2f}",
                f"{100 * lowest.min():+.2f}",
                f"{promotions.mean():.0f}",
            ]
        yield (strategy, f"{size:,}", "the same" if fixed else "new", *cells)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--challengers", type=int, default=2000, help="challengers per row")
    parser.add_argument("--years", type=int, default=20, help="simulated years per row")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--part", choices=["rates", "exact", "year"], action="append")
    options = parser.parse_args()
    parts = options.part or ["rates", "exact", "year"]
    # The same counts occur again and again; a program that ends soon can keep all of their bounds.
    bound = cache(noninferiority.lower_bound.__wrapped__)
    noninferiority.lower_bound = promotion.lower_bound = bound
    if "rates" in parts:
        print_table(
            [
                "champion's accuracy",
                "test images",
                "points worse",
                "not-worse: promoted",
                "not enough evidence",
                "rejected",
                "better: promoted",
            ],
            rates(options.challengers, options.seed),
        )
    if "exact" in parts:
        print_table(
            [
                "test images",
                "largest rate at the margin (of share)",
                *(
                    f"{100 * accuracy:g} %, {100 * loss:g} points worse"
                    for accuracy, loss in itertools.product(ACCURACIES, LOSSES)
                ),
            ],
            exact(0.12),
        )
    if "year" in parts:
        print_table(
            [
                "challenger each night",
                "test images",
                "of them each night",
                "last",
                "lowest",
                "promotions",
                "no anchor: last",
                "lowest",
                "promotions",
            ],
            year(options.years, options.seed),
        )


if __name__ == "__main__":
    main()
