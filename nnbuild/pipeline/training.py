"""The steps that build, compile and fit the network, and the fit of an ensemble's members."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
from pydantic import TypeAdapter, ValidationError

from nnbuild import logits, models, training
from nnbuild.config.schema import RunConfig, is_factory
from nnbuild.data.dataset import Dataset
from nnbuild.data.pixels import is_mapped
from nnbuild.errors import ContractError, DivergedError, Interrupted, StoreError
from nnbuild.models.custom import factory_digest, failing_user_model, refusing_user_model
from nnbuild.models.ensemble import combine, member_seed
from nnbuild.pipeline.data import read_data
from nnbuild.pipeline.step import cached_step, staged_table
from nnbuild.pipeline.warm_start import require_same_weights, start_of
from nnbuild.runtime import environment
from nnbuild.runtime.progress import NullProgress, ProgressCallback
from nnbuild.runtime.signals import deferred_signals
from nnbuild.runtime.tensorflow import keras, pin_threads
from nnbuild.store import schemas
from nnbuild.store.filesystem import file_digest, read_json, write_json
from nnbuild.store.run import Run
from nnbuild.store.step_results import (
    BuiltModel,
    CompiledModel,
    FittedModel,
    HistoryTable,
    LoadedData,
)
from nnbuild.store.tables import read_table, write_table
from nnbuild.training import history
from nnbuild.training.shuffling import training_rows


@cached_step(BuiltModel)
def build_model(run: Run, data: LoadedData) -> BuiltModel:
    """Build the network with the run's seed, check the logits contract, and save it uncompiled.

    With `training.start`, it has the weights of the champion.

    Raises:
        ConfigError: The model's name is unknown, or its function cannot be imported.
        ContractError: The network does not end in one linear layer with a logit for each class.
    """
    pin_threads(int(run.config.training.threads or 1))  # has no effect after the first operation
    start = start_of(run, data)
    model = models.build(run.config, data.image_shape, data.classes)
    with refusing_user_model(run.config.model.name, "used"):
        logits.check_model(model, data.classes, data.image_shape)
    if start is not None:
        require_same_weights(start, [tuple(each.shape) for each in model.weights])
        model.set_weights(start.weights)
    path = run.folder / "model" / "uncompiled.keras"
    with refusing_user_model(run.config.model.name, "saved"):
        models.save_model(model, path)
        parameters = model.count_params()
    _require_same_again(run, model, data)
    return BuiltModel(
        path=run.relative(path),
        parameters=parameters * run.config.model.ensemble_size,
        factory=_factory_digest(run),
        start=None if start is None else start.run_id,
        start_digest=None if start is None else start.digest,
        files=run.digests("model/uncompiled.keras"),
    )


def _require_same_again(run: Run, model: keras.Model, data: LoadedData) -> None:
    """Refuse a user's function that builds another network when it is called again.

    After a fit in half precision, the weights are copied to a network that computes in float32.

    Raises:
        ContractError: The weights of the two networks differ in shape.
    """
    config = run.config
    if not is_factory(config.model.name) or config.training.dtype_policy in {None, "float32"}:
        return
    again = models.build(config, data.image_shape, data.classes)
    shapes = [[tuple(weight.shape) for weight in each.weights] for each in (model, again)]
    if shapes[0] != shapes[1]:
        raise ContractError(
            f"model {config.model.name!r} builds another network when it is called again, which "
            f"precision {config.training.dtype_policy!r} requires; let the function depend on its "
            "arguments alone, or use float32"
        )


def _factory_digest(run: Run) -> str | None:
    """Return the digest of the source of the user's function that builds the network, if any."""
    name = run.config.model.name
    return factory_digest(name) if is_factory(name) else None


def has_other_source(run: Run) -> bool:
    """Return whether the source of the user's function has changed since it built the network."""
    built = run.load_result(BuiltModel)
    return built is not None and built.factory != _factory_digest(run)


