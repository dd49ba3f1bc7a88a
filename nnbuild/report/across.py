"""Pages over several runs: a comparison, and the trends."""

from collections.abc import Mapping, Sequence
from typing import Any

from nnbuild.report import charts
from nnbuild.report.page import environment

_TRENDS = {"accuracy": False, "loss": True, "expected_calibration_error": True, "seconds": True}

Rows = Sequence[Mapping[str, Any]]


def comparison_page(rows: Rows) -> str:
    """Runs side by side, as `nnbuild.across.compare` gives them: one row a figure, one column a run."""
    names = [name for name in rows[0] if name != "run_id"]
    columns = ["figure", *(row["run_id"] for row in rows)]
    turned = [{"figure": name.replace("_", " "), **{row["run_id"]: row[name] for row in rows}} for name in names]
    told = "Every run is held against the first, by the paired test on the same test images."
    return _page("Comparison of runs", told, columns, turned, [])


def trends_page(rows: Rows) -> str:
    """Figures over time, as `nnbuild.across.trends` gives them, the promotions marked."""
    pictures = []
    for name, log in _TRENDS.items():
        points = [(place, row[name]) for place, row in enumerate(rows, start=1) if row[name] is not None]
        promoted = [point for point in points if rows[point[0] - 1]["promoted"]]
        title = name.replace("_", " ")
        if points:
            series = {"every run": points} | ({"promoted": promoted} if promoted else {})
            pictures.append(charts.lines(f"{title} by run, oldest first", series, log=log, below=f"run, {title}"))
    told = f"{len(rows)} runs, oldest first; {sum(bool(row['promoted']) for row in rows)} were promoted."
    return _page("Trends", told, list(rows[0]) if rows else [], rows, pictures)


def _page(title: str, told: str, columns: list[str], rows: Rows, pictures: list[Any]) -> str:
    found = environment()
    found.filters["cell"] = _cell
    template = found.get_template("across.html")
    return template.render(title=title, told=told, columns=columns, rows=rows, pictures=pictures)


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.5g}" if isinstance(value, float) else str(value)
