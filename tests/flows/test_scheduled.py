"""A scheduled run uses current settings, data and networks, and resumes no cancelled run."""

import linecache
import os
import sys
import uuid
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from prefect import get_client
from prefect.flow_engine import run_flow
from prefect.schedules import Cron
from prefect.states import Cancelling, Crashed, Running, Scheduled
from score_data import images, parquet
from small_data import small_arrays, write_small_dataset

import nnbuild
from flows import hooks
from flows.deployments import _final_state, replace_schedules
from flows.retrain import retrain
from flows.scheduled import run_to_resume, scheduled_retrain, scheduled_score
from nnbuild import pipeline
from nnbuild.config.schema import RunConfig, ScheduledConfig
from nnbuild.errors import ConfigError
from nnbuild.pipeline.run import resumable
from nnbuild.scoring import ScoreConfig
from nnbuild.scoring.job import open_job
from nnbuild.store import Store


def changed(config, **sections):
    """Return the config with other values in some of its sections."""
    settings = config.model_dump()
    for name, values in sections.items():
        nested = isinstance(values, dict)
        settings[name] = (settings[name] or {}) | values if nested else values
    return RunConfig.model_validate(settings)


def stopped(config, root, *, loaded=True):
    """Return a run that was stopped after it had read its data, or before."""
    run = nnbuild.open_run(config, root)
    if loaded:
        pipeline.load_data(run)
    return run


@pytest.fixture
def own_data(tmp_path, small_config):
    """A dataset that the test may change, and a config that uses it."""
    source = write_small_dataset(tmp_path, classes=3, shape=(8, 8, 1), train=120, test=45)
    return source, changed(small_config, dataset={"name": str(source)})


