"""Import TensorFlow and Keras once and without output.

TensorFlow writes to the descriptor of standard error before its log settings apply, so that
descriptor is redirected during the import and the first operation. Other modules use `from
nnbuild.runtime.tensorflow import keras, tf`; only this module imports the two.
"""

import atexit
import gc
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from nnbuild.runtime.environment import OPERATIONS_AT_ONCE
from nnbuild.runtime.lazy_imports import gc_paused


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress output to descriptor 2, and show it only if the block raises."""
    sys.stderr.flush()
    original = os.dup(2)
    with tempfile.TemporaryFile() as output:
        os.dup2(output.fileno(), 2)
        try:
            yield
        except BaseException:
            output.seek(0)
            os.write(original, output.read())
            raise
        finally:
            os.dup2(original, 2)
            os.close(original)


os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["KERAS_BACKEND"] = "tensorflow"

with quiet(), gc_paused():
    import keras
    import tensorflow as tf

# Its warnings are for developers of TensorFlow code, not for users of nnbuild.
tf.get_logger().setLevel("ERROR")
# Grappler, TensorFlow's optimizer of graphs, reorders arithmetic in a nondeterministic way: two
# trainings with one seed differed in the last bits. Without it the training is as fast.
tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
# Allocate GPU memory on demand, so that several runs can share a GPU. Not tested on a GPU.
with suppress(RuntimeError):  # the runtime was initialised before, with other settings
    for _gpu in tf.config.list_physical_devices("GPU"):
        tf.config.experimental.set_memory_growth(_gpu, enable=True)

# At exit Python searches all objects of TensorFlow for cycles, which takes a second or two and
# frees only what ends with the process anyway. A cancelled run would occupy its slot until then.
atexit.register(gc.freeze)

__all__ = ["keras", "pin_threads", "quiet", "tf"]


def pin_threads(threads: int) -> bool:
    """Set the number of threads for one operation, and initialise the runtime.

    Convolutions have other result bytes with another number of threads, so it is part of a run.

    Args:
        threads: Threads for one operation; `OPERATIONS_AT_ONCE` operations run in parallel.

    Returns:
        Whether the setting is in effect. TensorFlow accepts it only before its first operation.
    """
    if tf.config.threading.get_intra_op_parallelism_threads() != threads:
        try:
            tf.config.threading.set_intra_op_parallelism_threads(threads)
            tf.config.threading.set_inter_op_parallelism_threads(OPERATIONS_AT_ONCE)
        except RuntimeError:
            return False
    with quiet():
        tf.constant(0)
    return True
