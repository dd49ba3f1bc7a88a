"""Commit a run: prepare its files in staging, then move them to the store, the `runs` row last.

The folder `commit/` in the run's staging folder mirrors the store. Once `commit/ready.json` exists,
nothing is computed any more: a commit that was killed is completed by the remaining moves.
"""

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from pydantic import BaseModel

from nnbuild.runtime import fault_injection
from nnbuild.store import presence, schemas
from nnbuild.store.filesystem import (
    file_digest,
    make_durable_dir,
    os_errors_as_store_errors,
    publish_dir,
    write_json,
)
from nnbuild.store.json_models import read_model
from nnbuild.store.manifests import FileEntry, Manifest, Row, runs_table
from nnbuild.store.run import Run
from nnbuild.store.tables import write_table

PART = "part-0.parquet"


class _Ready(BaseModel):
    """Content of `ready.json`."""

    row: Row


def is_ready(run: Run) -> bool:
    """Return whether only the moves of the commit are left."""
    return (run.folder / "commit" / "ready.json").exists()


def make_ready(
    run: Run, manifest: Manifest, files: Mapping[str, Path], tables: Mapping[str, Path]
) -> None:
    """Prepare everything that the run adds to the store.

    Args:
        run: Run in staging.
        manifest: Manifest without files; their digests and sizes are added here.
        files: Files for `runs/<run_id>/`, by their name there.
        tables: One Parquet file for each table, by the name of the table.
    """
    layout = run.folder / "commit"
    with os_errors_as_store_errors(f"prepare the commit of run {run.run_id}"):
        shutil.rmtree(layout, ignore_errors=True)
        record = layout / "runs" / run.run_id
        make_durable_dir(record)
        for name, path in files.items():
            _link(path, record / name)
        parts = {name: layout / "tables" / name / f"run_id={run.run_id}" / PART for name in tables}
        for name, path in tables.items():
            _link(path, parts[name])
        fault_injection.failpoint("commit:linked")
        runs_part = layout / "tables" / "runs" / f"run_id={run.run_id}" / PART
        write_table(runs_part, runs_table(manifest), schemas.RUNS)
        paths = [*(record / name for name in files), *parts.values(), runs_part]
        entries = {
            path.relative_to(layout).as_posix(): FileEntry(
                sha256=file_digest(path), bytes=path.stat().st_size
            )
            for path in paths
        }
        complete = manifest.model_copy(update={"files": entries})
        write_json(record / "manifest.json", complete.to_json())
        fault_injection.failpoint("commit:laid-out")
        write_json(layout / "ready.json", {"row": manifest.row.model_dump()})


def publish(run: Run, root: Path, dataset: tuple[Path, Path] | None = None) -> None:
    """Move the prepared files into the store; repeatable until every move is done.

    The caller removes the staging folder.

    Args:
        run: Run that is ready.
        root: Root of the store.
        dataset: Folder of the staged dataset, and its place in the store.
    """
    for source, target in _moves(run, root, dataset):
        if source.exists():
            publish_dir(source, target)
            fault_injection.failpoint(f"commit:{target.parent.name}")
    # A source that is missing was moved before, or the store disappeared with everything in it.
    presence.require(run.folder)


def staged_row(run: Run) -> Row:
    """Return the `runs` row of a run that is ready."""
    path = run.folder / "commit" / "ready.json"
    return read_model(path, _Ready, "a record of a commit").row


def _moves(run: Run, root: Path, dataset: tuple[Path, Path] | None) -> Iterator[tuple[Path, Path]]:
    layout = run.folder / "commit"
    if dataset is not None:
        yield dataset
    yield layout / "runs" / run.run_id, root / "runs" / run.run_id
    folders = sorted((layout / "tables").iterdir()) if (layout / "tables").is_dir() else []
    for folder in sorted(folders, key=lambda each: each.name == "runs"):
        partition = f"run_id={run.run_id}"
        yield folder / partition, root / "tables" / folder.name / partition


def _link(source: Path, target: Path) -> None:
    """Link or copy a file; the source stays for a resume until the run is committed."""
    make_durable_dir(target.parent)
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, target)
