"""Repair a store after crashes: finish commits, remove leftovers, and restore lost rows.

The repairs are planned first, and planning changes nothing. Runs and jobs that can be resumed are
kept unless they are to be discarded, and only files that nnbuild wrote are removed.
"""

import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import pyarrow as pa

from nnbuild.errors import LockedError, StoreError
from nnbuild.pipeline import commit, retention
from nnbuild.store import Run, Store, champion_history, commands, deletion, locks, schemas
from nnbuild.store.commit import PART
from nnbuild.store.filesystem import file_digest, os_errors_as_store_errors, publish_dir
from nnbuild.store.ids import is_input_lock_name, is_run_id, is_temporary_name
from nnbuild.store.manifests import Manifest, read_manifest, runs_table
from nnbuild.store.tables import write_table

_MIN_AGE = timedelta(hours=1)
_SCORE, _REPAIR = "score-", "repair-"
# The folders of a store in which nnbuild writes temporary files next to those that they replace.
_FOLDERS = ("datasets", "quarantine", "runs", "scores", "staging", "tables")
_DISCARDED = "to be discarded"
_HELD = "a process is working on it"
_DIGEST_ENDING = re.compile(r"[0-9a-f]{32}")  # what `temporary_name` keeps of a digest


class Finding(NamedTuple):
    """Something in the store that is not in order.

    Attributes:
        path: Path relative to the store, or to the local folder of a remote store.
        action: Planned action; `keep` changes nothing, and `lost` cannot be repaired.
        detail: Description, and what a person can do.
    """

    path: str
    action: Literal["finish", "clear", "rebuild", "keep", "lost"]
    detail: str


class Repair(NamedTuple):
    """A finding with its repair.

    Attributes:
        finding: What is not in order.
        apply: Function that repairs it; None if there is nothing to do.
    """

    finding: Finding
    apply: Callable[[], object] | None = None


def repair(store: Store, now: datetime, *, discard: Sequence[str] = ()) -> list[Finding]:
    """Plan the repairs of a store and make them; see `plan` and `apply`."""
    repairs = plan(store, now, discard=discard)
    apply(repairs)
    return [each.finding for each in repairs]


def plan(store: Store, now: datetime, *, discard: Sequence[str] = ()) -> list[Repair]:
    """List everything that is not in order, and change nothing.

    Args:
        store: Store to look through; of a remote store, its local folder.
        now: Aware current time; temporary files that are an hour old were left by dead processes.
        discard: IDs of runs and scoring jobs in staging to discard.

    Returns:
        Findings with their repairs, in the order in which to make them.

    Raises:
        StoreError: There is no store, a file cannot be read, or staging does not have a run or job
            to discard.
        LockedError: A process is working on a run or job to discard.
    """
    store.require()
    staged = {path.name.removeprefix(_SCORE) for path in _staging(store)}
    if missing := sorted(set(discard) - {each for each in staged if is_run_id(each)}):
        raise StoreError(
            f"{', '.join(missing)}: not in staging, so there is nothing to discard; "
            "see `nnbuild runs`"
        )
    with os_errors_as_store_errors(f"look through {store.local_root}"):
        return [
            *_interrupted_deletions(store),
            *_committed_runs(store),
            *_staged_runs(store, discard),
            *_staged_jobs(store, discard),
            *_stale_locks(store),
            *_temporary(store, now),
            *_champions(store),
            *([] if store.is_remote else _lost_rows(store)),
        ]


def apply(repairs: Sequence[Repair]) -> None:
    """Make planned repairs, in order.

    Args:
        repairs: Result of `plan`.

    Raises:
        StoreError: A repair failed; the message says which one, and how many were made before.
    """
    pending = [(each.finding, each.apply) for each in repairs if each.apply is not None]
    for done, (finding, apply_repair) in enumerate(pending):
        what = f"{finding.action} {finding.path} ({done} of {len(pending)} repairs were made)"
        with os_errors_as_store_errors(what):
            apply_repair()


def _staging(store: Store) -> list[Path]:
    """Return the folders in staging; links are not followed."""
    return _subfolders(store.local_root / "staging")


def _subfolders(folder: Path) -> list[Path]:
    if folder.is_symlink() or not folder.is_dir():
        return []
    return sorted(each for each in folder.iterdir() if each.is_dir() and not each.is_symlink())


