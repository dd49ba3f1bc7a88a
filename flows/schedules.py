"""When runs are due, as it is given on the command line."""

import zoneinfo
from typing import Any, NamedTuple

from nnbuild.errors import ConfigError

DEFAULT_CRON = "0 3 * * *"
SECONDS_TO_START = 30.0
"""What a process of its own can take before its run begins, with room; a cron is never so quick."""


class Plan(NamedTuple):
    """A deployment: when, and with what.

    Attributes:
        schedules: keyword arguments of Prefect's `Schedule`, of each.
        parameters: of the flow, unless a schedule has its own.
    """

    schedules: list[dict[str, Any]]
    parameters: dict[str, Any]


def cron_schedule(cron: str, timezone: str, slug: str) -> dict[str, Any]:
    """A cron as the keyword arguments of a Prefect `Schedule`.

    Raises:
        ConfigError: it is none, or the timezone is not known.
    """
    if timezone not in zoneinfo.available_timezones():
        raise ConfigError(f"timezone {timezone!r} is not known, expected a name like Europe/Berlin")
    from prefect.schedules import Cron

    try:
        Cron(cron)
    except ValueError as error:
        raise ConfigError(
            f"cron {cron!r} is no schedule, expected five fields like {DEFAULT_CRON!r}"
        ) from error
    return {"cron": cron, "timezone": timezone, "slug": slug}
