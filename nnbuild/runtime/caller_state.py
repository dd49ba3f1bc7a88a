"""Leave the process of a caller, such as a notebook, as it was before a run."""

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np


@contextmanager
def caller_state() -> Iterator[None]:
    """Restore the shared random generators and Keras's dtype policy after a block, which sets them.

    Otherwise a search that draws its settings from `random` would draw the same ones after each
    run, whose seed is the same.
    """
    keras = sys.modules.get("keras")  # if it is not imported, the caller has set nothing in it
    policy = keras.config.dtype_policy() if keras is not None else None
    numbers, arrays = random.getstate(), np.random.get_state()  # noqa: NPY002  (the shared one)
    try:
        yield
    finally:
        random.setstate(numbers)
        np.random.set_state(arrays)  # noqa: NPY002
        if keras is not None:
            keras.config.set_dtype_policy(policy)
