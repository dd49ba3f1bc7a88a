"""Tasks of a run: what they log."""

import logging

import pytest
from labelled_days import LabelledDays, day, noon, train

from nnbuild import pipeline
from nnbuild.config.schema import RunConfig
from nnbuild.pipeline.run import open_run, run_context
from nnbuild.store import Store, champion
from tasks.retrain import build


def warm(config: RunConfig) -> RunConfig:
    training = config.training.model_copy(update={"start": "champion"})
    return config.model_copy(update={"training": training})


@pytest.mark.parametrize(
    ("repeats", "reason"),
    [
        (False, "the dataset has no champion yet"),
        (True, f"so did the run of {day(0)}, which this one repeats"),
    ],
)
def test_build_says_why_it_starts_from_seed(tmp_path, caplog, repeats, reason):
    days, root = LabelledDays(tmp_path), tmp_path / "store"
    days.write(0)
    days.write(1)
    if repeats:
        train(warm(days.config()), root, noon(0))
        assert champion.currents(Store(root))
    again = open_run(warm(days.config(as_of=day(0))), root, now=noon(1))
    with run_context(again), caplog.at_level(logging.INFO, "nnbuild"):
        assert build.fn(again, pipeline.load_data(again)).start is None
    assert f"starts from the weights of the seed: {reason}" in caplog.messages
