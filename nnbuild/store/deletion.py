"""Delete committed runs and scoring jobs, and the folders that only they needed.

A deletion first writes its plan to a folder of `staging/`. Then it removes the rows in `runs` and
`score_jobs`, so that readers see a run completely or not at all, and the files last. If the process
is killed, `finish` completes what the plan names: the files of runs that have lost their row.
"""

import errno
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel

from nnbuild.runtime import fault_injection
from nnbuild.store import locks, presence, schemas, views
from nnbuild.store.filesystem import (
    fsync_dir,
    is_remote,
    make_durable_dir,
    os_errors_as_store_errors,
    write_json,
)
from nnbuild.store.ids import is_run_id, is_temporary_name, new_run_id, temporary_name
from nnbuild.store.json_models import read_model
from nnbuild.store.store import Store

PREFIX = "prune-"
_PLAN, _TRASH = "plan.json", "trash"
_PERMANENT_TABLES = (schemas.CHAMPIONS_TABLE,)  # they outlive the runs that they name


class _Plan(BaseModel):
    """Content of `plan.json`."""

    runs: list[str] = []
    jobs: list[str] = []
    datasets: list[str] = []


class Folder(NamedTuple):
    """A folder of a store.

    Attributes:
        name: Path relative to the root.
        bytes: Sum of the sizes of its files.
    """

    name: str
    bytes: int


# What belongs to a run or a job


def run_folders(store: Store, run_ids: Iterable[str]) -> list[Folder]:
    """Return the folders of runs: the row in `runs` first, then files and other tables."""
    return _folders(store, run_ids, "run_id", "runs", ("runs/{}",))


def job_folders(store: Store, score_ids: Iterable[str]) -> list[Folder]:
    """Return the folders of scoring jobs: the row in `score_jobs` first, then everything else."""
    files = ("scores/{}", "quarantine/score_id={}")
    return _folders(store, score_ids, "score_id", "score_jobs", files)


def _folders(
    store: Store, ids: Iterable[str], key: str, first: str, files: tuple[str, ...]
) -> list[Folder]:
    wanted = sorted(ids)
    if not wanted:
        return []
    with os_errors_as_store_errors(f"list the tables of {store.root}"):
        tables = store.root / "tables"
        found = sorted(each.name for each in tables.iterdir()) if tables.is_dir() else []
        names = [first, *(each for each in found if each not in (first, *_PERMANENT_TABLES))]
        parts = {name: set(views.partitions(tables / name, key)) for name in names}
        paths = [
            f"tables/{name}/{key}={each}"
            for name in names
            for each in wanted
            if each in parts[name]
        ]
        paths += [pattern.format(each) for each in wanted for pattern in files]
        return [sized(store, path) for path in paths if (store.root / path).exists()]


def sized(store: Store, name: str) -> Folder:
    """Return a folder of a store with its bytes, those of a remote store's local copy included."""
    roots = [store.root, store.local_root] if store.is_remote else [store.root]
    return Folder(name, sum(_bytes_of(root / name) for root in roots))


def _bytes_of(folder: Any) -> int:
    """Return the sum of the sizes of the files in a folder; 0 if it does not exist."""
    if is_remote(folder):
        try:
            found = folder.fs.find(folder.path, detail=True)
        except FileNotFoundError:
            return 0
        return sum(int(each["size"] or 0) for each in found.values())
    if folder.is_symlink():
        return 0  # only the link is removed
    total = 0
    for parent, _, files in os.walk(folder):  # links are not followed
        for name in files:
            with suppress(FileNotFoundError):
                total += (Path(parent) / name).lstat().st_size
    return total


def dataset_names(root: Any) -> list[str]:
    """Return the paths of the ingested datasets below a root, relative to it."""
    folder = root / "datasets"
    with os_errors_as_store_errors(f"list {folder}"):
        if not folder.is_dir():
            return []
        if is_remote(root):
            start = len(root.path.rstrip("/")) + 1
            files = [
                path.removesuffix("/dataset.json")
                for path in folder.fs.find(folder.path)
                if path.endswith("/dataset.json")
            ]
            return sorted(path[start:] for path in files)
        return sorted(
            Path(parent).relative_to(root).as_posix()
            for parent, _, files in os.walk(folder)
            if "dataset.json" in files and not is_temporary_name(Path(parent).name)
        )


