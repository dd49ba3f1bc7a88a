"""What each step of a run hands to the next: paths, ids, digests and small numbers, never models or arrays.

Paths are relative to the store's root. Each is kept as JSON beside the run, so that a resumed run recalls it.
"""

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict


class StepResult(BaseModel):
    """Result of a step, stored as JSON with the run, so that a resumed run can load it.

    Attributes:
        step: Name of the step, which is the name of its function in `nnbuild.pipeline`.
        files: SHA-256 of every file that the step wrote, by its path in the run's staging folder.
    """

    model_config = ConfigDict(frozen=True, extra="allow")
    step: ClassVar[str]
    files: dict[str, str] = {}


class LoadedData(StepResult):
    """The dataset that the run uses; its Parquet files are in `folder`.

    Attributes:
        validation: Images of the validation split that the source has; 0 if it has none.
        pixel_scales: How the pixels of each split were read, by its name.
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


class Check(BaseModel):
    """One check of the data: what was measured, and the bound that it was held against."""

    model_config = ConfigDict(frozen=True, extra="allow")
    name: str
    passed: bool
    hard: bool
    measured: str
    bound: str
    detail: str


class CheckedData(StepResult):
    """The checks on the data, all of them passed or only soft."""

    step = "check_data"
    checks: tuple[Check, ...]


class BuiltModel(StepResult):
    """An uncompiled model.

    Attributes:
        factory: sha256 of the source of the user's function that built it; None for a named
            network.
    """

    step = "build_model"
    path: str
    parameters: int
    factory: str | None = None


class CompiledModel(StepResult):
    """A compiled model, not yet fitted."""

    step = "compile_model"
    path: str
    steps_per_epoch: int


class FittedModel(StepResult):
    """A fitted model, and how the fit went.

    Attributes:
        epochs: how many were finished.
        weights_epoch: the epoch, from 1, whose weights the model has.
        seconds: of fitting, over all the processes that took part.
        remarks: what a resume had to say about itself.
        identity: config, dataset, code, threads and processor that the fit ran with.
    """

    step = "fit_model"
    path: str
    epochs: int
    weights_epoch: int
    seconds: float
    remarks: tuple[str, ...]
    identity: dict[str, Any]


class HistoryTable(StepResult):
    """The History as a table."""

    step = "persist_history"
    path: str
    rows: int


class Evaluated(StepResult):
    """The figures on the test set that are about all classes."""

    step = "evaluate_model"
    test_accuracy: float
    test_loss: float
    metrics: dict[str, float]


class ExportedModel(StepResult):
    """The model as ONNX, for scoring without TensorFlow.

    Attributes:
        path: of the `.onnx` file; null if the model cannot be exported.
        remark: why not; empty if it can.
        largest_difference: of a logit from Keras's on the probe, relative to the largest logit of its row.
        same_predictions: whether both give each image of the probe the same class.
        probe: how many images were compared.
    """

    step = "export_model"
    path: str | None
    remark: str
    largest_difference: float | None
    same_predictions: bool | None
    probe: int


class Calibrated(StepResult):
    """The temperature, and what it does to the expected calibration error.

    Attributes:
        temperature: fitted on the validation examples.
        before: the error at temperature 1, by subset.
        after: the error at the fitted temperature, by subset.
        validation: accuracy and loss (cross-entropy, in nats) of the kept network on the validation examples.
    """

    step = "calibrate_model"
    temperature: float
    before: dict[str, float]
    after: dict[str, float]
    validation: dict[str, float] = {}


class Scored(StepResult):
    """The probability table of the test set."""

    step = "score_test_set"
    path: str
    rows: int
    seconds: float


class Decided(StepResult):
    """What the gate said of a run.

    Attributes:
        champion: the run that it was held against; None if there was none.
        promote: whether the run becomes the champion.
        reason: why, in a sentence.
        champion_metrics: the champion's figures over all classes, if the two were compared or could have been.
        figures: the numbers of the decision, as in the `decisions` table.
        waits: whether the gate says yes, and a person has to say it too.
        passed_over: whether the run was kept from the gate.
        gate_reason: Reason of the gate alone, without what a person said or has to say.
    """

    step = "decide"
    champion: str | None
    promote: bool
    reason: str
    champion_metrics: dict[str, float]
    figures: dict[str, float]
    waits: bool = False
    passed_over: bool = False
    gate_reason: str = ""


class Reported(StepResult):
    """The page that a person looks at."""

    step = "write_report"
    path: str


class Committed(StepResult):
    """Where a run's outputs stand."""

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
