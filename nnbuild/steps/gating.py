"""Decide: does the run become the champion?"""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from nnbuild import gate, schemas
from nnbuild.evaluation.paired import Paired
from nnbuild.results import Decided, LoadedData
from nnbuild.steps.data import staged_dataset
from nnbuild.steps.once import once, staged_table
from nnbuild.store import champion
from nnbuild.store.files import explained
from nnbuild.store.run import Run
from nnbuild.store.store import Store
from nnbuild.store.tables import read_table, write_table

_OFF = gate.Decision(promote=False, reason="the gate is off")


@once(Decided)
def decide(run: Run, data: LoadedData) -> Decided:
    """Hold the run against the champion, on the same test examples; the decision is a row of `decisions`.

    Raises:
        StoreError: the champion's tables cannot be read.
    """
    config, store = run.config.gate, Store(run.store)
    standing = champion.current(store)
    challenger = _of_run(run, data)
    other = _of_champion(store, standing, data.classes) if standing is not None and config.enabled else None
    decision = gate.decide(challenger, other, config) if config.enabled else _OFF
    paired = decision.paired._asdict() if decision.paired else dict.fromkeys(Paired._fields)
    row = {
        "champion": standing,
        "rule": config.rule,
        "promoted": decision.promote,
        "reason": decision.reason,
        "accuracy": challenger.metrics["accuracy"],
        "champion_accuracy": other.metrics["accuracy"] if other else None,
        **paired,
        "recall_drop": decision.recall_drop,
        "recall_label": decision.recall_label,
        "decided_at": datetime.now(UTC),
    }
    write_table(staged_table(run, "decisions"), schemas.table_of(schemas.DECISIONS, [row]), schemas.DECISIONS)
    return Decided(
        champion=standing,
        promote=decision.promote,
        reason=decision.reason,
        champion_metrics=dict(other.metrics) if other else {},
        figures={name: value for name, value in row.items() if isinstance(value, (int, float))},
        files=run.digests("tables/decisions.parquet"),
    )


def still_holds(run: Run, decided: Decided) -> bool:
    """Whether the champion is still the one that a decision was made against."""
    return champion.current(Store(run.store)) == decided.champion


def _of_run(run: Run, data: LoadedData) -> gate.Candidate:
    staged = staged_dataset(run)
    folder = staged if staged.is_dir() else Store(run.store).dataset_folder(data.name, data.digest)
    evaluation = read_table(staged_table(run, "evaluation"), schemas.EVALUATION)
    predictions = read_table(staged_table(run, "predictions"), schemas.predictions(data.classes))
    return _candidate(run.run_id, folder, evaluation, predictions)


def _of_champion(store: Store, run_id: str, classes: int) -> gate.Candidate | None:
    data = store.manifest(run_id)["steps"]["load_data"]
    folder = store.dataset_folder(data["name"], data["digest"])
    evaluation = store.read_table("evaluation", run_id)
    predictions = store.read_table("predictions", run_id)
    found = _candidate(run_id, folder, evaluation, predictions)
    if data["classes"] == classes:
        return found
    return gate.Candidate(run_id, None, found.right, found.metrics, found.recalls)


def _candidate(run_id: str, folder: Any, evaluation: Any, predictions: Any) -> gate.Candidate:
    rows = [row for row in evaluation.to_pylist() if row["subset"] == "test"]
    ordered = predictions.sort_by("example_id")
    right = np.asarray(ordered["label"].to_numpy()) == np.asarray(ordered["predicted"].to_numpy())
    return gate.Candidate(
        run_id=run_id,
        test_set=_test_set(folder),
        right=right,
        metrics={row["metric"]: row["value"] for row in rows if row["label"] is None},
        recalls={row["label"]: row["value"] for row in rows if row["metric"] == "recall"},
    )


def _test_set(folder: Path) -> str | None:
    with explained(f"read {folder}"):
        path = folder / "dataset.json"
        return str(json.loads(path.read_text())["test"]["sha256"]) if path.exists() else None