# The deletion


class Deletion:
    """A deletion in progress; see `begin`.

    Args:
        store: Store to delete from.
        folder_name: Name of its folder in `staging/`.
    """

    def __init__(self, store: Store, folder_name: str) -> None:
        self.store, self.name = store, folder_name
        self.folder = store.local_root / "staging" / folder_name
        # Of a remote store the plan is an object: any machine can finish the deletion.
        self.plan_path: Any = store.root / "staging" / folder_name / _PLAN

    def write_plan(self, runs: Sequence[str], jobs: Sequence[str], datasets: Sequence[str]) -> None:
        """Write what is to be deleted: IDs of runs and scoring jobs, paths of datasets."""
        plan = _Plan(runs=list(runs), jobs=list(jobs), datasets=list(datasets))
        write_json(self.plan_path, plan.model_dump())
        fault_injection.failpoint("prune:planned")

    def read_plan(self) -> _Plan:
        """Return the plan; an empty one if the process was killed before it was written."""
        with os_errors_as_store_errors(f"read {self.plan_path}"):
            if not self.plan_path.exists():
                return _Plan()
        return read_model(self.plan_path, _Plan, "the plan of a deletion", remedy="remove it")

    def remove_rows(self, folders: Sequence[Folder]) -> None:
        """Remove rows of `runs` and `score_jobs`: now no reader sees these runs and jobs."""
        for each in folders:
            self.remove(each.name)
            fault_injection.failpoint("prune:row")
        if not self.store.is_remote:
            for parent in {(self.store.root / each.name).parent for each in folders}:
                fsync_dir(parent)
        fault_injection.failpoint("prune:rows")

    def remove(self, name: str) -> None:
        """Remove a folder of the store, and its copy on this machine if the store is remote.

        A local folder is moved to the folder of the deletion first, so that it disappears at once.

        Args:
            name: Path relative to the root.
        """
        if self.store.is_remote:
            with os_errors_as_store_errors(f"remove {self.store.root / name}"):
                _remove_objects(self.store.root / name)
        source, target = self.store.local_root / name, self._trash / name
        with os_errors_as_store_errors(f"remove {source}"):
            presence.require(target)
            if not source.is_dir():
                return  # an earlier attempt has removed it
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                source.rename(target)
            except OSError as error:
                # On another file system than `staging/`, or there is one in the trash already.
                if error.errno not in (errno.EXDEV, errno.ENOTEMPTY, errno.EEXIST):
                    raise
                hidden = source.with_name(temporary_name(source.name))
                source.rename(hidden)
                shutil.rmtree(hidden)

    def restore(self, name: str) -> None:
        """Move a folder that was removed back, unless it was written again."""
        target = self.store.root / name
        with os_errors_as_store_errors(f"restore {target}"), suppress(FileNotFoundError):
            if not self.has(name):
                make_durable_dir(target.parent)
                (self._trash / name).rename(target)

    def restorable_datasets(self) -> list[Folder]:
        """Return the removed datasets that can be restored."""
        if self.store.is_remote:
            return []
        names = [each for each in dataset_names(self._trash) if not self.has(each)]
        return [Folder(each, _bytes_of(self._trash / each)) for each in names]

    def has(self, name: str) -> bool:
        """Return whether the store has a folder of this name."""
        return bool((self.store.root / name).exists())

    def bytes_left(self) -> int:
        """Return the bytes of the removed folders that still occupy the disk."""
        return _bytes_of(self._trash)

    def close(self) -> None:
        """Free the bytes of what was removed, and remove the plan."""
        fault_injection.failpoint("prune:moved")
        with os_errors_as_store_errors(f"empty {self._trash}"):
            if self._trash.is_dir():
                shutil.rmtree(self._trash)
            fault_injection.failpoint("prune:emptied")
            self.plan_path.unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def _trash(self) -> Path:
        return self.folder / _TRASH


