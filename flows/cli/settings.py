"""Turn options into settings, and find the option of a setting."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from nnbuild.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

    from pydantic import BaseModel

    from nnbuild.config.schema import RunConfig

Settings = dict[str, Any]
Model = TypeVar("Model", bound="BaseModel")
SETTING_OF_OPTION = {
    "dataset": "dataset.name",
    "data_dir": "dataset.data_dir",
    "fallback": "dataset.fallback",
    "model": "model.name",
    "ensemble_size": "model.ensemble_size",
    "epochs": "training.epochs",
    "batch_size": "training.batch_size",
    "dtype_policy": "training.dtype_policy",
    "tensorboard": "training.tensorboard",
    "seed": "seed",
    "as_of": "dataset.as_of",
}


def nest_options(options: Settings) -> Settings:
    """Return options as the settings that they set: `epochs` becomes `training.epochs`."""
    nested: Settings = {}
    for name, value in options.items():
        section, _, key = SETTING_OF_OPTION[name].rpartition(".")
        settings = nested.setdefault(section, {}) if section else nested
        settings[key] = value
    return nested


def load_config(
    options: Settings, path: Path | None, overrides: list[str], store: str | None = None
) -> RunConfig:
    """Return the config of a run: a file, overridden by settings, overridden by options.

    Args:
        options: Nested settings from options.
        path: TOML file, if there is one.
        overrides: Settings as KEY=VALUE.
        store: Root of the store with the run of a past day, whose settings are the defaults if
            `dataset.as_of` is given and no dataset.

    Raises:
        ConfigError: The file or a setting is invalid.
    """
    from nnbuild.config import loading

    file = loading.read_toml(path) if path else {}
    dataset = merge_settings(file, options, overrides).get("dataset")
    if isinstance(dataset, dict) and "as_of" in dataset and "name" not in dataset:
        from nnbuild.pipeline.days import settings_of_day
        from nnbuild.store import Store

        file = loading.merge(settings_of_day(Store(store), str(dataset["as_of"])), file)
    return merge_config(file, options, path, overrides)


def merge_settings(file: Settings, options: Settings, overrides: list[str]) -> Settings:
    """Return the settings of a file, overridden by KEY=VALUE, overridden by options."""
    from nnbuild.config import loading

    settings = dict(file)
    for override in overrides:
        settings = loading.merge(settings, loading.parse_setting(override))
    return loading.merge(settings, options)


def merge_config(
    file: Settings, options: Settings, path: Path | None, overrides: list[str]
) -> RunConfig:
    """Return the config as `load_config` does, from settings that were read from `path` already."""
    from nnbuild.config import loading

    if path is not None:
        loading.require_valid_file(file, path)
    return loading.parse_config(merge_settings(file, options, overrides), path)


def parse_options(model: type[Model], options: Settings, command: Any = None) -> Model:
    """Return the settings that options describe.

    Args:
        model: Class of the settings.
        options: Values of its fields.
        command: Command with the options; None if the settings have no options of their own.

    Raises:
        ConfigError: A value is invalid; the message names the option, or else the setting.
    """
    from pydantic import ValidationError

    try:
        return model.model_validate(options)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        option = None if command is None else option_of(command, name)
        raise ConfigError(f"{option or name} {first['input']!r}: {first['msg']}") from error


def option_of(command: Any, setting: str) -> str | None:
    """Return the option of a command that sets something; None if it has no such option.

    Args:
        command: Command of the application.
        setting: Name of a setting such as `dataset.name`, or of an argument of the library.
    """
    names = {setting} | {name for name, key in SETTING_OF_OPTION.items() if key == setting}
    flag = f"--{setting.replace('_', '-')}"
    options = [each for each in command.params if each.param_type_name == "option"]
    found = [each for each in options if each.name in names]
    found += [each for each in options if flag in each.opts]
    return str(found[0].opts[0]) if found else None
