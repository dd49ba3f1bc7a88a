"""A step that can be called again: what a run has done, it recalls."""

import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar, cast

from nnbuild import faults
from nnbuild.results import Result
from nnbuild.store.run import Run

P = ParamSpec("P")
R = TypeVar("R", bound=Result)


def once(
    kind: type[R],
) -> Callable[[Callable[Concatenate[Run, P], R]], Callable[Concatenate[Run, P], R]]:
    """A decorator for the steps of a run.

    A step whose result the run has already, with its files unchanged, is not made again; else its result is kept
    once its files are on the disk.

    Args:
        kind: of the step's result.
    """

    def decorate(step: Callable[Concatenate[Run, P], R]) -> Callable[Concatenate[Run, P], R]:
        name = step.__name__

        @functools.wraps(step)
        def recalled_or_made(run: Run, *args: P.args, **kwargs: P.kwargs) -> R:
            known = run.recall(name, kind)
            if known is not None:
                return known
            faults.point(f"{name}:begin")
            began = time.perf_counter()
            result = step(run, *args, **kwargs)
            run.keep(name, result, time.perf_counter() - began)
            faults.point(f"{name}:end")
            return result

        return cast("Callable[Concatenate[Run, P], R]", recalled_or_made)

    return decorate


def staged_table(run: Run, name: str) -> Path:
    """Where a run keeps a table until it is committed."""
    return run.folder / "tables" / f"{name}.parquet"
