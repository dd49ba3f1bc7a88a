"""Convert Keras's History to a table with a row for each epoch and metric, and back."""

import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from nnbuild.errors import DataError
from nnbuild.store import schemas

if TYPE_CHECKING:
    import pandas as pd

SECONDS = "epoch_seconds"
Row = dict[str, Any]
_ELEMENT = re.compile(r"(?P<name>.+)\[(?P<index>\d+(?:,\d+)*)\]", re.DOTALL | re.ASCII)


def rows(epoch: int, metrics: Mapping[str, Any], seconds: float | None, at: datetime) -> list[Row]:
    """Return the rows of one epoch.

    Args:
        epoch: Number of the epoch, from 1.
        metrics: Values at the end of the epoch, by Keras's keys. An array of several values, such
            as an F1 score by class, has a row for each: `f1_score[0]`, `f1_score[1]`.
        seconds: Duration of the epoch, if it is known.
        at: Aware time of the end of the epoch.

    Raises:
        DataError: A value is not a number.
    """
    timed = metrics if seconds is None else {**metrics, SECONDS: seconds}
    return [
        {"epoch": epoch, "metric": key, "value": number, "logged_at": at}
        for name, value in timed.items()
        for key, number in _numbers(name, value)
    ]


def _numbers(name: str, value: Any) -> Iterator[tuple[str, float]]:
    if isinstance(value, (float, int)):
        yield name, float(value)
        return
    array = np.asarray(value)
    if array.dtype.kind not in "fiub":
        raise DataError(f"metric {name!r} is {value!r}, expected a number or an array of numbers")
    if array.size == 1:
        yield name, float(array.item())
        return
    for index, number in np.ndenumerate(array):
        yield f"{name}[{','.join(map(str, index))}]", float(number)


def table(rows: Sequence[Row]) -> pa.Table:
    """Return rows as an Arrow table with the schema of `history`."""
    return schemas.table_of(schemas.HISTORY, rows)


def table_of_history(
    history: Any, at: datetime, *, validation_freq: int | Collection[int] = 1
) -> pa.Table:
    """Convert a Keras History, such as that of a plain `model.fit`, to a table.

    Args:
        history: Keras's History, as `fit` returns it.
        at: Aware time for the column `logged_at`.
        validation_freq: Argument of `fit`: the number of epochs between validations, or the
            validated epochs.

    Raises:
        DataError: A key has values for some epochs only, and it is not known for which; or a
            value is not a number.
    """
    all_rows: list[Row] = []
    for name, values in history.history.items():
        epochs = _epochs_of(name, len(values), history.epoch, validation_freq)
        for epoch, value in zip(epochs, values, strict=True):
            all_rows += rows(epoch, {name: value}, None, at)
    return table(sorted(all_rows, key=lambda row: int(row["epoch"])))


def _epochs_of(
    name: str, count: int, epochs: Sequence[int], validation_freq: int | Collection[int]
) -> list[int]:
    """Return the epochs, from 1, for which a key has values."""
    every = [epoch + 1 for epoch in epochs]
    if count == len(every):
        return every
    if name.startswith("val_"):
        if isinstance(validation_freq, Collection):
            validated = [epoch for epoch in every if epoch in validation_freq]
        else:
            validated = [epoch for epoch in every if epoch % max(validation_freq, 1) == 0]
        if count == len(validated):
            return validated
    raise DataError(
        f"History has {count} values of {name!r} for {len(every)} epochs, and does not say which; "
        "pass the validation_freq of fit, or remove the key"
    )


def history_of_table(table: pa.Table) -> dict[str, list[Any]]:
    """Return `History.history`: the values of each metric in the order of the epochs.

    Args:
        table: Table of one run with the schema of `history`. Its rows of the epochs' durations,
            which are not Keras's, are left out.
    """
    ordered = table.sort_by("epoch")
    history: dict[str, list[float]] = {}
    for name, value in zip(
        ordered["metric"].to_pylist(), ordered["value"].to_pylist(), strict=True
    ):
        if name != SECONDS:
            history.setdefault(name, []).append(value)
    return _with_arrays(history)


def _with_arrays(history: Mapping[str, list[float]]) -> dict[str, list[Any]]:
    """Join the values of arrays that `rows` split."""
    elements: dict[str, dict[tuple[int, ...], list[float]]] = {}
    for name, values in history.items():
        if (match := _ELEMENT.fullmatch(name)) is not None:
            index = tuple(map(int, match["index"].split(",")))
            elements.setdefault(match["name"], {})[index] = values
    arrays = {
        name: array for name, each in elements.items() if (array := _arrays(each)) is not None
    }
    joined: dict[str, list[Any]] = {}
    for name, values in history.items():
        match = _ELEMENT.fullmatch(name)
        if match is not None and match["name"] in arrays and match["name"] not in history:
            joined[match["name"]] = arrays[match["name"]]
        else:
            joined[name] = values
    return joined


def _arrays(elements: Mapping[tuple[int, ...], list[float]]) -> list[Any] | None:
    """Return an array for each epoch; None if elements are missing."""
    lengths = {len(index) for index in elements}
    epochs = {len(values) for values in elements.values()}
    shape = tuple(max(places) + 1 for places in zip(*elements, strict=False))
    if len(lengths) != 1 or len(epochs) != 1 or not 1 < len(elements) == math.prod(shape):
        return None
    stacked = np.array([elements[index] for index in np.ndindex(shape)])
    return list(stacked.T.reshape(-1, *shape))


def wide(table: pa.Table) -> "pd.DataFrame":
    """Return a table with a row for each run and epoch, and a column for each metric."""
    frame = table.to_pandas()
    index = [name for name in ("run_id", "epoch") if name in frame.columns]
    order = list(dict.fromkeys(frame["metric"]))
    # `pivot_table` would drop a metric that is always NaN, as a diverged loss can be.
    values = frame.groupby([*index, "metric"])["value"].mean().unstack("metric")  # noqa: PD010
    return values[order].reset_index()


def as_json(rows: Sequence[Row]) -> list[Row]:
    """Return rows with their times as text."""
    return [{**row, "logged_at": row["logged_at"].isoformat()} for row in rows]


def from_json(rows: Sequence[Row]) -> list[Row]:
    """Return the rows of which `as_json` returned the text."""
    return [
        {**row, "logged_at": datetime.fromisoformat(row["logged_at"]).astimezone(UTC)}
        for row in rows
    ]
