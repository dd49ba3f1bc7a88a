"""Make the shards of a job: output files, written atomically, with the same rows every time.

Reading, inference and writing run as overlapping stages; see `nnbuild.runtime.threads`.
"""

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from nnbuild.data.file_states import FileStates
from nnbuild.data.streams import PICTURE_COLUMNS, Batch, ImageStream, InputChunk, RejectedRows
from nnbuild.engines import Engine, Logits, Pixels
from nnbuild.errors import ContractError, DataError, StoreError
from nnbuild.evaluation.drift import Summary, summarise
from nnbuild.logits import check_logits, energy
from nnbuild.runtime import fault_injection
from nnbuild.runtime.threads import prefetch
from nnbuild.scoring.config import ScoreConfig
from nnbuild.scoring.pieces import read_part, split_shard
from nnbuild.scoring.shadow import by_model
from nnbuild.scoring.table import score_table
from nnbuild.store.filesystem import (
    atomic_write,
    file_digest,
    fsync_dir,
    make_durable_dir,
    read_json,
    write_json,
)

ROW_GROUP = 65_536
_LARGE_BATCH, _SAMPLE_STEP = 1024, 8  # drift is measured on every 8th image of a large batch


def _field(name: str, kind: pa.DataType, description: str, *, nullable: bool = False) -> pa.Field:
    return pa.field(name, kind, nullable=nullable, metadata={"description": description})


REJECTS = pa.schema(
    [
        _field("file", pa.string(), "Path or URL of the input file"),
        _field("row_group", pa.int32(), "Row group in the file, from 0"),
        _field("row", pa.int64(), "First row in the file, from 0"),
        _field("rows", pa.int64(), "Number of rows"),
        _field("reason", pa.string(), "Reason why they were not scored"),
        _field(
            "path",
            pa.string(),
            "Path of a picture relative to the input folder; null for other inputs",
            nullable=True,
        ),
    ]
)

Pending = Sequence[tuple[int, list[InputChunk]]]
"""Number and chunks of each shard to make."""


class ScoredRows(NamedTuple):
    """Scored rows that are ready to be written.

    Attributes:
        tables: The rows that passed the filter, in one table for each batch.
        rows: Number of scored rows.
        summary: Counts of the scored rows for the drift check; None for no rows.
        shadow: The same rows as scored by the shadow; empty if the job has none.
    """

    tables: list[pa.Table]
    rows: int
    summary: Summary | None
    shadow: Sequence[pa.Table] = ()


