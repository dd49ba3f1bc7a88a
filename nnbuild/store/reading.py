"""What a reader sees of the tables: the rows of committed runs and scoring jobs, and no others."""

from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from nnbuild import schemas
from nnbuild.errors import StoreError, one_line, suggestion
from nnbuild.store.files import explained
from nnbuild.store.names import is_run_id, require_name, require_run_id, require_score_id
from nnbuild.store.tables import open_dataset

if TYPE_CHECKING:
    from nnbuild.store.store import Store


def partitions(folder: Any, key: str) -> list[str]:
    """The ids that have a partition in a table's folder, in order."""
    with explained(f"list {folder}"):
        if not folder.is_dir():
            return []
        names = (path.name.removeprefix(f"{key}=") for path in folder.iterdir())
        return sorted(name for name in names if is_run_id(name))


def committed_parts(
    store: "Store", name: str, wanted: str | None = None
) -> tuple[str, list[tuple[str, Any]]]:
    """Where the committed rows of a table are.

    Args:
        store: where.
        name: of the table.
        wanted: id of one run or scoring job; all of them if not given.

    Returns:
        The partition's key, and of each partition its value and its folder, oldest first.

    Raises:
        StoreError: nothing of that id is committed.
    """
    of_jobs = require_name(name) in schemas.OF_JOBS
    key, require = ("score_id", require_score_id) if of_jobs else ("run_id", require_run_id)
    # The list of what is committed is taken first: whatever it names was complete before its row was written.
    ids = store.scored() if of_jobs else store.committed()
    if wanted is not None:
        if require(wanted) not in ids:
            what = "scoring job" if of_jobs else "run"
            raise StoreError(f"no committed {what} {wanted} in {store.root}; see `nnbuild runs`")
        ids = [wanted]
    folders = [(each, store.root / "tables" / name / f"{key}={each}") for each in ids]
    return key, [(each, folder) for each, folder in folders if folder.is_dir()]


def read_table(store: "Store", name: str, wanted: str | None, columns: list[str] | None) -> Any:
    """See `nnbuild.store.Store.read_table`."""
    key, folders = committed_parts(store, name, wanted)
    parts = [_part(folder, key, each, columns) for each, folder in folders]
    if parts:
        return pa.concat_tables(parts, promote_options="default")
    if name in schemas.FIXED:
        return keyed(key, "", schemas.FIXED[name].empty_table())
    if name in schemas.TABLES:
        if wanted is not None:
            why = (
                "its rows are where its --output says"
                if name in schemas.OF_JOBS
                else "it failed before it had any"
            )
            raise StoreError(f"{wanted} has no {name} in {store.root}: {why}; choose another")
        raise StoreError(f"no rows of {name!r} in {store.root}; it holds {_tables(store)}")
    raise StoreError(f"no table {name!r} in {store.root}; {suggestion(name, schemas.TABLES)}")


def _part(folder: Any, key: str, value: str, columns: list[str] | None) -> Any:
    with explained(f"read {folder}"):
        try:
            part = open_dataset(folder)
            schemas.require_version(part.schema, str(folder))
            table = part.to_table(
                columns=[each for each in columns if each != key] if columns else None
            )
        except pa.ArrowException as error:
            raise StoreError(
                f"cannot read {folder}: {one_line(error)}; restore it from a copy"
            ) from error
    return keyed(key, value, table)


def keyed(key: str, value: str, table: Any) -> Any:
    """A part of a table with its partition's key as the first column."""
    return table.add_column(
        0, pa.field(key, pa.string()), pc.cast(pa.repeat(value, len(table)), pa.string())
    )


def _tables(store: "Store") -> str:
    folder = store.root / "tables"
    return (
        ", ".join(sorted(path.name for path in folder.iterdir()))
        if folder.is_dir()
        else "no tables"
    )
