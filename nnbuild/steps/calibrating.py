"""Calibrate: what the logits are to be divided by before their softmax can be taken at its word."""

from typing import Any

from nnbuild import engines, evaluation, schemas, scoring
from nnbuild.drift import REFERENCE
from nnbuild.logits import softmax
from nnbuild.models.user import failing_user_model
from nnbuild.results import Calibrated, FittedModel, LoadedData
from nnbuild.steps.data import read_data
from nnbuild.steps.network import read_model
from nnbuild.steps.once import once, staged_table
from nnbuild.steps.referencing import write_reference
from nnbuild.store.run import Run
from nnbuild.store.tables import write_table
from nnbuild.training.order import validation_split

_KEPT = ("accuracy", "loss")


@once(Calibrated)
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
