"""The charts of the page: lines by epoch, reliability, a histogram."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from markupsafe import Markup

from nnbuild.report.svg import Axis, counting, linear, logarithmic, picture, tag, told

WIDTH, HEIGHT = 400, 250
LEFT, RIGHT, TOP, BOTTOM = 52, 388, 32, 212
_LOG_FROM = 10  # a largest value so many times the smallest is drawn on a logarithmic axis
_DOTS, _POINTS = 40, 400
_LETTER = 6.6
_FEW_IMAGES = 20

Points = Sequence[tuple[float, float]]


class Bin(NamedTuple):
    """One bar of a reliability diagram; the last two are None where there are no examples."""

    lower: float
    upper: float
    images: int
    confidence: float | None
    accuracy: float | None


def lines(
    title: str,
    series: Mapping[str, Points],
    *,
    kept: float | None = None,
    best: tuple[float, float] | None = None,
    marks: Points = (),
    log: bool = False,
    below: str = "epoch",
) -> Markup:
    """One line for each series, by epoch.

    Args:
        title: what it shows, in words.
        series: (epoch, value) by name, "" if it needs none; values that are not finite are left out.
        kept: the epoch to draw a dashed line at.
        best: the point to draw a ring around.
        marks: more points of that kind.
        log: whether a logarithmic axis may be taken where the values differ much.
        below: what the axis counts, if it is no epochs.
    """
    drawn = {
        name: _thinned([each for each in points if math.isfinite(each[1])])
        for name, points in series.items()
    }
    values = [value for points in drawn.values() for _, value in points]
    epochs = [int(epoch) for points in series.values() for epoch, _ in points] or [1]
    across = counting(min(epochs), max(epochs), LEFT + 8, RIGHT - 8)
    wide = log and values and min(values) > 0 and max(values) / min(values) > _LOG_FROM
    up = logarithmic(values, BOTTOM, TOP) if wide else linear(values, BOTTOM, TOP)
    inside = [*_grid(up), *_below(across, below), *_legend(list(drawn))]
    if kept is not None:
        x = across.place(kept)
        inside.append(tag("line", x1=x, x2=x, y1=TOP, y2=BOTTOM, class_="kept"))
    for kind, points in enumerate(drawn.values()):
        inside += _line([(across.place(x), up.place(y)) for x, y in points], kind % 4)
    for x, y in [*([] if best is None else [best]), *marks]:
        if math.isfinite(y):
            inside.append(tag("circle", cx=across.place(x), cy=up.place(y), r=6, class_="ring"))
    return picture(title, WIDTH, HEIGHT, *inside)


def _thinned(points: Points) -> Points:
    if len(points) <= _POINTS:
        return points
    return [points[round(index * (len(points) - 1) / (_POINTS - 1))] for index in range(_POINTS)]


def _line(places: Points, kind: int) -> Iterator[Markup]:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    yield tag("polyline", points=path, class_=f"line k{kind}")
    if len(places) <= _DOTS:
        yield from (tag("circle", cx=x, cy=y, r=2.6, class_=f"dot k{kind}") for x, y in places)


def _legend(names: Sequence[str]) -> Iterator[Markup]:
    x = float(LEFT)
    for kind, name in enumerate(names):
        if not name:
            continue
        yield tag("line", x1=x, x2=x + 18, y1=14, y2=14, class_=f"line k{kind % 4}")
        yield tag("text", name, x=x + 24, y=18)
        x += 24 + _LETTER * len(name) + 18


def _grid(up: Axis) -> Iterator[Markup]:
    for value in up.ticks:
        y = up.place(value)
        yield tag("line", x1=LEFT, x2=RIGHT, y1=y, y2=y, class_="grid")
        yield tag("text", told(value), x=LEFT - 6, y=y + 4, class_="end")


def _below(across: Axis, label: str, base: float = BOTTOM) -> Iterator[Markup]:
    for value in across.ticks:
        yield tag("text", told(value), x=across.place(value), y=base + 16, class_="middle")
    yield tag("text", label, x=(across.start + across.end) / 2, y=base + 33, class_="middle label")


def reliability(title: str, bins: Sequence[Bin]) -> Markup:
    """Accuracy in each bin of confidence, and how far the confidence is from it.

    Args:
        title: what it shows, in words.
        bins: in order.
    """
    base = 300.0
    across, up = linear((0, 1), LEFT, RIGHT), linear((0, 1), base, 14)
    inside = [*_grid(up), *_below(across, "confidence", base)]
    for each in bins:
        if each.confidence is None or each.accuracy is None:
            continue
        x, right = across.place(each.lower) + 1, across.place(each.upper) - 1
        low, high = sorted((each.confidence, each.accuracy))
        faint = " faint" if each.images < _FEW_IMAGES else ""
        words = (
            f"confidence {each.lower:.2f} to {each.upper:.2f}: {each.images:,} images, "
            f"mean confidence {each.confidence:.3f}, accuracy {each.accuracy:.3f}"
        )
        inside.append(
            tag(
                "g",
                tag("title", words),
                _bar(x, right, up.place(low), base, "bar"),
                _bar(
                    x,
                    right,
                    up.place(high),
                    up.place(low),
                    "over" if each.confidence > each.accuracy else "under",
                ),
                class_=f"bin{faint}",
            )
        )
    inside.append(tag("line", x1=LEFT, x2=RIGHT, y1=base, y2=14, class_="kept"))
    return picture(title, WIDTH, base + 38, *inside)


def _bar(left: float, right: float, top: float, bottom: float, kind: str) -> Markup:
    return tag(
        "rect",
        x=left,
        y=top,
        width=max(right - left, 0.5),
        height=max(bottom - top, 0.0),
        class_=kind,
    )


def histogram(title: str, right: Sequence[int], wrong: Sequence[int]) -> Markup:
    """Counts from 0 to 1, of two kinds side by side, on a logarithmic axis: the few are what one looks for.

    Args:
        title: what it shows, in words.
        right: counts in bins of equal width.
        wrong: of as many bins.
    """
    base = 300.0
    across = linear((0, 1), LEFT, RIGHT)
    up = logarithmic([0.6, *right, *wrong], base, TOP)
    shown = Axis(
        0.6, up.high, base, TOP, tuple(each for each in up.ticks if each >= 1), logarithmic=True
    )
    inside = [*_grid(shown), *_below(across, "confidence", base)]
    width = (RIGHT - LEFT) / max(len(right), 1)
    for index, counts in enumerate(zip(right, wrong, strict=True)):
        for place, (kind, count) in enumerate(zip(("good", "bad"), counts, strict=True)):
            if count:
                x = LEFT + (index + place / 2) * width + 1
                words = f"{count:,} images, confidence {index / len(right):.2f} to {(index + 1) / len(right):.2f}"
                bar = _bar(x, x + width / 2 - 1, shown.place(count), base, kind)
                inside.append(tag("g", tag("title", words), bar))
    for place, (kind, name) in enumerate((("good", "right"), ("bad", "wrong"))):
        inside.append(_bar(LEFT + 70 * place, LEFT + 70 * place + 12, 8, 20, kind))
        inside.append(tag("text", name, x=LEFT + 70 * place + 18, y=18))
    return picture(title, WIDTH, base + 38, *inside)
