"""The life cycle of a run: begin or resume it, run its steps, and finalize it."""

import functools
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from nnbuild.config.schema import RunConfig, is_factory, resolve
from nnbuild.errors import ContractError, InputError, Interrupted, NnbuildError, StoreError
from nnbuild.pipeline import commit
from nnbuild.pipeline.data import load_data, source_digest
from nnbuild.pipeline.promotion import revoke_decision
from nnbuild.pipeline.registry import DECISION_STEPS, TRAINING_STEPS, Step
from nnbuild.pipeline.step import has_checkpoints, is_fitted
from nnbuild.runtime import environment
from nnbuild.runtime.caller_state import caller_state
from nnbuild.runtime.progress import ProgressCallback
from nnbuild.runtime.signals import interrupted, request_to_stop, sigterm_as_exception
from nnbuild.runtime.text import sanitize_lines
from nnbuild.store import Run, Store, locks, presence
from nnbuild.store.filesystem import as_store_error
from nnbuild.store.step_results import Committed, Decided, FittedModel, LoadedData, StepResult


def open_run(
    config: RunConfig,
    root: Path | str | None = None,
    *,
    resume: str | None = None,
    flow_run_id: str | None = None,
    now: datetime | None = None,
) -> Run:
    """Begin a run, or open one that was stopped.

    Args:
        config: Configuration of a new run; what it leaves open is filled in.
        root: Root of the store.
        resume: ID of a run to resume, with the configuration that it was begun with.
        flow_run_id: ID of the Prefect flow run, if there is one. A run that this flow run began
            before, and did not finish, is resumed.
        now: Aware time of the start; the current time if None.

    Returns:
        The run, in staging.

    Raises:
        StoreError: The store cannot be used, or has no unfinished run with the ID to resume.
    """
    store = Store(root)
    commit.complete_interrupted_commits(store)
    if resume is not None:
        return waiting_run(store, resume, config)
    if flow_run_id is not None and (waiting := store.run_of_flow(flow_run_id)) is not None:
        return waiting
    return store.begin(resolve(config), now=now or datetime.now(UTC), flow_run_id=flow_run_id)


def waiting_run(store: Store, run_id: str, config: RunConfig) -> Run:
    """Return a run that was stopped and can be resumed.

    Args:
        store: Store with the run.
        run_id: ID of the run.
        config: Configuration of the caller. A trial of a sweep is resumed by its sweep only, which
            decides on what goes to the gate.

    Raises:
        StoreError: The store has no unfinished run with this ID, or it belongs to a sweep.
    """
    store.require()
    run = store.unfinished_run(run_id)
    tag = run.config.trial
    if tag is not None and tag != config.trial:
        raise StoreError(
            f"run {run_id} is a trial of sweep {tag.sweep}; resume it with: {run.resume_command}"
        )
    return run


def resumable(
    store: Store,
    config: RunConfig,
    refusal: Callable[[Run], str | None] = lambda _: None,
    *,
    now: datetime | None = None,
) -> tuple[Run | None, list[str]]:
    """Find the newest unfinished run that would end as a new run would.

    Its settings (the gate's too), its code, its network's source and its data have to be those of a
    new run. If the data were corrected since, it is not resumed.

    Args:
        store: Store with the unfinished runs.
        config: Configuration of the new run.
        refusal: Function that returns why the caller does not resume a run, or None.
        now: Aware time, which decides on the days of a dated dataset; the current time if None.

    Returns:
        The run, or None; and a remark on each run with the same settings that is not resumed.
    """
    resolved = resolve(config)
    digest = functools.cache(lambda: _source_digest(resolved, store, now or datetime.now(UTC)))
    remarks: list[str] = []
    for each in reversed(store.unfinished_runs()):
        try:
            run = store.unfinished_run(each.run_id)
            if each.held or not _is_same(run, resolved):
                continue
            reason = refusal(run) or _outdated(run, digest)
        except StoreError:  # committed meanwhile, damaged, or of another version of nnbuild
            continue
        if reason is None:
            return run, remarks
        remarks.append(
            f"unfinished run {run.run_id} is not resumed: {reason}; "
            f"resume it with: {run.resume_command}"
        )
    return None, remarks


def _is_same(run: Run, config: RunConfig) -> bool:
    """Return whether a run has these settings, wherever its data are, and this code."""
    settings, others = (
        each.model_dump(exclude={"dataset": {"data_dir"}}) for each in (run.config, config)
    )
    return settings == others and run.record["code_version"] == environment.code_version()


def _outdated(run: Run, digest: Callable[[], str | None]) -> str | None:
    """Return what has changed since a run was begun, or None."""
    loaded = run.load_result(LoadedData)
    if loaded is not None and loaded.digest != digest():
        return "its data have changed since, or cannot be read now"
    if is_factory(run.config.model.name):
        from nnbuild.pipeline.training import has_other_source  # imports TensorFlow

        if has_other_source(run):
            return "the source of its network has changed since"
    return None


def _source_digest(config: RunConfig, store: Store, now: datetime) -> str | None:
    try:
        return source_digest(config.dataset, store, now)
    except NnbuildError:  # the new run reports what is wrong with the source
        return None


