"""Settings of pictures: defaults that depend on each other, and settings without an effect."""

import pytest
from pydantic import ValidationError

from nnbuild.config.schema import RunConfig, ScheduledConfig, resolve
from nnbuild.errors import ConfigError
from nnbuild.pipeline.days import preprocessing_of, read_options


def dataset(**settings):
    config = RunConfig.model_validate({"dataset": settings, "model": {"name": "lab"}})
    return resolve(config).dataset


def test_no_setting_means_no_preprocessing():
    assert preprocessing_of(dataset()) is None
    assert read_options(dataset()).max_errors is None


def test_defaults_follow_from_the_size():
    found = dataset(image_size=[4, 6])
    assert (found.resize, found.background) == ("pad", "#ffffff")
    assert preprocessing_of(found).image_size == (4, 6)
    assert dataset(channels=1).background == "#ffffff"
    assert dataset(background="#000000").resize is None


def test_skipping_has_a_limit_by_default():
    assert read_options(dataset(on_error="skip")).max_errors == pytest.approx(0.01)
    assert read_options(dataset(on_error="skip", max_errors=0.2)).max_errors == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"resize": "crop"}, "has no effect without dataset.image_size"),
        ({"max_errors": 0.1}, "has no effect while dataset.on_error is 'refuse'"),
    ],
)
def test_setting_without_effect_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        dataset(**settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"image_size": [0, 5]},
        {"image_size": [5]},
        {"image_size": [5, 5000]},
        {"channels": 2},
        {"background": "red"},
        {"resize": "fill"},
        {"max_errors": 2},
    ],
)
def test_invalid_value_is_refused(settings):
    with pytest.raises(ValidationError):
        RunConfig.model_validate({"dataset": settings})


def test_scheduled_runs_have_the_settings():
    settings = {"image_size": [4, 6], "channels": 3}
    config = ScheduledConfig.model_validate({"dataset": settings}).run_config()
    assert config.dataset.image_size == (4, 6)
    size = ScheduledConfig.model_json_schema()["$defs"]["ScheduledDataset"]["properties"]
    assert size["image_size"]["anyOf"][0]["maxItems"] == 2
