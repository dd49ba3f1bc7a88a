"""Automations: one ends runs whose process was killed, so that none stays "Running" for ever; one retrains on drift."""

from datetime import timedelta
from typing import Any
from uuid import UUID

from prefect.client.schemas.objects import StateType
from prefect.events import AutomationCore, EventTrigger, Posture, ResourceSpecification
from prefect.events.actions import ChangeFlowRunState, RunDeployment

from tasks.telling import DRIFTED, STORE

NAME = "nnbuild: end runs that give no sign of life"
DRIFT = "nnbuild: retrain on drift"
HEARTBEAT = 30  # seconds
SILENCE = 90  # three missed heartbeats

_SIGN, _ENDS = "prefect.flow-run.heartbeat", ("Completed", "Failed", "Cancelled", "Crashed")


def zombies(flow_names: list[str]) -> AutomationCore:
    """A flow run that sent a heartbeat, and then neither another nor its end, is set to Crashed."""
    return AutomationCore(
        name=NAME,
        description=f"{' or '.join(flow_names)}: crashed after {SILENCE} s without a heartbeat; by nnbuild serve.",
        trigger=EventTrigger(
            posture=Posture.Proactive,
            after={_SIGN},
            expect={_SIGN, *(f"prefect.flow-run.{end}" for end in _ENDS)},
            match=ResourceSpecification({"prefect.resource.id": "prefect.flow-run.*"}),
            match_related=ResourceSpecification({"prefect.resource.role": "flow", "prefect.resource.name": flow_names}),
            for_each={"prefect.resource.id"},
            threshold=1,
            within=timedelta(seconds=SILENCE),
        ),
        actions=[ChangeFlowRunState(state=StateType.CRASHED, message=f"No heartbeat for {SILENCE} s.")],
    )


def retrain_on_drift(
    deployment_id: UUID, store: str, *, at_most_every: timedelta = timedelta(days=1)
) -> AutomationCore:
    """A drift that passes its threshold is answered by a run of a deployment.

    Args:
        deployment_id: of the retraining.
        store: its root; drift of what other stores' models scored is not answered.
        at_most_every: drift that comes again within this time is not answered again.
    """
    return AutomationCore(
        name=f"{DRIFT} of {store}",
        description=f"{DRIFTED} is answered by retraining; nnbuild serve --retrain-on-drift installs it.",
        trigger=EventTrigger(
            posture=Posture.Reactive,
            expect={DRIFTED},
            match=ResourceSpecification({"prefect.resource.id": "nnbuild.run.*", STORE: store}),
            threshold=1,
            within=at_most_every,
        ),
        actions=[RunDeployment(deployment_id=deployment_id, parameters={"overtaken": "run"})],
    )


def install(client: Any, wanted: AutomationCore) -> None:
    """Install an automation, in the place of one of the same name."""
    for each in client.read_automations_by_name(wanted.name):
        client.delete_automation(each.id)
    client.create_automation(wanted)
