"""Convert an Arrow column of labels to the class numbers of a model."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nnbuild.data.arrow_images import is_text
from nnbuild.data.split_table import column_values

_MAX_LABEL, _MAX_INT64 = np.iinfo(np.int16).max, np.iinfo(np.int64).max


def class_numbers(labels: pa.ChunkedArray, names: Sequence[str]) -> pa.ChunkedArray:
    """Convert labels to class numbers, int16; null for labels that are not a class.

    Args:
        labels: Integers or strings.
        names: Class names of the model; if all are numbers, integers are looked up as names.
    """
    if is_text(labels.type):
        texts = pc.utf8_normalize(labels.cast(pa.string()), "NFC")
        return pc.index_in(texts, value_set=pa.array(names, pa.string())).cast(pa.int16())
    if (numbers_in_names := _numbers_in(tuple(names))) is not None:
        numbers = labels.cast(pa.int64(), safe=False)
        return pc.index_in(numbers, value_set=numbers_in_names).cast(pa.int16())
    if labels.type == pa.int16() and (column_values(labels, np.int16) >= 0).all():  # as a rule
        return labels
    bounds = pc.min_max(labels).as_py()
    if (bounds["min"] or 0) >= 0 and (bounds["max"] or 0) <= _MAX_LABEL:
        return labels.cast(pa.int16())
    numbers = labels.cast(pa.int64(), safe=False)  # larger values become negative
    known = pc.and_(pc.greater_equal(numbers, 0), pc.less_equal(numbers, _MAX_LABEL))
    return pc.if_else(known, numbers, pa.scalar(None, pa.int64())).cast(pa.int16())


@lru_cache(maxsize=4)
def _numbers_in(names: tuple[str, ...]) -> pa.Array | None:
    """Return the integers that the names are; None if they are not, or if they are 0, 1, 2, …."""
    if not all(name.isdecimal() and name.isascii() for name in names):
        return None
    values = [int(name) for name in names]
    if values == list(range(len(values))) or max(values) > _MAX_INT64:
        return None
    return pa.array(values, pa.int64())
