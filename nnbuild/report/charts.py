"""Small pictures as SVG text: they need no network, no fonts and no plotting library, and follow the page's colours."""

from collections.abc import Mapping, Sequence
from html import escape

WIDTH, HEIGHT, MARGIN = 460, 240, 48

Points = Sequence[tuple[float, float]]


def _frame(title: str, body: str, labels: tuple[str, str], corners: tuple[str, str, str, str]) -> str:
    """An SVG with axes: `corners` are the texts at the ends of the horizontal and of the vertical axis."""
    left, right, low, high = (escape(each) for each in corners)
    bottom, top, end = HEIGHT - MARGIN, MARGIN / 2, WIDTH - MARGIN / 2
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}"><title>{escape(title)}</title>'
        f'<path class="axis" d="M{MARGIN} {top}V{bottom}H{end}"/>{body}'
        f'<text x="{MARGIN}" y="{bottom + 15}">{left}</text>'
        f'<text x="{end}" y="{bottom + 15}" class="end">{right}</text>'
        f'<text x="{MARGIN - 4}" y="{bottom}" class="end">{low}</text>'
        f'<text x="{MARGIN - 4}" y="{top + 8}" class="end">{high}</text>'
        f'<text x="{(MARGIN + end) / 2}" y="{HEIGHT - 6}" class="middle">{escape(labels[0])}</text>'
        f'<text x="{MARGIN + 6}" y="{top + 8}">{escape(labels[1])}</text></svg>'
    )


def _scale(value: float, low: float, high: float, start: float, end: float) -> float:
    share = (value - low) / (high - low) if high > low else 0.5
    return round(start + share * (end - start), 1)


def lines(title: str, series: Mapping[str, Points], labels: tuple[str, str], marked: float | None = None) -> str:
    """One line for each series.

    Args:
        title: the text for those who cannot see it.
        series: points by name; not finite ones are left out.
        labels: of the horizontal and of the vertical axis.
        marked: a place on the horizontal axis to draw a dashed line at.
    """
    kept = {name: [(x, y) for x, y in points if y - y == 0] for name, points in series.items()}
    xs = [x for points in kept.values() for x, _ in points] or [0.0]
    ys = [y for points in kept.values() for _, y in points] or [0.0]
    right, bottom = WIDTH - MARGIN / 2, HEIGHT - MARGIN
    body = ""
    for number, (name, points) in enumerate(kept.items()):
        places = [
            (_scale(x, min(xs), max(xs), MARGIN, right), _scale(y, min(ys), max(ys), bottom, MARGIN / 2))
            for x, y in points
        ]
        path = " ".join(f"{x},{y}" for x, y in places)
        body += f'<polyline class="line c{number % 4}" points="{path}"/>'
        body += "".join(f'<circle class="dot c{number % 4}" cx="{x}" cy="{y}" r="2.5"/>' for x, y in places[:60])
        body += f'<text x="{right - 75 * number}" y="{HEIGHT - 6}" class="end t{number % 4}">{escape(name)}</text>'
    if marked is not None:
        place = _scale(marked, min(xs), max(xs), MARGIN, right)
        body += f'<path class="mark" d="M{place} {MARGIN / 2}V{bottom}"/>'
    ends = (f"{min(xs):g}", f"{max(xs):g}", f"{min(ys):.3g}", f"{max(ys):.3g}")
    return _frame(title, body, labels, ends)


def bars(title: str, heights: Sequence[float], labels: tuple[str, str], diagonal: Sequence[float | None] = ()) -> str:
    """Bars of equal width from 0 to 1, and, for a reliability diagram, a dot in each at another height.

    Args:
        title: the text for those who cannot see it.
        heights: one for each bar, 0 or more.
        labels: of the horizontal and of the vertical axis.
        diagonal: heights of the dots; None for a bar without one.
    """
    right, bottom = WIDTH - MARGIN / 2, HEIGHT - MARGIN
    highest = max([*heights, *(each for each in diagonal if each is not None), 1e-9])
    width = (right - MARGIN) / max(len(heights), 1)
    body = ""
    for index, height in enumerate(heights):
        y = _scale(height, 0, highest, bottom, MARGIN / 2)
        x = round(MARGIN + index * width, 1)
        body += f'<rect class="bar" x="{x}" y="{y}" width="{width - 1:.1f}" height="{round(bottom - y, 1)}"/>'
        dot = diagonal[index] if index < len(diagonal) else None
        if dot is not None:
            y = _scale(dot, 0, highest, bottom, MARGIN / 2)
            body += f'<circle class="dot c1" cx="{x + width / 2:.1f}" cy="{y}" r="3"/>'
    return _frame(title, body, labels, ("0", "1", "0", f"{highest:.3g}"))


def heat_map(title: str, counts: Sequence[Sequence[int]], names: Sequence[str]) -> str:
    """A confusion matrix: true classes down, predicted ones across; wrong cells are coloured by their share.

    Args:
        title: the text for those who cannot see it.
        counts: of examples, square.
        names: of the classes.
    """
    size, cell = len(counts), 30
    body = ""
    for row, line in enumerate(counts):
        whole = max(sum(line), 1)
        body += f'<text x="{cell - 4}" y="{(row + 1.65) * cell}" class="end">{escape(names[row][:4])}</text>'
        body += f'<text x="{(row + 1.5) * cell}" y="{cell - 6}" class="middle">{escape(names[row][:4])}</text>'
        for column, count in enumerate(line):
            x, y = (column + 1) * cell, (row + 1) * cell
            kind, strength = ("right", 0.25) if row == column else ("wrong", min(1.0, (count / whole) ** 0.5 * 2))
            body += f'<rect class="{kind}" fill-opacity="{strength:.2f}" x="{x}" y="{y}" width="29" height="29"/>'
            if count:
                body += f'<text x="{x + 15}" y="{y + 19}" class="middle cell">{count}</text>'
    side = (size + 1) * cell
    return (
        f'<svg viewBox="0 0 {side} {side}" role="img" aria-label="{escape(title)}"><title>{escape(title)}</title>'
        f"{body}</svg>"
    )
