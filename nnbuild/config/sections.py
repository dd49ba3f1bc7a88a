"""Sections of the run configuration: immutable, validated, and shown as a form by Prefect."""

import re
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from nnbuild.config.names import role_of
from nnbuild.config.presets import DATASETS, METRICS, MONITORS, PRESETS, with_preset_values
from nnbuild.runtime.credentials import require_no_credentials
from nnbuild.runtime.date_patterns import is_dated, require_whole_date

S = TypeVar("S", bound="Section")
_Side = Annotated[int, Field(ge=1, le=4096)]
_TWO_SIDES = WithJsonSchema(
    {
        "type": "array",
        "items": {"type": "integer", "minimum": 1, "maximum": 4096},
        "minItems": 2,
        "maxItems": 2,
    }
)
_Fraction = Annotated[float, Field(ge=0, le=1)]
_OWN_COLUMN = re.compile(
    r"run_id|example_id|label|predicted|predicted_name|confidence|log_prob|prob_[0-9]+"
)
MONITOR = r"^(val_)?[a-z][a-z0-9_]*$"
SWEEP_ID = r"^[a-z0-9][a-z0-9_-]{0,63}$"
DATA_DIR = "NNBUILD_DATA_DIR"
"""Environment variable with the default of `dataset.data_dir`."""


def name_or(known: tuple[str, ...], title: str, pattern: str) -> WithJsonSchema:
    """Return the schema of a setting that is a known name, or another text that matches a pattern.

    Prefect shows a list of the names and a text field. The condition refuses a mistyped name with
    a message that lists the names, which a choice of two patterns would not.

    Args:
        known: The known names.
        title: Label of the text field.
        pattern: Regular expression that matches every text that is not a name.
    """
    return WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "enum": list(known), "title": "Known name"},
                {"type": "string", "minLength": 1, "title": title},
            ],
            "if": {"not": {"pattern": pattern}},
            "then": {"enum": list(known)},
        }
    )


NAMED_DATASET = name_or(DATASETS, "Path", r"[/\\.]")
NAMED_MODEL = name_or(tuple(PRESETS), "package.module:function", r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")
KNOWN_MONITOR = WithJsonSchema({"type": "string", "enum": list(MONITORS)})
KNOWN_METRICS = WithJsonSchema(
    {"type": "array", "items": {"type": "string", "enum": list(METRICS)}}
)


def _texts(name: str, value: Any) -> Iterator[tuple[str, str]]:
    """Yield name and value of every string and path in nested lists and dictionaries."""
    if isinstance(value, (str, Path)):
        yield name, str(value)
    elif isinstance(value, (list, tuple)):
        yield from (text for each in value for text in _texts(name, each))
    elif isinstance(value, dict):
        yield from (text for key, each in value.items() for text in _texts(f"{name}.{key}", each))


class Section(BaseModel):
    """A group of settings: immutable, without unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_credentials(cls, value: Any, field: ValidationInfo) -> Any:
        """Refuse credentials, since settings are stored in the run, in Prefect and in MLflow."""
        for name, text in _texts(str(field.field_name), value):
            require_no_credentials(text, f"the setting {name}")
        return value

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_booleans(cls, value: Any, field: ValidationInfo) -> Any:
        """Refuse `true` for a number, which pydantic would convert to 1."""
        if (
            isinstance(value, bool)
            and cls.model_fields[str(field.field_name)].annotation is not bool
        ):
            raise ValueError("expected another type than a boolean; see docs/reference/settings.md")
        return value


def _metric_names(names: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(names)) != len(names):
        raise ValueError(f"{list(names)} has a metric twice; give each once")
    return names


def _array_roles(keys: dict[str, str]) -> dict[str, str]:
    for key in keys:
        role = role_of(key)
        if role is None or role.group:
            raise ValueError(
                f"{key!r} is not an array of a dataset; write x_train, y_train, x_validation, "
                "y_validation, x_test or y_test"
            )
    return keys


class CheckLimits(BaseModel):
    """Limits of the data checks."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_constant_fraction: _Fraction = Field(
        default=0.01, description="Largest allowed fraction of single-colour images in a split"
    )
    max_duplicate_fraction: _Fraction = Field(
        default=0.05, description="Largest allowed fraction of duplicate training images"
    )
    max_leakage_fraction: _Fraction = Field(
        default=0.01,
        description="Largest allowed fraction of test images that are also training images",
    )
    max_class_imbalance: float = Field(
        default=20.0,
        ge=1,
        description="Largest allowed ratio of the largest to the smallest class",
    )
    max_brightness_ratio: float = Field(
        default=10.0,
        gt=1,
        description="Largest allowed ratio of the mean brightness of two splits",
    )
    strict: bool = Field(
        default=False,
        description="Fail, instead of only warn, on duplicates, leaked images and imbalance",
    )


