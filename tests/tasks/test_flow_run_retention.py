"""Prefect's database is trimmed: nnbuild's old flow runs go, and nobody else's."""

from datetime import UTC, datetime, timedelta

import pytest
from prefect import flow, get_client
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.filters import FlowRunFilter
from prefect.states import Completed, Running

from flows import scheduled
from flows.retrain import retrain
from flows.score import score
from flows.sweep import sweep
from tasks.flow_run_retention import _OUR_PARAMETERS, FLOWS, delete_flow_runs

OURS = (
    retrain,
    score,
    sweep,
    scheduled.scheduled_retrain,
    scheduled.scheduled_score,
    scheduled.scheduled_label,
    scheduled.scheduled_prune,
)


def test_flows_are_the_known_ones():
    assert {each.name for each in OURS} == set(FLOWS)
    assert all(set(each.parameters.properties) >= _OUR_PARAMETERS for each in OURS)


@flow(name="retrain")
def our_flow(config=None, store=None):
    create_markdown_artifact(key="nnbuild-report", markdown="text")
    return Completed()


@flow(name="score")
def flow_of_others(text="a"):
    create_markdown_artifact(key="theirs", markdown=text)
    return Completed()


def ids():
    with get_client(sync_client=True) as client:
        return {each.id for each in client.read_flow_runs()}


def artifacts_of(run_id):
    with get_client(sync_client=True) as client:
        criteria = {"id": {"any_": [run_id]}}
        found = client.read_artifacts(flow_run_filter=FlowRunFilter.model_validate(criteria))
        return len(found)


@pytest.fixture
def runs(prefect_server):
    before = ids()
    our_flow()
    (ended,) = ids() - before
    flow_of_others()
    (others,) = ids() - before - {ended}
    with get_client(sync_client=True) as client:
        running = client.create_flow_run(
            our_flow, parameters={"config": None, "store": None}, state=Running()
        ).id
    return ended, others, running


def test_prune_deletes_only_our_ended_runs(runs):
    ended, others, running = runs
    known = ids()
    young = delete_flow_runs(datetime.now(UTC) - timedelta(days=1))
    assert (young, ids()) == ((0, 0), known)
    soon = datetime.now(UTC) + timedelta(seconds=1)
    planned = delete_flow_runs(soon, dry_run=True)
    assert ids() == known
    assert planned.flow_runs >= 1
    assert delete_flow_runs(soon) == planned
    assert ended not in ids()
    assert {others, running} <= ids()
    assert (artifacts_of(ended), artifacts_of(others)) == (0, 1)
    assert delete_flow_runs(soon) == (0, 0)


def test_prune_reads_every_page(prefect_server, monkeypatch):
    monkeypatch.setattr("tasks.flow_run_retention._PAGE", 2)
    with get_client(sync_client=True) as client:
        parameters = {"config": None, "store": None}
        made = {
            client.create_flow_run(our_flow, parameters=parameters, state=Completed()).id
            for _ in range(5)
        }
    assert made <= ids()
    assert delete_flow_runs(datetime.now(UTC) + timedelta(seconds=1)).flow_runs >= 5
    assert not made & ids()
