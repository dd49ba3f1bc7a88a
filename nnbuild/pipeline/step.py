"""The decorator of the steps, and what a run has in staging."""

import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar, cast

import pyarrow as pa

from nnbuild.data import metadata
from nnbuild.data.labels import has_names
from nnbuild.runtime import fault_injection
from nnbuild.store import schemas
from nnbuild.store.run import Run
from nnbuild.store.step_results import FittedModel, LoadedData, StepResult
from nnbuild.store.tables import read_table

P = ParamSpec("P")
R = TypeVar("R", bound=StepResult)


def cached_step(
    kind: type[R],
) -> Callable[[Callable[Concatenate[Run, P], R]], Callable[Concatenate[Run, P], R]]:
    """Return a decorator for the function of a step.

    If the run has the step's result already and its files are unchanged, the function is not
    called. Otherwise the result is saved once its files are on the disk.

    Args:
        kind: Type of the step's result.
    """

    def decorate(function: Callable[Concatenate[Run, P], R]) -> Callable[Concatenate[Run, P], R]:
        @functools.wraps(function)
        def load_or_run(run: Run, *args: P.args, **kwargs: P.kwargs) -> R:
            known = run.load_result(kind)
            if known is not None:
                return known
            fault_injection.failpoint(f"{kind.step}:begin")
            began = time.perf_counter()
            result = function(run, *args, **kwargs)
            run.save_result(result, time.perf_counter() - began)
            fault_injection.failpoint(f"{kind.step}:end")
            return result

        return cast("Callable[Concatenate[Run, P], R]", load_or_run)

    return decorate


def staged_table(run: Run, name: str) -> Path:
    """Return the path of a table of the run until it is committed."""
    return run.folder / "tables" / f"{name}.parquet"


def staged_predictions(run: Run, data: LoadedData) -> pa.Table:
    """Return the table `predictions` of a run in staging."""
    schema = schemas.predictions(data.classes, named=has_names(data.class_names))
    kept = metadata.schema_of(run.config.dataset.keep)
    schema = pa.schema([*schema, *kept], schema.metadata)
    return read_table(staged_table(run, "predictions"), schema)


def epochs_on_disk(run: Run) -> int:
    """Return the number of epochs in the history of a run, whether or not its fit is done."""
    path = staged_table(run, "history")
    return len(read_table(path, schemas.HISTORY)["epoch"].unique()) if path.exists() else 0


def is_fitted(run: Run) -> bool:
    """Return whether the fit is done."""
    return run.load_result(FittedModel) is not None


def has_checkpoints(run: Run) -> bool:
    """Return whether the fit has begun and can be resumed."""
    return any((run.folder / "checkpoints").glob("*.json"))
