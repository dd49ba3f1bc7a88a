"""Validate schedules of the command line and of a plan file, before a server receives them."""

import asyncio
import re
import zoneinfo
from datetime import timedelta
from functools import cache
from typing import Any, NamedTuple

from nnbuild.errors import ConfigError, suggestion

DEFAULT_CRON = "0 3 * * *"
SECONDS_TO_START = 30.0
"""Generous time for a new process to start its run; a cron is due once a minute at most."""
SHORTEST_INTERVAL, LONGEST_INTERVAL = timedelta(seconds=1), timedelta(days=366)

_FIELDS = ("minute", "hour", "day of month", "month", "day of week")
_EXPECTED = f"expected five fields like {DEFAULT_CRON!r}: {', '.join(_FIELDS)}"
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_WORDS = frozenset({*_MONTHS, *_DAYS, "l"})
_NOT_A_TIMEZONE = frozenset({"Factory", "localtime", "posixrules"})
"""Other files in a system's timezone folder: they differ between machines, or are no timezone."""


class Plan(NamedTuple):
    """Schedules and parameters of a deployment.

    Attributes:
        schedules: Keyword arguments of each Prefect `Schedule`.
        parameters: Parameters of the flow, for runs whose schedule has none of its own.
    """

    schedules: list[dict[str, Any]]
    parameters: dict[str, Any]


@cache
def timezones() -> frozenset[str]:
    """Return the IANA names of the timezones on this machine."""
    return frozenset(zoneinfo.available_timezones() - _NOT_A_TIMEZONE)


def require_timezone(name: str) -> str:
    """Return the name of a timezone, if it is valid.

    Raises:
        ConfigError: The name is not an IANA timezone of this machine.
    """
    if name in timezones():
        return name
    near = suggestion(name, timezones())
    hint = near if near.startswith("did you mean") else "expected an IANA name like Europe/Berlin"
    raise ConfigError(f"unknown timezone {name!r}; {hint}")


def cron_schedule(cron: str, timezone: str, slug: str) -> dict[str, Any]:
    """Return the keyword arguments of a Prefect `Schedule` for a cron.

    Args:
        cron: Cron of five fields. Prefect would read a sixth as seconds, and a cron that never
            matches would keep its scheduler from the other schedules of the deployment.
        timezone: IANA name of the cron's timezone.
        slug: Name of the schedule within its deployment.

    Raises:
        ConfigError: The cron is malformed or never matches a date, or the timezone is unknown.
    """
    fields = _fields(cron)
    require_timezone(timezone)
    from prefect.server.schemas.schedules import CronSchedule

    try:
        schedule = CronSchedule(cron=fields, timezone=timezone)
    except ValueError as error:
        raise ConfigError(f"invalid cron {cron!r}; {_EXPECTED}") from error
    try:
        due = asyncio.run(schedule.get_dates(n=1))
    except ValueError:  # Prefect found none in the next 50 years
        due = []
    if not due:
        raise ConfigError(
            f"cron {cron!r} never matches a date: none of its months has that day; "
            "check the day of month"
        )
    return {"cron": fields, "timezone": timezone, "slug": slug}


def _fields(cron: str) -> str:
    """Return the five fields of a cron, separated by single spaces.

    Raises:
        ConfigError: The cron does not have five fields, or uses syntax that is not portable.
    """
    if not cron.isascii():
        character = next(each for each in cron if not each.isascii())
        raise ConfigError(
            f"cron {cron!r} contains the non-ASCII character {character!r}; {_EXPECTED}"
        )
    fields = cron.split()
    if len(fields) != len(_FIELDS):
        hint = "; seconds and years are not supported" if len(fields) > len(_FIELDS) else ""
        if cron.strip().startswith("@"):
            hint = "; macros are not supported"
        raise ConfigError(f"cron {cron!r} has {_count(len(fields))}; {_EXPECTED}{hint}")
    for word in re.findall("[a-z]+", cron.lower()):
        if word not in _WORDS:
            raise ConfigError(
                f"cron {cron!r} contains {word!r}; expected the name of a month (jan) or of a day "
                "(mon), or L for the last; random (R) and hashed (H) fields are not supported"
            )
    return " ".join(fields)


def _count(fields: int) -> str:
    return "1 field" if fields == 1 else f"{fields} fields"


def interval_schedule(seconds: float) -> dict[str, Any]:
    """Return the keyword arguments of a Prefect `Schedule` for a fixed interval.

    Args:
        seconds: Length of the interval.

    Raises:
        ConfigError: The interval is shorter than a second, longer than a year, or not a number.
    """
    shortest, longest = (each.total_seconds() for each in (SHORTEST_INTERVAL, LONGEST_INTERVAL))
    if not shortest <= seconds <= longest:  # true for NaN as well
        raise ConfigError(
            f"--interval {seconds:g}: "
            f"expected seconds from {shortest:.0f} to {longest:.0f} (a year)"
        )
    return {"interval": seconds, "slug": "interval"}
