"""Decide: does the run become the champion?"""

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from nnbuild.errors import StoreError
from nnbuild.evaluation import promotion
from nnbuild.evaluation.significance import McNemarResult
from nnbuild.pipeline.data import staged_dataset
from nnbuild.pipeline.step import cached_step, staged_table
from nnbuild.store import champion, commit, schemas
from nnbuild.store.filesystem import os_errors_as_store_errors
from nnbuild.store.json_models import read_text
from nnbuild.store.run import Run
from nnbuild.store.step_results import Decided, LoadedData
from nnbuild.store.store import Store
from nnbuild.store.tables import read_table, write_table

_WAITS = "a person has to say yes, by nnbuild promote {}"


@cached_step(Decided)
def decide(run: Run, data: LoadedData, *, passed_over: str | None = None) -> Decided:
    """Hold the run against the champion, on the same test examples; the decision is a row of `decisions`.

    Args:
        run: in staging, evaluated and scored.
        data: what `load_data` returned.
        passed_over: why the run is kept from the gate, if it is.

    Raises:
        StoreError: the champion's tables cannot be read.
    """
    config, store = run.config.gate, Store(run.store)
    standing = champion.current(store)
    challenger = _of_run(run, data)
    looks = config.enabled and passed_over is None
    other = _of_champion(store, standing, data.classes) if standing is not None and looks else None
    off = promotion.Decision(promote=False, reason=passed_over or "the gate is off")
    decision = promotion.decide(challenger, other, config) if looks else off
    waits = decision.promote and config.approval == "manual"
    if waits:
        decision = replace(
            decision, promote=False, reason=f"{decision.reason}; {_WAITS.format(run.run_id)}"
        )
    paired = decision.paired._asdict() if decision.paired else dict.fromkeys(McNemarResult._fields)
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
    write_table(
        staged_table(run, "decisions"),
        schemas.table_of(schemas.DECISIONS, [row]),
        schemas.DECISIONS,
    )
    return Decided(
        champion=standing,
        promote=decision.promote,
        reason=decision.reason,
        champion_metrics=dict(other.metrics) if other else {},
        figures={name: value for name, value in row.items() if isinstance(value, (int, float))},
        waits=waits,
        passed_over=passed_over is not None,
        files=run.digests("tables/decisions.parquet"),
    )


def record_approval(run: Run, *, promote: bool, comment: str = "") -> Decided:
    """What a person said of a challenger that waits for it; kept in the place of the gate's decision.

    Args:
        run: whose decision waits.
        promote: what was said.
        comment: why, in the person's words.

    Raises:
        StoreError: no decision waits.
    """
    decided = run.load_result("decide", Decided)
    if decided is None or not decided.waits:
        raise StoreError(
            f"run {run.run_id} has no decision that waits for a person; see `nnbuild champion`"
        )
    said = f"{'approved' if promote else 'not approved'} by a person" + (
        f": {comment}" if comment else ""
    )
    reason = f"{decided.reason.removesuffix('; ' + _WAITS.format(run.run_id))}; {said}"
    path = staged_table(run, "decisions")
    row = read_table(path, schemas.DECISIONS).to_pylist()[0] | {
        "promoted": promote,
        "reason": reason,
    }
    # Whatever is killed between these two lines is asked again: the step's files are no longer what they were.
    write_table(path, schemas.table_of(schemas.DECISIONS, [row]), schemas.DECISIONS)
    result = decided.model_copy(
        update={
            "promote": promote,
            "reason": reason,
            "waits": False,
            "files": run.digests("tables/decisions.parquet"),
            "figures": decided.figures | {"promoted": promote},
        }
    )
    run.save_result("decide", result, run.seconds().get("decide", 0.0))
    return result


def revoke_decision(run: Run) -> None:
    """Take back what was decided on a run that is not committed after all: resumed, it is decided on again.

    A run that is laid out already keeps its decision, since its commit is finished and not undone.
    """
    if not commit.is_ready(run):
        run.invalidate("decide", "write_report")
        staged_table(run, "decisions").unlink(missing_ok=True)


def is_current(run: Run, decided: Decided) -> bool:
    """Whether the champion is still the one that a decision was made against."""
    return champion.current(Store(run.store)) == decided.champion


def _of_run(run: Run, data: LoadedData) -> promotion.Candidate:
    staged = staged_dataset(run)
    folder = staged if staged.is_dir() else Store(run.store).dataset_folder(data.name, data.digest)
    evaluation = read_table(staged_table(run, "evaluation"), schemas.EVALUATION)
    predictions = read_table(staged_table(run, "predictions"), schemas.predictions(data.classes))
    return _candidate(run.run_id, folder, evaluation, predictions)


def _of_champion(store: Store, run_id: str, classes: int) -> promotion.Candidate | None:
    data = store.manifest(run_id).steps.load_data
    folder = store.dataset_folder(data.name, data.digest)
    evaluation = store.read_table("evaluation", run_id)
    predictions = store.read_table("predictions", run_id)
    found = _candidate(run_id, folder, evaluation, predictions)
    if data.classes == classes:
        return found
    return promotion.Candidate(run_id, None, found.correct, found.metrics, found.recalls)


def _candidate(run_id: str, folder: Any, evaluation: Any, predictions: Any) -> promotion.Candidate:
    rows = [row for row in evaluation.to_pylist() if row["subset"] == "test"]
    ordered = predictions.sort_by("example_id")
    correct = np.asarray(ordered["label"].to_numpy()) == np.asarray(ordered["predicted"].to_numpy())
    return promotion.Candidate(
        run_id=run_id,
        test_set=_test_set(folder),
        correct=correct,
        metrics={row["metric"]: row["value"] for row in rows if row["label"] is None},
        recalls={row["label"]: row["value"] for row in rows if row["metric"] == "recall"},
    )


def _test_set(folder: Path) -> str | None:
    with os_errors_as_store_errors(f"read {folder}"):
        path = folder / "dataset.json"
        return read_text(path, "test", "sha256") if path.exists() else None
