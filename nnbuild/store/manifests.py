"""The manifest of a run: what a commit writes, and what every reader may rely on."""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, Self

import pyarrow as pa
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, FiniteFloat, ValidationError
from pydantic import model_validator as validator

from nnbuild.errors import StoreError
from nnbuild.store import schemas
from nnbuild.store.filesystem import read_json
from nnbuild.store.json_models import Moment, lacks, problem, validated
from nnbuild.store.step_results import (
    MANIFEST_STEPS,
    BuiltModel,
    CheckedData,
    Evaluated,
    FittedModel,
    LoadedData,
    StepResult,
)

_OF_SUCCESS: tuple[type[StepResult], ...] = (
    LoadedData,
    CheckedData,
    BuiltModel,
    FittedModel,
    Evaluated,
)


def _inside(name: str) -> str:
    """Refuse the path of a file that is not below the store's root."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts or "\0" in name:
        raise ValueError("expected a path below the store's root")
    return name


class _Recorded(BaseModel):
    """Part of a manifest; other versions of nnbuild may write more fields."""

    model_config = ConfigDict(extra="ignore")


class Row(_Recorded):
    """The row of the table `runs`."""

    status: Literal["succeeded", "failed"]
    error: str | None
    started_at: Moment
    finished_at: Moment
    dataset: str | None
    dataset_digest: str | None
    model: str
    seed: int = Field(ge=-(2**63), lt=2**63)
    epochs: int = Field(ge=0, lt=2**31)
    test_accuracy: FiniteFloat | None
    test_loss: FiniteFloat | None
    promoted: bool
    flow_run_id: str | None
    code_version: str
    config: str


class _Dataset(_Recorded):
    name: str
    fallback: str | None


class _Training(_Recorded):
    validation_fraction: FiniteFloat


class _Config(_Recorded):
    """What readers ask of a config; its other settings are those of the version that wrote it."""

    seed: int
    dataset: _Dataset
    training: _Training


class _Machine(_Recorded):
    system: str
    python: str
    processors: int | None


class FileEntry(_Recorded):
    """What a manifest says of a file."""

    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    bytes: int = Field(ge=0)


class Manifest(_Recorded):
    """Everything that explains a run, but for the results of its steps, which are `MANIFEST_STEPS`.

    Attributes:
        row: The run's row in the table `runs`.
        error_type: Name of the class of the exception that ended a failed run.
        seconds: How long each step took, by its name.
        files: Every file of the run, by its path below the store's root.
        flow_run_id: Id of the Prefect flow run; None outside Prefect.
    """

    row: Row
    run_id: str
    config: _Config
    config_digest: str
    steps: dict[str, dict[str, Any]]
    seconds: dict[str, FiniteFloat]
    files: dict[Annotated[str, AfterValidator(_inside)], FileEntry]
    code_version: str
    packages: dict[str, str | None]
    machine: _Machine
    flow_run_id: str | None
    error_type: str | None = None

    @validator(mode="after")
    def _has_what_success_means(self) -> Self:
        if self.row.status == "succeeded":
            for name in ("dataset", "dataset_digest", "test_accuracy", "test_loss"):
                if getattr(self.row, name) is None:
                    raise ValueError(f"a run that succeeded has a value in row.{name}")
        return self


def read_manifest(path: Path) -> dict[str, Any]:
    """Return the manifest in a file, which has every field of `Manifest` and of the steps' results.

    Raises:
        StoreError: It cannot be read, or a field is missing or wrong; the message names it.
    """
    manifest = read_json(path)
    found: dict[str, Any] = manifest if isinstance(manifest, dict) else {}
    require_manifest(found, str(path))
    if found["run_id"] != path.parent.name:
        raise StoreError(
            f"{path} is the manifest of run {found['run_id']}, expected {path.parent.name}; "
            "restore it from a copy"
        )
    return found


def require_manifest(manifest: Mapping[str, Any], where: str) -> None:
    """Refuse a manifest that readers could not rely on.

    Args:
        manifest: The JSON value.
        where: What to call it.

    Raises:
        StoreError: A field is missing or wrong; the message names it.
    """
    if (wrong := _problem(manifest)) is not None:
        raise StoreError(f"{where} is not a whole manifest: {wrong}; restore it from a copy")


def _problem(manifest: Mapping[str, Any]) -> str | None:
    try:
        found = validated(Manifest, manifest)
    except ValidationError as error:
        return problem(error)
    for name, kind in MANIFEST_STEPS.items():
        if name not in found.steps:
            if found.row.status == "succeeded" and kind in _OF_SUCCESS:
                return lacks("steps", name)
            continue
        known = {key: each for key, each in found.steps[name].items() if key in kind.model_fields}
        try:
            result = validated(kind, known)
        except ValidationError as error:
            return problem(error, "steps", name)
        if isinstance(result, LoadedData) and len(result.class_names) != result.classes:
            return f"steps.{name}.class_names has not {result.classes} names, as many as classes"
    return None


def runs_table(manifest: Mapping[str, Any]) -> Any:
    """Return the row of the `runs` table that a manifest stands for, as Arrow.

    Raises:
        StoreError: The manifest lacks what the row needs, or has something else there.
    """
    try:
        row = validated(Row, manifest["row"]).model_dump()
        for name in ("started_at", "finished_at"):
            row[name] = datetime.fromisoformat(row[name]).astimezone(UTC)
        return schemas.table_of(schemas.RUNS, [row])
    except (ValidationError, KeyError, TypeError, pa.ArrowException) as error:
        reason = problem(error, "row") if isinstance(error, ValidationError) else error
        raise StoreError(
            f"manifest has no row for the runs table ({reason}); restore it from a copy"
        ) from error
