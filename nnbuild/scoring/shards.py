"""Shards: the files of a job's output. Each stands whole or not at all, and is made from the same rows every time."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, ValidationError

from nnbuild.engines import Engine, Logits, Pixels
from nnbuild.errors import DataError, StoreError
from nnbuild.evaluation.drift import Summary, summarise
from nnbuild.logits import check_logits
from nnbuild.runtime import fault_injection
from nnbuild.scoring.config import ScoreConfig
from nnbuild.scoring.inputs import Input
from nnbuild.scoring.prefetch import prefetch
from nnbuild.scoring.table import Batch, InputChunk, RejectedRows, score_table
from nnbuild.store.filesystem import (
    atomic_write,
    file_digest,
    make_durable_dir,
    read_json,
    write_json,
)

ROW_GROUP = 65_536


def parquet_writer(path: Path, schema: Any) -> Any:
    """A writer of rows; probabilities as they are, since their digits are as good as random: zstd would save 4 %."""
    codecs = {name: "none" if name.startswith("prob_") else "zstd" for name in schema.names}
    return pq.ParquetWriter(path, schema, compression=codecs, use_dictionary=False)


class RowWriter:
    """Writes the rows of one shard.

    Args:
        file: an open writer.
        config: of the job.
        schema: of the rows.
        temperature: the logits are divided by it.
        where: keeps the rows for which it is true; None keeps all.

    Attributes:
        rows: that were scored.
        written: of these, those that `where` kept.
        summary: counts of what was scored, for drift; None before the first rows.
    """

    def __init__(
        self, file: Any, config: ScoreConfig, schema: Any, temperature: float, where: Any
    ) -> None:
        self._file, self._config, self._schema, self._temperature = (
            file,
            config,
            schema,
            temperature,
        )
        self._where = where
        self.rows = self.written = 0
        self.summary: Summary | None = None
        self._tables: list[Any] = []

    def add(self, rows: Batch, logits: Logits) -> None:
        """Write some rows, at the latest when the writer is finished.

        Args:
            rows: with those of their images that are looked at for drift.
            logits: float32, shape (n, classes), of all of them.
        """
        table = score_table(rows, logits, self._config, self._schema, self._temperature)
        counts = counted(rows, table, logits.shape[1])
        self.summary = self.summary + counts if self.summary else counts
        self.rows += len(table)
        kept = table.filter(self._where) if self._where is not None else table
        self.written += len(kept)
        self._tables.append(kept)
        if sum(map(len, self._tables)) >= ROW_GROUP:
            self._flush()

    def finish(self) -> None:
        """Write what still waits."""
        if self._tables:
            self._flush()

    def _flush(self) -> None:
        self._file.write_table(pa.concat_tables(self._tables), row_group_size=ROW_GROUP)
        self._tables = []


def counted(rows: Batch, table: Any, classes: int) -> Summary:
    """What rows add to the counts for drift, whether or not they are written."""
    return summarise(
        rows.images, table["predicted"].to_numpy(), table["confidence"].to_numpy(), classes
    )


_MANY, _EVERY = 1024, 8  # of so large a batch, each eighth image is looked at for drift
REJECTS = pa.schema(
    [
        pa.field("file", pa.string(), nullable=False, metadata={"description": "Of the input"}),
        pa.field(
            "row_group", pa.int32(), nullable=False, metadata={"description": "In the file, from 0"}
        ),
        pa.field(
            "row",
            pa.int64(),
            nullable=False,
            metadata={"description": "The first row, in the file, from 0"},
        ),
        pa.field("rows", pa.int64(), nullable=False, metadata={"description": "How many"}),
        pa.field(
            "reason",
            pa.string(),
            nullable=False,
            metadata={"description": "Why they were not scored"},
        ),
        pa.field(
            "path",
            pa.string(),
            metadata={"description": "Of a picture, below the input; null for other inputs"},
        ),
    ]
)


class Shard(BaseModel):
    """One file of the output, as it was finished.

    Attributes:
        rows: that were scored.
        written: of these, those that `where` kept.
        quarantined: that could not be scored.
        sha256: of the file.
        bytes: of the file.
        summary: counts of what was scored, by `nnbuild.evaluation.drift.Summary.as_json`; empty if nothing was.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    rows: int
    written: int
    quarantined: int
    sha256: str
    bytes: int
    summary: dict[str, list[int]] = {}


class ShardContext(NamedTuple):
    """What making shards takes.

    Attributes:
        config: of the job.
        source: the input.
        engine: makes the engine, when there is something to score.
        classes: of the model.
        schema: of the rows.
        temperature: the logits are divided by it.
        where: keeps the rows for which it is true; None keeps all.
    """

    config: ScoreConfig
    source: Input
    engine: Callable[[], Engine]
    classes: int
    schema: Any
    temperature: float
    where: Any


