"""scikit-learn's handwritten digits, enlarged to 28 by 28 pixels; available without a network."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nnbuild.data.dataset import Dataset, Split, hold_out

NAME = "digits"
_INK = 16  # the largest of scikit-learn's values
_SIDE = 24
_MARGIN = 2  # 24 and a margin of 2 on each side are MNIST's 28


def load() -> Dataset:
    """Load 1,797 handwritten digits of 28 by 28 pixels, about a sixth of them for testing.

    Source: E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine
    Learning Repository, 1998.
    """
    # Here, because the import takes half a second.
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.stack([_enlarge(image) for image in bunch.images])[..., np.newaxis]
    train, test = hold_out(Split(images, bunch.target.astype(np.int16)))
    names = tuple(str(label) for label in range(10))
    return Dataset(
        NAME,
        train,
        test,
        names,
        "scikit-learn's load_digits; test: a sixth of the images, by content",
        held_out=True,
    )


def _enlarge(image: NDArray[np.float64]) -> NDArray[np.uint8]:
    small = Image.fromarray(np.rint(image * (255 / _INK)).astype(np.uint8))
    large = small.resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)
    return np.pad(np.asarray(large), _MARGIN)
