"""Put a store in order after accidents: finish or clear what was begun, and write a lost row again.

The repairs are planned first, and the plan changes nothing. Nothing that can still become a run is removed, unless
it is named; and of the files in a store only those that nnbuild wrote.
"""

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

from nnbuild.errors import LockedError, StoreError
from nnbuild.pipeline import commit
from nnbuild.store import Run, Store, locks, schemas
from nnbuild.store.commit import PART
from nnbuild.store.filesystem import file_digest, os_errors_as_store_errors, publish_dir
from nnbuild.store.ids import is_input_lock_name, is_run_id, is_temporary_name
from nnbuild.store.manifests import Manifest, read_manifest, runs_table
from nnbuild.store.tables import write_table

_OLD = timedelta(hours=1)
_SCORE, _REPAIR = "score-", "repair-"
# Where in a root nnbuild writes files beside those that they replace.
_FOLDERS = ("datasets", "quarantine", "runs", "scores", "staging", "tables")


class Finding(NamedTuple):
    """One thing that was out of order.

    Attributes:
        path: Relative to the store, or to its workshop.
        action: What is done about it; `keep` is nothing, `lost` cannot be repaired.
        detail: What it is, and what a person can do.
    """

    path: str
    action: Literal["finish", "clear", "rebuild", "keep", "lost"]
    detail: str


class Repair(NamedTuple):
    """A finding, and what repairs it.

    Attributes:
        finding: What was out of order.
        apply: Repairs it; nothing if there is nothing to do.
    """

    finding: Finding
    apply: Callable[[], object] | None = None


def repair(store: Store, now: datetime, *, discard: Sequence[str] = ()) -> list[Finding]:
    """Plan the repairs of a store and make them; see `plan` and `apply`."""
    repairs = plan(store, now, discard=discard)
    apply(repairs)
    return [each.finding for each in repairs]


def plan(store: Store, now: datetime, *, discard: Sequence[str] = ()) -> list[Repair]:
    """List everything that is out of order, and change nothing.

    Args:
        store: The store; of a remote one, its workshop on this machine is looked at.
        now: Aware time; a temporary file of an hour before was left by a process that died.
        discard: Runs and scoring jobs in staging that are given up.

    Raises:
        StoreError: There is no store, something cannot be read, or what is to be discarded is not in staging.
        LockedError: What is to be discarded is being worked on.
    """
    store.require()
    staged = {path.name.removeprefix(_SCORE) for path in _staging(store)}
    if missing := sorted(set(discard) - {each for each in staged if is_run_id(each)}):
        raise StoreError(
            f"{', '.join(missing)}: not in staging, there is nothing to discard; see `nnbuild runs`"
        )
    with os_errors_as_store_errors(f"look through {store.local_root}"):
        return [
            *_committed_runs(store),
            *_staged_runs(store, discard),
            *_staged_jobs(store, discard),
            *_stale_locks(store),
            *_temporary(store, now),
            *([] if store.is_remote else _lost_rows(store)),
        ]


def apply(repairs: Sequence[Repair]) -> None:
    """Make planned repairs, in order.

    Raises:
        StoreError: One of them failed; the message says which, and that those before it were made.
    """
    todo = [each for each in repairs if each.apply is not None]
    for done, each in enumerate(todo):
        what = (
            f"{each.finding.action} {each.finding.path} ({done} of {len(todo)} repairs were made)"
        )
        with os_errors_as_store_errors(what):
            if each.apply is not None:
                each.apply()


def _staging(store: Store) -> list[Path]:
    """Return the folders of staging; links are not followed."""
    return _subfolders(store.local_root / "staging")


def _subfolders(folder: Path) -> list[Path]:
    if folder.is_symlink() or not folder.is_dir():
        return []
    return sorted(each for each in folder.iterdir() if each.is_dir() and not each.is_symlink())


def _committed_runs(store: Store) -> Iterator[Repair]:
    for run in store.committed_in_staging():
        if not locks.is_held(run.folder):
            finding = Finding(
                f"staging/{run.run_id}", "finish", "is committed, but for its last steps"
            )
            yield Repair(finding, lambda: commit.complete_interrupted_commits(store))


def _staged_runs(store: Store, discard: Sequence[str]) -> Iterator[Repair]:
    known = {*store.run_ids(), *(each.run_id for each in store.unfinished_runs())}
    for path in _staging(store):
        if is_run_id(path.name) and path.name not in known and not locks.is_held(path):
            finding = Finding(
                f"staging/{path.name}", "clear", "had not begun when its process died"
            )
            yield Repair(finding, _clearing(path))
    for waiting in store.unfinished_runs():
        run = store.unfinished_run(waiting.run_id)
        place = f"staging/{waiting.run_id}"
        if run.folder.is_symlink():
            continue
        if waiting.run_id in discard:
            _require_free(run.folder, f"run {run.run_id}")
            yield Repair(Finding(place, "clear", "is given up"), _clearing(run.folder))
        elif waiting.held:
            yield Repair(Finding(place, "keep", "a living process works on it"))
        elif not _is_readable(run):
            detail = "has no readable record, so nothing could resume it"
            yield Repair(Finding(place, "clear", detail), _clearing(run.folder))
        else:
            detail = f"can be resumed: {_command(run)}; or discarded by --discard"
            yield Repair(Finding(place, "keep", detail))