@cached_step(CompiledModel)
def compile_model(run: Run, data: LoadedData, built: BuiltModel) -> CompiledModel:
    """Compile the network with a loss on logits, and save it.

    Raises:
        ConfigError: A metric, a monitor or the validation split cannot be used.
    """
    settings = run.config.training
    rows = training_rows(data.train, data.validation, run.config)
    steps = -(-len(rows) // int(settings.batch_size or 1))
    model = read_model(run, built)
    path = run.folder / "model" / "compiled.keras"
    with refusing_user_model(run.config.model.name, "compiled"):
        models.compile_model(model, settings, steps=steps * int(settings.epochs or 1))
        logits.check_model(model, data.classes, data.image_shape)
        models.save_model(model, path)
    return CompiledModel(
        path=run.relative(path), steps_per_epoch=steps, files=run.digests("model/compiled.keras")
    )


def read_model(
    run: Run, result: BuiltModel | CompiledModel | FittedModel, *, compiled: bool = False
) -> keras.Model:
    """Read the model that a step has saved, verified by its digest.

    Args:
        run: Run in staging.
        result: Result of the step.
        compiled: Whether to read the optimizer and the loss, too, which only the fit needs.
    """
    pin_threads(int(run.config.training.threads or 1))
    path = run.root / result.path
    digest = result.files[path.relative_to(run.folder).as_posix()]
    return models.load_model(
        path,
        digest,
        model_name=run.config.model.name,
        seed=run.config.seed,
        compiled=compiled,
    )


@cached_step(FittedModel)
def fit_model(
    run: Run, data: LoadedData, compiled: CompiledModel, *, progress: ProgressCallback | None = None
) -> FittedModel:
    """Fit the network, or the members of an ensemble one after another.

    The history is written after every epoch. A fit that was stopped is resumed.

    Args:
        run: Run in staging.
        data: Result of `load_data`.
        compiled: Result of `compile_model`.
        progress: Callback for finished steps and epochs.

    Returns:
        Path of the model, and how the fit went.

    Raises:
        ContractError: The network's own training or test step cannot be used.
        DivergedError: The loss became infinite or NaN.
        RunError: The user's own network raised an error during training.
        Interrupted: Ctrl-C or SIGTERM; a checkpoint was written.
        StoreError: The checkpoint belongs to another configuration, dataset or code.
    """
    threads = int(run.config.training.threads or 1)
    identity = {
        "config": run.config.digest(),
        "dataset": data.digest,
        "code": environment.code_version(),
        "model": _factory_digest(run) or "named",
        "threads": threads if pin_threads(threads) else "not pinned",
        "processor": environment.processor(),
    }
    began = time.perf_counter()
    with deferred_signals() as stop, failing_user_model(run.config.model.name, "training"):
        dataset = read_data(run, data)
        trainer = EnsembleTrainer(
            run, data, dataset, identity=identity, stop=stop, progress=progress
        )
        steps = compiled.steps_per_epoch * int(run.config.training.epochs or 1)
        model, members = trainer.fit(lambda: read_model(run, compiled, compiled=True), steps)
    with failing_user_model(run.config.model.name, "training"):
        logits.check_model(model, data.classes, data.image_shape)
    path = run.folder / "model" / "model.keras"
    models.save_model(model, path, data.preprocessing)
    return FittedModel(
        path=run.relative(path),
        epochs=sum(each.epochs for each in members),
        weights_epoch=sum(each.epochs for each in members[:-1]) + members[-1].weights_epoch,
        seconds=time.perf_counter() - began,
        remarks=tuple(remark for each in members for remark in each.remarks),
        identity=identity,
        pixels="mapped file" if is_mapped(dataset.train.images) else "memory",
        member_epochs=tuple(each.epochs for each in members),
        files=run.digests("model/model.keras"),
    )


@cached_step(HistoryTable)
def persist_history(run: Run, fitted: FittedModel) -> HistoryTable:
    """Check the history's schema and number of epochs, once the fit is done.

    Raises:
        StoreError: The table on the disk is not the history of this fit.
    """
    path = staged_table(run, "history")
    table = read_table(path, schemas.HISTORY)
    epochs = len(table["epoch"].unique())
    if epochs != fitted.epochs:
        raise StoreError(
            f"{path} has {epochs} epochs, expected {fitted.epochs}; restore it from a copy"
        )
    return HistoryTable(
        path=run.relative(path), rows=len(table), files=run.digests("tables/history.parquet")
    )


class MemberResult(NamedTuple):
    """Result of the fit of one network.

    Attributes:
        digest: SHA-256 of its file; None for the run's only network, which is still in memory.
        epochs: Number of finished epochs.
        weights_epoch: Epoch, from 1, whose weights the network has.
        remarks: Remarks on how a fit was resumed.
    """

    digest: str | None
    epochs: int
    weights_epoch: int
    remarks: tuple[str, ...]


class EnsembleTrainer:
    """Trainer of a run's network, or of the members of its ensemble one after another.

    A fit that was stopped is resumed; the network of a fit that is done is saved and read again.

    Args:
        run: Run in staging.
        data: Result of `load_data`.
        dataset: Dataset with the training and, if it has one, the validation split.
        identity: Everything that a checkpoint must have in common with this fit.
        stop: Function that returns the number of the signal that asks to stop, or None.
        progress: Callback for finished steps and epochs; epochs are counted over all members.
    """

    def __init__(
        self,
        run: Run,
        data: LoadedData,
        dataset: Dataset,
        *,
        identity: dict[str, Any],
        stop: Callable[[], int | None],
        progress: ProgressCallback | None,
    ) -> None:
        self._run, self._data, self._dataset, self._identity = run, data, dataset, identity
        self._stop, self._progress = stop, progress
        self._count = run.config.model.ensemble_size

    def fit(
        self, first: Callable[[], keras.Model], steps: int
    ) -> tuple[keras.Model, list[MemberResult]]:
        """Fit the members that are not fitted yet.

        Args:
            first: Function that returns the first network, compiled.
            steps: Number of steps of a whole fit, for the learning rate schedules of the others.

        Returns:
            The network or the ensemble, compiled and computing in float32, and the results of the
            fits.
        """
        if self._count == 1:
            model, member = self._fit_member(0, first(), self._run.config, 0)
            return model, [member]
        members: list[MemberResult] = []
        for number in range(self._count):
            config = self._run.config.model_copy(
                update={"seed": member_seed(self._run.config.seed, number)}
            )
            done = self._load_result(number)
            if done is None:
                model = first() if number == 0 else self._compile(config, steps)
                earlier_epochs = sum(each.epochs for each in members)
                done = self._save(number, *self._fit_member(number, model, config, earlier_epochs))
            members.append(done)
        networks = list(self._read_networks(members))
        ensemble = combine(networks, self._run.config.training, self._data.image_shape)
        return ensemble, members

    def _compile(self, config: RunConfig, steps: int) -> keras.Model:
        model = models.build(config, self._data.image_shape, self._data.classes)
        models.compile_model(model, config.training, steps=steps)
        return model

    def _fit_member(
        self, number: int, model: keras.Model, config: RunConfig, earlier_epochs: int
    ) -> tuple[keras.Model, MemberResult]:
        folder = self._run.folder / "checkpoints"
        logs = self._run.folder / "tensorboard"
        context = training.FitContext(
            progress=self._progress
            and _MemberProgress(self._progress, earlier_epochs, self._count),
            checkpoints=training.Checkpoints(
                folder if number == 0 else folder / f"{number}", self._identity
            ),
            on_history=self._history_writer(earlier_epochs),
            stop=self._stop,
            tensorboard=str(logs / f"{number}" if number else logs)
            if config.training.tensorboard
            else None,
        )
        # All members hold out the run's validation images: the ensemble is calibrated on them.
        try:
            fitted = training.fit(
                model,
                self._dataset.train,
                self._run.config,
                self._data.classes,
                context,
                seed=config.seed,
                validation=self._dataset.validation,
            )
        except (DivergedError, Interrupted) as error:
            if self._count > 1:
                error.add_note(f"its epochs are those of member {number + 1} of {self._count}")
            raise
        network = models.build_float32(model, config, self._data.image_shape, self._data.classes)
        return network, MemberResult(
            None, len(fitted.history.epoch), fitted.weights_epoch, fitted.remarks
        )

    def _history_writer(self, earlier_epochs: int) -> Callable[[pa.Table], None]:
        """Return a function that writes a member's history after that of the members before."""
        path = staged_table(self._run, "history")
        earlier: list[dict[str, Any]] = []
        if earlier_epochs:
            earlier = [
                row
                for row in read_table(path, schemas.HISTORY).to_pylist()
                if row["epoch"] <= earlier_epochs
            ]

        def write(table: pa.Table) -> None:
            if earlier_epochs:
                later = [
                    row | {"epoch": row["epoch"] + earlier_epochs} for row in table.to_pylist()
                ]
                table = history.table(earlier + later)
            write_table(path, table, schemas.HISTORY)

        return write

    def _path(self, number: int) -> Path:
        return self._run.folder / "model" / f"member-{number}.keras"

    def _save(self, number: int, model: keras.Model, member: MemberResult) -> MemberResult:
        member = member._replace(digest=models.save_model(model, self._path(number)))
        write_json(self._path(number).with_suffix(".json"), member._asdict())
        return member

    def _load_result(self, number: int) -> MemberResult | None:
        """Return the result of a member whose network is saved and intact, or None."""
        path = self._path(number).with_suffix(".json")
        if not path.exists():
            return None
        try:
            member = TypeAdapter(MemberResult).validate_python(read_json(path))
            is_intact = file_digest(self._path(number)) == member.digest
        except (ValidationError, OSError, StoreError):
            return None
        return member if is_intact else None

    def _read_networks(self, members: list[MemberResult]) -> Iterator[keras.Model]:
        config = self._run.config
        for number, member in enumerate(members):
            yield models.load_model(
                self._path(number),
                str(member.digest),
                model_name=config.model.name,
                seed=member_seed(config.seed, number),
                compiled=False,
            )


class _MemberProgress(NullProgress):
    """Progress callback that counts a member's epochs as those of the whole run.

    Args:
        progress: Callback of the run.
        earlier_epochs: Number of epochs of the members before.
        members: Number of members.
    """

    def __init__(self, progress: ProgressCallback, earlier_epochs: int, members: int) -> None:
        self._progress, self._earlier, self._members = progress, earlier_epochs, members

    def step(
        self, epoch: int, epochs: int, done: int, steps: int, metrics: dict[str, float]
    ) -> None:
        self._progress.step(self._earlier + epoch, self._members * epochs, done, steps, metrics)

    def epoch(self, epoch: int, epochs: int, metrics: dict[str, float], seconds: float) -> None:
        self._progress.epoch(self._earlier + epoch, self._members * epochs, metrics, seconds)
