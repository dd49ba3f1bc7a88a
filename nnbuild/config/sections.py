"""The sections of a run's configuration: immutable, validated settings, which Prefect renders as a form."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

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

S = TypeVar("S", bound="Section")
_Share = Annotated[float, Field(ge=0, le=1)]
MONITOR = r"^(val_)?[a-z][a-z0-9_]*$"
SWEEP_ID = r"^[a-z0-9][a-z0-9_-]{0,63}$"
DATA_DIR = "NNBUILD_DATA_DIR"
"""Environment variable that names `dataset.data_dir` where a config leaves it open."""


def name_or(known: tuple[str, ...], title: str, pattern: str) -> WithJsonSchema:
    """Return the schema of a setting that is a known name, or something else of a given form.

    Prefect makes its form of it: a list of the names beside a text field. The condition refuses a
    mistyped name with a message that has the names, which a choice of two patterns would not.

    Args:
        known: The names.
        title: Label of the text field.
        pattern: Regular expression that holds for everything that is not such a name.
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
    """Yield the name and the value of every text and path in nested lists and dictionaries."""
    if isinstance(value, (str, Path)):
        yield name, str(value)
    elif isinstance(value, (list, tuple)):
        yield from (text for each in value for text in _texts(name, each))
    elif isinstance(value, dict):
        yield from (text for key, each in value.items() for text in _texts(f"{name}.{key}", each))


class Section(BaseModel):
    """A group of settings: read-only, and no key but those that are named."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _has_no_credentials(cls, value: Any, field: ValidationInfo) -> Any:
        """Refuse credentials: settings are stored with the run, in Prefect's database and in MLflow."""
        for name, text in _texts(str(field.field_name), value):
            require_no_credentials(text, f"the setting {name}")
        return value

    @field_validator("*", mode="before")
    @classmethod
    def _is_no_number(cls, value: Any, field: ValidationInfo) -> Any:
        """Pydantic would take `true` for 1."""
        if (
            isinstance(value, bool)
            and cls.model_fields[str(field.field_name)].annotation is not bool
        ):
            raise ValueError("which this setting cannot be; see docs/reference/settings.md")
        return value


def _metric_names(names: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(names)) != len(names):
        raise ValueError(f"a metric is named twice in {list(names)}; name each once")
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
    """How much is too much."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_constant_fraction: _Share = Field(
        default=0.01, description="Most images of a split that may be of one colour, as a share"
    )
    max_duplicate_fraction: _Share = Field(
        default=0.05, description="Most training images that may repeat another, as a share"
    )
    max_leakage_fraction: _Share = Field(
        default=0.01, description="Most test images that may also be training images, as a share"
    )
    max_class_imbalance: float = Field(
        default=20.0,
        ge=1,
        description="Most that the largest class may exceed the smallest, as a factor",
    )
    max_brightness_ratio: float = Field(
        default=10.0,
        gt=1,
        description="Most that the mean brightness of two splits may differ, as a factor",
    )
    strict: bool = Field(
        default=False, description="Stop for duplicates, leaked images and imbalance, not only warn"
    )


class DatasetConfig(Section):
    """What is trained on."""

    name: Annotated[str, NAMED_DATASET] = Field(
        "mnist",
        min_length=1,
        description="mnist, fashion-mnist, kmnist, digits, or a path to your own images",
    )
    data_dir: Path | None = Field(
        None,
        description="A folder that holds the named dataset's files; $NNBUILD_DATA_DIR if not given",
    )
    fallback: Literal["digits"] | None = Field(
        None,
        description="What to train on when the dataset cannot be had; a scheduled run never falls back",
    )
    image_column: str | None = Field(
        None,
        min_length=1,
        description="Parquet column of the images; image, img or images if not given",
    )
    label_column: str | None = Field(
        None,
        min_length=1,
        description="Parquet column of the labels; label, labels, fine_label or target if not given",
    )
    # Not called `keys`: Prefect takes what has that attribute for a mapping.
    array_keys: Annotated[dict[str, str], AfterValidator(_array_roles)] = Field(
        {},
        description='Names of the arrays in an .npz by what they hold, x_train = "images"; the usual '
        "ones if not given; dataset.keys for short",
    )
    pixel_max: float | None = Field(
        None,
        gt=0,
        le=2**32,
        description="Pixel value that is white, such as 1, 255 or 65535; type and content say it if "
        "not given",
    )
    other_files: Literal["refuse", "skip"] = Field(
        "refuse", description="How files that are not pictures are treated in a folder of pictures"
    )
    checks: CheckLimits = Field(CheckLimits(), description="The bounds that the data must keep")

    @model_validator(mode="before")
    @classmethod
    def _keys_for_short(cls, given: Any) -> Any:
        """Take `keys` for `array_keys`: an alias would be the name in Prefect's form and not in its values."""
        if isinstance(given, dict) and "keys" in given and "array_keys" not in given:
            return {"array_keys" if name == "keys" else name: each for name, each in given.items()}
        return given


class ModelConfig(Section):
    """Which network is built."""

    model_config = ConfigDict(json_schema_extra=with_preset_values)

    name: Annotated[str, NAMED_MODEL] = Field(
        "convnet",
        min_length=1,
        description="A named network, or package.module:function for your own",
    )
    ensemble_size: int = Field(
        1,
        ge=1,
        le=64,
        description="Networks that are trained one after another and averaged in log-probability",
    )
    l2: float | None = Field(None, ge=0, le=10, description="L2 penalty on the hidden kernels")
    dropout: float | None = Field(
        None, ge=0, lt=1, description="Share of units dropped before the head"
    )


