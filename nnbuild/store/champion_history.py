"""Every change of the champions: `champion.json` and the table `champions`.

`champion.json` contains the changes by dataset and in order; it is the source of truth, and is
written atomically. The table has the same changes for queries, one file each. It is written next,
and a change that a killed process left out of it is added by the next change, the next run, or the
repair of the store.
"""

import fcntl
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal, Self

import pyarrow as pa
from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError, model_validator

from nnbuild.errors import StoreError
from nnbuild.store import commands, schemas
from nnbuild.store.filesystem import make_durable_dir, os_errors_as_store_errors, write_json
from nnbuild.store.ids import is_run_id, require_name
from nnbuild.store.json_models import problem, read_model
from nnbuild.store.store import Store
from nnbuild.store.tables import publish_table

FILE = "champion.json"
Origin = Literal["gate", "promote", "rollback", "unpin"]


def _run_id(text: str) -> str:
    if not is_run_id(text):
        raise ValueError("expected a run ID")
    return text


def _dataset_name(text: str) -> str:
    try:
        return require_name(text)
    except StoreError as error:
        raise ValueError(str(error)) from error


RunId = Annotated[str, AfterValidator(_run_id)]


class Change(BaseModel):
    """One change of the champion of a dataset, or of its pin.

    Attributes:
        run_id: The new champion.
        previous: The champion before the change; None if there was none.
        changed_at: Time of the change, UTC; later than that of the change before it.
        changed_by: Origin of the change: the gate, or a person's `promote`, `rollback` or `unpin`.
        who: The person as user and host; None for the gate.
        note: Reason; None if not given.
        pinned: Whether the gate has to leave this champion alone.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    run_id: RunId
    previous: RunId | None
    changed_at: datetime
    changed_by: Origin
    who: str | None = None
    note: str | None = None
    pinned: bool = False


class _Champions(BaseModel):
    """Content of `champion.json`."""

    model_config = ConfigDict(extra="forbid")
    datasets: dict[Annotated[str, AfterValidator(_dataset_name)], list[Change]]

    @model_validator(mode="after")
    def _require_consistent_history(self) -> Self:
        for dataset, changes in self.datasets.items():
            previous, at = None, datetime.min.replace(tzinfo=UTC)
            past: set[str] = set()
            for each in changes:
                if each.previous != previous:
                    raise ValueError(
                        f"a change of {dataset} follows {each.previous}, expected {previous}"
                    )
                if each.changed_at.tzinfo is None or each.changed_at <= at:
                    raise ValueError(f"the changes of {dataset} are not in the order of time")
                if each.changed_by == "unpin" and each.run_id != previous:
                    raise ValueError(f"an unpin of {dataset} changes the champion")
                if each.changed_by == "rollback" and each.run_id not in past:
                    raise ValueError(f"a rollback of {dataset} leads to a run that was no champion")
                previous, at = each.run_id, each.changed_at
                past.add(each.run_id)
        return self


@contextmanager
def lock(store: Store) -> Iterator[None]:
    """Let only one process of this machine at a time change a champion.

    Raises:
        StoreError: The store does not exist.
    """
    store.require()
    if store.is_remote:
        make_durable_dir(store.local_root)
    path = store.local_root / ".champion.lock"
    with os_errors_as_store_errors(f"lock {path}"):
        file = path.open("a")
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def histories(store: Store) -> dict[str, list[Change]]:
    """Return every change by dataset, the oldest first; datasets in alphabetical order.

    Raises:
        StoreError: `champion.json` is damaged.
    """
    path = store.root / FILE
    with os_errors_as_store_errors(f"look for {path}"):
        if not path.exists():
            return {}
    remedy = f"rebuild it by {commands.REPAIR}"
    found = read_model(path, _Champions, "a history of champions", remedy=remedy).datasets
    return {dataset: found[dataset] for dataset in sorted(found) if found[dataset]}


def write(store: Store, known: Mapping[str, Sequence[Change]]) -> None:
    """Write `champion.json`, for a caller that holds `lock`."""
    datasets = {
        dataset: [each.model_dump(mode="json") for each in changes]
        for dataset, changes in known.items()
    }
    write_json(store.root / FILE, {"datasets": datasets})


def sync_table(store: Store) -> None:
    """Add to the table `champions` what a killed process left out, for a caller that holds `lock`.

    Only the newest changes of a dataset can be missing, since each change adds those before it.
    """
    with os_errors_as_store_errors(f"write table {schemas.CHAMPIONS_TABLE} of {store.root}"):
        for dataset, changes in histories(store).items():
            for path, table in reversed(_parts(store, dataset, changes)):
                if path.exists():
                    break
                publish_table(path, table, schemas.CHAMPIONS)


def _parts(store: Store, dataset: str, changes: Sequence[Change]) -> list[tuple[Path, pa.Table]]:
    """Return the file of each change of a dataset in the table, and its rows."""
    parts = []
    for number, each in enumerate(changes):
        row = each.model_dump(exclude={"run_id"}) | {"dataset": dataset}
        folder = store.partition(schemas.CHAMPIONS_TABLE, each.run_id)
        table = schemas.table_of(schemas.CHAMPIONS, [row])
        parts.append((folder / f"part-{number:06}.parquet", table))
    return parts


def recorded(store: Store) -> dict[str, list[Change]]:
    """Return every change by dataset as the table `champions` has it.

    Raises:
        StoreError: The table is damaged.
    """
    found: dict[str, list[Change]] = {}
    try:
        for row in store.read_table(schemas.CHAMPIONS_TABLE).sort_by("changed_at").to_pylist():
            found.setdefault(row.pop("dataset"), []).append(Change.model_validate(row))
        _Champions(datasets=found)
    except ValidationError as error:
        raise StoreError(
            f"the table {schemas.CHAMPIONS_TABLE} of {store.root} is not a history of champions: "
            f"{problem(error)}; restore it from a copy"
        ) from error
    return found


def rebuild_table(store: Store) -> None:
    """Write the table `champions` again from `champion.json`."""
    with lock(store), os_errors_as_store_errors(f"write table {schemas.CHAMPIONS_TABLE}"):
        parts = [
            part
            for dataset, changes in histories(store).items()
            for part in _parts(store, dataset, changes)
        ]
        folder = store.root / "tables" / schemas.CHAMPIONS_TABLE
        expected = {path for path, _ in parts}
        for run_folder in folder.iterdir() if folder.is_dir() else ():
            for path in [each for each in run_folder.iterdir() if each not in expected]:
                path.unlink()
        for path, table in parts:
            publish_table(path, table, schemas.CHAMPIONS)


def rebuild_pointer(store: Store) -> None:
    """Write `champion.json` again from the table `champions`."""
    with lock(store):
        write(store, recorded(store))
