"""SVG as text, and the axes of a chart: no fonts, no script, no plotting library, and the page's own colours."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from markupsafe import Markup

from nnbuild.runtime.text import sanitize

_FEW, _ENOUGH_DECADES = 1.5, 6


def tag(name: str, *inside: object, **attributes: object) -> Markup:
    """An element. Texts and attributes are escaped; `class_` becomes class, `font_size` font-size."""
    written = Markup().join(
        Markup(' {}="{}"').format(key.rstrip("_").replace("_", "-"), number(value))
        for key, value in attributes.items()
    )
    return Markup("<{0}{1}>{2}</{0}>").format(
        name,
        written,
        Markup().join(each if isinstance(each, Markup) else number(each) for each in inside),
    )


def number(value: object) -> str:
    """A coordinate to a tenth of a unit, short; anything else as its text, without control characters."""
    return f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else sanitize(str(value))


def picture(
    title: str, width: float, height: float, *inside: object, class_: str = "chart"
) -> Markup:
    """An SVG that scales with its place.

    Args:
        title: what it shows, in words, for those who cannot see it.
        width: of the coordinates inside.
        height: of the coordinates inside.
        inside: its elements.
        class_: for the page's style.
    """
    box = f"0 0 {number(float(width))} {number(float(height))}"
    return tag("svg", *inside, viewBox=box, role="img", aria_label=title, class_=class_)


@dataclass(frozen=True)
class Axis:
    """From values to places on the picture.

    Attributes:
        low: the value at `start`; above 0 if the axis is logarithmic.
        high: the value at `end`.
        start: coordinate.
        end: coordinate.
        ticks: the values that are written beside it.
        logarithmic: equal factors are equal distances.
    """

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[float, ...]
    logarithmic: bool = False

    def place(self, value: float) -> float:
        """The coordinate of a value; one beyond the ends is put at the end."""
        low, high = (
            (self.low, self.high)
            if not self.logarithmic
            else (math.log(self.low), math.log(self.high))
        )
        if self.logarithmic:
            value = math.log(max(value, self.low))
        share = (value - low) / (high - low) if high > low else 0.5
        return self.start + min(max(share, 0.0), 1.0) * (self.end - self.start)


def linear(values: Iterable[float], start: float, end: float, *, ticks: int = 5) -> Axis:
    """An axis with round ends that holds all the values."""
    low, high = _bounds(values)
    step = _step((high - low) / ticks)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return Axis(
        first * step,
        last * step,
        start,
        end,
        tuple(_round(each, step) for each in range(first, last + 1)),
    )


def counting(low: int, high: int, start: float, end: float, *, ticks: int = 6) -> Axis:
    """An axis of whole numbers, from the lowest to the highest."""
    step = max(1, math.ceil(_step((high - low) / ticks)))
    inner = (
        float(each)
        for each in range(-(-low // step) * step, high + 1, step)
        if each - low >= step / 2
    )
    return Axis(low, high, start, end, (float(low), *inner))


def logarithmic(values: Iterable[float], start: float, end: float) -> Axis:
    """An axis of powers of ten, or of 1, 2 and 5 times them where these are few, that holds all the values."""
    found = [value for value in values if value > 0]
    low, high = (min(found), max(found)) if found else (1.0, 10.0)
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    between = math.log10(high / low) < _FEW
    every = -(-len(exponents) // _ENOUGH_DECADES)
    powers = [
        float(f"{digit}e{each}")
        for each in exponents[::every]
        for digit in ((1, 2, 5) if between else (1,))
    ]
    first = max((each for each in powers if each <= low), default=low)
    last = min(
        (each for each in powers if each >= high and each > first), default=max(high, 2 * first)
    )
    return Axis(
        first,
        last,
        start,
        end,
        tuple(each for each in powers if first <= each <= last),
        logarithmic=True,
    )


def _bounds(values: Iterable[float]) -> tuple[float, float]:
    found = list(values)
    low, high = (min(found), max(found)) if found else (0.0, 1.0)
    room = abs(low) * 0.05 or 0.5
    return (
        (low, high) if high - low > 1e-9 * max(abs(low), abs(high)) else (low - room, high + room)
    )


def _step(rough: float) -> float:
    """The next round number: 1, 2 or 5 times a power of ten."""
    if rough <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))


def _round(count: int, step: float) -> float:
    return round(count * step, max(0, -math.floor(math.log10(step)) + 1))


def told(value: float) -> str:
    """A tick's text."""
    return f"{value:,.0f}" if abs(value) >= 1000 and abs(value) < 1e6 else f"{value:.6g}"  # noqa: PLR2004
