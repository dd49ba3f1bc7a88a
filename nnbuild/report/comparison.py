"""Pages about several runs: comparison and trends."""

from collections.abc import Mapping, Sequence
from typing import Any

from nnbuild.report import charts, data, live, text
from nnbuild.report.data import Curves
from nnbuild.report.names import isolate
from nnbuild.report.page import overview_page

_TRENDS = {"accuracy": False, "loss": True, "expected_calibration_error": True, "seconds": True}

_MAX_LINES = 4  # number of colours in the style sheet

Rows = Sequence[Mapping[str, Any]]
Picture = dict[str, Any]


def comparison_page(rows: Rows, curves: Mapping[str, Sequence[Curves]] | None = None) -> str:
    """Return the page that compares runs, with a row for each metric and a column for each run.

    Args:
        rows: Result of `nnbuild.store.analysis.compare`.
        curves: Curves of each network of each run, by the ID of the run; see
            `nnbuild.report.networks.curves_by_network`.
    """
    names = [name for name in rows[0] if name != "run_id"]
    transposed = [{"metric": name, **{row["run_id"]: row[name] for row in rows}} for name in names]
    sentences = ["Each run is compared with the first by a paired test on the same test images."]
    if any(len(networks) > 1 for networks in (curves or {}).values()):
        sentences.append("An ensemble has a line for each of its networks.")
    return overview_page(
        "Comparison of runs",
        sentences + [text.on_pair({**row, "model": isolate(row["model"])}) for row in rows[1:]],
        _curves({run_id: each for run_id, each in (curves or {}).items() if each}),
        {"Runs": transposed},
    )


def _curves(by_run: Mapping[str, Sequence[Curves]]) -> list[Picture]:
    """Draw loss and accuracy by epoch for the first runs, on validation images if there are any.

    A run has a line for each of its networks.
    """
    shown = dict(list(by_run.items())[:_MAX_LINES])
    every = [curves for networks in shown.values() for curves in networks]
    most = max((len(networks) for networks in shown.values()), default=0)
    pictures = []
    for name in ("loss", "accuracy"):
        key = f"val_{name}" if all(f"val_{name}" in curves for curves in every) else name
        series = [
            {
                run_id[-6:]: networks[number][key]
                for run_id, networks in shown.items()
                if number < len(networks) and key in networks[number]
            }
            for number in range(most)
        ]
        if any(series):
            title = f"{key.replace('val_', 'validation ')} by epoch"
            described = text.curve_title(title, _named(series))
            picture = charts.lines(described, series[0], others=series[1:], log=name == "loss")
            pictures.append({"title": title, "picture": picture})
    return pictures


def _named(series: Sequence[Mapping[str, data.Points]]) -> dict[str, data.Points]:
    """Return all lines under one name each: that of the run, and the number of its network."""
    several = {run for of_runs in series[1:] for run in of_runs}
    return {
        f"{run}, network {number}" if run in several else run: points
        for number, of_runs in enumerate(series, start=1)
        for run, points in of_runs.items()
    }


def backtest_page(dataset: str, windows: Rows, nights: Rows) -> str:
    """Return the page of a backtest: each window, and its champions over the nights.

    Args:
        dataset: Path or URL of the labelled days.
        windows: Summary of each window, the best first, as `nnbuild.pipeline.backtest` returns it.
        nights: Every night of every window.
    """
    series: dict[str, list[tuple[float, float]]] = {}
    first = min(row["day"] for row in nights)
    for row in nights:
        if row["next_images"]:
            place = float((row["day"] - first).days + 1)
            points = series.setdefault(text.window(row["window"]), [])
            points.append((place, row["next_correct"] / row["next_images"]))
    shown = dict(list(series.items())[:_MAX_LINES])
    title = "Accuracy of the champion on the next day"
    drawn = charts.lines(text.curve_title(title, shown), shown, label=f"night, 1 is {first}")
    return overview_page(
        "Backtest",
        [f"Runs that would have been made on {dataset}.", *map(text.on_window, windows)],
        [{"title": title, "picture": drawn}] if shown else [],
        {"Windows": _named_windows(windows), "Nights": _named_windows(nights)},
    )


def _named_windows(rows: Rows) -> Rows:
    return [{**row, "window": text.window(row["window"])} for row in rows]


def trends_page(rows: Rows, jobs: Rows = (), periods: Rows = ()) -> str:
    """Return the page of metrics over time, with promoted runs circled.

    Args:
        rows: Result of `nnbuild.store.analysis.trends`.
        jobs: Drift of the scoring jobs, the result of `nnbuild.store.analysis.drift_by_job`.
        periods: Live accuracy, the result of `nnbuild.store.analysis.live_periods`.
    """
    pictures = []
    for name, log in _TRENDS.items():
        points = [
            (float(place), row[name])
            for place, row in enumerate(rows, start=1)
            if row[name] is not None
        ]
        if points:
            marks = [point for point in points if rows[int(point[0]) - 1]["promoted"]]
            pictures.append(
                _over_time(
                    name.replace("_", " "), points, marks, log=log, label="run, oldest first"
                )
            )
    if jobs:
        points = [(float(place), job["psi"]) for place, job in enumerate(jobs, start=1)]
        pictures.append(
            _over_time(
                "drift (largest PSI)", points, [], log=True, label="scoring job, oldest first"
            )
        )
    pictures += live.pictures(periods)
    count = sum(bool(row["promoted"]) for row in rows)
    plural = "" if len(rows) == 1 else "s"
    summary = f"{len(rows)} run{plural}, oldest first; {count} promoted (circled)."
    sentences = [summary, *text.on_test_sets([row["test_set"] for row in rows])]
    tables = {"Runs": rows, "Drift of the scored images": jobs, "Live accuracy": periods}
    return overview_page("Trends", sentences, pictures, tables)


def _over_time(
    title: str, points: data.Points, marks: data.Points, *, log: bool, label: str
) -> Picture:
    series = {"": points}
    picture = charts.lines(
        text.curve_title(title, series),
        series,
        marks=marks,
        log=log,
        highest=1.0 if title == "accuracy" else None,
        label=label,
    )
    return {"title": title, "picture": picture}
