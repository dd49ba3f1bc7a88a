"""From logits to the probability table: the contract of every row, for any batch size."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from nnbuild.data.dataset import Split
from nnbuild.engines import KerasEngine
from nnbuild.errors import ConfigError, ContractError
from nnbuild.logits import log_softmax, softmax
from nnbuild.models import seeded
from nnbuild.runtime.tensorflow import keras
from nnbuild.scoring import logits_of, probability_table, write_predictions
from nnbuild.scoring.config import ScoreConfig
from nnbuild.scoring.table import score_schema
from nnbuild.store import schemas

LOGITS = arrays.arrays(
    np.float32,
    st.tuples(st.integers(1, 20), st.integers(2, 6)),
    elements=st.floats(-1e4, 1e4, width=32),
)


@given(LOGITS, st.integers(0, 2**40))
@settings(deadline=None, max_examples=40)
def test_every_row_keeps_the_contract(logits, first):
    table = probability_table(logits, None, first_row=first)
    classes = logits.shape[1]
    assert table.schema.equals(schemas.predictions(classes), check_metadata=True)
    probabilities = np.stack(
        [table[f"prob_{label}"].to_numpy() for label in range(classes)], axis=1
    )
    predicted = table["predicted"].to_numpy()
    rows = np.arange(len(logits))
    assert np.abs(probabilities.sum(axis=1, dtype=np.float64) - 1).max() < 1e-6
    assert np.array_equal(predicted, logits.argmax(axis=1))
    assert np.array_equal(table["confidence"].to_numpy(), probabilities[rows, predicted])
    assert np.isfinite(table["log_prob"].to_numpy()).all()
    assert np.array_equal(table["log_prob"].to_numpy(), log_softmax(logits)[rows, predicted])
    assert np.array_equal(table["example_id"].to_numpy(), first + rows)
    assert table["label"].null_count == len(logits)


@seeded(0)
def engine(batch_size, bias=0.0):
    head = keras.layers.Dense(3, bias_initializer=keras.initializers.Constant(bias))
    model = keras.Sequential([keras.Input((4, 4, 1), dtype="uint8"), keras.layers.Flatten(), head])
    return KerasEngine(model, batch_size)


def split(rows=50):
    random = np.random.default_rng(0)
    return Split(
        random.integers(0, 256, (rows, 4, 4, 1), np.uint8), (np.arange(rows) % 3).astype(np.int16)
    )


@pytest.mark.parametrize("batch_size", [1, 7, 50, 64])
def test_predictions_are_softmax_of_logits(tmp_path, batch_size):
    path = tmp_path / "predictions.parquet"
    assert write_predictions(path, engine(batch_size), split(), 3, batch_size) == 50
    logits = logits_of(engine(50), split(), 3, 50)
    table = pq.read_table(path)
    assert np.array_equal(table["example_id"].to_numpy(), np.arange(50))
    assert np.array_equal(table["label"].to_numpy(), split().labels)
    found = np.stack([table[f"prob_{label}"].to_numpy() for label in range(3)], axis=1)
    np.testing.assert_allclose(found, softmax(logits), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("top_k", [1, 3])
def test_top_k_of_all_classes_is_allowed(top_k):
    schema = score_schema(ScoreConfig(input="in", top_k=top_k), 3, pa.schema([]))
    assert f"top_{top_k}" in schema.names
    assert f"top_{top_k + 1}" not in schema.names


def test_top_k_above_the_classes_is_refused():
    with pytest.raises(ConfigError, match="top_k is 4, expected at most 3"):
        score_schema(ScoreConfig(input="in", top_k=4), 3, pa.schema([]))


def test_nan_logits_leave_no_file(tmp_path):
    path = tmp_path / "predictions.parquet"
    with pytest.raises(ContractError, match=r"rows 0, 1, 2"):
        write_predictions(path, engine(16, np.nan), split(), 3, 16)
    assert list(tmp_path.iterdir()) == []
