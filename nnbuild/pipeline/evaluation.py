"""The steps that evaluate, calibrate and score with the fitted network, each writing tables."""

import functools
import operator
import time
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from nnbuild import engines, evaluation, scoring
from nnbuild.data.dataset import Split
from nnbuild.data.pixels import chunks
from nnbuild.engines import Logits
from nnbuild.evaluation.conformal import CONFORMAL, validation_table
from nnbuild.evaluation.drift import REFERENCE, energy_edges, summarise
from nnbuild.logits import energy, predict, softmax
from nnbuild.models.custom import failing_user_model
from nnbuild.pipeline.data import read_data, read_test_data
from nnbuild.pipeline.step import cached_step, staged_table
from nnbuild.pipeline.training import read_model
from nnbuild.store import schemas
from nnbuild.store.filesystem import make_durable_dir, write_json
from nnbuild.store.run import Run
from nnbuild.store.step_results import Calibrated, Evaluated, FittedModel, LoadedData, Scored
from nnbuild.store.tables import write_table
from nnbuild.training.shuffling import validation_split

_VALIDATION_METRICS = ("accuracy", "loss")
_EVALUATION_TABLES = ("evaluation", "confusion", "classes")


@cached_step(Evaluated)
def evaluate_model(run: Run, data: LoadedData, fitted: FittedModel) -> Evaluated:
    """Evaluate on the test set: tables of the metrics, the confusion counts and the classes.

    Raises:
        ContractError: The model's outputs are not logits, or not finite.
    """
    batch = run.config.scoring.batch_size
    test = read_test_data(run, data)
    engine = engines.KerasEngine(read_model(run, fitted), batch)
    with failing_user_model(run.config.model.name, "evaluation"):
        logits = scoring.logits_of(engine, test, data.classes, batch)
    values = evaluation.evaluate(logits, test.labels, data.classes)
    counts = evaluation.confusion_counts(test.labels, logits.argmax(axis=1), data.classes)
    subset = {"subset": "test"}
    _write_rows(run, "evaluation", (subset | value._asdict() for value in values))
    _write_rows(
        run,
        "confusion",
        (
            subset | {"label": label, "predicted": predicted, "count": int(count)}
            for (label, predicted), count in np.ndenumerate(counts)
        ),
    )
    _write_rows(
        run,
        "classes",
        ({"label": label, "name": name} for label, name in enumerate(data.class_names)),
    )
    metrics = {value.metric: value.value for value in values if value.label is None}
    return Evaluated(
        test_accuracy=metrics["accuracy"],
        test_loss=metrics["loss"],
        metrics=metrics,
        files=run.digests(*(f"tables/{name}.parquet" for name in _EVALUATION_TABLES)),
    )


def _write_rows(run: Run, name: str, rows: Iterable[dict[str, Any]]) -> None:
    """Write rows to a table of the run."""
    schema = schemas.STATIC_SCHEMAS[name]
    write_table(staged_table(run, name), schemas.table_of(schema, list(rows)), schema)


@cached_step(Calibrated)
def calibrate_model(run: Run, data: LoadedData, fitted: FittedModel) -> Calibrated:
    """Fit the temperature on the validation examples.

    The reliability of the validation and test predictions, at temperature 1 and at the fitted one,
    is written as a table. Two more files come from the logits of the validation images: their
    summary, as the reference for drift, and the probabilities of their true classes, for prediction
    sets.

    Raises:
        ContractError: The model's outputs are not logits, or not finite.
    """
    batch = run.config.scoring.batch_size
    dataset = read_data(run, data)
    _, validation = validation_split(dataset.train, dataset.validation, run.config)
    subsets = {"validation": validation, "test": dataset.test}
    engine = engines.KerasEngine(read_model(run, fitted), batch)
    with failing_user_model(run.config.model.name, "calibration"):
        logits = {
            name: scoring.logits_of(engine, split, data.classes, batch)
            for name, split in subsets.items()
        }
    temperature = evaluation.fit_temperature(logits["validation"], validation.labels)
    before, rows_before = _reliability(logits, subsets, 1.0)
    after, rows_after = _reliability(logits, subsets, temperature)
    _write_rows(run, "calibration", rows_before + rows_after)
    _write_validation_files(run, validation, logits["validation"], temperature)
    values = evaluation.evaluate(logits["validation"], validation.labels, data.classes)
    wide = logits["validation"].astype(np.float64)
    threshold = evaluation.confidence_threshold(
        softmax(wide, temperature=temperature).max(axis=1), wide.argmax(axis=1) == validation.labels
    )
    return Calibrated(
        temperature=temperature,
        confidence_threshold=threshold,
        before=before,
        after=after,
        validation={
            value.metric: value.value
            for value in values
            if value.label is None and value.metric in _VALIDATION_METRICS
        },
        files=run.digests("tables/calibration.parquet", REFERENCE, CONFORMAL),
    )


