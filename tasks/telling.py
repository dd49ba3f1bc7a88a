"""What is told beyond the run itself: events that automations can react to, and a message to a webhook."""

from collections.abc import Mapping
from typing import Any

from prefect.events import emit_event

from nnbuild import webhook
from nnbuild.errors import NnbuildError
from tasks.prefect_side import logger, plain, within_a_run

COMMITTED = "nnbuild.run.committed"
PROMOTED = "nnbuild.champion.promoted"
REJECTED = "nnbuild.champion.rejected"
CHECK_FAILED = "nnbuild.data.check-failed"
DRIFTED = "nnbuild.drift.exceeded"
STOPPED = "nnbuild.run.stopped"


def announce(event: str, run_id: str, figures: Mapping[str, Any]) -> None:
    """An event about a run, with its id and figures; nothing where no flow runs.

    Args:
        event: its name.
        run_id: the run's.
        figures: small values.
    """
    if within_a_run():
        emit(event, run_id, figures)


def emit(event: str, run_id: str, figures: Mapping[str, Any]) -> None:
    """As `announce`, also for a hook, which runs behind its flow."""
    resource = {"prefect.resource.id": f"nnbuild.run.{run_id}", "prefect.resource.name": run_id}
    emit_event(event, resource, payload={"run_id": run_id, **{name: plain(value) for name, value in figures.items()}})


def notify(text: str, **values: Any) -> None:
    """A message to `$NNBUILD_WEBHOOK`, if there is one. That it is not taken is worth a warning, and no more."""
    try:
        url = webhook.configured()
        if url is not None:
            webhook.post(url, {"text": text, **{name: plain(value) for name, value in values.items()}})
    except NnbuildError as error:
        logger().warning("%s", error)
