"""A run leaves the process of its caller as it was."""

import random

import numpy as np
from small_data import run_config

from nnbuild.pipeline.run import retrain
from nnbuild.runtime.tensorflow import keras


def test_run_keeps_generators_and_policy(small_folder, tmp_path):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        random.seed(5)
        np.random.seed(5)  # noqa: NPY002
        expected = random.random(), np.random.random()  # noqa: NPY002, S311
        random.seed(5)
        np.random.seed(5)  # noqa: NPY002
        retrain(run_config(small_folder), tmp_path / "store")
        assert (random.random(), np.random.random()) == expected  # noqa: NPY002, S311
        assert keras.config.dtype_policy().name == "mixed_bfloat16"
    finally:
        keras.config.set_dtype_policy(before)
