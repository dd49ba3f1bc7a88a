"""Charts of the page as pictures of their own: an SVG that carries its style, for a place that has none."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from nnbuild.report import charts, data
from nnbuild.report import text as words
from nnbuild.report.charts import heat_map

_SCALE = 2  # pixels for one unit of the chart


def curve_picture(history: Any, metric: str, kept: int) -> str | None:
    """A metric by epoch, on the training and the validation images.

    Args:
        history: the `history` table.
        metric: as Keras calls it, without `val_`.
        kept: the epoch whose weights were kept.

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
        charts.lines(words.curve_title(metric, series), series, kept=kept, best=best, log=log)
    )


def confusion_picture(confusion: Any, names: Sequence[str]) -> str:
    """The confusion matrix as a heat map.

    Args:
        confusion: the `confusion` table.
        names: of the classes.
    """
    found = data.errors(confusion, list(names))
    title = f"Confusion matrix: {found.wrong:,} of {found.images:,} images wrong"
    shown = found.shown
    counts = found.counts[np.ix_(shown, shown)].tolist()
    return standalone(
        heat_map(
            title, counts, [names[each] for each in shown], found.counts.sum(axis=1)[shown].tolist()
        )
    )


def standalone(picture: Markup) -> str:
    """A chart with the page's colours inside, on white, at a size of its own."""
    text = str(picture)
    box = text.split('viewBox="', 1)[1].split('"', 1)[0]
    width, height = (float(each) for each in box.split()[2:])
    size = f'xmlns="http://www.w3.org/2000/svg" width="{_SCALE * width:.0f}" height="{_SCALE * height:.0f}"'
    opening, inside = text.split(">", 1)
    opening = opening.replace("<svg", f"<svg {size}", 1)
    return (
        f'{opening}><style>{_style()}</style><rect width="100%" height="100%" fill="#fff"/>{inside}'
    )


def _style() -> str:
    """The part of the page's style that charts use, in light colours."""
    css = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")
    colours = css[: css.index("}") + 1]
    of_charts = next(each for each in css.split("\n\n") if each.startswith("svg.chart"))
    return f"{colours} svg {{ font-family: system-ui, sans-serif; }} {of_charts.split('}', 1)[1]}"
