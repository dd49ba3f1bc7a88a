"""The step that decides whether the run becomes the champion, and a person's answer to it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from nnbuild.config.presets import is_fallback
from nnbuild.errors import StoreError
from nnbuild.evaluation import promotion
from nnbuild.evaluation.significance import McNemarResult
from nnbuild.pipeline.data import staged_dataset
from nnbuild.pipeline.step import cached_step, staged_table
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
    champion_id, pinned = champion.current(store, data.name), champion.pin(store, data.name)
    challenger = _tested_run(run, data)
    skip_reason = gate_skip_reason or _fallback_reason(run, data)
    other: _Tested | None = None
    if not config.enabled:
        decision = promotion.Decision("gate-off", skip_reason or _GATE_OFF)
    elif skip_reason is not None:
        decision = promotion.Decision("skipped", skip_reason)
    else:
        if champion_id is not None:
            other = _tested_champion(store, champion_id)
        decision = promotion.decide(
            promotion.Candidate(run.run_id, challenger.metrics),
            None if other is None else _compare(challenger, other),
            config,
        )
        if pinned is not None:
            decision = _held_back(decision, champion.pin_reason(data.name, pinned))
    waits = decision.promote and config.approval == "manual"
    outcome: promotion.Outcome = "rejected" if waits else decision.outcome
    row = {
        "champion": champion_id,
        "rule": config.rule,
        "promoted": outcome == "promoted",
        "outcome": outcome,
        "reason": f"{decision.reason}; {_approval_hint(run)}" if waits else decision.reason,
        "accuracy": challenger.metrics["accuracy"],
        "champion_accuracy": decision.champion_accuracy,
        **(decision.paired._asdict() if decision.paired else dict.fromkeys(McNemarResult._fields)),
        "recall_drop": decision.recall_drop,
        "recall_label": decision.recall_label,
        "recall_p": decision.recall_p,
        "margin": decision.margin,
        "bound": decision.bound,
        "needed": decision.needed,
        "anchor": decision.anchor,
        "anchor_bound": decision.anchor_bound,
        "golden_bound": decision.golden_bound,
        "rescored": decision.rescored,
        "left_out": decision.left_out,
        "decided_at": datetime.now(UTC),
    }
    _write_decision(run, row)
    return Decided(
        champion=champion_id,
        outcome=outcome,
        promote=row["promoted"],
        reason=row["reason"],
        champion_metrics=dict(other.metrics) if other else {},
        figures={name: value for name, value in row.items() if isinstance(value, (int, float))},
        waits=waits,
        passed_over=skip_reason is not None,
        pinned=pinned is not None,
        gate_reason=decision.reason,
        files=run.digests("tables/decisions.parquet"),
    )


def _fallback_reason(run: Run, data: LoadedData) -> str | None:
    """Return why a run on fallback data cannot become a champion; None for other runs."""
    dataset = run.config.dataset
    if not is_fallback(data.name, dataset.name, dataset.fallback):
        return None
    return (
        f"it was trained on the fallback dataset {data.name}, because {dataset.name} was "
        "unavailable"
    )


def _held_back(decision: promotion.Decision, pin: str) -> promotion.Decision:
    """Return a decision whose comparison stays, but that leaves a pinned champion in place."""
    if decision.outcome == "kept-identical":
        return decision
    return replace(
        decision,
        outcome="skipped",
        reason=f"{pin}; without the pin: {decision.outcome}, {decision.reason}",
    )


def _approval_hint(run: Run) -> str:
    return f"a person has to approve it: nnbuild promote {run.run_id}"


def _write_decision(run: Run, row: Mapping[str, Any]) -> None:
    """Write the only row of the run's table `decisions`."""
    table = schemas.table_of(schemas.DECISIONS, [dict(row)])
    write_table(staged_table(run, "decisions"), table, schemas.DECISIONS)


