"""A sweep in the store: its record in staging, its trials, and its runs."""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from nnbuild.config.sections import SWEEP_ID
from nnbuild.errors import ConfigError, InputError, StoreError, StoreGoneError
from nnbuild.pipeline import commit
from nnbuild.store import Run, Store, locks
from nnbuild.store.filesystem import (
    make_durable_dir,
    os_errors_as_store_errors,
    read_json,
    write_json,
)
from nnbuild.store.json_models import problem
from nnbuild.sweep.space import SweepConfig

_RECORD = "sweep.json"
_ID_DIGITS = 12


class _Tag(BaseModel):
    """Trial and sweep of a run, as any version of nnbuild wrote them."""

    sweep: str
    number: int


class _Tagged(BaseModel):
    """The part of a run's configuration that identifies its trial."""

    seed: int
    trial: _Tag | None = None


@dataclass(frozen=True)
class Sweep:
    """A sweep; the handle is small enough to pass between tasks.

    Attributes:
        root: Root of the store.
        sweep_id: ID of the sweep, which its runs carry.
        config: Configuration of the sweep.
    """

    root: str
    sweep_id: str
    config: SweepConfig

    @cached_property
    def store(self) -> Store:
        """Return the store."""
        return Store(self.root)

    @property
    def folder(self) -> Path:
        """Return the folder with the record of the sweep and the study of a search."""
        return self.store.local_root / "staging" / f"sweep-{self.sweep_id}"

    @property
    def storage(self) -> str:
        """Return the URL of Optuna's storage."""
        return self.config.storage or f"sqlite:///{self.folder / 'study.db'}"

    def runs(self) -> dict[tuple[int, int], str]:
        """Return the IDs of the sweep's runs, committed or not, by number of the trial and seed."""
        runs: dict[tuple[int, int], str] = {}
        if not self.store.root.exists():
            return runs
        for run_id, config in self._configs():
            # Runs of other sweeps and other versions of nnbuild may have a config of any form.
            with suppress(ValidationError):
                known = _Tagged.model_validate(config)
                if known.trial is not None and known.trial.sweep == self.sweep_id:
                    runs[known.trial.number, known.seed] = run_id
        return runs

    def _configs(self) -> Iterator[tuple[str, Any]]:
        """Yield ID and config of each run in the store, as the run has recorded it."""
        if self.store.run_ids():
            for row in self.store.read_table("runs", columns=["config"]).to_pylist():
                with suppress(ValueError):  # not JSON
                    yield row["run_id"], json.loads(row["config"])
        for unfinished in self.store.unfinished_runs():
            run = Run(self.store.local_root, unfinished.run_id)
            with suppress(StoreError):  # a damaged record
                yield unfinished.run_id, run.record["config"]

    def unfinished_run(self, run_id: str) -> Run | None:
        """Return a run of the sweep that is in staging; None if it is committed."""
        return None if run_id in self.store.run_ids() else self.store.unfinished_run(run_id)


def open_sweep(
    config: SweepConfig | None, root: Path | str | None = None, sweep_id: str | None = None
) -> Sweep:
    """Return a new sweep, or one to resume; nothing is written before `sweep_context`.

    Args:
        config: Configuration; None to resume a sweep by its ID.
        root: Root of the store; `$NNBUILD_STORE` or `./nnbuild-store` if None.
        sweep_id: ID of the sweep; made from the configuration's digest if None, so that the same
            configuration is the same sweep.

    Raises:
        ConfigError: The ID is invalid, or names a sweep with another configuration.
        StoreError: The store cannot be used, or has no sweep with this ID to resume.
    """
    store = Store(root)
    if sweep_id is not None and not re.fullmatch(SWEEP_ID, sweep_id):
        raise ConfigError(
            f"invalid sweep ID {sweep_id!r}, expected at most 64 lower-case letters, digits, "
            "dashes and underscores",
            setting="sweep_id",
            value=sweep_id,
        )
    if sweep_id is None and config is None:
        raise ConfigError("nothing varies; give a grid or a search, or the ID of a sweep to resume")
    name = sweep_id or (config.digest()[:_ID_DIGITS] if config else "")
    path = store.local_root / "staging" / f"sweep-{name}" / _RECORD
    known = _recorded(path) if path.exists() else None
    chosen = config or known
    if chosen is None:
        store.require()
        raise StoreError(
            f"there is no sweep {name} in {store.root}; give a grid or a search to begin it"
        )
    if config is not None and known is not None and known.digest() != config.digest():
        raise ConfigError(
            f"sweep {name} was begun with other settings; give another ID, or the ID alone to "
            "resume it",
            setting="sweep_id",
            value=name,
        )
    return Sweep(str(store.root), name, chosen)


def _recorded(path: Path) -> SweepConfig:
    try:
        return SweepConfig.model_validate(read_json(path))
    except ValidationError as error:
        raise StoreError(
            f"{path} is not a valid record of a sweep: {problem(error)}; give another ID"
        ) from error


@contextmanager
def sweep_context(sweep: Sweep) -> Iterator[None]:
    """Lock a sweep while its trials run.

    If bad input lets no run begin, the store is left as it was. In any other case the sweep can be
    resumed.

    Args:
        sweep: Sweep from `open_sweep`.

    Raises:
        LockedError: Another process holds the sweep.
    """
    commit.complete_interrupted_commits(sweep.store)
    created = sweep.store.create()
    with os_errors_as_store_errors(f"write to store {sweep.root}"):
        make_durable_dir(sweep.folder)
    with locks.lock(sweep.folder):  # without the lock, the folder is another process's
        try:
            write_json(sweep.folder / _RECORD, sweep.config.model_dump(mode="json"))
            yield
        except StoreGoneError:
            raise
        except InputError:
            if not sweep.runs():
                sweep.store.discard_folder(sweep.folder, created)
            raise


ShouldPrune = Callable[[int, float], bool]
"""Function that gets an epoch, from 1, and its objective, and returns whether to prune the run."""


class Trial(BaseModel):
    """One combination of values.

    Attributes:
        number: Number of the trial, from 0.
        values: Values of the settings that vary, by dotted key.
    """

    model_config = ConfigDict(frozen=True)
    number: int
    values: dict[str, JsonValue]


class TrialResult(BaseModel):
    """Result of a trial.

    Attributes:
        number: Number of the trial, from 0.
        values: Values of the settings that vary, by dotted key.
        state: `finished` if all of its runs succeeded, else `pruned` or `failed` like the first
            that did not.
        value: Mean objective of the final networks over its runs; None unless finished.
        runs: IDs of its runs by seed.
        error: Reason why it is not finished.
    """

    model_config = ConfigDict(frozen=True)
    number: int
    values: dict[str, JsonValue]
    state: Literal["finished", "pruned", "failed"]
    value: float | None
    runs: tuple[str, ...]
    error: str | None = None
