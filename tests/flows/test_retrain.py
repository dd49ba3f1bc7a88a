"""The retraining flow on a real Prefect server, and its tasks as plain functions."""

import errno
import math
import re

import pytest
from artifact_keys import kind_of
from hypothesis import given
from hypothesis import strategies as st
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    FlowRunFilter,
    FlowRunFilterId,
    LogFilter,
    LogFilterFlowRunId,
)
from real_server import until

import nnbuild
from flows.retrain import retrain
from nnbuild.errors import DataError, DivergedError, StoreError
from nnbuild.runtime import fault_injection
from nnbuild.store import Store, champion
from nnbuild.store.step_results import Decided, Scored
from tasks.artifacts import STORE_URL, artifact_key, store_link, to_json_scalar
from tasks.retrain import (
    build,
    calibrate,
    check,
    commit,
    compile_network,
    decide,
    evaluate,
    export,
    fit,
    load,
    persist_history,
    report,
    score,
)

STEPS = [
    "load",
    "check",
    "build",
    "compile",
    "fit",
    "persist history",
    "export",
    "evaluate",
    "calibrate",
    "score",
]
STEPS += ["decide", "report", "commit"]


def call_tasks(run):
    """Call every task as a plain function."""
    data = load.fn(run)
    check.fn(run, data)
    fitted = fit.fn(run, data, compile_network.fn(run, data, build.fn(run, data)))
    persist_history.fn(run, fitted)
    for task in (export, evaluate, calibrate, score):
        task.fn(run, data, fitted)
    decide.fn(run, data)
    report.fn(run, data)
    return commit.fn(run)


def test_tasks_are_plain_functions(tmp_path, small_config, monkeypatch):
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")  # no server, and no request
    run = nnbuild.open_run(small_config, tmp_path)
    with nnbuild.run_context(run):
        committed = call_tasks(run)
    assert Store(tmp_path).run_ids() == [committed.run_id]


def test_task_runs_in_another_flow(tmp_path, small_config, prefect_server):
    run = nnbuild.open_run(small_config, tmp_path)

    @flow
    def alone():
        return load(run)

    assert alone().classes == 3


@pytest.fixture(scope="module")
def finished(request, tmp_path_factory, small_folder):
    """A committed flow run: its store, its result, and what the server knows about it."""
    request.getfixturevalue("_prefect_harness")
    config = {
        "dataset": {"name": str(small_folder)},
        "model": {"name": "lab"},
        "training": {"epochs": 3, "threads": 2},
    }
    root = tmp_path_factory.mktemp("flow") / "store"
    committed = retrain(nnbuild.RunConfig.model_validate(config), str(root))
    flow_run_id = Store(root).manifest(committed.run_id).flow_run_id
    by_flow = FlowRunFilter(id=FlowRunFilterId(any_=[flow_run_id]))
    with get_client(sync_client=True) as client:
        return {
            "root": root,
            "committed": committed,
            "flow_run": client.read_flow_run(flow_run_id),
            "tasks": client.read_task_runs(flow_run_filter=by_flow),
            "artifacts": client.read_artifacts(
                artifact_filter=ArtifactFilter(
                    flow_run_id=ArtifactFilterFlowRunId(any_=[flow_run_id])
                )
            ),
            "logs": client.read_logs(LogFilter(flow_run_id=LogFilterFlowRunId(any_=[flow_run_id]))),
        }


def test_each_step_is_a_task(finished):
    assert sorted(task.name.split()[0] for task in finished["tasks"]) == sorted(
        each.split()[0] for each in STEPS
    )
    assert all(task.state.is_completed() for task in finished["tasks"])
    assert finished["flow_run"].name.startswith("lab-")
    assert all(not task.tags for task in finished["tasks"])


def test_graph_shows_the_dependencies(finished):
    names = {str(task.id): task.name.split()[0] for task in finished["tasks"]}
    edges = {
        (names[str(source.id)], task.name.split()[0])
        for task in finished["tasks"]
        for sources in task.task_inputs.values()
        for source in sources
        if getattr(source, "id", None) and str(source.id) in names
    }
    expected = {
        ("load", "check"),
        ("check", "build"),
        ("build", "compile"),
        ("compile", "fit"),
        *(("fit", each) for each in ("persist", "export", "evaluate", "calibrate", "score")),
        *((each, "decide") for each in ("evaluate", "score")),
        *((each, "report") for each in ("calibrate", "decide")),
        *((each, "commit") for each in ("persist", "export", "report")),
    }
    assert expected <= edges


def test_artifacts_have_stable_keys(finished):
    by_key = {kind_of(artifact.key): artifact for artifact in finished["artifacts"]}
    tables = {"nnbuild-data-checks", "nnbuild-epochs", "nnbuild-metrics", "nnbuild-decision"}
    assert tables | {"nnbuild-files", "nnbuild-fit", "nnbuild-report"} <= by_key.keys()
    assert f"{finished['committed'].run_id}/report.html" in by_key["nnbuild-report"].data
    assert "| accuracy |" in by_key["nnbuild-report"].data
    assert '"epoch": 3' in str(by_key["nnbuild-epochs"].data)
    assert finished["committed"].run_id in str(by_key["nnbuild-files"].data)


def test_artifact_keys_name_store_and_dataset(finished):
    for each in finished["artifacts"]:
        assert each.key == artifact_key(kind_of(each.key), str(finished["root"]), "small")


