"""The store: one root folder or URL with datasets, runs, tables, and the runs in progress."""

import os
import shutil
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import pyarrow as pa

from nnbuild.config.schema import RunConfig
from nnbuild.errors import StoreError, StoreGoneError, one_line
from nnbuild.store import filesystem, locks, presence, schemas, views
from nnbuild.store.filesystem import (
    make_durable_dir,
    os_errors_as_store_errors,
    read_json,
    write_bytes,
    write_json,
)
from nnbuild.store.ids import is_run_id, new_run_id, require_id, require_name
from nnbuild.store.manifests import Manifest, read_manifest
from nnbuild.store.run import Run, create
from nnbuild.store.tables import read_table


def default_root() -> str:
    """Return `$NNBUILD_STORE`, a path or a URL, else `nnbuild-store`."""
    return os.environ.get("NNBUILD_STORE") or "nnbuild-store"


@dataclass(frozen=True)
class UnfinishedRun:
    """A run in staging.

    Attributes:
        run_id: ID of the run.
        held: Whether a living process is working on it.
    """

    run_id: str
    held: bool


class Store:
    """A store, which need not exist yet: nothing is written before the first run begins.

    Args:
        root: Local folder, or a URL such as `s3://bucket/folder`; `default_root()` if not given.

    Attributes:
        root: Folder that readers see: a `pathlib.Path`, or a path of universal_pathlib, which has
            the same methods.
        local_root: Local folder whose `staging/` holds the runs in progress. It is the root,
            unless the store is remote.

    Raises:
        StoreError: The root is a file, a URL whose protocol is not supported, or a store of
            another schema version.
    """

    def __init__(self, root: Path | str | None = None) -> None:
        address = str(default_root() if root is None else root)
        if not address.strip():
            raise StoreError(
                "the store is an empty text, expected a path or a URL", setting="store"
            )
        if "\0" in address:
            raise StoreError(
                f"store {address!r} contains a NUL character, expected the path of a folder",
                setting="store",
            )
        with os_errors_as_store_errors(f"open store {address}"):
            self.root = (
                filesystem.open_root(address)
                if filesystem.is_url(address)
                else Path(address).expanduser().resolve()
            )
            self.local_root = filesystem.local_root(address) if self.is_remote else self.root
            if not self.is_remote:
                existing = next(each for each in (self.root, *self.root.parents) if each.exists())
                if not existing.is_dir():
                    raise StoreError(
                        f"store {address}: {existing} is a file, expected a folder; "
                        "give another store",
                        setting="store",
                    )
            has_marker = self._marker.exists()
        if has_marker:
            marker = read_json(self._marker)
            version = marker.get("schema_version") if isinstance(marker, dict) else None
            if version != schemas.SCHEMA_VERSION:
                raise StoreError(
                    f"store {address} has schema version {one_line(version)}, expected "
                    f"{schemas.SCHEMA_VERSION}; use the version of nnbuild that wrote it, or give "
                    "another store",
                    setting="store",
                )

    @property
    def is_remote(self) -> bool:
        """Return whether the root is a URL."""
        return filesystem.is_remote(self.root)

    @property
    def _marker(self) -> Path:
        return self.root / presence.MARKER

    @classmethod
    def open(cls, root: Path | str | None = None) -> "Store":
        """Open a store that exists.

        Args:
            root: Its root; the default root if not given.

        Raises:
            StoreError: There is no store, or it cannot be opened.
        """
        store = cls(root)
        store.require()
        return store

    def exists(self) -> bool:
        """Return whether there is a store at the root: a folder with a `store.json`."""
        with os_errors_as_store_errors(f"look for store {self.root}"):
            return self._marker.exists()

    def require(self) -> None:
        """Require that the store exists.

        Raises:
            StoreError: There is no store at the root.
        """
        if self.exists():
            return
        reason = (
            f"it has no {self._marker.name}"
            if self.is_remote or self.root.exists()
            else "the folder does not exist"
        )
        raise StoreError(
            f"no store at {self.root}: {reason}; check the path, or create a store by "
            "`nnbuild run`",
            setting="store",
        )

    @property
    def id(self) -> str | None:
        """Return the ID of the store; None for a store that was created before stores had IDs."""
        marker = read_json(self._marker)
        store_id = marker.get("id") if isinstance(marker, dict) else None
        return store_id if isinstance(store_id, str) else None

    def require_same(self, run: Run) -> None:
        """Require that this is the store in which a run was begun, before the run is committed.

        Raises:
            StoreError: There is no store.
            StoreGoneError: It is another store.
        """
        self.require()
        expected, actual = run.store_id, self.id
        if None not in (expected, actual) and expected != actual:
            raise StoreGoneError(
                f"the store at {self.root} has ID {actual}, but run {run.run_id} was begun in "
                f"store {expected}; bring that store back"
            )

    def create(self) -> list[str]:
        """Create the store unless it exists, and check that it can be written.

        Returns:
            Names of what did not exist before, for `discard_folder`: the root (`.`), the marker.

        Raises:
            StoreError: The store cannot be written.
        """
        created: list[str] = []
        with os_errors_as_store_errors(f"write to store {self.root}"):
            if not self.is_remote and not self.root.exists():
                created.append(".")
            make_durable_dir(self.local_root / "staging")
            if not self._marker.exists():
                created.append(self._marker.name)
                marker = {"schema_version": schemas.SCHEMA_VERSION, "id": uuid.uuid4().hex}
                write_json(self._marker, marker)
        return created

    def begin(self, config: RunConfig, *, now: datetime, flow_run_id: str | None = None) -> Run:
        """Open a new run in staging.

        Args:
            config: Resolved config.
            now: Start time, with a time zone.
            flow_run_id: ID of the Prefect flow run, if there is one.

        Raises:
            StoreError: The store cannot be written.
        """
        created = self.create()
        with os_errors_as_store_errors(f"write to store {self.root}"):
            newest = max(
                [*self.run_ids(), *(run.run_id for run in self.unfinished_runs())], default=None
            )
            return create(
                self._run(new_run_id(now, newest)),
                config,
                started_at=now,
                flow_run_id=flow_run_id,
                # Runs that create a store at the same time overwrite each other's marker.
                store={
                    "id": None if self._marker.name in created else self.id,
                    "created": created,
                },
            )

    def _run(self, run_id: str) -> Run:
        return Run(self.local_root, run_id, str(self.root) if self.is_remote else None)

    def unfinished_run(self, run_id: str) -> Run:
        """Return a run in staging.

        Raises:
            StoreError: There is no run of that ID in staging, or it is already committed.
        """
        require_id(run_id)
        if run_id in self.run_ids():
            raise StoreError(
                f"run {run_id} is committed, there is nothing to resume; begin a new run"
            )
        run = self._run(run_id)
        if not run.folder.is_dir():
            raise StoreError(f"no run {run_id} in {self.root}; see `nnbuild runs`")
        return run

    def run_of_flow(self, flow_run_id: str) -> Run | None:
        """Return the run in staging that belongs to a Prefect flow run, if there is one."""
        for unfinished in reversed(self.unfinished_runs()):
            run = self._run(unfinished.run_id)
            try:
                if run.record.get("flow_run_id") == flow_run_id:
                    return run
            except StoreError:
                continue
        return None

    def discard(self, run: Run) -> None:
        """Remove a run from staging, and the store if it was created for this run and is empty."""
        self.discard_folder(run.folder, run.created)

    def discard_folder(self, folder: Path, created: Sequence[str] = ()) -> None:
        """Remove a folder of staging, and the store if it was created for it and is empty.

        Args:
            folder: Folder of `staging/`.
            created: What `create` returned. A root that existed before is never removed.
        """
        shutil.rmtree(folder, ignore_errors=True)
        if self._marker.name not in created or not self.root.exists():
            return
        if self.run_ids() or self.score_ids() or (self.root / "datasets").exists():
            return
        try:
            folder.parent.rmdir()
            marker = self._marker.read_bytes()
            self._marker.unlink()
            if folder.parent.exists():  # another run has begun in the meantime
                write_bytes(self._marker, marker)
            elif "." in created:
                self.root.rmdir()
        except OSError:  # another run is in progress, or the user keeps files here
            return

    def run_ids(self) -> list[str]:
        """Return the IDs of all committed runs, oldest first."""
        return self.committed_ids("run_id")

    def score_ids(self) -> list[str]:
        """Return the IDs of all committed scoring jobs, oldest first."""
        return self.committed_ids("score_id")

    def committed_ids(self, key: str) -> list[str]:
        """Return the committed values of a partition key, oldest first.

        Args:
            key: `run_id`, `score_id` or `label_id`.
        """
        last = {"run_id": "runs", "score_id": "score_jobs", "label_id": "label_jobs"}[key]
        return views.partitions(self.root / "tables" / last, key)

    def unfinished_runs(self) -> list[UnfinishedRun]:
        """Return the runs in staging, oldest first."""
        folder = self.local_root / "staging"
        if not folder.is_dir():
            return []
        committed = set(self.run_ids())
        with os_errors_as_store_errors(f"list {folder}"):
            # Without its record a run has not begun: its process died, or is just starting.
            begun = (
                path
                for path in folder.iterdir()
                if is_run_id(path.name) and (path / "run.json").exists()
            )
            names = sorted(path.name for path in begun)
        return [
            UnfinishedRun(name, locks.is_held(folder / name))
            for name in names
            if name not in committed
        ]

    def committed_in_staging(self) -> list[Run]:
        """Return the committed runs that were killed before their staging folder was removed."""
        return [run for run in map(self._run, self.run_ids()) if run.folder.is_dir()]

    def partition(self, table: str, run_id: str) -> Path:
        """Return the folder with a run's part of a table."""
        return self.root / "tables" / require_name(table) / f"run_id={require_id(run_id)}"

    def dataset_folder(self, name: str, digest: str) -> Path:
        """Return the folder of an ingested dataset, whether it exists or not."""
        return self.root / self.dataset_name(name, digest)

    def dataset_name(self, name: str, digest: str) -> str:
        """Return the path of an ingested dataset, or of a part of one, relative to the root.

        Args:
            name: Name of the dataset.
            digest: Its digest, or the path of a part in its `dataset.json`.
        """
        parts = "/".join(map(require_name, digest.split("/")))
        return f"datasets/{require_name(name)}/{parts}"

    def has_dataset(self, name: str, digest: str) -> bool:
        """Return whether the store has a dataset."""
        with os_errors_as_store_errors(f"list {self.root}"):
            return (self.dataset_folder(name, digest) / "dataset.json").exists()

    def local_dataset(self, name: str, digest: str) -> Path:
        """Return a local folder with an ingested dataset, fetched first if the store is remote."""
        folder = self.local_root / self.dataset_name(name, digest)
        if self.is_remote and not folder.is_dir():
            with os_errors_as_store_errors(f"fetch dataset {name} from {self.root}"):
                make_durable_dir(folder.parent)
                filesystem.fetch_folder(self.dataset_folder(name, digest), folder)
        description = folder / "dataset.json"
        if self.is_remote and description.exists():
            for part in read_json(description).get("parts", ()):
                self.local_dataset(name, part)
        return folder

    def ensure_outside(self, path: Path) -> Path:
        """Refuse to write a user's file or folder into the store, also through links and mounts.

        Args:
            path: Local path, in which a leading `~` is the home folder, or a path of
                universal_pathlib.

        Returns:
            The path to write to.

        Raises:
            StoreError: The path is the store, in the store, or a folder that holds the store.
        """
        if filesystem.is_remote(path):
            overlaps = self.is_remote and filesystem.overlap(path, self.root)
        else:
            if "\0" in str(path):
                raise StoreError(f"{str(path)!r} contains a NUL character, expected a path")
            with suppress(RuntimeError):  # a folder may be called ~x without a user of this name
                path = Path(path).expanduser()
            overlaps = _overlap(path, self.local_root)
        if overlaps:
            raise StoreError(
                f"{path} is in the store {self.root} or contains it; give a path outside the store"
            )
        return path

    def manifest(self, run_id: str) -> Manifest:
        """Read the manifest of a committed run.

        Raises:
            StoreError: There is no such run, or its manifest is damaged.
        """
        if require_id(run_id) not in self.run_ids():
            raise StoreError(f"no committed run {run_id} in {self.root}; see `nnbuild runs`")
        return read_manifest(self.root / "runs" / run_id / "manifest.json")

    def staged_history(self, run_id: str) -> pa.Table | None:
        """Return the history of a run in staging so far, with the columns of `read_table`.

        None if there is no such run, or it has not finished an epoch.
        """
        path = self.local_root / "staging" / require_id(run_id) / "tables" / "history.parquet"
        return (
            views.keyed("run_id", run_id, read_table(path, schemas.HISTORY))
            if path.exists()
            else None
        )

    def read_table(
        self,
        name: str,
        run_id: str | Sequence[str] | None = None,
        columns: Sequence[str] | None = None,
    ) -> pa.Table:
        """Return the committed rows of a table, in the order of the runs.

        The first column is `run_id`, or `score_id` in `scores` and `score_jobs`. A column that was
        carried through from inputs of different types has their common type, such as double for
        int64 and double; without a common type it is text.

        Args:
            name: Name of the table, such as `runs`, `history` or `predictions`.
            run_id: ID of one run or scoring job, or several; all of them if not given.
            columns: Names of the columns; all if not given. Files without one give nulls.

        Raises:
            StoreError: The table, run or column is unknown, or a file is damaged or of another
                schema version.
        """
        return views.committed_rows(self, name, run_id, columns)


def _overlap(path: Path, root: Path) -> bool:
    """Return whether one of two local paths is the other, or in it."""
    resolved = Path(os.path.realpath(path))
    return root.is_relative_to(resolved) or any(
        _is_same(each, root) for each in (resolved, *resolved.parents)
    )


def _is_same(path: Path, root: Path) -> bool:
    """Return whether two paths lead to the same folder, also by a bind mount."""
    try:
        return path == root or path.samefile(root)
    except OSError:
        return False
