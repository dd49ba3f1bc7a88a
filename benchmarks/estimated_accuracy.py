"""Compare the estimate of live accuracy with the accuracy, on MNIST without and with shifts.

    python benchmarks/estimated_accuracy.py [--models fast,convnet,lab] [--images 10000]

For each network a run is trained, the test images are scored once as they are and once for each
shift, and the labels are added. Then `nnbuild live` has both numbers, by day. The estimate is also
computed outside of nnbuild, as the plain mean of the calibrated confidences.
"""

import argparse
import tempfile
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from scipy import ndimage, special

from nnbuild.config.schema import RunConfig
from nnbuild.data.dataset import Split
from nnbuild.data.dataset_reader import read_dataset
from nnbuild.data.split_table import split_table
from nnbuild.live import LabelConfig, ingest, measure
from nnbuild.pipeline.run import retrain
from nnbuild.scoring import ScoreConfig, score
from nnbuild.store import Store

Images = NDArray[np.uint8]
Labels = NDArray[np.int16]
Shift = Callable[[Images, Labels, np.random.Generator], tuple[Images, Labels]]
_FIRST = date(2026, 11, 1)


def darker(images: Images, labels: Labels, _: np.random.Generator) -> tuple[Images, Labels]:
    """Return images of a third of the brightness."""
    return (images // 3).astype(np.uint8), labels


def noise(images: Images, labels: Labels, draw: np.random.Generator) -> tuple[Images, Labels]:
    """Return images with Gaussian noise of a standard deviation of 60 of 255."""
    noisy = images + draw.normal(0, 60, images.shape)
    return np.clip(noisy, 0, 255).astype(np.uint8), labels


def rotated(images: Images, labels: Labels, _: np.random.Generator) -> tuple[Images, Labels]:
    """Return images rotated by 40 degrees."""
    turned = ndimage.rotate(images, 40, axes=(1, 2), reshape=False, order=1)
    return np.clip(turned, 0, 255).astype(np.uint8), labels


def class_mix(images: Images, labels: Labels, draw: np.random.Generator) -> tuple[Images, Labels]:
    """Return images of which half show an 8 or a 9."""
    late = labels >= 8
    chance = np.where(late, 0.5 / late.sum(), 0.5 / (~late).sum())
    chosen = draw.choice(len(labels), len(labels), p=chance / chance.sum())
    return images[chosen], labels[chosen]


def wrong_labels(
    images: Images, labels: Labels, draw: np.random.Generator
) -> tuple[Images, Labels]:
    """Return the same images with a fifth of the labels moved to the next class."""
    wrong = draw.random(len(labels)) < 0.2
    return images, np.where(wrong, (labels + 1) % 10, labels).astype(np.int16)


SHIFTS: dict[str, Shift] = {
    "none": lambda images, labels, _: (images, labels),
    "darker": darker,
    "noise": noise,
    "rotated": rotated,
    "other class mix": class_mix,
    "wrong labels": wrong_labels,
}


def score_shifts(store: Store, test: Split, folder: Path) -> None:
    """Score the images of every shift, each as a day of its own, and add their labels."""
    draw = np.random.default_rng(0)
    for number, shift in enumerate(SHIFTS.values()):
        images, labels = shift(test.images, test.labels, draw)
        ids = np.arange(len(labels)) + number * 1_000_000
        table = split_table(Split(images, labels)).append_column("id", pa.array(ids))
        path = folder / f"{number}.parquet"
        pq.write_table(table, path)
        day = _FIRST + timedelta(days=number)
        score(
            ScoreConfig(
                input=str(path), id_column="id", day=day, keep=("id",), max_brightness_ratio=1e6
            ),
            store.root,
        )
        pq.write_table(pa.table({"id": ids, "label": labels}), folder / f"labels-{number}.parquet")
    ingest(LabelConfig(input=str(folder / "labels-*.parquet")), store.root)


def outside(store: Store, run_id: str, number: int) -> float:
    """Return the plain mean of the calibrated confidences of a shift."""
    temperature = store.manifest(run_id).steps.calibrate_model.temperature  # type: ignore[union-attr]
    job = store.score_ids()[number]
    columns = [f"prob_{label}" for label in range(10)]
    table = store.read_table("scores", job, columns)
    probabilities = np.stack([table[name].to_numpy() for name in columns], axis=1)
    with np.errstate(divide="ignore"):
        logs = np.log(probabilities.astype(np.float64))
    return float(special.softmax(logs / temperature, axis=1).max(axis=1).mean())


def main() -> None:
    """Print the accuracy and both estimates for each network and shift."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="fast,convnet,lab")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, help="of each network; its own default if not given")
    options = parser.parse_args()
    print(
        "| network | shift | accuracy | estimated | error | by ATC | error | largest difference |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for model in options.models.split(","):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            store = Store(folder / "store")
            training = {} if options.epochs is None else {"epochs": options.epochs}
            config = {"dataset": {"name": "mnist"}, "model": {"name": model}, "training": training}
            run_id = retrain(RunConfig.model_validate(config), store.root).run_id
            data = store.manifest(run_id).steps.load_data
            test = read_dataset(store.local_dataset(data.name, data.digest)).test
            few = Split(test.images[: options.images], test.labels[: options.images])
            score_shifts(store, few, folder)
            for number, (shift, row) in enumerate(zip(SHIFTS, measure(store).rows, strict=True)):
                accuracy, estimate = row["accuracy"], row["estimated_accuracy"]
                atc = row["estimated_accuracy_atc"]
                print(
                    f"| `{model}` | {shift} | {accuracy:.2%} | {estimate:.2%} "
                    f"| {100 * (estimate - accuracy):+.2f} | {atc:.2%} "
                    f"| {100 * (atc - accuracy):+.2f} "
                    f"| {abs(outside(store, run_id, number) - estimate):.0e} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
