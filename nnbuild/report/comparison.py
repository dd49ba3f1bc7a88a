"""Pages over several runs: a comparison, and the trends."""

from collections.abc import Mapping, Sequence
from typing import Any

from nnbuild.report import charts, data, text
from nnbuild.report.page import environment

_TRENDS = {"accuracy": False, "loss": True, "expected_calibration_error": True, "seconds": True}

_LINES = 4  # as many as the style has colours for

Rows = Sequence[Mapping[str, Any]]
Picture = dict[str, Any]


def comparison_page(rows: Rows, histories: Mapping[str, Any] | None = None) -> str:
    """Runs side by side, as `nnbuild.store.analysis.compare` gives them: one row a figure, one column a run.

    Args:
        rows: of the comparison.
        histories: each run's `history` table, by its id, for the curves; without it the page has none.
    """
    names = [name for name in rows[0] if name != "run_id"]
    turned = [{"figure": name, **{row["run_id"]: row[name] for row in rows}} for name in names]
    told = ["Every run is held against the first, by the paired test on the same test images."]
    return _page(
        "Comparison of runs",
        told + [text.on_pair(row) for row in rows[1:]],
        _curves(histories or {}),
        {"Runs": turned},
    )


def _curves(histories: Mapping[str, Any]) -> list[Picture]:
    """Loss and accuracy by epoch, a line for each of the first runs: on validation images where there are some."""
    found = {run_id[-6:]: data.curves(table) for run_id, table in list(histories.items())[:_LINES]}
    pictures = []
    for name in ("loss", "accuracy"):
        key = f"val_{name}" if all(f"val_{name}" in curves for curves in found.values()) else name
        series = {run: curves[key] for run, curves in found.items() if key in curves}
        if series:
            title = f"{key.replace('val_', 'validation ')} by epoch"
            picture = charts.lines(text.curve_title(title, series), series, log=name == "loss")
            pictures.append({"title": title, "picture": picture})
    return pictures


def trends_page(rows: Rows, jobs: Rows = ()) -> str:
    """Figures over time, as `nnbuild.store.analysis.trends` gives them, a ring around those that were promoted.

    Args:
        rows: of the runs.
        jobs: the drift of the scoring jobs, as `nnbuild.store.analysis.drift_by_job` gives it.
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
                    name.replace("_", " "), points, marks, log=log, below="run, oldest first"
                )
            )
    if jobs:
        points = [(float(place), job["psi"]) for place, job in enumerate(jobs, start=1)]
        pictures.append(
            _over_time(
                "drift, largest index", points, [], log=True, below="scoring job, oldest first"
            )
        )
    count = sum(bool(row["promoted"]) for row in rows)
    told = f"{len(rows)} run{'' if len(rows) == 1 else 's'}, oldest first; {count} promoted, with a ring."
    return _page("Trends", [told], pictures, {"Runs": rows, "Drift of what was scored": jobs})


def _over_time(
    title: str, points: data.Points, marks: data.Points, *, log: bool, below: str
) -> Picture:
    series = {"": points}
    picture = charts.lines(
        text.curve_title(title, series), series, marks=marks, log=log, below=below
    )
    return {"title": title, "picture": picture}


def _page(title: str, told: list[str], pictures: list[Picture], tables: Mapping[str, Rows]) -> str:
    filled = {name: rows for name, rows in tables.items() if rows}
    return (
        environment()
        .get_template("across.html")
        .render(title=title, told=told, pictures=pictures, tables=filled)
    )
