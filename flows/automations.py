"""Automations: two end runs whose process was killed, so that none stays as it is for ever; one retrains on drift."""

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
from tasks.events import DRIFTED, STOPPED, STORE

FLOWS = ["scheduled-retrain", "scheduled-score"]  # whose runs are watched
NAME = "nnbuild: end runs that give no sign of life"
UNBEGUN = "nnbuild: end runs that do not begin"
DRIFT = "nnbuild: retrain on drift"
HEARTBEAT = 30  # seconds
SILENCE = 90  # three missed heartbeats
START = 300  # what the imports of a new process may take on a busy machine, with room
BLOCK = "nnbuild-webhook"
"""Where the server keeps the URL of the webhook, encrypted."""
ROLL_CALL = "nnbuild.serve.roll-call"
"""Who runs answers it by a heartbeat. For the runs of which the server was told nothing before it was killed too."""

_ENDS = {f"prefect.flow-run.{end}" for end in ("Completed", "Failed", "Cancelled", "Crashed")}
_BEGUN, _SIGN, _TAKEN = (f"prefect.flow-run.{name}" for name in ("Running", "heartbeat", "Pending"))
_PUT_OFF = {f"prefect.flow-run.{name}" for name in ("AwaitingConcurrencySlot", "Scheduled", "Late")}


def zombies(url: str | None = None) -> list[AutomationCore]:
    """A flow run whose process is gone is set to Crashed, whether it had begun or was about to.

    Args:
        url: of a webhook that the server is to tell of it, since nobody else is left to; kept by the server.
    """
    block = _webhook_block(url) if url is not None else None

    def ended(why: str) -> list[Any]:
        message = (
            [CallWebhook(block_document_id=block, payload=_message(why))]
            if block is not None
            else []
        )
        return [ChangeFlowRunState(state=StateType.CRASHED, message=why), *message]

    told = " or ".join(FLOWS)
    return [
        AutomationCore(
            name=NAME,
            description=f"{told}: crashed after {SILENCE} s without a heartbeat; by nnbuild serve.",
            trigger=_missing(
                {_BEGUN, _SIGN, *_ENDS}, after={_BEGUN, _SIGN, ROLL_CALL}, within=SILENCE
            ),
            actions=ended(f"No heartbeat for {SILENCE} s."),
        ),
        AutomationCore(
            name=UNBEGUN,
            description=f"{told}: crashed if it is taken up and has not begun after {START} s; by nnbuild serve.",
            trigger=_missing({_BEGUN, *_PUT_OFF, *_ENDS}, after={_TAKEN}, within=START),
            actions=ended(f"Not begun within {START} s."),
        ),
    ]


def _webhook_block(url: str) -> UUID:
    """The block of the server that holds the URL; it is made, or changed."""
    headers = SecretDict({"Content-Type": "application/json"})
    return Webhook(url=SecretStr(url), headers=headers).save(BLOCK, overwrite=True)


def _message(why: str) -> str:
    """Return a template of the message that a run's own hook would send; Prefect fills in the run.

    `tojson` quotes the run's name, which users choose by naming a dataset.
    """
    advice = json.dumps(f": crashed: {why} What the run has waits in the store for the next one.")
    rest = json.dumps({"event": STOPPED, "state": "Crashed", "flow_run_id": "{{ flow_run.id }}"})
    return f'{{"text": {{{{ (flow_run.name ~ {advice}) | tojson }}}}, {rest[1:]}'


def _missing(expect: set[str], *, after: set[str], within: int) -> EventTrigger:
    """Of a run of the flows, some event and then none of those that are expected."""
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


def call_the_roll(runs: Iterable[Any], flow_names: Mapping[UUID, str]) -> None:
    """Have the runs ended that do not answer.

    Args:
        runs: flow runs that should be running.
        flow_names: by the flow's id.
    """
    for each in runs:
        flow = {
            "prefect.resource.id": f"prefect.flow.{each.flow_id}",
            "prefect.resource.role": "flow",
        }
        emit_event(
            ROLL_CALL,
            {
                "prefect.resource.id": f"prefect.flow-run.{each.id}",
                "prefect.resource.name": each.name,
            },
            related=[flow | {"prefect.resource.name": flow_names[each.flow_id]}],
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
        name=f"{DRIFT} of {sanitize(store)}",
        description=f"{DRIFTED} is answered by retraining; nnbuild serve --retrain-on-drift installs it.",
        trigger=EventTrigger(
            posture=Posture.Reactive,
            expect={DRIFTED},
            match=ResourceSpecification(
                {"prefect.resource.id": "nnbuild.run.*", STORE: sanitize(store)}
            ),
            threshold=1,
            within=at_most_every,
        ),
        actions=[RunDeployment(deployment_id=deployment_id, parameters={"overtaken": "run"})],
    )


def install_zombies(client: Any) -> None:
    """Install what ends the runs of processes that are gone, and tells `$NNBUILD_WEBHOOK` of it."""
    for each in zombies(webhook.configured()):
        install(client, each)


def install(client: Any, wanted: AutomationCore) -> None:
    """Install an automation, in the place of one of the same name.

    One that is the same already is left: a new one would know nothing of the runs that the old one watches, and those
    are the runs of the process that was killed before this one.
    """
    known = client.read_automations_by_name(wanted.name)
    if [AutomationCore.model_validate(each.model_dump()) for each in known] == [wanted]:
        return
    for each in known:
        client.delete_automation(each.id)
    client.create_automation(wanted)


if __name__ == "__main__":  # for work pools; serve does it itself
    with get_client(sync_client=True) as client:
        install_zombies(client)
