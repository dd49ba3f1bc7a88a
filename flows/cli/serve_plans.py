"""What `nnbuild serve` deploys: schedules and parameters for each of its flows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.cli.serve_settings import (
    DEFAULT_LABEL_CRON,
    DEFAULT_PRUNE_CRON,
    DEFAULT_SCORE_CRON,
    Schedule,
    config_of_schedule,
    cron_schedules,
    labelling_settings,
    pruning_settings,
    scheduled_config,
    scoring_settings,
)
from flows.schedules import Plan
from nnbuild.errors import ConfigError

if TYPE_CHECKING:
    from nnbuild.config.schema import RunConfig

Parameters = dict[str, Any]


def retraining_plan(
    config: RunConfig,
    schedules: list[Schedule],
    timezone: str,
    parameters: Parameters,
    file: Path | None,
) -> Plan:
    """Return the plan of the retraining.

    The deployment's own parameters are for runs that no schedule planned. They are the settings of
    the runs, in the timezone of the first schedule. A file of schedules without such settings gives
    those of its first schedule.

    Args:
        config: Settings of the runs.
        schedules: Their schedules, which may have settings of their own under `config`.
        timezone: Timezone of the schedules that have none.
        parameters: Other parameters of the flow.
        file: File with the schedules, for messages; None if they are options.
    """
    from nnbuild.config.loading import merge

    base = scheduled_config(config)
    has_no_timezone = "timezone" not in config.dataset.model_fields_set

    def complete(own: dict[str, Any], zone: str) -> Parameters:
        if has_no_timezone:  # the day of a run is that of its schedule
            own = merge({"dataset": {"timezone": zone}}, own)
        return parameters | {"config": config_of_schedule(base, own, file)}

    for each in schedules:
        each["parameters"] = complete(each.pop("config", {}), each.get("timezone", timezone))
    if file is not None and not config.model_fields_set:
        return Plan(schedules, schedules[0]["parameters"])
    return Plan(schedules, complete({}, schedules[0].get("timezone", timezone)))


def require_one_dataset(plan: Plan, option: str) -> None:
    """Refuse an automation for a retraining of several datasets: it starts runs of one.

    Args:
        plan: Plan of the retraining.
        option: Option that asks for the automation, for the message.

    Raises:
        ConfigError: The runs of the plan have several datasets.
    """
    runs = [plan.parameters, *(each["parameters"] for each in plan.schedules)]
    names = sorted({str(each["config"]["dataset"]["name"]) for each in runs})
    if len(names) > 1:
        raise ConfigError(
            f"{option} retrains on one dataset, but --plan, --config and --set give several "
            f"({', '.join(map(repr, names))}); give the same dataset.name to all of them, or leave "
            f"out {option}"
        )


def scoring_plan(
    address: str | None,
    settings: list[str],
    crons: list[str],
    timezone: str,
    parameters: Parameters,
) -> Plan | None:
    """Return the plan of the scoring; None if no option asks for it."""
    if address is None and not crons and not settings:
        return None
    own = {"config": scoring_settings(address, settings), "timezone": timezone}
    schedules = cron_schedules(crons or [DEFAULT_SCORE_CRON], timezone, "score")
    return Plan(schedules, parameters | own)


def labelling_plan(
    address: str | None,
    settings: list[str],
    crons: list[str],
    timezone: str,
    parameters: Parameters,
    *,
    is_needed: bool,
) -> Plan | None:
    """Return the plan of the labelling; None if neither an option nor another plan needs it."""
    if address is None and not crons and not settings and not is_needed:
        return None
    own = labelling_settings(address, settings)
    schedules = cron_schedules(crons or [DEFAULT_LABEL_CRON], timezone, "label")
    return Plan(schedules, own | parameters)


def pruning_plan(
    runs: int | None,
    settings: list[str],
    crons: list[str],
    timezone: str,
    parameters: Parameters,
    *,
    flow_run_days: int | None,
    score_input: str | None,
    score_days: int,
) -> Plan | None:
    """Return the plan of the pruning; None if no option asks for it.

    Args:
        runs: Number of runs to keep.
        settings: Other settings as KEY=VALUE.
        crons: When to prune.
        timezone: Timezone of the crons.
        parameters: Other parameters of the flow.
        flow_run_days: Age in days of the flow runs to delete from Prefect; None to delete none.
        score_input: Input of the scheduled scoring, whose jobs of the last days are kept.
        score_days: Number of these days.
    """
    if runs is None and not crons and not settings and flow_run_days is None:
        return None
    retention = pruning_settings(runs, settings, score_input, score_days)
    own = {"config": retention, "flow_run_days": flow_run_days}
    schedules = cron_schedules(crons or [DEFAULT_PRUNE_CRON], timezone, "prune")
    return Plan(schedules, parameters | own)
