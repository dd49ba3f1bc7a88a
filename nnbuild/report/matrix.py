"""The confusion matrix as a heat map."""

from collections.abc import Sequence

from markupsafe import Markup

from nnbuild.report.charts import _LETTER
from nnbuild.report.svg import picture, tag

_CELL = 34
_LONGEST = 12
_UPRIGHT = 3  # longer names do not fit above a column
_THOUSANDS = 10_000
_TINY = 0.02


def heat_map(
    title: str, counts: Sequence[Sequence[int]], names: Sequence[str], totals: Sequence[int]
) -> Markup:
    """True classes down, predicted ones across; the stronger the red, the larger that share of the true class.

    The strongest is the largest such share, if that is not tiny.

    Args:
        title: what it shows, in words.
        counts: of examples, square.
        names: of the classes.
        totals: examples of each true class, those that were taken for classes not shown among them.
    """
    short = [shortened(name) for name in names]
    longest = max(map(len, short), default=1)
    turned = longest > _UPRIGHT
    left = 30 + _LETTER * longest
    top = 30 + (_LETTER * longest if turned else 12)
    side = _CELL * len(names)
    shares = [
        [count / max(total, 1) for count in line]
        for line, total in zip(counts, totals, strict=True)
    ]
    strongest = max(
        [
            _TINY,
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
        inside.append(tag("text", name, x=left - 7, y=top + middle + 4, class_="end"))
        x, y = left + middle, top - 8
        where = (
            {"transform": _turn(x + 4, y), "x": x + 4} if turned else {"class_": "middle", "x": x}
        )
        inside.append(tag("text", name, y=y, **where))
    for row, line in enumerate(counts):
        for column, count in enumerate(line):
            place_of = (left + column * _CELL, top + row * _CELL)
            words = f"{names[row]} taken for {names[column]}: {count:,} of {totals[row]:,}"
            # The root, because a few in a thousand are what there is to see.
            share = shares[row][column]
            strength = (
                0.15 + 0.3 * share if row == column else 0.08 + 0.67 * (share / strongest) ** 0.5
            )
            inside.append(
                _cell(place_of, count, words, "good" if row == column else "bad", strength)
            )
    return picture(title, left + side + 4, top + side + 4, *inside, class_="chart matrix")


def shortened(name: str) -> str:
    """A class's name; of a long one its beginning and its end, which names of one kind often differ in."""
    return (
        name if len(name) <= _LONGEST else f"{name[: _LONGEST // 2]}…{name[-(_LONGEST // 2 - 1) :]}"
    )


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
