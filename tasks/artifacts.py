"""Share settings, run names and artifacts between the tasks."""

import base64
import hashlib
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from urllib.parse import quote, urlsplit

from prefect.artifacts import create_image_artifact, create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE

from nnbuild.data.download import UnavailableError
from nnbuild.errors import LockedError, StoreError
from nnbuild.runtime.text import markdown_code, markdown_text, sanitize
from nnbuild.store import Store
from tasks.displays import in_prefect_run, outward, warn
from tasks.silent_server import waiting_once

TASK_DEFAULTS: dict[str, Any] = {"cache_policy": NO_CACHE, "persist_result": False}
"""Settings of every task. The store already caches the results of steps, and unlike Prefect's
cache it verifies that their files still exist."""


STORE_URL = "NNBUILD_STORE_URL"
"""Environment variable with the address under which the store is served, for links."""


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


_MAX_KEY_PART = 40


def scoring_key(kind: str, store: str, run_id: str | None) -> str:
    """Return the key of an artifact of a scoring job, with the dataset of the model's run.

    Args:
        kind: Kind of the artifact.
        store: Path or URL of the store.
        run_id: Run of the model; None for a model file.
    """
    dataset = None if run_id is None else Store(store).manifest(run_id).row.dataset
    return artifact_key(kind, store, dataset)


def artifact_key(kind: str, store: str, dataset: str | None = None) -> str:
    """Return the key of an artifact, such as `nnbuild-report-nnbuild-store-3f2a-mnist`.

    The UI shows all artifacts of one key as a history. The name of the store, four digits of the
    SHA-256 of its address, and the name of the dataset keep different histories apart.

    Args:
        kind: Kind of the artifact, such as `nnbuild-report`.
        store: Path or URL of the store.
        dataset: Name of the dataset; None if the artifact concerns none.
    """
    name = store.rstrip("/").rpartition("/")[2]
    address = hashlib.sha256(store.rstrip("/").encode(errors="backslashreplace")).hexdigest()
    parts = [kind, _key_part(name), address[:4], *([_key_part(dataset)] if dataset else [])]
    return "-".join(part for part in parts if part)


def _key_part(name: str) -> str:
    """Return a name in lower-case letters, digits and dashes, with a digest if it was changed."""
    part = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    if part == name and len(part) <= _MAX_KEY_PART:
        return part
    digest = hashlib.sha256(name.encode(errors="backslashreplace")).hexdigest()
    return f"{part[: _MAX_KEY_PART - 7].strip('-')}-{digest[:6]}".strip("-")


def store_link(store: str, path: str) -> str:
    """Return Markdown for a file of a store: a link if `$NNBUILD_STORE_URL` is set, or its path.

    Args:
        store: Path or URL of the store.
        path: Path of the file or folder relative to the store.
    """
    url = os.environ.get(STORE_URL, "")
    place = f"{store}/{path}"
    if not url:
        return markdown_code(place)
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname or "@" in parts.netloc:
        warn(
            f"${STORE_URL} is {sanitize(url)}, expected an http or https URL without credentials; "
            "the links to the store are not clickable"
        )
        return markdown_code(place)
    address = quote(f"{url.rstrip('/')}/{path}", safe=":/=%?&[]")
    return f"[{markdown_text(path)}]({address})"


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
        key: Result of `artifact_key`, so that the UI keeps a history.
        rows: Rows of the table: each maps column names to values.
        description: One sentence of plain text.
    """
    if in_prefect_run():
        with outward(f"artifact {key}"), waiting_once():
            table = [
                {sanitize(name): to_json_scalar(value) for name, value in row.items()}
                for row in rows
            ]
            create_table_artifact(key=key, table=table, description=markdown_text(description))


def show_markdown(key: str, text: str, description: str) -> None:
    """Create a Markdown artifact, if Prefect runs this code.

    Args:
        key: Result of `artifact_key`.
        text: Markdown in which user-provided text is escaped (see `nnbuild.runtime.text`).
        description: One sentence of plain text.
    """
    if in_prefect_run():
        with outward(f"artifact {key}"), waiting_once():
            create_markdown_artifact(key=key, markdown=text, description=markdown_text(description))


def show_image(key: str, svg: str, description: str) -> None:
    """Create an image artifact, if Prefect runs this code.

    The picture is embedded in the artifact, so the UI has nothing to fetch.

    Args:
        key: Result of `artifact_key`.
        svg: Source of the picture.
        description: One sentence of plain text.
    """
    if in_prefect_run():
        with outward(f"artifact {key}"), waiting_once():
            data = base64.b64encode(svg.encode()).decode()
            create_image_artifact(
                key=key,
                image_url=f"data:image/svg+xml;base64,{data}",
                description=markdown_text(description),
            )
