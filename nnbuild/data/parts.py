"""Join the parts of a dataset, such as the days of a dated source."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from nnbuild.data import pixels
from nnbuild.data.dataset import Dataset, Split
from nnbuild.data.labels import by_value, require_names
from nnbuild.errors import DataError


def join_parts(parts: Sequence[Dataset], *, name: str, source: str) -> Dataset:
    """Join the parts of a dataset, in order; classes are the same if they have the same name.

    Args:
        parts: The parts; each may lack classes and splits.
        name: Name of the dataset.
        source: Description of its origin, also for messages.

    Raises:
        DataError: The parts have images of different sizes, a single class, or no image to train or
            to test on.
    """
    shapes = {part.image_shape: part for part in parts}
    if len(shapes) > 1:
        (shape, part), (other_shape, other) = list(shapes.items())[:2]
        raise DataError(
            f"images of height, width, channels {shape} in {part.source} and {other_shape} in "
            f"{other.source}; expected one size"
        )
    class_names = _classes_of(parts)
    require_names(class_names, source)
    splits = {
        kind: Split(
            pixels.concatenate([part.splits[kind].images for part in parts if kind in part.splits]),
            np.concatenate([_labels(part, kind, class_names) for part in parts]),
            _kept([part.splits[kind] for part in parts if kind in part.splits]),
        )
        for kind in ("train", "test", "validation")
        if any(kind in part.splits for part in parts)
    }
    for kind in ("train", "test"):
        if not len(splits[kind]):
            count = sum(len(split) for split in splits.values())
            raise DataError(
                f"{source}: none of its {count} images is in the {kind} split; add images, or give "
                "a test split"
            )
    lost = np.setdiff1d(splits["test"].labels, splits["train"].labels)
    if len(lost):
        raise DataError(
            f"{source}: no training image has the label {class_names[lost[0]]} of the test split; "
            "add images of it"
        )
    return Dataset(
        name,
        splits["train"],
        splits["test"],
        class_names,
        source,
        splits.get("validation"),
        held_out=all(part.held_out for part in parts),
    )


def _kept(splits: Sequence[Split]) -> pa.Table | None:
    """Join the kept columns, which are the same in all parts of a source."""
    tables = [each.kept for each in splits if each.kept is not None]
    return pa.concat_tables(tables) if tables else None


def _classes_of(parts: Sequence[Dataset]) -> tuple[str, ...]:
    """Return the names of all classes: in the order of the parts if all have the same."""
    if len({part.class_names for part in parts}) == 1:
        return parts[0].class_names
    return tuple(sorted({name for part in parts for name in part.class_names}, key=by_value))


def _labels(part: Dataset, kind: str, class_names: Sequence[str]) -> NDArray[np.int16]:
    """Return the labels of a split of a part as numbers of the classes of the whole dataset."""
    if kind not in part.splits:
        return np.empty(0, np.int16)
    numbers = {name: number for number, name in enumerate(class_names)}
    table = np.array([numbers[each] for each in part.class_names], np.int16)
    return table[part.splits[kind].labels]
