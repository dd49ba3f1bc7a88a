"""Charts of the report: lines, reliability diagram, histogram and confusion matrix."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import NamedTuple

from markupsafe import Markup

from nnbuild.report.names import isolate, shorten
from nnbuild.report.svg import Axis, counting, linear, logarithmic, picture, tag, tick_label

WIDTH, HEIGHT = 400, 250
LEFT, RIGHT, TOP, BOTTOM = 66, 388, 32, 212
_LOG_RATIO = 10  # ratio of the largest to the smallest value above which an axis is logarithmic
_MAX_DOTS, _MAX_POINTS = 40, 400
_LETTER_WIDTH = 6.6
_FEW_IMAGES = 20

Points = Sequence[tuple[float, float]]


class Bin(NamedTuple):
    """One bar of a reliability diagram; confidence and accuracy are None without images."""

    lower: float
    upper: float
    images: int
    confidence: float | None
    accuracy: float | None


def lines(
    title: str,
    series: Mapping[str, Points],
    *,
    others: Sequence[Mapping[str, Points]] = (),
    joined: bool = True,
    restored: float | None = None,
    best: tuple[float, float] | None = None,
    marks: Points = (),
    log: bool = False,
    highest: float | None = None,
    label: str = "epoch",
) -> Markup:
    """Draw one line for each series, by epoch.

    Args:
        title: Description of the chart for screen readers.
        series: Points (epoch, value) by name; the name "" has no legend. Values that are not
            finite are omitted.
        others: Further series, drawn like those of the same names, such as those of the other
            networks of an ensemble.
        joined: Whether to join the points of a series.
        restored: Epoch at which to draw a dashed line.
        best: Point to circle.
        marks: Further points to circle.
        log: Whether the axis may be logarithmic if the values differ much.
        highest: Largest possible value, above which the axis does not go.
        label: Label of the horizontal axis.
    """
    every = [points for each in (series, *others) for points in each.values()]
    kinds = {
        name: kind
        for kind, name in enumerate(dict.fromkeys(chain.from_iterable((series, *others))))
    }
    drawn = [
        (kinds[name] % 4, _thinned([each for each in points if math.isfinite(each[1])]))
        for of_network in (series, *others)
        for name, points in of_network.items()
    ]
    values = [value for _, points in drawn for _, value in points]
    epochs = [int(epoch) for points in every for epoch, _ in points] or [1]
    across = counting(min(epochs), max(epochs), LEFT + 8, RIGHT - 8)
    wide = log and values and min(values) > 0 and max(values) / min(values) > _LOG_RATIO
    up = logarithmic(values, BOTTOM, TOP) if wide else linear(values, BOTTOM, TOP)
    if highest is not None and up.low < highest < up.high:
        up = replace(up, high=highest, ticks=tuple(each for each in up.ticks if each <= highest))
    inside = [*_grid(up), *_labels(across, label), *_legend(list(kinds))]
    if restored is not None:
        x = across.place(restored)
        inside.append(tag("line", x1=x, x2=x, y1=TOP, y2=BOTTOM, class_="kept"))
    for kind, points in drawn:
        places = [(across.place(x), up.place(y)) for x, y in points]
        inside += _line(places, kind) if joined else _dots(places, kind)
    for x, y in [*([] if best is None else [best]), *marks]:
        if math.isfinite(y):
            inside.append(tag("circle", cx=across.place(x), cy=up.place(y), r=6, class_="ring"))
    return picture(title, WIDTH, HEIGHT, *inside)


def _thinned(points: Points) -> Points:
    if len(points) <= _MAX_POINTS:
        return points
    step = (len(points) - 1) / (_MAX_POINTS - 1)
    return [points[round(index * step)] for index in range(_MAX_POINTS)]


def _line(places: Points, kind: int) -> Iterator[Markup]:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    yield tag("polyline", points=path, class_=f"line k{kind}")
    if len(places) <= _MAX_DOTS:
        yield from _dots(places, kind)


def _dots(places: Points, kind: int) -> Iterator[Markup]:
    return (tag("circle", cx=x, cy=y, r=2.6, class_=f"dot k{kind}") for x, y in places)


def _legend(names: Sequence[str]) -> Iterator[Markup]:
    x = float(LEFT)
    for kind, name in enumerate(names):
        if not name:
            continue
        yield tag("line", x1=x, x2=x + 18, y1=14, y2=14, class_=f"line k{kind % 4}")
        yield tag("text", name, x=x + 24, y=18)
        x += 24 + _LETTER_WIDTH * len(name) + 18


def _grid(up: Axis) -> Iterator[Markup]:
    for value in up.ticks:
        y = up.place(value)
        yield tag("line", x1=LEFT, x2=RIGHT, y1=y, y2=y, class_="grid")
        yield tag("text", tick_label(value), x=LEFT - 6, y=y + 4, class_="end")


def _labels(across: Axis, label: str, base: float = BOTTOM) -> Iterator[Markup]:
    for value in across.ticks:
        yield tag("text", tick_label(value), x=across.place(value), y=base + 16, class_="middle")
    yield tag("text", label, x=(across.start + across.end) / 2, y=base + 33, class_="middle label")


def reliability(title: str, bins: Sequence[Bin]) -> Markup:
    """Draw the accuracy in each bin of confidence, and its distance from the confidence.

    Args:
        title: Description of the chart for screen readers.
        bins: Bins in ascending order.
    """
    base = 300.0
    across, up = linear((0, 1), LEFT, RIGHT), linear((0, 1), base, 14)
    inside = [*_grid(up), *_labels(across, "confidence", base)]
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


def histogram(title: str, correct: Sequence[int], incorrect: Sequence[int]) -> Markup:
    """Draw counts of correct and incorrect predictions by confidence from 0 to 1.

    The axis is logarithmic, so that a few incorrect predictions remain visible.

    Args:
        title: Description of the chart for screen readers.
        correct: Counts in bins of equal width.
        incorrect: Counts in the same bins.
    """
    base = 300.0
    across = linear((0, 1), LEFT, RIGHT)
    up = logarithmic([0.6, *correct, *incorrect], base, TOP)
    shown = Axis(
        0.6, up.high, base, TOP, tuple(each for each in up.ticks if each >= 1), logarithmic=True
    )
    inside = [*_grid(shown), *_labels(across, "confidence", base)]
    bins = max(len(correct), 1)
    width = (RIGHT - LEFT) / bins
    for index, counts in enumerate(zip(correct, incorrect, strict=True)):
        for place, (kind, count) in enumerate(zip(("good", "bad"), counts, strict=True)):
            if count:
                x = LEFT + (index + place / 2) * width + 1
                low, high = index / bins, (index + 1) / bins
                words = f"{count:,} images, confidence {low:.2f} to {high:.2f}"
                bar = _bar(x, x + width / 2 - 1, shown.place(count), base, kind)
                inside.append(tag("g", tag("title", words), bar))
    for place, (kind, name) in enumerate((("good", "correct"), ("bad", "incorrect"))):
        left = LEFT + 84 * place
        inside.append(_bar(left, left + 12, 8, 20, kind))
        inside.append(tag("text", name, x=left + 18, y=18))
    return picture(title, WIDTH, base + 38, *inside)


_CELL = 34
_MAX_UPRIGHT = 3  # longer names do not fit above a column
_THOUSANDS = 10_000
_MIN_STRONGEST = 0.02


def heat_map(
    title: str,
    counts: Sequence[Sequence[int]],
    names: Sequence[str],
    totals: Sequence[int],
    short_names: Mapping[str, str] | None = None,
) -> Markup:
    """Draw a confusion matrix: true classes down, predicted classes across.

    The red of a cell grows with its share of the true class, up to the largest such share.

    Args:
        title: Description of the chart for screen readers.
        counts: Numbers of images, a square matrix.
        names: Names of the classes shown.
        totals: Number of images of each true class, including predictions of classes not shown.
        short_names: Short name of each class; by default, the shown names are shortened.
    """
    labels = short_names or shorten(names)
    short = [labels[name] for name in names]
    longest = max(map(len, short), default=1)
    turned = longest > _MAX_UPRIGHT
    left = 30 + _LETTER_WIDTH * longest
    top = 30 + (_LETTER_WIDTH * longest if turned else 12)
    side = _CELL * len(names)
    shares = [
        [count / max(total, 1) for count in line]
        for line, total in zip(counts, totals, strict=True)
    ]
    strongest = max(
        [
            _MIN_STRONGEST,
            *(share for row, line in enumerate(shares) for share in line[:row] + line[row + 1 :]),
        ]
    )
    inside = [
        tag("text", "predicted", x=left + side / 2, y=14, class_="middle label"),
        tag(
            "text",
            "true",
            x=12,
            y=top + side / 2,
            class_="middle label",
            transform=_turn(12, top + side / 2),
        ),
    ]
    for place, name in enumerate(short):
        middle = (place + 0.5) * _CELL
        inside.append(tag("text", isolate(name), x=left - 7, y=top + middle + 4, class_="end"))
        x, y = left + middle, top - 8
        where = (
            {"transform": _turn(x + 4, y), "x": x + 4} if turned else {"class_": "middle", "x": x}
        )
        inside.append(tag("text", isolate(name), y=y, **where))
    for row, line in enumerate(counts):
        for column, count in enumerate(line):
            place_of = (left + column * _CELL, top + row * _CELL)
            words = (
                f"{isolate(names[row])} predicted as {isolate(names[column])}: "
                f"{count:,} of {totals[row]:,}"
            )
            # The square root keeps shares of a few in a thousand visible.
            share = shares[row][column]
            strength = (
                0.15 + 0.3 * share if row == column else 0.08 + 0.67 * (share / strongest) ** 0.5
            )
            inside.append(
                _cell(place_of, count, words, "good" if row == column else "bad", strength)
            )
    return picture(title, left + side + 4, top + side + 4, *inside, class_="chart matrix")


def _turn(x: float, y: float) -> str:
    return f"rotate(-90 {x:.1f} {y:.1f})"


def _cell(place: tuple[float, float], count: int, words: str, kind: str, strength: float) -> Markup:
    x, y = place
    size = _CELL - 2
    if not count:
        return tag("rect", x=x, y=y, width=size, height=size, rx=3, class_="none")
    square = tag(
        "rect", x=x, y=y, width=size, height=size, rx=3, class_=kind, fill_opacity=f"{strength:.2f}"
    )
    text = f"{count / 1000:.0f}k" if count >= _THOUSANDS else str(count)
    number = tag("text", text, x=x + size / 2, y=y + size / 2 + 4, class_="middle")
    return tag("g", tag("title", words), square, number)
