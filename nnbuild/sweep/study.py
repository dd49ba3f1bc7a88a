"""Search with Optuna: the study of a sweep, the values that it draws, and its pruning."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nnbuild.errors import ConfigError, StoreError
from nnbuild.sweep.sweep import ShouldPrune, Sweep, Trial, TrialResult

if TYPE_CHECKING:
    import optuna
    from optuna.storages import RDBStorage
    from optuna.trial import FrozenTrial


def _import_optuna() -> Any:
    """Import Optuna, which is an optional dependency.

    Raises:
        ConfigError: It is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise ConfigError(
            "a search needs Optuna, which is not installed; pip install 'nnbuild[sweep]'"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def require_possible(sweep: Sweep) -> None:
    """Refuse a search that cannot begin.

    A storage that the user named is opened; the store's own is created when needed.

    Raises:
        ConfigError: Optuna is not installed, or the storage's URL is invalid.
        StoreError: The storage cannot be opened.
    """
    if not sweep.config.search:
        return
    optuna = _import_optuna()
    if sweep.config.storage is not None:
        _open_storage(optuna, sweep.config.storage)


def _open_storage(optuna: Any, url: str) -> "RDBStorage":
    import sqlalchemy

    try:
        parsed = sqlalchemy.make_url(url)
    except (sqlalchemy.exc.ArgumentError, ValueError) as error:
        raise ConfigError(
            f"storage {url!r} is not a database URL; write it like sqlite:///sweep.db",
            setting="storage",
            value=url,
        ) from error
    shown = parsed.render_as_string(hide_password=True)
    if parsed.drivername.startswith("sqlite"):
        _require_file(shown, parsed.database)
    try:
        # No connection waits in a pool: trials take hours, and servers close those that are idle.
        engine = {"poolclass": sqlalchemy.NullPool}
        storage: RDBStorage = optuna.storages.RDBStorage(url, engine_kwargs=engine)
    except ImportError as error:
        raise ConfigError(
            f"storage {shown} needs a driver that is not installed ({error}); install it",
            setting="storage",
            value=shown,
        ) from error
    except Exception as error:  # a driver raises anything
        first = (" ".join(str(error).split()) or type(error).__name__)[:150]
        raise StoreError(
            f"storage {shown} cannot be opened ({first}); start the database, or fix the URL",
            setting="storage",
            value=shown,
        ) from error
    return storage


def _require_file(url: str, database: str | None) -> None:
    """Refuse an SQLite database that would not outlive the process, or has no folder."""
    if database in {None, "", ":memory:"}:
        raise ConfigError(
            f"storage {url} is in memory, expected a file; write it like sqlite:///sweep.db",
            setting="storage",
            value=url,
        )
    folder = Path(str(database)).parent
    if not folder.is_dir():
        raise StoreError(
            f"storage {url}: there is no folder {folder}; create it first",
            setting="storage",
            value=url,
        )


class Study:
    """The Optuna study of a sweep, created if it does not exist.

    Args:
        sweep: Sweep, locked by `nnbuild.sweep.sweep_context`.

    Raises:
        StoreError: The storage cannot be opened.
    """

    def __init__(self, sweep: Sweep) -> None:
        self._optuna = _import_optuna()
        self._sweep = sweep
        self._dimensions = sweep.config.dimensions()
        pruners = self._optuna.pruners
        self._study = self._optuna.create_study(
            study_name=sweep.sweep_id,
            storage=_open_storage(self._optuna, sweep.storage),
            direction="maximize" if sweep.config.objective == "val_accuracy" else "minimize",
            pruner=pruners.MedianPruner() if sweep.config.prune else pruners.NopPruner(),
            load_if_exists=True,
        )

    def begun(self) -> list[Trial]:
        """Return all trials so far, also those that were stopped."""
        return [self._trial(each.number) for each in self._study.get_trials(deepcopy=False)]

    def ask(self) -> Trial:
        """Draw a new trial."""
        return self._trial(self._study.ask().number)

    def _trial(self, number: int) -> Trial:
        """Return a trial with all its values, drawing those that it does not have yet.

        What is drawn depends on the seed, the number of the trial, the position of the setting and
        the results so far alone, so that a search that was stopped draws the same values.
        """
        known = self._study.get_trials(deepcopy=False)[number]
        if known.state.is_finished():
            return Trial(number=number, values=known.params)
        trial = self._open(known)
        values = {}
        for position, (key, dimension) in enumerate(self._dimensions.items()):
            entropy = [self._sweep.config.run.seed, number, position]
            seed = int(np.random.SeedSequence(entropy).generate_state(1)[0])
            self._study.sampler = self._optuna.samplers.TPESampler(seed=seed)
            values[key] = dimension.suggest(key, trial)  # or recall, if drawn before a kill
        return Trial(number=number, values=values)

    def _open(self, known: "FrozenTrial") -> "optuna.Trial":
        """Return an unfinished trial in a form that can draw values and report objectives."""
        trial_id = known._trial_id  # noqa: SLF001  (Optuna has no public way to continue a trial)
        trial: optuna.Trial = self._optuna.trial.Trial(self._study, trial_id)
        return trial

    def record(self, result: TrialResult) -> None:
        """Record the result of a trial; a second time changes nothing."""
        states = self._optuna.trial.TrialState
        state = {"finished": states.COMPLETE, "pruned": states.PRUNED, "failed": states.FAIL}[
            result.state
        ]
        self._study.tell(result.number, result.value, state=state, skip_if_finished=True)

    def pruning(self, number: int) -> ShouldPrune | None:
        """Return the function that decides whether to prune a trial; None if it has ended.

        Args:
            number: Number of the trial.
        """
        known = self._study.get_trials(deepcopy=False)[number]
        if known.state.is_finished():
            return None
        trial = self._open(known)
        reported = set(known.intermediate_values)

        def should_prune(epoch: int, value: float) -> bool:
            if epoch not in reported:  # a resumed run may repeat an epoch
                trial.report(value, epoch)
            return bool(trial.should_prune())

        return should_prune
