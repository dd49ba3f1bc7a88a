"""Fit a small network on small data, with a stop at any step."""

import numpy as np
from small_data import small_arrays

from nnbuild import models
from nnbuild.config.schema import RunConfig, resolve
from nnbuild.data.dataset import Split
from nnbuild.training import Checkpoints, FitContext, fit
from nnbuild.training.checkpoint import model_arrays

CLASSES = 3


def small_split(shape=(8, 8, 1), count=120):
    arrays = small_arrays(classes=CLASSES, shape=shape, train=count, test=CLASSES)
    return Split(arrays["x_train"], arrays["y_train"].astype(np.int16))


def config_of(model="lab", *, seed=3, l2=None, **training):
    settings = {"epochs": 4, "batch_size": 16, "threads": 2} | training
    return resolve(
        RunConfig.model_validate(
            {"model": {"name": model, "l2": l2}, "training": settings, "seed": seed}
        )
    )


def compiled(config, split):
    model = models.build(config, split.images.shape[1:], CLASSES)
    models.compile_model(model, config.training, steps=24)
    return model


ONE_STEP_PER_CALL = ("nnbuild.training.loop.StepsPerCall.update", lambda *_: None)
"""Patch by which a fit looks for a signal at each step; otherwise the time decides how often."""


class StopAfter:
    """Signal source that asks to stop after a number of looks; see `ONE_STEP_PER_CALL`."""

    def __init__(self, calls):
        self.left = calls

    def __call__(self):
        self.left -= 1
        return 15 if self.left < 0 else None


def run_through(config, split, folder=None, validation=None, **options):
    checkpoints = (
        Checkpoints(folder, {"config": config.digest(), "dataset": "d", "code": "c"})
        if folder
        else None
    )
    model = compiled(config, split)
    context = FitContext(checkpoints=checkpoints, **options)
    fitted = fit(model, split, config, CLASSES, context, validation=validation)
    return model, fitted


def same(one, other):
    arrays, others = model_arrays(one), model_arrays(other)
    return arrays.keys() == others.keys() and all(
        np.array_equal(arrays[key], others[key]) for key in arrays
    )
