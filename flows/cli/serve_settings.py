"""Settings of the scheduled runs, from the options of `nnbuild serve` and from a plan."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.cli.score import score_config
from flows.cli.settings import merge_settings, parse_options
from nnbuild.config.presets import DATASETS
from nnbuild.errors import ConfigError, suggestion

if TYPE_CHECKING:
    from nnbuild.config.schema import RunConfig, ScheduledConfig

DEFAULT_SCORE_CRON = "0 5 * * *"
DEFAULT_LABEL_CRON = "0 6 * * *"
DEFAULT_PRUNE_CRON = "0 7 * * *"
Schedule = dict[str, Any]
_PLAN_KEYS = {"name", "cron", "timezone", "config"}


def scheduled_config(config: RunConfig) -> ScheduledConfig:
    """Return the config of a scheduled run, with paths that are valid in any working folder.

    Raises:
        ConfigError: A setting is invalid, or not allowed in a scheduled run.
    """
    from nnbuild.config.schema import ScheduledConfig, resolve
    from nnbuild.store.filesystem import absolute_address, is_url

    scheduled = ScheduledConfig.model_validate(config.model_dump())
    resolve(scheduled.run_config())
    dataset = scheduled.dataset
    paths: dict[str, Path | str] = {}
    if dataset.data_dir is not None:
        paths["data_dir"] = dataset.data_dir.absolute()
    if dataset.metadata is not None:
        paths["metadata"] = dataset.metadata.absolute()
    if dataset.name not in DATASETS and not is_url(dataset.name):
        if not {"/", "."} & set(dataset.name) and not Path(dataset.name).exists():
            raise ConfigError(
                f"dataset {dataset.name!r} is neither a known name nor an existing path; "
                f"{suggestion(dataset.name, DATASETS)}"
            )
        paths["name"] = absolute_address(dataset.name)
    changed: dict[str, Any] = {"dataset": dataset.model_copy(update=paths)}
    if (golden := scheduled.gate.golden) is not None and golden not in DATASETS:
        changed["gate"] = scheduled.gate.model_copy(update={"golden": absolute_address(golden)})
    return scheduled.model_copy(update=changed)


def config_of_schedule(
    base: ScheduledConfig, settings: dict[str, Any], plan: Path | None
) -> dict[str, Any]:
    """Return the config of one schedule: the common settings, overridden by its own."""
    from nnbuild.config import loading

    merged = loading.merge(base.model_dump(mode="json", exclude_none=True), settings)
    return scheduled_config(loading.parse_config(merged, plan)).model_dump(mode="json")


def retraining_schedules(
    crons: list[str], interval: float | None, plan: Path | None, timezone: str
) -> list[Schedule]:
    """Return the schedules of the retraining: crons, one interval, or those of a plan.

    Raises:
        ConfigError: More than one of them is given, or one is invalid.
    """
    from flows.schedules import DEFAULT_CRON, interval_schedule

    if crons and interval is not None:
        raise ConfigError("--cron and --interval exclude each other; give one of them")
    if plan is not None:
        if crons or interval is not None:
            option = "--cron" if crons else "--interval"
            raise ConfigError(
                f"{option} and --plan exclude each other; give one of them, or add a schedule to "
                f"{plan}"
            )
        return planned_schedules(plan, timezone)
    if interval is not None:
        return [interval_schedule(interval)]
    return cron_schedules(crons or [DEFAULT_CRON], timezone, "cron")


def cron_schedules(crons: list[str], timezone: str, slug: str) -> list[Schedule]:
    """Return a schedule for each cron; their names begin with `slug`."""
    from flows.schedules import cron_schedule

    return [
        cron_schedule(each, timezone, f"{slug}-{number}") for number, each in enumerate(crons, 1)
    ]


def planned_schedules(plan: Path, timezone: str) -> list[Schedule]:
    """Return the schedules of a plan, each with the `config` of its runs.

    Args:
        plan: File with the schedules.
        timezone: Timezone of the schedules that have none.

    Raises:
        ConfigError: A schedule is invalid, and the message names it; or the timezone is unknown.
    """
    from flows.schedules import require_timezone
    from nnbuild.config import loading

    require_timezone(timezone)
    tables = loading.read_toml(plan).get("schedule")
    if not isinstance(tables, list) or not tables:
        raise ConfigError(
            f"{plan} has no [[schedule]]; write one for each schedule, with cron and config"
        )
    schedules = [
        _planned_schedule(f"{plan}: schedule {number}", number, each, timezone)
        for number, each in enumerate(tables, 1)
    ]
    names = [each["slug"] for each in schedules]
    if duplicates := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"{plan}: two schedules are called {duplicates[0]!r}; rename one of them")
    return schedules


def _planned_schedule(place: str, number: int, table: Any, timezone: str) -> Schedule:
    from flows.schedules import cron_schedule

    keys = sorted(table) if isinstance(table, dict) else table
    if not isinstance(table, dict) or "cron" not in table or table.keys() - _PLAN_KEYS:
        raise ConfigError(
            f"{place} has {keys}, expected cron and optionally name, timezone, config"
        )
    texts = {"name": f"plan-{number}", "timezone": timezone} | table
    for key in ("cron", "name", "timezone"):
        if not isinstance(texts[key], str) or not texts[key]:
            raise ConfigError(f"{place}: {key} is {texts[key]!r}, expected a text")
    config = table.get("config", {})
    if not isinstance(config, dict):
        raise ConfigError(f"{place}: config is {config!r}, expected a table of settings")
    try:
        schedule = cron_schedule(texts["cron"], texts["timezone"], texts["name"])
    except ConfigError as error:
        raise ConfigError(f"{place}: {error}") from error
    return schedule | {"config": config}


def scoring_settings(source: str | None, settings: list[str]) -> dict[str, Any]:
    """Return the config of scheduled scoring, with a path that is valid in any working folder.

    Raises:
        ConfigError: The input is missing, or a setting is invalid.
    """
    from nnbuild.store.filesystem import absolute_address

    if source is None:
        raise ConfigError(
            "--score-cron, --score-set and --shadow have no effect without --score-input; give "
            "that too"
        )
    options = merge_settings({"input": absolute_address(source)}, {}, settings)
    return score_config(options).model_dump(mode="json")


def labelling_settings(source: str | None, settings: list[str]) -> dict[str, Any]:
    """Return the configs of scheduled labelling, with a path that is valid in any working folder.

    Raises:
        ConfigError: The input is missing, or a setting is invalid.
    """
    from nnbuild.live import LabelConfig, LiveConfig
    from nnbuild.store.filesystem import absolute_address

    if source is None:
        raise ConfigError(
            "--label-cron, --label-set and --retrain-on-loss have no effect without "
            "--label-input; give that too"
        )
    options = merge_settings({}, {"input": absolute_address(source)}, settings)
    alarm = {name: options.pop(name) for name in LiveConfig.model_fields if name in options}
    return {
        "config": parse_options(LabelConfig, options).model_dump(mode="json"),
        "live": parse_options(LiveConfig, alarm).model_dump(mode="json"),
    }


def pruning_settings(
    keep: int | None, settings: list[str], score_input: str | None, score_days: int
) -> dict[str, Any]:
    """Return the config of scheduled pruning.

    Raises:
        ConfigError: The number of runs is missing, a setting is invalid, or scheduled scoring would
            score again what is deleted.
    """
    from nnbuild.pipeline.retention import retention_config

    if keep is None:
        raise ConfigError(
            "--prune-cron, --prune-set and --prune-prefect have no effect without --prune; "
            "give the number of runs to keep"
        )
    options = merge_settings({"keep": keep}, {}, settings)
    retention = retention_config(options).model_dump(mode="json")
    if score_input is not None:
        _require_more_jobs_than_days(retention, score_input, score_days)
    return retention


def _require_more_jobs_than_days(retention: dict[str, Any], source: str, days: int) -> None:
    """Refuse a pruning that deletes jobs whose days the next scoring would score again.

    Raises:
        ConfigError: Fewer jobs are kept than there are days to score.
    """
    from nnbuild.runtime.date_patterns import is_dated

    most = max(retention["keep"], retention["keep_days"] or 0)
    if retention["scores"] and is_dated(source) and most < days:
        raise ConfigError(
            f"--prune {retention['keep']} keeps fewer scoring jobs than the {days} days of "
            "--score-days, which would be scored again and again; keep more, or set keep_days"
        )
