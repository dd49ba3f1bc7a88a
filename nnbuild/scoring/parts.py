"""Parts of shards, which processes score separately and put together to the same bytes.

A part is written as an Arrow stream with a record batch for each scored batch; unlike in an Arrow
file, each batch may have dictionaries of its own. Putting a shard together writes those batches as
a single process would have written them.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from nnbuild.data.file_states import FileStates
from nnbuild.data.streams import InputChunk, RejectedRows
from nnbuild.engines import Engine
from nnbuild.evaluation.drift import Summary
from nnbuild.scoring.batch import ScoredRows, ShardContext, infer, require_quarantine, scored_rows
from nnbuild.scoring.pieces import Piece, read_part
from nnbuild.scoring.shards import Shard, write_shard

_BUFFER_BYTES = 2**18


class Part(BaseModel):
    """A scored part of a shard.

    Attributes:
        rows: Number of scored rows.
        rejects: Rows that could not be scored.
        files: State of the files that `ImageStream.states` has, before they were read.
        summary: Counts for the drift check, from `Summary.as_json`; empty if no row was scored.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    rows: int
    rejects: list[RejectedRows]
    files: FileStates = FileStates()
    summary: dict[str, list[int]] = {}

    @property
    def input_rows(self) -> int:
        """Return the number of its input rows."""
        return self.rows + sum(each.rows for each in self.rejects)


def make_part(context: ShardContext, engine: Engine, pieces: Sequence[Piece], path: Path) -> Part:
    """Score the pieces of a part, and write the rows to a file; those of a shadow to another one.

    Args:
        context: Settings, input and schema of the job.
        engine: Engine of the model.
        pieces: Pieces of the part.
        path: File to write.

    Raises:
        DataError: A row cannot be scored, and `on_error` is `stop`.
        ContractError: The output of the model is not a finite array of logits.
    """
    rows, rejects, states = 0, list[RejectedRows](), FileStates()
    summary: Summary | None = None
    context.source.read_ahead([piece.chunk for piece in pieces])
    with ExitStack() as files:
        writers = [_open(files, path, context.schema)]
        if context.shadow is not None:
            writers.append(_open(files, _shadow_path(path), context.shadow.schema))
        for found in read_part(context.source, pieces, context.config.batch_size):
            if isinstance(found, FileStates):
                states += found
                continue
            if isinstance(found, RejectedRows):
                rejects.append(require_quarantine(found, context.config))
                continue
            scored = scored_rows(context, *infer(engine, context, found))
            rows += scored.rows
            if scored.summary is not None:
                summary = scored.summary if summary is None else summary + scored.summary
            for writer, tables in zip(writers, (scored.tables, scored.shadow), strict=False):
                for table in tables:
                    writer.write_table(table.combine_chunks())
    counts = summary.as_json() if summary else {}
    return Part(rows=rows, rejects=rejects, files=states, summary=counts)


def _open(files: ExitStack, path: Path, schema: pa.Schema) -> pa.RecordBatchStreamWriter:
    # Without a buffer each column of a batch takes several system calls.
    file = files.enter_context(
        pa.output_stream(str(path), compression=None, buffer_size=_BUFFER_BYTES)
    )
    return files.enter_context(pa.ipc.new_stream(file, schema))


def _shadow_path(path: Path) -> Path:
    """Return the file with the rows of the shadow in a part."""
    return path.with_suffix(".shadow.arrow")


def join_parts(
    context: ShardContext,
    number: int,
    chunks: Sequence[InputChunk],
    parts: Sequence[tuple[Part, Path]],
    folder: Path,
) -> Shard:
    """Put a shard together from its parts, and remove their files.

    Args:
        context: Settings and schema of the job.
        number: Number of the shard.
        chunks: Its input chunks.
        parts: Its parts in order, with their files.
        folder: Folder in which the shard is made.
    """
    writing = write_shard(
        context, number, sum(chunk.rows for chunk in chunks), _rows_of(parts), folder
    )
    while True:
        try:
            next(writing)
        except StopIteration as finished:
            shard: Shard = finished.value
            break
    for _, path in parts:
        path.unlink()
        _shadow_path(path).unlink(missing_ok=True)
    return shard


def _rows_of(
    parts: Sequence[tuple[Part, Path]],
) -> Iterator[FileStates | ScoredRows | RejectedRows]:
    for part, path in parts:
        yield part.files
        yield from part.rejects
        summary = Summary.from_json(part.summary) if part.summary else None
        shadow = _shadow_path(path)
        tables = _tables(shadow) if shadow.exists() else []
        yield ScoredRows(_tables(path), part.rows, summary, tables)


def _tables(path: Path) -> list[pa.Table]:
    """Return the scored batches in a file; the tables refer to its content, mapped into memory."""
    with pa.memory_map(str(path)) as source:
        return [pa.Table.from_batches([each]) for each in pa.ipc.open_stream(source)]
