"""`prefect.yaml` on a real server: both flows are deployed to a pool, and a worker of it runs one."""

import subprocess
import sys

import httpx
import pytest
import yaml
from browser import CHROMIUM, browser
from prefect import get_client
from prefect.events import AutomationCore
from prefect.settings import PREFECT_API_URL, temporary_settings
from real_server import ROOT

from flows import automations
from nnbuild.config.schema import RunConfig
from nnbuild.runtime import environment as machine
from nnbuild.store import Store, champion
from tasks import events


@pytest.fixture(scope="module")
def pool(real_prefect, tmp_path_factory):
    """A server to whose process pool both flows are deployed; the store, and Prefect's command."""
    folder = tmp_path_factory.mktemp("pool")
    places = {
        "NNBUILD_HOME": ROOT,
        "NNBUILD_STORE": folder / "store",
        "NNBUILD_SCORE_INPUT": folder / "*.parquet",
    }

    def prefect(*arguments, cwd=ROOT):
        command = [sys.executable, "-m", "prefect", "--no-prompt", *arguments]
        environment = real_prefect.environment | {
            name: str(place) for name, place in places.items()
        }
        subprocess.run(
            command, cwd=cwd, env=environment, check=True, capture_output=True, timeout=300
        )

    prefect("work-pool", "create", "nnbuild", "--type", "process")
    prefect("deploy", "--all")
    return Store(folder / "store"), prefect


def deployment(real_prefect, flow):
    (found,) = real_prefect.ask(
        "/deployments/filter",
        deployments={"name": {"any_": ["work-pool"]}},
        flows={"name": {"any_": [flow]}},
    )
    return found


def test_the_deployments_are_what_the_file_says(real_prefect, pool):
    retraining, scoring = (
        deployment(real_prefect, "scheduled-retrain"),
        deployment(real_prefect, "scheduled-score"),
    )
    for each in (retraining, scoring):
        assert each["enforce_parameter_schema"]
        assert each["global_concurrency_limit"]["limit"] == 1
        assert each["version"] == machine.code_version()
        assert each["parameters"]["store"] == str(pool[0].root)
        beat = each["job_variables"]["env"]["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"]
        assert (
            int(beat) == automations.HEARTBEAT
        )  # Prefect's own is longer than the silence after which a run is ended
    zones = [each["schedule"]["timezone"] for each in scoring["schedules"]]
    assert zones == [scoring["parameters"]["timezone"]]
    schedules = {each["slug"]: each["parameters"]["config"] for each in retraining["schedules"]}
    assert schedules["nightly"] == {"model": {"name": "fast"}}
    assert schedules["weekly"] == {"model": {"name": "accurate"}, "gate": {"rule": "better"}}


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"training": {"epochs": 0}}, "config.training.epochs"),
        ({"training": {"epoch": 3}}, "'epoch' was unexpected"),
        ({"gate": {"rule": "best"}}, "config.gate.rule"),
        ({"seed": "one"}, "config.seed"),
        (
            {"model": {"name": "convnte"}},
            "'convnte' is not one of ['lab', 'regularized', 'convnet'",
        ),
        ({"model": {"name": "my module:build"}}, "config.model.name"),
        ({"dataset": {"name": "mnst"}}, "'mnst' is not one of ['mnist', 'fashion-mnist'"),
        ({"dataset": {"fallback": "digits"}}, "config.dataset.fallback"),
        ({"training": {"optimizer": "adm"}}, "'adm' is not one of ['adam', 'adamw'"),
        ({"training": {"metrics": ["acuracy"]}}, "'acuracy' is not one of ['accuracy'"),
        ({"training": {"best_weights": "val_los"}}, "'val_los' is not one of ['loss', 'val_loss'"),
        ({"training": {"early_stopping": {"monitor": "los"}}}, "config.training.early_stopping"),
        ({"trial": {"sweep": "a", "number": 0}}, "config.trial"),
    ],
)
def test_parameters_that_cannot_be_are_refused_when_a_run_is_made(real_prefect, pool, config, says):
    """As the UI does with its form."""
    refused(real_prefect, "scheduled-retrain", {"config": config}, says)


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        (
            {"config": {"input": "in", "engine": "onx"}},
            "'onx' is not one of ['auto', 'onnx', 'keras']",
        ),
        ({"config": {"input": "in", "model": "champoin"}}, "'champoin' is not one of ['champion']"),
        ({"config": {"input": "in", "on_error": "go"}}, "config.on_error"),
        ({"timezone": "localtime"}, "timezone"),
        ({"days": 0}, "days"),
        ({"timeout_seconds": 0}, "timeout_seconds"),
    ],
)
def test_scoring_that_cannot_be_is_refused(real_prefect, pool, parameters, says):
    refused(real_prefect, "scheduled-score", parameters, says)


