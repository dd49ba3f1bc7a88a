"""The configuration of a run.

A field that is `None` takes the default of the chosen network (`nnbuild.config.presets`); `resolve`
fills it in, so that the recorded config of a run is complete.
"""

import hashlib
import importlib.util
import os
from datetime import date
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import (
    ConfigDict,
    Field,
    model_validator,
)
from pydantic.json_schema import SkipJsonSchema

from nnbuild.config.presets import METRICS, PRESETS, USER_MODEL, Preset
from nnbuild.config.sections import (
    DATA_DIR,
    WITH_BETAS,
    DatasetConfig,
    GateConfig,
    ModelConfig,
    S,
    ScoringConfig,
    Section,
    TrainingConfig,
    TrialTag,
)
from nnbuild.errors import ConfigError, suggestion
from nnbuild.runtime import environment

_FINE_TUNING = 0.1  # of the learning rate, so that the pretrained weights change slowly


class RunConfig(Section):
    """All settings of a run."""

    dataset: DatasetConfig = Field(DatasetConfig(), description="Dataset to train on")
    model: ModelConfig = Field(ModelConfig(), description="Network to train")
    training: TrainingConfig = Field(TrainingConfig(), description="Training")
    scoring: ScoringConfig = Field(ScoringConfig(), description="Scoring of the test set")
    gate: GateConfig = Field(GateConfig(), description="Champion gate")
    seed: int = Field(
        0, ge=0, lt=2**31, description="Seed of the split, the weights and the shuffling"
    )
    trial: TrialTag | None = Field(
        None, description="Trial of a sweep that the run belongs to; set by the sweep"
    )

    @model_validator(mode="after")
    def _require_kept_slices(self) -> Self:
        unknown = [name for name in self.gate.slices if name not in self.dataset.keep]
        if unknown:
            raise ValueError(
                f"gate.slices has {unknown[0]!r}, which dataset.keep does not have; add it there"
            )
        return self

    def digest(self) -> str:
        """Return the SHA-256 of the settings that determine the weights, 64 hexadecimal digits.

        The location of the data, the gate and the sweep are excluded.
        """
        unset = {name for name in ("keep", "metadata") if not getattr(self.dataset, name)}
        settings = self.model_dump_json(
            exclude={
                "dataset": {"data_dir", "fallback", "min_new", "as_of", *unset},
                "gate": True,
                "trial": True,
            }
        )
        return hashlib.sha256(settings.encode()).hexdigest()


def _only_null(*names: str) -> ConfigDict:
    """Return the schema of settings that forms do not show, but that may be null."""
    return ConfigDict(
        json_schema_extra={"patternProperties": {f"^{name}$": {"type": "null"} for name in names}}
    )


class ScheduledDataset(DatasetConfig):
    """Dataset of a scheduled run, without a fallback and of the day of the run."""

    model_config = _only_null("fallback", "as_of")

    fallback: SkipJsonSchema[Literal["digits"] | None] = Field(None, exclude=True)
    as_of: SkipJsonSchema[date | None] = Field(None, exclude=True)


class ScheduledConfig(RunConfig):
    """Settings of a scheduled run, without those for manual runs and sweeps."""

    model_config = _only_null("trial")

    dataset: ScheduledDataset = Field(ScheduledDataset(), description="Dataset to train on")
    trial: SkipJsonSchema[TrialTag | None] = Field(None, exclude=True)

    @model_validator(mode="before")
    @classmethod
    def _from_run_config(cls, value: Any) -> Any:
        return value.model_dump() if type(value) is RunConfig else value

    def run_config(self) -> RunConfig:
        """Return the settings as a `RunConfig`.

        Raises:
            ConfigError: They have a fallback dataset or a past day, or belong to a sweep.
        """
        for name in ("fallback", "as_of"):
            if (value := getattr(self.dataset, name)) is not None:
                raise ConfigError(
                    f"dataset.{name} is {str(value)!r}, which is not allowed in scheduled runs; "
                    "remove it"
                )
        if self.trial is not None:
            raise ConfigError("trial is not allowed in scheduled runs, only in sweeps; remove it")
        return RunConfig.model_validate(self.model_dump())


def default_data_dir() -> Path | None:
    """Return `$NNBUILD_DATA_DIR` as an absolute path; None if it is not set."""
    path = os.environ.get(DATA_DIR)
    return Path(path).absolute() if path else None


def preset_of(model: str) -> Preset:
    """Return the defaults of a named network, or of a user's own."""
    return PRESETS.get(model, USER_MODEL)


def is_factory(model: str) -> bool:
    """Return whether the name of a model has the form `package.module:function`."""
    return ":" in model


def require_names(config: RunConfig) -> None:
    """Require that network, metrics and monitors exist, and that settings fit together.

    Raises:
        ConfigError: A name is unknown, or two settings exclude each other.
    """
    model, training = config.model.name, config.training
    if not is_factory(model) and model not in PRESETS:
        raise ConfigError(
            f"unknown model {model!r}; {suggestion(model, PRESETS)}, or give "
            "package.module:function for your own",
            setting="model.name",
            value=model,
        )
    for name in training.metrics:
        if name not in METRICS:
            raise ConfigError(f"unknown metric {name!r}; {suggestion(name, METRICS)}")
    keys = {"loss", *training.metrics}
    keys |= {f"val_{name}" for name in keys}
    for monitor in training.monitors():
        # The metrics of a user's own model are known only when its steps are traced.
        if monitor not in keys and not is_factory(model):
            raise ConfigError(
                f"monitor {monitor!r} will not be in the history; {suggestion(monitor, keys)}"
            )
    if training.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise ConfigError(
            "training.tensorboard needs TensorBoard, which is not installed; run "
            "pip install 'nnbuild[tensorboard]'"
        )
    if (training.beta_1, training.beta_2) != (None, None) and training.optimizer not in {
        None,
        *WITH_BETAS,
    }:
        raise ConfigError(
            f"beta_1 and beta_2 apply to {', '.join(WITH_BETAS)} only, the optimizer is "
            f"{training.optimizer!r}; remove them"
        )
    if training.reduce_on_plateau and training.freeze_epochs:
        raise ConfigError(
            f"reduce_on_plateau and freeze_epochs {training.freeze_epochs} both set the learning "
            "rate; remove one"
        )
    if training.reduce_on_plateau and training.lr_schedule not in {None, "constant"}:
        raise ConfigError(
            f"reduce_on_plateau and lr_schedule {training.lr_schedule!r} both set the learning "
            "rate; remove one"
        )


