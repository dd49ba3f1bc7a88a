"""What the runs and jobs of a store still need: champions, models, datasets and sweeps.

Code that deletes something from a store consults this module first.
"""

import json
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from nnbuild.errors import StoreError
from nnbuild.store import Run, Store, champion, commands, locks
from nnbuild.store.filesystem import os_errors_as_store_errors, read_json
from nnbuild.store.ids import is_run_id
from nnbuild.store.step_results import BuiltModel, Decided, LoadedData, StepResult

SWEEP = "sweep-"
_SCORE = "score-"


class Protection(NamedTuple):
    """Why a run must not be deleted.

    Attributes:
        reason: What the run is, or what needs it.
        remedy: What to do before it can be deleted.
    """

    reason: str
    remedy: str


def protected_runs(store: Store, past_champions: int = 1) -> dict[str, Protection]:
    """Return the runs that must not be deleted, whatever their age.

    Args:
        store: Store of the runs.
        past_champions: Number of past champions to protect of each dataset, the newest ones.
    """
    champions = champion.currents(store)
    found = _of_unfinished_work(store) | _of_approvals(store)
    found |= _of_shadows(store, [each.run_id for each in champions.values()])
    for dataset, change in champions.items():
        present, past = change.run_id, _past_champions(store, dataset, past_champions)
        for run_id in (present, *past):
            if (anchor := _anchor(store, run_id)) is not None:
                found[anchor] = Protection(
                    "it is the past champion that the gate compares runs with, too",
                    "promote another run",
                )
        reason = f"it is a past champion of {dataset}, to which a rollback leads"
        found |= dict.fromkeys(past, Protection(reason, "promote another run"))
        pinned = ", which a person has pinned" if change.pinned else ""
        found[present] = Protection(
            f"it is the champion of {dataset}{pinned}", "promote another run or roll back"
        )
    return found


def _past_champions(store: Store, dataset: str, count: int) -> list[str]:
    """Return the newest past champions of a dataset, and at least the next rollback's target."""
    chain = champion.chain(store, dataset)
    target = champion.rollback_target(store, dataset)
    needed = 0 if target is None else chain.index(target) + 1
    return chain[: max(count, needed)]


def _anchor(store: Store, run_id: str) -> str | None:
    """Return the anchor of a champion, the past champion that the gate also compares runs with.

    Without it, small losses that the gate allows could add up over many promotions.
    """
    with suppress(StoreError):  # a damaged manifest
        decided = store.manifest(run_id).steps.decide
        return None if decided is None else decided.next_anchor
    return None


def _of_unfinished_work(store: Store) -> dict[str, Protection]:
    """Return the runs whose commit is not complete, and those that staged work refers to."""
    found = {
        run.run_id: Protection("its commit is not complete", f"complete it by {commands.REPAIR}")
        for run in store.committed_in_staging()
    }
    for run in _unfinished(store):
        for needed, use in (
            (_recorded(run, Decided).get("champion"), "was compared with it"),
            (_recorded(run, BuiltModel).get("start"), "starts from its weights"),
        ):
            if isinstance(needed, str):
                reason = f"unfinished run {run.run_id} {use}"
                found.setdefault(needed, Protection(reason, "resume or discard that run"))
    for score_id, run_id in _models_of_staged_jobs(store):
        found.setdefault(
            run_id,
            Protection(
                f"it made the model of unfinished scoring job {score_id}",
                "resume or discard that job",
            ),
        )
    return found


def _models_of_staged_jobs(store: Store) -> list[tuple[str, str]]:
    """Return the unfinished scoring jobs with the runs of their models."""
    folder, found = store.local_root / "staging", []
    with os_errors_as_store_errors(f"list {folder}"):
        paths = sorted(folder.glob(f"{_SCORE}*/job.json"))
    for path in paths:
        with suppress(StoreError):  # damaged, or finished in the meantime
            record = read_json(path)
            config = record.get("config") if isinstance(record, dict) else None
            for name in ("model", "shadow"):
                run_id = config.get(name) if isinstance(config, dict) else None
                if isinstance(run_id, str) and is_run_id(run_id):
                    found.append((path.parent.name.removeprefix(_SCORE), run_id))
    return found


def _of_shadows(store: Store, champions: Iterable[str]) -> dict[str, Protection]:
    """Return the newest shadow of each champion, which may still be promoted."""
    jobs = store.read_table("score_jobs", columns=["run_id", "shadow_run_id"]).to_pylist()
    newest = {each["run_id"]: each for each in jobs if each["shadow_run_id"] is not None}
    return {
        newest[run_id]["shadow_run_id"]: Protection(
            f"it is the shadow of champion {run_id}", "score with another shadow"
        )
        for run_id in champions
        if run_id in newest
    }


