"""The manifest of a run: one model that a commit writes and every reader relies on."""

from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, Self

import pyarrow as pa
from pydantic import (
    AfterValidator,
    AliasPath,
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    ValidationError,
    model_validator,
)

from nnbuild.config.presets import is_fallback
from nnbuild.errors import StoreError
from nnbuild.store import schemas
from nnbuild.store.filesystem import read_json
from nnbuild.store.json_models import Moment, lacks, problem, validated
from nnbuild.store.step_results import (
    BuiltModel,
    Calibrated,
    CheckedData,
    CompiledModel,
    Decided,
    Evaluated,
    ExportedModel,
    FittedModel,
    HistoryTable,
    LoadedData,
    Scored,
    StepResult,
)

_REQUIRED: tuple[type[StepResult], ...] = (
    LoadedData,
    CheckedData,
    BuiltModel,
    FittedModel,
    Evaluated,
)
_NOT_REACHED: Any = None


def _below_root(name: str) -> str:
    """Refuse the path of a file that is not below the store's root."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts or "\0" in name:
        raise ValueError("expected a path below the store's root")
    return name


class _Recorded(BaseModel):
    """Part of a manifest; fields that other versions of nnbuild add are kept."""

    model_config = ConfigDict(extra="allow")


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


class DatasetSettings(_Recorded):
    """The settings of the dataset that readers rely on."""

    name: str
    fallback: str | None
    keep: tuple[str, ...] = ()  # missing in runs of earlier versions


class TrainingSettings(_Recorded):
    """The settings of the training that readers rely on."""

    validation_fraction: FiniteFloat


class GateSettings(_Recorded):
    """The settings of the gate that readers rely on."""

    significance: float = Field(0.05, gt=0, lt=1)


class Settings(_Recorded):
    """The settings that readers rely on; the others are those of the version that wrote them."""

    seed: int
    dataset: DatasetSettings
    training: TrainingSettings
    gate: GateSettings = GateSettings()


class Steps(_Recorded):
    """Results of the steps, in the order of the pipeline; None if the run did not reach a step.

    In a run that succeeded the steps that are not optional here always have a result.
    """

    load_data: LoadedData = _NOT_REACHED
    check_data: CheckedData = _NOT_REACHED
    build_model: BuiltModel = _NOT_REACHED
    compile_model: CompiledModel | None = None
    fit_model: FittedModel = _NOT_REACHED
    persist_history: HistoryTable | None = None
    export_model: ExportedModel | None = None
    evaluate_model: Evaluated = _NOT_REACHED
    calibrate_model: Calibrated | None = None
    score_test_set: Scored | None = None
    decide: Decided | None = None

    def reached(self) -> dict[str, StepResult]:
        """Return the results that there are, by the name of the step."""
        return {name: result for name, result in self if isinstance(result, StepResult)}


class Machine(_Recorded):
    """The machine that the run was committed on."""

    system: str
    python: str
    host: str = ""
    processors: int | None


class FileEntry(_Recorded):
    """Digest and size of a file."""

    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    bytes: int = Field(ge=0)


class Manifest(_Recorded):
    """Everything that explains a run.

    Attributes:
        schema_version: Version of the store's schema that the run was written with.
        run_id: ID of the run.
        row: The run's row in the table `runs`.
        error_type: Name of the class of the exception that ended a failed run.
        config: All settings of the run, as its version of nnbuild wrote them.
        settings: The part of `config` that readers rely on, checked.
        config_digest: SHA-256 of the settings that can change a result.
        steps: Result of each step.
        seconds: Duration of each step, by its name.
        code_version: Version of nnbuild, with a digest of its code.
        packages: Version of each package that a result depends on; None if not installed.
        machine: The machine.
        flow_run_id: ID of the Prefect flow run; None outside Prefect.
        files: Every file of the run, by its path below the store's root.
    """

    schema_version: str = schemas.SCHEMA_VERSION
    run_id: str
    row: Row
    config: dict[str, Any]
    settings: Settings = Field(validation_alias=AliasPath("config"), exclude=True)
    config_digest: str
    steps: Steps
    seconds: dict[str, FiniteFloat]
    code_version: str
    packages: dict[str, str | None]
    machine: Machine
    flow_run_id: str | None
    error_type: str | None = None
    files: dict[Annotated[str, AfterValidator(_below_root)], FileEntry]

    @model_validator(mode="after")
    def _require_values_of_success(self) -> Self:
        if self.row.status == "succeeded":
            for name in ("dataset", "dataset_digest", "test_accuracy", "test_loss"):
                if getattr(self.row, name) is None:
                    raise ValueError(f"a run that succeeded has a value in row.{name}")
        return self

    @property
    def fell_back(self) -> bool:
        """Return whether the run was trained on its fallback dataset, not on the requested one."""
        dataset = self.settings.dataset
        return is_fallback(self.row.dataset, dataset.name, dataset.fallback)

    @property
    def model_digest(self) -> str | None:
        """Return the SHA-256 of the Keras model, equal for equal weights; None without a model."""
        entry = self.files.get(f"runs/{self.run_id}/model.keras")
        return entry.sha256 if entry else None

    def to_json(self) -> dict[str, Any]:
        """Return the manifest as the JSON value that its file holds."""
        # Only what was read or set: rewriting a manifest adds no defaults to it.
        return self.model_dump(mode="json", exclude_unset=True)


def read_manifest(path: Path) -> Manifest:
    """Read the manifest of a run.

    Raises:
        StoreError: The file cannot be read, is the manifest of another run, or a field is missing
            or invalid; the message names the field.
    """
    manifest = parse_manifest(read_json(path), str(path))
    if manifest.run_id != path.parent.name:
        raise StoreError(
            f"{path} is the manifest of run {manifest.run_id}, expected {path.parent.name}; "
            "restore it from a copy"
        )
    return manifest


def parse_manifest(value: Any, source: str) -> Manifest:
    """Validate a manifest.

    Args:
        value: The JSON value.
        source: Where it comes from, for the message.

    Raises:
        StoreError: A field is missing or invalid; the message names it.
    """
    try:
        manifest = validated(Manifest, value if isinstance(value, dict) else {})
    except ValidationError as error:
        raise _invalid(source, problem(error)) from error
    if manifest.row.status == "succeeded":
        for kind in _REQUIRED:
            if getattr(manifest.steps, kind.step) is None:
                raise _invalid(source, lacks("steps", kind.step))
    data = manifest.steps.load_data
    if data is not None and len(data.class_names) != data.classes:
        raise _invalid(
            source,
            f"steps.load_data.class_names has {len(data.class_names)} names, "
            f"expected {data.classes}, one for each class",
        )
    return manifest


def _invalid(source: str, reason: str) -> StoreError:
    return StoreError(f"{source} is not a valid manifest: {reason}; restore it from a copy")


def runs_table(manifest: Manifest) -> pa.Table:
    """Return the row of a manifest as a table with the schema of `runs`."""
    row = manifest.row
    times = {
        name: datetime.fromisoformat(text).astimezone(UTC)
        for name, text in (("started_at", row.started_at), ("finished_at", row.finished_at))
    }
    return schemas.table_of(schemas.RUNS, [row.model_dump(include=set(schemas.RUNS.names)) | times])
