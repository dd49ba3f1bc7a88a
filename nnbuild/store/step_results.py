"""Results of the steps of a run: paths, IDs, digests and small numbers, never models or arrays.

Paths are relative to the store's root. Each result is stored as JSON with the run, so that a
resumed run can load it.
"""

from datetime import date
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from nnbuild.evaluation.promotion import Outcome
from nnbuild.store.json_models import Moment

MAX_UNREADABLE_EXAMPLES = 20
"""Number of messages about skipped pictures that are kept."""


class StepResult(BaseModel):
    """Result of a step, stored as JSON with the run, so that a resumed run can load it.

    Attributes:
        step: Name of the step, which is the name of its function in `nnbuild.pipeline`.
        files: SHA-256 of every file that the step wrote, by its path in the run's staging folder.
    """

    model_config = ConfigDict(frozen=True, extra="allow")
    step: ClassVar[str]
    files: dict[str, str] = {}


class DayVersion(BaseModel):
    """A version of a day of labelled images, as it was ingested.

    Attributes:
        day: The day.
        version: Number of the version, from 1.
        digest: SHA-256 of its content.
        image_shape: Height, width and channels of its images.
        train: Number of images to train on.
        test: Number of images that are held out for testing.
        validation: Number of images of the day's own validation split.
        ingested_at: Time of the ingestion.
        unreadable: Number of pictures that were skipped because they cannot be read.
        unreadable_examples: Messages about the first of them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    day: date
    version: int = Field(ge=1)
    digest: str = Field(pattern="^[0-9a-f]{64}$")
    image_shape: tuple[int, int, int]
    train: int = Field(ge=0)
    test: int = Field(ge=0)
    validation: int = Field(ge=0)
    ingested_at: Moment
    unreadable: int = 0
    unreadable_examples: tuple[str, ...] = ()

    @property
    def rows(self) -> int:
        """Return the number of images."""
        return self.train + self.test + self.validation

    @property
    def part(self) -> str:
        """Return the path of its images, relative to the folder of all datasets of that name."""
        return f"days/{self.day}/{self.digest}"


class LoadedData(StepResult):
    """The dataset of the run; its Parquet files are in `folder`.

    Attributes:
        validation: Number of images in the source's own validation split; 0 if it has none.
        pixel_scales: Rule by which the pixels were read, by split.
        fingerprint: Digest of names, sizes and times of the files at the source; None if the
            dataset is not at a path.
        day: Day of the run; None if the source has no days.
        days: The days that the dataset consists of.
        remarks: Remarks on the days.
        preprocessing: Settings by which pictures became images, see
            `nnbuild.data.preprocessing.Preprocessing`; None if they were used as they are.
        unreadable: Number of pictures that were skipped because they cannot be read.
        unreadable_examples: Messages about the first of them.
    """

    step = "load_data"
    name: str
    digest: str
    source: str
    folder: str
    image_shape: tuple[int, int, int]
    classes: int
    class_names: tuple[str, ...]
    train: int
    test: int
    validation: int = 0
    pixel_scales: dict[str, str] = {}
    fingerprint: str | None = None
    day: date | None = None
    days: tuple[DayVersion, ...] = ()
    remarks: tuple[str, ...] = ()
    preprocessing: dict[str, Any] | None = None
    unreadable: int = 0
    unreadable_examples: tuple[str, ...] = ()


class Check(BaseModel):
    """One check of the data: the measured value, and its bound."""

    model_config = ConfigDict(frozen=True, extra="allow")
    name: str
    passed: bool
    hard: bool
    measured: str
    bound: str
    detail: str


class CheckedData(StepResult):
    """Checks of the data; those that failed are soft."""

    step = "check_data"
    checks: tuple[Check, ...]


class BuiltModel(StepResult):
    """An uncompiled model.

    Attributes:
        factory: SHA-256 of the source of the user's function that built it; None for a named
            network.
        start: ID of the run whose weights it has; None for those of the seed.
        start_digest: SHA-256 of the file of that run's model.
    """

    step = "build_model"
    path: str
    parameters: int
    factory: str | None = None
    start: str | None = None
    start_digest: str | None = None


class CompiledModel(StepResult):
    """A compiled model, not yet fitted."""

    step = "compile_model"
    path: str
    steps_per_epoch: int


class FittedModel(StepResult):
    """A fitted model.

    Attributes:
        epochs: Number of finished epochs, over all networks of an ensemble.
        weights_epoch: Epoch, from 1, whose weights the model has.
        seconds: Duration of the fit, over all processes that took part.
        remarks: Remarks of resumed fits.
        identity: Config, dataset, code, threads and processor of the fit.
        pixels: `memory` or `mapped file`: where the training images were; it changes no result.
        member_epochs: Number of epochs of each network, in order; empty in runs of earlier
            versions.
    """

    step = "fit_model"
    path: str
    epochs: int
    weights_epoch: int
    seconds: float
    remarks: tuple[str, ...]
    identity: dict[str, Any]
    pixels: str = "memory"
    member_epochs: tuple[int, ...] = ()


class HistoryTable(StepResult):
    """The training history as a table."""

    step = "persist_history"
    path: str
    rows: int


class Evaluated(StepResult):
    """Metrics on the test set over all classes."""

    step = "evaluate_model"
    test_accuracy: float
    test_loss: float
    metrics: dict[str, float]


class ExportedModel(StepResult):
    """The model as ONNX, for scoring without TensorFlow.

    Attributes:
        path: Path of the `.onnx` file; None if the model cannot be exported.
        remark: Reason why it cannot; empty if it can.
        largest_difference: Largest difference between the logits of ONNX Runtime and Keras on the
            probe, relative to the largest logit of the row.
        same_predictions: Whether both predict the same class for every image of the probe.
        probe: Number of compared images.
    """

    step = "export_model"
    path: str | None
    remark: str
    largest_difference: float | None
    same_predictions: bool | None
    probe: int


class Calibrated(StepResult):
    """The temperature, and its effect on the expected calibration error.

    Attributes:
        temperature: Temperature fitted on the validation examples.
        before: Calibration error at temperature 1, by subset.
        after: Calibration error at the fitted temperature, by subset.
        validation: Accuracy and loss (cross-entropy, in nats) of the final model on the validation
            examples.
        confidence_threshold: Calibrated confidence that as large a fraction of the validation
            examples exceeds as is classified correctly; None in runs of earlier versions.
    """

    step = "calibrate_model"
    temperature: float
    before: dict[str, float]
    after: dict[str, float]
    validation: dict[str, float] = {}
    confidence_threshold: float | None = None


class Scored(StepResult):
    """The probability table of the test set."""

    step = "score_test_set"
    path: str
    rows: int
    seconds: float


class Decided(StepResult):
    """Decision of the champion gate.

    Attributes:
        champion: ID of the champion before the decision; None if there was none.
        outcome: What the gate did; `rejected` while the run waits for a person's approval, and None
            in a result that an earlier version wrote.
        promote: Whether the run becomes the champion.
        reason: Reason, as a sentence.
        champion_metrics: Metrics of the champion over all classes, on the test images of the run;
            empty if it was not compared on all of them.
        figures: Numbers of the decision, as in the table `decisions`.
        next_anchor: ID of the run that the challengers of this run are compared with as well, once
            this run is the champion; None if the gate does not promote it.
        waits: Whether the run passed the gate and waits for a person's approval.
        passed_over: Whether the run was committed without the gate.
        pinned: Whether the champion was pinned, so that the gate could not replace it.
        gate_reason: Reason of the gate alone, without what a person said or has to say.
        seconds_waited: Time in which the run waited for a person's approval.
    """

    step = "decide"
    champion: str | None
    outcome: Outcome | None = None
    promote: bool
    reason: str
    champion_metrics: dict[str, float]
    figures: dict[str, float]
    next_anchor: str | None = None
    waits: bool = False
    passed_over: bool = False
    pinned: bool = False
    gate_reason: str = ""
    seconds_waited: float = 0.0


class Reported(StepResult):
    """The HTML report."""

    step = "write_report"
    path: str


class Committed(StepResult):
    """Paths of the outputs of a committed run."""

    run_id: str
    status: str
    error: str | None
    manifest: str
    tables: dict[str, str]
    model: str | None


MANIFEST_STEPS: dict[str, type[StepResult]] = {
    kind.step: kind
    for kind in (
        LoadedData,
        CheckedData,
        BuiltModel,
        CompiledModel,
        FittedModel,
        HistoryTable,
        ExportedModel,
        Evaluated,
        Calibrated,
        Scored,
        Decided,
    )
}
"""The steps whose results a manifest holds, by name, in the order of the pipeline.

The report is missing: it shows the manifest, so it is written after it.
"""
