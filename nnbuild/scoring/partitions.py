"""Inputs that lie in one place a day: `images/date={date}/`, `images/{date:%Y/%m/%d}.parquet`."""

import os
import re
from datetime import date, timedelta
from typing import NamedTuple

from nnbuild.errors import ConfigError
from nnbuild.scoring.config import ScoreConfig

_DATE = re.compile(r"\{date(?::([^{}]*))?\}")
MOST_DAYS = 3660


class Partition(NamedTuple):
    """The input of a day.

    Attributes:
        day: which.
        config: of its job: the day stands in the place of `{date}`.
    """

    day: date
    config: ScoreConfig


def is_dated(text: str) -> bool:
    """Whether a day can be put into it."""
    return bool(_DATE.search(text))


def partitions(config: ScoreConfig, first: date, last: date) -> list[Partition]:
    """The days of a range, each with its own input; and with its own output, if there is one.

    Args:
        config: whose `input` holds `{date}`, or `{date:…}` with a format of `strftime`.
        first: day.
        last: day, included.

    Raises:
        ConfigError: the range ends before it begins or is longer than ten years, `{date}` is
            missing, or two days with inputs of their own have the same output.
    """
    if last < first:
        raise ConfigError(f"from {first} to {last}: ends before it begins; exchange the two")
    days = (last - first).days + 1
    if days > MOST_DAYS:
        raise ConfigError(
            f"from {first} to {last}: {days} days, expected {MOST_DAYS} at most; go in parts"
        )
    for option, given in (("--input", config.input), ("--output", config.output)):
        if given is not None and not is_dated(given):
            raise ConfigError(
                f"{option} {given!r} is the same for every day; put {{date}} where the day stands"
            )
    found = [_of(config, first + timedelta(days=number)) for number in range(days)]
    _require_own_outputs(found)
    return found


def _require_own_outputs(days: list[Partition]) -> None:
    writers: dict[str, Partition] = {}
    for each in days:
        output = each.config.output
        if output is None:
            continue
        other = writers.setdefault(os.path.normpath(output), each)
        if other.config.input != each.config.input:
            raise ConfigError(
                f"--output {output!r} is the same for {other.day} and {each.day}; "
                "put the whole {date} into it"
            )


def _of(config: ScoreConfig, day: date) -> Partition:
    given = {"input": config.input, "output": config.output}
    dated = {
        name: _DATE.sub(lambda found: day.strftime(found[1] or "%Y-%m-%d"), text)
        for name, text in given.items()
        if text
    }
    return Partition(day, config.model_copy(update=dated))
