"""Evaluate the network, and score the test set into the probability table."""

import time

import numpy as np

from nnbuild import engines, evaluation, schemas, scoring
from nnbuild.models.user import failing_user_model
from nnbuild.results import Evaluated, FittedModel, LoadedData, Scored
from nnbuild.steps.data import read_data
from nnbuild.steps.network import read_model
from nnbuild.steps.once import once, staged_table
from nnbuild.store.files import make_folder
from nnbuild.store.run import Run
from nnbuild.store.tables import write_table


@once(Evaluated)
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
            schemas.table_of(schemas.FIXED[name], found),
            schemas.FIXED[name],
        )
    metrics = {figure.metric: figure.value for figure in figures if figure.label is None}
    return Evaluated(
        test_accuracy=metrics["accuracy"],
        test_loss=metrics["loss"],
        metrics=metrics,
        files=run.digests(*(f"tables/{name}.parquet" for name in rows)),
    )


@once(Scored)
def score_test_set(run: Run, data: LoadedData, fitted: FittedModel) -> Scored:
    """Apply softmax to the logits of the test set and write the probability table.

    Raises:
        ContractError: what comes out of the model is no logits, or not finite.
    """
    batch = run.config.scoring.batch_size
    path = staged_table(run, "predictions")
    began = time.perf_counter()
    test = read_data(run, data).test
    make_folder(path.parent)
    engine = engines.KerasEngine(read_model(run, fitted), batch)
    with failing_user_model(run.config.model.name, "scoring"):
        rows = scoring.write_predictions(path, engine, test, data.classes, batch)
    return Scored(
        path=run.relative(path),
        rows=rows,
        seconds=time.perf_counter() - began,
        files=run.digests("tables/predictions.parquet"),
    )