def _interrupted_deletions(store: Store) -> Iterator[Repair]:
    for each in deletion.interrupted(store):
        detail = "a deletion was interrupted; files of deleted runs or jobs are left"
        finding = Finding(f"staging/{each.name}", "finish", detail)
        yield Repair(finding, lambda: retention.finish_interrupted(store))


def _committed_runs(store: Store) -> Iterator[Repair]:
    for run in store.committed_in_staging():
        if not locks.is_held(run.folder):
            detail = "the commit was interrupted; its last steps are missing"
            finding = Finding(f"staging/{run.run_id}", "finish", detail)
            yield Repair(finding, lambda: commit.complete_interrupted_commits(store))


def _staged_runs(store: Store, discard: Sequence[str]) -> Iterator[Repair]:
    known = {*store.run_ids(), *(each.run_id for each in store.unfinished_runs())}
    for path in _staging(store):
        if is_run_id(path.name) and path.name not in known and not locks.is_held(path):
            detail = "the run had not begun when its process died"
            yield Repair(Finding(f"staging/{path.name}", "clear", detail), _removal(path))
    for waiting in store.unfinished_runs():
        run = store.unfinished_run(waiting.run_id)
        name = f"staging/{waiting.run_id}"
        if run.folder.is_symlink():
            continue
        if waiting.run_id in discard:
            _require_free(run.folder, f"run {run.run_id}")
            yield Repair(Finding(name, "clear", _DISCARDED), _removal(run.folder))
        elif waiting.held:
            yield Repair(Finding(name, "keep", _HELD))
        elif not _is_readable(run):
            detail = "its record cannot be read, so it cannot be resumed"
            yield Repair(Finding(name, "clear", detail), _removal(run.folder))
        else:
            detail = f"can be resumed with `{run.resume_command}`, or discarded"
            yield Repair(Finding(name, "keep", detail))


def _require_free(folder: Path, what: str) -> None:
    if locks.is_held(folder):
        raise LockedError(f"a process is working on {what}; stop it before discarding its work")


def _removal(folder: Path) -> Callable[[], object]:
    """Return a function that removes a folder of staging, if no process holds it by then."""

    def remove() -> None:
        with locks.lock(folder):
            shutil.rmtree(folder)

    return remove


def _is_readable(run: Run) -> bool:
    try:
        return bool(run.config)
    except StoreError:
        return False


def _staged_jobs(store: Store, discard: Sequence[str]) -> Iterator[Repair]:
    done = store.score_ids()
    for path in _staging(store):
        score_id, name = path.name.removeprefix(_SCORE), f"staging/{path.name}"
        if not path.name.startswith(_SCORE) or not is_run_id(score_id):
            continue
        if score_id in discard:
            _require_free(path, f"scoring job {score_id}")
            yield Repair(Finding(name, "clear", _DISCARDED), _removal(path))
        elif locks.is_held(path):
            yield Repair(Finding(name, "keep", _HELD))
        elif score_id in done or not (path / "job.json").exists():
            detail = "the job is committed" if score_id in done else "the job had not begun"
            yield Repair(Finding(name, "clear", detail), _removal(path))
        else:
            command = commands.resume_scoring(score_id, str(store.root))
            detail = f"can be resumed with `{command}`, or discarded"
            yield Repair(Finding(name, "keep", detail))


def _stale_locks(store: Store) -> Iterator[Repair]:
    """Yield the locks on inputs of scoring jobs that killed processes left behind."""
    staging = store.local_root / "staging"
    if staging.is_symlink() or not staging.is_dir():
        return
    for path in sorted(each for each in staging.iterdir() if is_input_lock_name(each.name)):
        regular = path.is_file() and not path.is_symlink()
        if regular and locks.holder(path) is None:
            detail = "the scoring job that held this lock has ended"
            finding = Finding(f"staging/{path.name}", "clear", detail)
            yield Repair(finding, partial(locks.remove_if_free, path))


def _temporary(store: Store, now: datetime) -> Iterator[Repair]:
    """Yield what processes were writing when they died, under names that only nnbuild uses."""
    for path in sorted(_temporary_paths(store)):
        try:
            written_at = datetime.fromtimestamp(path.lstat().st_mtime, now.tzinfo)
        except FileNotFoundError:  # a living process has just completed it
            continue
        if now - written_at > _MIN_AGE:
            name = path.relative_to(store.local_root).as_posix()
            remove = (lambda path=path: shutil.rmtree(path)) if path.is_dir() else path.unlink
            detail = "a temporary file or folder that was not completely written"
            yield Repair(Finding(name, "clear", detail), remove)


