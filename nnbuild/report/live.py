"""The page about live accuracy, and what the pages and artifacts say about it."""

from collections.abc import Mapping, Sequence
from datetime import date
from itertools import groupby
from typing import Any

from markupsafe import Markup

from nnbuild.live import Alarm
from nnbuild.report import charts, text
from nnbuild.report.text import percent

Periods = Sequence[Mapping[str, Any]]
_MAX_RUNS = 6
_DAYS = {"day": 1, "week": 7}
COLUMNS = (
    "run_id",
    "start",
    "rows",
    "labelled",
    "accuracy",
    "accuracy_low",
    "accuracy_high",
    "estimated_accuracy",
    "estimated_accuracy_atc",
    "realised_minus_estimated",
    "expected_calibration_error",
    "negative_log_likelihood",
)
"""Columns of the table `live` that people are shown."""

SHADOW_COLUMNS = (
    "run_id",
    "shadow_run_id",
    "period",
    "start",
    "labelled",
    "accuracy",
    "shadow_accuracy",
    "only_champion",
    "only_challenger",
    "difference",
    "low",
    "high",
    "p_better",
    "evidence",
)
"""Columns of the table `live_shadows` that people are shown."""

LIMITS = (
    "The estimate is the mean calibrated confidence. It assumes that confidence means on the new "
    "images what it meant on the validation images, and must fail where that is not so: if labels "
    "have come to mean something else, if images show none of the classes, or if they have changed "
    "so that the network is confident and incorrect. Only labels reveal that."
)


def on_periods(periods: Periods) -> str:
    """Answer "Is it right on new images?" in one or two sentences."""
    if not periods:
        return ""
    rows, labelled = (sum(each[name] for each in periods) for name in ("rows", "labelled"))
    estimate = sum(each["estimated_accuracy"] * each["rows"] for each in periods) / rows
    expected = f"judging by confidence, {percent(estimate)} of {rows:,} scored images are"
    if not labelled:
        return f"There are no labels yet; {expected} classified correctly."
    hits = sum(each["accuracy"] * each["labelled"] for each in periods if each["labelled"])
    return (
        f"{percent(hits / labelled)} of {labelled:,} labelled images are classified correctly; "
        f"{expected}."
    )


def on_alarm(alarm: Alarm) -> str:
    """Describe the state of an alarm in one sentence."""
    found = (
        f"accuracy {percent(alarm.accuracy)} on {alarm.labelled:,} labelled rows, "
        f"{percent(alarm.reference)} on the test images; the evidence of a drop below "
        f"{percent(alarm.floor)} is {alarm.evidence:.3g}, and the alarm is raised at "
        f"{alarm.threshold:.3g}"
    )
    if alarm.dropped:
        return f"DROPPED since {alarm.since}: champion {alarm.run_id}: {found}."
    return f"Champion {alarm.run_id}: {found}."


def on_shadows(shadows: Periods) -> list[str]:
    """Describe each pair of a run and its shadow in one sentence, over the whole time."""
    return [
        f"Shadow {each['shadow_run_id']}: accuracy {percent(each['shadow_accuracy'])} on "
        f"{each['labelled']:,} labelled images; run {each['run_id']}: "
        f"{percent(each['accuracy'])} on the same. The difference is "
        f"{100 * each['difference']:+.2f} points ({100 * each['low']:+.2f} to "
        f"{100 * each['high']:+.2f}), and the evidence that the shadow is better is "
        f"{each['evidence']:.3g}."
        for each in shadows
        if each["period"] == "all"
    ]


def picture(periods: Periods) -> Markup:
    """Draw accuracy and estimate of the periods of a run, oldest first, at their distance."""
    unit = periods[0]["period"] if periods else "day"
    first = periods[0]["start"] if periods else None
    series = {
        name: [
            ((each["start"] - first).days // _DAYS[unit] + 1.0, float(each[column]))
            for each in periods
            if each[column] is not None
        ]
        for name, column in (("accuracy", "accuracy"), ("estimated", "estimated_accuracy"))
    }
    drawn = {name: points for name, points in series.items() if points}
    title = text.curve_title("live accuracy", drawn)
    return charts.lines(title, drawn, highest=1.0, label=f"{unit}, 1 is {first}")


def pictures(periods: Periods) -> list[dict[str, Any]]:
    """Return a chart for each of the newest runs, with its title."""
    by_run = [
        (run_id, list(group))
        for run_id, group in groupby(periods, key=lambda each: str(each["run_id"]))
    ]
    return [
        {"title": f"live accuracy, run {run_id[-6:]}", "picture": picture(group)}
        for run_id, group in by_run[-_MAX_RUNS:]
    ]


def live_page(periods: Periods, alarms: Sequence[Alarm], shadows: Periods = ()) -> str:
    """Return the page about live accuracy.

    Args:
        periods: Rows of the table `live`, by run and period.
        alarms: State of the alarm of each champion.
        shadows: Rows of the table `live_shadows`.
    """
    from nnbuild.report.page import overview_page  # which imports this module, for its section

    sentences = [on_periods(periods) or "Nothing was scored into the table scores yet."]
    sentences += [*map(on_alarm, alarms), *on_shadows(shadows), LIMITS]
    tables = {"Periods": [{name: _cell(each[name]) for name in COLUMNS} for each in periods]}
    if shadows:
        tables["Shadows"] = [
            {name: _cell(each[name]) for name in SHADOW_COLUMNS} for each in shadows
        ]
    return overview_page("Live accuracy", sentences, pictures(periods), tables)


def _cell(value: Any) -> Any:
    """Return a value for the table; a day does not break into lines."""
    return str(value).replace("-", "\u2011") if isinstance(value, date) else value