@contextmanager
def run_context(run: Run) -> Iterator[None]:
    """Lock a run while its steps run, and finalize it if they fail.

    Bad input discards the run: the store is as it was. A signal, a failing disk or a store that
    disappeared leave the run in staging, to be resumed. After any other error the run is committed
    as failed, with what it has.

    Args:
        run: Run in staging.

    Raises:
        LockedError: Another process holds the run.
    """
    with locks.lock(run.folder), sigterm_as_exception(), caller_state():
        _ = run.config  # read before the store can disappear: the resume hint needs it
        try:
            yield
        except KeyboardInterrupt as error:
            raise _to_interrupted(run, error) from error
        except Exception as error:
            if (request := request_to_stop(error)) is not None:
                raise _to_interrupted(run, request) from error
            if _is_committed(run):  # whatever failed since, the run itself is complete
                raise
            user_error = presence.gone(run.folder) or _to_user_error(run, error)
            _finalize_failure(run, user_error)
            if user_error is error:
                raise
            raise user_error from error


def _is_committed(run: Run) -> bool:
    """Return whether the run was committed and cleared from staging."""
    if run.folder.is_dir():
        return False
    try:
        return run.run_id in Store(run.store).run_ids()
    except StoreError:
        return False


def _to_interrupted(run: Run, error: KeyboardInterrupt) -> Interrupted:
    """Convert Ctrl-C or SIGTERM outside the fit, or a second Ctrl-C anywhere."""
    stopped = interrupted(error)
    if run.folder.is_dir():  # otherwise the run was committed just before
        stopped.add_note(f"resume it with: {run.resume_command}")
    return stopped


def _to_user_error(run: Run, error: Exception) -> Exception:
    """Convert an error of the operating system into one that says what to do; keep others."""
    if not isinstance(error, OSError):
        return error
    if error.filename and not Path(error.filename).is_relative_to(run.root):
        return StoreError(
            f"cannot write {error.filename}: {error.strerror}; fix it, or set $TMPDIR"
        )
    return as_store_error(f"work in {error.filename or run.folder}", error)


def _finalize_failure(run: Run, error: Exception) -> None:
    """Keep, discard or commit a run that ended in an error, and add to the error what to do."""
    if isinstance(error, (StoreError, Interrupted)):
        error.add_note(f"resume it with: {run.resume_command}")
    elif isinstance(error, InputError):
        _discard_or_keep(run, error)
    else:
        lines = sanitize_lines("".join(traceback.format_exception(error)))
        (run.folder / "traceback.txt").write_text(f"{lines}\n", encoding="utf-8")
        commit.commit_failure(run, error)
        if not isinstance(error, NnbuildError):
            error.add_note(f"its traceback is {run.store}/runs/{run.run_id}/traceback.txt")


def _discard_or_keep(run: Run, error: InputError) -> None:
    """Discard a run that ended in bad input, or keep it if it has results that took long."""
    if is_fitted(run):
        commit.commit_failure(run, error)
    elif isinstance(error, ContractError) and has_checkpoints(run):
        error.add_note(f"resume it with: {run.resume_command}")
    else:
        Store(run.store).discard(run)


def retrain(
    config: RunConfig | None = None,
    store: Path | str | None = None,
    *,
    resume: str | None = None,
    progress: ProgressCallback | None = None,
) -> Committed:
    """Run the whole pipeline without Prefect.

    Load, check, build, compile, fit, export, evaluate, calibrate, score, decide, report, commit.

    Args:
        config: Configuration of the run; the defaults if None.
        store: Root of the store; `$NNBUILD_STORE` or `./nnbuild-store` if None.
        resume: ID of a stopped run to resume, with the configuration that it was begun with.
        progress: Callback for finished steps and epochs.

    Returns:
        Paths of the run's outputs.

    Raises:
        InputError: An argument, the data or the model cannot be used; the store is as it was,
            unless the fit was complete: then the run is committed as failed.
        RunError: The run failed, and is committed as failed.
        Interrupted: A signal stopped the run; it can be resumed.
    """
    run = open_run(config or RunConfig(), store, resume=resume)
    with run_context(run):
        train_and_evaluate(run, progress)
        return decide_and_commit(run)


def train_and_evaluate(run: Run, progress: ProgressCallback | None = None) -> None:
    """Run the steps before the promotion decision; to be called within `run_context`.

    Args:
        run: Run in staging.
        progress: Callback for finished steps and epochs.
    """
    _run_steps(run, TRAINING_STEPS, {}, {FittedModel: {"progress": progress}})


def decide_and_commit(
    run: Run, *, gate_skip_reason: str | None = None, past_day_counts: bool = False
) -> Committed:
    """Decide, report and commit, after `train_and_evaluate`; to be called within `run_context`.

    If the commit fails, the decision is revoked: a resumed run decides again.

    Args:
        run: Run in staging.
        gate_skip_reason: Reason to skip the promotion gate, if it is to be skipped.
        past_day_counts: Whether a run as of a past day can become the champion, as in a backtest.
    """
    loaded: dict[type[StepResult], StepResult] = {LoadedData: load_data(run)}
    options = {"gate_skip_reason": gate_skip_reason, "past_day_counts": past_day_counts}
    try:
        _run_steps(run, DECISION_STEPS, loaded, {Decided: options})
        return commit.commit_run(run)
    except Exception:
        with suppress(OSError):
            revoke_decision(run)
        raise


def _run_steps(
    run: Run,
    steps: Iterable[Step],
    earlier: Mapping[type[StepResult], StepResult],
    options: Mapping[type[StepResult], Mapping[str, Any]],
) -> None:
    """Run steps in order.

    Args:
        run: Run in staging.
        steps: Steps to run.
        earlier: Results of earlier steps, by their type.
        options: Further arguments of the steps, by the type of their results.
    """
    results = dict(earlier)
    for step in steps:
        arguments = [results[kind] for kind in step.arguments]
        results[step.result] = step.function()(run, *arguments, **options.get(step.result, {}))
