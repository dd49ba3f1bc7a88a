"""What is told beyond the run itself: events that automations can react to, and a message to a webhook."""

from collections.abc import Mapping
from typing import Any

from prefect.events import emit_event

from nnbuild.runtime import webhook
from nnbuild.runtime.text import sanitize
from nnbuild.scoring.commit import DriftReport
from tasks.artifacts import logger, outward, plain, rounded, show_table, within_a_run

COMMITTED = "nnbuild.run.committed"
PROMOTED = "nnbuild.champion.promoted"
REJECTED = "nnbuild.champion.rejected"
CHECK_FAILED = "nnbuild.data.check-failed"
STORE = "nnbuild.store"
"""The label of an event's resource that says which store it is about, where that is of use."""
DRIFTED = "nnbuild.drift.exceeded"
STOPPED = "nnbuild.run.stopped"


def announce(
    event: str, run_id: str, figures: Mapping[str, Any], *, store: str | None = None
) -> None:
    """An event about a run, with its id and figures; nothing where no flow runs.

    Args:
        event: its name.
        run_id: the run's.
        figures: small values.
        store: whose run it is, for automations that are about one store.
    """
    if within_a_run():
        emit(event, run_id, figures, store=store)


def emit(event: str, run_id: str, figures: Mapping[str, Any], *, store: str | None = None) -> None:
    """As `announce`, also for a hook, which runs behind its flow."""
    with outward(f"event {event}"):
        resource = {"prefect.resource.id": f"nnbuild.run.{run_id}"}
        resource["prefect.resource.name"] = run_id
        if store:
            resource[STORE] = sanitize(store)
        payload = {"run_id": run_id, **{name: plain(value) for name, value in figures.items()}}
        emit_event(event, resource, payload=payload)


def notify(text: str, **values: Any) -> None:
    """Send a message to `$NNBUILD_WEBHOOK`, if it is set. A failure is worth a warning, and no more."""
    with outward("the message to the webhook"):
        url = webhook.configured()
        if url is not None:
            message = {"text": text, **values}
            webhook.post(url, {name: plain(value) for name, value in message.items()})


def _short(value: Any) -> Any:
    return rounded(value) if isinstance(value, float) else value


def tell_of_drift(
    store: str, score_id: str, run_id: str | None, rows: int, drift: DriftReport
) -> None:
    """What a scoring job's drift is: a table, and where a threshold is passed an event and a message.

    Args:
        store: the root of its store.
        score_id: of the job.
        run_id: of the model's run.
        rows: that were scored.
        drift: as it was found.
    """
    with outward("the report of drift"):
        _tell_of_drift(store, score_id, run_id, rows, drift)


def _tell_of_drift(
    store: str, score_id: str, run_id: str | None, rows: int, drift: DriftReport
) -> None:
    if not drift.measures:
        logger().info("drift %s", drift.remark)
        return
    named = ", ".join(drift.exceeded)
    told = f"Drift of scoring job {score_id}: {named or 'no threshold passed'}"
    measures = (
        {name: _short(value) for name, value in each.model_dump().items()}
        for each in drift.measures
    )
    show_table("nnbuild-drift", measures, told)
    if not named:
        return
    logger().warning("%s drifted from what the model was validated on", named)
    figures = {f"{each.measure}_{each.statistic}": each.value for each in drift.measures}
    announce(
        DRIFTED,
        str(run_id),
        {"score_id": score_id, "exceeded": named, "rows": rows, **figures},
        store=store,
    )
    notify(told, event=DRIFTED, run_id=run_id, score_id=score_id, **figures)
