"""What the tasks share of Prefect: a logger, artifacts that cannot break a page, and which errors are worth a retry."""

import base64
import logging
import math
from collections.abc import Iterable, Mapping
from typing import Any

from prefect import get_run_logger
from prefect.artifacts import create_image_artifact, create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.context import FlowRunContext, TaskRunContext
from prefect.exceptions import MissingContextError

from nnbuild.data.download import UnavailableError
from nnbuild.errors import LockedError, StoreError

# Models never hash to the same key twice, and a cached path can be gone: a step recalls its own result instead.
STEP: dict[str, Any] = {"cache_policy": NO_CACHE, "persist_result": False}


def logger() -> logging.Logger | logging.LoggerAdapter[Any]:
    """Prefect's logger of the run, or the standard one where a task is called as a plain function."""
    try:
        return get_run_logger()
    except MissingContextError:
        return logging.getLogger("nnbuild")


def within_a_run() -> bool:
    """Whether Prefect runs this; a task that is called as a plain function speaks to no server."""
    return FlowRunContext.get() is not None or TaskRunContext.get() is not None


def plain(value: Any) -> Any:
    """A value as a table artifact can hold it: an infinite number would break its page in the UI."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, (str, int, float, bool, type(None))):
        return value
    return plain(value.item()) if hasattr(value, "item") else str(value)


def rounded(value: float) -> float:
    """Five digits, which is what a person reads; the tables of the store have them all."""
    return float(f"{value:.5g}")


def show_table(key: str, rows: Iterable[Mapping[str, Any]], description: str) -> None:
    """A table artifact. The key stays the same across runs, so that the UI keeps its history."""
    if within_a_run():
        table = [{name: plain(value) for name, value in row.items()} for row in rows]
        create_table_artifact(key=key, table=table, description=description)


def show_markdown(key: str, text: str, description: str) -> None:
    """A Markdown artifact."""
    if within_a_run():
        create_markdown_artifact(key=key, markdown=text, description=description)


def show_picture(key: str, svg: str, description: str) -> None:
    """An image artifact that carries its picture with it: nothing has to be served or fetched."""
    if within_a_run():
        data = base64.b64encode(svg.encode()).decode()
        create_image_artifact(
            key=key, image_url=f"data:image/svg+xml;base64,{data}", description=description
        )


def can_be_retried(_task: Any, _run: Any, state: Any) -> bool:
    """Whether another try can help: a server that did not answer, or a store that was away for a moment."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, (UnavailableError, StoreError, OSError)) and not isinstance(
        error, LockedError
    )
