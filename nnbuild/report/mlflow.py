"""A committed run, told to MLflow: its settings, its history, its figures and its files, from the store alone.

The one place that imports MLflow, and only when it is called: `pip install 'nnbuild[mlflow]'`.
"""

import importlib
import importlib.util
import logging
import os
from collections.abc import Iterator
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
_BATCH = 900  # of the 1,000 metrics that one request of MLflow's may hold
_LONGEST = 6000  # characters of a parameter's value that MLflow's databases hold


def require_mlflow(uri: str, store: Store) -> None:
    """Refuse what cannot be logged, before anything is trained.

    Args:
        uri: of an MLflow server or database.
        store: where the run will be.

    Raises:
        ConfigError: MLflow is not installed, the URI is of a folder, which MLflow 3 no longer takes, or the store is
            not on this machine.
    """
    if importlib.util.find_spec("mlflow") is None:
        raise ConfigError(
            "--mlflow is wanted and MLflow is not installed; run pip install 'nnbuild[mlflow]'"
        )
    if not uri.startswith(_SCHEMES):
        raise ConfigError(
            f"MLflow's URI {mask_credentials(uri)!r} is neither a database nor a server; "
            "give sqlite:///mlflow.db or http://host:port"
        )
    try:
        split_credentials(uri)
    except ValueError as error:
        raise ConfigError(f"MLflow's URI {mask_credentials(uri)!r}: {error}") from None
    if store.is_remote:
        raise ConfigError(
            f"--mlflow with store {store.root}: files are logged from a store on this machine only"
        )


def log_run(store: Store, run_id: str, uri: str) -> str:
    """Log a committed run to MLflow's experiment `nnbuild`. A run that is there already is not logged again.

    Parameters are the settings (`training.epochs`), metrics the history by epoch and the figures on the test images
    (`test_accuracy`), artifacts the tables, the models, the manifest and the report.

    Args:
        store: where the run is; a local one.
        run_id: a committed run that succeeded.
        uri: of an MLflow server or database.

    Returns:
        MLflow's id of the run.

    Raises:
        ConfigError: MLflow is not installed, or the URI is none of its own.
        StoreError: there is no such run, or MLflow cannot be reached or refuses it.
    """
    require_mlflow(uri, store)
    manifest = store.manifest(run_id)
    mlflow = importlib.import_module("mlflow")
    for name in (
        "mlflow",
        "alembic",
    ):  # set up by the import, they tell of their migrations; a library is silent
        logging.getLogger(name).setLevel(logging.WARNING)
    # It would print the URL of the run, with the credentials of the server's.
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
    try:
        client = mlflow.MlflowClient(tracking_uri=uri)
        experiment = _experiment(client, uri)
        found = client.search_runs([experiment], f"tags.`{_RUN_ID}` = '{run_id}'")
        done = next((each for each in found if each.info.status == "FINISHED"), None)
        if done is not None:
            return str(done.info.run_id)
        for half in found:  # a log that was killed in the middle is begun anew
            client.delete_run(half.info.run_id)
        return _log(mlflow, client, experiment, store, manifest)
    except StoreError:
        raise
    except Exception as error:
        raise StoreError(
            f"MLflow at {mask_credentials(uri)} does not take run {run_id} ({describe(error)}); "
            "the run is in the store, log it again by nnbuild.report.mlflow.log_run"
        ) from error


def _experiment(client: Any, uri: str) -> str:
    known = client.get_experiment_by_name(EXPERIMENT)
    if known is not None:
        return str(known.experiment_id)
    # A server knows where its artifacts go; of a database MLflow would put them into the current folder.
    beside = Path(uri.removeprefix("sqlite:///")).absolute().parent / "mlartifacts"
    location = beside.as_uri() if uri.startswith("sqlite:///") else None
    return str(client.create_experiment(EXPERIMENT, artifact_location=location))


def _log(mlflow: Any, client: Any, experiment: str, store: Store, manifest: Manifest) -> str:
    run_id, row = manifest.run_id, manifest.row
    began, ended = _milliseconds(row.started_at), _milliseconds(row.finished_at)
    names = ("dataset", "dataset_digest", "model", "code_version")
    tags = {_RUN_ID: run_id, **{f"nnbuild.{name}": str(getattr(row, name)) for name in names}}
    target = client.create_run(experiment, start_time=began, tags=tags, run_name=run_id).info.run_id
    entities = mlflow.entities
    settings = [
        entities.Param(name, str(value)[:_LONGEST])
        for name, value in flatten(manifest.config).items()
    ]
    for first in range(0, len(settings), 100):  # as many as one request may hold
        client.log_batch(target, params=settings[first : first + 100])
    metrics = [
        entities.Metric(*each)
        for each in [*_history(store, run_id), *_figures(store, run_id, ended)]
    ]
    for first in range(0, len(metrics), _BATCH):
        client.log_batch(target, metrics=metrics[first : first + _BATCH])
    for name in manifest.files:
        path = store.root / name
        if path.is_file():
            place = (
                Path(name).relative_to(f"runs/{run_id}") if name.startswith("runs/") else Path(name)
            )
            folder = place.parent.as_posix()
            client.log_artifact(target, str(path), None if folder == "." else folder)
    client.log_artifact(target, str(store.root / "runs" / run_id / "manifest.json"))
    client.set_terminated(target, status="FINISHED", end_time=ended)
    return str(target)


def _history(store: Store, run_id: str) -> Iterator[tuple[str, float, int, int]]:
    for row in store.read_table("history", run_id).to_pylist():
        yield row["metric"], row["value"], int(row["logged_at"].timestamp() * 1000), row["epoch"]


def _figures(store: Store, run_id: str, at: int) -> Iterator[tuple[str, float, int, int]]:
    for row in store.read_table("evaluation", run_id).to_pylist():
        if row["label"] is None:
            yield f"{row['subset']}_{row['metric']}", row["value"], at, 0


def _milliseconds(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp() * 1000)