_ColumnName = Annotated[str, Field(min_length=1, max_length=200)]


def _distinct(names: tuple[str, ...]) -> tuple[str, ...]:
    """Refuse names of which SQL would confuse two, or one with a column of `predictions`."""
    known: dict[str, str] = {}
    for name in names:
        folded = name.casefold()
        if folded in known:
            raise ValueError(f"{known[folded]!r} and {name!r} are the same column in SQL")
        if _OWN_COLUMN.fullmatch(folded):
            raise ValueError(
                f"{name!r} is a column of nnbuild's own in `predictions`; rename the column of the "
                "source"
            )
        known[folded] = name
    return names


def _known_timezone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ValueError(
            f"{name!r} is not a known timezone; expected an IANA name such as Europe/Berlin"
        ) from error
    return name


def _colour(text: str) -> str:
    if not re.fullmatch("#[0-9a-fA-F]{6}", text):
        raise ValueError("expected a colour as #rrggbb, such as #ffffff for white")
    return text


class DatasetConfig(Section):
    """The dataset to train on."""

    name: Annotated[str, NAMED_DATASET] = Field(
        "mnist",
        min_length=1,
        description="mnist, fashion-mnist, kmnist, digits, or the path of your own images; with "
        "{date} in the path, a path for each day",
    )
    window: int | None = Field(
        None,
        ge=1,
        le=36_600,
        description="Number of days to train on if the path has {date}, the last one being the "
        "day of the run; all days up to then if null",
    )
    min_new: int | None = Field(
        None,
        ge=0,
        description="Smallest number of new labelled images since the last run for which there is "
        "a run, if the path has {date}; any new or corrected image is enough if null or 0",
    )
    as_of: date | None = Field(
        None,
        description="Past day whose run is repeated, if the path has {date}; not allowed in "
        "scheduled runs",
    )
    timezone: Annotated[str, AfterValidator(_known_timezone)] = Field(
        "UTC", description="Timezone that decides which day a run belongs to"
    )
    new_classes: Literal["refuse", "accept"] = Field(
        "refuse", description="Handling of a class that no earlier day had"
    )
    data_dir: Path | None = Field(
        None,
        description="Folder with the files of the named dataset; $NNBUILD_DATA_DIR if not given",
    )
    fallback: Literal["digits"] | None = Field(
        None,
        description="Dataset to use if the named one is unavailable; not allowed in scheduled runs",
    )
    image_column: str | None = Field(
        None,
        min_length=1,
        description="Parquet column with the images; image, img or images if not given",
    )
    label_column: str | None = Field(
        None,
        min_length=1,
        description="Parquet column with the labels; label, labels, fine_label or target if not "
        "given",
    )
    # Not named `keys`: Prefect treats objects with that attribute as mappings.
    array_keys: Annotated[dict[str, str], AfterValidator(_array_roles)] = Field(
        {},
        description='Names of the arrays in an .npz by content, x_train = "images" for example; '
        "the usual names if not given; short form: dataset.keys",
    )
    pixel_max: float | None = Field(
        None,
        gt=0,
        le=2**32,
        description="Pixel value of white, such as 1, 255 or 65535; derived from the data if not "
        "given",
    )
    other_files: Literal["refuse", "skip"] = Field(
        "refuse", description="Handling of files in a folder of images that are not images"
    )
    image_size: Annotated[tuple[_Side, _Side], _TWO_SIDES] | None = Field(
        None,
        description="Height and width in pixels that every image is resized to; images must have "
        "one size if not given",
    )
    resize: Literal["pad", "crop", "stretch"] | None = Field(
        None,
        description="Whether to pad, to crop at the centre, or to change the proportions; pad if "
        "image_size is given",
    )
    channels: Literal[1, 3] | None = Field(
        None,
        description="Convert images to grayscale (1) or RGB (3); if not given, images must be all "
        "grayscale or all RGB",
    )
    background: Annotated[str, AfterValidator(_colour)] | None = Field(
        None,
        description="Colour of transparent pixels and of padding, #ffffff if image_size or "
        "channels is given; otherwise transparent pictures are refused",
    )
    on_error: Literal["refuse", "skip"] = Field(
        "refuse", description="Handling of pictures that cannot be read"
    )
    max_errors: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Largest fraction of pictures to skip because they cannot be read; 0.01 if "
        "on_error is skip",
    )
    keep: Annotated[tuple[_ColumnName, ...], AfterValidator(_distinct)] = Field(
        (),
        description="Columns that describe the images, such as the site, to copy to `predictions` "
        "as texts",
    )
    metadata: Path | None = Field(
        None,
        description="CSV, TSV or Parquet file with the columns to keep for a folder of pictures, "
        "and their `path` relative to the folder; for labelled days, `{date}` stands for the day",
    )
    checks: CheckLimits = Field(CheckLimits(), description="Limits of the data checks")

    @field_validator("metadata", mode="before")
    @classmethod
    def _require_local_metadata(cls, value: Any) -> Any:
        if isinstance(value, str) and "://" in value:  # a Path would drop a slash
            raise ValueError("a URL; expected a local path")
        return value

    @model_validator(mode="after")
    def _require_columns_of_metadata(self) -> Self:
        if self.metadata is not None and not self.keep:
            raise ValueError(
                f"metadata is {str(self.metadata)!r}, and keep names none of its columns; set keep"
            )
        return self

    @model_validator(mode="after")
    def _require_dated_path(self) -> Self:
        if is_dated(self.name):
            require_whole_date(self.name)
            return self
        for name in ("window", "min_new", "as_of"):
            if getattr(self, name) is not None:
                raise ValueError(
                    f"{name} has no effect on {self.name!r}, whose path is the same for every day; "
                    "remove it, or put {date} in place of the day"
                )
        return self

    @model_validator(mode="before")
    @classmethod
    def _accept_short_keys(cls, value: Any) -> Any:
        """Accept `keys` for `array_keys`; Prefect's form does not support an alias consistently."""
        if isinstance(value, dict) and "keys" in value and "array_keys" not in value:
            return {"array_keys" if name == "keys" else name: each for name, each in value.items()}
        return value


