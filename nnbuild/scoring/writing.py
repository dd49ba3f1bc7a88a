"""From logits to a shard's file: softmax, columns and counts for drift, a batch at a time."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from nnbuild.engines import Logits
from nnbuild.evaluation.drift import Summary, summarise
from nnbuild.scoring.columns import score_table
from nnbuild.scoring.config import ScoreConfig
from nnbuild.scoring.rows import Rows

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

    def add(self, rows: Rows, logits: Logits) -> None:
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


def counted(rows: Rows, table: Any, classes: int) -> Summary:
    """What rows add to the counts for drift, whether or not they are written."""
    return summarise(
        rows.images, table["predicted"].to_numpy(), table["confidence"].to_numpy(), classes
    )
