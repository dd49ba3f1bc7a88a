"""Retention: delete old runs and scoring jobs, and the data that no kept run needs."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from datetime import datetime, timedelta
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nnbuild.data import day_versions
from nnbuild.errors import ConfigError, LockedError, StoreError
from nnbuild.pipeline import dependencies
from nnbuild.pipeline.dependencies import SWEEP
from nnbuild.pipeline.retention_plan import (
    Plan,
    is_day,
    plan_by_age,
    plan_by_id,
    split_day,
)
from nnbuild.runtime import fault_injection
from nnbuild.store import Store, champion_history, deletion, locks
from nnbuild.store.deletion import Deletion
from nnbuild.store.json_models import problem


class RetentionConfig(BaseModel):
    """What a pruning keeps."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    keep: int = Field(
        ge=1,
        description="Number of successful runs to keep of each dataset; also the number of failed "
        "runs, of past champions, and of scoring jobs",
    )
    keep_days: int | None = Field(
        None, ge=1, le=36500, description="Number of days for which everything is kept"
    )
    scores: bool = Field(default=False, description="Whether to delete old scoring jobs, too")


class Pruned(BaseModel):
    """What was deleted, or would be.

    Attributes:
        runs: IDs of the runs.
        jobs: IDs of the scoring jobs.
        parts: Paths of the datasets, relative to the store.
        sweeps: IDs of the sweeps.
        bytes: Size of all deleted files, also of those that an interrupted deletion had left.
        kept: Reason for each run that is kept although newer ones fill the quota.
    """

    model_config = ConfigDict(frozen=True)
    runs: tuple[str, ...] = ()
    jobs: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()
    sweeps: tuple[str, ...] = ()
    bytes: int = 0
    kept: dict[str, str] = {}

    def summary(self) -> str:
        """Return what was deleted in numbers, such as `2 runs, 1 dataset: 99 bytes`."""
        counts = {"run": self.runs, "scoring job": self.jobs, "dataset": self.parts}
        counts["sweep"] = self.sweeps
        named = [
            f"{len(ids)} {kind}{'' if len(ids) == 1 else 's'}"
            for kind, ids in counts.items()
            if ids
        ]
        return f"{', '.join(named) or 'nothing'}: {self.bytes:,} bytes"


def retention_config(settings: Mapping[str, Any]) -> RetentionConfig:
    """Return the config of a pruning.

    Args:
        settings: Values by the names of the settings.

    Raises:
        ConfigError: A setting is unknown or invalid; the message names it.
    """
    try:
        return RetentionConfig.model_validate(settings)
    except ValidationError as error:
        raise ConfigError(f"invalid setting of the pruning: {problem(error)}") from error


def prune(store: Store, config: RetentionConfig, *, now: datetime, dry_run: bool = False) -> Pruned:
    """Delete old runs and scoring jobs, and the datasets and sweeps that no kept run needs.

    Args:
        store: Store to prune.
        config: What to keep.
        now: Aware current time.
        dry_run: Whether to change nothing.

    Raises:
        StoreError: The store cannot be read or written. What was deleted before stays deleted, and
            the next call deletes the rest.
    """
    since = None if config.keep_days is None else now - timedelta(days=config.keep_days)

    def make_plan() -> Plan:
        return plan_by_age(store, config.keep, since, now=now, scores=config.scores)

    return _carry_out(store, make_plan, now, dry_run=dry_run)


def delete(store: Store, ids: Sequence[str], *, now: datetime, dry_run: bool = False) -> Pruned:
    """Delete single runs and scoring jobs, and the datasets that only these runs have used.

    Args:
        store: Store with the runs and jobs.
        ids: Their IDs.
        now: Aware current time.
        dry_run: Whether to change nothing.

    Raises:
        StoreError: An ID is unknown, or its run must not be deleted; nothing is deleted then.
    """
    return _carry_out(
        store, lambda: plan_by_id(store, list(dict.fromkeys(ids))), now, dry_run=dry_run
    )