def write_other(source):
    """Replace the images by others; keep the file's size and modification time."""
    before = source.stat()
    arrays = small_arrays(classes=3, shape=(8, 8, 1), train=120, test=45, seed=99)
    np.savez(source, **arrays)
    os.utime(source, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert source.stat().st_size == before.st_size


def test_stopped_run_is_resumed_on_same_data(tmp_path, own_data):
    _, config = own_data
    run = stopped(config, tmp_path / "store")
    assert resumable(Store(tmp_path / "store"), config)[0].run_id == run.run_id


def test_stopped_run_with_old_data_is_kept(tmp_path, own_data):
    source, config = own_data
    run = stopped(config, tmp_path / "store")
    write_other(source)
    resumed, (remark,) = resumable(Store(tmp_path / "store"), config)
    assert resumed is None
    assert "its data have changed" in remark
    assert f"nnbuild run --resume {run.run_id}" in remark
    assert nnbuild.retrain(config, tmp_path / "store", resume=run.run_id).run_id == run.run_id


def test_stopped_run_without_data_is_kept(tmp_path, own_data):
    source, config = own_data
    stopped(config, tmp_path / "store")
    source.unlink()
    assert resumable(Store(tmp_path / "store"), config)[0] is None


def test_run_stopped_before_load_is_resumed(tmp_path, own_data):
    source, config = own_data
    run = stopped(config, tmp_path / "store", loaded=False)
    write_other(source)
    assert resumable(Store(tmp_path / "store"), config)[0].run_id == run.run_id


def test_newest_current_run_is_resumed(tmp_path, own_data):
    source, config = own_data
    store = Store(tmp_path / "store")
    stale = stopped(config, store.root)
    write_other(source)
    current = stopped(config, store.root)
    stopped(changed(config, seed=8), store.root)
    assert resumable(store, config)[0].run_id == current.run_id
    current.clear()
    resumed, remarks = resumable(store, config)
    assert resumed is None
    assert [stale.run_id in each for each in remarks] == [True]


@pytest.mark.parametrize(
    "sections",
    [
        {"seed": 8},
        {"training": {"epochs": 4}},
        {"gate": {"min_accuracy": 0.9}},
        {"gate": {"approval": "manual"}},
        {"dataset": {"checks": {"strict": True}}},
        {"trial": {"sweep": "a-sweep", "number": 0}},
    ],
    ids=lambda sections: next(iter(sections)),
)
def test_stopped_run_with_other_settings_is_kept(tmp_path, small_config, sections):
    stopped(changed(small_config, **sections), tmp_path)
    assert resumable(Store(tmp_path), small_config) == (None, [])


def test_data_dir_does_not_matter(tmp_path, small_config, monkeypatch):
    run = stopped(small_config, tmp_path)
    monkeypatch.setenv("NNBUILD_DATA_DIR", str(tmp_path))
    assert resumable(Store(tmp_path), small_config)[0].run_id == run.run_id


def test_stopped_run_of_old_network_is_kept(tmp_path, small_config, monkeypatch):
    """Its checkpoint would be refused, every night again."""
    source = tmp_path / "my_network.py"
    source.write_text(
        "import keras\n"
        "def build(input_shape, classes):\n"
        "    return keras.Sequential([keras.Input(input_shape, dtype='uint8'),\n"
        "        keras.layers.Rescaling(1 / 255), keras.layers.Flatten(),\n"
        "        keras.layers.Dense(classes)])\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    config = changed(small_config, model={"name": "my_network:build"})
    store = Store(tmp_path / "store")
    run = stopped(config, store.root)
    pipeline.build_model(run, pipeline.load_data(run))
    assert resumable(store, config)[0].run_id == run.run_id
    source.write_text(f"{source.read_text()}# another one\n")
    monkeypatch.delitem(sys.modules, "my_network")
    linecache.clearcache()
    resumed, (remark,) = resumable(store, config)
    assert resumed is None
    assert "the source of its network" in remark


def test_running_run_is_not_resumed(tmp_path, small_config):
    run = stopped(small_config, tmp_path)
    with nnbuild.run_context(run):
        assert resumable(Store(tmp_path), small_config) == (None, [])


class FlowRun:
    """A flow run with the attributes that hooks read."""

    def __init__(self, run_id, store, state=None):
        self.id, self.parameters, self.state = run_id, {"store": str(store)}, state


def test_cancelled_run_is_not_resumed(tmp_path, small_config, prefect_server):
    store, own, another = Store(tmp_path), str(uuid.uuid4()), str(uuid.uuid4())
    run = nnbuild.open_run(small_config, tmp_path, flow_run_id=own)
    for flow in (scheduled_retrain, retrain):
        assert hooks.on_run_cancellation in flow.on_cancellation_hooks
        assert hooks.on_run_cancellation not in [*flow.on_failure_hooks, *flow.on_crashed_hooks]
    hooks.record_cancellation(FlowRun(another, tmp_path))
    assert run_to_resume(store, small_config) == run.run_id
    hooks.record_cancellation(FlowRun(own, tmp_path))
    assert run_to_resume(store, small_config) is None
    assert store.unfinished_run(run.run_id).was_cancelled
    assert nnbuild.open_run(small_config, tmp_path, resume=run.run_id).run_id == run.run_id
    store.unfinished_run(run.run_id).attach_flow_run(another)
    assert run_to_resume(store, small_config) == run.run_id


@pytest.mark.parametrize(
    ("state", "ended_as", "cancelled"),
    [(Cancelling(), "CANCELLED", True), (Running(), "CRASHED", False)],
)
def test_stopped_serve_keeps_cancellations(tmp_path, small_config, state, ended_as, cancelled):
    run = nnbuild.open_run(small_config, tmp_path, flow_run_id="a-flow-run")
    assert _final_state(FlowRun("a-flow-run", tmp_path, state)).type.value == ended_as
    assert Store(tmp_path).unfinished_run(run.run_id).was_cancelled == cancelled


def test_cancellation_is_read_from_the_server(tmp_path, small_config, prefect_server):
    """The process that should have recorded it was killed, and the run was set to Crashed."""
    store = Store(tmp_path)
    with get_client(sync_client=True) as client:
        own, crashed = (client.create_flow_run(retrain, state=Running()) for _ in range(2))
        for state in (Cancelling(), Crashed()):
            client.set_flow_run_state(own.id, state, force=True)
        client.set_flow_run_state(crashed.id, Crashed(), force=True)
    run = nnbuild.open_run(small_config, tmp_path, flow_run_id=str(own.id))
    assert run_to_resume(store, small_config) is None
    run.attach_flow_run(str(crashed.id))
    assert run_to_resume(store, small_config) == run.run_id


class Deployed:
    """A deployment on the test server whose runs are started by hand."""

    def __init__(self, flow, name):
        self.flow, self.name = flow, name

    def register(self, schedules, **parameters):
        """Register the deployment like `serve`."""
        deployment = self.flow.to_deployment(self.name, schedules=schedules, parameters=parameters)
        with get_client(sync_client=True) as client:
            replace_schedules(client, deployment)
            self.id = deployment.apply()
            registered = client.read_deployment_schedules(self.id)
        assert sorted(each.slug for each in registered) == sorted(each.slug for each in schedules)

    def plan(self, due):
        """Make the server plan the runs of a past minute."""
        due = due.replace(second=0, microsecond=0)
        at = due.isoformat()
        with get_client(sync_client=True) as client:
            body = {"start_time": at, "end_time": at, "min_runs": 1, "max_runs": 1}
            client._client.post(f"/deployments/{self.id}/schedule", json=body).raise_for_status()
            planned = [
                each
                for each in client.read_flow_runs()
                if each.deployment_id == self.id and each.expected_start_time == due
            ]
        return {each.created_by.display_value: each for each in planned}

    def start(self, run):
        """Start a run as its process would, with the parameters that the server has for it."""
        with get_client(sync_client=True) as client:
            late = client.read_flow_run(run.id)
            run_flow(self.flow, flow_run=late, parameters=late.parameters, return_type="state")
            return client.read_flow_run(run.id)


def every_minute(slug, **parameters):
    return Cron("* * * * *", slug=slug, timezone="UTC", parameters=parameters)


def test_late_runs_use_current_settings(tmp_path, small_config, prefect_server):
    store = Store(tmp_path / "store")
    before, after, other = (
        changed(small_config, seed=seed, training={"epochs": 1}).model_dump(mode="json")
        for seed in (1, 2, 3)
    )
    deployed = Deployed(scheduled_retrain, "late")
    common = {"store": str(store.root)}
    schedules = [every_minute("stays", config=before), every_minute("goes", config=other)]
    deployed.register(schedules, **common, config=before)
    now = datetime.now(UTC)
    late, queued = deployed.plan(now - timedelta(minutes=30)), deployed.plan(now)["stays"]
    with get_client(sync_client=True) as client:
        by_hand = client.create_flow_run_from_deployment(
            deployed.id,
            parameters={"config": other, "catch_up": True},
            state=Scheduled(scheduled_time=datetime.now(UTC)),
        )
        slot = Scheduled(name="AwaitingConcurrencySlot", scheduled_time=datetime.now(UTC))
        client.set_flow_run_state(queued.id, slot, force=True)
    deployed.register([every_minute("stays", config=after)], **common, config=after)

    updated = deployed.start(late["stays"])
    assert updated.state.name == "Completed"
    assert updated.parameters["config"]["seed"] == 2
    assert updated.name.startswith("lab-")
    removed = deployed.start(late["goes"])
    assert (removed.state.name, removed.parameters["config"]["seed"]) == ("Skipped", 3)
    assert "no longer part of the deployment" in removed.state.message
    # Superseded by the run that has the same settings now.
    assert deployed.start(queued).state.name == "Skipped"
    # A person asked for these parameters.
    assert deployed.start(by_hand).parameters["config"]["seed"] == 3
    seeds = [store.manifest(each).settings.seed for each in store.run_ids()]
    assert seeds == [2, 3]


def test_retry_on_fixed_data_starts_over(tmp_path, own_data, prefect_server):
    """A person fixes the folder after a crash and presses Retry: the flow run is the same."""
    source, config = own_data
    store = Store(tmp_path / "store")
    parameters = {"config": config.model_dump(mode="json"), "store": str(store.root)}
    deployed = Deployed(scheduled_retrain, "retried")
    deployed.register([every_minute("one", **parameters)])
    run = deployed.plan(datetime.now(UTC) - timedelta(minutes=5))["one"]
    before = nnbuild.open_run(config, store.root, flow_run_id=str(run.id))
    pipeline.load_data(before)
    write_other(source)
    assert deployed.start(run).state.name == "Completed"
    assert [each.run_id for each in store.unfinished_runs()] == [before.run_id]
    (committed,) = store.run_ids()
    assert store.manifest(committed).flow_run_id == str(run.id)
    assert store.unfinished_run(before.run_id).record["flow_run_id"] is None


def test_scheduled_score_uses_the_local_day(store, tmp_path, prefect_server):
    """At 11:35 UTC it is 01:35 of the next day there. The input has changed since the planning."""
    zone = "Pacific/Kiritimati"
    deployed = Deployed(scheduled_score, "local-day")
    common = {"store": str(store.root), "days": 1}
    config = {"input": f"{tmp_path}/old/{{date}}.parquet"}
    cron = Cron("* * * * *", slug="one", timezone=zone)
    deployed.register([cron], **common, config=config)
    due = (datetime.now(UTC) - timedelta(days=3)).replace(hour=11, minute=35)
    late = deployed.plan(due)["one"]
    day = due.date() + timedelta(days=1)
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
    parquet(tmp_path / "new" / f"{day}.parquet", images())
    current = common | {"config": {"input": f"{tmp_path}/new/{{date}}.parquet"}}
    deployed.register([cron], **current)
    done = deployed.start(late)
    assert done.state.name == "Completed", done.state.message
    assert done.parameters["config"]["input"].startswith(f"{tmp_path}/new")
    (score_id,) = store.score_ids()
    scored = store.read_table("score_jobs", score_id).to_pylist()[0]["input"]
    assert scored == f"{tmp_path}/new/{day}.parquet"
    deployed.register([], **current, timezone=zone)
    with get_client(sync_client=True) as client:
        manual = client.create_flow_run_from_deployment(
            deployed.id, state=Scheduled(scheduled_time=late.expected_start_time)
        )
    assert deployed.start(manual).state.name == "Completed"
    assert store.score_ids() == [score_id]


@pytest.mark.parametrize(
    "section", [{"dataset": {"fallback": "digits"}}, {"trial": {"sweep": "a", "number": 1}}]
)
def test_scheduled_config_refuses_other_settings(small_config, section):
    with pytest.raises(ConfigError, match="scheduled run"):
        ScheduledConfig.model_validate(changed(small_config, **section)).run_config()
    assert ScheduledConfig.model_validate(small_config).run_config() == small_config


def test_scoring_job_with_old_input_is_kept(store, tmp_path):
    config = ScoreConfig(input=str(parquet(tmp_path / "in.parquet", images())))
    begun = open_job(config, store.root)
    assert open_job(config, store.root).score_id == begun.score_id
    parquet(tmp_path / "in.parquet", images()[::-1])
    assert open_job(config, store.root).score_id != begun.score_id
