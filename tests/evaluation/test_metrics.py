"""Test every metric against scikit-learn, Keras or its definition."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from nnbuild.errors import ContractError
from nnbuild.evaluation import calibration_bins, calibration_error, confusion_counts, evaluate
from nnbuild.logits import softmax
from nnbuild.runtime.tensorflow import keras


def drawn(seed, *, rows=200, classes=5, spread=3.0):
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, rows).astype(np.int16)
    logits = random.normal(0, spread, (rows, classes)).astype(np.float32)
    logits[np.arange(rows), labels] += 1.5
    return logits, labels


def overall(logits, labels, classes=5):
    return {
        figure.metric: figure.value
        for figure in evaluate(logits, labels, classes)
        if figure.label is None
    }


@given(st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=20)
def test_metrics_equal_sklearn_and_keras(seed):
    logits, labels = drawn(seed)
    found = overall(logits, labels)
    probabilities = softmax(logits.astype(np.float64))
    predicted = logits.argmax(axis=1)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)(labels, logits)
    assert found["loss"] == pytest.approx(float(loss), rel=1e-5)
    assert found["loss"] == pytest.approx(
        metrics.log_loss(labels, probabilities, labels=range(5)), rel=1e-9
    )
    assert found["accuracy"] == metrics.accuracy_score(labels, predicted)
    assert found["top_2_accuracy"] == metrics.top_k_accuracy_score(
        labels, logits, k=2, labels=range(5)
    )
    one_hot = np.eye(5)[labels]
    assert found["brier_score"] == pytest.approx(
        ((probabilities - one_hot) ** 2).sum(axis=1).mean()
    )
    expected = metrics.precision_recall_fscore_support(
        labels, predicted, labels=range(5), zero_division=0
    )
    for name, values in zip(("precision", "recall", "f1", "support"), expected, strict=True):
        by_class = [figure.value for figure in evaluate(logits, labels, 5) if figure.metric == name]
        assert by_class == pytest.approx(list(values))
    assert np.array_equal(
        confusion_counts(labels, predicted, 5),
        metrics.confusion_matrix(labels, predicted, labels=range(5)),
    )


@given(st.integers(0, 2**32 - 1), st.floats(0.1, 20))
@settings(deadline=None, max_examples=20)
def test_calibration_error_by_definition(seed, spread):
    logits, labels = drawn(seed, spread=spread)
    probabilities = softmax(logits)
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    expected = 0.0
    for index in range(15):
        inside = (confidence > index / 15) & (confidence <= (index + 1) / 15)
        if inside.any():
            expected += inside.mean() * abs(
                confidence[inside].mean(dtype=np.float64) - right[inside].mean()
            )
    assert calibration_error(probabilities, labels) == pytest.approx(expected, abs=1e-6)
    bins = calibration_bins(probabilities, labels)
    assert sum(each.count for each in bins) == len(labels)
    assert [each.bin_lower for each in bins[1:]] == [each.bin_upper for each in bins[:-1]]
    for each in bins:
        assert (each.count == 0) == (each.accuracy is None) == (each.mean_confidence is None)


def test_confusion_counts_many_classes():
    """The number of a cell exceeds what the type of the labels can hold."""
    labels = np.array([199, 199, 170, 0], np.int16)
    predicted = np.array([199, 0, 199, 199], np.int16)
    counts = confusion_counts(labels, predicted, 200)
    assert (counts.dtype, counts.shape) == (np.int64, (200, 200))
    assert np.argwhere(counts).tolist() == [[0, 199], [170, 199], [199, 0], [199, 199]]


def test_calibration_bins_have_their_upper_bound():
    confidence = np.array([0.5, 0.5 + 2**-40, 0.75, 0.75 + 2**-40, 1.0])
    probabilities = np.stack([confidence, 1 - confidence], axis=1)
    bins = calibration_bins(probabilities, np.zeros(5, np.int16), bins=4)
    assert [(each.bin_lower, each.bin_upper) for each in bins] == [
        (0.0, 0.25),
        (0.25, 0.5),
        (0.5, 0.75),
        (0.75, 1.0),
    ]
    assert [each.count for each in bins] == [0, 1, 2, 2]


def test_metrics_unseen_class_is_zero():
    logits = np.zeros((4, 3), np.float32)
    logits[:, 0] = 2
    labels = np.array([0, 0, 1, 1], np.int16)
    by_class = {
        (figure.metric, figure.label): figure.value for figure in evaluate(logits, labels, 3)
    }
    assert by_class["precision", 1] == by_class["recall", 1] == by_class["f1", 1] == 0.0
    assert by_class["support", 2] == by_class["recall", 2] == 0.0
    assert all(np.isfinite(value) for value in by_class.values())


def test_evaluate_probabilities_is_refused():
    logits, labels = drawn(0)
    with pytest.raises(ContractError, match="they are probabilities"):
        evaluate(softmax(logits), labels, 5)
