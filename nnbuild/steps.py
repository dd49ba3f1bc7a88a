"""The steps of a run, in the order of the recipe. Each can be called again: what it has done, it recalls.

A step takes the run and what earlier steps returned, leaves its files in the run's staging folder, and
returns small values. Nothing reaches a reader before `nnbuild.committing`.
"""

import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import numpy as np

from nnbuild import faults, machine, schemas
from nnbuild.data import checks, tables
from nnbuild.data.dataset import Dataset
from nnbuild.data.sources import default_cache, load
from nnbuild.errors import StoreError
from nnbuild.results import (
    BuiltModel,
    Check,
    CheckedData,
    CompiledModel,
    Evaluated,
    FittedModel,
    HistoryTable,
    LoadedData,
    Result,
    Scored,
)
from nnbuild.signals import caught
from nnbuild.store.files import make_folder
from nnbuild.store.run import Run
from nnbuild.store.store import Store
from nnbuild.store.tables import read_table, write_table

P = ParamSpec("P")
R = TypeVar("R", bound=Result)
Progress = Callable[[str, int, int | None], None]


def _once(kind: type[R]) -> Callable[[Callable[Concatenate[Run, P], R]], Callable[Concatenate[Run, P], R]]:
    """A step that recalls its result if the run has it already, and else keeps it."""

    def decorate(step: Callable[Concatenate[Run, P], R]) -> Callable[Concatenate[Run, P], R]:
        name = step.__name__

        @functools.wraps(step)
        def once(run: Run, *args: P.args, **kwargs: P.kwargs) -> R:
            known = run.recall(name, kind)
            if known is not None:
                return known
            faults.point(f"{name}:begin")
            began = time.perf_counter()
            result = step(run, *args, **kwargs)
            run.keep(name, result, time.perf_counter() - began)
            faults.point(f"{name}:end")
            return result

        return once

    return decorate


def staged_dataset(run: Run) -> Path:
    """Where the run keeps a dataset that the store does not hold yet."""
    return run.folder / "dataset"


def staged_table(run: Run, name: str) -> Path:
    """Where the run keeps a table until it is committed."""
    return run.folder / "tables" / f"{name}.parquet"


@_once(LoadedData)
def load_data(run: Run, *, cache: Path | None = None, progress: Progress | None = None) -> LoadedData:
    """Read the dataset, and ingest it as Parquet unless the store has it.

    Args:
        run: in staging.
        cache: where downloads are kept.
        progress: is told of a download: file, bytes done, bytes in all if known.

    Raises:
        DataError: the source is missing, damaged, or not what it claims to be.
        ConfigError: the dataset's name is not known.
    """
    wanted = run.config.dataset
    dataset = load(
        wanted.name,
        data_dir=wanted.data_dir,
        cache=cache or default_cache(),
        fallback=wanted.fallback,
        progress=progress,
    )
    folder = Store(run.root).dataset_folder(dataset.name, dataset.digest)
    files: dict[str, str] = {}
    if not folder.is_dir():
        folder = staged_dataset(run)
        tables.write_dataset(dataset, folder)
        files = run.digests(*(path.relative_to(run.folder).as_posix() for path in folder.iterdir()))
    return LoadedData(
        name=dataset.name,
        digest=dataset.digest,
        source=dataset.source,
        folder=run.relative(folder),
        image_shape=dataset.image_shape,
        classes=dataset.classes,
        class_names=dataset.class_names,
        train=len(dataset.train),
        test=len(dataset.test),
        files=files,
    )


def read_data(run: Run, data: LoadedData) -> Dataset:
    """The dataset of a run, from the store or, before it is committed, from staging."""
    folder = run.root / data.folder
    if not folder.is_dir():  # another run of the same dataset was committed, or this one was
        folder = Store(run.root).dataset_folder(data.name, data.digest)
    return tables.read_dataset(folder)


@_once(CheckedData)
def check_data(run: Run, data: LoadedData) -> CheckedData:
    """Look at the data before a second is spent on training.

    Raises:
        CheckError: a hard check is violated; the message has the numbers.
    """
    results = checks.check(read_data(run, data), run.config.dataset.checks)
    checks.require(results)
    return CheckedData(checks=tuple(as_check(each) for each in results))


