"""Reading a run's manifest back: it has the parts that a commit wrote, or it is refused with its path."""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

from nnbuild import schemas
from nnbuild.errors import StoreError
from nnbuild.store.files import read_json

_PARTS = {
    "row": dict,
    "config": dict,
    "steps": dict,
    "files": dict,
    "seconds": dict,
    "packages": dict,
    "run_id": str,
}


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest in a file.

    Raises:
        StoreError: it cannot be read, is no JSON, or lacks a part that every manifest has.
    """
    manifest = read_json(path)
    found = manifest if isinstance(manifest, dict) else {}
    for name, kind in _PARTS.items():
        if not isinstance(found.get(name), kind):
            raise StoreError(
                f"{path} is not a whole manifest: it has no {name} of type {kind.__name__}; restore it"
            )
    if found["row"].get("status") not in ("succeeded", "failed"):
        raise StoreError(
            f"{path} is not a whole manifest: its row has no status; restore it from a copy"
        )
    return found


def runs_table(manifest: Mapping[str, Any]) -> Any:
    """The row of the `runs` table that a manifest stands for, as Arrow.

    Raises:
        StoreError: the manifest lacks what the row needs, or has something else there.
    """
    try:
        row = dict(manifest["row"])
        row["started_at"] = datetime.fromisoformat(row["started_at"]).astimezone(UTC)
        row["finished_at"] = datetime.fromisoformat(row["finished_at"]).astimezone(UTC)
        return schemas.table_of(schemas.RUNS, [row])
    except (KeyError, TypeError, ValueError, OverflowError, pa.ArrowException) as error:
        raise StoreError(
            f"manifest has no row for the runs table ({error}); restore it from a copy"
        ) from error
