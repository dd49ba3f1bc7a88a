"""Add files of labels to the table `labels`, each once; of several labels the newest counts.

A set of labels is prepared in `staging/labels/`, then moved into the store, its rows of
`label_jobs` last. If the process is killed before the set is complete, the next ingestion removes
the set; if it is killed later, the next ingestion completes the move.
"""

import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from nnbuild.errors import DataError, LockedError
from nnbuild.live import label_files
from nnbuild.live.label_files import LabelConfig, LabelFile
from nnbuild.live.label_matching import match_labels
from nnbuild.runtime import fault_injection
from nnbuild.runtime.text import encodable
from nnbuild.store import Store, locks, presence, schemas
from nnbuild.store.filesystem import atomic_write, make_durable_dir, publish_dir, write_json
from nnbuild.store.ids import is_run_id, new_run_id
from nnbuild.store.query import connected
from nnbuild.store.tables import write_table
from nnbuild.store.views import reading_errors

_SET_ROWS = 1_000_000  # rows after which a set is committed before the next file is read
_MEMORY = 2**28  # bytes for DuckDB; what does not fit goes to temporary files
_FOLDERS = ("quarantine", "labels", "label_jobs")  # in the order in which they are moved
_READY = "ready.json"

REJECTS = pa.schema(
    [
        pa.field("source", pa.string(), nullable=False),
        pa.field("source_row", pa.int64(), nullable=False),
        pa.field("digest", pa.string(), nullable=False),
        pa.field("id", pa.string()),
        pa.field("score_id", pa.string()),
        pa.field("label", pa.string()),
        pa.field("observed_at", pa.string()),
        pa.field("reason", pa.string(), nullable=False),
    ]
)
"""Schema of the rows that could not be used, in `quarantine/label_id=…/`."""


@dataclass(frozen=True)
class Ingested:
    """Counts of the rows of an ingestion; the first is the sum of the next four.

    Attributes:
        rows: Number of processed rows: those of new files, and those that were quarantined before
            and were tried again.
        labelled: Number of rows that were the first label of their example.
        corrected: Number of rows that changed the label that counts.
        repeated: Number of rows that did not change the label that counts: the same label, or one
            that was observed earlier.
        quarantined: Number of rows that could not be used.
        files: Number of files at the address.
        new_files: Number of them that were not ingested before.
        reasons: Number of quarantined rows by reason.
    """

    rows: int = 0
    labelled: int = 0
    corrected: int = 0
    repeated: int = 0
    quarantined: int = 0
    files: int = 0
    new_files: int = 0
    reasons: dict[str, int] = field(default_factory=dict)

    def __add__(self, other: Self) -> Self:
        names = [each.name for each in fields(self) if each.name != "reasons"]
        counts = {name: getattr(self, name) + getattr(other, name) for name in names}
        reasons = Counter(self.reasons) + Counter(other.reasons)
        return type(self)(**counts, reasons=dict(reasons.most_common()))


def ingest(
    config: LabelConfig,
    root: Path | str | None = None,
    *,
    now: datetime | None = None,
    required: bool = True,
) -> Ingested:
    """Add the labels at an address to the table `labels`.

    A file whose content was ingested before is not read again, whatever its name. Its rows that
    were quarantined are tried again, since their images may have been scored in the meantime.

    Args:
        config: Address of the labels, and names of their columns.
        root: Root of the store.
        now: Time of the ingestion, with a time zone; the current time by default.
        required: Whether an address without labels is an error.

    Raises:
        DataError: There are no labels, or a file or one of its columns cannot be read; the labels
            of all other files are in the store.
        LockedError: Another process is ingesting labels.
    """
    store, now = Store.open(root), now or datetime.now(UTC)
    staging = store.local_root / "staging" / "labels"

    def refuse(holder: locks.Holder) -> LockedError:
        return LockedError(
            f"{holder.process} is adding labels to {store.root}; wait for it and repeat the command"
        )

    # The claim removes its file and the folder: what cannot be read leaves nothing behind.
    with locks.claim(staging / "lock", {}, refuse), presence.watch(staging):
        _complete(store, staging)
        paths = label_files.find(config, required=required)
        return _ingest(store, config, paths, staging, now)


