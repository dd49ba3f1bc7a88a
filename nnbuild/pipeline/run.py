"""A run from its opening to its end, whatever that end is."""

import functools
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from nnbuild import pipeline
from nnbuild.config.schema import RunConfig, is_factory, resolve
from nnbuild.errors import ContractError, InputError, Interrupted, NnbuildError, StoreError
from nnbuild.pipeline import commit
from nnbuild.pipeline.data import source_digest
from nnbuild.pipeline.reporting import write_report
from nnbuild.runtime import environment
from nnbuild.runtime.signals import interrupted, sigterm_as_exception
from nnbuild.runtime.text import sanitize_lines
from nnbuild.store import Run, Store, locks, presence
from nnbuild.store.filesystem import as_store_error
from nnbuild.store.step_results import Committed, LoadedData


def open_run(
    config: RunConfig,
    root: Path | str | None = None,
    *,
    resume: str | None = None,
    flow_run_id: str | None = None,
    now: datetime | None = None,
) -> Run:
    """Begin a run, or find one that waits.

    Args:
        config: of a new run; what it leaves open is filled in.
        root: of the store.
        resume: id of a run that waits; its own config holds.
        flow_run_id: Prefect's. A run that this flow run has left waiting is taken up again.
        now: aware time of the start; the clock's if not given.

    Raises:
        StoreError: the store cannot be used, or the run that is to be resumed does not wait there.
    """
    store = Store(root)
    commit.complete_interrupted_commits(store)
    if resume is not None:
        return waiting_run(store, resume, of=config)
    if flow_run_id is not None and (waiting := store.run_of_flow(flow_run_id)) is not None:
        return waiting
    return store.begin(resolve(config), now=now or datetime.now(UTC), flow_run_id=flow_run_id)


def waiting_run(store: Store, run_id: str, *, of: RunConfig) -> Run:
    """A run that waits.

    Args:
        store: where.
        run_id: its id.
        of: who asks. A sweep asks for its own trials, which nobody else may send to the gate.

    Raises:
        StoreError: no run of that id waits there, or a sweep's, and the config is none of that sweep.
    """
    store.require()
    run = store.unfinished_run(run_id)
    tag = run.config.trial
    if tag is not None and tag != of.trial:
        raise StoreError(f"run {run_id} is a trial of sweep {tag.sweep}; {_resume_hint(run)}")
    return run


def resumable(
    store: Store, config: RunConfig, refused: Callable[[Run], str | None] = lambda _: None
) -> tuple[Run | None, list[str]]:
    """Find the newest stopped run that ends as a new run would.

    Its settings (the gate's too), its code, its network's source and its data have to be those that
    a new run has now: a folder that was fixed since is read again, not trained on as it was.

    Args:
        store: Where runs wait.
        config: Settings of the new run.
        refused: Function that returns why the caller does not resume a run, or None.

    Returns:
        The run, or None; and a sentence on each run of the same settings that is not resumed.
    """
    wanted = resolve(config)
    digest = functools.cache(lambda: _source_digest(wanted))
    remarks: list[str] = []
    for each in reversed(store.unfinished_runs()):
        try:
            run = store.unfinished_run(each.run_id)
            if each.held or not _is_same(run, wanted):
                continue
            reason = refused(run) or _outdated(run, digest)
        except StoreError:  # committed meanwhile; or its record is damaged, or of another version
            continue
        if reason is None:
            return run, remarks
        remarks.append(f"run {run.run_id} waits and is not resumed: {reason}; {_resume_hint(run)}")
    return None, remarks


def _is_same(run: Run, wanted: RunConfig) -> bool:
    """Whether a run has these settings, wherever its data lie, and this code."""
    begun, now = (
        each.model_dump(exclude={"dataset": {"data_dir"}}) for each in (run.config, wanted)
    )
    return begun == now and run.record["code_version"] == environment.code_version()


def _outdated(run: Run, digest: Callable[[], str | None]) -> str | None:
    """Return what has changed under a run since it was begun, or None."""
    loaded = run.load_result("load_data", LoadedData)
    if loaded is not None and loaded.digest != digest():
        return "its data have changed since, or cannot be read now"
    if is_factory(run.config.model.name):
        from nnbuild.pipeline.training import has_other_source  # with TensorFlow

        if has_other_source(run):
            return "the source of its network has changed since"
    return None


def _source_digest(config: RunConfig) -> str | None:
    try:
        return source_digest(config.dataset)
    except NnbuildError:  # the new run says what is wrong with it
        return None