def _of_approvals(store: Store) -> dict[str, Protection]:
    """Return the committed runs that the gate has left to a person to promote."""
    found, champions = {}, champion.currents(store)
    for row in store.read_table("runs", columns=["dataset", "promoted", "config"]).to_pylist():
        if row["promoted"] or _section(row["config"], "gate").get("approval") != "manual":
            continue
        with suppress(StoreError):  # a damaged manifest
            decided = store.manifest(row["run_id"]).steps.decide
            present = champions.get(row["dataset"])
            current = None if present is None else present.run_id
            if decided is not None and decided.waits and decided.champion == current:
                found[row["run_id"]] = Protection(
                    "it waits for a person's approval", "promote it, or another run"
                )
    return found


def _unfinished(store: Store) -> list[Run]:
    return [Run(store.local_root, each.run_id) for each in store.unfinished_runs()]


def _recorded(run: Run, kind: type[StepResult]) -> dict[str, Any]:
    """Return the recorded result of a step of a run in staging, without checking its files."""
    with suppress(StoreError):  # not done yet, or damaged
        content = read_json(run.folder / "steps" / f"{kind.step}.json")
        result = content.get("result") if isinstance(content, dict) else None
        return result if isinstance(result, dict) else {}
    return {}


def starting_runs(store: Store, run_ids: Iterable[str]) -> dict[str, str]:
    """Return the runs from whose weights other runs started, each with the ID of one that did.

    Args:
        store: Store of the runs.
        run_ids: IDs of the runs that may have started from them.
    """
    wanted, found = set(run_ids), {}
    for row in store.read_table("runs", columns=["config"]).to_pylist():
        if row["run_id"] in wanted and _section(row["config"], "training").get("start"):
            with suppress(StoreError):  # a damaged manifest
                built = store.manifest(row["run_id"]).steps.build_model
                if built is not None and built.start is not None:
                    found[built.start] = row["run_id"]
    return found


# Datasets


def needed_datasets(store: Store, deleted: Iterable[str] = ()) -> set[str]:
    """Return the paths of the datasets that runs refer to, relative to the store.

    Args:
        store: Store of the runs, in staging or committed.
        deleted: IDs of runs that do not count.
    """
    # Staging is read first: a run that is committed in the meantime is then seen in both places.
    staged = [_recorded(run, LoadedData) for run in _unfinished(store)]
    needed = {(each.get("name"), each.get("digest")) for each in staged}
    columns = ["dataset", "dataset_digest"]
    gone = set(deleted)
    for row in store.read_table("runs", columns=columns).to_pylist():
        if row["run_id"] not in gone:
            needed.add((row["dataset"], row["dataset_digest"]))
    return with_parts(
        store,
        {
            store.dataset_name(name, digest)
            for name, digest in needed
            if isinstance(name, str) and isinstance(digest, str)
        },
    )


def with_parts(store: Store, names: Iterable[str]) -> set[str]:
    """Return the paths of datasets and of the parts, such as days, that they consist of.

    Raises:
        StoreError: The description of a dataset is damaged, so that its parts are unknown.
    """
    found = set(names)
    for name in tuple(found):
        path = store.root / name / "dataset.json"
        with os_errors_as_store_errors(f"look for {path}"):
            if not path.exists():  # still in staging
                continue
        description = read_json(path)
        if isinstance(description, dict) and isinstance(description.get("parts"), list):
            above = name.rpartition("/")[0]
            found |= {f"{above}/{part}" for part in description["parts"]}
    return found


def is_loading_data(store: Store) -> bool:
    """Return whether a process is loading data: it may rely on any dataset that the store has."""
    return any(
        each.held and not _recorded(Run(store.local_root, each.run_id), LoadedData)
        for each in store.unfinished_runs()
    )


# Sweeps


def sweep_of(config: Any) -> str | None:
    """Return the ID of the sweep that a run is a trial of, or None.

    Args:
        config: Recorded configuration of the run, of any version of nnbuild; a value or its JSON.
    """
    sweep = _section(config, "trial").get("sweep")
    return sweep if isinstance(sweep, str) else None


def _section(config: Any, name: str) -> dict[str, Any]:
    """Return a section of a recorded configuration; an empty one if there is none."""
    if isinstance(config, str):
        try:
            config = json.loads(config)
        except (ValueError, RecursionError):
            return {}
    section = config.get(name) if isinstance(config, dict) else None
    return section if isinstance(section, dict) else {}


def open_sweeps(store: Store) -> set[str]:
    """Return the IDs of the sweeps that are in progress, or have unfinished trials."""
    found = {
        folder.name.removeprefix(SWEEP) for folder in sweep_folders(store) if locks.is_held(folder)
    }
    for run in _unfinished(store):
        with suppress(StoreError):  # a damaged record
            found.add(sweep_of(run.record["config"]) or "")
    return found - {""}


def sweep_folders(store: Store) -> list[Path]:
    """Return the folders with the records of sweeps; links are not followed."""
    staging = store.local_root / "staging"
    with os_errors_as_store_errors(f"list {staging}"):
        found = sorted(staging.glob(f"{SWEEP}*"))
    return [each for each in found if each.is_dir() and not each.is_symlink()]
