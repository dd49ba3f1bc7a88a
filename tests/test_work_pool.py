"""`prefect.yaml` on a real server: both flows are deployed to a pool, and a worker of it runs one."""

import subprocess
import sys

import httpx
import pytest
import yaml
from prefect import get_client
from prefect.events import AutomationCore
from prefect.settings import PREFECT_API_URL, temporary_settings
from real_server import ROOT

from flows import automations
from nnbuild import machine
from nnbuild.store import Store, champion
from tasks import telling


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
    ],
)
def test_parameters_that_cannot_be_are_refused_when_a_run_is_made(real_prefect, pool, config, says):
    """As the UI does with its form."""
    path = f"{real_prefect.url}/deployments/{deployment(real_prefect, 'scheduled-retrain')['id']}/create_flow_run"
    answer = httpx.post(path, json={"parameters": {"config": config}}, timeout=20)
    assert answer.status_code == httpx.codes.CONFLICT
    assert says in answer.text


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
    assert store.committed() == [champion.current(store)]


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
        telling.COMMITTED,
        telling.PROMOTED,
        telling.REJECTED,
        telling.CHECK_FAILED,
        telling.DRIFTED,
    }
    with (
        temporary_settings({PREFECT_API_URL: real_prefect.url}),
        get_client(sync_client=True) as client,
    ):
        for each in examples:
            client.delete_automation(client.create_automation(each))
