"""Questions over several runs: two beside each other, and all of them over time. Figures from the tables alone."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from nnbuild.config.loading import flattened
from nnbuild.errors import ConfigError, StoreError
from nnbuild.evaluation.significance import mcnemar_test as paired_test
from nnbuild.store.schemas import JOB_TABLES
from nnbuild.store.step_results import FittedModel, Scored
from nnbuild.store.store import Store

_OF_RUN = ("dataset", "model", "seed", "epochs", "status", "promoted")
_SHOWN_ANYHOW = (
    "seed",
    "trial",
    "dataset.name",
    "dataset.data_dir",
    "model.name",
    "training.epochs",
)
_METRICS = (
    "accuracy",
    "loss",
    "expected_calibration_error",
    "brier_score",
    "top_2_accuracy",
    "macro_f1",
)
_OF_PAIR = ("difference", "low", "high", "only_first", "only_it", "p_worse", "p_better")
_SECONDS = (FittedModel.step, Scored.step)


def compare(store: Store, run_ids: list[str]) -> list[dict[str, Any]]:
    """Runs side by side; each but the first is held against the first by the paired test.

    Args:
        store: where they are.
        run_ids: two or more committed runs that succeeded.

    Returns:
        For each run what it was, the settings in which the runs differ by their dotted keys, its figures on the test
        set, its seconds, and, if it was evaluated on the same test labels as the first, `difference` (of the accuracy),
        `low`, `high` (its 95 % interval), `only_first`, `only_it` (test images that one of the two alone has right),
        `p_worse` and `p_better`; null otherwise.

    Raises:
        ConfigError: fewer than two runs, or one twice.
        StoreError: a run is not committed, or failed.
    """
    if len(run_ids) < 2 or len(set(run_ids)) < len(run_ids):  # noqa: PLR2004
        raise ConfigError(
            f"cannot compare {', '.join(run_ids) or 'no run'}; give two or more different runs, see `nnbuild runs`"
        )
    manifests = [_manifest(store, run_id) for run_id in run_ids]
    differing = _differing([flattened(each["config"]) for each in manifests])
    rows = [
        _figures(store, each, settings) for each, settings in zip(manifests, differing, strict=True)
    ]
    answers = [_answers(store, run_id) for run_id in run_ids]
    return [
        row | (_against(answers[0], answer) if place else dict.fromkeys(_OF_PAIR))
        for place, (row, answer) in enumerate(zip(rows, answers, strict=True))
    ]


def _manifest(store: Store, run_id: str) -> dict[str, Any]:
    manifest = store.manifest(run_id)
    if manifest["row"]["status"] != "succeeded":
        raise StoreError(f"run {run_id} failed and has no figures; see `nnbuild runs`")
    return manifest


def _differing(settings: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each run, the settings in which the runs differ, but for what is shown anyhow."""
    keys = dict.fromkeys(
        key for each in settings for key in each if not key.startswith(_SHOWN_ANYHOW)
    )
    differ = [
        key for key in keys if any(each.get(key) != settings[0].get(key) for each in settings)
    ]
    return [{key: _told(each.get(key)) for key in differ} for each in settings]


def _told(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, list) else value


def _figures(store: Store, manifest: dict[str, Any], differing: dict[str, Any]) -> dict[str, Any]:
    row, run_id = manifest["row"], manifest["run_id"]
    metrics = _metrics(store, run_id)
    temperature = manifest["steps"].get("calibrate_model", {}).get("temperature")
    return {
        "run_id": run_id,
        **{name: row[name] for name in _OF_RUN},
        **differing,
        **{name: metrics.get(name) for name in _METRICS},
        "temperature": temperature,
        **{f"seconds_{name.split('_')[0]}": manifest["seconds"].get(name) for name in _SECONDS},
    }


def _metrics(store: Store, run_id: str) -> dict[str, float]:
    rows = store.read_table("evaluation", run_id).to_pylist()
    return {
        row["metric"]: row["value"]
        for row in rows
        if row["subset"] == "test" and row["label"] is None
    }


def _answers(store: Store, run_id: str) -> tuple[Any, Any]:
    table = store.read_table("predictions", run_id, ["example_id", "label", "predicted"]).sort_by(
        "example_id"
    )
    return np.asarray(table["label"].to_numpy()), np.asarray(table["predicted"].to_numpy())


def _against(first: tuple[Any, Any], other: tuple[Any, Any]) -> dict[str, Any]:
    if not np.array_equal(first[0], other[0]):
        return dict.fromkeys(_OF_PAIR)
    found = paired_test(first[0] == first[1], other[0] == other[1])
    values = (found.difference, found.low, found.high, found.only_champion, found.only_challenger)
    return dict(zip(_OF_PAIR, (*values, found.p_worse, found.p_better), strict=True))


def drift_by_job(store: Store, run_id: str | None = None) -> list[dict[str, Any]]:
    """Each scoring job that was held against its model's reference, oldest first: how far off what it scored was.

    Args:
        store: where they are.
        run_id: of the model; all of them if not given.

    Returns:
        For each job `score_id`, `run_id`, `measured_at`, `rows`, the largest `psi` and the largest `ks` of its
        measures, and in `exceeded` the names of those that passed a threshold, with commas between them.
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


def trends(store: Store) -> list[dict[str, Any]]:
    """Every run that succeeded, oldest first: its figures, its seconds, and whether it was promoted.

    `drift` is the largest population stability index of what its model scored, in any job; null if none was measured.
    """
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
) -> Any:
    """The committed rows of a table, as Arrow; `.to_pandas()` gives a DataFrame.

    Args:
        store: or its root.
        name: of the table: `runs`, `history`, `predictions`, `scores` and so on.
        run_id: of one run; of a table of scoring jobs, those that its model scored.
        score_id: of one scoring job, for `scores`, `score_runs` and `drift`.
        columns: which ones; all if not given.

    Returns:
        A `pyarrow.Table`, its first column the `run_id`, or the `score_id` of a table of scoring jobs.

    Raises:
        StoreError: no store, an unknown table, run, job or column, or a file of another schema version.
    """
    place = store if isinstance(store, Store) else Store.open(store)
    if name not in JOB_TABLES:
        if score_id is not None:
            raise StoreError(
                f"score_id {score_id!r} with table {name!r}; give run_id, or read {' or '.join(JOB_TABLES)}"
            )
        return place.read_table(name, run_id, columns)
    if run_id is None:
        return place.read_table(name, score_id, columns)
    jobs = place.read_table("score_runs", score_id).to_pylist()
    found = [
        each["score_id"]
        for each in jobs
        if each["run_id"] == run_id and (name != "scores" or not each["output"])
    ]
    if not found:
        raise StoreError(
            f"no scoring job by run {run_id} in {place.root}; see the table score_runs"
        )
    return place.read_table(name, found, columns)
