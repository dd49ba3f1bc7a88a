"""The page's sentences: each section's question is answered from the figures before it is illustrated."""

import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from nnbuild.report.data import Diagram, Errors, Points
from nnbuild.store.step_results import Decided


def percent(share: float, digits: int = 2) -> str:
    """A share as a percentage; a little more than none is not written as none."""
    least = 10.0**-digits
    if 0 < share * 100 < least / 2:
        return f"< {least:g} %"
    return f"{100 * share:.{digits}f} %"


def chance(probability: float) -> str:
    """A probability as a percentage; a small one with its first digit."""
    return f"{100 * probability:.1f} %" if probability >= 0.001 else f"{100 * probability:.1g} %"  # noqa: PLR2004


def setting(value: Any) -> str:
    """A setting as it reads in a table."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    return ", ".join(map(setting, value)) if isinstance(value, (list, tuple)) else str(value)


def cell(value: Any) -> str:
    """A value of a table as it is read: a time to the minute, a number to four digits."""
    if value is None or value == "":
        return "–"
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M}"
    if isinstance(value, float):
        return f"{value:.4g}"
    return setting(value)


_Z = 1.96  # of a 95 % interval

_RISEN = 1.1

_SIGNIFICANT = 0.05

Curves = Mapping[str, Points]


def interval(share: float, count: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927, doi 10.1080/01621459.1927.10502953)."""
    if count == 0:
        return 0.0, 1.0
    middle = (share + _Z**2 / (2 * count)) / (1 + _Z**2 / count)
    half = (
        _Z * math.sqrt(share * (1 - share) / count + _Z**2 / (4 * count**2)) / (1 + _Z**2 / count)
    )
    return min(max(0.0, middle - half), share), max(min(1.0, middle + half), share)


def best_of(name: str, points: Points) -> tuple[float, float] | None:
    """The best epoch of a loss (lowest) or an accuracy (highest); None for a metric that might be either."""
    finite = [each for each in points if math.isfinite(each[1])]
    if not finite or not name.endswith(("loss", "accuracy")):
        return None
    return min(finite, key=lambda each: each[1] if name.endswith("loss") else -each[1])


def on_loss(curves: Curves, kept: int) -> str:
    """Did the loss go down?"""
    name, what = (
        ("val_loss", "validation loss") if "val_loss" in curves else ("loss", "training loss")
    )
    points = [each for each in curves.get(name, []) if math.isfinite(each[1])]
    if not points:
        return "The history has no finite loss."
    (first, begin), best = points[0], best_of(name, points)
    last, end = next((each for each in points if each[0] == kept), points[-1])
    if len(points) == 1:
        return f"There is one value, after epoch {first:.0f}: the {what} is {begin:.4g}."
    way = f"the {what} went from {begin:.4g} after epoch {first:.0f} to"
    ending = f"The weights are those of epoch {kept}."
    if best is None or best[0] == last:
        return f"Yes: {way} {end:.4g} after epoch {last:.0f}. {ending}"
    lowest = f"{best[1]:.4g} after epoch {best[0]:.0f}"
    if best[0] == first:
        return f"No: {way} {end:.4g} after epoch {last:.0f}. {ending}"
    if end > best[1] * _RISEN:
        return f"Yes, but only at first: {way} {lowest}, its lowest, and was {end:.4g} after epoch {last:.0f}. {ending}"
    return f"Yes: {way} {end:.4g} after epoch {last:.0f}, after a lowest of {lowest}. {ending}"


def on_rate(curves: Curves) -> str:
    """The learning rate, where there is nothing to draw."""
    rates = {value for _, value in curves.get("learning_rate", [])}
    return f"The learning rate was {next(iter(rates)):g} throughout." if len(rates) == 1 else ""


def on_errors(
    errors: Errors, names: Sequence[str], by_class: Mapping[int, Mapping[str, float]]
) -> str:
    """Where is it wrong?"""
    if not errors.most:
        return f"Nowhere: all {errors.images:,} test images are right."
    label, predicted, count = errors.most[0]
    told = (
        f"{errors.wrong:,} of {errors.images:,} test images are wrong, most often {label} taken for {predicted} "
        f"({count:,} {'time' if count == 1 else 'times'})."
    )
    recalls = {each: found["recall"] for each, found in by_class.items() if found.get("support")}
    if not recalls:
        return told
    hardest = min(recalls, key=lambda each: recalls[each])
    return f"{told} The hardest class is {names[hardest]}: {percent(recalls[hardest])} of its images are found."


def on_trust(
    right: Sequence[int], wrong: Sequence[int], mean_confidence: float, error: float | None
) -> str:
    """Can the probabilities be trusted?"""
    count = sum(right) + sum(wrong)
    if count == 0:
        return "There are no predictions with labels."
    accuracy = sum(right) / count
    gap = mean_confidence - accuracy
    chance = _Z * math.sqrt(max(accuracy * (1 - accuracy), 1 / count) / count)
    verdict = (
        "Yes, on average"
        if abs(gap) <= chance
        else "Not quite: it is too sure"
        if gap > 0
        else "It is too unsure"
    )
    told = f"{verdict}: the mean confidence is {percent(mean_confidence)}, the accuracy {percent(accuracy)}."
    return told if error is None else f"{told} The expected calibration error is {error:.4f}."


