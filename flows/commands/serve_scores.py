"""The part of `nnbuild serve` that scores."""

from pathlib import Path
from typing import Any, NamedTuple

from flows.commands.score import configured
from flows.schedules import cron_schedule
from nnbuild.config import loading
from nnbuild.errors import ConfigError
from nnbuild.store.filesystem import is_url

DEFAULT_CRON = "0 5 * * *"


class Scoring(NamedTuple):
    """What is scored, and when.

    Attributes:
        input: None scores nothing.
        crons: when; every day at five if there is none.
        settings: others of `nnbuild.ScoreConfig`, as KEY=VALUE.
        days: how far `{date}` in the input goes back.
    """

    input: str | None
    crons: list[str]
    settings: list[str]
    days: int


def parameters(scoring: Scoring, root: str, timezone: str, timeout: float | None) -> dict[str, Any]:
    """Return the parameters of the scoring flow.

    Raises:
        ConfigError: a setting cannot be used, or there are settings and no input.
    """
    if scoring.input is None:
        raise ConfigError(
            "--score-cron and --score-set are of no use without --score-input; give that too"
        )
    given = scoring.input if is_url(scoring.input) else str(Path(scoring.input).absolute())
    options: dict[str, Any] = {"input": given}
    for text in scoring.settings:
        options |= loading.parse_setting(text)
    config = configured(options).model_dump(mode="json")
    return {
        "config": config,
        "store": root,
        "days": scoring.days,
        "timezone": timezone,
        "timeout_seconds": timeout,
    }


def schedules(scoring: Scoring, timezone: str) -> list[dict[str, Any]]:
    """When it is due.

    Raises:
        ConfigError: a cron is none.
    """
    crons = scoring.crons or [DEFAULT_CRON]
    return [
        cron_schedule(each, timezone, f"score-{number}") for number, each in enumerate(crons, 1)
    ]
