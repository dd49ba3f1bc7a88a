"""Pages over several runs: a comparison, and the trends."""

from collections.abc import Mapping, Sequence
from typing import Any

from nnbuild.report import charts, figures
from nnbuild.report.page import environment

_TRENDS = {"accuracy": False, "loss": True, "expected_calibration_error": True, "seconds": True, "drift": False}

_LINES = 4  # as many as the style has colours for

Rows = Sequence[Mapping[str, Any]]
Picture = dict[str, Any]


def comparison_page(rows: Rows, histories: Mapping[str, Any] | None = None) -> str:
    """Runs side by side, as `nnbuild.across.compare` gives them: one row a figure, one column a run.

    Args:
        rows: of the comparison.
        histories: each run's `history` table, by its id, for the curves; without it the page has none.
    """
    names = [name for name in rows[0] if name != "run_id"]
    columns = ["figure", *(row["run_id"] for row in rows)]
    turned = [{"figure": name.replace("_", " "), **{row["run_id"]: row[name] for row in rows}} for name in names]
    told = "Every run is held against the first, by the paired test on the same test images."
    return _page("Comparison of runs", told, columns, turned, _curves(histories or {}))


def _curves(histories: Mapping[str, Any]) -> list[Picture]:
    """Loss and accuracy by epoch, a line for each of the first runs: on validation images where there are some."""
    found = {run_id[-6:]: figures.curves(table) for run_id, table in list(histories.items())[:_LINES]}
    pictures = []
    for name in ("loss", "accuracy"):
        key = f"val_{name}" if all(f"val_{name}" in curves for curves in found.values()) else name
        series = {run: curves[key] for run, curves in found.items() if key in curves}
        if series:
            title = f"{key.replace('val_', 'validation ')} by epoch"
            pictures.append({"title": title, "picture": charts.lines(title, series, log=name == "loss")})
    return pictures


def trends_page(rows: Rows) -> str:
    """Figures over time, as `nnbuild.across.trends` gives them, a ring around those that were promoted."""
    pictures = []
    for name, log in _TRENDS.items():
        points = [(place, row[name]) for place, row in enumerate(rows, start=1) if row[name] is not None]
        promoted = [point for point in points if rows[point[0] - 1]["promoted"]]
        title = name.replace("_", " ")
        if points:
            drawn = charts.lines(
                f"{title} by run, oldest first", {title: points}, marks=promoted, log=log, below="run, oldest first"
            )
            pictures.append({"title": title, "picture": drawn})
    count = sum(bool(row["promoted"]) for row in rows)
    told = f"{len(rows)} runs, oldest first; {count} were promoted, each with a ring."
    return _page("Trends", told, list(rows[0]) if rows else [], rows, pictures)


def _page(title: str, told: str, columns: list[str], rows: Rows, pictures: list[Picture]) -> str:
    found = environment()
    found.filters["cell"] = _cell
    template = found.get_template("across.html")
    return template.render(title=title, told=told, columns=columns, rows=rows, pictures=pictures)


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.5g}" if isinstance(value, float) else str(value)
