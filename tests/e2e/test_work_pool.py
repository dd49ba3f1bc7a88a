"""`prefect.yaml` on a real server: both flows are deployed to a pool, and a worker runs one."""

import subprocess
import sys

import httpx
import pytest
import yaml
from browser import CHROMIUM, browser
from prefect import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.events import AutomationCore
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.workers.process import ProcessWorker
from real_server import ROOT

from flows import automations
from nnbuild.config.schema import RunConfig
from nnbuild.runtime import environment as machine
from nnbuild.store import Store, champion
from tasks import events


@pytest.fixture(scope="module")
def pool(real_prefect, tmp_path_factory):
    """The store of deployments in a process pool, and a function that runs Prefect's command."""
    folder = tmp_path_factory.mktemp("pool")
    variables = {
        "NNBUILD_HOME": ROOT,
        "NNBUILD_STORE": folder / "store",
        "NNBUILD_SCORE_INPUT": folder / "*.parquet",
    }

    def prefect(*arguments, cwd=ROOT):
        command = [sys.executable, "-m", "prefect", "--no-prompt", *arguments]
        environment = real_prefect.environment | {
            name: str(value) for name, value in variables.items()
        }
        subprocess.run(
            command, cwd=cwd, env=environment, check=True, capture_output=True, timeout=300
        )

    with (
        temporary_settings({PREFECT_API_URL: real_prefect.url}),
        get_client(sync_client=True) as client,
    ):
        template = ProcessWorker.get_default_base_job_template()
        client.create_work_pool(
            WorkPoolCreate(name="nnbuild", type="process", base_job_template=template)
        )
    prefect("deploy", "--all")
    return Store(folder / "store"), prefect


def deployment(real_prefect, flow):
    (deployed,) = real_prefect.ask(
        "/deployments/filter",
        deployments={"name": {"any_": ["work-pool"]}},
        flows={"name": {"any_": [flow]}},
    )
    return deployed


def test_deployments_match_the_file(real_prefect, pool):
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
        # Prefect's default is longer than the silence after which a run is set to Crashed.
        assert int(beat) == automations.HEARTBEAT_SECONDS
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
        (
            {"training": {"restore_best_weights": "val_los"}},
            "'val_los' is not one of ['loss', 'val_loss'",
        ),
        ({"training": {"early_stopping": {"monitor": "los"}}}, "config.training.early_stopping"),
        ({"trial": {"sweep": "a", "number": 0}}, "config.trial"),
    ],
)
def test_invalid_parameters_are_refused(real_prefect, pool, config, says):
    """The UI sends its form to the same place."""
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
def test_invalid_scoring_is_refused(real_prefect, pool, parameters, says):
    refused(real_prefect, "scheduled-score", parameters, says)


def refused(real_prefect, flow, parameters, says):
    path = f"{real_prefect.url}/deployments/{deployment(real_prefect, flow)['id']}/create_flow_run"
    answer = httpx.post(path, json={"parameters": parameters}, timeout=90)
    assert answer.status_code == httpx.codes.CONFLICT
    assert says in answer.text


def test_custom_names_are_accepted(real_prefect, pool):
    """Paths, functions and run IDs are in no list."""
    later = {"type": "SCHEDULED", "state_details": {"scheduled_time": "2100-01-01T00:00:00Z"}}
    complete = RunConfig.model_validate({"model": {"name": "mine.small:build"}}).model_dump(
        mode="json"
    )
    for flow, config in [
        ("scheduled-retrain", {"model": {"name": "tiny"}, "dataset": {"name": "kmnist"}}),
        ("scheduled-retrain", {"dataset": {"name": "/srv/images"}, "training": {"epochs": None}}),
        ("scheduled-retrain", complete),
        ("scheduled-score", {"input": "in", "model": "20261123T030000000Z-4f2a1c"}),
        ("scheduled-score", {"input": "in", "model": "./model.onnx", "digest": "0" * 64}),
    ]:
        path = f"/deployments/{deployment(real_prefect, flow)['id']}/create_flow_run"
        assert real_prefect.ask(path, parameters={"config": config}, state=later)["id"]


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here; apt-get install chromium")
def test_form_lists_the_known_names(real_prefect, pool, tmp_path):
    ui = real_prefect.url.removesuffix("/api") + "/v2"
    form = f"{ui}/deployments/deployment/{deployment(real_prefect, 'scheduled-retrain')['id']}/run"
    with browser(tmp_path / "profile") as page:
        shown = page.show(
            form, "/Left empty/.test(document.body.innerText) && document.body.innerText"
        )
    # A list shows the chosen name as text; a field for custom names would not.
    assert "Known name\nPath\nmnist" in shown
    assert "Known name\npackage.module:function\nconvnet" in shown
    assert "Left empty: 40 (lab)" in shown
    assert "Fallback" not in shown


def test_worker_runs_what_is_due(real_prefect, pool, tmp_path, small_folder):
    store, prefect = pool
    settings = {
        "dataset": {"name": str(small_folder)},
        "model": {"name": "lab"},
        "training": {"epochs": 2, "threads": 2},
    }
    retraining = deployment(real_prefect, "scheduled-retrain")
    begun = real_prefect.start(retraining, parameters={"config": settings})
    prefect("worker", "start", "--pool", "nnbuild", "--run-once", cwd=tmp_path)
    state = httpx.get(f"{real_prefect.url}/flow_runs/{begun}", timeout=90).json()["state"]
    assert state["name"] == "Completed", state
    assert store.run_ids() == [champion.current(store)]


def test_example_automations_are_valid(real_prefect, pool):
    """There is one for each event of a run."""
    text = (ROOT / "docs" / "automations.yaml").read_text()
    for name, flow in (("RETRAINING", "scheduled-retrain"), ("SCORING", "scheduled-score")):
        text = text.replace(
            f"deployment_id: {name}", f"deployment_id: {deployment(real_prefect, flow)['id']}"
        )
    examples = [AutomationCore.model_validate(each) for each in yaml.safe_load(text)]
    expected = {event for each in examples for event in each.trigger.expect}
    assert expected == {
        events.COMMITTED,
        events.PROMOTED,
        events.REJECTED,
        events.CHECK_FAILED,
        events.DRIFTED,
        events.LIVE_DROPPED,
    }
    with (
        temporary_settings({PREFECT_API_URL: real_prefect.url}),
        get_client(sync_client=True) as client,
    ):
        for each in examples:
            client.delete_automation(client.create_automation(each))
