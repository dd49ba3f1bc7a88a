"""What the tasks share of Prefect: a logger, names of runs, artifacts, and which errors are worth a retry.

Importing this module makes every log record of the process safe to show.
"""

import base64
import logging
import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any

from prefect import get_run_logger
from prefect.artifacts import create_image_artifact, create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.context import FlowRunContext, TaskRunContext
from prefect.exceptions import MissingContextError

from nnbuild.data.download import UnavailableError
from nnbuild.errors import LockedError, StoreError
from nnbuild.runtime import outward as reports
from nnbuild.runtime.logs import sanitize_log_records
from nnbuild.runtime.text import markdown_text, sanitize

sanitize_log_records()

# Models never hash to the same key twice, and a cached path can be gone: a step recalls its own result instead.
STEP: dict[str, Any] = {"cache_policy": NO_CACHE, "persist_result": False}


def logger() -> logging.Logger | logging.LoggerAdapter[Any]:
    """Prefect's logger of the run, or the standard one where a task is called as a plain function."""
    try:
        return get_run_logger()
    except MissingContextError:
        return logging.getLogger("nnbuild")


def warn(message: str) -> None:
    """Log a warning, and show it on the displays."""
    from tasks.progress import displays  # it logs by this module

    logger().warning("%s", message)
    for display in displays():
        display.note(message)


def outward(what: str) -> AbstractContextManager[None]:
    """Keep a report to the outside from changing how the run ends: any exception becomes a warning.

    Everything that a task or a hook says to Prefect, a webhook or a display is said in such a block,
    together with what is computed for that alone.

    Args:
        what: Name of the report, for the warning.
    """
    return reports.outward(what, warn)


def run_name(template: str) -> Callable[..., str]:
    """Return a `task_run_name` for Prefect that is safe to show, made of the task's parameters.

    Args:
        template: As for `str.format`, such as `load {run.config.dataset.name}`.
    """

    def name(parameters: Mapping[str, Any]) -> str:
        return sanitize(template.format(**parameters))

    return name


def within_a_run() -> bool:
    """Whether Prefect runs this; a task that is called as a plain function speaks to no server."""
    return FlowRunContext.get() is not None or TaskRunContext.get() is not None


def plain(value: Any) -> Any:
    """Return a value that a table artifact or an event can hold.

    An infinite number would break the artifact's page in the UI. Texts are made safe to show.
    """
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, str):
        return sanitize(value)
    if isinstance(value, (int, float, bool, type(None))):
        return value
    return plain(value.item()) if hasattr(value, "item") else sanitize(str(value))


def rounded(value: float) -> float:
    """Five digits, which is what a person reads; the tables of the store have them all."""
    return float(f"{value:.5g}")


def show_table(key: str, rows: Iterable[Mapping[str, Any]], description: str) -> None:
    """Create a table artifact.

    Args:
        key: The same for every run, so that the UI keeps its history.
        rows: Cells by column.
        description: One sentence of plain text.
    """
    if within_a_run():
        with outward(f"artifact {key}"):
            table = [{plain(name): plain(value) for name, value in row.items()} for row in rows]
            create_table_artifact(key=key, table=table, description=markdown_text(description))


def show_markdown(key: str, text: str, description: str) -> None:
    """Create a Markdown artifact; `nnbuild.runtime.text` escapes what users named."""
    if within_a_run():
        with outward(f"artifact {key}"):
            create_markdown_artifact(key=key, markdown=text, description=markdown_text(description))


def show_picture(key: str, svg: str, description: str) -> None:
    """Create an image artifact that contains its picture: nothing has to be served or fetched."""
    if within_a_run():
        with outward(f"artifact {key}"):
            data = base64.b64encode(svg.encode()).decode()
            create_image_artifact(
                key=key,
                image_url=f"data:image/svg+xml;base64,{data}",
                description=markdown_text(description),
            )


def can_be_retried(_task: Any, _run: Any, state: Any) -> bool:
    """Whether another try can help: a server that did not answer, or a store that was away for a moment."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, (UnavailableError, StoreError, OSError)) and not isinstance(
        error, LockedError
    )
