"""Test the schema of Prefect's form: known names, and defaults of empty fields."""

import pytest

from nnbuild.config import loading
from nnbuild.config.presets import DATASETS, METRICS, MONITORS, PRESETS, preset_values
from nnbuild.config.schema import RunConfig, resolve
from nnbuild.data import sources

SCHEMA = RunConfig.model_json_schema()["$defs"]


def test_schema_lists_existing_names():
    assert sources.NAMES == DATASETS
    assert SCHEMA["DatasetConfig"]["properties"]["name"]["then"]["enum"] == list(DATASETS)
    assert SCHEMA["ModelConfig"]["properties"]["name"]["then"]["enum"] == list(PRESETS)
    assert SCHEMA["TrainingConfig"]["properties"]["metrics"]["items"]["enum"] == list(METRICS)


@pytest.mark.parametrize("monitor", MONITORS)
def test_schema_monitors_are_accepted(monitor):
    given = {"training": {"metrics": list(METRICS), "restore_best_weights": monitor}}
    assert resolve(RunConfig.model_validate(given)).training.restore_best_weights == monitor


@pytest.mark.parametrize("model", PRESETS)
@pytest.mark.parametrize("section", ["model", "training"])
def test_schema_describes_defaults(model, section):
    resolved = getattr(resolve(RunConfig.model_validate({"model": {"name": model}})), section)
    described = SCHEMA[f"{section.capitalize()}Config"]["properties"]
    for name, field in type(resolved).model_fields.items():
        if field.default is not None or model not in preset_values(name):
            continue
        value = getattr(resolved, name)
        shown = f"{value:.3g}" if isinstance(value, float) else str(value)
        (part,) = [
            each
            for each in described[name]["description"].partition("Left empty: ")[2].split("; ")
            if model in each or "(" not in each
        ]
        assert part.startswith(shown), name


def test_flatten_joins_keys_with_dots():
    nested = {"training": {"early_stopping": {"patience": 3}}, "seed": 1}
    assert loading.flatten(nested) == {"training.early_stopping.patience": 3, "seed": 1}
