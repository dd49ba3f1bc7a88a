"""Compare runs and summarise trends, from committed tables only."""

import functools
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from nnbuild.config.loading import flatten
from nnbuild.errors import ConfigError, StoreError, suggestion
from nnbuild.evaluation.metrics import SUMMARY_METRICS
from nnbuild.evaluation.significance import mcnemar_test
from nnbuild.evaluation.slices import MAX_VALUES
from nnbuild.store.filesystem import read_json
from nnbuild.store.manifests import Manifest
from nnbuild.store.schemas import JOB_TABLES
from nnbuild.store.step_results import FittedModel, Scored
from nnbuild.store.store import Store

Labels = NDArray[np.integer[Any]]

_RUN_COLUMNS = ("dataset", "model", "seed", "epochs", "status", "promoted")
_ALWAYS_SHOWN = (
    "seed",
    "trial",
    "dataset.name",
    "dataset.data_dir",
    "model.name",
    "training.epochs",
)
_METRICS = tuple(each.name for each in SUMMARY_METRICS)
_PAIRED_COLUMNS = ("difference", "low", "high", "only_first", "only_it", "p_worse", "p_better")
_SECONDS = (FittedModel.step, Scored.step)
_LEAST_RUNS = 2
_DIGITS = 12


def slices_of(store: Store, run_id: str, columns: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Return the slices of a run's test images, from the table `slices`.

    Args:
        store: Store of the run.
        run_id: ID of a committed run.
        columns: Columns to return; all if empty.

    Raises:
        ConfigError: The run keeps no columns, or not these, or they have too many values.
    """
    kept = store.manifest(run_id).settings.dataset.keep
    if not kept:
        raise ConfigError(
            f"run {run_id} has no slices: it keeps no columns; retrain with dataset.keep"
        )
    for name in columns:
        if name not in kept:
            raise ConfigError(
                f"run {run_id} does not keep the column {name!r}; {suggestion(name, kept)}",
                setting="by",
                value=name,
            )
    rows: list[dict[str, Any]] = store.read_table("slices", run_id).to_pylist()
    measured = {row["column_name"] for row in rows}
    for name in columns or kept:
        if name not in measured and (columns or not measured):
            raise ConfigError(
                f"run {run_id} has no slices by {name!r}, which has more than {MAX_VALUES} values "
                "in the test images; group them in a column of their own",
                setting="by",
                value=name,
            )
    return [row for row in rows if not columns or row["column_name"] in columns]


def compare(store: Store, run_ids: list[str]) -> list[dict[str, Any]]:
    """Compare runs; each one but the first is compared with the first by a paired test.

    Args:
        store: Store of the runs.
        run_ids: IDs of two or more committed runs that succeeded.

    Returns:
        For each run its ID, dataset, model and seed, `test_set` (equal for equal test images and
        labels, and only then), the settings in which the runs differ by their dotted keys, its
        metrics on the test set and its durations in seconds. If it was evaluated on the same
        test set as the first run, also `difference` (of the accuracies),
        `low` and `high` (95 % interval of the difference), `only_first` and `only_it` (number of
        test images that only one of the two classifies correctly), `p_worse` and `p_better`;
        otherwise these are None.

    Raises:
        ConfigError: There are fewer than two runs, or one is given twice.
        StoreError: A run is not committed, or failed.
    """
    if len(run_ids) < _LEAST_RUNS or len(set(run_ids)) < len(run_ids):
        raise ConfigError(
            f"cannot compare {', '.join(run_ids) or 'no run'}; give two or more different runs, "
            "see `nnbuild runs`"
        )
    manifests = [_manifest(store, run_id) for run_id in run_ids]
    differing = _differing([flatten(each.config) for each in manifests])
    rows = [
        _summary(store, each, settings) for each, settings in zip(manifests, differing, strict=True)
    ]
    first = _predictions(store, run_ids[0])
    return [
        row
        | (
            _paired(first, _predictions(store, row["run_id"]))
            if position and row["test_set"] == rows[0]["test_set"]
            else dict.fromkeys(_PAIRED_COLUMNS)
        )
        for position, row in enumerate(rows)
    ]


def _manifest(store: Store, run_id: str) -> Manifest:
    manifest = store.manifest(run_id)
    if manifest.row.status != "succeeded":
        raise StoreError(f"run {run_id} failed and has no metrics; see `nnbuild runs`")
    return manifest


def _test_set(store: Store, dataset: str, digest: str) -> str:
    """Return the first digits of a digest of the classes and test images of a dataset."""
    try:
        value = read_json(store.dataset_folder(dataset, digest) / "dataset.json")
        text = json.dumps([value["test"]["content"], value["class_names"]])
    except (StoreError, KeyError, TypeError):
        # Damaged, or of version 0.1: then only equal datasets are known to have equal test images.
        return digest[:_DIGITS]
    return hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]


def _differing(settings: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return for each run the settings in which the runs differ, without those always shown."""
    keys = dict.fromkeys(
        key for each in settings for key in each if not key.startswith(_ALWAYS_SHOWN)
    )
    differ = [
        key for key in keys if any(each.get(key) != settings[0].get(key) for each in settings)
    ]
    return [{key: _scalar(each.get(key)) for key in differ} for each in settings]


def _scalar(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, list) else value


def _summary(store: Store, manifest: Manifest, differing: dict[str, Any]) -> dict[str, Any]:
    row, run_id = manifest.row, manifest.run_id
    metrics = _metrics(store, run_id)
    calibrated = manifest.steps.calibrate_model
    return {
        "run_id": run_id,
        **{name: getattr(row, name) for name in _RUN_COLUMNS},
        "test_set": _test_set(store, str(row.dataset), str(row.dataset_digest)),
        **differing,
        **{name: metrics.get(name) for name in _METRICS},
        "temperature": calibrated.temperature if calibrated else None,
        **{f"seconds_{name.split('_')[0]}": manifest.seconds.get(name) for name in _SECONDS},
    }


def _metrics(store: Store, run_id: str) -> dict[str, float]:
    rows = store.read_table("evaluation", run_id).to_pylist()
    return {
        row["metric"]: row["value"]
        for row in rows
        if row["subset"] == "test" and row["label"] is None
    }


def _predictions(store: Store, run_id: str) -> tuple[Labels, Labels]:
    table = store.read_table("predictions", run_id, ["example_id", "label", "predicted"]).sort_by(
        "example_id"
    )
    expected = store.manifest(run_id).steps.load_data.test
    if len(table) != expected:
        raise StoreError(
            f"the table predictions of run {run_id} has {len(table):,} rows, expected "
            f"{expected:,}; restore its file from a copy"
        )
    return np.asarray(table["label"].to_numpy()), np.asarray(table["predicted"].to_numpy())


def _paired(first: tuple[Labels, Labels], other: tuple[Labels, Labels]) -> dict[str, Any]:
    test = mcnemar_test(first[0] == first[1], other[0] == other[1])
    values = (test.difference, test.low, test.high, test.only_champion, test.only_challenger)
    return dict(zip(_PAIRED_COLUMNS, (*values, test.p_worse, test.p_better), strict=True))


def drift_by_job(store: Store, run_id: str | None = None) -> list[dict[str, Any]]:
    """Return the drift of each scoring job that was compared with a reference, oldest first.

    Args:
        store: Store of the jobs.
        run_id: ID of the run whose model scored; all runs if not given.

    Returns:
        For each job `score_id`, `run_id`, `measured_at`, `rows`, the largest `psi` and the largest
        `ks` of its measures, and in `exceeded` the names of the measures that exceeded a
        threshold, separated by commas.
    """
    jobs: dict[str, dict[str, Any]] = {}
    for row in store.read_table("drift").to_pylist():
        if run_id not in {None, row["run_id"]}:
            continue
        about = {name: row[name] for name in ("score_id", "run_id", "measured_at", "rows")}
        job = jobs.setdefault(row["score_id"], {**about, "psi": 0.0, "ks": 0.0, "exceeded": ""})
        job[row["statistic"]] = max(job.get(row["statistic"], 0.0), row["value"])
        if row["exceeded"] and row["measure"] not in job["exceeded"].split(", "):
            job["exceeded"] = ", ".join(filter(None, (job["exceeded"], row["measure"])))
    return list(jobs.values())


def live_periods(store: Store, run_id: str | None = None) -> list[dict[str, Any]]:
    """Return the rows of `live` that were computed last, by run and period; by day if possible.

    Args:
        store: Store of the runs.
        run_id: ID of the run; all runs if not given.
    """
    rows = [
        row
        for row in store.read_table("live").to_pylist()
        if run_id is None or row["run_id"] == run_id
    ]
    days = [row for row in rows if row["period"] == "day"]
    return sorted(days or rows, key=lambda row: (row["run_id"], row["start"]))


def trends(store: Store) -> list[dict[str, Any]]:
    """Return metrics, duration and promotion of every run that succeeded, oldest first.

    `test_set` is equal for runs with equal test images and labels, whose metrics can be compared.
    `drift` is the largest population stability index of all scoring jobs with the run's model;
    None if none was measured.
    """
    test_set = functools.cache(functools.partial(_test_set, store))
    succeeded = [
        row for row in store.read_table("runs").to_pylist() if row["status"] == "succeeded"
    ]
    calibration: dict[str, float] = {
        row["run_id"]: row["value"]
        for row in store.read_table("evaluation").to_pylist()
        if row["metric"] == "expected_calibration_error" and row["subset"] == "test"
    }
    drift: dict[str, float] = {}
    for job in drift_by_job(store):
        drift[job["run_id"]] = max(job["psi"], drift.get(job["run_id"], 0.0))
    return [
        {
            "run_id": row["run_id"],
            "finished_at": row["finished_at"],
            "dataset": row["dataset"],
            "test_set": test_set(row["dataset"], row["dataset_digest"]),
            "model": row["model"],
            "accuracy": row["test_accuracy"],
            "loss": row["test_loss"],
            "expected_calibration_error": calibration.get(row["run_id"]),
            "seconds": (row["finished_at"] - row["started_at"]).total_seconds(),
            "promoted": row["promoted"],
            "drift": drift.get(row["run_id"]),
        }
        for row in succeeded
    ]


def read_table(
    store: Store | Path | str | None,
    name: str,
    *,
    run_id: str | None = None,
    score_id: str | None = None,
    columns: list[str] | None = None,
) -> pa.Table:
    """Read the committed rows of a table; `.to_pandas()` converts them to a DataFrame.

    Args:
        store: A store, or its root; the default root if None.
        name: Name of the table, such as `runs`, `history`, `predictions` or `scores`.
        run_id: ID of one run. In a table of scoring jobs: the jobs that its model scored.
        score_id: ID of one scoring job, for `scores`, `shadow_scores`, `score_jobs` and `drift`.
        columns: Names of the columns; all if not given.

    Returns:
        The rows. The first column is `run_id`, or `score_id` in a table of scoring jobs.

    Raises:
        StoreError: There is no store, the table, run, job or column is unknown, or a file is
            damaged or of another schema version.
    """
    opened = store if isinstance(store, Store) else Store.open(store)
    if name not in JOB_TABLES:
        if score_id is not None:
            raise StoreError(
                f"score_id {score_id!r} does not apply to table {name!r}; give run_id, or read "
                f"{' or '.join(JOB_TABLES)}"
            )
        return opened.read_table(name, run_id, columns)
    if run_id is None:
        return opened.read_table(name, score_id, columns)
    jobs = opened.read_table("score_jobs", score_id).to_pylist()
    score_ids = [
        each["score_id"]
        for each in jobs
        if each["run_id"] == run_id
        and (name != "scores" or not each["output"])
        and (name != "shadow_scores" or each["shadow_run_id"])
    ]
    if not score_ids:
        raise StoreError(
            f"no scoring job by run {run_id} in {opened.root}; see the table score_jobs"
        )
    return opened.read_table(name, score_ids, columns)