@given(st.text(), st.text(min_size=1), st.text(min_size=1), st.none() | st.text())
def test_artifact_keys_are_valid_and_distinct(folder, store, other, dataset):
    keys = {artifact_key("nnbuild-fit", f"/{folder}/{each}", dataset) for each in (store, other)}
    assert all(re.fullmatch("[a-z0-9]+(-[a-z0-9]+)*", each) for each in keys)
    assert all(len(each) <= 120 for each in keys)


def test_state_says_accuracy_and_outcome(finished):
    row = Store(finished["root"]).manifest(finished["committed"].run_id).row
    message = finished["flow_run"].state.message
    assert message == f"test accuracy {100 * row.test_accuracy:.2f} %, promoted"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("", "`/s/store/runs/x y.html`"),
        ("https://files.test/nn/", "[runs/x y.html](https://files.test/nn/runs/x%20y.html)"),
        ("http://files.test", "(http://files.test/runs/x%20y.html)"),
        ("ftp://files.test", "`/s/store/runs/x y.html`"),
        ("https://me:secret@files.test", "`/s/store/runs/x y.html`"),
    ],
)
def test_store_link_needs_a_url(monkeypatch, url, expected):
    monkeypatch.setenv(STORE_URL, url)
    link = store_link("/s/store", "runs/x y.html")
    assert expected in link.replace("\\", "")
    assert "secret" not in link


def test_tasks_pass_small_values_only(finished):
    for task in finished["tasks"]:
        assert len(task.model_dump_json()) < 20_000


def test_failed_step_fails_the_flow_run(tmp_path, small_config, prefect_server):
    missing = nnbuild.RunConfig.model_validate({"dataset": {"name": str(tmp_path / "none.npz")}})
    with pytest.raises(DataError, match=r"none\.npz"):
        retrain(missing, str(tmp_path / "store"))
    assert not (tmp_path / "store").exists()


def test_retried_flow_run_resumes_its_run(tmp_path, small_config, prefect_server):
    """A retry by Prefect has the same flow run ID, which its unfinished run has recorded."""
    flow_run_id = "8d6b7f3e-0000-4000-8000-000000000001"
    run = nnbuild.open_run(small_config, tmp_path, flow_run_id=flow_run_id)
    assert nnbuild.open_run(small_config, tmp_path, flow_run_id=flow_run_id) == run
    assert (
        nnbuild.open_run(small_config, tmp_path, flow_run_id=flow_run_id.replace("1", "2")) != run
    )


def test_diverged_fit_is_not_retried(tmp_path, small_config, prefect_server):
    settings = small_config.model_dump()
    settings["model"] = {"name": "regularized", "l2": 10}
    settings["training"] |= {"optimizer": "sgd", "learning_rate": 100, "epochs": 50}
    with pytest.raises(DivergedError):
        retrain(nnbuild.RunConfig.model_validate(settings), str(tmp_path))
    assert Store(tmp_path).read_table("runs")["status"].to_pylist() == ["failed"]


def test_failed_commit_revokes_the_decision(tmp_path, small_config, prefect_server, monkeypatch):
    """Decide, report and commit are one transaction; a resumed run is decided on again."""

    def full(name):
        if name == "commit:linked":
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(fault_injection, "failpoint", full)
    with pytest.raises(StoreError, match="No space left"):
        retrain(small_config, str(tmp_path))
    store = Store(tmp_path)
    (unfinished,) = store.unfinished_runs()
    run = store.unfinished_run(unfinished.run_id)
    by_flow = FlowRunFilter(id=FlowRunFilterId(any_=[run.record["flow_run_id"]]))

    def states():
        with get_client(sync_client=True) as client:
            return {
                task.name.split()[0]: task.state.name
                for task in client.read_task_runs(flow_run_filter=by_flow)
            }

    until(
        lambda: states().get("decide") == states().get("report") == "RolledBack",
        30,
        "task that was rolled back",
    )
    assert states()["score"] == "Completed"
    assert run.load_result(Decided) is None
    assert run.load_result(Scored) is not None
    assert champion.current(store) is None
    monkeypatch.undo()
    other = nnbuild.retrain(small_config, tmp_path).run_id
    assert champion.current(store) == other
    retrain(small_config, str(tmp_path), run.run_id)
    # It names the flow run that shows the last steps.
    assert store.manifest(run.run_id).flow_run_id != run.record["flow_run_id"]
    assert store.read_table("decisions", run.run_id)["champion"].to_pylist() == [other]


def test_run_failed_after_the_gate_has_no_decision(tmp_path, small_config, monkeypatch):
    def broken(name):
        if name == "write_report:begin":
            raise ZeroDivisionError

    monkeypatch.setattr(fault_injection, "failpoint", broken)
    with pytest.raises(ZeroDivisionError):
        nnbuild.retrain(small_config, tmp_path)
    store = Store(tmp_path)
    assert store.read_table("runs")["status"].to_pylist() == ["failed"]
    assert store.read_table("decisions").num_rows == 0
    assert champion.current(store) is None


def test_infinite_number_becomes_text():
    assert to_json_scalar(math.inf) == "inf"
    assert to_json_scalar(math.nan) == "nan"
    assert to_json_scalar(1.5) == 1.5
    assert to_json_scalar(["x"]) == "['x']"


def test_form_describes_every_field():
    schema = retrain.parameters.definitions
    fields = [
        field for section in schema.values() for field in section.get("properties", {}).values()
    ]
    assert len(fields) > 30
    assert all("description" in field for field in fields)
