"""SVG elements as text, and the axes of a chart, without a plotting library."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from markupsafe import Markup

from nnbuild.report.names import sanitize

_FEW_DECADES, _MAX_DECADES = 1.5, 6
_SMALLEST_DIFFERENCE = 1e-5  # relative: the labels of the ticks have six digits
_MAX_PLAIN_TICK = 1e6  # larger values get an exponent


def tag(name: str, *inside: object, **attributes: object) -> Markup:
    """Return an element, escaped; `class_` becomes class, `font_size` becomes font-size."""
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
    """Format a coordinate with one decimal; anything else as text without control characters."""
    return f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else sanitize(str(value))


def picture(
    title: str, width: float, height: float, *inside: object, class_: str = "chart"
) -> Markup:
    """Return an SVG that scales with its container.

    Args:
        title: Description for screen readers.
        width: Width of the coordinate system.
        height: Height of the coordinate system.
        inside: Elements.
        class_: Class for the style sheet.
    """
    box = f"0 0 {number(float(width))} {number(float(height))}"
    return tag("svg", *inside, viewBox=box, role="img", aria_label=title, class_=class_)


@dataclass(frozen=True)
class Axis:
    """Map from values to coordinates.

    Attributes:
        low: Value at `start`; above 0 if the axis is logarithmic.
        high: Value at `end`.
        start: Coordinate of the low end.
        end: Coordinate of the high end.
        ticks: Values to label.
        logarithmic: Whether equal factors are equal distances.
    """

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[float, ...]
    logarithmic: bool = False

    def place(self, value: float) -> float:
        """Return the coordinate of a value, clipped to the ends of the axis."""
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
    """Return a linear axis with round ends that includes all values."""
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
    """Return an axis of integers, from the lowest to the highest."""
    step = max(1, math.ceil(_step((high - low) / ticks)))
    inner = (
        float(each)
        for each in range(-(-low // step) * step, high + 1, step)
        if each - low >= step / 2
    )
    return Axis(low, high, start, end, (float(low), *inner))


def logarithmic(values: Iterable[float], start: float, end: float) -> Axis:
    """Return a logarithmic axis that includes all values above 0.

    Ticks are powers of ten, or 1, 2 and 5 times them if there are few.
    """
    positive = [value for value in values if value > 0]
    low, high = (min(positive), max(positive)) if positive else (1.0, 10.0)
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    between = math.log10(high / low) < _FEW_DECADES
    every = -(-len(exponents) // _MAX_DECADES)
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
    known = list(values)
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    room = abs(low) * 0.05 or 0.5
    differ = high - low > _SMALLEST_DIFFERENCE * max(abs(low), abs(high))
    return (low, high) if differ else (low - room, high + room)


def _step(rough: float) -> float:
    """Round up to 1, 2 or 5 times a power of ten."""
    if rough <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))


def _round(count: int, step: float) -> float:
    return round(count * step, max(0, -math.floor(math.log10(step)) + 1))


def tick_label(value: float) -> str:
    """Format the value of a tick."""
    thousands = 1000 <= abs(value) < _MAX_PLAIN_TICK
    return f"{value:,.0f}" if thousands else f"{value:.6g}"