def _require_free(folder: Path, what: str) -> None:
    if locks.is_held(folder):
        raise LockedError(f"{what} is being worked on; stop it first")


def _clearing(folder: Path) -> Callable[[], object]:
    """Return what removes a folder of staging, unless a process has begun to work on it since."""

    def clear() -> None:
        with locks.lock(folder):
            shutil.rmtree(folder)

    return clear


def _command(run: Run) -> str:
    if run.config.trial is not None:
        return f"nnbuild sweep --id {run.config.trial.sweep}"
    return f"nnbuild run --resume {run.run_id}"


def _is_readable(run: Run) -> bool:
    try:
        return bool(run.config)
    except StoreError:
        return False


def _staged_jobs(store: Store, discard: Sequence[str]) -> Iterator[Repair]:
    done = store.score_ids()
    for path in _staging(store):
        score_id, place = path.name.removeprefix(_SCORE), f"staging/{path.name}"
        if not path.name.startswith(_SCORE) or not is_run_id(score_id):
            continue
        if score_id in discard:
            _require_free(path, f"scoring job {score_id}")
            yield Repair(Finding(place, "clear", "is given up"), _clearing(path))
        elif locks.is_held(path):
            yield Repair(Finding(place, "keep", "a living process works on it"))
        elif score_id in done or not (path / "job.json").exists():
            detail = "is committed" if score_id in done else "had not begun"
            yield Repair(Finding(place, "clear", detail), _clearing(path))
        else:
            detail = f"can be resumed: nnbuild score --resume {score_id}; or discarded by --discard"
            yield Repair(Finding(place, "keep", detail))


def _stale_locks(store: Store) -> Iterator[Repair]:
    """Yield the locks on the inputs of scoring jobs whose processes were killed."""
    staging = store.local_root / "staging"
    if staging.is_symlink() or not staging.is_dir():
        return
    ours = (each for each in sorted(staging.iterdir()) if is_input_lock_name(each.name))
    for path in ours:
        regular = path.is_file() and not path.is_symlink()
        if regular and locks.holder(path) is None:
            finding = Finding(
                f"staging/{path.name}", "clear", "is a lock of a scoring job that has ended"
            )
            yield Repair(finding, partial(locks.remove_if_free, path))


def _temporary(store: Store, now: datetime) -> Iterator[Repair]:
    """Yield what a process was writing when it died: it has a name that only nnbuild gives."""
    for path in sorted(_temporary_in(store)):
        written_at = datetime.fromtimestamp(path.lstat().st_mtime, now.tzinfo)
        if now - written_at > _OLD:
            place = path.relative_to(store.local_root).as_posix()
            remove = (lambda path=path: shutil.rmtree(path)) if path.is_dir() else path.unlink
            yield Repair(Finding(place, "clear", "was left half written"), remove)


def _temporary_in(store: Store) -> Iterator[Path]:
    """Yield the temporary files, and of a remote store the copies of datasets, where nnbuild writes them."""
    root = store.local_root
    if not root.is_dir():
        return
    yield from _files_of_ours(root, (each.name for each in root.iterdir()))
    for name in _FOLDERS:
        if (root / name).is_symlink():
            continue
        for folder, folders, files in os.walk(root / name):  # it follows no links
            yield from _files_of_ours(Path(folder), files)
            if name == "datasets" and store.is_remote:
                ours = [each for each in folders if is_temporary_name(each)]
                yield from (Path(folder) / each for each in ours)
                folders[:] = [each for each in folders if each not in ours]


def _files_of_ours(folder: Path, names: Iterable[str]) -> Iterator[Path]:
    for path in (folder / name for name in names if is_temporary_name(name)):
        if path.is_file() and not path.is_symlink():
            yield path


def _lost_rows(store: Store) -> Iterator[Repair]:
    """Yield the runs that have everything but their row in `runs`."""
    known = {*store.run_ids(), *(each.run_id for each in store.unfinished_runs())}
    for path in _subfolders(store.root / "runs"):
        if not is_run_id(path.name) or path.name in known:
            continue
        place = f"runs/{path.name}"
        try:
            manifest = read_manifest(path / "manifest.json")
            _require_whole(store, manifest)
            row = runs_table(manifest)
        except StoreError as error:
            detail = f"has no row in runs, and it cannot be written again: {error}"
            yield Repair(Finding(place, "lost", detail))
            continue
        detail = "its row in runs was lost, and the manifest has what it takes to write it again"
        yield Repair(Finding(place, "rebuild", detail), _rebuilding(store, path.name, row))


def _rebuilding(store: Store, run_id: str, row: Any) -> Callable[[], object]:
    """Return what writes the row of a run again."""

    def rebuild() -> None:
        part = store.local_root / "staging" / f"{_REPAIR}{run_id}" / PART
        write_table(part, row, schemas.RUNS)
        publish_dir(part.parent, store.partition("runs", run_id))

    return rebuild


def _require_whole(store: Store, manifest: Manifest) -> None:
    for name, about in manifest.files.items():
        path = store.root / name
        if name.startswith("tables/runs/"):
            continue
        if (
            not path.resolve().is_relative_to(store.root)
            or not path.is_file()
            or file_digest(path) != about.sha256
        ):
            raise StoreError(f"{name} is missing or was changed")