def _remove_objects(folder: Any) -> None:
    try:
        paths = folder.fs.find(folder.path)
    except FileNotFoundError:
        return
    # The description first: a folder without it is not read as a dataset, complete or not.
    for path in sorted(paths, key=lambda each: not each.endswith("/dataset.json")):
        with suppress(FileNotFoundError):
            folder.fs.rm_file(path)
    with suppress(FileNotFoundError, OSError):  # an empty folder, where a file system has folders
        folder.fs.rm(folder.path, recursive=True)


@contextmanager
def begin(store: Store, now: datetime) -> Iterator[Deletion]:
    """Open a deletion, locked while the block runs; leaving the block without an error closes it.

    Args:
        store: Store to delete from.
        now: Aware current time.
    """
    deletion = Deletion(store, f"{PREFIX}{new_run_id(now)}")
    with _held(deletion):
        yield deletion
        deletion.close()


@contextmanager
def _held(deletion: Deletion) -> Iterator[None]:
    with os_errors_as_store_errors(f"write to store {deletion.store.root}"):
        make_durable_dir(deletion.folder)
    with locks.lock(deletion.folder):
        yield


def interrupted(store: Store) -> list[Deletion]:
    """Return the deletions whose process was killed, oldest first."""
    found = _in_staging(store)
    return [e for e in found if not e.folder.is_symlink() and not locks.is_held(e.folder)]


def planned_runs(store: Store) -> set[str]:
    """Return the IDs of the runs that a deletion names, in progress or interrupted."""
    return {run_id for each in _in_staging(store) for run_id in each.read_plan().runs}


def _in_staging(store: Store) -> list[Deletion]:
    names: set[str] = set()
    for root in (store.root, store.local_root):
        with os_errors_as_store_errors(f"list {root / 'staging'}"):
            if (root / "staging").is_dir():
                names |= {each.name for each in (root / "staging").iterdir()}
    return [Deletion(store, name) for name in sorted(filter(_is_name, names))]


def _is_name(name: str) -> bool:
    return name.startswith(PREFIX) and is_run_id(name.removeprefix(PREFIX))


def leftovers(deletion: Deletion) -> list[Folder]:
    """Return the folders that an interrupted deletion still has to remove.

    Runs that have kept their row are not deleted any more: one may be the champion by now.
    """
    plan, store = deletion.read_plan(), deletion.store
    runs = set(filter(is_run_id, plan.runs)) - set(store.run_ids())
    jobs = set(filter(is_run_id, plan.jobs)) - set(store.score_ids())
    return [
        *run_folders(store, runs),
        *job_folders(store, jobs),
        *(_incomplete_datasets(deletion, plan.datasets) if store.is_remote else ()),
    ]


def _incomplete_datasets(deletion: Deletion, names: Sequence[str]) -> Iterator[Folder]:
    """Yield the datasets of which only some objects were removed, and none was uploaded since."""
    root: Any = deletion.store.root
    with os_errors_as_store_errors(f"list {root}"):
        begun = root.fs.modified(deletion.plan_path.path) if names else None
        for name in names:
            folder = root / name
            if not name.startswith("datasets/") or ".." in name or not folder.is_dir():
                continue
            paths = folder.fs.find(folder.path)
            if not (folder / "dataset.json").exists() and all(
                folder.fs.modified(path) <= begun for path in paths
            ):
                yield Folder(name, _bytes_of(folder))


@contextmanager
def finish(deletion: Deletion) -> Iterator[None]:
    """Complete an interrupted deletion, and run the block before its bytes are freed.

    Raises:
        LockedError: Another process is completing it.
    """
    with _held(deletion):
        for each in leftovers(deletion):
            deletion.remove(each.name)
        yield
        deletion.close()
