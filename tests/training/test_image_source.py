"""A fit on mapped images is the fit on images in memory, to the last bit."""

from dataclasses import replace

import numpy as np
import pytest
from small_fit import ONE_STEP_PER_CALL, StopAfter, config_of, run_through, same, small_split

from nnbuild.data.dataset import Split
from nnbuild.data.pixels import PixelWriter, Workspace
from nnbuild.errors import Interrupted
from nnbuild.runtime.tensorflow import tf
from nnbuild.training import image_source
from nnbuild.training.image_source import MappedImages, ResidentImages


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Read few images at a time, so that an epoch has several blocks and a shorter last one."""
    monkeypatch.setattr(image_source, "_BLOCK_BYTES", 2 * 16 * 64)


def mapped(split, tmp_path):
    writer = PixelWriter(Workspace(tmp_path / "pixels", limit=0))
    writer.append(split.images)
    return replace(split, images=writer.finish())


@pytest.mark.parametrize(
    ("model", "training"),
    [
        ("lab", {}),
        ("lab", {"label_encoding": "one-hot", "augmentation": "affine"}),
        ("convnet", {"augmentation": "shift"}),
        ("fast", {}),
    ],
)
def test_mapped_fit_equals_memory(tmp_path, model, training):
    split, config = small_split(), config_of(model, **training)
    expected, history = run_through(config, split)
    found, other = run_through(config, mapped(split, tmp_path))
    assert same(expected, found)
    assert history.history.history == other.history.history


@pytest.fixture(scope="module")
def straight():
    """The settings of a fit on images in memory that was never stopped, and its model."""
    config = config_of("lab", augmentation="affine")
    return config, run_through(config, small_split())[0]


@pytest.mark.parametrize("first_mapped", [True, False])
def test_resume_may_change_the_path(tmp_path, monkeypatch, straight, first_mapped):
    split, (config, expected) = small_split(), straight
    both = [split, mapped(split, tmp_path)]
    before, after = reversed(both) if first_mapped else both
    monkeypatch.setattr(*ONE_STEP_PER_CALL)
    with pytest.raises(Interrupted):
        run_through(config, before, tmp_path / "checkpoints", stop=StopAfter(9))
    found, fitted = run_through(config, after, tmp_path / "checkpoints")
    assert any(remark.startswith("resumed at epoch") for remark in fitted.remarks)
    assert same(expected, found)


def examples(source, order, first, last):
    """Return the images and labels that steps of 5 images get."""
    found = []
    for block in source.blocks(order, first, last):
        images, targets, rows = (each.numpy() for each in block.examples)
        for step in range(max(first, block.first), min(last, block.last)):
            chosen = rows[(step - block.first) * 5 : (step - block.first + 1) * 5]
            found.append((images[chosen].tobytes(), targets[chosen].tobytes()))
    return found


@pytest.mark.parametrize(("first", "last"), [(0, 11), (3, 4), (6, 11), (10, 11)])
def test_steps_get_the_same_examples(tmp_path, monkeypatch, first, last):
    monkeypatch.setattr(image_source, "_BLOCK_BYTES", 3 * 5 * 64)
    draw = np.random.default_rng(0)
    split = Split(draw.integers(0, 256, (60, 8, 8, 1), np.uint8), np.arange(60, dtype=np.int16) % 7)
    order = draw.permutation(60)[:52].astype(np.int32)
    resident = ResidentImages(split, 5, tf.identity)
    source = MappedImages(mapped(split, tmp_path), 5, tf.identity)
    assert examples(source, order, first, last) == examples(resident, order, first, last)
    again = order[::-1].copy()  # another epoch
    assert examples(source, again, first, last) == examples(resident, again, first, last)


def test_failed_reading_ends_the_steps(tmp_path, monkeypatch):
    split = mapped(small_split(), tmp_path)
    source = MappedImages(split, 5, tf.identity)

    def fail(*_):
        raise OSError("the disk is gone")

    monkeypatch.setattr(type(split.images), "gather", fail)
    with pytest.raises(OSError, match="the disk is gone"):
        list(source.blocks(np.arange(20, dtype=np.int32), 0, 4))
