"""The end of a run: everything that it leaves is laid out and moved at once, whether it succeeded or failed."""

from datetime import datetime
from pathlib import Path

from nnbuild import pipeline
from nnbuild.errors import LockedError, NnbuildError
from nnbuild.evaluation.drift import REFERENCE
from nnbuild.pipeline.reporting import manifest_of, write_report
from nnbuild.runtime.credentials import mask_credentials
from nnbuild.runtime.text import join_lines
from nnbuild.store import champion, commit, locks, schemas
from nnbuild.store.filesystem import write_json
from nnbuild.store.run import Run
from nnbuild.store.step_results import Committed, Decided, ExportedModel, LoadedData, StepResult
from nnbuild.store.store import Store


def commit_run(run: Run, *, now: datetime | None = None) -> Committed:
    """Commit a run whose steps are done. What was begun by a commit that was killed is finished.

    Args:
        run: in staging.
        now: aware time of the end; the clock's if not given.
    """
    store = Store(run.store)
    with champion.lock(store):
        decided = _decided(run)
        committed = _commit(run, None, now)
        _promote(store, run, decided, now)
    run.clear()
    return committed


def complete_interrupted_commits(store: Store) -> list[str]:
    """Finish what was killed behind the row that makes a run exist: its promotion, and its folder in staging.

    Returns:
        The runs that were finished.
    """
    finished = []
    for run in store.committed_in_staging():
        try:
            with locks.lock(run.folder), champion.lock(store):
                _promote(store, run, run.load_result("decide", Decided), None)
                run.clear()
        except LockedError:  # it is just being committed
            continue
        finished.append(run.run_id)
    return finished


def _promote(store: Store, run: Run, decided: Decided | None, now: datetime | None) -> None:
    """Point to the run, unless the champion is no longer the one that the decision was made against."""
    if decided is not None and decided.promote and champion.current(store) == decided.champion:
        champion.change_locked(store, run.run_id, expected=decided.champion, by="gate", now=now)


def _decided(run: Run) -> Decided | None:
    """What the gate said; it is asked again if the champion is another by now, unless the run is laid out already."""
    decided, data = run.load_result("decide", Decided), run.load_result("load_data", LoadedData)
    if decided is None or data is None or decided.passed_over or pipeline.is_current(run, decided):
        return decided
    if commit.is_ready(run):
        return decided
    pipeline.revoke_decision(run)
    decided = pipeline.decide(run, data)
    write_report(run, data)
    return decided


def commit_failure(run: Run, error: Exception, *, now: datetime | None = None) -> Committed:
    """Commit a run that failed for good: its `runs` row with the reason, and the history that it has."""
    pipeline.revoke_decision(run)
    told = str(error) if isinstance(error, NnbuildError) else f"{type(error).__name__}: {error}"
    committed = _commit(run, mask_credentials(join_lines(told)), now)
    run.clear()
    return committed


def _commit(run: Run, error: str | None, now: datetime | None) -> Committed:
    if not commit.is_ready(run):
        commit.make_ready(
            run,
            manifest_of(run, error=error, now=now),
            _files(run, failed=error is not None),
            _tables(run),
        )
    row = commit.staged_row(run)
    tables = sorted(path.name for path in (run.folder / "commit" / "tables").iterdir())
    store = Store(run.store)
    store.require_same(run)
    commit.publish(
        run, store.root, _dataset_move(run, store, run.load_result("load_data", LoadedData))
    )
    record = f"runs/{run.run_id}"
    return Committed(
        run_id=run.run_id,
        status=row.status,
        error=row.error,
        manifest=f"{record}/manifest.json",
        tables={name: f"tables/{name}/run_id={run.run_id}" for name in tables},
        model=f"{record}/model.keras" if (store.root / record / "model.keras").exists() else None,
    )


def _dataset_move(run: Run, store: Store, data: StepResult | None) -> tuple[Path, Path] | None:
    if not isinstance(data, LoadedData):
        return None
    return pipeline.staged_dataset(run), store.dataset_folder(data.name, data.digest)


def _files(run: Run, *, failed: bool) -> dict[str, Path]:
    config = run.folder / "config.json"
    write_json(config, run.config.model_dump(mode="json"))
    wanted = {"config.json": config} | {
        name: run.folder / name for name in ("report.html", "traceback.txt")
    }
    if not failed:
        wanted["model.keras"] = run.folder / "model" / "model.keras"
        exported = run.load_result("export_model", ExportedModel)
        if exported is not None and exported.path is not None:  # nothing that was not proven
            wanted["model.onnx"] = run.folder / "model" / "model.onnx"
        wanted[REFERENCE] = run.folder / REFERENCE
    logs = run.folder / "tensorboard"
    wanted |= {
        path.relative_to(run.folder).as_posix(): path for path in logs.rglob("*") if path.is_file()
    }
    return {name: path for name, path in wanted.items() if path.exists()}


def _tables(run: Run) -> dict[str, Path]:
    staged = {name: pipeline.staged_table(run, name) for name in schemas.TABLES}
    return {name: path for name, path in staged.items() if path.exists()}
