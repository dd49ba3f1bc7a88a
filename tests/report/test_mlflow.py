"""Committed runs in MLflow: complete, logged once, and errors of one line."""

import os

import pytest
from command_line import call, tree_digest
from socket_server import sending, server

from nnbuild.errors import ConfigError, StoreError
from nnbuild.report import mlflow as tracking
from nnbuild.store import Store

mlflow = pytest.importorskip("mlflow")

UNAVAILABLE = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


def test_a_run_is_logged_whole_and_once(gated_runs, tmp_path):
    store, (run_id, *_) = gated_runs
    before, uri = tree_digest(store.root), f"sqlite:///{tmp_path}/mlflow.db"
    logged = tracking.log_run(store, run_id, uri)
    assert tracking.log_run(store, run_id, uri) == logged
    assert tree_digest(store.root) == before
    client = mlflow.MlflowClient(tracking_uri=uri)
    (experiment,) = [
        each for each in client.search_experiments() if each.name == tracking.EXPERIMENT
    ]
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.data.params["model.name"] == "lab"
    assert run.data.params["training.epochs"] == str(
        store.manifest(run_id).config["training"]["epochs"]
    )
    row = store.read_table("runs", run_id).to_pylist()[0]
    assert run.data.metrics["test_accuracy"] == row["test_accuracy"]
    assert run.data.tags["nnbuild.run_id"] == run_id
    history = [
        each
        for each in store.read_table("history", run_id).to_pylist()
        if each["metric"] == "val_loss"
    ]
    points = client.get_metric_history(logged, "val_loss")
    assert [(each.step, each.value) for each in points] == [
        (each["epoch"], each["value"]) for each in history
    ]
    names = {each.path for each in client.list_artifacts(logged)}
    assert {"model.keras", "model.onnx", "manifest.json", "report.html", "tables"} <= names
    assert (tmp_path / "mlartifacts").is_dir()
    client.set_terminated(logged, status="RUNNING")  # as a killed process leaves it
    again = tracking.log_run(store, run_id, uri)
    assert again != logged
    assert [each.info.run_id for each in client.search_runs([experiment.experiment_id])] == [again]


def test_mlflow_error_is_one_line(gated_runs, tmp_path, monkeypatch):
    store, (run_id, *_) = gated_runs
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(ConfigError, match="expected a database or a server"):
        tracking.log_run(store, run_id, "./mlruns")
    for uri in (f"sqlite:///{tmp_path}/none/there/mlflow.db", "http://who:secret@127.0.0.1:9"):
        (tmp_path / "none").write_text("")
        with pytest.raises(StoreError, match="cannot log run") as caught:
            tracking.log_run(store, run_id, uri)
        assert "\n" not in str(caught.value)
        assert "secret" not in str(caught.value)
    with pytest.raises(StoreError, match="no committed run"):
        tracking.log_run(store, "20200101T000000000Z-abcdef", "sqlite:///x.db")


@pytest.mark.parametrize(("retries", "attempts"), [(None, 3), ("1", 2)])
def test_server_that_fails_is_given_up(gated_runs, monkeypatch, retries, attempts):
    store, (run_id, *_) = gated_runs
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", raising=False)
    if retries is not None:
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", retries)
    before = dict(os.environ)
    with server(sending(UNAVAILABLE)) as (url, requests):
        with pytest.raises(StoreError, match="503"):
            tracking.log_run(store, run_id, url)
        assert len(requests) == attempts
    # The variables that silence MLflow are set for good.
    assert {name for name in os.environ.keys() ^ before.keys() if "HTTP" in name} == set()


@pytest.mark.parametrize("wanted", [None, "false"])
def test_telemetry_is_off_unless_it_is_wanted(gated_runs, tmp_path, monkeypatch, wanted):
    store, (run_id, *_) = gated_runs
    monkeypatch.delenv("MLFLOW_DISABLE_TELEMETRY", raising=False)
    if wanted is not None:
        monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", wanted)
    tracking.log_run(store, run_id, f"sqlite:///{tmp_path}/mlflow.db")
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == (wanted or "true")


def test_mlflow_uri_is_checked_first(capfd, tmp_path):
    outcome = call(capfd, "run", "--mlflow", "mlruns", "--store", tmp_path / "store")
    assert (outcome.code, outcome.out) == (2, "")
    assert "expected a database or a server" in outcome.err
    assert not (tmp_path / "store").exists()
    assert Store(tmp_path / "store").run_ids() == []
