"""Install automations on a Prefect server: end crashed runs, retrain on drift or loss of accuracy.

Two automations detect runs whose process was killed, which would otherwise be running forever.
"""

import json
from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Any
from uuid import UUID

from prefect import get_client
from prefect.blocks.webhook import Webhook
from prefect.client.schemas.objects import StateType
from prefect.events import AutomationCore, EventTrigger, Posture, ResourceSpecification, emit_event
from prefect.events.actions import CallWebhook, ChangeFlowRunState, RunDeployment
from prefect.types import SecretDict
from pydantic import SecretStr

from nnbuild.runtime import webhook
from nnbuild.runtime.text import sanitize
from tasks.events import DRIFTED, LIVE_DROPPED, STOPPED, STORE

FLOWS = ["scheduled-retrain", "scheduled-score", "scheduled-label", "scheduled-prune"]
"""Flows whose runs are monitored."""
SILENT = "nnbuild: end runs without a heartbeat"
NOT_STARTED = "nnbuild: end runs that do not start"
DRIFT = "nnbuild: retrain on drift"
LOSS = "nnbuild: retrain on loss of accuracy"
HEARTBEAT_SECONDS = 30
SILENCE_SECONDS = 90
"""Three missed heartbeats."""
START_SECONDS = 300
"""Generous time for the imports of a new process on a busy machine."""
WEBHOOK_BLOCK = "nnbuild-webhook"
"""Name of the block in which the server stores the URL of the webhook, encrypted."""
HEARTBEAT_REQUEST = "nnbuild.serve.heartbeat-requested"
"""Event that a live run answers by its next heartbeat. It starts the clock for runs about which the
server received nothing before it was killed itself."""

_FINAL = {f"prefect.flow-run.{name}" for name in ("Completed", "Failed", "Cancelled", "Crashed")}
_RUNNING, _HEARTBEAT, _PENDING = (
    f"prefect.flow-run.{name}" for name in ("Running", "heartbeat", "Pending")
)
_POSTPONED = {
    f"prefect.flow-run.{name}" for name in ("AwaitingConcurrencySlot", "Scheduled", "Late")
}


def crash_detection(url: str | None = None) -> list[AutomationCore]:
    """Return the automations that set a run to Crashed if its process has disappeared.

    Args:
        url: URL of a webhook that the server then calls, since the run's own hooks cannot. The
            server stores it.
    """
    block = _save_webhook(url) if url is not None else None

    def actions(reason: str) -> list[Any]:
        crash = ChangeFlowRunState(state=StateType.CRASHED, message=reason)
        if block is None:
            return [crash]
        return [crash, CallWebhook(block_document_id=block, payload=_message(reason))]

    flows = f"{', '.join(FLOWS[:-1])} and {FLOWS[-1]}"
    return [
        AutomationCore(
            name=SILENT,
            description=f"Sets runs of {flows} to Crashed after {SILENCE_SECONDS} s without a "
            "heartbeat. Installed by nnbuild serve.",
            trigger=_missing(
                {_RUNNING, _HEARTBEAT, *_FINAL},
                after={_RUNNING, _HEARTBEAT, HEARTBEAT_REQUEST},
                within=SILENCE_SECONDS,
            ),
            actions=actions(f"No heartbeat for {SILENCE_SECONDS} s."),
        ),
        AutomationCore(
            name=NOT_STARTED,
            description=f"Sets runs of {flows} to Crashed if they are pending for "
            f"{START_SECONDS} s. Installed by nnbuild serve.",
            trigger=_missing(
                {_RUNNING, *_POSTPONED, *_FINAL}, after={_PENDING}, within=START_SECONDS
            ),
            actions=actions(f"Not started within {START_SECONDS} s."),
        ),
    ]


def _save_webhook(url: str) -> UUID:
    """Create or update the server's block with the URL; return its ID."""
    headers = SecretDict({"Content-Type": "application/json"})
    block = Webhook(url=SecretStr(url), headers=headers)
    return UUID(str(block.save(WEBHOOK_BLOCK, overwrite=True)))


