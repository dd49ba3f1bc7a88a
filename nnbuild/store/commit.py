"""From staging to the store: everything is made ready aside, then moved, and the `runs` row comes last.

`commit/` in the run's staging folder mirrors the store. Once `commit/ready.json` stands, nothing is computed any
more: a commit that is killed is finished by making the moves that are left.
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
    """What `ready.json` holds."""

    row: Row


def is_ready(run: Run) -> bool:
    """Whether the run only has to be moved."""
    return (run.folder / "commit" / "ready.json").exists()


def make_ready(
    run: Run, manifest: Manifest, files: Mapping[str, Path], tables: Mapping[str, Path]
) -> None:
    """Lay out everything that the run leaves in the store.

    Args:
        run: in staging.
        manifest: Manifest without files; their digests and sizes are added here.
        files: what goes into `runs/<run_id>/`, by name there.
        tables: one Parquet file for each table, by the table's name.
    """
    layout = run.folder / "commit"
    with os_errors_as_store_errors(f"make run {run.run_id} ready"):
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
        kept = [*(record / name for name in files), *parts.values(), runs_part]
        entries = {
            path.relative_to(layout).as_posix(): FileEntry(
                sha256=file_digest(path), bytes=path.stat().st_size
            )
            for path in kept
        }
        complete = manifest.model_copy(update={"files": entries})
        write_json(record / "manifest.json", complete.to_json())
        fault_injection.failpoint("commit:laid-out")
        write_json(layout / "ready.json", {"row": manifest.row.model_dump()})


def publish(run: Run, root: Path, dataset: tuple[Path, Path] | None = None) -> None:
    """Move what is ready into the store; may be called again until it has happened. Staging is left to the caller.

    Args:
        run: made ready.
        root: of the store.
        dataset: the staged dataset, and where it belongs.
    """
    for source, target in _moves(run, root, dataset):
        if source.exists():
            publish_dir(source, target)
            fault_injection.failpoint(f"commit:{target.parent.name}")
    # What is not in staging was moved before; unless the store disappeared, and everything with it.
    presence.require(run.folder)


def staged_row(run: Run) -> Row:
    """Return the `runs` row of a run that is ready."""
    path = run.folder / "commit" / "ready.json"
    return read_model(path, _Ready, "the end of a run").row


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
    """The same file under a second name: the first stays for a resume until the run is committed."""
    make_durable_dir(target.parent)
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, target)
