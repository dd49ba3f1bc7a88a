"""Sentences of the report: answers to the questions of its sections, descriptions of charts."""

import itertools
import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from nnbuild.errors import one_line
from nnbuild.report.data import Curves, Diagram, Errors, Points
from nnbuild.report.names import isolate
from nnbuild.store.step_results import Decided

_Z = 1.96  # quantile of a 95 % interval
_RISEN = 1.1  # factor by which a final loss is clearly above the lowest
_SIGNIFICANT = 0.05
_SMALL = 0.001
_ENSEMBLE = "The model averages the log-probabilities of the networks."


def percent(share: float, digits: int = 2) -> str:
    """Format a fraction as a percentage; a small one above 0 is not rounded to 0."""
    least = 10.0**-digits
    if 0 < share * 100 < least / 2:
        return f"< {least:g} %"
    return f"{100 * share:.{digits}f} %"


def chance(probability: float) -> str:
    """Format a probability as a percentage; a small one with one significant digit."""
    return f"{100 * probability:{'.1f' if probability >= _SMALL else '.1g'}} %"


def setting(value: Any) -> str:
    """Format a setting for a table."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    return ", ".join(map(setting, value)) if isinstance(value, (list, tuple)) else str(value)


def cell(value: Any) -> str:
    """Format a value for a table: times to the minute, numbers to four digits."""
    if value is None or value == "":
        return "–"
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M}"
    if isinstance(value, float):
        return f"{value:.4g}"
    return setting(value)


def best_of(name: str, points: Points) -> tuple[float, float] | None:
    """Return the best epoch of a loss (lowest) or accuracy (highest); None for other metrics."""
    finite = [each for each in points if math.isfinite(each[1])]
    if not finite or not name.endswith(("loss", "accuracy")):
        return None
    return min(finite, key=lambda each: each[1] if name.endswith("loss") else -each[1])


def on_loss(curves: Curves, restored: int) -> str:
    """Answer "Did the loss go down?"."""
    name, what = _shown_loss(curves)
    points = [each for each in curves.get(name, []) if math.isfinite(each[1])]
    if not points:
        return "The history has no finite loss values."
    (first, begin), best = points[0], best_of(name, points)
    last, end = next((each for each in points if each[0] == restored), points[-1])
    if len(points) == 1:
        return f"There is only one value: the {what} is {begin:.4g} after epoch {first:.0f}."
    change = f"the {what} went from {begin:.4g} after epoch {first:.0f} to"
    ending = f"The weights are those of epoch {restored}."
    if best is None or best[0] == last:
        return f"Yes: {change} {end:.4g} after epoch {last:.0f}. {ending}"
    lowest = f"{best[1]:.4g} after epoch {best[0]:.0f}"
    if best[0] == first:
        return f"No: {change} {end:.4g} after epoch {last:.0f}. {ending}"
    if end > best[1] * _RISEN:
        return (
            f"Yes, but only at first: {change} a minimum of {lowest}, and was {end:.4g} after "
            f"epoch {last:.0f}. {ending}"
        )
    return f"Yes: {change} {end:.4g} after epoch {last:.0f}, with a minimum of {lowest}. {ending}"


def _shown_loss(curves: Curves) -> tuple[str, str]:
    """Return the metric of the loss in the history, and its name."""
    return ("val_loss", "validation loss") if "val_loss" in curves else ("loss", "training loss")


def on_losses(members: Sequence[Curves]) -> str:
    """Answer "Did the loss go down?" for the networks of an ensemble."""
    name, what = _shown_loss(members[0])
    losses = [
        [each for each in curves.get(name, []) if math.isfinite(each[1])] for curves in members
    ]
    without = sum(not points for points in losses)
    if without:
        return (
            f"{without} of {len(members)} networks have no finite loss values in the history. "
            f"{_ENSEMBLE}"
        )
    ends = sorted(points[-1][1] for points in losses)
    span = " to ".join(dict.fromkeys(f"{each:.4g}" for each in (ends[0], ends[-1])))
    if all(len(points) == 1 for points in losses):
        return (
            f"There is only one value for each of the {len(members)} networks: the {what} is "
            f"{span}. {_ENSEMBLE}"
        )
    fell = sum(points[-1][1] < points[0][1] for points in losses)
    verdict = "Yes" if fell == len(losses) else "Not in every network" if fell else "No"
    return (
        f"{verdict}: from its first to its last epoch, the {what} of {fell} of {len(losses)} "
        f"networks fell. In the last epoch of each, it is {span}. {_ENSEMBLE}"
    )


def on_unsplit_losses(epochs: str) -> str:
    """Say that the losses of an ensemble cannot be judged.

    Args:
        epochs: Number of networks and of their epochs.
    """
    return (
        f"The history has {epochs}, and does not record where the epochs of one network end and "
        f"those of the next begin. {_ENSEMBLE}"
    )


def on_marks(restored: int, charts: int) -> str:
    """Explain the dashed line and the circle in the charts of the metrics."""
    of_each = " of each metric" if charts > 1 else ""
    return (
        f"Dashed line: restored epoch ({restored}). Circle: best epoch{of_each}, on the validation "
        "images if there are any."
    )


def on_rate(curves: Curves) -> str:
    """Describe a constant learning rate, for which no chart is drawn."""
    rates = {value for _, value in curves.get("learning_rate", [])}
    return f"The learning rate was {next(iter(rates)):g} throughout." if len(rates) == 1 else ""


def on_errors(
    errors: Errors, names: Sequence[str], by_class: Mapping[int, Mapping[str, float]]
) -> str:
    """Answer "Where is it wrong?"."""
    if not errors.most:
        return f"Nowhere: all {errors.images:,} test images are classified correctly."
    label, predicted, count = errors.most[0]
    answer = (
        f"{errors.incorrect:,} of {errors.images:,} test images are classified incorrectly, "
        f"most often {isolate(label)} predicted as {isolate(predicted)} "
        f"({count:,} {'time' if count == 1 else 'times'})."
    )
    recalls = {
        each: metrics["recall"] for each, metrics in by_class.items() if metrics.get("support")
    }
    if not recalls:
        return answer
    hardest = min(recalls, key=lambda each: recalls[each])
    return (
        f"{answer} The hardest class is {isolate(names[hardest])}, with a recall of "
        f"{percent(recalls[hardest])}."
    )


def on_trust(
    correct: Sequence[int], incorrect: Sequence[int], mean_confidence: float, error: float | None
) -> str:
    """Answer "Can the probabilities be trusted?"."""
    count = sum(correct) + sum(incorrect)
    if count == 0:
        return "There are no predictions with labels."
    accuracy = sum(correct) / count
    gap = mean_confidence - accuracy
    margin = _Z * math.sqrt(max(accuracy * (1 - accuracy), 1 / count) / count)
    verdict = (
        "Yes, on average"
        if abs(gap) <= margin
        else "Not quite, the network is overconfident"
        if gap > 0
        else "Not quite, the network is underconfident"
    )
    answer = (
        f"{verdict}: the mean confidence is {percent(mean_confidence)}, "
        f"the accuracy {percent(accuracy)}."
    )
    return answer if error is None else f"{answer} The expected calibration error is {error:.4f}."


def on_slices(lowest: Sequence[Mapping[str, Any]], count: int) -> str:
    """Answer "For which images is it wrong?".

    Args:
        lowest: Slices of the test images, the one with the strongest evidence of errors first.
        count: Number of all slices.
    """
    if not lowest:
        return ""
    first = lowest[0]
    return (
        f"Most of all for {slice_name(first)}: accuracy {percent(first['accuracy'])} on "
        f"{first['rows']:,} test images; of {count} slices it has the lowest upper bound."
    )


def slice_name(each: Mapping[str, Any]) -> str:
    """Return column and value of a slice: `site oslo`."""
    value = each["value"]
    shown = "without a value" if value is None else isolate(one_line(value))
    return f"{isolate(each['column_name'])} {shown}"


def on_checks(results: Sequence[tuple[bool, bool]]) -> str:
    """Answer "Is the data sound?".

    Args:
        results: For each check, whether it passed, and whether a failure would stop a run.
    """
    failed = sum(not passed for passed, _ in results)
    if not failed:
        return f"Yes: all {len(results)} checks passed."
    outcome = "a warning" if failed == 1 else "warnings"
    return f"{failed} of {len(results)} checks gave {outcome}; warnings do not stop a run."


def on_champion(metrics: Mapping[str, float]) -> str:
    """Compare the accuracy with the champion's on the same images, from a decision's metrics."""
    gap = 100 * metrics["difference"]
    if gap == 0:
        return "Both have the same accuracy."
    return f"Its accuracy is {abs(gap):.2f} percentage points {'higher' if gap > 0 else 'lower'}."


def on_compared_images(metrics: Mapping[str, float]) -> str:
    """Describe the images of the comparison, from the metrics of a decision; empty if as usual."""
    sentences = []
    if rescored := int(metrics.get("rescored", 0)):
        sentences.append(
            "The champion was tested on other images; its model classified "
            f"{_images(rescored)} of this run for the comparison."
        )
    if left_out := int(metrics.get("left_out", 0)):
        verb = "was" if left_out == 1 else "were"
        sentences.append(
            f"{_images(left_out)} {verb} left out, because one of the two was trained or validated "
            f"on {'it' if left_out == 1 else 'them'}; {int(metrics['examples']):,} are compared."
        )
    return " ".join(sentences)


def _images(count: int) -> str:
    return f"{count:,} test image{'' if count == 1 else 's'}"


def verdict(decided: Decided) -> str:
    """Describe the decision of the gate."""
    return f"{'Promoted' if decided.promote else 'Not promoted'}: {decided.reason}."


def on_paired(metrics: Mapping[str, float]) -> str:
    """Describe the result of the paired test, from the metrics of a decision."""
    difference, low, high = (
        f"{100 * metrics[name]:+.2f}" for name in ("difference", "low", "high")
    )
    return (
        f"The difference in accuracy is {difference} percentage points "
        f"(95 % confidence interval {low} to {high}). "
        f"One-sided exact McNemar tests: p = {metrics['p_better']:.2g} for this run being better, "
        f"p = {metrics['p_worse']:.2g} for it being worse."
    )


def on_pair(row: Mapping[str, Any]) -> str:
    """Compare a run with the first one, from its row of `nnbuild.store.analysis.compare`."""
    name = f"{row['run_id']} ({row['model']})"
    if row["difference"] is None:
        return f"{name} cannot be compared with the first run: its test images differ."
    worse, better = (row[each] < _SIGNIFICANT for each in ("p_worse", "p_better"))
    p_value = min(row["p_worse"], row["p_better"])
    verdict = (
        "significantly worse"
        if worse
        else "significantly better"
        if better
        else "not significantly different"
    )
    return (
        f"{name} is {verdict}: {100 * row['difference']:+.2f} percentage points of accuracy, "
        f"p = {p_value:.2g}."
    )


def window(days: int | None) -> str:
    """Return the name of a window of labelled days."""
    return "all days" if days is None else f"{days} day{'s' if days > 1 else ''}"


def on_window(row: Mapping[str, Any]) -> str:
    """Say how good the champions of a window were on the days that followed."""
    name = window(row["window"]).capitalize()
    if row["accuracy"] is None:
        return f"{name}: no image followed a night with a champion."
    words = (
        f"{name}: {percent(row['accuracy'])} of {row['images']:,} images of the days that followed "
        f"were classified correctly ({row['runs']} runs, {row['promoted']} promoted)"
    )
    if row["difference"] is None:
        return f"{words}."
    low, high = (f"{100 * row[name]:+.2f}" for name in ("low", "high"))
    verdict = (
        "significantly worse than the best window"
        if row["p_worse"] < _SIGNIFICANT
        else "not significantly worse than the best window"
    )
    return (
        f"{words}; {verdict}: {100 * row['difference']:+.2f} points on the same images (95 % "
        f"interval {low} to {high}, p = {chance(row['p_worse'])})."
    )


def on_test_sets(test_sets: Sequence[str]) -> list[str]:
    """Warn that metrics over time are of different test images, if they are."""
    changes = sum(one != other for one, other in itertools.pairwise(test_sets))
    if not changes:
        return []
    times = "once" if changes == 1 else f"{changes:,} times"
    warning = (
        f"The test images changed {times} (see the column test set). Metrics of different test "
        "images show no difference between models; the gate's comparison does."
    )
    return [warning]


def on_drift(jobs: Sequence[Mapping[str, Any]]) -> str:
    """Answer "Does new data still look the same?"."""
    if not jobs:
        return ""
    exceeded, latest = sum(bool(job["exceeded"]) for job in jobs), jobs[-1]
    count = f"{len(jobs)} scoring job{'' if len(jobs) == 1 else 's'}"
    if not exceeded:
        return f"Yes: no drift threshold was exceeded in {count} with this model."
    history = f"a drift threshold was exceeded in {exceeded} of {count} with this model"
    if not latest["exceeded"]:
        return f"Yes, again: {history}, but not in the latest one."
    return f"No: {history}, in the latest one for {latest['exceeded']}."


def curve_title(name: str, series: Mapping[str, Points]) -> str:
    """Describe a chart of lines for screen readers."""
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
    """Name a reliability diagram by its temperature."""
    return "uncalibrated" if diagram.temperature == 1 else f"temperature {diagram.temperature:.3f}"


def on_scaling(diagrams: Sequence[Diagram]) -> str:
    """Describe the effect of temperature scaling; empty without it."""
    before = next((each for each in diagrams if each.temperature == 1), None)
    after = next((each for each in diagrams if each.temperature != 1), None)
    if before is None or after is None:
        return ""
    effect = (
        "lowers it to"
        if after.error < before.error
        else "raises it to"
        if after.error > before.error
        else "leaves it at"
    )
    return (
        f"Temperature scaling, with a temperature of {after.temperature:.3f} fitted on the "
        f"validation images, {effect} {after.error:.4f}."
    )


def histogram_title(correct: Sequence[int], incorrect: Sequence[int]) -> str:
    """Describe the histogram of confidence for screen readers."""
    return (
        f"Histogram of confidence: {correct[-1] + incorrect[-1]:,} of "
        f"{sum(correct) + sum(incorrect):,} images above {1 - 1 / len(correct):.2f}, "
        f"{incorrect[-1]:,} of them incorrect"
    )
