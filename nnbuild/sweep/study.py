"""A search by Optuna: its study, what it asks for and is told, and its pruning."""

from typing import Any

import numpy as np

from nnbuild.errors import ConfigError, StoreError
from nnbuild.sweep.sweep import Report, Sweep, Trial, TrialResult


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise ConfigError(
            "a search needs Optuna, which is not installed; pip install 'nnbuild[sweep]'"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def require_possible(sweep: Sweep) -> None:
    """Refuse what cannot begin. A storage that was named is opened and closed; the store's own is made when needed.

    Raises:
        ConfigError: a search, and Optuna is not installed, or the storage's URL is none.
        StoreError: nobody answers there.
    """
    if not sweep.config.search:
        return
    optuna = _optuna()
    if sweep.config.storage is not None:
        _storage(optuna, sweep.config.storage).remove_session()


def _storage(optuna: Any, url: str) -> Any:
    import sqlalchemy

    try:
        where = sqlalchemy.make_url(url)
    except (sqlalchemy.exc.ArgumentError, ValueError) as error:
        raise ConfigError(
            f"--storage {url!r} is no database URL; write it like sqlite:///sweep.db"
        ) from error
    told = where.render_as_string(hide_password=True)
    if where.drivername.startswith("sqlite"):
        _require_file(told, where.database)
    try:
        return optuna.storages.RDBStorage(url)
    except ImportError as error:
        raise ConfigError(
            f"--storage {told} needs a driver that is not installed ({error}); install it"
        ) from error
    except Exception as error:  # a driver raises whatever it meets
        first = (" ".join(str(error).split()) or type(error).__name__)[:150]
        raise StoreError(
            f"--storage {told} cannot be opened ({first}); start the database, or mend the URL"
        ) from error


def _require_file(told: str, database: str | None) -> None:
    from pathlib import Path

    if database in {None, "", ":memory:"}:
        raise ConfigError(
            f"--storage {told} is in memory, expected a file; write it like sqlite:///sweep.db"
        )
    if not Path(database).parent.is_dir():
        raise StoreError(
            f"--storage {told}: there is no folder {Path(database).parent}; make it first"
        )


class Study:
    """A study of Optuna, opened for a sweep; made if it is not there.

    Args:
        sweep: held by `nnbuild.sweep.sweep_context`.

    Raises:
        StoreError: the storage cannot be opened.
    """

    def __init__(self, sweep: Sweep) -> None:
        self._optuna = _optuna()
        self._sweep = sweep
        self._dimensions = sweep.config.dimensions()
        self._study = self._optuna.create_study(
            study_name=sweep.sweep_id,
            storage=_storage(self._optuna, sweep.storage),
            direction="maximize" if sweep.config.objective == "val_accuracy" else "minimize",
            pruner=self._optuna.pruners.MedianPruner()
            if sweep.config.prune
            else self._optuna.pruners.NopPruner(),
            load_if_exists=True,
        )

    def begun(self) -> list[Trial]:
        """The trials so far, those that were stopped in the middle included."""
        return [self._drawn(each._trial_id) for each in self._study.get_trials(deepcopy=False)]  # noqa: SLF001

    def ask(self) -> Trial:
        """A new trial."""
        return self._drawn(self._study.ask()._trial_id)  # noqa: SLF001  (its id is not to be had otherwise)

    def _drawn(self, trial_id: int) -> Trial:
        """What is drawn follows from the seed, the trial's number, the setting's and the results so far."""
        known = self._study._storage.get_trial(trial_id)  # noqa: SLF001
        if known.state.is_finished():
            return Trial(number=known.number, values=known.params)
        trial = self._optuna.trial.Trial(self._study, trial_id)
        values = {}
        for place, (key, each) in enumerate(
            self._dimensions.items()
        ):  # some may have been drawn before a kill
            seeds = np.random.SeedSequence([self._sweep.config.run.seed, trial.number, place])
            self._study.sampler = self._optuna.samplers.TPESampler(
                seed=int(seeds.generate_state(1)[0])
            )
            values[key] = each.suggest(key, trial)
        return Trial(number=trial.number, values=values)

    def tell(self, result: TrialResult) -> None:
        """Note what came of a trial; a second time changes nothing."""
        states = self._optuna.trial.TrialState
        state = {"finished": states.COMPLETE, "pruned": states.PRUNED, "failed": states.FAIL}[
            result.state
        ]
        self._study.tell(result.number, result.value, state=state, skip_if_finished=True)

    def reporter(self, number: int) -> Report | None:
        """What a running trial reports its epochs to; None if it has ended."""
        known = self._study.get_trials(deepcopy=False)[number]
        if known.state.is_finished():
            return None
        trial = self._optuna.trial.Trial(self._study, known._trial_id)  # noqa: SLF001
        told = set(known.intermediate_values)

        def report(epoch: int, value: float) -> bool:
            if epoch not in told:  # a resumed run may come to an epoch again
                trial.report(value, epoch)
            return bool(trial.should_prune())

        return report
