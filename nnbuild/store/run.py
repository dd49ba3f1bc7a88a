"""A run in progress: its folder in staging, its config, and the results of its finished steps."""

import math
import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from nnbuild.config.schema import RunConfig
from nnbuild.errors import StoreError
from nnbuild.runtime import environment
from nnbuild.store import commands
from nnbuild.store.filesystem import file_digest, read_json, write_json
from nnbuild.store.ids import require_id
from nnbuild.store.json_models import Moment, read_model
from nnbuild.store.step_results import StepResult

R = TypeVar("R", bound=StepResult)


@dataclass(frozen=True)
class Run:
    """A handle of a run, small enough to pass between tasks.

    Attributes:
        root: Absolute path of the local folder whose `staging/` holds the run, see
            `Store.local_root`.
        run_id: ID of the run.
        url: URL of the store if it is remote.
    """

    root: Path
    run_id: str
    url: str | None = None

    def __post_init__(self) -> None:
        require_id(self.run_id)

    @property
    def store(self) -> str:
        """Return the path or URL of the store that the run belongs to."""
        return self.url or str(self.root)

    @property
    def folder(self) -> Path:
        """Return the folder of the run's files until it is committed."""
        return self.root / "staging" / self.run_id

    @cached_property
    def record(self) -> dict[str, Any]:
        """Return the record that was written when the run began.

        Raises:
            StoreError: The record is missing or damaged.
        """
        path = self.folder / "run.json"
        remedy = f"clear it by {commands.REPAIR}"
        return read_model(path, _Record, "the record of a run", remedy=remedy).model_dump()

    @cached_property
    def config(self) -> RunConfig:
        """Return the resolved config.

        Raises:
            StoreError: The config was written by another version of nnbuild.
        """
        try:
            return RunConfig.model_validate(self.record["config"])
        except ValidationError as error:
            raise StoreError(
                f"run {self.run_id} has a config that this version of nnbuild does not know "
                f"({error.error_count()} fields); resume it with the version that began it"
            ) from error

    def attach_flow_run(self, flow_run_id: str) -> None:
        """Record the Prefect flow run that resumes the run, and that shows its remaining steps.

        This clears an earlier cancellation.
        """
        self._amend(flow_run_id=flow_run_id, cancelled_at=None)

    @property
    def resume_command(self) -> str:
        """Return the command that resumes the run, or the sweep that it is a trial of."""
        trial = self.config.trial
        if trial is None:
            return commands.resume_run(self.run_id, self.store)
        return commands.resume_sweep(trial.sweep, self.store)

    def release(self) -> None:
        """Release the run from its flow run, so that a person resumes it."""
        self._amend(flow_run_id=None)

    def mark_cancelled(self, at: datetime) -> None:
        """Record that a person has cancelled the run: no scheduled run resumes it."""
        self._amend(cancelled_at=at.astimezone(UTC).isoformat())

    @property
    def was_cancelled(self) -> bool:
        """Return whether the run was cancelled by a person and not resumed since."""
        return self.record.get("cancelled_at") is not None

    def _amend(self, **values: str | None) -> None:
        write_json(self.folder / "run.json", self.record | values)
        vars(self).pop("record", None)

    @property
    def started_at(self) -> datetime:
        """Return the start time, UTC."""
        return datetime.fromisoformat(self.record["started_at"]).astimezone(UTC)

    @property
    def store_id(self) -> str | None:
        """Return the ID of the store in which the run began.

        None if the run created the store, or the store had no ID.
        """
        found = self._begun_in.get("id")
        return found if isinstance(found, str) else None

    @property
    def created(self) -> list[str]:
        """Return the parts of the store that were created for this run, see `Store.create`."""
        found = self._begun_in.get("created")
        return found if isinstance(found, list) else []

    @property
    def _begun_in(self) -> dict[str, Any]:
        try:
            found = self.record.get("store")
        except StoreError:
            return {}
        return found if isinstance(found, dict) else {}

    def relative(self, path: Path) -> str:
        """Return a path relative to the root, as tables and results contain it."""
        return path.relative_to(self.root).as_posix()

    def save_result(self, result: StepResult, seconds: float) -> None:
        """Record that a step is done; its files must be on the disk by now.

        Args:
            result: Result of the step.
            seconds: Duration of the step.
        """
        write_json(
            self._result_path(type(result)),
            {"seconds": seconds, "result": result.model_dump(mode="json")},
        )

    def load_result(self, kind: type[R]) -> R | None:
        """Return the result of the step that returns this type.

        Args:
            kind: Type of the step's result.

        Returns:
            The result, or None if the step is not done or its files have changed since.
        """
        path = self._result_path(kind)
        if not path.exists():
            return None
        try:
            result = kind.model_validate(_read_step(path)["result"])
        except (StoreError, ValidationError):
            return None
        whole = all(
            (self.folder / name).is_file() and file_digest(self.folder / name) == digest
            for name, digest in result.files.items()
        )
        return result if whole else None

    def invalidate(self, *kinds: type[StepResult]) -> None:
        """Remove the results of steps, so that they run again.

        Args:
            kinds: Types of the steps' results.
        """
        for kind in kinds:
            self._result_path(kind).unlink(missing_ok=True)

    def _result_path(self, kind: type[StepResult]) -> Path:
        return self.folder / "steps" / f"{kind.step}.json"

    def clear(self) -> None:
        """Remove the run from staging."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def seconds(self) -> dict[str, float]:
        """Return the duration of each finished step in seconds."""
        # Temporary files, which a killed process may leave behind, begin with a dot.
        steps = sorted((self.folder / "steps").glob("[!.]*.json"))
        return {path.stem: float(_read_step(path)["seconds"]) for path in steps}

    def digests(self, *names: str) -> dict[str, str]:
        """Return the SHA-256 of files in the run's folder, by their path in it."""
        return {name: file_digest(self.folder / name) for name in names}


class _Record(BaseModel):
    """Content of `run.json`; other versions of nnbuild may add fields."""

    model_config = ConfigDict(extra="allow")
    started_at: Moment
    flow_run_id: str | None = None
    code_version: str
    config: dict[str, Any]


def _read_step(path: Path) -> dict[str, Any]:
    """Read a file that `Run.save_result` wrote.

    Raises:
        StoreError: The file is damaged.
    """
    kept = read_json(path)
    if (
        isinstance(kept, dict)
        and isinstance(kept.get("seconds"), (int, float))
        and math.isfinite(kept["seconds"])
        and "result" in kept
    ):
        return kept
    raise StoreError(f"{path} is not a valid record of a step; remove it to repeat the step")


def create(
    run: Run,
    config: RunConfig,
    *,
    started_at: datetime,
    flow_run_id: str | None,
    store: dict[str, Any],
) -> Run:
    """Open the staging folder of a new run.

    Args:
        run: New run.
        config: Resolved config.
        started_at: Start time, with a time zone.
        flow_run_id: ID of the Prefect flow run, if there is one.
        store: The store's `id`, and the parts of it that were `created` for this run.
    """
    write_json(
        run.folder / "run.json",
        {
            "run_id": run.run_id,
            "started_at": started_at.astimezone(UTC).isoformat(),
            "flow_run_id": flow_run_id,
            "code_version": environment.code_version(),
            "store": store,
            "config": config.model_dump(mode="json"),
        },
    )
    return run
