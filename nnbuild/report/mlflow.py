"""Log a committed run to MLflow: its settings, history, metrics and files.

Only this module imports MLflow, and only when it is called: `pip install 'nnbuild[mlflow]'`.
"""

import importlib
import importlib.util
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from nnbuild.config.loading import flatten
from nnbuild.errors import ConfigError, StoreError
from nnbuild.runtime.credentials import mask_credentials, split_credentials
from nnbuild.runtime.outward import describe
from nnbuild.store.manifests import Manifest
from nnbuild.store.store import Store

EXPERIMENT = "nnbuild"
_RUN_ID = "nnbuild.run_id"
_SCHEMES = ("sqlite:///", "postgresql://", "mysql://", "mssql://", "http://", "https://")
_METRICS_PER_REQUEST = 900  # MLflow's limit is 1,000
_PARAMS_PER_REQUEST = 100  # MLflow's limit
_MAX_VALUE = 6000  # characters; MLflow's limit for the value of a parameter
# MLflow retries for minutes in silence, and the run can be logged later.
_QUICK_REQUESTS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",  # seconds
}


def require_mlflow(uri: str, store: Store) -> None:
    """Check before the training that the run can be logged.

    Args:
        uri: URI of an MLflow server or database.
        store: Store of the run.

    Raises:
        ConfigError: MLflow is not installed, the URI is a folder, which MLflow 3 does not support,
            or the store is not on this machine.
    """
    if importlib.util.find_spec("mlflow") is None:
        raise ConfigError("MLflow is not installed; run pip install 'nnbuild[mlflow]'")
    if not uri.startswith(_SCHEMES):
        raise ConfigError(
            f"invalid MLflow URI {mask_credentials(uri)!r}; expected a database or a server, such "
            "as sqlite:///mlflow.db or http://host:port"
        )
    try:
        split_credentials(uri)
    except ValueError as error:
        raise ConfigError(f"invalid MLflow URI {mask_credentials(uri)!r}: {error}") from None
    if store.is_remote:
        raise ConfigError(
            f"cannot log to MLflow from store {store.root}; the store must be on this machine"
        )


def log_run(store: Store, run_id: str, uri: str) -> str:
    """Log a committed run to the MLflow experiment `nnbuild`, unless it was logged before.

    A server that does not answer is given up after seconds, unless MLflow's environment variables
    for retries and timeouts (`MLFLOW_HTTP_REQUEST_MAX_RETRIES`) say otherwise.

    Parameters are the settings (`training.epochs`); metrics are the history by epoch and the
    metrics on the test images (`test_accuracy`); artifacts are the tables, the models, the manifest
    and the report.

    Args:
        store: Local store with the run.
        run_id: ID of a committed run that succeeded.
        uri: URI of an MLflow server or database.

    Returns:
        MLflow's ID of the run.

    Raises:
        ConfigError: MLflow is not installed, or the URI is invalid.
        StoreError: There is no such run, or MLflow is unavailable or refuses it.
    """
    require_mlflow(uri, store)
    manifest = store.manifest(run_id)
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read at the import
    mlflow = importlib.import_module("mlflow")
    # Both loggers report database migrations, but a library is silent.
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # MLflow would print the URL of the run, with the credentials of the server.
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
    try:
        with _quick_requests():
            return _log_once(mlflow, mlflow.MlflowClient(tracking_uri=uri), uri, store, manifest)
    except StoreError:
        raise
    except Exception as error:
        raise StoreError(
            f"cannot log run {run_id} to MLflow at {mask_credentials(uri)} ({describe(error)}); "
            "the run is in the store, log it later with nnbuild.report.mlflow.log_run"
        ) from error


@contextmanager
def _quick_requests() -> Iterator[None]:
    """Limit MLflow's requests in the block, as far as the user has not."""
    added = {name: value for name, value in _QUICK_REQUESTS.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


def _log_once(mlflow: Any, client: Any, uri: str, store: Store, manifest: Manifest) -> str:
    """Log a run, and return MLflow's ID of it; of a complete one, that it has already."""
    experiment = _experiment(client, uri)
    logged = client.search_runs([experiment], f"tags.`{_RUN_ID}` = '{manifest.run_id}'")
    complete = next((each for each in logged if each.info.status == "FINISHED"), None)
    if complete is not None:
        return str(complete.info.run_id)
    for incomplete in logged:  # left by a process that was killed: log the run again
        client.delete_run(incomplete.info.run_id)
    return _log(mlflow, client, experiment, store, manifest)


def _experiment(client: Any, uri: str) -> str:
    known = client.get_experiment_by_name(EXPERIMENT)
    if known is not None:
        return str(known.experiment_id)
    # A server has a location for artifacts; with a database MLflow would use the current folder.
    artifacts = Path(uri.removeprefix("sqlite:///")).absolute().parent / "mlartifacts"
    location = artifacts.as_uri() if uri.startswith("sqlite:///") else None
    return str(client.create_experiment(EXPERIMENT, artifact_location=location))


def _log(mlflow: Any, client: Any, experiment: str, store: Store, manifest: Manifest) -> str:
    run_id, row = manifest.run_id, manifest.row
    started, ended = _milliseconds(row.started_at), _milliseconds(row.finished_at)
    names = ("dataset", "dataset_digest", "model", "code_version")
    tags = {_RUN_ID: run_id, **{f"nnbuild.{name}": str(getattr(row, name)) for name in names}}
    target = client.create_run(
        experiment, start_time=started, tags=tags, run_name=run_id
    ).info.run_id
    entities = mlflow.entities
    settings = [
        entities.Param(name, str(value)[:_MAX_VALUE])
        for name, value in flatten(manifest.config).items()
    ]
    for first in range(0, len(settings), _PARAMS_PER_REQUEST):
        client.log_batch(target, params=settings[first : first + _PARAMS_PER_REQUEST])
    metrics = [
        entities.Metric(*each)
        for each in [*_history(store, run_id), *_test_metrics(store, run_id, ended)]
    ]
    for first in range(0, len(metrics), _METRICS_PER_REQUEST):
        client.log_batch(target, metrics=metrics[first : first + _METRICS_PER_REQUEST])
    for name in manifest.files:
        path = store.root / name
        if path.is_file():
            folder = Path(name.removeprefix(f"runs/{run_id}/")).parent.as_posix()
            client.log_artifact(target, str(path), None if folder == "." else folder)
    client.log_artifact(target, str(store.root / "runs" / run_id / "manifest.json"))
    client.set_terminated(target, status="FINISHED", end_time=ended)
    return str(target)


def _history(store: Store, run_id: str) -> Iterator[tuple[str, float, int, int]]:
    for row in store.read_table("history", run_id).to_pylist():
        yield row["metric"], row["value"], int(row["logged_at"].timestamp() * 1000), row["epoch"]


def _test_metrics(store: Store, run_id: str, at: int) -> Iterator[tuple[str, float, int, int]]:
    for row in store.read_table("evaluation", run_id).to_pylist():
        if row["label"] is None:
            yield f"{row['subset']}_{row['metric']}", row["value"], at, 0


def _milliseconds(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp() * 1000)
