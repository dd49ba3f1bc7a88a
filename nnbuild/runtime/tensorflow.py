"""TensorFlow and Keras, imported once and in silence.

TensorFlow writes to the file descriptor of standard error before its own log settings apply, so the
import, and the first operation that wakes the runtime, happen with that descriptor set aside. Modules
that need the two say `from nnbuild.runtime.tensorflow import keras, tf`; nothing else imports them.
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
    """Hold back what is written to descriptor 2, and show it only if the block raises."""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as aside:
        os.dup2(aside.fileno(), 2)
        try:
            yield
        except BaseException:
            aside.seek(0)
            os.write(kept, aside.read())
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)


os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["KERAS_BACKEND"] = "tensorflow"

with quiet(), gc_paused():
    import keras
    import tensorflow as tf

# Its warnings are advice to whoever writes TensorFlow code, not to whoever runs this.
tf.get_logger().setLevel("ERROR")
# TensorFlow's rewriting of graphs ("Grappler") reorders arithmetic, and not every time in the same way: a network that
# was trained twice by the same seed differed in its last bits. Without it a graph does what it says, and as fast.
tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
# A GPU's memory is taken as it is needed, so that several runs and the desktop share it. Never tried: there was no GPU.
with suppress(RuntimeError):  # the runtime is awake already; whoever woke it has decided
    for _gpu in tf.config.list_physical_devices("GPU"):
        tf.config.experimental.set_memory_growth(_gpu, enable=True)

# At its end Python looks once more for cycles among all that TensorFlow has made, which takes a second or two of the
# processor, and frees what ends with the process anyway: a run that was cancelled would keep its place so long.
atexit.register(gc.freeze)

__all__ = ["keras", "pin_threads", "quiet", "tf"]


def pin_threads(threads: int) -> bool:
    """Fix how many threads one operation may use, and wake the runtime.

    Convolutions give other bytes with another number of threads, so the number is part of a run.

    Args:
        threads: for one operation; `OPERATIONS_AT_ONCE` run beside each other.

    Returns:
        Whether it is so. TensorFlow takes the setting only before its first operation.
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