class ModelConfig(Section):
    """The network to train."""

    model_config = ConfigDict(json_schema_extra=with_preset_values)

    name: Annotated[str, NAMED_MODEL] = Field(
        "convnet",
        min_length=1,
        description="Named network, or package.module:function for your own",
    )
    ensemble_size: int = Field(
        1,
        ge=1,
        le=64,
        description="Number of networks in an ensemble, trained in sequence and averaged in "
        "log-probability",
    )
    l2: float | None = Field(
        None, ge=0, le=10, description="L2 penalty on the kernels of hidden layers"
    )
    dropout: float | None = Field(None, ge=0, lt=1, description="Dropout rate before the head")


class EarlyStopping(Section):
    """Settings to stop when the monitored metric no longer improves."""

    monitor: Annotated[str, KNOWN_MONITOR] = Field(
        "val_loss", pattern=MONITOR, description="Metric in the history to monitor"
    )
    patience: int = Field(
        5, ge=0, le=1000, description="Number of epochs without improvement to tolerate"
    )
    min_delta: float = Field(0.0, ge=0, description="Smallest change that counts as an improvement")


class ReduceOnPlateau(Section):
    """Settings to lower the learning rate when the monitored metric no longer improves."""

    monitor: Annotated[str, KNOWN_MONITOR] = Field(
        "val_loss", pattern=MONITOR, description="Metric in the history to monitor"
    )
    factor: float = Field(
        0.5, gt=0, lt=1, description="Factor that the learning rate is multiplied by"
    )
    patience: int = Field(
        3, ge=0, le=1000, description="Number of epochs without improvement to tolerate"
    )
    min_learning_rate: float = Field(0.0, ge=0, description="Lower bound of the learning rate")


WITH_BETAS = ("adam", "adamw", "muon")
"""Optimizers that use Adam, at least in part, and so take its two decay rates."""