def on_checks(results: Sequence[tuple[bool, bool]]) -> str:
    """Is the data sound? From whether each check passed, and whether a violation would have stopped the run."""
    violated = sum(not passed for passed, _ in results)
    if not violated:
        return f"Yes: all {len(results)} checks passed."
    return f"{violated} of {len(results)} checks {'wants' if violated == 1 else 'want'} a look; none that stops a run."


def on_champion(mine: Mapping[str, float], other: Mapping[str, float]) -> str:
    """Is it better than the champion? In accuracy alone; the gate knows more."""
    if "accuracy" not in mine or "accuracy" not in other:
        return "There is no accuracy to compare."
    gap = 100 * (mine["accuracy"] - other["accuracy"])
    if gap == 0:
        return "Both have the same accuracy."
    return f"Its accuracy is {abs(gap):.2f} percentage points {'higher' if gap > 0 else 'lower'}."


def verdict(decided: Decided) -> str:
    """What the gate said of the run."""
    return f"{'Promoted' if decided.promote else 'Not promoted'}: {decided.reason}."


def on_paired(figures: Mapping[str, float]) -> str:
    """What the paired test says, from the figures of a decision."""
    difference, low, high = (
        f"{100 * figures[name]:+.2f}" for name in ("difference", "low", "high")
    )
    return (
        f"The difference is {difference} percentage points, its 95 % interval {low} to {high}. Were both equally good, "
        f"the champion would have so many or more with probability {figures['p_worse']:.2g}, this run with "
        f"{figures['p_better']:.2g} (exact McNemar test)."
    )


def on_pair(row: Mapping[str, Any]) -> str:
    """How a run compares with the first, from its row of `nnbuild.store.analysis.compare`."""
    name = f"{row['run_id']} ({row['model']})"
    if row["difference"] is None:
        return f"{name} was evaluated on other test images, so that it cannot be held against the first."
    worse, better = (row[each] < _SIGNIFICANT for each in ("p_worse", "p_better"))
    chance = min(row["p_worse"], row["p_better"])
    told = (
        "significantly worse"
        if worse
        else "significantly better"
        if better
        else "not significantly different"
    )
    return f"{name} is {told}: {100 * row['difference']:+.2f} percentage points of accuracy, p = {chance:.2g}."


def on_drift(jobs: Sequence[Mapping[str, Any]]) -> str:
    """Does new data still look the same?"""
    if not jobs:
        return ""
    passed, latest = sum(bool(job["exceeded"]) for job in jobs), jobs[-1]
    count = f"{len(jobs)} scoring job{'' if len(jobs) == 1 else 's'}"
    if not passed:
        return f"Yes: no threshold of drift was passed in {count} with this model."
    told = f"a threshold of drift was passed in {passed} of {count} with this model"
    if not latest["exceeded"]:
        return f"By now it does: {told}, but not in the latest."
    return f"No: {told}, in the latest by {latest['exceeded']}."


def curve_title(name: str, series: Mapping[str, Points]) -> str:
    """A chart of lines in words."""
    finite = {
        each: [value for _, value in points if math.isfinite(value)]
        for each, points in series.items()
    }
    parts = [
        f"{each} from {values[0]:.4g} to {values[-1]:.4g}".strip()
        for each, values in finite.items()
        if values
    ]
    return f"{name}: {', '.join(parts) or 'no finite value'}"


def diagram_title(diagram: Diagram) -> str:
    """Whether a reliability diagram is of the plain softmax, or after scaling."""
    return "plain softmax" if diagram.temperature == 1 else f"temperature {diagram.temperature:.3f}"


def on_scaling(diagrams: Sequence[Diagram]) -> str:
    """What temperature scaling does; empty without it."""
    before = next((each for each in diagrams if each.temperature == 1), None)
    after = next((each for each in diagrams if each.temperature != 1), None)
    if before is None or after is None:
        return ""
    way = (
        "lowers"
        if after.error < before.error
        else "raises"
        if after.error > before.error
        else "leaves"
    )
    return (
        f"Dividing the logits by {after.temperature:.3f}, a temperature fitted on the validation images, "
        f"{way} it {'at' if way == 'leaves' else 'to'} {after.error:.4f}."
    )


def histogram_title(right: Sequence[int], wrong: Sequence[int]) -> str:
    """The histogram of confidence in words."""
    return (
        f"Histogram of confidence: {right[-1] + wrong[-1]:,} of {sum(right) + sum(wrong):,} images "
        f"above {1 - 1 / len(right):.2f}, {wrong[-1]:,} of them wrong"
    )
