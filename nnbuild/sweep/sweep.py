"""A sweep in the store: its record in staging, and the runs that carry its id."""

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
    """Which trial of which sweep a run is, as any version of nnbuild has written it."""

    sweep: str
    number: int


class _Tagged(BaseModel):
    """What a run's config says of its sweep."""

    seed: int
    trial: _Tag | None = None


@dataclass(frozen=True)
class Sweep:
    """A handle that is small enough to pass between tasks.

    Attributes:
        root: address of the store.
        sweep_id: the sweep's id, by which its runs are found.
        config: what it goes over.
    """

    root: str
    sweep_id: str
    config: SweepConfig

    @cached_property
    def store(self) -> Store:
        """The store."""
        return Store(self.root)

    @property
    def folder(self) -> Path:
        """Where the sweep keeps its record and, of a search, its study."""
        return self.store.local_root / "staging" / f"sweep-{self.sweep_id}"

    @property
    def storage(self) -> str:
        """The URL of Optuna's storage."""
        return self.config.storage or f"sqlite:///{self.folder / 'study.db'}"

    def runs(self) -> dict[tuple[int, int], str]:
        """The ids of the sweep's runs, committed or waiting, by the trial's number and the run's seed."""
        found: dict[tuple[int, int], str] = {}
        if not self.store.root.exists():
            return found
        committed = (
            self.store.read_table("runs", columns=["config"]) if self.store.run_ids() else None
        )
        for row in committed.to_pylist() if committed is not None else ():
            with suppress(ValueError):  # another's, that cannot be read
                self._note(found, row["run_id"], json.loads(row["config"]))
        for waiting in self.store.unfinished_runs():
            with suppress(StoreError):  # another's, that cannot be read
                self._note(
                    found,
                    waiting.run_id,
                    Run(self.store.local_root, waiting.run_id).record["config"],
                )
        return found

    def _note(self, found: dict[tuple[int, int], str], run_id: str, config: Any) -> None:
        """Configs are taken as they were written: a store may hold those of another version."""
        try:
            known = _Tagged.model_validate(config)
        except ValidationError:
            return
        if known.trial is not None and known.trial.sweep == self.sweep_id:
            found[known.trial.number, known.seed] = run_id

    def waiting(self, run_id: str) -> Run | None:
        """A run of the sweep that is in staging; None if it is committed."""
        return None if run_id in self.store.run_ids() else self.store.unfinished_run(run_id)


def open_sweep(
    config: SweepConfig | None, root: Path | str | None = None, sweep_id: str | None = None
) -> Sweep:
    """Find a sweep, or say what it will be; nothing is written before `run_context`.

    Args:
        config: what it goes over; None to go on with a sweep by its id.
        root: of the store.
        sweep_id: a name for it; made of the config's digest if not given, so that the same config is the same sweep.

    Raises:
        ConfigError: the id is none, or names a sweep with another config.
        StoreError: the store cannot be used, or has no sweep of that id to go on with.
    """
    store = Store(root)
    if sweep_id is not None and not re.fullmatch(SWEEP_ID, sweep_id):
        raise ConfigError(
            f"--id {sweep_id!r}: expected lower-case letters, digits, dashes and underscores, 64 at the most"
        )
    if sweep_id is None and config is None:
        raise ConfigError(
            "nothing varies; give --grid KEY=A,B or --search KEY=LOW..HIGH, or --id of a sweep"
        )
    name = sweep_id or (config.digest()[:_ID_DIGITS] if config else "")
    path = store.local_root / "staging" / f"sweep-{name}" / _RECORD
    known = _recorded(path) if path.exists() else None
    chosen = config or known
    if chosen is None:
        store.require()
        raise StoreError(f"no sweep {name} in {store.root}; give --grid or --search to begin it")
    if config is not None and known is not None and known.digest() != config.digest():
        raise ConfigError(
            f"sweep {name} was begun with other settings; give another --id, or --id alone to go on"
        )
    return Sweep(str(store.root), name, chosen)


def _recorded(path: Path) -> SweepConfig:
    try:
        return SweepConfig.model_validate(read_json(path))
    except ValidationError as error:
        raise StoreError(
            f"{path} is not a record of a sweep: {problem(error)}; give another --id"
        ) from error


@contextmanager
def sweep_context(sweep: Sweep) -> Iterator[None]:
    """Hold a sweep while its trials are made.

    Bad input with which no run could begin leaves the store as it was. Whatever else happens, the sweep can be gone
    on with.

    Raises:
        LockedError: another process holds the sweep.
    """
    commit.complete_interrupted_commits(sweep.store)
    created = sweep.store.create()
    with os_errors_as_store_errors(f"write to store {sweep.root}"):
        make_durable_dir(sweep.folder)
    with locks.lock(sweep.folder):  # whoever does not get it must leave the folder alone
        try:
            write_json(sweep.folder / _RECORD, sweep.config.model_dump(mode="json"))
            yield
        except StoreGoneError:
            raise
        except InputError:
            if not sweep.runs():
                sweep.store.discard_folder(sweep.folder, created)
            raise


Report = Callable[[int, float], bool]
"""Given an epoch (from 1) and the objective, whether to give up."""


class Trial(BaseModel):
    """What is tried.

    Attributes:
        number: from 0.
        values: of the settings that vary, by dotted key.
    """

    model_config = ConfigDict(frozen=True)
    number: int
    values: dict[str, JsonValue]


class TrialResult(BaseModel):
    """What came of a trial.

    Attributes:
        state: `finished` if each of its runs succeeded; `pruned` or `failed` at the first that did not.
        value: mean over its runs of the objective of the network that was kept; None unless finished.
        runs: ids of its runs, by seed.
        error: why it is not finished.
    """

    model_config = ConfigDict(frozen=True)
    number: int
    values: dict[str, JsonValue]
    state: Literal["finished", "pruned", "failed"]
    value: float | None
    runs: tuple[str, ...]
    error: str | None = None
