"""Single values as they are read."""

from datetime import datetime
from typing import Any


def percent(share: float, digits: int = 2) -> str:
    """A share as a percentage; a little more than none is not written as none."""
    least = 10.0**-digits
    if 0 < share * 100 < least / 2:
        return f"< {least:g} %"
    return f"{100 * share:.{digits}f} %"


def chance(probability: float) -> str:
    """A probability as a percentage; a small one with its first digit."""
    return f"{100 * probability:.1f} %" if probability >= 0.001 else f"{100 * probability:.1g} %"  # noqa: PLR2004


def setting(value: Any) -> str:
    """A setting as it reads in a table."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    return ", ".join(map(setting, value)) if isinstance(value, (list, tuple)) else str(value)


def cell(value: Any) -> str:
    """A value of a table as it is read: a time to the minute, a number to four digits."""
    if value is None or value == "":
        return "–"
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M}"
    if isinstance(value, float):
        return f"{value:.4g}"
    return setting(value)