class TrainingConfig(Section):
    """Settings of the training."""

    model_config = ConfigDict(json_schema_extra=with_preset_values)

    epochs: int | None = Field(
        None, ge=1, le=100_000, description="Number of passes over the training images"
    )
    batch_size: int | None = Field(None, ge=1, le=65_536, description="Images per step")
    optimizer: Literal["adam", "adamw", "muon", "sgd", "rmsprop"] | None = Field(
        None, description="Optimizer"
    )
    learning_rate: float | None = Field(
        None, gt=0, le=100, description="Learning rate; the peak if it follows a schedule"
    )
    beta_1: float | None = Field(
        None, ge=0, lt=1, description="Decay rate of Adam's first moment; Keras's default if null"
    )
    beta_2: float | None = Field(
        None, ge=0, lt=1, description="Decay rate of Adam's second moment; Keras's default if null"
    )
    ema_decay: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Decay of an exponential moving average of the weights, over at most a tenth "
        "of the steps, that is validated and stored in place of the weights; off if null",
    )
    lr_schedule: Literal["constant", "cosine", "one-cycle"] | None = Field(
        None, description="Schedule of the learning rate"
    )
    freeze_epochs: int = Field(
        0,
        ge=0,
        le=100_000,
        description="Number of epochs at the start that train only the head of your own network: "
        "models inside it, such as a pretrained backbone, are not changed",
    )
    fine_tuning_rate: float | None = Field(
        None,
        gt=0,
        le=100,
        description="Learning rate after freeze_epochs, which also scales the schedule; a tenth of "
        "learning_rate if not given",
    )
    label_encoding: Literal["sparse", "one-hot"] = Field(
        "sparse", description="Class indices or one-hot labels, with the matching loss on logits"
    )
    metrics: Annotated[tuple[str, ...], AfterValidator(_metric_names), KNOWN_METRICS] = Field(
        ("accuracy",), description="Keras metrics to record in addition to the loss"
    )
    validation_fraction: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Fraction of the training images to hold out for validation; not used if the "
        "dataset has a validation split",
    )
    validation_freq: int = Field(
        1, ge=1, le=100_000, description="Number of epochs between validations"
    )
    early_stopping: EarlyStopping | None = Field(None, description="Early stopping; off if null")
    reduce_on_plateau: ReduceOnPlateau | None = Field(
        None, description="Reduction of the learning rate on a plateau; off if null"
    )
    restore_best_weights: Annotated[str, KNOWN_MONITOR] | None = Field(
        None,
        pattern=MONITOR,
        description="Metric whose best epoch provides the final weights; the last epoch if null",
    )
    augmentation: Literal["none", "shift", "affine"] | None = Field(
        None, description="Random augmentation of the training images"
    )
    dtype_policy: Literal["float32", "mixed_bfloat16", "mixed_float16"] | None = Field(
        None,
        description="Data type of the layers during training; weights, logits and the stored model "
        "are float32",
    )
    start: Literal["champion"] | None = Field(
        None,
        description="Weights to start from: those of the champion, if there is one; those of the "
        "seed if null",
    )
    threads: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="Threads for one operation; results repeat exactly only with the same number; "
        "all processors if null, or 1 for a network with parallel columns",
    )
    tensorboard: bool = Field(default=False, description="Write TensorBoard logs")

    def monitors(self) -> tuple[str, ...]:
        """Return the metrics that are monitored, to stop or to select weights."""
        watchers = (self.early_stopping, self.reduce_on_plateau)
        names = (*(each.monitor for each in watchers if each), self.restore_best_weights)
        return tuple(name for name in names if name is not None)


class ScoringConfig(Section):
    """Settings of scoring the test set."""

    batch_size: int = Field(2048, ge=1, le=1_000_000, description="Images per batch")


class GateConfig(Section):
    """Settings of the champion gate."""

    enabled: bool = Field(
        default=True, description="Compare the run with the champion, and promote it if it passes"
    )
    rule: Literal["not-worse", "better"] = Field(
        "not-worse",
        description="Promote a run that is shown to be at most gate.margin less accurate than the "
        "champion, or only one that is shown to be more accurate",
    )
    margin: float = Field(
        0.005,
        gt=0,
        lt=1,
        description="Largest loss of accuracy that not-worse allows, as a fraction of the test "
        "images",
    )
    significance: float = Field(
        0.05,
        gt=0,
        lt=0.5,
        description="Accepted probability of a wrong promotion; significance level of every test "
        "of the gate",
    )
    min_accuracy: float = Field(
        0.0, ge=0, le=1, description="Smallest test accuracy to promote a run"
    )
    max_calibration_error: float = Field(
        1.0, ge=0, le=1, description="Largest expected calibration error to promote a run"
    )
    max_recall_drop: float = Field(
        0.05,
        ge=0,
        le=1,
        description="Largest allowed drop of the recall of a class; a run is rejected if the drop "
        "of any class is significantly larger",
    )
    slices: tuple[_ColumnName, ...] = Field(
        (),
        description="Columns of dataset.keep; a run is rejected if it is significantly more than "
        "gate.margin less accurate than the champion on the images with one of their values",
    )
    golden: str | None = Field(
        None,
        min_length=1,
        description="File or folder with a fixed set of labelled images on which a run must also "
        "be shown to be at most gate.margin less accurate than the champion",
    )
    on_test_set_change: Literal["rescore", "keep"] = Field(
        "rescore",
        description="If the champion was evaluated on other test images: let it score the "
        "challenger's, or keep it without a comparison",
    )
    approval: Literal["auto", "manual"] = Field(
        "auto",
        description="manual: a challenger that passes needs approval in Prefect's UI",
    )
    approval_seconds: int = Field(
        86_400,
        ge=1,
        le=604_800,
        description="Seconds to wait for approval; no answer counts as a rejection",
    )


class TrialTag(Section):
    """The trial of a sweep that a run belongs to."""

    sweep: str = Field(pattern=SWEEP_ID, description="ID of the sweep")
    number: int = Field(ge=0, description="Number of the trial, from 0")