def finish_interrupted(store: Store) -> int:
    """Complete the deletions whose process was killed, and return the bytes that it freed."""
    freed = 0
    for each in deletion.interrupted(store):
        with suppress(LockedError), deletion.finish(each):  # another process completes it
            _restore_needed(store, each)
            freed += each.bytes_left()
    return freed


def _carry_out(
    store: Store, make_plan: Callable[[], Plan], now: datetime, *, dry_run: bool
) -> Pruned:
    store.require()
    if dry_run:
        return _result(make_plan(), _leftover_bytes(store))
    freed_before = finish_interrupted(store)
    with ExitStack() as stack:
        # The champion does not change between the plan and the removal of the rows.
        stack.enter_context(champion_history.lock(store))
        plan = make_plan()
        if not (plan.rows or plan.datasets or plan.sweeps):
            return _result(plan, freed_before)
        with deletion.begin(store, now) as current:
            current.write_plan(plan.runs, plan.jobs, [each.name for each in plan.datasets])
            current.remove_rows(plan.rows)
            stack.close()
            for each in plan.files:
                current.remove(each.name)
                fault_injection.failpoint(f"prune:{each.name.partition('/')[0]}")
            _remove_datasets(store, current, plan)
            _remove_sweeps(store, current, plan)
    return _result(plan, freed_before)


def _leftover_bytes(store: Store) -> int:
    """Return the bytes that `finish_interrupted` would free."""
    total = 0
    for each in deletion.interrupted(store):
        needed = dependencies.needed_datasets(store)
        total += each.bytes_left() + sum(left.bytes for left in deletion.leftovers(each))
        total -= sum(left.bytes for left in each.restorable_datasets() if left.name in needed)
    return total


def _remove_datasets(store: Store, current: Deletion, plan: Plan) -> None:
    """Remove datasets, unless a run has begun to rely on them since the plan was made."""
    if dependencies.is_loading_data(store):
        plan.datasets = []
    needed = dependencies.needed_datasets(store)
    plan.datasets = [each for each in plan.datasets if each.name not in needed]
    # First, so that a run that begins now ingests the days again, or finds them restored.
    _forget_days(store, [each.name for each in plan.datasets if is_day(each.name)])
    for each in plan.datasets:
        current.remove(each.name)
        fault_injection.failpoint("prune:datasets")
    restored = _restore_needed(store, current)
    plan.datasets = [each for each in plan.datasets if each.name not in restored]


def _forget_days(store: Store, names: Iterable[str]) -> None:
    by_dataset: dict[str, set[str]] = {}
    for dataset, day, digest in map(split_day, names):
        by_dataset.setdefault(dataset, set()).add(f"days/{day}/{digest}")
    for dataset, parts in by_dataset.items():
        day_versions.forget_parts(store, dataset, parts)
        fault_injection.failpoint("prune:forgotten")


def _restore_needed(store: Store, current: Deletion) -> set[str]:
    """Restore the removed datasets that a run relies on, and return their paths.

    A run that has seen a dataset just before it was removed is in staging by now.
    """
    if not (removed := current.restorable_datasets()):
        return set()
    loading, needed = dependencies.is_loading_data(store), dependencies.needed_datasets(store)
    names = {each.name for each in removed if loading or each.name in needed}
    for name in names:
        current.restore(name)
    return names


def _remove_sweeps(store: Store, current: Deletion, plan: Plan) -> None:
    """Remove the folders of sweeps, except those that were resumed since the plan was made."""
    for each in tuple(plan.sweeps):
        try:
            with locks.lock(store.local_root / each.name):
                current.remove(each.name)
        except StoreError:
            plan.sweeps.remove(each)
        fault_injection.failpoint("prune:sweeps")


def _result(plan: Plan, freed_before: int) -> Pruned:
    """Return the outcome of a plan, with the bytes of interrupted deletions."""
    folders = [*plan.rows, *plan.files, *plan.datasets, *plan.sweeps]
    return Pruned(
        runs=tuple(plan.runs),
        jobs=tuple(plan.jobs),
        parts=tuple(each.name for each in plan.datasets),
        sweeps=tuple(each.name.rpartition(SWEEP)[2] for each in plan.sweeps),
        bytes=sum(each.bytes for each in folders) + freed_before,
        kept=plan.kept,
    )