def _ingest(
    store: Store,
    config: LabelConfig,
    paths: Sequence[tuple[Any, date | None]],
    staging: Path,
    now: datetime,
) -> Ingested:
    total, known = Ingested(files=len(paths)), _known_digests(store)
    pending: list[_Pending] = []
    problems: list[DataError] = []
    for path, day in paths:
        try:
            file = label_files.open_file(path, day, config)
            if file.digest in known and label_files.is_of_another_day(
                file, known[file.digest].source, config
            ):
                file = label_files.with_digest_of_day(file)
            earlier, first_seen, _ = known.get(file.digest, _Known(None, now, ""))
            if earlier == "":
                continue
            rows = label_files.read(file, config, first_seen)
        except DataError as error:  # the other files are added all the same
            problems.append(error)
            continue
        if earlier is not None:
            rows = rows.filter(pc.is_in(rows["source_row"], _quarantined(store, earlier, file)))
        total += Ingested(new_files=int(earlier is None))
        known[file.digest] = _Known("", first_seen, str(file.path))
        pending.append(_Pending(file._replace(content=b""), rows, is_new=earlier is None))
        if sum(len(each.rows) for each in pending) >= _SET_ROWS:
            total += _add(store, pending, staging, now)
            pending = []
    if pending:
        total += _add(store, pending, staging, now)
    if problems:
        if len(problems) > 1:
            problems[0].add_note(f"and {len(problems) - 1} other files; the rest was added")
        raise problems[0]
    return total


class _Pending(NamedTuple):
    """A file whose rows are to be added: all of them, or those that were quarantined before."""

    file: LabelFile
    rows: pa.Table
    is_new: bool


class _Known(NamedTuple):
    """A file that was ingested before.

    Attributes:
        label_id: ID of the set with its quarantined rows; empty for no such rows.
        first_seen: Time of its first ingestion.
        source: Path that it had then.
    """

    label_id: str | None
    first_seen: datetime
    source: str


def _known_digests(store: Store) -> dict[str, _Known]:
    """Return the files that were ingested before, by digest."""
    columns = ["digest", "quarantined", "ingested_at", "source"]
    known: dict[str, _Known] = {}
    for row in store.read_table("label_jobs", None, columns).to_pylist():
        first = known.get(row["digest"], _Known("", row["ingested_at"], row["source"]))
        label_id = row["label_id"] if row["quarantined"] else ""
        known[row["digest"]] = first._replace(label_id=label_id)
    return known


def _quarantined(store: Store, label_id: str, file: LabelFile) -> pa.Array:
    """Return the rows of a file that were quarantined when it was last tried."""
    path = store.root / "quarantine" / f"label_id={label_id}" / "part-0.parquet"
    if not path.exists():  # the user has removed it
        return pa.array([], pa.int64())
    with reading_errors(path), path.open("rb") as content:
        table = pq.ParquetFile(content).read(["digest", "source_row"])
    return table.filter(pc.equal(table["digest"], file.digest))["source_row"].combine_chunks()


def _add(store: Store, files: Sequence[_Pending], staging: Path, now: datetime) -> Ingested:
    """Resolve the rows of some files and commit them as one set."""
    arrived = pa.concat_tables(
        each.rows.append_column("file", pa.repeat(number, len(each.rows)).cast(pa.int32()))
        for number, each in enumerate(files)
    )
    arrived = arrived.append_column("arrival", pa.array(np.arange(len(arrived), dtype=np.int64)))
    with connected(store, ["labels"], memory=_MEMORY) as connection:
        connection.register("arrived", arrived)
        connection.execute(f"set variable now = '{now.isoformat()}'::timestamptz")
        match_labels(connection, store)
        counts = _counts(connection, files)
        total = replace(sum(counts, Ingested()), reasons=_reasons(connection))
        changed = {
            number: (each.file, found)
            for number, (each, found) in enumerate(zip(files, counts, strict=True))
            if each.is_new or found.quarantined < found.rows
        }
        if not changed:
            return total
        label_id = new_run_id(now, max(store.committed_ids("label_id"), default=None))
        folder = staging / label_id
        _stage(connection, folder, changed, now)
    fault_injection.failpoint("label:staged")
    write_json(folder / _READY, {"label_id": label_id})
    fault_injection.failpoint("label:ready")
    _publish(store, folder)
    return total


