"""Measure how often the gate rejects a challenger because of a slice, and how long that takes.

    python benchmarks/slices.py [--simulations 100] [--images 10000]

Two models are simulated on test images with a column of sites, and judged by the real gate. Both
are correct on the same fraction of the images; *discordant* is the fraction on which exactly one of
them is. In a *planted* slice, with 3 % of the images, the challenger is 10 points less accurate,
and more accurate elsewhere, so that the two are equal on the whole.
"""

import argparse
import statistics
import time
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from nnbuild.config.sections import GateConfig
from nnbuild.evaluation.promotion import Candidate, PairedResult, decide
from nnbuild.evaluation.slices import Compared, measure_slices

SITES, MANY_SITES = 10, 50
PLANTED_SHARE, PLANTED_LOSS = 0.03, 0.1
CONDITIONS = ((0.98, 0.01), (0.95, 0.03), (0.9, 0.06), (0.9, 0.18))
CONFIG = GateConfig(slices=("site",))

Correct = NDArray[np.bool_]


class Trial(NamedTuple):
    """Simulated test images: the site of each, and which model is correct."""

    sites: NDArray[np.int64]
    challenger: Correct
    champion: Correct


def trial(
    images: int, sites: int, accuracy: float, discordant: float, *, planted: bool, seed: int
) -> Trial:
    """Simulate two models that are equally accurate on the whole."""
    random = np.random.default_rng(seed)
    site = random.integers(0, sites, images)
    champion = random.random(images) < accuracy
    lost = champion & (random.random(images) < discordant / 2 / accuracy)
    won = ~champion & (random.random(images) < discordant / 2 / (1 - accuracy))
    challenger = (champion & ~lost) | won
    if planted:
        in_slice = np.arange(images) < PLANTED_SHARE * images
        site[in_slice] = sites
        worse = in_slice & challenger & (random.random(images) < PLANTED_LOSS / accuracy)
        wrong_elsewhere = random.permutation(np.flatnonzero(~challenger & ~in_slice))
        challenger[worse] = False
        challenger[wrong_elsewhere[: worse.sum()]] = True
    return Trial(site, challenger, champion)


def is_rejected_for_slice(each: Trial) -> tuple[bool, float]:
    """Return whether the gate names a slice in its reason, and the seconds for the slices."""
    images = len(each.sites)
    kept = pa.table({"site": pa.array(each.sites.astype(str).tolist(), pa.string())})
    everything = np.ones(images, bool)
    confidence = np.full(images, 0.9, np.float32)
    compared = Compared(everything, each.challenger, each.champion)
    began = time.perf_counter()
    slices = measure_slices(kept, each.challenger, confidence, CONFIG, compared)
    seconds = time.perf_counter() - began
    metrics = {"accuracy": float(each.challenger.mean()), "expected_calibration_error": 0.0}
    labels = np.zeros(images, np.int16)
    result = PairedResult("champion", labels, each.challenger, each.champion)
    decision = decide(Candidate("challenger", metrics), result, CONFIG, slices=slices)
    return "its accuracy for site" in decision.reason, seconds


def main() -> None:
    """Print the table of rates, and the seconds for many slices."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--simulations", type=int, default=100)
    parser.add_argument("--images", type=int, default=10_000)
    options = parser.parse_args()
    print("| accuracy | discordant | planted: rejected | nothing planted: rejected |")
    print("| --- | --- | --- | --- |")
    for accuracy, discordant in CONDITIONS:
        counts = [
            sum(
                is_rejected_for_slice(
                    trial(options.images, SITES, accuracy, discordant, planted=planted, seed=seed)
                )[0]
                for seed in range(options.simulations)
            )
            for planted in (True, False)
        ]
        shown = " | ".join(f"{count} of {options.simulations}" for count in counts)
        print(f"| {accuracy:.0%} | {discordant:.0%} | {shown} |")
    seconds = [
        is_rejected_for_slice(
            trial(options.images, MANY_SITES, 0.9, 0.06, planted=False, seed=1000 + seed)
        )[1]
        for seed in range(9)
    ]
    print(
        f"\n{MANY_SITES} slices of {options.images:,} images: "
        f"{statistics.median(seconds):.3f} s, median of {len(seconds)}"
    )


if __name__ == "__main__":
    main()
