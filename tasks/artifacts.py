"""Share settings, run names and artifacts between the tasks."""

import base64
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from prefect.artifacts import create_image_artifact, create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE

from nnbuild.data.download import UnavailableError
from nnbuild.errors import LockedError, StoreError
from nnbuild.runtime.text import markdown_text, sanitize
from tasks.displays import in_prefect_run, outward

TASK_DEFAULTS: dict[str, Any] = {"cache_policy": NO_CACHE, "persist_result": False}
"""Settings of every task. The store already caches the results of steps, and unlike Prefect's
cache it verifies that their files still exist."""


def is_retryable(_task: Any, _run: Any, state: Any) -> bool:
    """Return whether another attempt can help: a server or a store was briefly unavailable."""
    error = state.result(raise_on_failure=False)
    temporary = isinstance(error, (UnavailableError, StoreError, OSError))
    return temporary and not isinstance(error, LockedError)


def retry_after(*seconds: float) -> dict[str, Any]:
    """Return the settings of a task that is retried after temporary failures.

    Args:
        seconds: Delay before each retry.
    """
    return TASK_DEFAULTS | {
        "retries": len(seconds),
        "retry_delay_seconds": list(seconds),
        "retry_condition_fn": is_retryable,
    }


def run_name(template: str) -> Callable[..., str]:
    """Return a `task_run_name` that formats the task's parameters and is safe to show.

    Args:
        template: Template for `str.format`, such as `load {run.config.dataset.name}`.
    """

    def name(parameters: Mapping[str, Any]) -> str:
        return sanitize(template.format(**parameters))

    return name


def to_json_scalar(value: object) -> str | int | float | bool | None:
    """Return a value that a table artifact or an event can hold.

    Numbers that are not finite become text, since they would break the artifact's page in the UI.
    """
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, (int, float, bool, type(None))):
        return value
    if not isinstance(value, str) and hasattr(value, "item"):
        return to_json_scalar(value.item())
    return sanitize(str(value))


def rounded(value: float) -> float:
    """Round a number to five significant digits, for display; the store has all digits."""
    return float(f"{value:.5g}")


def show_table(key: str, rows: Iterable[Mapping[str, Any]], description: str) -> None:
    """Create a table artifact, if Prefect runs this code.

    Args:
        key: Key of the artifact; the same for every run, so that the UI keeps its history.
        rows: Rows of the table: each maps column names to values.
        description: One sentence of plain text.
    """
    if in_prefect_run():
        with outward(f"artifact {key}"):
            table = [
                {sanitize(name): to_json_scalar(value) for name, value in row.items()}
                for row in rows
            ]
            create_table_artifact(key=key, table=table, description=markdown_text(description))


def show_markdown(key: str, text: str, description: str) -> None:
    """Create a Markdown artifact, if Prefect runs this code.

    Args:
        key: Key of the artifact; the same for every run.
        text: Markdown in which user-provided text is escaped (see `nnbuild.runtime.text`).
        description: One sentence of plain text.
    """
    if in_prefect_run():
        with outward(f"artifact {key}"):
            create_markdown_artifact(key=key, markdown=text, description=markdown_text(description))


def show_image(key: str, svg: str, description: str) -> None:
    """Create an image artifact, if Prefect runs this code.

    The picture is embedded in the artifact, so the UI has nothing to fetch.

    Args:
        key: Key of the artifact; the same for every run.
        svg: Source of the picture.
        description: One sentence of plain text.
    """
    if in_prefect_run():
        with outward(f"artifact {key}"):
            data = base64.b64encode(svg.encode()).decode()
            create_image_artifact(
                key=key,
                image_url=f"data:image/svg+xml;base64,{data}",
                description=markdown_text(description),
            )