class Shard(BaseModel):
    """A finished file of the output.

    Attributes:
        name: Name of the file.
        rows: Number of scored rows.
        written: Number of scored rows that passed the `where` filter.
        quarantined: Number of rows that could not be scored.
        sha256: SHA-256 of the file.
        bytes: Size of the file.
        files: State of the input files that `ImageStream.states` has, before they were read.
        summary: Counts for the drift check, from `nnbuild.evaluation.drift.Summary.as_json`; empty
            if no row was scored.
        shadow_sha256: SHA-256 of the file of the same name with the rows of the shadow; empty if
            the job has none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    rows: int
    written: int
    quarantined: int
    sha256: str
    bytes: int
    files: FileStates = FileStates()
    summary: dict[str, list[int]] = {}
    shadow_sha256: str = ""


class ShadowContext(NamedTuple):
    """What the rows of the shadow need in addition to the context of the job.

    Attributes:
        run_id: ID of the run that made the shadow.
        schema: Schema of its rows.
        temperature: Divisor of its logits.
        set_threshold: Smallest probability of the classes in its prediction sets; None if the job
            writes no sets.
    """

    run_id: str
    schema: pa.Schema
    temperature: float
    set_threshold: float | None = None


class ShardContext(NamedTuple):
    """Context for making the shards of a job.

    Attributes:
        config: Settings of the job.
        source: The open input.
        engine: Function that returns the engine; called only if there are rows to score.
        classes: Number of classes of the model.
        schema: Schema of the rows.
        temperature: Divisor of the logits.
        where: Filter of the rows to write; None to write all.
        class_names: Names of the classes; empty for a model file.
        energy_edges: Edges of the bins in which energies are counted; None to count none.
        set_threshold: Smallest probability of the classes in a prediction set; None if the job
            writes no sets.
        shadow: The same for the shadow, whose logits the engine returns too; None without one.
    """

    config: ScoreConfig
    source: ImageStream
    engine: Callable[[], Engine]
    classes: int
    schema: pa.Schema
    temperature: float
    where: pc.Expression | None
    class_names: tuple[str, ...] = ()
    energy_edges: NDArray[np.float64] | None = None
    set_threshold: float | None = None
    shadow: ShadowContext | None = None


def plan(chunks: Sequence[InputChunk], shard_rows: int) -> list[list[InputChunk]]:
    """Group consecutive chunks into shards of at least `shard_rows` rows, except the last.

    Returns:
        The chunks of each shard; a single empty shard for an empty input.
    """
    shards: list[list[InputChunk]] = []
    filled = shard_rows
    for chunk in chunks:
        if filled >= shard_rows:
            shards.append([])
            filled = 0
        shards[-1].append(chunk)
        filled += chunk.rows
    return shards or [[]]


def shard_name(number: int) -> str:
    """Return the file name of a shard."""
    return f"part-{number:05d}.parquet"


def _record(folder: Path, name: str) -> Path:
    """Return the file by which a resumed job finds a finished shard."""
    return folder / "done" / f"{name}.json"


def finished(
    folder: Path, number: int, *, shadow: bool = False, is_verified: bool = True
) -> Shard | None:
    """Return a shard that an earlier process finished; None unless its files are unchanged.

    Args:
        folder: Folder of the job.
        number: Number of the shard.
        shadow: Whether the job has a shadow.
        is_verified: Whether to read the files, which can be large; otherwise they are trusted.
    """
    shard = _recorded(folder, number)
    if shard is None or not is_verified:
        return shard
    files = {"rows": shard.sha256} | ({"shadow": shard.shadow_sha256} if shadow else {})
    for name, digest in files.items():
        path = folder / name / shard.name
        if not path.is_file() or file_digest(path) != digest:
            return None
    return shard


def _recorded(folder: Path, number: int) -> Shard | None:
    record = _record(folder, shard_name(number))
    if not record.exists():
        return None
    try:
        return Shard.model_validate(read_json(record))
    except (ValidationError, StoreError):
        return None


def have_files_changed(
    source: ImageStream, shards: Sequence[Sequence[InputChunk]], folder: Path
) -> bool:
    """Return whether input files have changed since the finished shards were made of them.

    Args:
        source: The input.
        shards: Its chunks in each shard.
        folder: Folder of the job.
    """
    for number, chunks in enumerate(shards):
        shard = _recorded(folder, number)
        if shard is not None and source.states(each.numbers for each in chunks) != shard.files:
            return True
    return False


def make_shards(
    context: ShardContext, pending: Pending, folder: Path, *, overlapped: bool = True
) -> Iterator[int | Shard]:
    """Score the chunks of the pending shards, and write their files.

    Args:
        context: Settings, input, engine and schema of the job.
        pending: Number and chunks of each shard.
        folder: Folder of the job, for `rows/`, `shadow/`, `quarantine/` and `done/`.
        overlapped: Whether reading and inference run in threads of their own, on other cores.

    Yields:
        Numbers of processed input rows, as they are processed, and each shard when it is finished.

    Raises:
        DataError: A row cannot be scored, and `on_error` is `stop`.
        ContractError: The output of the model is not a finite array of logits.
    """
    if not pending:
        return
    # Not in a stage: a signal can interrupt the import of a library only in this thread.
    engine = context.engine()
    stage = prefetch if overlapped else iter
    results = stage(_infer(engine, context, stage(_read(context, pending))))
    upcoming = next(results, None)

    def results_of(number: int) -> Iterator[FileStates | ScoredRows | RejectedRows]:
        nonlocal upcoming
        while upcoming is not None and upcoming[0] == number:
            found = upcoming[1]
            if isinstance(found, FileStates | RejectedRows):
                yield found
            else:
                yield scored_rows(context, *found)
            upcoming = next(results, None)

    for number, chunks in pending:
        expected = sum(each.rows for each in chunks)
        yield (yield from write_shard(context, number, expected, results_of(number), folder))


def _read(
    context: ShardContext, pending: Pending
) -> Iterator[tuple[int, FileStates | Batch | RejectedRows]]:
    source, batch_rows = context.source, context.config.batch_size
    source.read_ahead([chunk for _, chunks in pending for chunk in chunks])
    for number, chunks in pending:
        for pieces in split_shard(chunks, source.part_rows(batch_rows)):
            for found in read_part(source, pieces, batch_rows):
                yield number, found


def _infer(
    engine: Engine,
    context: ShardContext,
    inputs: Iterable[tuple[int, FileStates | Batch | RejectedRows]],
) -> Iterator[tuple[int, FileStates | tuple[Batch, list[Logits]] | RejectedRows]]:
    for number, found in inputs:
        yield number, infer(engine, context, found) if isinstance(found, Batch) else found


def infer(engine: Engine, context: ShardContext, batch: Batch) -> tuple[Batch, list[Logits]]:
    """Compute the logits of a batch, and keep only the images that the drift check needs.

    Returns:
        The batch, and its logits by the model and, if the job has one, by the shadow.

    Raises:
        ContractError: The output of a model is not a finite array of logits.
    """
    images, ids = batch.images, batch.example_ids if batch.keys is None else batch.keys
    checked = []
    for logits in by_model(engine.logits(images), len(images)):
        try:
            checked.append(check_logits(logits, context.classes, example_ids=ids))
        except ContractError as error:
            if not checked or context.shadow is None:
                raise
            raise ContractError(
                f"shadow {context.shadow.run_id}: {error}; score without it"
            ) from error
    return batch._replace(images=_drift_sample(images)), checked


def scored_rows(context: ShardContext, batch: Batch, by_models: Sequence[Logits]) -> ScoredRows:
    """Return the rows of a batch as they are written.

    Args:
        context: Settings, schema, temperature and filter of the job.
        batch: Rows, with the sample of their images for the drift check.
        by_models: Logits of all rows, float32, shape (n, classes): by the model and, if the job
            has one, by the shadow.
    """
    logits = by_models[0]
    table = score_table(
        batch,
        logits,
        context.config,
        context.schema,
        context.temperature,
        class_names=context.class_names,
        set_threshold=context.set_threshold,
    )
    summary = counted(batch, table, logits, context.energy_edges)
    shadow = [_shadow_rows(context, batch, each, table["predicted"]) for each in by_models[1:]]
    if context.where is None:
        return ScoredRows([table], len(table), summary, shadow)
    numbered = table.append_column(_NUMBER, pa.array(np.arange(len(table))))
    selected = numbered.filter(context.where)
    shadow = [each.take(selected[_NUMBER]) for each in shadow]
    return ScoredRows([selected.drop_columns(_NUMBER)], len(table), summary, shadow)


_NUMBER = "nnbuild: row"  # hardly the name of a column that a user carries through


def _shadow_rows(
    context: ShardContext, batch: Batch, logits: Logits, predicted: pa.ChunkedArray
) -> pa.Table:
    """Return the rows of a batch as scored by the shadow, with the classes of the model."""
    shadow = context.shadow
    if shadow is None:
        raise TypeError("the engine returns logits of a shadow, but the context has none")
    identifying = [each for each in PICTURE_COLUMNS.names if each in shadow.schema.names]
    table = score_table(
        batch._replace(kept=None if batch.kept is None else batch.kept.select(identifying)),
        logits,
        context.config,
        shadow.schema.remove(len(shadow.schema) - 1),
        shadow.temperature,
        class_names=context.class_names,
        set_threshold=shadow.set_threshold,
    )
    return table.append_column(shadow.schema.field(len(table.schema)), predicted)


def _drift_sample(images: Pixels) -> Pixels:
    """Copy the images of a batch that the drift check needs, so that the others are freed."""
    return images[:: _sample_step(len(images))].copy()


def _sample_step(rows: int) -> int:
    return _SAMPLE_STEP if rows >= _LARGE_BATCH else 1


def write_shard(
    context: ShardContext,
    number: int,
    expected: int,
    results: Iterator[FileStates | ScoredRows | RejectedRows],
    folder: Path,
) -> Generator[int, None, Shard]:
    """Write the files of a shard, and the record by which a resumed job finds them.

    Args:
        context: Settings and schema of the job.
        number: Number of the shard.
        expected: Number of its input rows.
        results: Its rows, in order, and the states of their files.
        folder: Folder of the job.

    Yields:
        Numbers of input rows, as they are written.

    Returns:
        The finished shard.

    Raises:
        DataError: A row cannot be scored, and `on_error` is `stop`.
    """
    name = shard_name(number)
    path, shadow_path = folder / "rows" / name, folder / "shadow" / name
    rejects: list[RejectedRows] = []
    states = FileStates()
    with ExitStack() as files:
        shadow_file = None
        if context.shadow is not None:
            shadow_file = _open(files, shadow_path, context.shadow.schema)
        writer = RowWriter(_open(files, path, context.schema), shadow_file)
        for result in results:
            if isinstance(result, FileStates):
                states += result
                continue
            if isinstance(result, RejectedRows):
                rejects.append(require_quarantine(result, context.config))
            else:
                writer.add(result)
            yield result.rows
        writer.finish()
    quarantined = sum(each.rows for each in rejects)
    if (actual := writer.rows + quarantined) != expected:
        raise StoreError(
            f"shard {number} has {actual} of {expected} rows; this is a bug, please report it"
        )
    if rejects:
        make_durable_dir(folder / "quarantine")
        table = pa.Table.from_pylist([each._asdict() for each in rejects], schema=REJECTS)
        with atomic_write(folder / "quarantine" / name) as part:
            pq.write_table(table, part)
    fault_injection.failpoint("shard:written")
    shard = Shard(
        name=name,
        rows=writer.rows,
        written=writer.written,
        quarantined=quarantined,
        sha256=file_digest(path),
        bytes=path.stat().st_size,
        files=states,
        summary=writer.summary.as_json() if writer.summary else {},
        shadow_sha256=file_digest(shadow_path) if context.shadow else "",
    )
    write_json(_record(folder, name), shard.model_dump())
    fault_injection.failpoint("shard:done")
    return shard


def adopt_shard(shard: Shard, source: Path, folder: Path) -> None:
    """Move the files of a finished shard into the folder of its job, the record last.

    Args:
        shard: The shard.
        source: Folder in which `make_shards` or `join_parts` made it, on the same file system.
        folder: Folder of the job.
    """
    for kind in ("rows", "shadow", "quarantine"):
        made = source / kind / shard.name
        if made.exists():
            _move(made, folder / kind / shard.name)
    _move(_record(source, shard.name), _record(folder, shard.name))


def _move(source: Path, target: Path) -> None:
    make_durable_dir(target.parent)
    source.replace(target)
    fsync_dir(target.parent)


def _open(files: ExitStack, path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    """Open a writer whose file appears when the files are closed without an error."""
    return files.enter_context(parquet_writer(files.enter_context(atomic_write(path)), schema))


def require_quarantine(reject: RejectedRows, config: ScoreConfig) -> RejectedRows:
    """Return rows that cannot be scored, if the job puts them into quarantine.

    Raises:
        DataError: `on_error` is `stop`.
    """
    if config.on_error == "stop":
        raise DataError(
            f"{reject.file}, row group {reject.row_group}, row {reject.row}: {reject.reason}; "
            "fix the input, or set on_error to quarantine"
        )
    return reject


def parquet_writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    """Return a writer of scored rows."""
    # Probabilities are not compressed: their digits are nearly random, zstd would save 4 %.
    codecs = {name: "none" if name.startswith("prob_") else "zstd" for name in schema.names}
    return pq.ParquetWriter(path, schema, compression=codecs, use_dictionary=False)


class RowWriter:
    """Writes the rows of one shard.

    Args:
        file: Open Parquet writer.
        shadow: Open Parquet writer of the shadow's rows; None if the job has no shadow.

    Attributes:
        rows: Number of scored rows.
        written: Number of scored rows that passed the `where` filter.
        summary: Counts of the scored rows for the drift check; None before the first rows.
    """

    def __init__(self, file: pq.ParquetWriter, shadow: pq.ParquetWriter | None = None) -> None:
        self._buffer = _RowGroups(file)
        self._shadow = None if shadow is None else _RowGroups(shadow)
        self.rows = self.written = 0
        self.summary: Summary | None = None

    def add(self, scored: ScoredRows) -> None:
        """Add rows; they are buffered until there are enough for a row group."""
        self.rows += scored.rows
        if scored.summary is not None:
            self.summary = self.summary + scored.summary if self.summary else scored.summary
        for table in scored.tables:
            self.written += len(table)
            self._buffer.add(table)
        if self._shadow is not None:
            for table in scored.shadow:
                self._shadow.add(table)

    def finish(self) -> None:
        """Write the buffered rows."""
        self._buffer.flush()
        if self._shadow is not None:
            self._shadow.flush()


class _RowGroups:
    """Rows that are collected until there are enough for a row group."""

    def __init__(self, file: pq.ParquetWriter) -> None:
        self._file = file
        self._tables: list[pa.Table] = []
        self._rows = 0

    def add(self, table: pa.Table) -> None:
        """Add rows."""
        self._tables.append(table)
        self._rows += len(table)
        if self._rows >= ROW_GROUP:
            self.flush()

    def flush(self) -> None:
        """Write the collected rows."""
        if self._tables:
            self._file.write_table(pa.concat_tables(self._tables), row_group_size=ROW_GROUP)
            self._tables, self._rows = [], 0


def counted(
    batch: Batch, table: pa.Table, logits: Logits, energy_edges: NDArray[np.float64] | None
) -> Summary:
    """Return the counts of scored rows for the drift check, whether or not they are written."""
    energies = None if energy_edges is None else energy(logits[:: _sample_step(len(logits))])
    return summarise(
        batch.images,
        table["predicted"].to_numpy(),
        table["confidence"].to_numpy(),
        logits.shape[1],
        energies=energies,
        edges=energy_edges,
    )
