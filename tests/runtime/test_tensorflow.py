"""Test the settings of TensorFlow by its behaviour."""

import numpy as np

from nnbuild.runtime.tensorflow import tf


def test_compiled_equals_eager_bits():
    # x * 0.1 * 0.3 is rounded twice; Grappler would change it to x * 0.03, which is rounded once.
    numbers = tf.constant(np.random.default_rng(0).random(1000, np.float32))

    def twice(x):
        return x * 0.1 * 0.3

    np.testing.assert_array_equal(tf.function(twice)(numbers), twice(numbers))
