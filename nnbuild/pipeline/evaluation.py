"""Evaluate the network, and score the test set into the probability table."""

import time
from typing import Any

import numpy as np

from nnbuild import engines, evaluation, scoring
from nnbuild.data.dataset import Split
from nnbuild.engines import Logits
from nnbuild.evaluation.drift import REFERENCE, Summary, summarise
from nnbuild.logits import predict, softmax
from nnbuild.models.custom import failing_user_model
from nnbuild.pipeline.data import read_data
from nnbuild.pipeline.step import cached_step, staged_table
from nnbuild.pipeline.training import read_model
from nnbuild.store import schemas
from nnbuild.store.filesystem import make_durable_dir, write_json
from nnbuild.store.run import Run
from nnbuild.store.step_results import Calibrated, Evaluated, FittedModel, LoadedData, Scored
from nnbuild.store.tables import write_table
from nnbuild.training.shuffling import validation_split


@cached_step(Evaluated)
def evaluate_model(run: Run, data: LoadedData, fitted: FittedModel) -> Evaluated:
    """Evaluate on the test set: the metrics and the confusion counts, each a table.

    Raises:
        ContractError: what comes out of the model is no logits, or not finite.
    """
    batch = run.config.scoring.batch_size
    test = read_data(run, data).test
    engine = engines.KerasEngine(read_model(run, fitted), batch)
    with failing_user_model(run.config.model.name, "evaluation"):
        logits = scoring.logits_of(engine, test, data.classes, batch)
    figures = evaluation.evaluate(logits, test.labels, data.classes)
    counts = evaluation.confusion_counts(test.labels, logits.argmax(axis=1), data.classes)
    of_test = {"subset": "test"}
    rows = {
        "evaluation": [of_test | figure._asdict() for figure in figures],
        "confusion": [
            of_test | {"label": label, "predicted": predicted, "count": int(count)}
            for (label, predicted), count in np.ndenumerate(counts)
        ],
    }
    for name, found in rows.items():
        write_table(
            staged_table(run, name),
            schemas.table_of(schemas.STATIC_SCHEMAS[name], found),
            schemas.STATIC_SCHEMAS[name],
        )
    metrics = {figure.metric: figure.value for figure in figures if figure.label is None}
    return Evaluated(
        test_accuracy=metrics["accuracy"],
        test_loss=metrics["loss"],
        metrics=metrics,
        files=run.digests(*(f"tables/{name}.parquet" for name in rows)),
    )


@cached_step(Scored)
def score_test_set(run: Run, data: LoadedData, fitted: FittedModel) -> Scored:
    """Apply softmax to the logits of the test set and write the probability table.

    Raises:
        ContractError: what comes out of the model is no logits, or not finite.
    """
    batch = run.config.scoring.batch_size
    path = staged_table(run, "predictions")
    began = time.perf_counter()
    test = read_data(run, data).test
    make_durable_dir(path.parent)
    engine = engines.KerasEngine(read_model(run, fitted), batch)
    with failing_user_model(run.config.model.name, "scoring"):
        rows = scoring.write_predictions(path, engine, test, data.classes, batch)
    return Scored(
        path=run.relative(path),
        rows=rows,
        seconds=time.perf_counter() - began,
        files=run.digests("tables/predictions.parquet"),
    )


def write_reference(run: Run, split: Split, logits: Logits, temperature: float) -> None:
    """Keep what validation images look like to the network, as plain softmax has it and as calibrated.

    Args:
        run: in staging.
        split: the validation images.
        logits: float32, shape (n, classes), of these.
        temperature: that was fitted on them.
    """
    of = {"plain": _summary(split, logits, 1.0), "calibrated": _summary(split, logits, temperature)}
    record: dict[str, Any] = {
        "subset": "validation",
        "rows": len(split),
        "temperature": temperature,
    }
    write_json(run.folder / REFERENCE, record | {name: each.as_json() for name, each in of.items()})


def _summary(split: Split, logits: Logits, temperature: float) -> Summary:
    probabilities, predicted, _ = predict(logits, temperature=temperature)
    return summarise(split.images, predicted, probabilities.max(axis=0), logits.shape[1])


_KEPT = ("accuracy", "loss")


@cached_step(Calibrated)
def calibrate_model(run: Run, data: LoadedData, fitted: FittedModel) -> Calibrated:
    """Fit the temperature on the validation examples; the reliability of both subsets, before and after, is a table.

    What the validation images look like is kept beside it, as the reference for drift: their logits are at hand here.

    Raises:
        ContractError: what comes out of the model is no logits, or not finite.
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
    temperature = evaluation.fit_temperature(logits["validation"], subsets["validation"].labels)
    table: list[dict[str, Any]] = []
    errors: list[dict[str, float]] = []
    for divisor in (1.0, temperature):
        errors.append({})
        for name, split in subsets.items():
            probabilities = softmax(logits[name], temperature=divisor)
            errors[-1][name] = evaluation.calibration_error(probabilities, split.labels)
            about = {
                "subset": name,
                "temperature": divisor,
                "expected_calibration_error": errors[-1][name],
            }
            table += [
                about | each._asdict()
                for each in evaluation.calibration_bins(probabilities, split.labels)
            ]
    schema = schemas.CALIBRATION
    write_table(staged_table(run, "calibration"), schemas.table_of(schema, table), schema)
    write_reference(run, subsets["validation"], logits["validation"], temperature)
    before, after = errors
    figures = evaluation.evaluate(logits["validation"], subsets["validation"].labels, data.classes)
    return Calibrated(
        temperature=temperature,
        before=before,
        after=after,
        validation={
            each.metric: each.value
            for each in figures
            if each.label is None and each.metric in _KEPT
        },
        files=run.digests("tables/calibration.parquet", REFERENCE),
    )