def refused(real_prefect, flow, parameters, says):
    path = f"{real_prefect.url}/deployments/{deployment(real_prefect, flow)['id']}/create_flow_run"
    answer = httpx.post(path, json={"parameters": parameters}, timeout=20)
    assert answer.status_code == httpx.codes.CONFLICT
    assert says in answer.text


def test_names_of_ones_own_are_taken(real_prefect, pool):
    """A path, a function and a run's id, of which no list can know."""
    later = {"type": "SCHEDULED", "state_details": {"scheduled_time": "2100-01-01T00:00:00Z"}}
    whole = RunConfig.model_validate({"model": {"name": "mine.small:build"}}).model_dump(
        mode="json"
    )
    for flow, config in [
        ("scheduled-retrain", {"model": {"name": "tiny"}, "dataset": {"name": "kmnist"}}),
        ("scheduled-retrain", {"dataset": {"name": "/srv/images"}, "training": {"epochs": None}}),
        ("scheduled-retrain", whole),
        ("scheduled-score", {"input": "in", "model": "20261123T030000000Z-4f2a1c"}),
        ("scheduled-score", {"input": "in", "model": "./model.onnx", "digest": "0" * 64}),
    ]:
        path = f"/deployments/{deployment(real_prefect, flow)['id']}/create_flow_run"
        assert real_prefect.ask(path, parameters={"config": config}, state=later)["id"]


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here; apt-get install chromium")
def test_form_lists_the_names_that_are_known(real_prefect, pool, tmp_path):
    ui = real_prefect.url.removesuffix("/api") + "/v2"
    form = f"{ui}/deployments/deployment/{deployment(real_prefect, 'scheduled-retrain')['id']}/run"
    with browser(tmp_path / "profile") as page:
        shown = page.show(
            form, "/Left empty/.test(document.body.innerText) && document.body.innerText"
        )
    # A list shows the chosen name as text, and a field for a name of one's own would not.
    assert "Known name\nPath\nmnist" in shown
    assert "Known name\npackage.module:function\nconvnet" in shown
    assert "Left empty: 40 (lab)" in shown
    assert "Fallback" not in shown


def test_a_worker_runs_what_is_due(real_prefect, pool, tmp_path, small_folder):
    store, prefect = pool
    settings = {
        "dataset": {"name": str(small_folder)},
        "model": {"name": "lab"},
        "training": {"epochs": 2, "threads": 2},
    }
    path = f"/deployments/{deployment(real_prefect, 'scheduled-retrain')['id']}/create_flow_run"
    made = real_prefect.ask(path, parameters={"config": settings}, state={"type": "SCHEDULED"})
    prefect("worker", "start", "--pool", "nnbuild", "--run-once", cwd=tmp_path)
    state = httpx.get(f"{real_prefect.url}/flow_runs/{made['id']}", timeout=20).json()["state"]
    assert state["name"] == "Completed", state
    assert store.run_ids() == [champion.current(store)]


def test_the_example_automations_are_taken_by_the_server(real_prefect, pool):
    """One for each event that a run tells."""
    text = (ROOT / "docs" / "automations.yaml").read_text()
    for name, flow in (("RETRAINING", "scheduled-retrain"), ("SCORING", "scheduled-score")):
        text = text.replace(
            f"deployment_id: {name}", f"deployment_id: {deployment(real_prefect, flow)['id']}"
        )
    examples = [AutomationCore.model_validate(each) for each in yaml.safe_load(text)]
    told = {event for each in examples for event in each.trigger.expect}
    assert told == {
        events.COMMITTED,
        events.PROMOTED,
        events.REJECTED,
        events.CHECK_FAILED,
        events.DRIFTED,
    }
    with (
        temporary_settings({PREFECT_API_URL: real_prefect.url}),
        get_client(sync_client=True) as client,
    ):
        for each in examples:
            client.delete_automation(client.create_automation(each))
