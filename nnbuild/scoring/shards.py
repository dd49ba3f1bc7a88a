"""Make the shards of a job: output files, written atomically, with the same rows every time.

Reading, inference and writing run as overlapping stages; see `nnbuild.runtime.threads`.
"""

from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, ValidationError

from nnbuild.data.file_states import FileStates
from nnbuild.data.streams import Batch, ImageStream, InputChunk, RejectedRows
from nnbuild.engines import Engine, Logits
from nnbuild.errors import StoreError
from nnbuild.runtime import fault_injection
from nnbuild.runtime.threads import prefetch
from nnbuild.scoring.batch import ScoredRows, ShardContext, infer, require_quarantine, scored_rows
from nnbuild.scoring.pieces import read_part, split_shard
from nnbuild.scoring.row_writer import RowWriter, parquet_writer
from nnbuild.store.filesystem import (
    atomic_write,
    file_digest,
    fsync_dir,
    make_durable_dir,
    read_json,
    write_json,
)


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
    else:  # an earlier attempt may have had some, before the input was repaired
        _remove(folder / "quarantine" / name)
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
        else:
            _remove(folder / kind / shard.name)
    _move(_record(source, shard.name), _record(folder, shard.name))


def _move(source: Path, target: Path) -> None:
    make_durable_dir(target.parent)
    source.replace(target)
    fsync_dir(target.parent)


def _remove(path: Path) -> None:
    """Remove a file durably, if there is one."""
    if path.exists():
        path.unlink()
        fsync_dir(path.parent)


def _open(files: ExitStack, path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    """Open a writer whose file appears when the files are closed without an error."""
    return files.enter_context(parquet_writer(files.enter_context(atomic_write(path)), schema))
