"""The configuration of a run, and how open settings are filled in.

A field that is `None` takes the default of the chosen network (`nnbuild.config.presets`); `resolve` fills it in,
so that a run's recorded config leaves nothing open.
"""

import hashlib
import importlib.util
import os
from pathlib import Path
from typing import Any, Literal

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


class RunConfig(Section):
    """Everything that decides what a run computes."""

    dataset: DatasetConfig = Field(DatasetConfig(), description="What is trained on")
    model: ModelConfig = Field(ModelConfig(), description="Which network is built")
    training: TrainingConfig = Field(TrainingConfig(), description="How it is fitted")
    scoring: ScoringConfig = Field(ScoringConfig(), description="How logits become probabilities")
    gate: GateConfig = Field(GateConfig(), description="When the run becomes the champion")
    seed: int = Field(
        0, ge=0, lt=2**31, description="Of the split, the weights and the order of examples"
    )
    trial: TrialTag | None = Field(
        None, description="Set by a sweep: which of its trials the run is"
    )

    def digest(self) -> str:
        """sha256 of the settings that decide the weights, 64 hexadecimal digits.

        Where the data lies does not count, nor what the gate makes of the run, nor which sweep it belongs to.
        """
        settings = self.model_dump_json(
            exclude={"dataset": {"data_dir", "fallback"}, "gate": True, "trial": True}
        )
        return hashlib.sha256(settings.encode()).hexdigest()


def _only_null(*names: str) -> ConfigDict:
    """Return the schema of settings that no form shows, and that may still be there as null."""
    return ConfigDict(
        json_schema_extra={"patternProperties": {f"^{name}$": {"type": "null"} for name in names}}
    )


class ScheduledDataset(DatasetConfig):
    """What a scheduled run trains on: what it names, or nothing."""

    model_config = _only_null("fallback")

    fallback: SkipJsonSchema[Literal["digits"] | None] = Field(None, exclude=True)


class ScheduledConfig(RunConfig):
    """Settings of a scheduled run, without those that only a person or a sweep may give."""

    model_config = _only_null("trial")

    dataset: ScheduledDataset = Field(ScheduledDataset(), description="What is trained on")
    trial: SkipJsonSchema[TrialTag | None] = Field(None, exclude=True)

    @model_validator(mode="before")
    @classmethod
    def _from_run_config(cls, value: Any) -> Any:
        return value.model_dump() if type(value) is RunConfig else value

    def run_config(self) -> RunConfig:
        """Return the same settings as those of any run.

        Raises:
            ConfigError: They fall back to other data, or are those of a sweep's trial.
        """
        if self.dataset.fallback is not None:
            raise ConfigError(
                f"dataset.fallback is {self.dataset.fallback!r}, and a scheduled run never falls "
                "back; remove it"
            )
        if self.trial is not None:
            raise ConfigError("trial is set by a sweep and not for a scheduled run; remove it")
        return RunConfig.model_validate(self.model_dump())


def default_data_dir() -> Path | None:
    """Return the absolute path that `$NNBUILD_DATA_DIR` names, or None; nothing else reads it."""
    given = os.environ.get(DATA_DIR)
    return Path(given).absolute() if given else None


def preset_of(model: str) -> Preset:
    """The training defaults of a named network, or of a user's own."""
    return PRESETS.get(model, USER_MODEL)


def is_factory(model: str) -> bool:
    """Whether a model's name is of the form `package.module:function`."""
    return ":" in model


def require_names(config: RunConfig) -> None:
    """Refuse a network, a metric or a monitor that does not exist.

    Raises:
        ConfigError: with the nearest name.
    """
    model, training = config.model.name, config.training
    if not is_factory(model) and model not in PRESETS:
        raise ConfigError(
            f"unknown model {model!r}; {suggestion(model, PRESETS)}, or give package.module:function"
        )
    for name in training.metrics:
        if name not in METRICS:
            raise ConfigError(f"unknown metric {name!r}; {suggestion(name, METRICS)}")
    keys = {"loss", *training.metrics}
    keys |= {f"val_{name}" for name in keys}
    for monitor in training.monitors():
        # What a model of the user's own reports is known once its steps are traced.
        if monitor not in keys and not is_factory(model):
            raise ConfigError(
                f"monitor {monitor!r} will not be in the history; {suggestion(monitor, keys)}"
            )
    if training.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise ConfigError(
            "TensorBoard logs are wanted and it is not installed; run pip install 'nnbuild[tensorboard]'"
        )
    if (training.beta_1, training.beta_2) != (None, None) and training.optimizer not in {
        None,
        *WITH_BETAS,
    }:
        raise ConfigError(
            f"beta_1 and beta_2 are Adam's, the optimizer is {training.optimizer!r}; drop them"
        )
    if training.reduce_on_plateau and training.lr_schedule not in {None, "constant"}:
        raise ConfigError(
            f"reduce_on_plateau and lr_schedule {training.lr_schedule!r} both set the learning rate; drop one"
        )


def _require_effect(config: RunConfig) -> None:
    """Refuse settings that can never act in a run, whatever its data.

    Args:
        config: Resolved.

    Raises:
        ConfigError: Saying why, and what to change.
    """
    training, model = config.training, config.model
    for name in ("l2", "dropout"):
        if getattr(model, name) and name not in preset_of(model.name).takes:
            raise ConfigError(
                f"model.{name} {getattr(model, name)} has no effect on {model.name!r}; drop it"
            )
    epochs, measured = int(training.epochs or 1), training.validation_freq
    monitor = next((each for each in training.monitors() if each.startswith("val_")), None)
    if monitor is not None and measured > epochs:
        raise ConfigError(
            f"monitor {monitor!r} is never measured: validation_freq is {measured}, the run has {epochs} "
            f"epoch{'s' if epochs > 1 else ''}; lower validation_freq, or raise epochs"
        )
    plateau, rate = training.reduce_on_plateau, float(training.learning_rate or 0)
    if plateau is not None and plateau.min_learning_rate >= rate:
        raise ConfigError(
            f"reduce_on_plateau can never lower the learning rate {rate:g}: its min_learning_rate is "
            f"{plateau.min_learning_rate:g}; lower that"
        )


def _filled(section: S, defaults: dict[str, object]) -> S:
    """A copy of a section in which the fields left open take their defaults."""
    opened = {name: value for name, value in defaults.items() if getattr(section, name) is None}
    return type(section).model_validate({**section.model_dump(), **opened})


def _threads(preset: Preset, processors: int) -> int:
    """All processors for one operation; but one, where columns beside each other keep all of them busy anyhow.

    Two operations with a thread each take less time than one after the other with two threads, of which one waits.
    """
    return 1 if processors <= min(preset.columns, environment.OPERATIONS_AT_ONCE) else processors


def resolve(config: RunConfig, *, processors: int | None = None) -> RunConfig:
    """Fill in what a config leaves open: from the network, the machine and the environment.

    Args:
        config: what the user gave.
        processors: of this machine, for the threads where the config names none.

    Returns:
        A config without open fields; resolving it again changes nothing.

    Raises:
        ConfigError: a network, a metric or a monitor that does not exist, or a setting that can never act.
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
    filled = config.model_copy(
        update={
            "dataset": _filled(config.dataset, {"data_dir": default_data_dir()}),
            "model": _filled(config.model, preset.model),
            "training": _filled(config.training, defaults),
        }
    )
    require_names(filled)  # what was given against what the network brings
    _require_effect(filled)
    return filled