def record_approval(
    run: Run, *, promote: bool, comment: str = "", seconds_waited: float = 0.0
) -> Decided:
    """Replace the pending decision of the gate by a person's answer; the report is outdated then.

    Args:
        run: Run whose decision waits for a person.
        promote: Whether the person promotes the run.
        comment: Reason in the person's words.
        seconds_waited: Time in which the run waited for the answer.

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
    outcome: promotion.Outcome = "promoted" if promote else "rejected"
    row = read_table(staged_table(run, "decisions"), schemas.DECISIONS).to_pylist()[0]
    # If the process is killed between these two writes, the file no longer has the digest of the
    # step's result: the step runs again, and the person is asked again.
    _write_decision(run, row | {"promoted": promote, "outcome": outcome, "reason": reason})
    result = decided.model_copy(
        update={
            "outcome": outcome,
            "promote": promote,
            "reason": reason,
            "waits": False,
            "files": run.digests("tables/decisions.parquet"),
            "figures": decided.figures | {"promoted": promote},
            "seconds_waited": decided.seconds_waited + seconds_waited,
        }
    )
    run.invalidate(Reported)
    run.save_result(result, run.seconds().get(Decided.step, 0.0))
    return result


def revoke_decision(run: Run) -> None:
    """Remove the decision of a run whose commit failed, so that a resumed run decides again.

    A run that is ready to be published keeps its decision: its commit is finished, not undone.
    """
    if not commit.is_ready(run):
        run.invalidate(Decided, Reported)
        staged_table(run, "decisions").unlink(missing_ok=True)


def is_current(run: Run, data: LoadedData, decided: Decided) -> bool:
    """Return whether the champion and its pin are still those that the decision relies on."""
    store = Store(run.store)
    is_pinned = champion.pin(store, data.name) is not None
    return (champion.current(store, data.name), is_pinned) == (decided.champion, decided.pinned)


@dataclass(frozen=True)
class _Tested:
    """Results of a run on its test images.

    Attributes:
        run_id: ID of the run.
        test_set: SHA-256 of the test images and labels; None if unknown.
        classes: Number of classes.
        labels: True class of each image, by example_id, int16.
        predicted: Predicted class of each image, int16.
        metrics: Metrics over all classes, by name.
    """

    run_id: str
    test_set: str | None
    classes: int
    labels: NDArray[np.int16]
    predicted: NDArray[np.int16]
    metrics: dict[str, float]


def _tested_run(run: Run, data: LoadedData) -> _Tested:
    staged = staged_dataset(run)
    folder = staged if staged.is_dir() else Store(run.store).dataset_folder(data.name, data.digest)
    evaluation = read_table(staged_table(run, "evaluation"), schemas.EVALUATION)
    predictions = read_table(staged_table(run, "predictions"), schemas.predictions(data.classes))
    return _tested(run.run_id, folder, data.classes, evaluation, predictions)


def _tested_champion(store: Store, run_id: str) -> _Tested:
    data = store.manifest(run_id).steps.load_data
    folder = store.dataset_folder(data.name, data.digest)
    evaluation = store.read_table("evaluation", run_id)
    predictions = store.read_table("predictions", run_id)
    return _tested(run_id, folder, data.classes, evaluation, predictions)


def _tested(
    run_id: str, folder: Path, classes: int, evaluation: pa.Table, predictions: pa.Table
) -> _Tested:
    ordered = predictions.sort_by("example_id")
    return _Tested(
        run_id=run_id,
        test_set=_test_set_digest(folder),
        classes=classes,
        labels=np.asarray(ordered["label"].to_numpy()),
        predicted=np.asarray(ordered["predicted"].to_numpy()),
        metrics={
            row["metric"]: row["value"]
            for row in evaluation.to_pylist()
            if row["subset"] == "test" and row["label"] is None
        },
    )


def _compare(
    challenger: _Tested, other: _Tested
) -> promotion.PairedResult | promotion.Incomparable:
    # With other classes the test sets differ, whatever their digests say.
    same_classes = challenger.classes == other.classes
    if not same_classes or challenger.test_set is None or challenger.test_set != other.test_set:
        return promotion.Incomparable(
            other.run_id,
            "the champion was evaluated on other test images, so the two cannot be compared",
        )
    return promotion.PairedResult(
        run_id=other.run_id,
        labels=challenger.labels,
        challenger=challenger.predicted == challenger.labels,
        other=other.predicted == other.labels,
        identical=bool((challenger.predicted == other.predicted).all()),
    )


def _test_set_digest(folder: Path) -> str | None:
    with os_errors_as_store_errors(f"read {folder}"):
        path = folder / "dataset.json"
        return read_text(path, "test", "sha256") if path.exists() else None
