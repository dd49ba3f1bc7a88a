"""A late run is skipped if what it is for was done since it was due, and never for a run that is only due."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

from prefect import get_client
from prefect.flow_engine import run_flow
from prefect.states import Cancelled, Scheduled

from flows.scheduled import scheduled_retrain
from nnbuild.store import Store


def test_of_the_runs_that_were_missed_one_is_made(tmp_path, small_config, prefect_server):
    store = Store(tmp_path / "store")
    small = small_config.model_copy(
        update={"training": small_config.training.model_copy(update={"epochs": 1})}
    )
    parameters = {"config": small.model_dump(mode="json"), "store": str(store.root)}
    deployment = scheduled_retrain.to_deployment("overtaken", parameters=parameters).apply()

    with get_client(sync_client=True) as client:

        def due(seconds_ago, **more):
            state = Scheduled(scheduled_time=datetime.now(UTC) - timedelta(seconds=seconds_ago))
            return client.create_flow_run_from_deployment(deployment, state=state, parameters=more)

        def begun(run):
            late = client.read_flow_run(run.id)
            run_flow(
                scheduled_retrain, flow_run=late, parameters=late.parameters, return_type="state"
            )
            return client.read_flow_run(run.id)

        missed = [due(seconds) for seconds in (40, 30, 20)]
        cancelled = due(10)
        client.set_flow_run_state(cancelled.id, Cancelled(), force=True)
        first = begun(
            missed[0]
        )  # others are due already, and none of them has begun: it must not wait for them
        assert first.state.name == "Completed"
        assert (
            first.name
            == f"lab-{Path(small.dataset.name).stem}-{missed[0].expected_start_time:%Y%m%dT%H%M}"
        )
        others = [begun(each) for each in missed[1:]]
        assert [each.state.name for each in others] == ["Skipped", "Skipped"]
        assert all("has begun since" in each.state.message for each in others)
        assert begun(due(20, overtaken="run")).state.name == "Completed"
        assert begun(due(0)).state.name == "Completed"  # nothing has begun since: it is in its time
    assert len(store.run_ids()) == 3
