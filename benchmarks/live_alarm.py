"""Simulate the alarm of live accuracy: false alarms in 100 days, and days until a drop is found.

    python benchmarks/live_alarm.py [--periods 1000] [--rate 0.01] [--margin 0.005]

Each period is 100 days with a look every day. The reference is the accuracy measured on 10,000
test images, drawn again for each period, so that its uncertainty counts.
"""

import argparse

import numpy as np

from nnbuild.evaluation.sequential import drop_evidence
from nnbuild.live import LiveConfig
from nnbuild.live.alarm import floor_of, threshold_of

_DAYS, _TEST_IMAGES, _DROP_DAY = 100, 10_000, 30


def period(
    draw: np.random.Generator, accuracy: np.ndarray, labels: int, config: LiveConfig
) -> int | None:
    """Simulate a period; return the first day on which the alarm is raised, if there is one."""
    floor = floor_of(int(draw.binomial(_TEST_IMAGES, accuracy[0])), _TEST_IMAGES, config)
    labelled = np.full(len(accuracy), labels)
    evidence = drop_evidence(labelled, draw.binomial(labelled, accuracy), floor)
    raised = np.flatnonzero(evidence >= threshold_of(config))
    return int(raised[0]) if len(raised) else None


def main() -> None:
    """Print a table of false alarms, and one of the days until a drop is found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--periods", type=int, default=1000)
    parser.add_argument("--rate", type=float, default=LiveConfig().rate)
    parser.add_argument("--margin", type=float, default=LiveConfig().margin)
    options = parser.parse_args()
    draw = np.random.default_rng(0)
    config = LiveConfig(rate=options.rate, margin=options.margin)
    print(f"False alarms in {options.periods} periods of {_DAYS} days without a drop:\n")
    print("| accuracy | labels a day | margin | periods with an alarm |\n| --- | --- | --- | --- |")
    for accuracy in (0.9, 0.99):
        for labels in (100, 1000):
            for margin in (options.margin, 0.0):
                settings = LiveConfig(rate=options.rate, margin=margin)
                alarms = sum(
                    period(draw, np.full(_DAYS, accuracy), labels, settings) is not None
                    for _ in range(options.periods)
                )
                print(f"| {accuracy:.0%} | {labels:,} | {margin:g} | {alarms} |", flush=True)
    found = max(options.periods // 10, 10)
    print(f"\nDays until a drop on day {_DROP_DAY} is found, {found} periods each:\n")
    print("| accuracy | drop | labels a day | median | 9 of 10 within | not within 70 days |")
    print("| --- | --- | --- | --- | --- | --- |")
    for accuracy in (0.9, 0.99):
        for drop in (0.01, 0.03, 0.1):
            for labels in (30, 100, 300, 1000):
                levels = np.full(_DAYS, accuracy)
                levels[_DROP_DAY:] -= drop
                days = [period(draw, levels, labels, config) for _ in range(found)]
                waits = np.array([_DAYS if day is None else day - _DROP_DAY + 1 for day in days])
                missed = sum(day is None for day in days)
                median, most = (
                    f"{value:.0f}" if value < _DAYS else f"over {_DAYS - _DROP_DAY}"
                    for value in (np.median(waits), np.quantile(waits, 0.9, method="higher"))
                )
                print(
                    f"| {accuracy:.0%} | {100 * drop:.0f} points | {labels:,} | {median} | {most} "
                    f"| {missed} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
