"""Write scored rows to Parquet, in row groups of equal size."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from nnbuild.evaluation.drift import Summary
from nnbuild.scoring.batch import ScoredRows

ROW_GROUP = 65_536


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


def parquet_writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    """Return a writer of scored rows."""
    # Probabilities are not compressed: their digits are nearly random, zstd would save 4 %.
    codecs = {name: "none" if name.startswith("prob_") else "zstd" for name in schema.names}
    return pq.ParquetWriter(path, schema, compression=codecs, use_dictionary=False)
