"""Addresses with a date in them: `day={date}`, or `{date:FORMAT}` with a format of `strftime`."""

import glob
import re
from datetime import UTC, date, datetime

from nnbuild.errors import ConfigError

_PLACEHOLDER = re.compile(r"\{date(?::([^{}]*))?\}")
_ISO = "%Y-%m-%d"
_DIGITS = {"Y": 4, "m": 2, "d": 2, "j": 3, "y": 2}
_YEARS = ("Y", "y")
_DIRECTIVE = re.compile(f"%[{''.join(_DIGITS)}]")


def parse_day(text: str, setting: str) -> date:
    """Return the day that a text in ISO 8601 format means.

    Args:
        text: The text.
        setting: Setting or argument that it is the value of.

    Raises:
        ConfigError: It is not a day.
    """
    try:
        return date.fromisoformat(text)
    except ValueError as error:
        raise ConfigError(
            f"{text!r} is not a valid day, expected e.g. 2026-11-01", setting=setting, value=text
        ) from error


def is_dated(text: str) -> bool:
    """Return whether an address has the placeholder `{date}`."""
    return bool(_PLACEHOLDER.search(text))


def address_of_day(pattern: str, day: date) -> str:
    """Return the address of a day: the pattern with the day in place of `{date}`."""
    return _PLACEHOLDER.sub(lambda match: day.strftime(match[1] or _ISO), pattern)


def day_of_address(pattern: str, address: str) -> date | None:
    """Return the day whose address this is; None if it is the address of no day.

    A pattern may have the directives `%Y`, `%m`, `%d`, `%j` and `%y`, each also more than once.
    """
    match = re.fullmatch(_expression(pattern), address)
    if match is None:
        return None
    fields = match.groupdict()
    if fields.keys().isdisjoint(_YEARS):  # Python 3.13 warns of such a day
        return None
    try:
        values, directives = " ".join(fields.values()), " ".join(f"%{name}" for name in fields)
        day = datetime.strptime(values, directives).replace(tzinfo=UTC).date()
    except ValueError:
        return None
    return day if address_of_day(pattern, day) == address else None


def _expression(pattern: str) -> str:
    """Return a regular expression for the addresses of all days, with a group for each field."""
    known: set[str] = set()

    def field(directive: re.Match[str]) -> str:
        name = directive[0][1:]
        if name in known:
            return f"(?P={name})"
        known.add(name)
        return rf"(?P<{name}>\d{{{_DIGITS[name]}}})"

    def placeholder(format_: str) -> str:
        literals = map(re.escape, _DIRECTIVE.split(format_))
        fields = [field(each) for each in _DIRECTIVE.finditer(format_)]
        return "".join(map("".join, zip(literals, [*fields, ""], strict=True)))

    literals = map(re.escape, _PLACEHOLDER.split(pattern)[::2])
    dates = [placeholder(match[1] or _ISO) for match in _PLACEHOLDER.finditer(pattern)]
    return "".join(map("".join, zip(literals, [*dates, ""], strict=True)))


def wildcard(pattern: str) -> str:
    """Return a glob pattern that matches the addresses of all days, and perhaps others."""
    literals = _PLACEHOLDER.split(pattern)[::2]
    stars = [_DIRECTIVE.sub("*", match[1] or _ISO) for match in _PLACEHOLDER.finditer(pattern)]
    return "".join(
        glob.escape(literal) + star for literal, star in zip(literals, [*stars, ""], strict=True)
    )


def undated_part(pattern: str) -> str:
    """Return the part of an address before the first component with a placeholder.

    It is `/srv/labelled` for `/srv/labelled/date={date}/`.
    """
    before = pattern[: match.start()] if (match := _PLACEHOLDER.search(pattern)) else pattern
    return before.rpartition("/")[0]


def require_whole_date(pattern: str) -> None:
    """Require that different days have different addresses.

    Raises:
        ValueError: Two days have the same address, because the date is incomplete.
    """
    days = [date(2025, 1, 1), date(2025, 1, 2), date(2025, 2, 1), date(2026, 1, 1)]
    addresses = [address_of_day(pattern, day) for day in days]
    for day, address in zip(days, addresses, strict=True):
        if day_of_address(pattern, address) != day:
            raise ValueError(
                f"{pattern!r} does not say which day it is; write {{date}}, or a format with "
                "year, month and day once, such as {date:%Y/%m/%d}"
            )
