"""The fits of a run: one, or one after another for the members of an ensemble."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import TypeAdapter, ValidationError

from nnbuild import history, models, schemas, training
from nnbuild.config import RunConfig
from nnbuild.data.dataset import Dataset
from nnbuild.errors import DivergedError, Interrupted, StoreError
from nnbuild.models.ensemble import combine, member_seed
from nnbuild.results import LoadedData
from nnbuild.steps.once import staged_table
from nnbuild.store.files import file_digest, read_json, write_json
from nnbuild.store.run import Run
from nnbuild.store.tables import read_table, write_table


class Member(NamedTuple):
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


class Fits:
    """The fits of a run; each is gone on with where it was stopped, and its network is kept once it is over.

    Args:
        run: in staging.
        data: what `load_data` returned.
        dataset: Its training examples and, if it has one, its validation split are used.
        identity: what the checkpoints belong to.
        stop: the number of the signal that asks to stop, or None.
        watch: is told of steps and epochs, see `nnbuild.training.Watch`; epochs are counted on from member to member.
    """

    def __init__(
        self,
        run: Run,
        data: LoadedData,
        dataset: Dataset,
        *,
        identity: dict[str, Any],
        stop: Callable[[], int | None],
        watch: Any,
    ) -> None:
        self._run, self._data, self._dataset, self._identity = run, data, dataset, identity
        self._stop, self._watch = stop, watch
        self._count = run.config.model.members

    def fit(self, first: Callable[[], Any], steps: int) -> tuple[Any, list[Member]]:
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
        members: list[Member] = []
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
    ) -> tuple[Any, Member]:
        folder = self._run.folder / "checkpoints"
        logs = self._run.folder / "tensorboard"
        around = training.Surroundings(
            watch=self._watch and _CountingOn(self._watch, before, self._count),
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
        return plain, Member(None, len(fitted.history.epoch), fitted.weights_epoch, fitted.remarks)

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

    def _kept(self, number: int, model: Any, member: Member) -> Member:
        member = member._replace(digest=models.save_model(model, self._file(number)))
        write_json(self._file(number).with_suffix(".json"), member._asdict())
        return member

    def _recalled(self, number: int) -> Member | None:
        path = self._file(number).with_suffix(".json")
        if not path.exists():
            return None
        try:
            known = TypeAdapter(Member).validate_python(read_json(path))
            whole = file_digest(self._file(number)) == known.digest
        except (ValidationError, OSError, StoreError):
            return None
        return known if whole else None

    def _read(self, members: list[Member]) -> Iterator[Any]:
        config = self._run.config
        for number, member in enumerate(members):
            yield models.load_model(
                self._file(number),
                str(member.digest),
                model_name=config.model.name,
                seed=member_seed(config.seed, number),
                compiled=False,
            )


class _CountingOn:
    """Tells of a member's epochs as those of the whole run."""

    def __init__(self, watch: Any, before: int, members: int) -> None:
        self._watch, self._before, self._members = watch, before, members

    def step(
        self, epoch: int, epochs: int, done: int, steps: int, metrics: dict[str, float]
    ) -> None:
        self._watch.step(self._before + epoch, self._members * epochs, done, steps, metrics)

    def epoch(self, epoch: int, epochs: int, metrics: dict[str, float], seconds: float) -> None:
        self._watch.epoch(self._before + epoch, self._members * epochs, metrics, seconds)
