"""A step that can be called again: what a run has done, it recalls."""

import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar, cast

from nnbuild.runtime import fault_injection
from nnbuild.store import schemas
from nnbuild.store.run import Run
from nnbuild.store.step_results import FittedModel, StepResult
from nnbuild.store.tables import read_table

P = ParamSpec("P")
R = TypeVar("R", bound=StepResult)


def cached_step(
    kind: type[R],
) -> Callable[[Callable[Concatenate[Run, P], R]], Callable[Concatenate[Run, P], R]]:
    """A decorator for the steps of a run.

    A step whose result the run has already, with its files unchanged, is not made again; else its result is kept
    once its files are on the disk.

    Args:
        kind: of the step's result.
    """

    def decorate(step: Callable[Concatenate[Run, P], R]) -> Callable[Concatenate[Run, P], R]:
        name = kind.step

        @functools.wraps(step)
        def recalled_or_made(run: Run, *args: P.args, **kwargs: P.kwargs) -> R:
            known = run.load_result(kind)
            if known is not None:
                return known
            fault_injection.failpoint(f"{name}:begin")
            began = time.perf_counter()
            result = step(run, *args, **kwargs)
            run.save_result(result, time.perf_counter() - began)
            fault_injection.failpoint(f"{name}:end")
            return result

        return cast("Callable[Concatenate[Run, P], R]", recalled_or_made)

    return decorate


def staged_table(run: Run, name: str) -> Path:
    """Where a run keeps a table until it is committed."""
    return run.folder / "tables" / f"{name}.parquet"


def epochs_on_disk(run: Run) -> int:
    """How many epochs the history on the disk has, of a run that did not finish its fit."""
    path = staged_table(run, "history")
    return len(read_table(path, schemas.HISTORY)["epoch"].unique()) if path.exists() else 0


def is_fitted(run: Run) -> bool:
    """Whether the fit is over."""
    return run.load_result(FittedModel) is not None


def has_checkpoints(run: Run) -> bool:
    """Whether the fit has begun and can be gone on with."""
    return any((run.folder / "checkpoints").glob("*.json"))