def _message(reason: str) -> str:
    """Return a template of the message that the run's own hook would send.

    Prefect fills in the run. `tojson` quotes its name, which users choose by naming a dataset.
    """
    text = json.dumps(f": crashed: {reason} The next run resumes from what is in the store.")
    rest = json.dumps({"event": STOPPED, "state": "Crashed", "flow_run_id": "{{ flow_run.id }}"})
    return f'{{"text": {{{{ (flow_run.name ~ {text}) | tojson }}}}, {rest[1:]}'


def _missing(expect: set[str], *, after: set[str], within: int) -> EventTrigger:
    """Return a trigger for runs of the flows that go silent.

    Args:
        expect: Names of the events of which one is expected.
        after: Names of the events after which it is expected.
        within: Seconds in which it is expected.
    """
    return EventTrigger(
        posture=Posture.Proactive,
        after=after,
        expect=expect,
        match=ResourceSpecification({"prefect.resource.id": "prefect.flow-run.*"}),
        match_related=ResourceSpecification(
            {"prefect.resource.role": "flow", "prefect.resource.name": FLOWS}
        ),
        for_each={"prefect.resource.id"},
        threshold=1,
        within=timedelta(seconds=within),
    )


def request_heartbeats(runs: Iterable[Any], flow_names: Mapping[UUID, str]) -> None:
    """Request a heartbeat from runs; those that do not answer are set to Crashed.

    Args:
        runs: Flow runs that are marked as running.
        flow_names: Names of their flows, by the flow's ID.
    """
    for each in runs:
        flow = {
            "prefect.resource.id": f"prefect.flow.{each.flow_id}",
            "prefect.resource.role": "flow",
            "prefect.resource.name": flow_names[each.flow_id],
        }
        run = {
            "prefect.resource.id": f"prefect.flow-run.{each.id}",
            "prefect.resource.name": each.name,
        }
        emit_event(HEARTBEAT_REQUEST, run, related=[flow])


def retrain_on_drift(
    deployment_id: UUID, store: str, *, at_most_every: timedelta = timedelta(days=1)
) -> AutomationCore:
    """Return an automation that retrains when drift exceeds a threshold.

    Args:
        deployment_id: ID of the retraining deployment.
        store: Root of the store. Drift that is measured in other stores is ignored.
        at_most_every: Shortest time between two retrainings.
    """
    return _retrain_on(
        DRIFTED,
        name=DRIFT,
        option="--retrain-on-drift",
        deployment_id=deployment_id,
        store=store,
        at_most_every=at_most_every,
    )


def retrain_on_loss(
    deployment_id: UUID, store: str, *, at_most_every: timedelta = timedelta(days=1)
) -> AutomationCore:
    """Return an automation that retrains when the accuracy of the champion has dropped.

    The arguments are those of `retrain_on_drift`.
    """
    return _retrain_on(
        LIVE_DROPPED,
        name=LOSS,
        option="--retrain-on-loss",
        deployment_id=deployment_id,
        store=store,
        at_most_every=at_most_every,
    )


def _retrain_on(
    event: str, *, name: str, option: str, deployment_id: UUID, store: str, at_most_every: timedelta
) -> AutomationCore:
    return AutomationCore(
        name=f"{name} of {sanitize(store)}",
        description=f"Retrains on {event}. Installed by nnbuild serve {option}.",
        trigger=EventTrigger(
            posture=Posture.Reactive,
            expect={event},
            match=ResourceSpecification(
                {"prefect.resource.id": "nnbuild.run.*", STORE: sanitize(store)}
            ),
            threshold=1,
            within=at_most_every,
        ),
        actions=[RunDeployment(deployment_id=deployment_id, parameters={"catch_up": True})],
    )


def install_crash_detection(client: Any) -> None:
    """Install the automations of `crash_detection`, which also notify `$NNBUILD_WEBHOOK`."""
    for each in crash_detection(webhook.configured()):
        install(client, each)


def install(client: Any, automation: AutomationCore) -> None:
    """Install an automation in place of the one of the same name.

    An identical one is kept: a new one would not know the runs that the old one watches, which are
    those of the process that was killed before this one.
    """
    installed = client.read_automations_by_name(automation.name)
    if [AutomationCore.model_validate(each.model_dump()) for each in installed] == [automation]:
        return
    for each in installed:
        client.delete_automation(each.id)
    client.create_automation(automation)


if __name__ == "__main__":  # for work pools; `nnbuild serve` does it itself
    with get_client(sync_client=True) as prefect_client:
        install_crash_detection(prefect_client)
