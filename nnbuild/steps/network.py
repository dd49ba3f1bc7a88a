"""Build, compile and fit the network, and persist its history."""

import time
from typing import Any

from nnbuild import logits, machine, models, schemas
from nnbuild.backend import pin_threads
from nnbuild.config import is_factory
from nnbuild.errors import ContractError, StoreError
from nnbuild.models.user import factory_digest, failing_user_model, refusing_user_model
from nnbuild.results import BuiltModel, CompiledModel, FittedModel, HistoryTable, LoadedData
from nnbuild.signals import caught
from nnbuild.steps.data import read_data
from nnbuild.steps.members import Fits
from nnbuild.steps.once import once, staged_table
from nnbuild.store.run import Run
from nnbuild.store.tables import read_table
from nnbuild.training.order import training_rows


@once(BuiltModel)
def build_model(run: Run, data: LoadedData) -> BuiltModel:
    """Build the network with the run's seed, hold it to the logits contract, and save it uncompiled.

    Raises:
        ConfigError: the model's name is not known or cannot be imported.
        ContractError: the network does not end in one linear layer with a logit for each class.
    """
    pin_threads(
        int(run.config.training.threads or 1)
    )  # before TensorFlow's first operation, or not at all
    model = models.build(run.config, data.image_shape, data.classes)
    with refusing_user_model(run.config.model.name, "used"):
        logits.check_model(model, data.classes, data.image_shape)
    path = run.folder / "model" / "uncompiled.keras"
    with refusing_user_model(run.config.model.name, "saved"):
        models.save_model(model, path)
        parameters = model.count_params()
    _require_same_again(run, model, data)
    return BuiltModel(
        path=run.relative(path),
        parameters=parameters * run.config.model.members,
        factory=_factory(run),
        files=run.digests("model/uncompiled.keras"),
    )


def _factory(run: Run) -> str | None:
    """Return the digest of the user's function that builds the network, as its source is now."""
    name = run.config.model.name
    return factory_digest(name) if is_factory(name) else None


def has_other_source(run: Run) -> bool:
    """Say whether the user's function that built the network of a run has changed since."""
    built = run.recall("build_model", BuiltModel)
    return built is not None and built.factory != _factory(run)


def _require_same_again(run: Run, model: Any, data: LoadedData) -> None:
    """Refuse a user's function that builds another network when it is called again.

    After a fit in half precision the weights are put into a network that computes in float32.

    Raises:
        ContractError: The weights of the two differ in shape.
    """
    config = run.config
    if not is_factory(config.model.name) or config.training.precision in {None, "float32"}:
        return
    again = models.build(config, data.image_shape, data.classes)
    shapes = [[tuple(weight.shape) for weight in each.weights] for each in (model, again)]
    if shapes[0] != shapes[1]:
        raise ContractError(
            f"model {config.model.name!r} builds another network when it is called again, which precision "
            f"{config.training.precision!r} needs; let it depend on its arguments alone, or use float32"
        )


@once(CompiledModel)
def compile_model(run: Run, data: LoadedData, built: BuiltModel) -> CompiledModel:
    """Compile the network for a loss on logits, and save it.

    Raises:
        ConfigError: a metric, a monitor or the validation split cannot be used.
    """
    wanted = run.config.training
    rows = training_rows(data.train, data.validation, run.config)
    steps = -(-len(rows) // int(wanted.batch_size or 1))
    model = read_model(run, built)
    path = run.folder / "model" / "compiled.keras"
    with refusing_user_model(run.config.model.name, "compiled"):
        models.compile_model(model, wanted, steps=steps * int(wanted.epochs or 1))
        logits.check_model(model, data.classes, data.image_shape)
        models.save_model(model, path)
    return CompiledModel(
        path=run.relative(path), steps_per_epoch=steps, files=run.digests("model/compiled.keras")
    )


def read_model(run: Run, result: BuiltModel | CompiledModel | FittedModel) -> Any:
    """The Keras model that a step has left, verified by its digest."""
    pin_threads(int(run.config.training.threads or 1))
    path = run.root / result.path
    digest = result.files[path.relative_to(run.folder).as_posix()]
    return models.load_model(path, digest, model_name=run.config.model.name, seed=run.config.seed)


@once(FittedModel)
def fit_model(
    run: Run, data: LoadedData, compiled: CompiledModel, *, watch: Any = None
) -> FittedModel:
    """Fit the network, or the members of an ensemble one after another; the history is on the disk after every epoch.

    A fit that was stopped is gone on with.

    Args:
        run: in staging.
        data: what `load_data` returned.
        compiled: what `compile_model` returned.
        watch: is told of steps and epochs, see `nnbuild.training.Watch`.

    Raises:
        ContractError: The network's own training or test step cannot be used.
        DivergedError: the loss became infinite or not a number.
        RunError: The user's own network raised something while it was trained.
        Interrupted: Ctrl-C or SIGTERM; a checkpoint was written.
        StoreError: the checkpoint belongs to another config, dataset or code.
    """
    threads = int(run.config.training.threads or 1)
    identity = {
        "config": run.config.digest(),
        "dataset": data.digest,
        "code": machine.code_version(),
        "model": _factory(run) or "named",
        "threads": threads if pin_threads(threads) else "not pinned",
        "processor": machine.processor(),
    }
    began = time.perf_counter()
    with caught() as stop, failing_user_model(run.config.model.name, "training"):
        fits = Fits(run, data, read_data(run, data), identity=identity, stop=stop, watch=watch)
        steps = compiled.steps_per_epoch * int(run.config.training.epochs or 1)
        model, members = fits.fit(lambda: read_model(run, compiled), steps)
    with failing_user_model(run.config.model.name, "training"):
        logits.check_model(model, data.classes, data.image_shape)
    path = run.folder / "model" / "model.keras"
    models.save_model(model, path)
    return FittedModel(
        path=run.relative(path),
        epochs=sum(each.epochs for each in members),
        weights_epoch=sum(each.epochs for each in members[:-1]) + members[-1].weights_epoch,
        seconds=time.perf_counter() - began,
        remarks=tuple(remark for each in members for remark in each.remarks),
        identity=identity,
        files=run.digests("model/model.keras"),
    )


@once(HistoryTable)
def persist_history(run: Run, fitted: FittedModel) -> HistoryTable:
    """Hold the history to its schema and to the number of epochs, once the fit is over.

    Raises:
        StoreError: the table on the disk is not the history of this fit.
    """
    path = staged_table(run, "history")
    table = read_table(path, schemas.HISTORY)
    epochs = len(table["epoch"].unique())
    if epochs != fitted.epochs:
        raise StoreError(
            f"{path} holds {epochs} epochs, the fit finished {fitted.epochs}; restore it from a copy"
        )
    return HistoryTable(
        path=run.relative(path), rows=len(table), files=run.digests("tables/history.parquet")
    )
