"""The step that decides whether the run becomes the champion, and a person's answer to it."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from nnbuild.config.presets import is_fallback
from nnbuild.config.sections import GateConfig
from nnbuild.errors import StoreError
from nnbuild.evaluation import promotion
from nnbuild.evaluation.promotion import Incomparable, PairedResult
from nnbuild.evaluation.significance import McNemarResult
from nnbuild.evaluation.slices import Compared, Slice, measure_slices
from nnbuild.pipeline.comparison import (
    Challenger,
    Comparison,
    challenger_of,
    compare,
    compare_on_golden,
)
from nnbuild.pipeline.step import cached_step, staged_table
from nnbuild.store import champion, commit, schemas
from nnbuild.store.filesystem import absolute_address
from nnbuild.store.run import Run
from nnbuild.store.step_results import Decided, LoadedData, Reported
from nnbuild.store.store import Store
from nnbuild.store.tables import read_table, write_table

_GATE_OFF = "the gate is off"


@cached_step(Decided)
def decide(
    run: Run,
    data: LoadedData,
    *,
    gate_skip_reason: str | None = None,
    past_day_counts: bool = False,
) -> Decided:
    """Compare the run with the champion on the same test images, and write `decisions`.

    Args:
        run: Run in staging, evaluated and scored.
        data: Result of `load_data`.
        gate_skip_reason: Reason to skip the gate, if it is to be skipped.
        past_day_counts: Whether a run as of a past day can become the champion, as in a backtest.

    Raises:
        StoreError: The store cannot be read now.
    """
    config, store = run.config.gate, Store(run.store)
    champion_id, pinned = champion.current(store, data.name), champion.pin(store, data.name)
    skip_reason = gate_skip_reason or _fallback_reason(run, data)
    if not past_day_counts:
        skip_reason = skip_reason or _past_day_reason(run)
    challenger = challenger_of(run, data)
    slices = _slices(challenger, None, config)
    other: Comparison | Incomparable | None = None
    if not config.enabled:
        decision = promotion.Decision("gate-off", skip_reason or _GATE_OFF)
    elif skip_reason is not None:
        decision = promotion.Decision("skipped", skip_reason)
    else:
        if champion_id is not None:
            other = compare(challenger, store, champion_id, config)
        slices = _slices(challenger, other, config)
        decision = _judge(challenger, store, other, config, slices)
        if pinned is not None:
            decision = _held_back(decision, champion.pin_reason(data.name, pinned))
    paired = other.paired if isinstance(other, Comparison) else None
    waits = decision.promote and config.approval == "manual"
    outcome: promotion.Outcome = "rejected" if waits else decision.outcome
    row = {
        "champion": champion_id,
        "rule": config.rule,
        "promoted": outcome == "promoted",
        "outcome": outcome,
        "reason": f"{decision.reason}; {_approval_hint(run)}" if waits else decision.reason,
        "accuracy": float(paired.challenger.mean()) if paired else challenger.metrics["accuracy"],
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
    if challenger.kept is not None:
        rows = [each._asdict() for each in slices]
        table = schemas.table_of(schemas.SLICES, rows)
        write_table(staged_table(run, "slices"), table, schemas.SLICES)
    return Decided(
        champion=champion_id,
        outcome=outcome,
        promote=row["promoted"],
        reason=row["reason"],
        champion_metrics=dict(other.metrics) if isinstance(other, Comparison) else {},
        figures={name: value for name, value in row.items() if isinstance(value, (int, float))},
        next_anchor=decision.next_anchor,
        waits=waits,
        passed_over=skip_reason is not None,
        pinned=pinned is not None,
        gate_reason=decision.reason,
        files=_files(run),
    )


def _files(run: Run) -> dict[str, str]:
    tables = ("decisions", "slices") if run.config.dataset.keep else ("decisions",)
    return run.digests(*(f"tables/{name}.parquet" for name in tables))


def _slices(
    challenger: Challenger, other: Comparison | Incomparable | None, config: GateConfig
) -> list[Slice]:
    """Measure the challenger on the slices of its test images."""
    if challenger.kept is None:
        return []
    compared = None
    if isinstance(other, Comparison):
        compared = Compared(other.rows, other.paired.challenger, other.paired.other)
    correct = challenger.predicted == challenger.labels
    return measure_slices(challenger.kept, correct, challenger.confidence, config, compared)


def _past_day_reason(run: Run) -> str | None:
    """Return why a run that repeats one of a past day cannot be promoted; None for other runs."""
    day = run.config.dataset.as_of
    return None if day is None else f"it makes the run of {day} again"


def _judge(
    challenger: Challenger,
    store: Store,
    other: Comparison | Incomparable | None,
    config: GateConfig,
    slices: Sequence[Slice],
) -> promotion.Decision:
    """Apply the rule of the gate to the comparison with the champion."""
    candidate = promotion.Candidate(challenger.run.run_id, challenger.metrics)
    if not isinstance(other, Comparison):
        return promotion.decide(candidate, other, config)
    champion_id = other.paired.run_id
    golden = None if config.golden is None else compare_on_golden(challenger, store, champion_id)
    if isinstance(golden, Incomparable):
        return promotion.decide(candidate, golden, config)
    anchor = _compare_with_anchor(challenger, store, champion_id, config)
    of_gate = [each for each in slices if each.column_name in config.slices]
    return promotion.decide(
        candidate, other.paired, config, anchor=anchor, golden=golden, slices=of_gate
    )


def _compare_with_anchor(
    challenger: Challenger, store: Store, champion_id: str, config: GateConfig
) -> PairedResult | Incomparable | None:
    """Compare the challenger with the anchor of the champion, unless that is the champion itself.

    The gate records the anchor with each run that passes. A champion that a person has chosen
    against the gate is its own anchor, and so is one whose anchor cannot be compared.
    """
    decided = store.manifest(champion_id).steps.decide
    anchor_id = None if decided is None else decided.next_anchor
    if anchor_id is None or anchor_id == champion_id:
        return None
    other = compare(challenger, store, anchor_id, config, role="the anchor")
    return other.paired if isinstance(other, Comparison) else other


def _fallback_reason(run: Run, data: LoadedData) -> str | None:
    """Return why a run on fallback data cannot become a champion; None for other runs."""
    dataset = run.config.dataset
    if not is_fallback(data.name, dataset.name, dataset.fallback):
        return None
    return (
        f"it was trained on the fallback dataset {data.name}, because {dataset.name} was "
        "unavailable"
    )


def shared_name(run: Run, decided: Decided) -> str | None:
    """Return a remark if the champion was trained on another source of the same name, or None.

    A dataset at a path is called after its file or folder, and may have been moved since.

    Args:
        run: Run in staging.
        decided: Its decision.
    """
    if decided.champion is None or decided.passed_over:
        return None
    theirs = Store(run.store).manifest(decided.champion).settings.dataset.name
    mine = run.config.dataset.name
    if absolute_address(theirs) == absolute_address(mine):
        return None
    return (
        f"champion {decided.champion} was trained on {theirs}, this run on {mine}; datasets of one "
        "name share a champion, so give them different names if they hold different data"
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
            "files": _files(run),
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
        for name in ("decisions", "slices"):
            staged_table(run, name).unlink(missing_ok=True)


def is_current(run: Run, data: LoadedData, decided: Decided) -> bool:
    """Return whether the champion and its pin are still those that the decision relies on."""
    store = Store(run.store)
    is_pinned = champion.pin(store, data.name) is not None
    return (champion.current(store, data.name), is_pinned) == (decided.champion, decided.pinned)
