"""Charts of the report as standalone SVG files, with the colours and style of the page."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from markupsafe import Markup

from nnbuild.report import charts, data
from nnbuild.report import text as words
from nnbuild.report.charts import heat_map

_SCALE = 2  # pixels per unit of the chart


def curve_picture(history: pa.Table, metric: str, restored: int) -> str | None:
    """Draw a metric by epoch, on the training and the validation images.

    Args:
        history: The `history` table.
        metric: Name of the metric in Keras, without `val_`.
        restored: Epoch whose weights were restored.

    Returns:
        The SVG; None if the history has no such metric.
    """
    curves = data.curves(history)
    both = {"training": curves.get(metric), "validation": curves.get(f"val_{metric}")}
    series = {name: points for name, points in both.items() if points}
    if not series:
        return None
    best = words.best_of(metric, series.get("validation") or series["training"])
    log = metric.endswith("loss")
    return standalone(
        charts.lines(
            words.curve_title(metric, series), series, restored=restored, best=best, log=log
        )
    )


def confusion_picture(confusion: pa.Table, names: Sequence[str]) -> str:
    """Draw the confusion matrix as a heat map.

    Args:
        confusion: The `confusion` table.
        names: Class names.
    """
    errors = data.errors(confusion, list(names))
    title = f"Confusion matrix: {errors.incorrect:,} of {errors.images:,} images incorrect"
    shown = errors.shown
    counts = errors.counts[np.ix_(shown, shown)].tolist()
    totals = errors.counts.sum(axis=1)[shown].tolist()
    return standalone(heat_map(title, counts, [names[each] for each in shown], totals))


def standalone(picture: Markup) -> str:
    """Return a chart with its own size, on white, with the colours of the page."""
    text = str(picture)
    box = text.split('viewBox="', 1)[1].split('"', 1)[0]
    width, height = (float(each) for each in box.split()[2:])
    size = (
        'xmlns="http://www.w3.org/2000/svg" '
        f'width="{_SCALE * width:.0f}" height="{_SCALE * height:.0f}"'
    )
    opening, inside = text.split(">", 1)
    opening = opening.replace("<svg", f"<svg {size}", 1)
    return (
        f'{opening}><style>{_style()}</style><rect width="100%" height="100%" fill="#fff"/>{inside}'
    )


def _style() -> str:
    """Return the style of charts from the style sheet of the page, in light colours."""
    css = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")
    colours = css[: css.index("}") + 1]
    of_charts = next(each for each in css.split("\n\n") if each.startswith("svg.chart"))
    return f"{colours} svg {{ font-family: system-ui, sans-serif; }} {of_charts.split('}', 1)[1]}"
