"""The page of a run that is committed, made anew."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnbuild.across import drift_by_job
from nnbuild.data.tables import read_dataset
from nnbuild.errors import DataError, StoreError, one_line
from nnbuild.report.page import render
from nnbuild.store.files import write_bytes, write_json
from nnbuild.store.outputs import write_output
from nnbuild.store.store import Store

_TABLES = ("history", "evaluation", "confusion", "calibration", "predictions")


def rebuild(store: Store, run_id: str) -> Path:
    """Write a committed run's `report.html` again, and its new digest into the manifest.

    It is the page that the run was committed with, and the drift of what its model has scored since. Without the
    dataset, if it is no longer in the store, it shows no images.

    Returns:
        The page's path.

    Raises:
        StoreError: there is no such run, it failed, or what it is made from is missing or damaged.
    """
    manifest = store.manifest(run_id)
    page = _page(store, manifest, run_id).encode()
    path = store.root / "runs" / run_id / "report.html"
    (write_bytes if store.is_remote else write_output)(path, page)
    _record(manifest, path, page)
    return path


def _page(store: Store, manifest: dict[str, Any], run_id: str) -> str:
    status = manifest.get("row", {}).get("status")
    if status != "succeeded":
        raise StoreError(
            f"run {run_id} has status {status!r}, expected 'succeeded'; see `nnbuild history {run_id}`"
        )
    for name in _TABLES:
        if not store.partition(name, run_id).is_dir():
            raise StoreError(
                f"run {run_id} has no {name}, and the report is made from it; restore it from a copy"
            )
    tables = {name: store.read_table(name, run_id).drop_columns("run_id") for name in _TABLES}
    try:
        return render(manifest, tables, _test_images(store, manifest), drift_by_job(store, run_id))
    except (LookupError, TypeError, ValueError, ArithmeticError) as error:
        raise StoreError(
            f"the tables of run {run_id} do not go with its manifest ({type(error).__name__}: "
            f"{one_line(error)}); restore them from a copy"
        ) from error


def _test_images(store: Store, manifest: dict[str, Any]) -> NDArray[np.uint8] | None:
    data = manifest["steps"]["load_data"]
    if not store.has_dataset(data["name"], data["digest"]):
        return None
    try:
        return read_dataset(store.local_dataset(data["name"], data["digest"])).test.images
    except DataError as error:
        raise StoreError(f"cannot read the test images: {error}") from error


def _record(manifest: dict[str, Any], path: Path, page: bytes) -> None:
    """The manifest vouches for every file of the run, for this one too."""
    entry = {"sha256": hashlib.sha256(page).hexdigest(), "bytes": len(page)}
    name = f"runs/{manifest['run_id']}/{path.name}"
    if manifest["files"].get(name) != entry:
        manifest["files"][name] = entry
        write_json(path.parent / "manifest.json", manifest)