class EarlyStopping(Section):
    """Stop when the monitored metric no longer improves."""

    monitor: Annotated[str, KNOWN_MONITOR] = Field(
        "val_loss", pattern=MONITOR, description="A key of the history"
    )
    patience: int = Field(
        5, ge=0, le=1000, description="Epochs without improvement that are allowed"
    )
    min_delta: float = Field(0.0, ge=0, description="What counts as an improvement")


class ReduceOnPlateau(Section):
    """Lower the learning rate when the monitored metric no longer improves."""

    monitor: Annotated[str, KNOWN_MONITOR] = Field(
        "val_loss", pattern=MONITOR, description="A key of the history"
    )
    factor: float = Field(0.5, gt=0, lt=1, description="What the learning rate is multiplied by")
    patience: int = Field(
        3, ge=0, le=1000, description="Epochs without improvement that are allowed"
    )
    min_learning_rate: float = Field(0.0, ge=0, description="The learning rate never goes below")


WITH_BETAS = ("adam", "adamw", "muon")
"""The optimizers that are Adam, wholly or in part, and take its two decays."""


class TrainingConfig(Section):
    """How the network is fitted."""

    model_config = ConfigDict(json_schema_extra=with_preset_values)

    epochs: int | None = Field(
        None, ge=1, le=100_000, description="Passes over the training images"
    )
    batch_size: int | None = Field(None, ge=1, le=65_536, description="Images per step")
    optimizer: Literal["adam", "adamw", "muon", "sgd", "rmsprop"] | None = Field(
        None, description="The optimizer"
    )
    learning_rate: float | None = Field(
        None, gt=0, le=100, description="Of the optimizer; the peak of a schedule"
    )
    beta_1: float | None = Field(
        None, ge=0, lt=1, description="Adam's decay of the mean gradient; Keras's if null"
    )
    beta_2: float | None = Field(
        None, ge=0, lt=1, description="Adam's decay of its square; Keras's if null"
    )
    ema_decay: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Momentum of an average of the weights, which is validated and kept in their place; over a tenth "
        "of the steps at most; off if null",
    )
    lr_schedule: Literal["constant", "cosine", "one-cycle"] | None = Field(
        None, description="How the learning rate moves from step to step"
    )
    label_encoding: Literal["sparse", "one-hot"] = Field(
        "sparse", description="Class labels, or one-hot rows; the loss follows, always from logits"
    )
    metrics: Annotated[tuple[str, ...], AfterValidator(_metric_names), KNOWN_METRICS] = Field(
        ("accuracy",), description="Keras metrics that the history keeps beside the loss"
    )
    validation_fraction: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Share of the training images held out, drawn by the seed; not used if the data have a "
        "validation split",
    )
    validation_freq: int = Field(
        1, ge=1, le=100_000, description="Validate at every so many epochs"
    )
    early_stopping: EarlyStopping | None = Field(None, description="Off unless given")
    reduce_on_plateau: ReduceOnPlateau | None = Field(None, description="Off unless given")
    restore_best_weights: Annotated[str, KNOWN_MONITOR] | None = Field(
        None,
        pattern=MONITOR,
        description="Keep the weights of the epoch that is best in this; the last if null",
    )
    augmentation: Literal["none", "shift", "affine"] | None = Field(
        None, description="Random changes of the training images"
    )
    dtype_policy: Literal["float32", "mixed_bfloat16", "mixed_float16"] | None = Field(
        None,
        description="What the layers compute in while they are trained; weights, logits and the kept model: float32",
    )
    threads: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="For one operation, and part of what makes a run repeatable; all processors if null, or 1 for a "
        "network whose columns keep them busy",
    )
    tensorboard: bool = Field(default=False, description="Write TensorBoard logs beside the run")

    def monitors(self) -> tuple[str, ...]:
        """Return the keys of the history that decide something: when to stop, what to keep."""
        watchers = (self.early_stopping, self.reduce_on_plateau)
        names = (*(each.monitor for each in watchers if each), self.restore_best_weights)
        return tuple(name for name in names if name is not None)


class ScoringConfig(Section):
    """How logits become the probability table."""

    batch_size: int = Field(2048, ge=1, le=1_000_000, description="Images per batch")


class GateConfig(Section):
    """When a run becomes the champion."""

    enabled: bool = Field(
        default=True, description="Whether the run is held against the champion at all"
    )
    rule: Literal["not-worse", "better"] = Field(
        "not-worse",
        description="Promote unless significantly worse, or only if significantly better",
    )
    significance: float = Field(
        0.05, gt=0, lt=1, description="Below it a p-value of the paired test counts"
    )
    min_accuracy: float = Field(
        0.0, ge=0, le=1, description="On the test images; below it nothing is promoted"
    )
    max_calibration_error: float = Field(
        1.0, ge=0, le=1, description="Above it nothing is promoted"
    )
    max_recall_drop: float = Field(
        0.05, ge=0, le=1, description="Most that the recall of a class may be below the champion's"
    )
    on_test_set_change: Literal["keep", "promote"] = Field(
        "keep", description="What becomes of the champion if it was evaluated on other test images"
    )
    approval: Literal["auto", "manual"] = Field(
        "auto",
        description="manual: a challenger that passes waits for a person's yes in Prefect's UI",
    )
    approval_seconds: int = Field(
        3600,
        ge=1,
        le=604_800,
        description="How long the run waits for the person; then the champion stays",
    )


class TrialTag(Section):
    """Which trial of which sweep a run is."""

    sweep: str = Field(pattern=SWEEP_ID, description="Id of the sweep")
    number: int = Field(ge=0, description="Of the trial, from 0")