def _require_effect(config: RunConfig) -> None:
    """Refuse settings that can never have an effect in a run.

    Args:
        config: Resolved config.

    Raises:
        ConfigError: A setting has no effect; the message says why.
    """
    _require_effect_of_pictures(config.dataset)
    training, model = config.training, config.model
    if training.start is not None and model.ensemble_size > 1:
        raise ConfigError(
            f"training.start {training.start!r} applies to a single network, not to the "
            f"{model.ensemble_size} of an ensemble; remove one of the two settings"
        )
    for name in ("l2", "dropout"):
        if getattr(model, name) and name not in preset_of(model.name).takes:
            raise ConfigError(
                f"model.{name} {getattr(model, name)} has no effect on {model.name!r}; remove it"
            )
    if training.freeze_epochs and not is_factory(model.name):
        raise ConfigError(
            f"training.freeze_epochs {training.freeze_epochs} has no effect on {model.name!r}, "
            "which has no backbone; remove it"
        )
    if training.fine_tuning_rate is not None and not training.freeze_epochs:
        raise ConfigError(
            f"training.fine_tuning_rate {training.fine_tuning_rate:g} has no effect without "
            "training.freeze_epochs; set it, or remove fine_tuning_rate"
        )
    epochs, measured = int(training.epochs or 1), training.validation_freq
    monitor = next((each for each in training.monitors() if each.startswith("val_")), None)
    if monitor is not None and measured > epochs:
        raise ConfigError(
            f"monitor {monitor!r} is never measured: validation_freq is {measured}, the run has "
            f"{epochs} epoch{'s' if epochs > 1 else ''}; lower validation_freq, or raise epochs"
        )
    plateau, rate = training.reduce_on_plateau, float(training.learning_rate or 0)
    if plateau is not None and plateau.min_learning_rate >= rate:
        raise ConfigError(
            f"reduce_on_plateau can never lower the learning rate {rate:g}: its min_learning_rate "
            f"is {plateau.min_learning_rate:g}; lower that"
        )


def _require_effect_of_pictures(dataset: DatasetConfig) -> None:
    """Refuse settings of pictures without those that they belong to."""
    if dataset.resize is not None and dataset.image_size is None:
        raise ConfigError(
            f"dataset.resize {dataset.resize!r} has no effect without dataset.image_size; set it, "
            "or remove resize"
        )
    if dataset.max_errors is not None and dataset.on_error != "skip":
        raise ConfigError(
            f"dataset.max_errors {dataset.max_errors:g} has no effect while dataset.on_error is "
            f"{dataset.on_error!r}; set it to skip, or remove max_errors"
        )


def _picture_defaults(dataset: DatasetConfig) -> dict[str, object]:
    """Return the defaults of settings of pictures, which depend on each other."""
    defaults: dict[str, object] = {}
    if dataset.image_size is not None:
        defaults["resize"] = "pad"
    if dataset.image_size is not None or dataset.channels is not None:
        defaults["background"] = "#ffffff"
    if dataset.on_error == "skip":
        defaults["max_errors"] = 0.01
    return defaults


def _filled(section: S, defaults: dict[str, object]) -> S:
    """Return a copy of a section with defaults for the fields that are None."""
    missing = {name: value for name, value in defaults.items() if getattr(section, name) is None}
    return type(section).model_validate({**section.model_dump(), **missing})


def _threads(preset: Preset, processors: int) -> int:
    """Return the threads for one operation: all, or 1 if parallel columns use all processors.

    Two operations with one thread each take less time than two in sequence with two threads each,
    since threads of one operation wait for each other.
    """
    return 1 if processors <= min(preset.columns, environment.OPERATIONS_AT_ONCE) else processors


def resolve(config: RunConfig, *, processors: int | None = None) -> RunConfig:
    """Fill in the open settings of a config from the network, the machine and the environment.

    Args:
        config: Settings of the user.
        processors: Number of processors for `training.threads`; those of this machine if not
            given.

    Returns:
        A complete config; resolving it again changes nothing.

    Raises:
        ConfigError: A network, metric or monitor is unknown, or a setting has no effect.
    """
    require_names(config)
    preset = preset_of(config.model.name)
    defaults = {
        **preset.training,
        "threads": _threads(preset, processors or environment.processors()),
    }
    if config.training.optimizer not in {None, *WITH_BETAS}:
        defaults = {
            name: value for name, value in defaults.items() if name not in {"beta_1", "beta_2"}
        }
    training = _filled(config.training, defaults)
    if training.freeze_epochs:
        rate = float(training.learning_rate or 0) * _FINE_TUNING
        training = _filled(training, {"fine_tuning_rate": rate})
    filled = config.model_copy(
        update={
            "dataset": _filled(
                config.dataset,
                {"data_dir": default_data_dir(), **_picture_defaults(config.dataset)},
            ),
            "model": _filled(config.model, preset.model),
            "training": training,
        }
    )
    require_names(filled)  # the user's settings together with the defaults of the network
    _require_effect(filled)
    return filled
