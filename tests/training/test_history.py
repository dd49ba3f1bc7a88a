"""Keras's History and its table: the conversion loses nothing in either direction."""

import threading
from datetime import UTC, datetime

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nnbuild.errors import DataError, StoreError
from nnbuild.models import seeded
from nnbuild.runtime.tensorflow import keras
from nnbuild.store import schemas
from nnbuild.store.tables import read_table, write_table
from nnbuild.training import history

AT = datetime(2026, 11, 23, 3, 0, tzinfo=UTC)
NAMES = st.text("abcdefgh_", min_size=1, max_size=8).filter(lambda name: name != history.SECONDS)


@given(st.dictionaries(NAMES, st.floats(), min_size=1, max_size=4), st.integers(1, 5))
@settings(deadline=None, max_examples=50)
def test_rows_round_trip(metrics, epochs):
    rows = [row for epoch in range(epochs) for row in history.rows(epoch + 1, metrics, 0.5, AT)]
    table = history.table(rows)
    back = history.history_of_table(table)
    assert back.keys() == metrics.keys()
    for name, value in metrics.items():
        np.testing.assert_array_equal(back[name], [value] * epochs)
    np.testing.assert_equal(history.from_json(history.as_json(rows)), rows)


@pytest.mark.parametrize("frequency", [1, 2, 3])
@seeded(0)
def test_keras_history_round_trip(frequency):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    model.compile(
        "adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"]
    )
    x, y = np.random.default_rng(0).random((20, 4)), np.arange(20) % 3
    callbacks = [keras.callbacks.ReduceLROnPlateau(patience=0, monitor="loss")]
    found = model.fit(
        x,
        y,
        epochs=5,
        verbose=0,
        validation_split=0.2,
        validation_freq=frequency,
        callbacks=callbacks,
    )
    table = history.table_of_history(found, AT, validation_freq=frequency)
    assert history.history_of_table(table) == found.history
    wide = history.wide(table)
    assert list(wide["epoch"]) == [1, 2, 3, 4, 5]
    assert wide["val_loss"].count() == 5 // frequency


def test_columns_have_descriptions():
    for schema in (*schemas.STATIC_SCHEMAS.values(), schemas.predictions(3)):
        for field in schema:
            assert field.metadata[b"description"]


def test_schema_deviation_raises():
    row = {"epoch": 1, "metric": "loss", "value": 0.5, "logged_at": AT}
    good = schemas.table_of(schemas.HISTORY, [row])
    assert schemas.validate(good, schemas.HISTORY) is good
    for bad in (
        {**row, "more": 1},
        {"epoch": 1},
        {**row, "value": "much"},
        {**row, "epoch": 2**40},
        {**row, "metric": None},
    ):
        with pytest.raises(StoreError):
            schemas.table_of(schemas.HISTORY, [bad])
    for other in (
        good.drop_columns(["value"]),
        good.select([1, 0, 2, 3]),
        good.replace_schema_metadata({}),
    ):
        with pytest.raises(StoreError):
            schemas.validate(other, schemas.HISTORY)


def test_table_replaced_during_read(tmp_path):
    """The history of a run in progress is replaced after each epoch, and may be read meanwhile."""
    path = tmp_path / "history.parquet"
    tables = [
        history.table(
            [row for epoch in range(n) for row in history.rows(epoch + 1, {"loss": 1.0}, 0.5, AT)]
        )
        for n in (1, 999)
    ]
    write_table(path, tables[0], schemas.HISTORY)
    over = threading.Event()

    def replace():
        while not over.is_set():
            for table in tables:
                write_table(path, table, schemas.HISTORY)

    writer = threading.Thread(target=replace)
    writer.start()
    try:
        reads = [read_table(path, schemas.HISTORY).num_rows for _ in range(200)]
        # On a busy machine they may all come before the first replacement.
        while writer.is_alive() and len({*reads}) < len(tables):
            reads.append(read_table(path, schemas.HISTORY).num_rows)
    finally:
        over.set()
        writer.join()
    assert {*reads} == {table.num_rows for table in tables}


def test_other_schema_version_raises():
    with pytest.raises(StoreError, match=r"here has schema version 7, expected 1"):
        schemas.require_version(
            schemas.HISTORY.with_metadata({b"nnbuild.schema_version": b"7"}), "here"
        )
    with pytest.raises(StoreError, match="version none"):
        schemas.require_version(schemas.HISTORY.remove_metadata(), "here")


@seeded(0)
def fitted(**given):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    model.compile(
        "adam",
        keras.losses.CategoricalCrossentropy(from_logits=True),
        metrics=[keras.metrics.F1Score(average=None)],
    )
    x, y = np.random.default_rng(0).random((20, 4)), np.eye(3)[np.arange(20) % 3]
    return model.fit(x, y, epochs=4, verbose=0, validation_split=0.2, **given)


@pytest.mark.parametrize("frequency", [1, 3, [1, 3], [2]])
def test_vector_history_round_trip(frequency):
    found = fitted(validation_freq=frequency)
    table = history.table_of_history(found, AT, validation_freq=frequency)
    back = history.history_of_table(table)
    assert back.keys() == found.history.keys()
    for name, values in found.history.items():
        np.testing.assert_array_equal(back[name], values)
    epochs = frequency if isinstance(frequency, list) else range(frequency, 5, frequency)
    validated = table.to_pandas().query("metric == 'val_f1_score[2]'")
    assert validated["epoch"].tolist() == list(epochs)


def test_history_unknown_epochs_raises():
    class Once(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == 2:
                logs["special"] = 1.0

    found = fitted(callbacks=[Once()])
    with pytest.raises(DataError, match="1 values of 'special' for 4 epochs"):
        history.table_of_history(found, AT)
    with pytest.raises(DataError, match=r"2 values of 'val_.*validation_freq"):
        history.table_of_history(fitted(validation_freq=2), AT)


VALUES = st.floats(allow_nan=False, width=32)
SHAPES = st.sampled_from([(), (1,), (2,), (2, 3)])


@given(st.dictionaries(NAMES, SHAPES, min_size=1, max_size=3), st.integers(1, 3), st.data())
@settings(deadline=None, max_examples=30)
def test_arrays_round_trip(shapes, epochs, data):
    metrics = [
        {
            name: np.reshape([data.draw(VALUES) for _ in range(int(np.prod(shape)))], shape)
            for name, shape in shapes.items()
        }
        for _ in range(epochs)
    ]
    rows = [
        row for epoch, each in enumerate(metrics, 1) for row in history.rows(epoch, each, 1, AT)
    ]
    back = history.history_of_table(history.table(rows))
    assert back.keys() == shapes.keys()
    for name in shapes:
        for value, each in zip(back[name], metrics, strict=True):
            np.testing.assert_array_equal(np.squeeze(value), np.squeeze(each[name]))


@pytest.mark.parametrize("value", ["much", None, [None], object()])
def test_metric_not_a_number_raises(value):
    with pytest.raises(DataError, match="metric 'loss'"):
        history.rows(1, {"loss": value}, None, AT)


def test_wide_keeps_all_nan_metric():
    rows = [
        row
        for epoch in (1, 2)
        for row in history.rows(epoch, {"loss": float("nan"), "accuracy": 0.1}, 0.5, AT)
    ]
    wide = history.wide(history.table(rows))
    assert list(wide.columns) == ["epoch", "loss", "accuracy", "epoch_seconds"]
    assert wide["loss"].isna().all()
    assert wide["accuracy"].tolist() == [0.1, 0.1]
