"""Input of a report without a run, for any number of classes, epochs and images."""

from datetime import UTC, datetime

import numpy as np

from nnbuild import evaluation, scoring
from nnbuild.logits import softmax
from nnbuild.store import schemas
from nnbuild.store.manifests import parse_manifest
from nnbuild.store.step_results import Decided
from nnbuild.training import history

AT = datetime(2026, 1, 1, tzinfo=UTC)


def made(
    *,
    classes=10,
    images=120,
    shape=(8, 8, 1),
    epochs=3,
    metrics=("loss", "accuracy"),
    validation_freq=1,
    names=None,
    scale=4.0,
    lean=2.0,
    seed=0,
):
    """Return manifest, tables and images like those of a run, with random logits.

    Args:
        classes: Number of classes.
        images: Number of test images.
        shape: Height, width and channels.
        epochs: Number of epochs.
        metrics: Names of the metrics in the history.
        validation_freq: Epochs between two validations.
        names: Class names; numbers by default.
        scale: Standard deviation of the logits.
        lean: Bias of the logits to the true class, in units of the scale.
        seed: Seed of the logits and pixels.
    """
    random = np.random.default_rng(seed)
    labels = (np.arange(images) % classes).astype(np.int16)
    logits = random.normal(0, scale, (images, classes)).astype(np.float32)
    logits[np.arange(images), labels] += lean * scale
    pixels = random.integers(0, 256, (images, *shape), dtype=np.uint8)
    manifest = _manifest(
        classes, shape, epochs, images, names or [str(each) for each in range(classes)]
    )
    return (
        manifest,
        _tables(logits, labels, classes, _history(epochs, metrics, validation_freq)),
        pixels,
    )


def _history(epochs, metrics, validation_freq):
    rows = []
    for epoch in range(1, epochs + 1):
        values = {name: 1 / epoch if name.endswith("loss") else 1 - 0.5 / epoch for name in metrics}
        if epoch % validation_freq == 0:
            values |= {f"val_{name}": 1.1 * values[name] for name in metrics}
        rows += history.rows(epoch, {**values, "learning_rate": 0.001 * 0.9**epoch}, 1.5, AT)
    return history.table(rows)


def _tables(logits, labels, classes, curves):
    figures = evaluation.evaluate(logits, labels, classes)
    counts = evaluation.confusion_counts(labels, logits.argmax(axis=1), classes)
    of_test = {"subset": "test"}
    rows = {
        "evaluation": [of_test | figure._asdict() for figure in figures],
        "confusion": [
            of_test | {"label": label, "predicted": predicted, "count": int(count)}
            for (label, predicted), count in np.ndenumerate(counts)
        ],
        "calibration": [
            row for temperature in (1.0, 1.5) for row in _bins(logits, labels, temperature)
        ],
    }
    return {
        "history": curves,
        "predictions": scoring.probability_table(logits, labels),
        **{
            name: schemas.table_of(schemas.STATIC_SCHEMAS[name], found)
            for name, found in rows.items()
        },
    }


def _bins(logits, labels, temperature):
    probabilities = softmax(logits, temperature=temperature)
    error = evaluation.calibration_error(probabilities, labels)
    about = {"subset": "test", "temperature": temperature, "expected_calibration_error": error}
    return [about | each._asdict() for each in evaluation.calibration_bins(probabilities, labels)]


def _manifest(classes, shape, epochs, images, names):
    digest = "ab" * 32
    value = {
        "run_id": "20260101T000000000Z-abcdef",
        "row": _row(epochs, digest),
        "config": {
            "dataset": {"name": "mnist", "fallback": "digits"},
            "training": {
                "epochs": epochs,
                "metrics": ["accuracy"],
                "validation_fraction": 0.2,
                "lr_schedule": None,
            },
            "seed": 17,
        },
        "config_digest": digest,
        "steps": {
            "load_data": {
                "files": {"dataset/test.parquet": digest},
                "name": "mnist",
                "digest": digest,
                "source": "/data",
                "folder": "datasets/mnist",
                "image_shape": list(shape),
                "classes": classes,
                "class_names": [str(each) for each in range(classes)],
                "train": 4 * images,
                "test": images,
            },
            "check_data": {
                "files": {},
                "checks": [_check("counts", passed=True), _check("balance", passed=False)],
            },
            "build_model": {"files": {}, "path": "model/built.keras", "parameters": 34_826},
            "fit_model": {
                "files": {"model/model.keras": digest},
                "path": "model/model.keras",
                "seconds": 8.0,
                "identity": {},
                "epochs": epochs,
                "weights_epoch": epochs,
                "remarks": ["resumed after epoch 1 on another processor"],
            },
            "evaluate_model": {"test_accuracy": 0.9, "test_loss": 0.3, "metrics": {}},
        },
        "seconds": {"load_data": 0.5, "fit_model": 8.25},
        "code_version": "0.1.0+abc",
        "packages": {"keras": "3.15.1", "absent": None},
        "machine": {"system": "Linux", "processors": 2, "python": "3.11.7"},
        "flow_run_id": None,
        "files": {},
    }
    manifest = parse_manifest(value, "the test's manifest")
    # Set afterwards: some tests use names that no JSON file can hold.
    manifest.steps.load_data = changed(manifest.steps.load_data, class_names=tuple(names))
    return manifest


def _row(epochs, digest):
    return {
        "status": "succeeded",
        "error": None,
        "started_at": AT.isoformat(),
        "finished_at": AT.isoformat(),
        "dataset": "mnist",
        "dataset_digest": digest,
        "model": "convnet",
        "seed": 17,
        "epochs": epochs,
        "test_accuracy": 0.9,
        "test_loss": 0.3,
        "promoted": False,
        "flow_run_id": None,
        "code_version": "0.1.0+abc",
        "config": "{}",
    }


def changed(result, **values):
    """Return a step's result with other values; results themselves are immutable."""
    return result.model_copy(update=values)


def decided(*, champion, reason, figures=None):
    """Return a decision of the gate in the format of the manifest."""
    paired = {
        "examples": 100,
        "only_challenger": 3,
        "only_champion": 1,
        "p_worse": 0.9,
        "p_better": 0.03,
    }
    paired |= {"difference": 0.02, "low": -0.01, "high": 0.05}
    return Decided(
        champion=champion,
        outcome="promoted",
        promote=True,
        reason=reason,
        champion_metrics={"accuracy": 0.1, "loss": 0.01, "macro_f1": 0.2} if champion else {},
        figures=paired if figures is None else figures,
    )


def _check(name, *, passed):
    return {
        "name": name,
        "passed": passed,
        "hard": False,
        "measured": "3",
        "bound": "at most 4",
        "detail": "",
    }
