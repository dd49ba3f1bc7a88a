"""Commit a run: stage all of its outputs, then publish them, its row in `runs` last.

A run that failed is committed as well, with its error and with what it has.
"""

import shutil
from datetime import datetime
from pathlib import Path

from nnbuild.errors import LockedError, NnbuildError
from nnbuild.evaluation.conformal import CONFORMAL
from nnbuild.evaluation.drift import REFERENCE
from nnbuild.pipeline.data import staged_dataset
from nnbuild.pipeline.promotion import decide, is_current, revoke_decision
from nnbuild.pipeline.reporting import manifest_of, write_report
from nnbuild.pipeline.step import staged_table
from nnbuild.runtime.credentials import mask_credentials
from nnbuild.runtime.text import join_lines
from nnbuild.store import champion, champion_history, commit, locks, schemas
from nnbuild.store.filesystem import write_json
from nnbuild.store.run import Run
from nnbuild.store.step_results import Committed, Decided, ExportedModel, LoadedData
from nnbuild.store.store import Store


def commit_run(run: Run, *, now: datetime | None = None) -> Committed:
    """Commit a run whose steps are done, or finish a commit whose process was killed.

    Args:
        run: Run in staging.
        now: Aware time of the end of the run; the current time if None.

    Returns:
        Paths of the run's outputs.
    """
    store = Store(run.store)
    with champion_history.lock(store):
        decided = _current_decision(run)
        committed = _commit(run, None, now)
        _promote(store, run, decided, now)
    run.clear()
    return committed


def complete_interrupted_commits(store: Store) -> list[str]:
    """Finish the commits that were killed after the run became visible.

    Then only the promotion and the removal of the run's staging folder are missing.

    Args:
        store: Store to look through.

    Returns:
        IDs of the runs whose commit was finished.
    """
    finished = []
    for run in store.committed_in_staging():
        try:
            with locks.lock(run.folder), champion_history.lock(store):
                _promote(store, run, run.load_result(Decided), None)
                run.clear()
        except LockedError:  # its own process is committing it now
            continue
        finished.append(run.run_id)
    return finished


def _promote(store: Store, run: Run, decided: Decided | None, now: datetime | None) -> None:
    """Make the run the champion, unless the champion or its pin has changed since the decision.

    Changes that a killed process left out of the table `champions` are added.
    """
    if decided is not None and decided.promote:
        dataset = str(store.manifest(run.run_id).row.dataset)
        is_same = champion.current(store, dataset) == decided.champion
        if is_same and champion.pin(store, dataset) is None:
            champion.change_locked(
                store, run.run_id, expected=decided.champion, note=decided.reason, now=now
            )
    champion_history.sync_table(store)


def _current_decision(run: Run) -> Decided | None:
    """Return the decision of the gate, made again if the champion has changed since.

    A run that is ready to be published keeps its decision: its commit is finished, not repeated.
    """
    decided, data = run.load_result(Decided), run.load_result(LoadedData)
    if decided is None or data is None or decided.passed_over or is_current(run, data, decided):
        return decided
    if commit.is_ready(run):
        return decided
    revoke_decision(run)
    decided = decide(run, data)
    write_report(run, data)
    return decided


def commit_failure(run: Run, error: Exception, *, now: datetime | None = None) -> Committed:
    """Commit a run that failed for good: its row in `runs` with the error, and its history.

    Args:
        run: Run in staging.
        error: Reason of the failure.
        now: Aware time of the end of the run; the current time if None.

    Returns:
        Paths of the run's outputs.
    """
    revoke_decision(run)
    committed = _commit(run, error, now)
    run.clear()
    return committed


def _commit(run: Run, error: Exception | None, now: datetime | None) -> Committed:
    if not commit.is_ready(run):
        commit.make_ready(
            run,
            manifest_of(
                run,
                error=None if error is None else _message(error),
                error_type=None if error is None else type(error).__name__,
                now=now,
            ),
            _files(run, failed=error is not None),
            _tables(run),
        )
    row = commit.staged_row(run)
    tables = sorted(path.name for path in (run.folder / "commit" / "tables").iterdir())
    store = Store(run.store)
    store.require_same(run)
    commit.publish(run, store.root, _dataset_move(run, store, run.load_result(LoadedData)))
    record = f"runs/{run.run_id}"
    return Committed(
        run_id=run.run_id,
        status=row.status,
        error=row.error,
        manifest=f"{record}/manifest.json",
        tables={name: f"tables/{name}/run_id={run.run_id}" for name in tables},
        model=f"{record}/model.keras" if (store.root / record / "model.keras").exists() else None,
    )


def _message(error: Exception) -> str:
    """Return an error as the store records it: on one line, without credentials."""
    expected = isinstance(error, NnbuildError)
    message = str(error) if expected else f"{type(error).__name__}: {error}"
    return mask_credentials(join_lines(message))


def _dataset_move(run: Run, store: Store, data: LoadedData | None) -> tuple[Path, Path] | None:
    """Return where the dataset is staged and where it goes; None if it was not loaded."""
    if data is None:
        return None
    staged, local = staged_dataset(run), store.local_root / store.dataset_name(*_key(data))
    if store.is_remote and local.is_dir() and not store.has_dataset(*_key(data)):
        # Deleted in the meantime by a machine that does not see this run.
        shutil.copytree(local, staged, dirs_exist_ok=True)
    return staged, store.dataset_folder(*_key(data))


def _key(data: LoadedData) -> tuple[str, str]:
    return data.name, data.digest


def _files(run: Run, *, failed: bool) -> dict[str, Path]:
    """Return the files to publish by their name in the run's folder of the store."""
    config = run.folder / "config.json"
    write_json(config, run.config.model_dump(mode="json"))
    files = {"config.json": config} | {
        name: run.folder / name for name in ("report.html", "traceback.txt")
    }
    if not failed:
        files["model.keras"] = run.folder / "model" / "model.keras"
        exported = run.load_result(ExportedModel)
        if exported is not None and exported.path is not None:  # an unverified file stays behind
            files["model.onnx"] = run.folder / "model" / "model.onnx"
        files |= {name: run.folder / name for name in (REFERENCE, CONFORMAL)}
    logs = run.folder / "tensorboard"
    files |= {
        path.relative_to(run.folder).as_posix(): path for path in logs.rglob("*") if path.is_file()
    }
    return {name: path for name, path in files.items() if path.exists()}


def _tables(run: Run) -> dict[str, Path]:
    staged = {name: staged_table(run, name) for name in schemas.TABLES}
    return {name: path for name, path in staged.items() if path.exists()}
