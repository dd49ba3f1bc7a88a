"""What a pruning or a deletion removes: by age, or by ID.

A sweep counts as one run, and is kept or deleted with all of its trials.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from nnbuild.data import day_record
from nnbuild.errors import StoreError
from nnbuild.pipeline import dependencies
from nnbuild.pipeline.dependencies import SWEEP, sweep_of
from nnbuild.store import Store, commands, deletion
from nnbuild.store.deletion import Folder
from nnbuild.store.ids import is_run_id

_DAY = re.compile(r"datasets/[^/]+/days/\d{4}-\d{2}-\d{2}/[0-9a-f]{64}", re.ASCII)
_MIN_SWEEP_AGE = timedelta(hours=1)  # a younger one may be about to begin its first run
_MAX_NAMED = 3  # jobs in a message


@dataclass
class Plan:
    """What to delete.

    Attributes:
        runs: IDs of runs.
        jobs: IDs of scoring jobs.
        datasets: Datasets.
        sweeps: Folders of sweeps.
        kept: Reason for each run that is kept although it is old.
        rows: Rows of the runs and jobs, which go first.
        files: Their other folders.
    """

    runs: list[str]
    jobs: list[str]
    datasets: list[Folder] = field(default_factory=list)
    sweeps: list[Folder] = field(default_factory=list)
    kept: dict[str, str] = field(default_factory=dict)
    rows: list[Folder] = field(default_factory=list)
    files: list[Folder] = field(default_factory=list)


def plan_by_age(
    store: Store, keep: int, since: datetime | None, *, now: datetime, scores: bool
) -> Plan:
    """Return the plan that deletes old runs and what no kept run needs.

    Args:
        store: Store to prune.
        keep: Number of runs, past champions and jobs to keep; see `RetentionConfig`.
        since: Time since which everything is kept, if there is one.
        now: Aware current time.
        scores: Whether old scoring jobs are deleted, too.
    """
    columns = ["status", "dataset", "config", "started_at"]
    units = _units(store.read_table("runs", columns=columns).to_pylist())
    jobs = store.read_table("score_jobs", columns=["run_id", "started_at"]).to_pylist()
    kept_jobs = _newest_jobs(jobs, keep, since) if scores else jobs
    new = {row["run_id"] for unit in _newest(units, keep, since) for row in unit.rows}
    reasons = _reasons(store, kept_jobs, past_champions=keep)
    reasons |= _reasons_of_trials(store, units, new | reasons.keys())
    for run_id, later in dependencies.starting_runs(store, new | reasons.keys()).items():
        reasons.setdefault(run_id, f"run {later} was trained from its weights")
    # Again, since a trial can be kept for its weights alone.
    reasons |= _reasons_of_trials(store, units, new | reasons.keys())
    kept = new | reasons.keys()
    run_ids = [row["run_id"] for unit in units for row in unit.rows]
    kept_job_ids = {job["score_id"] for job in kept_jobs}
    plan = Plan(
        runs=sorted(each for each in run_ids if each not in kept),
        jobs=[job["score_id"] for job in jobs if job["score_id"] not in kept_job_ids],
        sweeps=_unused_sweeps(store, units, kept, now),
        kept={each: reasons[each] for each in sorted(run_ids) if each in kept and each not in new},
    )
    return _with_folders(store, plan, _unused_datasets(store, plan.runs))


class _Unit(NamedTuple):
    """A run, or a sweep.

    Attributes:
        rows: Rows of its runs, oldest first.
        sweep: ID of the sweep.
    """

    rows: list[dict[str, Any]]
    sweep: str | None

    @property
    def group(self) -> tuple[str | None, bool]:
        """Return the dataset, and whether a run has succeeded: each group has its own quota."""
        return self.rows[-1]["dataset"], any(row["status"] == "succeeded" for row in self.rows)


def _units(rows: Iterable[dict[str, Any]]) -> list[_Unit]:
    """Return runs and sweeps, newest first."""
    units: dict[str, _Unit] = {}
    for row in sorted(rows, key=lambda row: row["run_id"]):
        sweep = sweep_of(row["config"])
        name = row["run_id"] if sweep is None else SWEEP + sweep
        units.setdefault(name, _Unit([], sweep)).rows.append(row)
    return sorted(units.values(), key=lambda unit: unit.rows[-1]["run_id"], reverse=True)


def _newest(units: Iterable[_Unit], keep: int, since: datetime | None) -> list[_Unit]:
    """Return the newest units of each group, and all since a time."""
    counts: Counter[tuple[str | None, bool]] = Counter()
    found = []
    for unit in units:
        counts[unit.group] += 1
        if counts[unit.group] <= keep or _is_since(unit.rows[-1], since):
            found.append(unit)
    return found


def _newest_jobs(
    jobs: Sequence[dict[str, Any]], keep: int, since: datetime | None
) -> list[dict[str, Any]]:
    oldest_first = sorted(jobs, key=lambda job: job["score_id"])
    return [
        job
        for place, job in enumerate(oldest_first)
        if place >= len(oldest_first) - keep or _is_since(job, since)
    ]


def _is_since(row: dict[str, Any], since: datetime | None) -> bool:
    return since is not None and bool(row["started_at"] >= since)


def _reasons(
    store: Store, jobs: Iterable[dict[str, Any]], *, past_champions: int
) -> dict[str, str]:
    """Return why runs are kept whatever their age."""
    protected = dependencies.protected_runs(store, past_champions)
    reasons = {run_id: each.reason for run_id, each in protected.items()}
    for job in jobs:
        if job["run_id"] is not None:
            reasons.setdefault(job["run_id"], f"it made the model of scoring job {job['score_id']}")
    return reasons


def _reasons_of_trials(store: Store, units: Iterable[_Unit], kept: set[str]) -> dict[str, str]:
    """Return why trials are kept: the sweep is open, or another run of it is kept."""
    open_sweeps = dependencies.open_sweeps(store)
    reasons: dict[str, str] = {}
    for unit in units:
        ids = {row["run_id"] for row in unit.rows}
        if unit.sweep in open_sweeps:
            reasons |= dict.fromkeys(ids - kept, f"sweep {unit.sweep} is not finished")
        elif ids & kept:
            reasons |= dict.fromkeys(ids - kept, f"another trial of sweep {unit.sweep} is kept")
    return reasons


def _unused_sweeps(
    store: Store, units: Iterable[_Unit], kept: set[str], now: datetime
) -> list[Folder]:
    """Return the folders of the sweeps without a kept run that are not in progress."""
    used = {unit.sweep for unit in units if any(row["run_id"] in kept for row in unit.rows)}
    used |= dependencies.open_sweeps(store)
    return [
        deletion.sized(store, f"staging/{folder.name}")
        for folder in dependencies.sweep_folders(store)
        if folder.name.removeprefix(SWEEP) not in used
        and now - datetime.fromtimestamp(folder.stat().st_mtime, now.tzinfo) > _MIN_SWEEP_AGE
    ]


def plan_by_id(store: Store, ids: Sequence[str]) -> Plan:
    """Return the plan that deletes single runs and jobs.

    Raises:
        StoreError: An ID is unknown, or its run must not be deleted.
    """
    run_ids, score_ids = set(store.run_ids()), set(store.score_ids())
    plan = Plan(
        runs=sorted(each for each in ids if each in run_ids),
        jobs=sorted(each for each in ids if each in score_ids),
    )
    if unknown := [each for each in ids if each not in run_ids | score_ids]:
        raise _unknown(store, unknown[0])
    if plan.runs:
        _require_unneeded(store, plan)
    columns = ["dataset", "dataset_digest"]
    own = {
        store.dataset_name(row["dataset"], row["dataset_digest"])
        for row in store.read_table("runs", plan.runs or None, columns).to_pylist()
        if row["run_id"] in plan.runs and row["dataset_digest"] is not None
    }
    unused = dependencies.with_parts(store, own) & _unused_datasets(store, plan.runs)
    return _with_folders(store, plan, unused)


def _unknown(store: Store, name: str) -> StoreError:
    """Return the error about something that is neither a committed run nor a committed job."""
    staging = store.local_root / "staging"
    if is_run_id(name):
        if (staging / name).is_dir() or (staging / f"score-{name}").is_dir():
            return StoreError(
                f"{name} is not finished; resume it, or discard it by {commands.discard(name)}"
            )
    elif name in {each.name.removeprefix(SWEEP) for each in dependencies.sweep_folders(store)}:
        return StoreError(
            f"{name} is a sweep, expected the ID of a run or a scoring job; "
            "delete its runs (their `config` names the sweep), or wait for `nnbuild prune`"
        )
    return StoreError(
        f"no committed run or scoring job {name!r} in {store.root}; see `nnbuild runs`, or the "
        "table score_jobs"
    )


def _require_unneeded(store: Store, plan: Plan) -> None:
    """Refuse a plan that deletes what something else needs."""
    protected = dependencies.protected_runs(store)
    for run_id in plan.runs:
        if run_id in protected:
            reason, remedy = protected[run_id]
            raise StoreError(f"run {run_id} cannot be deleted: {reason}; {remedy} first")
    jobs = store.read_table("score_jobs", columns=["run_id"]).to_pylist()
    for run_id in plan.runs:
        own = [each["score_id"] for each in jobs if each["run_id"] == run_id]
        if left := sorted(set(own) - set(plan.jobs)):
            named = ", ".join(left[:_MAX_NAMED]) + (", …" if len(left) > _MAX_NAMED else "")
            raise StoreError(
                f"run {run_id} cannot be deleted: it made the model of scoring jobs {named}; "
                "delete them first, or in the same call"
            )
    others = set(store.run_ids()) - set(plan.runs)
    for start, later in dependencies.starting_runs(store, others).items():
        if start in plan.runs:
            raise StoreError(
                f"run {start} cannot be deleted: run {later} was trained from its weights; "
                "delete that run first, or in the same call"
            )
    configs = store.read_table("runs", plan.runs, ["config"]).to_pylist()
    open_sweeps = dependencies.open_sweeps(store)
    for row in configs:
        if (sweep := sweep_of(row["config"])) in open_sweeps:
            raise StoreError(
                f"run {row['run_id']} cannot be deleted: sweep {sweep} is not finished; "
                "finish or stop it first"
            )


def _with_folders(store: Store, plan: Plan, datasets: Iterable[str]) -> Plan:
    """Fill in the folders of a plan."""
    for folders, row in (
        (deletion.run_folders(store, plan.runs), "tables/runs/"),
        (deletion.job_folders(store, plan.jobs), "tables/score_jobs/"),
    ):
        plan.rows += [each for each in folders if each.name.startswith(row)]
        plan.files += [each for each in folders if not each.name.startswith(row)]
    if not dependencies.is_loading_data(store):
        plan.datasets = [deletion.sized(store, name) for name in sorted(datasets)]
    return plan


def _unused_datasets(store: Store, deleted: Iterable[str]) -> set[str]:
    """Return the paths of the datasets and days that nothing needs once runs are deleted."""
    roots = (store.root, store.local_root) if store.is_remote else (store.root,)
    names = {name for root in roots for name in deletion.dataset_names(root)}
    needed = dependencies.needed_datasets(store, deleted)
    return {
        name for name in names - needed if not is_day(name) or _is_past_day(store, name, needed)
    }


def is_day(name: str) -> bool:
    """Return whether a path in the store is that of a day of labelled images."""
    return _DAY.fullmatch(name) is not None


def _is_past_day(store: Store, name: str, needed: Iterable[str]) -> bool:
    """Return whether a day is older than all days that runs use, or a version was corrected since.

    Other days that no run uses yet are new data for the next run.
    """
    dataset, day, digest = split_day(name)
    used = [split_day(each)[1] for each in needed if is_day(each) and split_day(each)[0] == dataset]
    if not used:
        return False
    return day < min(used) or f"days/{day}/{digest}" not in day_record.current_parts(store, dataset)


def split_day(name: str) -> tuple[str, str, str]:
    """Return the dataset, the day and the digest of the path of a day."""
    _, dataset, _, day, digest = name.split("/")
    return dataset, day, digest
