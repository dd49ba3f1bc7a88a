"""Build, compile and fit the network, and persist its history."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import TypeAdapter, ValidationError

from nnbuild import logits, models, training
from nnbuild.config.schema import RunConfig, is_factory
from nnbuild.data.dataset import Dataset
from nnbuild.errors import ContractError, DivergedError, Interrupted, StoreError
from nnbuild.models.custom import factory_digest, failing_user_model, refusing_user_model
from nnbuild.models.ensemble import combine, member_seed
from nnbuild.pipeline.data import read_data
from nnbuild.pipeline.step import cached_step, staged_table
from nnbuild.runtime import environment
from nnbuild.runtime.progress import NullProgress, ProgressCallback
from nnbuild.runtime.signals import deferred_signals
from nnbuild.runtime.tensorflow import pin_threads
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


class MemberResult(NamedTuple):
    """One network that was fitted.

    Attributes:
        digest: sha256 of its file; None if it is the run's only network, which is still in memory.
        epochs: that were finished.
        weights_epoch: the epoch, from 1, whose weights it has.
        remarks: what a resume had to say.
    """

    digest: str | None
    epochs: int
    weights_epoch: int
    remarks: tuple[str, ...]


class EnsembleTrainer:
    """The fits of a run; each is gone on with where it was stopped, and its network is kept once it is over.

    Args:
        run: in staging.
        data: what `load_data` returned.
        dataset: Its training examples and, if it has one, its validation split are used.
        identity: what the checkpoints belong to.
        stop: the number of the signal that asks to stop, or None.
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
        self._count = run.config.model.members

    def fit(self, first: Callable[[], Any], steps: int) -> tuple[Any, list[MemberResult]]:
        """Fit what is not fitted yet.

        Args:
            first: gives the first network, compiled.
            steps: of a whole fit, for the schedules of the others.

        Returns:
            The network, or the ensemble, computing in float32 and compiled; and how each fit went.
        """
        if self._count == 1:
            model, member = self._fitted(0, first(), self._run.config, 0)
            return model, [member]
        members: list[MemberResult] = []
        for number in range(self._count):
            config = self._run.config.model_copy(
                update={"seed": member_seed(self._run.config.seed, number)}
            )
            known = self._recalled(number)
            if known is None:
                model = first() if number == 0 else self._compiled(config, steps)
                known = self._kept(
                    number,
                    *self._fitted(number, model, config, sum(each.epochs for each in members)),
                )
            members.append(known)
        return combine(
            list(self._read(members)), self._run.config.training, self._data.image_shape
        ), members

    def _compiled(self, config: RunConfig, steps: int) -> Any:
        model = models.build(config, self._data.image_shape, self._data.classes)
        models.compile_model(model, config.training, steps=steps)
        return model

    def _fitted(
        self, number: int, model: Any, config: RunConfig, before: int
    ) -> tuple[Any, MemberResult]:
        folder = self._run.folder / "checkpoints"
        logs = self._run.folder / "tensorboard"
        around = training.FitContext(
            progress=self._progress and _MemberProgress(self._progress, before, self._count),
            checkpoints=training.Checkpoints(
                folder if number == 0 else folder / f"{number}", self._identity
            ),
            on_history=self._writer(before),
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
                around,
                seed=config.seed,
                validation=self._dataset.validation,
            )
        except (DivergedError, Interrupted) as error:
            if self._count > 1:
                error.add_note(f"its epochs are those of member {number + 1} of {self._count}")
            raise
        plain = models.build_float32(model, config, self._data.image_shape, self._data.classes)
        return plain, MemberResult(
            None, len(fitted.history.epoch), fitted.weights_epoch, fitted.remarks
        )

    def _writer(self, before: int) -> Callable[[Any], None]:
        """Writes the history so far behind that of the members before."""
        path = staged_table(self._run, "history")
        earlier: list[dict[str, Any]] = []
        if before:
            earlier = [
                row
                for row in read_table(path, schemas.HISTORY).to_pylist()
                if row["epoch"] <= before
            ]

        def write(table: Any) -> None:
            later = (
                [row | {"epoch": row["epoch"] + before} for row in table.to_pylist()]
                if before
                else []
            )
            write_table(path, history.table(earlier + later) if before else table, schemas.HISTORY)

        return write

    def _file(self, number: int) -> Path:
        return self._run.folder / "model" / f"member-{number}.keras"

    def _kept(self, number: int, model: Any, member: MemberResult) -> MemberResult:
        member = member._replace(digest=models.save_model(model, self._file(number)))
        write_json(self._file(number).with_suffix(".json"), member._asdict())
        return member

    def _recalled(self, number: int) -> MemberResult | None:
        path = self._file(number).with_suffix(".json")
        if not path.exists():
            return None
        try:
            known = TypeAdapter(MemberResult).validate_python(read_json(path))
            whole = file_digest(self._file(number)) == known.digest
        except (ValidationError, OSError, StoreError):
            return None
        return known if whole else None

    def _read(self, members: list[MemberResult]) -> Iterator[Any]:
        config = self._run.config
        for number, member in enumerate(members):
            yield models.load_model(
                self._file(number),
                str(member.digest),
                model_name=config.model.name,
                seed=member_seed(config.seed, number),
                compiled=False,
            )


class _MemberProgress(NullProgress):
    """Progress callback that counts a member's epochs as those of the whole run."""

    def __init__(self, progress: ProgressCallback, before: int, members: int) -> None:
        self._progress, self._before, self._members = progress, before, members

    def step(
        self, epoch: int, epochs: int, done: int, steps: int, metrics: dict[str, float]
    ) -> None:
        self._progress.step(self._before + epoch, self._members * epochs, done, steps, metrics)

    def epoch(self, epoch: int, epochs: int, metrics: dict[str, float], seconds: float) -> None:
        self._progress.epoch(self._before + epoch, self._members * epochs, metrics, seconds)


@cached_step(BuiltModel)
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
    built = run.load_result(BuiltModel)
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


@cached_step(CompiledModel)
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


@cached_step(FittedModel)
def fit_model(
    run: Run, data: LoadedData, compiled: CompiledModel, *, progress: ProgressCallback | None = None
) -> FittedModel:
    """Fit the network, or the members of an ensemble one after another; the history is on the disk after every epoch.

    A fit that was stopped is gone on with.

    Args:
        run: in staging.
        data: what `load_data` returned.
        compiled: what `compile_model` returned.
        progress: Callback for finished steps and epochs.

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
        "code": environment.code_version(),
        "model": _factory(run) or "named",
        "threads": threads if pin_threads(threads) else "not pinned",
        "processor": environment.processor(),
    }
    began = time.perf_counter()
    with deferred_signals() as stop, failing_user_model(run.config.model.name, "training"):
        fits = EnsembleTrainer(
            run, data, read_data(run, data), identity=identity, stop=stop, progress=progress
        )
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


@cached_step(HistoryTable)
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
