"""The step that decides whether the run becomes the champion, and a person's answer to it."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from nnbuild.errors import StoreError
from nnbuild.evaluation import promotion
from nnbuild.evaluation.significance import McNemarResult
from nnbuild.pipeline.data import staged_dataset
from nnbuild.pipeline.step import cached_step, staged_predictions, staged_table
from nnbuild.store import champion, commit, schemas
from nnbuild.store.filesystem import os_errors_as_store_errors
from nnbuild.store.json_models import read_text
from nnbuild.store.run import Run
from nnbuild.store.step_results import Decided, LoadedData, Reported
from nnbuild.store.store import Store
from nnbuild.store.tables import read_table, write_table

_GATE_OFF = "the gate is off"


@cached_step(Decided)
def decide(run: Run, data: LoadedData, *, gate_skip_reason: str | None = None) -> Decided:
    """Compare the run with the champion on the same test examples, and write `decisions`.

    Args:
        run: Run in staging, evaluated and scored.
        data: Result of `load_data`.
        gate_skip_reason: Reason to skip the gate, if it is to be skipped.

    Raises:
        StoreError: The champion's tables cannot be read.
    """
    config, store = run.config.gate, Store(run.store)
    champion_id = champion.current(store)
    challenger = _candidate_of_run(run, data)
    other: promotion.Candidate | None = None
    if config.enabled and gate_skip_reason is None:
        if champion_id is not None:
            other = _candidate_of_champion(store, champion_id, data.classes)
        decision = promotion.decide(challenger, other, config)
    else:
        decision = promotion.Decision(promote=False, reason=gate_skip_reason or _GATE_OFF)
    waits = decision.promote and config.approval == "manual"
    row = {
        "champion": champion_id,
        "rule": config.rule,
        "promoted": decision.promote and not waits,
        "reason": f"{decision.reason}; {_approval_hint(run)}" if waits else decision.reason,
        "accuracy": challenger.metrics["accuracy"],
        "champion_accuracy": other.metrics["accuracy"] if other else None,
        **(decision.paired._asdict() if decision.paired else dict.fromkeys(McNemarResult._fields)),
        "recall_drop": decision.recall_drop,
        "recall_label": decision.recall_label,
        "decided_at": datetime.now(UTC),
    }
    _write_decision(run, row)
    return Decided(
        champion=champion_id,
        promote=row["promoted"],
        reason=row["reason"],
        champion_metrics=dict(other.metrics) if other else {},
        figures={name: value for name, value in row.items() if isinstance(value, (int, float))},
        waits=waits,
        passed_over=gate_skip_reason is not None,
        gate_reason=decision.reason,
        files=run.digests("tables/decisions.parquet"),
    )


def _approval_hint(run: Run) -> str:
    return f"a person has to approve it: nnbuild promote {run.run_id}"


def _write_decision(run: Run, row: Mapping[str, Any]) -> None:
    """Write the only row of the run's table `decisions`."""
    table = schemas.table_of(schemas.DECISIONS, [dict(row)])
    write_table(staged_table(run, "decisions"), table, schemas.DECISIONS)


def record_approval(run: Run, *, promote: bool, comment: str = "") -> Decided:
    """Replace the pending decision of the gate by a person's answer.

    Args:
        run: Run whose decision waits for a person.
        promote: Whether the person promotes the run.
        comment: Reason in the person's words.

    Returns:
        The final decision.

    Raises:
        StoreError: No decision waits.
    """
    decided = run.load_result(Decided)
    if decided is None or not decided.waits:
        raise StoreError(
            f"run {run.run_id} has no decision that waits for a person; see `nnbuild champion`"
        )
    answer = "approved by a person" if promote else "not approved by a person"
    reason = f"{decided.gate_reason}; {answer}" + (f": {comment}" if comment else "")
    row = read_table(staged_table(run, "decisions"), schemas.DECISIONS).to_pylist()[0]
    # If the process is killed between these two writes, the file no longer has the digest of the
    # step's result: the step runs again, and the person is asked again.
    _write_decision(run, row | {"promoted": promote, "reason": reason})
    result = decided.model_copy(
        update={
            "promote": promote,
            "reason": reason,
            "waits": False,
            "files": run.digests("tables/decisions.parquet"),
            "figures": decided.figures | {"promoted": promote},
        }
    )
    run.save_result(result, run.seconds().get(Decided.step, 0.0))
    return result


def revoke_decision(run: Run) -> None:
    """Remove the decision of a run whose commit failed, so that a resumed run decides again.

    A run that is ready to be published keeps its decision: its commit is finished, not undone.
    """
    if not commit.is_ready(run):
        run.invalidate(Decided, Reported)
        staged_table(run, "decisions").unlink(missing_ok=True)


def is_current(run: Run, decided: Decided) -> bool:
    """Return whether the champion is still the one that the run was compared with."""
    return champion.current(Store(run.store)) == decided.champion


def _candidate_of_run(run: Run, data: LoadedData) -> promotion.Candidate:
    staged = staged_dataset(run)
    folder = staged if staged.is_dir() else Store(run.store).dataset_folder(data.name, data.digest)
    evaluation = read_table(staged_table(run, "evaluation"), schemas.EVALUATION)
    predictions = staged_predictions(run, data)
    return _candidate(run.run_id, folder, evaluation, predictions)


def _candidate_of_champion(store: Store, run_id: str, classes: int) -> promotion.Candidate:
    data = store.manifest(run_id).steps.load_data
    folder = store.dataset_folder(data.name, data.digest)
    evaluation = store.read_table("evaluation", run_id)
    predictions = store.read_table("predictions", run_id)
    candidate = _candidate(run_id, folder, evaluation, predictions)
    # With other classes the test sets differ, whatever their digests say.
    return candidate if data.classes == classes else replace(candidate, test_set=None)


def _candidate(
    run_id: str, folder: Path, evaluation: pa.Table, predictions: pa.Table
) -> promotion.Candidate:
    rows = [row for row in evaluation.to_pylist() if row["subset"] == "test"]
    ordered = predictions.sort_by("example_id")
    correct = np.asarray(ordered["label"].to_numpy()) == np.asarray(ordered["predicted"].to_numpy())
    return promotion.Candidate(
        run_id=run_id,
        test_set=_test_set_digest(folder),
        correct=correct,
        metrics={row["metric"]: row["value"] for row in rows if row["label"] is None},
        recalls={row["label"]: row["value"] for row in rows if row["metric"] == "recall"},
    )


def _test_set_digest(folder: Path) -> str | None:
    with os_errors_as_store_errors(f"read {folder}"):
        path = folder / "dataset.json"
        return read_text(path, "test", "sha256") if path.exists() else None