def _counts(connection: Any, files: Sequence[_Pending]) -> list[Ingested]:
    """Return the counts of each file."""
    found = connection.execute("select file, outcome, count(*) from outcomes group by all")
    counts: dict[tuple[int, str], int] = {(row[0], row[1]): row[2] for row in found.fetchall()}
    return [
        Ingested(
            rows=len(each.rows),
            labelled=counts.get((number, "labelled"), 0),
            corrected=counts.get((number, "corrected"), 0),
            repeated=counts.get((number, "repeated"), 0),
            quarantined=counts.get((number, "quarantined"), 0),
        )
        for number, each in enumerate(files)
    ]


def _reasons(connection: Any) -> dict[str, int]:
    counted = connection.execute(
        "select reason, count(*) from outcomes where reason is not null group by reason order by 2"
    )
    return dict(counted.fetchall())


def _stage(
    connection: Any, folder: Path, files: Mapping[int, tuple[LabelFile, Ingested]], now: datetime
) -> None:
    """Write the rows of some files as a set of labels."""
    sources = {number: encodable(str(file.path)) for number, (file, _) in files.items()}
    columns = {
        "file": pa.array(list(files), pa.int32()),
        "source": pa.array(list(sources.values()), pa.string()),
        "digest": pa.array([file.digest for file, _ in files.values()], pa.string()),
    }
    connection.register("files", pa.table(columns))
    labels = connection.sql(
        "select example_id, example_key, owner as score_id, input_digest, class as label, "
        "name as label_name, observed_at, getvariable('now') as ingested_at, version, "
        "source, source_row "
        "from outcomes join files using (file) where reason is null order by arrival"
    ).to_arrow_table()
    if len(labels):
        _write(folder / "labels", labels.cast(_nullable(schemas.LABELS)), schemas.LABELS)
    rejects = connection.sql(
        "select source, source_row, digest, coalesce(key, number::varchar) as id, "
        "asked as score_id, label, coalesce(observed_text, observed_at::varchar) as observed_at, "
        "reason from outcomes join files using (file) where reason is not null order by arrival"
    ).to_arrow_table()
    if len(rejects):
        path = folder / "quarantine" / "part-0.parquet"
        make_durable_dir(path.parent)
        with atomic_write(path) as part:
            pq.write_table(rejects.cast(REJECTS), part, compression="zstd")
    names = ("rows", "labelled", "corrected", "repeated", "quarantined")
    rows = [
        {"source": sources[number], "digest": file.digest, "ingested_at": now}
        | {name: getattr(counts, name) for name in names}
        for number, (file, counts) in files.items()
    ]
    _write(folder / "label_jobs", schemas.table_of(schemas.LABEL_JOBS, rows), schemas.LABEL_JOBS)


def _nullable(schema: pa.Schema) -> pa.Schema:
    return pa.schema([field.with_nullable(nullable=True) for field in schema])


def _write(folder: Path, table: pa.Table, schema: pa.Schema) -> None:
    path = folder / "part-0.parquet"
    make_durable_dir(folder)
    write_table(path, pa.Table.from_arrays(table.columns, schema=schema), schema)


def _publish(store: Store, folder: Path) -> None:
    """Move a complete set into the store; can be repeated after it was interrupted."""
    for name in _FOLDERS:
        source, partition = folder / name, f"label_id={folder.name}"
        above = store.root if name == "quarantine" else store.root / "tables"
        if source.is_dir():
            publish_dir(source, above / name / partition)
            fault_injection.failpoint(f"label:{name}")
    shutil.rmtree(folder, ignore_errors=True)


def _complete(store: Store, staging: Path) -> None:
    """Publish the complete sets that a killed process has left, and remove the incomplete ones."""
    for folder in sorted(staging.iterdir()):
        if not is_run_id(folder.name):
            continue
        if (folder / _READY).exists():
            _publish(store, folder)
        else:
            shutil.rmtree(folder, ignore_errors=True)