def _reliability(
    logits: Mapping[str, Logits], subsets: Mapping[str, Split], temperature: float
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Measure how reliable the probabilities are at a temperature.

    Args:
        logits: float32 logits of shape (n, classes) by subset.
        subsets: Examples by subset.
        temperature: Divisor of the logits.

    Returns:
        Expected calibration error by subset, and the rows of the table `calibration`.
    """
    errors: dict[str, float] = {}
    rows: list[dict[str, Any]] = []
    for name, split in subsets.items():
        probabilities = softmax(logits[name], temperature=temperature)
        errors[name] = evaluation.calibration_error(probabilities, split.labels)
        shared = {
            "subset": name,
            "temperature": temperature,
            "expected_calibration_error": errors[name],
        }
        bins = evaluation.calibration_bins(probabilities, split.labels)
        rows += [shared | each._asdict() for each in bins]
    return errors, rows


def _write_validation_files(run: Run, split: Split, logits: Logits, temperature: float) -> None:
    """Write what scoring jobs compare with: the reference for drift, and that for prediction sets.

    Args:
        run: Run in staging.
        split: Validation examples.
        logits: Their float32 logits, shape (n, classes).
        temperature: Temperature that was fitted on them.
    """
    energies = energy(logits)
    edges = energy_edges(energies)
    record: dict[str, Any] = {
        "subset": "validation",
        "rows": len(split),
        "temperature": temperature,
        "energy_edges": edges.tolist(),
    }
    of_true_class = []
    for name, divisor in (("plain", 1.0), ("calibrated", temperature)):
        probabilities, predicted, _ = predict(logits, temperature=divisor)
        confidence = probabilities.max(axis=0)
        summaries = [
            summarise(
                split.images[rows],
                predicted[rows],
                confidence[rows],
                logits.shape[1],
                energies=energies[rows],
                edges=edges,
            )
            for rows in chunks(split.images)
        ]
        record[name] = functools.reduce(operator.add, summaries).as_json()
        of_true_class.append(probabilities[split.labels, np.arange(len(split))])
    write_json(run.folder / REFERENCE, record)
    table = validation_table(*of_true_class)
    write_table(run.folder / CONFORMAL, table, table.schema)


@cached_step(Scored)
def score_test_set(run: Run, data: LoadedData, fitted: FittedModel) -> Scored:
    """Apply softmax to the logits of the test set, and write the table of probabilities.

    Raises:
        ContractError: The model's outputs are not logits, or not finite.
    """
    batch = run.config.scoring.batch_size
    path = staged_table(run, "predictions")
    began = time.perf_counter()
    test = read_test_data(run, data)
    make_durable_dir(path.parent)
    engine = engines.KerasEngine(read_model(run, fitted), batch)
    with failing_user_model(run.config.model.name, "scoring"):
        rows = scoring.write_predictions(
            path, engine, test, data.classes, batch, class_names=data.class_names
        )
    return Scored(
        path=run.relative(path),
        rows=rows,
        seconds=time.perf_counter() - began,
        files=run.digests("tables/predictions.parquet"),
    )
