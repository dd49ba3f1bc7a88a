"""A late run is skipped if a run with the same settings has started since it was due."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

from prefect import get_client
from prefect.flow_engine import run_flow
from prefect.states import Cancelled, Scheduled

from flows.scheduled import scheduled_retrain
from nnbuild.store import Store


def test_one_of_the_missed_runs_works(tmp_path, small_config, prefect_server):
    store = Store(tmp_path / "store")
    small = small_config.model_copy(
        update={"training": small_config.training.model_copy(update={"epochs": 1})}
    )
    parameters = {
        "config": small.model_dump(mode="json"),
        "store": str(store.root),
        "unchanged": "run",
    }
    deployment = scheduled_retrain.to_deployment("catch-up", parameters=parameters).apply()

    with get_client(sync_client=True) as client:

        def due(seconds_ago, **more):
            state = Scheduled(scheduled_time=datetime.now(UTC) - timedelta(seconds=seconds_ago))
            return client.create_flow_run_from_deployment(deployment, state=state, parameters=more)

        def start(run):
            late = client.read_flow_run(run.id)
            run_flow(
                scheduled_retrain, flow_run=late, parameters=late.parameters, return_type="state"
            )
            return client.read_flow_run(run.id)

        missed = [due(seconds) for seconds in (40, 30, 20)]
        cancelled = due(10)
        client.set_flow_run_state(cancelled.id, Cancelled(), force=True)
        # Others are due already, and none of them has started: the first must not wait for them.
        first = start(missed[0])
        assert first.state.name == "Completed"
        dataset = Path(small.dataset.name).stem
        assert first.name == f"lab-{dataset}-{missed[0].expected_start_time:%Y%m%dT%H%M}"
        others = [start(each) for each in missed[1:]]
        assert [each.state.name for each in others] == ["Skipped", "Skipped"]
        assert all("has started since" in each.state.message for each in others)
        assert start(due(20, catch_up=True)).state.name == "Completed"
        assert start(due(0)).state.name == "Completed"  # on time: nothing has started since
    assert len(store.run_ids()) == 3