def _temporary_paths(store: Store) -> Iterator[Path]:
    """Yield the temporary files, and the temporary folders of incomplete datasets and days."""
    root = store.local_root
    if not root.is_dir():
        return
    yield from _temporary_files(root, (each.name for each in root.iterdir()))
    for name in _FOLDERS:
        if (root / name).is_symlink():
            continue
        for folder, folders, files in os.walk(root / name):  # links are not followed
            yield from _temporary_files(Path(folder), files)
            if name == "datasets":  # an incomplete day, or copy of a remote store's dataset
                temporary = [each for each in folders if _is_of_dataset(store, each)]
                yield from (Path(folder) / each for each in temporary)
                folders[:] = [each for each in folders if each not in temporary]


def _is_of_dataset(store: Store, name: str) -> bool:
    """Return whether a folder is named as a dataset or a day that was not completely written.

    A local store may have folders of the user, and a remote one's local root has none.
    """
    is_digest = _DIGEST_ENDING.fullmatch(name.rpartition(".")[2]) is not None
    return is_temporary_name(name) and (store.is_remote or is_digest)


def _temporary_files(folder: Path, names: Iterable[str]) -> Iterator[Path]:
    for path in (folder / name for name in names if is_temporary_name(name)):
        if path.is_file() and not path.is_symlink():
            yield path


def _champions(store: Store) -> Iterator[Repair]:
    """Yield the repair of `champion.json` or of the table `champions`, from each other."""
    pointer, table = champion_history.FILE, f"tables/{schemas.CHAMPIONS_TABLE}"
    try:
        known, damage = champion_history.histories(store), None
    except StoreError as error:
        known, damage = {}, error
    try:
        recorded = champion_history.recorded(store)
    except StoreError as error:
        if known:
            detail = f"it can be rebuilt from {pointer}: {error}"
            yield Repair(
                Finding(table, "rebuild", detail), partial(champion_history.rebuild_table, store)
            )
        else:
            yield Repair(Finding(pointer if damage else table, "lost", str(damage or error)))
        return
    if damage is not None and not recorded:
        yield Repair(Finding(pointer, "lost", f"{damage}; {table} has no rows to rebuild it from"))
    elif recorded and not known:
        detail = f"it is {'damaged' if damage else 'missing'} and can be rebuilt from {table}"
        yield Repair(
            Finding(pointer, "rebuild", detail), partial(champion_history.rebuild_pointer, store)
        )
    elif recorded != known:
        detail = f"it differs from {pointer}, from which it can be rebuilt"
        yield Repair(
            Finding(table, "rebuild", detail), partial(champion_history.rebuild_table, store)
        )


def _lost_rows(store: Store) -> Iterator[Repair]:
    """Yield the runs that are complete but for their row in `runs`, and are not being deleted."""
    known = {*store.run_ids(), *(each.run_id for each in store.unfinished_runs())}
    known |= deletion.planned_runs(store)
    for path in _subfolders(store.root / "runs"):
        if not is_run_id(path.name) or path.name in known:
            continue
        name = f"runs/{path.name}"
        try:
            manifest = read_manifest(path / "manifest.json")
            _require_intact(store, manifest)
            row = runs_table(manifest)
        except StoreError as error:
            detail = f"its row in `runs` is missing and cannot be rebuilt: {error}"
            yield Repair(Finding(name, "lost", detail))
            continue
        detail = "its row in `runs` is missing and can be rebuilt from the manifest"
        yield Repair(Finding(name, "rebuild", detail), _row_rebuild(store, path.name, row))


def _row_rebuild(store: Store, run_id: str, row: pa.Table) -> Callable[[], object]:
    """Return a function that writes the row of a run again."""

    def rebuild() -> None:
        part = store.local_root / "staging" / f"{_REPAIR}{run_id}" / PART
        write_table(part, row, schemas.RUNS)
        publish_dir(part.parent, store.partition("runs", run_id))

    return rebuild


def _require_intact(store: Store, manifest: Manifest) -> None:
    """Refuse a run whose files are not those of its manifest."""
    for name, about in manifest.files.items():
        path = store.root / name
        if name.startswith("tables/runs/"):
            continue
        if (
            not path.resolve().is_relative_to(store.root)
            or not path.is_file()
            or file_digest(path) != about.sha256
        ):
            raise StoreError(f"{name} is missing or has changed")