def plan(chunks: Sequence[InputChunk], shard_rows: int) -> list[list[InputChunk]]:
    """Units one after the other, until a shard has enough rows; without units one empty shard."""
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
    """The file of a shard."""
    return f"part-{number:05d}.parquet"


def finished(folder: Path, number: int) -> Shard | None:
    """A shard that an earlier process has finished, if its file is still what it was."""
    record = folder / "done" / f"{number:05d}.json"
    if not record.exists():
        return None
    try:
        shard = Shard.model_validate(read_json(record))
    except (ValidationError, StoreError):
        return None
    path = folder / "rows" / shard.name
    return shard if path.is_file() and file_digest(path) == shard.sha256 else None


def make_shards(
    work: ShardContext, todo: Sequence[tuple[int, list[InputChunk]]], folder: Path
) -> Iterator[int | Shard]:
    """Score the units of some shards. Reading, inference and writing overlap, a few batches ahead of each other.

    Args:
        work: what it takes.
        todo: number and units of each shard.
        folder: where `rows/`, `quarantine/` and `done/` are.

    Yields:
        How many rows of the input were gone through, again and again; and each shard when it is finished.

    Raises:
        DataError: a row cannot be scored, and the job is to stop there.
        ContractError: what comes out of the model is no logits, or not finite.
    """
    if not todo:
        return
    # Not in a stage: a signal interrupts the import of a library here, and waits for it there.
    engine = work.engine()
    pieces = prefetch(_inferred(engine, work.classes, prefetch(_read(work, todo))))
    current = next(pieces, None)
    for number, chunks in todo:
        of_shard: list[Any] = []

        def mine(number: int = number) -> Iterator[Any]:
            nonlocal current
            while current is not None and current[0] == number:
                yield current[1]
                current = next(pieces, None)

        yield from _write(work, number, mine(), folder, of_shard)
        if (seen := of_shard[0].rows + of_shard[0].quarantined) != (
            expected := sum(chunk.rows for chunk in chunks)
        ):
            raise StoreError(
                f"shard {number} has {seen} of {expected} rows; this is a bug, please report it"
            )
        yield of_shard[0]


def _read(
    work: ShardContext, todo: Sequence[tuple[int, list[InputChunk]]]
) -> Iterator[tuple[int, Any]]:
    for number, chunks in todo:
        for chunk in chunks:
            for piece in work.source.read(chunk, work.config.batch_size):
                yield number, piece


def _inferred(
    engine: Engine, classes: int, pieces: Iterable[tuple[int, Any]]
) -> Iterator[tuple[int, Any]]:
    for number, piece in pieces:
        if isinstance(piece, RejectedRows):
            yield number, piece
        else:
            first = int(piece.example_ids[0])
            logits = check_logits(engine.logits(piece.images), classes, first_row=first)
            yield number, (piece._replace(images=_looked_at(piece.images)), logits)


def _looked_at(images: Pixels) -> Pixels:
    """Those of a batch's images that are looked at for drift; a copy, so that the batch's memory is let go."""
    return images[:: _EVERY if len(images) >= _MANY else 1].copy()


def _write(
    work: ShardContext, number: int, pieces: Iterator[Any], folder: Path, made: list[Shard]
) -> Iterator[int]:
    name = shard_name(number)
    path = folder / "rows" / name
    rejects: list[RejectedRows] = []
    with atomic_write(path) as aside, parquet_writer(aside, work.schema) as file:
        rows = RowWriter(file, work.config, work.schema, work.temperature, work.where)
        for piece in pieces:
            if isinstance(piece, RejectedRows):
                rejects.append(_allowed(piece, work.config))
                yield piece.rows
            else:
                rows.add(*piece)
                yield len(piece[1])
        rows.finish()
    if rejects:
        make_durable_dir(folder / "quarantine")
        with atomic_write(folder / "quarantine" / name) as aside:
            pq.write_table(
                pa.Table.from_pylist([each._asdict() for each in rejects], schema=REJECTS), aside
            )
    fault_injection.failpoint("shard:written")
    quarantined = sum(each.rows for each in rejects)
    shard = Shard(
        name=name,
        rows=rows.rows,
        written=rows.written,
        quarantined=quarantined,
        sha256=file_digest(path),
        bytes=path.stat().st_size,
        summary=rows.summary.as_json() if rows.summary else {},
    )
    write_json(folder / "done" / f"{number:05d}.json", shard.model_dump())
    fault_injection.failpoint("shard:done")
    made.append(shard)


def _allowed(reject: RejectedRows, config: ScoreConfig) -> RejectedRows:
    if config.on_error == "stop":
        raise DataError(
            f"{reject.file}, row group {reject.row_group}, row {reject.row}: {reject.reason}; "
            "mend the input, or give --on-error quarantine"
        )
    return reject
