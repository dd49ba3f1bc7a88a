"""Notify the outside of a run: Prefect events for automations, and messages to a webhook."""

from collections.abc import Mapping
from typing import Any

from prefect import events

from nnbuild.live import Alarm
from nnbuild.report.live import on_alarm
from nnbuild.runtime import webhook
from nnbuild.runtime.text import sanitize
from nnbuild.scoring.commit import DriftReport
from nnbuild.store import Run
from nnbuild.store.step_results import Decided
from tasks.artifacts import rounded, scoring_key, show_table, to_json_scalar
from tasks.displays import in_prefect_run, logger, outward

COMMITTED = "nnbuild.run.committed"
APPROVAL_REQUESTED = "nnbuild.run.approval-requested"
PROMOTED = "nnbuild.champion.promoted"
REJECTED = "nnbuild.champion.rejected"
CHECK_FAILED = "nnbuild.data.check-failed"
DRIFTED = "nnbuild.drift.exceeded"
LIVE_DROPPED = "nnbuild.live.dropped"
STOPPED = "nnbuild.run.stopped"
STORE = "nnbuild.store"
"""Label of an event's resource: the root of its store, for automations of a single store."""


def emit_run_event(
    event: str, run_id: str, values: Mapping[str, Any], *, store: str | None = None
) -> None:
    """Emit an event about a run, if Prefect runs this code.

    Args:
        event: Name of the event.
        run_id: ID of the run.
        values: Metrics and other small values for the payload.
        store: Root of the run's store, for automations of a single store.
    """
    if in_prefect_run():
        emit_event(event, run_id, values, store=store)


def emit_event(
    event: str, run_id: str, values: Mapping[str, Any], *, store: str | None = None
) -> None:
    """Emit an event like `emit_run_event`, also from a hook, which runs after its flow."""
    with outward(f"event {event}"):
        resource = {
            "prefect.resource.id": f"nnbuild.run.{run_id}",
            "prefect.resource.name": run_id,
        }
        if store:
            resource[STORE] = sanitize(store)
        events.emit_event(event, resource, payload=_scalars({"run_id": run_id, **values}))


def send_webhook(text: str, **values: Any) -> None:
    """Post a message to `$NNBUILD_WEBHOOK`, if it is set. A failure is logged as a warning."""
    with outward("the message to the webhook"):
        url = webhook.configured()
        if url is not None:
            webhook.post(url, _scalars({"text": text, **values}))


def request_approval(run: Run, decided: Decided, url: str | None) -> None:
    """Notify people that a run waits for their approval, by an event and the webhook.

    Args:
        run: Run that passed the gate.
        decided: Decision of the gate.
        url: Address of the flow run's page, which has the form; None if unknown.
    """
    seconds = run.config.gate.approval_seconds
    values = {
        "reason": decided.gate_reason,
        "champion": decided.champion,
        "approval_seconds": seconds,
        "url": url,
        **decided.figures,
    }
    emit_run_event(APPROVAL_REQUESTED, run.run_id, values, store=run.store)
    text = (
        f"Run {run.run_id} waits {seconds / 3600:.3g} h for approval: "
        f"test accuracy {decided.figures['accuracy']:.4f}; {decided.gate_reason}"
    )
    send_webhook(
        f"{text}. Answer at {url}" if url else text,
        event=APPROVAL_REQUESTED,
        run_id=run.run_id,
        store=run.store,
        url=url,
        test_accuracy=decided.figures["accuracy"],
        champion_accuracy=decided.figures.get("champion_accuracy"),
    )


def _scalars(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: to_json_scalar(value) for name, value in values.items()}


def report_drop(store: str, alarm: Alarm) -> None:
    """Notify the outside that the accuracy of a champion has dropped.

    Args:
        store: Root of the store.
        alarm: The alarm that was raised.
    """
    with outward("the report of a drop"):
        message = on_alarm(alarm)
        logger().warning("%s", message)
        names = ("labelled", "accuracy", "reference", "floor", "evidence", "threshold")
        values = {name: getattr(alarm, name) for name in names}
        emit_run_event(LIVE_DROPPED, alarm.run_id, values, store=store)
        send_webhook(message, event=LIVE_DROPPED, run_id=alarm.run_id, **values)


def report_drift(
    store: str, score_id: str, run_id: str | None, rows: int, drift: DriftReport
) -> None:
    """Show the drift of a scoring job in a table; above a threshold also notify the outside.

    Args:
        store: Root of the store.
        score_id: ID of the scoring job.
        run_id: ID of the run whose model scored.
        rows: Number of scored rows.
        drift: Result of the comparison with the model's reference.
    """
    with outward("the report of drift"):
        _report_drift(store, score_id, run_id, rows, drift)


def _report_drift(
    store: str, score_id: str, run_id: str | None, rows: int, drift: DriftReport
) -> None:
    if not drift.measures:
        logger().info("drift %s", drift.remark)
        return
    exceeded = ", ".join(drift.exceeded)
    message = f"Drift of scoring job {score_id}: {exceeded or 'no threshold exceeded'}"
    measures = (
        {name: _short(value) for name, value in each.model_dump().items()}
        for each in drift.measures
    )
    show_table(scoring_key("nnbuild-drift", store, run_id), measures, message)
    if not exceeded:
        return
    logger().warning("%s drifted from the validation images of the model", exceeded)
    values = {f"{each.measure}_{each.statistic}": each.value for each in drift.measures}
    payload = {"score_id": score_id, "exceeded": exceeded, "rows": rows, **values}
    emit_run_event(DRIFTED, str(run_id), payload, store=store)
    send_webhook(message, event=DRIFTED, run_id=run_id, score_id=score_id, **values)


def _short(value: object) -> object:
    return rounded(value) if isinstance(value, float) else value