@contextmanager
def run_context(run: Run) -> Iterator[None]:
    """Hold a run while its steps are made, and see to its end.

    Bad input leaves the store as it was. A signal, trouble with the disk, or a store that disappeared leaves the run
    in staging, to be resumed. Anything else is a failure for good: the run is committed as failed, with what it has.

    Raises:
        LockedError: another process holds the run.
    """
    with locks.lock(run.folder), sigterm_as_exception():
        _ = run.config  # read while it is there: the advice on how to resume depends on it
        try:
            yield
        except KeyboardInterrupt as error:
            raise _to_interrupted(run, error) from error
        except Exception as error:
            if _is_committed(run):  # whatever failed after that, the run itself is complete
                raise
            told = presence.gone(run.folder) or _to_user_error(run, error)
            _finalize_failure(run, told)
            if told is error:
                raise
            raise told from error


def _is_committed(run: Run) -> bool:
    """Return whether the run was committed and cleared from staging."""
    if run.folder.is_dir():
        return False
    try:
        return run.run_id in Store(run.store).run_ids()
    except StoreError:
        return False


def _to_interrupted(run: Run, error: KeyboardInterrupt) -> Interrupted:
    """What Ctrl-C or SIGTERM is outside the fit, or a second Ctrl-C anywhere."""
    stopped = interrupted(error)
    if run.folder.is_dir():  # otherwise the run was committed just before
        stopped.add_note(_resume_hint(run))
    return stopped


def _to_user_error(run: Run, error: Exception) -> Exception:
    """What the user is told of an error: of the operating system's, what was tried and how to mend it."""
    if not isinstance(error, OSError):
        return error
    if error.filename and not Path(error.filename).is_relative_to(run.root):
        return StoreError(
            f"cannot write {error.filename}: {error.strerror}; mend it, or set $TMPDIR"
        )
    return as_store_error(f"work in {error.filename or run.folder}", error)


def _finalize_failure(run: Run, error: Exception) -> None:
    if isinstance(error, (StoreError, Interrupted)):
        error.add_note(_resume_hint(run))
    elif isinstance(error, InputError):
        _discard_or_keep(run, error)
    else:
        lines = sanitize_lines("".join(traceback.format_exception(error)))
        (run.folder / "traceback.txt").write_text(f"{lines}\n", encoding="utf-8")
        commit.commit_failure(run, error)
        if not isinstance(error, NnbuildError):
            error.add_note(f"its traceback is {run.store}/runs/{run.run_id}/traceback.txt")


def _discard_or_keep(run: Run, error: InputError) -> None:
    if pipeline.is_fitted(run):
        commit.commit_failure(run, error)
    elif isinstance(error, ContractError) and pipeline.has_checkpoints(run):
        error.add_note(_resume_hint(run))
    else:
        Store(run.store).discard(run)


def _resume_hint(run: Run) -> str:
    if run.config.trial is not None:
        return f"go on with the sweep by: nnbuild sweep --id {run.config.trial.sweep} --store {run.store}"
    return f"resume it by: nnbuild run --resume {run.run_id} --store {run.store}"


def retrain(
    config: RunConfig | None = None,
    store: Path | str | None = None,
    *,
    resume: str | None = None,
    watch: Any = None,
) -> Committed:
    """The whole recipe in one call, without Prefect.

    Load, check, build, compile, fit, export, evaluate, calibrate, score, decide, report, commit.

    Args:
        config: the run's; the defaults if not given.
        store: its root.
        resume: id of a run that waits.
        watch: is told of steps and epochs, see `nnbuild.training.ProgressCallback`.

    Raises:
        InputError: something that was given cannot be used; the store is as it was.
        RunError: the run failed, and is recorded as failed.
    """
    run = open_run(config or RunConfig(), store, resume=resume)
    with run_context(run):
        train_and_evaluate(run, watch)
        return decide_and_commit(run)


def train_and_evaluate(run: Run, watch: Any = None) -> None:
    """Every step of a run but the last three, for a caller within `run_context`.

    Args:
        run: in staging.
        watch: as for `retrain`.
    """
    data = pipeline.load_data(run)
    pipeline.check_data(run, data)
    compiled = pipeline.compile_model(run, data, pipeline.build_model(run, data))
    fitted = pipeline.fit_model(run, data, compiled, watch=watch)
    pipeline.persist_history(run, fitted)
    pipeline.export_model(run, data, fitted)
    pipeline.evaluate_model(run, data, fitted)
    pipeline.calibrate_model(run, data, fitted)
    pipeline.score_test_set(run, data, fitted)


def decide_and_commit(run: Run, *, passed_over: str | None = None) -> Committed:
    """Decide, report and commit: what is left of a run behind `train_and_evaluate`, for a caller within `run_context`.

    Args:
        run: in staging.
        passed_over: why the run is kept from the gate, if it is.
    """
    data = pipeline.load_data(run)
    pipeline.decide(run, data, passed_over=passed_over)
    write_report(run, data)
    return commit.commit_run(run)