def as_check(result: checks.CheckResult) -> Check:
    """A check's result, every value as text."""
    return Check(
        name=result.name,
        passed=result.passed,
        hard=result.hard,
        measured=str(result.measured),
        bound=result.bound,
        detail=result.detail,
    )


@_once(BuiltModel)
def build_model(run: Run, data: LoadedData) -> BuiltModel:
    """Build the network with the run's seed, hold it to the logits contract, and save it uncompiled.

    Raises:
        ConfigError: the model's name is not known or cannot be imported.
        ContractError: the network does not end in one linear layer with a logit for each class.
    """
    from nnbuild import logits, models  # noqa: PLC0415  (TensorFlow takes seconds; loading does without)

    model = models.build(run.config, data.image_shape, data.classes)
    logits.check_model(model, data.classes, data.image_shape)
    path = run.folder / "model" / "uncompiled.keras"
    models.save_model(model, path)
    return BuiltModel(
        path=run.relative(path), parameters=model.count_params(), files=run.digests("model/uncompiled.keras")
    )


@_once(CompiledModel)
def compile_model(run: Run, data: LoadedData, built: BuiltModel) -> CompiledModel:
    """Compile the network for a loss on logits, and save it.

    Raises:
        ConfigError: a metric, a monitor or the validation split cannot be used.
    """
    from nnbuild import logits, models  # noqa: PLC0415
    from nnbuild.training.order import split_rows  # noqa: PLC0415

    training = run.config.training
    rows, _ = split_rows(data.train, training.validation_fraction, run.config.seed)
    steps = -(-len(rows) // int(training.batch_size or 1))
    model = _model(run, built)
    models.compile_model(model, training, steps=steps * int(training.epochs or 1))
    logits.check_model(model, data.classes, data.image_shape)
    path = run.folder / "model" / "compiled.keras"
    models.save_model(model, path)
    return CompiledModel(path=run.relative(path), steps_per_epoch=steps, files=run.digests("model/compiled.keras"))


def _model(run: Run, result: BuiltModel | CompiledModel | FittedModel) -> Any:
    from nnbuild import models  # noqa: PLC0415

    path = run.root / result.path
    digest = result.files[path.relative_to(run.folder).as_posix()]
    return models.load_model(path, digest, model_name=run.config.model.name, seed=run.config.seed)


@_once(FittedModel)
def fit_model(run: Run, data: LoadedData, compiled: CompiledModel, *, watch: Any = None) -> FittedModel:
    """Fit the network, or go on with a fit that was stopped; the history is on the disk after every epoch.

    Args:
        run: in staging.
        data: what `load_data` returned.
        compiled: what `compile_model` returned.
        watch: is told of steps and epochs, see `nnbuild.training.Watch`.

    Raises:
        DivergedError: the loss became infinite or not a number.
        Interrupted: Ctrl-C or SIGTERM; a checkpoint was written.
        StoreError: the checkpoint belongs to another config, dataset or code.
    """
    from nnbuild import logits, models, training  # noqa: PLC0415
    from nnbuild.backend import pin_threads  # noqa: PLC0415

    threads = int(run.config.training.threads or 1)
    identity = {
        "config": run.config.digest(),
        "dataset": data.digest,
        "code": machine.code_version(),
        "threads": threads if pin_threads(threads) else "not pinned",
        "processor": machine.processor(),
    }
    table = staged_table(run, "history")
    began = time.perf_counter()
    model = _model(run, compiled)
    with caught() as stop:
        fitted = training.fit(
            model,
            read_data(run, data).train,
            run.config,
            data.classes,
            training.Surroundings(
                watch=watch,
                checkpoints=training.Checkpoints(run.folder / "checkpoints", identity),
                on_history=lambda rows: write_table(table, rows, schemas.HISTORY),
                stop=stop,
                tensorboard=str(run.folder / "tensorboard") if run.config.training.tensorboard else None,
            ),
        )
    logits.check_model(model, data.classes, data.image_shape)
    path = run.folder / "model" / "model.keras"
    models.save_model(model, path)
    return FittedModel(
        path=run.relative(path),
        epochs=len(fitted.history.epoch),
        weights_epoch=fitted.weights_epoch,
        seconds=time.perf_counter() - began,
        remarks=fitted.remarks,
        identity=identity,
        files=run.digests("model/model.keras"),
    )


@_once(HistoryTable)
def persist_history(run: Run, fitted: FittedModel) -> HistoryTable:
    """Hold the history to its schema and to the number of epochs, once the fit is over.

    Raises:
        StoreError: the table on the disk is not the history of this fit.
    """
    path = staged_table(run, "history")
    table = read_table(path, schemas.HISTORY)
    epochs = len(table["epoch"].unique())
    if epochs != fitted.epochs:
        raise StoreError(f"{path} holds {epochs} epochs, the fit finished {fitted.epochs}; restore it from a copy")
    return HistoryTable(path=run.relative(path), rows=len(table), files=run.digests("tables/history.parquet"))


@_once(Evaluated)
def evaluate_model(run: Run, data: LoadedData, fitted: FittedModel) -> Evaluated:
    """Evaluate on the test set: the metrics, the confusion counts and the calibration, each a table.

    Raises:
        ContractError: what comes out of the model is no logits, or not finite.
    """
    from nnbuild import engines, evaluation, scoring  # noqa: PLC0415
    from nnbuild.logits import softmax  # noqa: PLC0415

    batch = run.config.scoring.batch_size
    test = read_data(run, data).test
    logits = scoring.logits_of(engines.KerasEngine(_model(run, fitted), batch), test, data.classes, batch)
    figures = evaluation.evaluate(logits, test.labels, data.classes)
    counts = evaluation.confusion_counts(test.labels, logits.argmax(axis=1), data.classes)
    of_test = {"subset": "test"}
    rows = {
        "evaluation": [of_test | figure._asdict() for figure in figures],
        "confusion": [
            of_test | {"label": label, "predicted": predicted, "count": int(count)}
            for (label, predicted), count in np.ndenumerate(counts)
        ],
        "calibration": [of_test | each._asdict() for each in evaluation.calibration_bins(softmax(logits), test.labels)],
    }
    for name, found in rows.items():
        write_table(staged_table(run, name), schemas.table_of(schemas.FIXED[name], found), schemas.FIXED[name])
    metrics = {figure.metric: figure.value for figure in figures if figure.label is None}
    return Evaluated(
        test_accuracy=metrics["accuracy"],
        test_loss=metrics["loss"],
        metrics=metrics,
        files=run.digests(*(f"tables/{name}.parquet" for name in rows)),
    )


@_once(Scored)
def score_test_set(run: Run, data: LoadedData, fitted: FittedModel) -> Scored:
    """Apply softmax to the logits of the test set and write the probability table.

    Raises:
        ContractError: what comes out of the model is no logits, or not finite.
    """
    from nnbuild import engines, scoring  # noqa: PLC0415

    batch = run.config.scoring.batch_size
    path = staged_table(run, "predictions")
    began = time.perf_counter()
    test = read_data(run, data).test
    make_folder(path.parent)
    rows = scoring.write_predictions(path, engines.KerasEngine(_model(run, fitted), batch), test, data.classes, batch)
    return Scored(
        path=run.relative(path),
        rows=rows,
        seconds=time.perf_counter() - began,
        files=run.digests("tables/predictions.parquet"),
    )


def epochs_on_disk(run: Run) -> int:
    """How many epochs the history on the disk has, of a run that did not finish its fit."""
    path = staged_table(run, "history")
    return len(read_table(path, schemas.HISTORY)["epoch"].unique()) if path.exists() else 0


def is_fitted(run: Run) -> bool:
    """Whether the fit is over."""
    return run.recall("fit_model", FittedModel) is not None


def has_checkpoints(run: Run) -> bool:
    """Whether the fit has begun and can be gone on with."""
    return any((run.folder / "checkpoints").glob("*.json"))
