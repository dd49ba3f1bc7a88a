"""History and table: nothing is lost on the way there and back."""

import threading
from datetime import UTC, datetime

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nnbuild import history, schemas
from nnbuild.backend import keras
from nnbuild.errors import StoreError
from nnbuild.store.tables import read_table, write_table

AT = datetime(2026, 11, 23, 3, 0, tzinfo=UTC)
NAMES = st.text("abcdefgh_", min_size=1, max_size=8).filter(lambda name: name != history.SECONDS)


@given(st.dictionaries(NAMES, st.floats(), min_size=1, max_size=4), st.integers(1, 5))
@settings(deadline=None, max_examples=50)
def test_rows_and_back(metrics, epochs):
    rows = [row for epoch in range(epochs) for row in history.rows(epoch + 1, metrics, 0.5, AT)]
    table = history.table(rows)
    back = history.history_of_table(table)
    assert back.keys() == metrics.keys()
    for name, value in metrics.items():
        np.testing.assert_array_equal(back[name], [value] * epochs)
    np.testing.assert_equal(history.from_json(history.as_json(rows)), rows)


@pytest.mark.parametrize("frequency", [1, 2, 3])
def test_any_keras_history_comes_back_exactly(frequency):
    keras.utils.set_random_seed(0)
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


def test_every_column_is_described():
    for schema in (*schemas.FIXED.values(), schemas.predictions(3)):
        for field in schema:
            assert field.metadata[b"description"]


def test_the_writer_refuses_any_deviation():
    row = {"epoch": 1, "metric": "loss", "value": 0.5, "logged_at": AT}
    good = schemas.table_of(schemas.HISTORY, [row])
    assert schemas.conforming(good, schemas.HISTORY) is good
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
            schemas.conforming(other, schemas.HISTORY)


def test_a_table_that_is_replaced_while_it_is_read_is_the_one_or_the_other(tmp_path):
    """The history of a run in progress is written anew after each epoch, and people look at it."""
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
        found = {read_table(path, schemas.HISTORY).num_rows for _ in range(200)}
    finally:
        over.set()
        writer.join()
    assert found == {table.num_rows for table in tables}


def test_another_schema_version_is_refused():
    with pytest.raises(StoreError, match=r"here has schema version 7, expected 1"):
        schemas.require_version(
            schemas.HISTORY.with_metadata({b"nnbuild.schema_version": b"7"}), "here"
        )
    with pytest.raises(StoreError, match="version none"):
        schemas.require_version(schemas.HISTORY.remove_metadata(), "here")
