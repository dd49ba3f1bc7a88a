"""Read what the statistics of a Parquet file say about the values of a column."""

import pyarrow.parquet as pq


def is_unit_range(metadata: pq.FileMetaData, column: str) -> bool:
    """Return whether statistics prove a range of 0 to 1 of floats, and not only zeros.

    Args:
        metadata: Metadata of the file.
        column: Name of the column, which may be nested.
    """
    highest = 0.0
    for group in range(metadata.num_row_groups):
        chunks = metadata.row_group(group)
        for index in range(chunks.num_columns):
            chunk = chunks.column(index)
            if chunk.path_in_schema != column and not chunk.path_in_schema.startswith(f"{column}."):
                continue
            statistics = chunk.statistics
            if statistics is None or not statistics.has_min_max:
                return False
            if not isinstance(statistics.max, float):  # the limits of float16 are bytes
                return False
            if not 0 <= statistics.min <= statistics.max <= 1:
                return False
            highest = max(highest, statistics.max)
    return highest > 0


def largest_integer(group: pq.RowGroupMetaData, column: str) -> int | None:
    """Return the largest value of a column of integers in a row group; None if it is unknown."""
    for number in range(group.num_columns):
        chunk = group.column(number)
        if chunk.path_in_schema == column and chunk.is_stats_set:
            largest = chunk.statistics.max if chunk.statistics.has_min_max else None
            return largest if isinstance(largest, int) else None
    return None
