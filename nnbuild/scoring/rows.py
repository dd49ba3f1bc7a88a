"""What passes from an input to the engine."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nnbuild.engines import Pixels


class Unit(NamedTuple):
    """A part of an input that is read alone, such as a row group.

    Attributes:
        file: number of the file.
        group: number of the row group in it.
        first: number of its first row in the whole input.
        rows: how many there are.
    """

    file: int
    group: int
    first: int
    rows: int


class Columns(NamedTuple):
    """Which columns of the input are wanted.

    Attributes:
        example_id: the one that identifies a row; the row's number if not given.
        keep: those that are carried through.
        all_or_nothing: Whether a row that cannot be scored stops the job.
        image: The images; the usual names are tried if not given.
        label: The labels; the same.
    """

    example_id: str | None = None
    keep: tuple[str, ...] = ()
    all_or_nothing: bool = False
    image: str | None = None
    label: str | None = None


class Rows(NamedTuple):
    """Some rows of an input.

    Attributes:
        images: uint8, shape (n, height, width, channels); behind the network, only those that are looked at for drift.
        example_ids: int64, shape (n,).
        labels: int16 Arrow array with nulls, if the input has labels.
        kept: an Arrow table of the columns that are carried through.
    """

    images: Pixels
    example_ids: NDArray[np.int64]
    labels: Any
    kept: Any


class Reject(NamedTuple):
    """Rows that cannot be scored, and why.

    Attributes:
        file: path or URL.
        row_group: in the file.
        row: the first one's number in the file; -1 for all of the row group.
        rows: how many.
        reason: on one line.
        path: POSIX path of a picture below the folder that is scored; None for other inputs.
    """

    file: str
    row_group: int
    row: int
    rows: int
    reason: str
    path: str | None = None
