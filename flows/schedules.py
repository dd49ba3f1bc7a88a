"""Schedules as the command line and a plan give them, checked before a server sees them."""

import asyncio
import re
import zoneinfo
from datetime import timedelta
from functools import cache
from typing import Any, NamedTuple

from nnbuild.errors import ConfigError, suggestion

DEFAULT_CRON = "0 3 * * *"
SECONDS_TO_START = 30.0
"""What a process of its own can take before its run begins, with room; a cron is never so quick."""
SHORTEST_INTERVAL, LONGEST_INTERVAL = timedelta(seconds=1), timedelta(days=366)

_FIELDS = ("minute", "hour", "day of month", "month", "day of week")
_EXPECTED = f"expected five fields like {DEFAULT_CRON!r}: {', '.join(_FIELDS)}"
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_WORDS = frozenset({*_MONTHS, *_DAYS, "l"})
_NOT_A_PLACE = frozenset({"Factory", "localtime", "posixrules"})
"""Files beside the timezones of a system: they mean another time on every machine, or none."""


class Plan(NamedTuple):
    """A deployment: when, and with what.

    Attributes:
        schedules: Keyword arguments of each Prefect `Schedule`.
        parameters: Parameters of the flow, unless a schedule has its own.
    """

    schedules: list[dict[str, Any]]
    parameters: dict[str, Any]


@cache
def timezones() -> frozenset[str]:
    """Return the names of the IANA timezones that this machine knows."""
    return frozenset(zoneinfo.available_timezones() - _NOT_A_PLACE)


def require_timezone(name: str) -> str:
    """Return the name of a timezone.

    Raises:
        ConfigError: It is not in the IANA list.
    """
    if name in timezones():
        return name
    near = suggestion(name, timezones())
    told = near if near.startswith("did you mean") else "expected an IANA name like Europe/Berlin"
    raise ConfigError(f"timezone {name!r} is not known; {told}")


def cron_schedule(cron: str, timezone: str, slug: str) -> dict[str, Any]:
    """Return a cron as the keyword arguments of a Prefect `Schedule`.

    Args:
        cron: Five fields. Prefect's scheduler would take six for a time of every second, and one
            that never comes would keep it from scheduling the others of the deployment.
        timezone: IANA name of the timezone that the cron is in.
        slug: Name of the schedule within its deployment.

    Raises:
        ConfigError: The cron is malformed or never comes, or the timezone is not known.
    """
    fields = _fields(cron)
    require_timezone(timezone)
    from prefect.server.schemas.schedules import CronSchedule

    try:
        schedule = CronSchedule(cron=fields, timezone=timezone)
    except ValueError as error:
        raise ConfigError(f"cron {cron!r} is not valid, {_EXPECTED}") from error
    try:
        due = asyncio.run(schedule.get_dates(n=1))
    except ValueError:  # the scheduler has looked at the next 50 years
        due = []
    if not due:
        raise ConfigError(
            f"cron {cron!r} never comes: no month it names has that day; check its day of month"
        )
    return {"cron": fields, "timezone": timezone, "slug": slug}


def _fields(cron: str) -> str:
    """Return the five fields of a cron with one space between them.

    Raises:
        ConfigError: There are not five, or a field holds what no cron means everywhere.
    """
    if not cron.isascii():
        strange = next(each for each in cron if not each.isascii())
        raise ConfigError(f"cron {cron!r} holds {strange!r}, which is not ASCII; {_EXPECTED}")
    fields = cron.split()
    if len(fields) != len(_FIELDS):
        hint = "; seconds and years are not supported" if len(fields) > len(_FIELDS) else ""
        hint = "; write a macro as its five fields" if cron.strip().startswith("@") else hint
        raise ConfigError(f"cron {cron!r} has {_count(len(fields))}, {_EXPECTED}{hint}")
    for word in re.findall("[a-z]+", cron.lower()):
        if word not in _WORDS:
            raise ConfigError(
                f"cron {cron!r} holds {word!r}; expected the name of a month (jan) or a day (mon), "
                "or L for the last; random (R) and hashed (H) fields are not supported"
            )
    return " ".join(fields)


def _count(fields: int) -> str:
    return "1 field" if fields == 1 else f"{fields} fields"


def interval_schedule(seconds: float) -> dict[str, Any]:
    """Return a fixed interval as the keyword arguments of a Prefect `Schedule`.

    Raises:
        ConfigError: It is not a number of seconds that a schedule can have.
    """
    shortest, longest = (each.total_seconds() for each in (SHORTEST_INTERVAL, LONGEST_INTERVAL))
    if not shortest <= seconds <= longest:  # nan is not, either
        raise ConfigError(
            f"--interval {seconds:g}, "
            f"expected seconds from {shortest:.0f} to {longest:.0f} (a year)"
        )
    return {"interval": seconds, "slug": "interval"}
