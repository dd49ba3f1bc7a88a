"""Charts of the page as pictures of their own: an SVG that carries its style, for a place that has none."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from nnbuild.report import charts, figures, words
from nnbuild.report.matrix import heat_map

_SCALE = 2  # pixels for one unit of the chart


def loss_picture(history: Any, kept: int) -> str:
    """The loss by epoch.

    Args:
        history: the `history` table.
        kept: the epoch whose weights were kept.
    """
    curves = figures.curves(history)
    both = {"training": curves.get("loss"), "validation": curves.get("val_loss")}
    series = {name: points for name, points in both.items() if points}
    best = words.best_of("loss", series.get("validation") or series.get("training") or [])
    return standalone(charts.lines(words.curve_title("loss", series), series, kept=kept, best=best, log=True))


def confusion_picture(confusion: Any, names: Sequence[str]) -> str:
    """The confusion matrix as a heat map.

    Args:
        confusion: the `confusion` table.
        names: of the classes.
    """
    found = figures.errors(confusion, list(names))
    title = f"Confusion matrix: {found.wrong:,} of {found.images:,} images wrong"
    shown = found.shown
    counts = found.counts[np.ix_(shown, shown)].tolist()
    return standalone(
        heat_map(title, counts, [names[each] for each in shown], found.counts.sum(axis=1)[shown].tolist())
    )


def standalone(picture: Markup) -> str:
    """A chart with the page's colours inside, on white, at a size of its own."""
    text = str(picture)
    box = text.split('viewBox="', 1)[1].split('"', 1)[0]
    width, height = (float(each) for each in box.split()[2:])
    size = f'xmlns="http://www.w3.org/2000/svg" width="{_SCALE * width:.0f}" height="{_SCALE * height:.0f}"'
    opening, inside = text.split(">", 1)
    opening = opening.replace("<svg", f"<svg {size}", 1)
    return f'{opening}><style>{_style()}</style><rect width="100%" height="100%" fill="#fff"/>{inside}'


def _style() -> str:
    """The part of the page's style that charts use, in light colours."""
    css = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")
    colours = css[: css.index("}") + 1]
    of_charts = next(each for each in css.split("\n\n") if each.startswith("svg.chart"))
    return f"{colours} svg {{ font-family: system-ui, sans-serif; }} {of_charts.split('}', 1)[1]}"
