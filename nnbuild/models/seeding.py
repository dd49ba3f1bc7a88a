"""Keras's draws of seeds, kept from other threads.

A layer that is given no seed draws one from Python's global `random`, and whoever else draws in the meantime, as
Prefect's threads do for their waiting times, changes what the layer gets. So Keras draws from a generator of its own
while a model is built or read.
"""

import importlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from nnbuild.backend import keras


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Let every seed that Keras draws in this block follow from `seed`; also sets Keras's global seed."""
    keras.utils.set_random_seed(seed)
    drawing: Any = importlib.import_module("keras.src.random.seed_generator")
    shared = drawing.python_random
    drawing.python_random = random.Random(seed)  # noqa: S311  (no secret hangs on a model's first weights)
    try:
        yield
    finally:
        drawing.python_random = shared
