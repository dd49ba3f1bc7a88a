"""Divide shards into parts, and read the rows of a part in batches.

Batches depend on the shard alone, so that one process, several, and Dask give a model the same
ones: the last digits of logits can depend on the images that are scored together.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from nnbuild.data.file_states import FileStates
from nnbuild.data.streams import (
    Batch,
    ImageStream,
    InputChunk,
    RejectedRows,
    Rows,
    pictures_per_batch,
)


class Piece(NamedTuple):
    """Rows of one chunk.

    Attributes:
        chunk: The chunk.
        rows: Rows of it.
    """

    chunk: InputChunk
    rows: Rows

    @property
    def numbers(self) -> range:
        """Return the numbers of its rows in the whole input."""
        return self.chunk.numbers[self.rows.start : self.rows.stop]


def split_shard(chunks: Sequence[InputChunk], part_rows: int) -> list[list[Piece]]:
    """Divide the chunks of a shard into parts.

    Args:
        chunks: Chunks of the shard.
        part_rows: Maximum number of rows in a part; see `ImageStream.part_rows`.

    Returns:
        The pieces of each part, in order.
    """
    parts: list[list[Piece]] = []
    filled = part_rows
    for chunk in chunks:
        for start in range(0, chunk.rows, part_rows):
            stop = min(start + part_rows, chunk.rows)
            if filled + stop - start > part_rows:
                parts.append([])
                filled = 0
            parts[-1].append(Piece(chunk, Rows(start, stop)))
            filled += stop - start
    return parts


def read_part(
    source: ImageStream, pieces: Sequence[Piece], batch_rows: int
) -> Iterator[FileStates | Batch | RejectedRows]:
    """Yield the state of the files of a part, then its rows.

    Small batches, as of small files, are put together.

    Args:
        source: The input.
        pieces: Pieces of the part.
        batch_rows: Maximum number of rows in a batch.
    """
    yield source.states(piece.numbers for piece in pieces)
    found = (each for piece in pieces for each in source.read(piece.chunk, batch_rows, piece.rows))
    yield from _together(found, batch_rows)


def _together(
    found: Iterable[Batch | RejectedRows], batch_rows: int
) -> Iterator[Batch | RejectedRows]:
    waiting: list[Batch] = []
    rows = 0
    for each in found:
        if isinstance(each, RejectedRows):
            yield from _joined(waiting)
            yield each
            waiting, rows = [], 0
            continue
        most = min(batch_rows, pictures_per_batch(each.images.shape[1:]))
        if rows + len(each.images) > most or not all(map(_are_alike, waiting[:1], [each])):
            yield from _joined(waiting)
            waiting, rows = [], 0
        waiting.append(each)
        rows += len(each.images)
        if rows >= most:
            yield from _joined(waiting)
            waiting, rows = [], 0
    yield from _joined(waiting)


def _are_alike(one: Batch, other: Batch) -> bool:
    """Return whether two batches have the same of what a batch can lack."""
    return [each is None for each in one] == [each is None for each in other]


def _joined(batches: Sequence[Batch]) -> Iterator[Batch]:
    """Yield batches as one, if there are any."""
    if len(batches) < 2:
        yield from batches
        return
    images, ids, labels, kept, keys = zip(*batches, strict=True)
    yield Batch(
        np.concatenate(images),
        np.concatenate(ids),
        None if labels[0] is None else pa.concat_arrays(labels),
        None if kept[0] is None else pa.concat_tables(kept).combine_chunks(),
        None if keys[0] is None else pa.concat_arrays(keys),
    )
