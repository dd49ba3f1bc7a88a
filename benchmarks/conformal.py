"""Compare the coverage of prediction sets with the stated one, without and with shifts.

    python benchmarks/conformal.py [--model lab] [--coverages 0.9,0.95,0.99] [--images 10000]

A run is trained on MNIST, and another one on garments: images that are made here, of the shape of
Fashion-MNIST and with its kind of difficulty, classes that resemble each other. The test images are
scored with each coverage as they are, and once for each shift. Coverage is the share of the rows
whose true class is in the set. Without a shift it should be within the margin of chance: a draw of
the validation images gives a coverage with a beta distribution, of which the test images are a
sample (Vovk 2012; Angelopoulos & Bates 2023, section 3.2). The last column is what the drift
check sees: the distance between the energies of the rows and those of the validation images.
"""

import argparse
import tempfile
from fractions import Fraction
from math import ceil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from estimated_accuracy import SHIFTS
from scipy import ndimage, stats

from nnbuild.config.schema import RunConfig
from nnbuild.data.dataset import Split
from nnbuild.data.dataset_reader import read_dataset
from nnbuild.data.split_table import split_table
from nnbuild.evaluation.conformal import CONFORMAL
from nnbuild.pipeline.run import retrain
from nnbuild.scoring import ScoreConfig, score
from nnbuild.store import Store

_CHANCE = 0.99  # two-sided, for each row of the table without a shift


def garments(images: int, draw: np.random.Generator) -> Split:
    """Return images of ten kinds of garments, 28 × 28, with classes that resemble each other.

    A garment is a silhouette with a texture. Classes 2k and 2k + 1 have the same silhouette, and
    their textures overlap, so that no network is always correct.
    """
    labels = draw.integers(0, 10, images).astype(np.int16)
    rows, columns = np.mgrid[-1:1:28j, -1:1:28j]
    kind, fine = labels[:, None, None] // 2, labels[:, None, None] % 2
    width = np.choose(kind, [0.75, 0.35, 0.55, 0.85, 0.45]) * draw.normal(1, 0.08, (images, 1, 1))
    taper = np.choose(kind, [0.0, 0.0, 0.5, -0.3, -0.4])
    height = np.choose(kind, [0.7, 0.9, 0.8, 0.4, 0.85])
    inside = (abs(columns) < width * (1 + taper * rows)) & (abs(rows) < height)
    stripes = 2.2 + 1.3 * fine + draw.normal(0, 0.45, (images, 1, 1))
    phase = draw.uniform(0, 2 * np.pi, (images, 1, 1))
    texture = 150 + 60 * np.sin(stripes * np.pi * rows + phase)
    pixels = ndimage.gaussian_filter(inside * texture, (0, 0.6, 0.6))
    pixels = pixels + draw.normal(0, 12, pixels.shape)
    return Split(np.clip(pixels, 0, 255).astype(np.uint8)[..., None], labels)


def margin(coverage: float, validation: int, images: int) -> tuple[float, float]:
    """Return the bounds of the coverage that chance leaves without a shift."""
    rank = ceil((validation + 1) * Fraction(str(coverage)))
    chance = stats.betabinom(images, rank, validation + 1 - rank)
    return tuple(each / images for each in chance.interval(_CHANCE))


def train(
    model: str, name: str, folder: Path, training: dict[str, object], draw: np.random.Generator
) -> Store:
    """Return a store with a champion that was trained on MNIST, or on garments."""
    dataset = {"name": "mnist"}
    if name == "garments":
        parts = {"train": garments(30_000, draw), "test": garments(10_000, draw)}
        path = folder / "garments.npz"
        np.savez(
            path,
            x_train=parts["train"].images,
            y_train=parts["train"].labels,
            x_test=parts["test"].images,
            y_test=parts["test"].labels,
        )
        dataset = {"name": str(path)}
    store = Store(folder / f"store-{name}")
    config = {
        "dataset": dataset,
        "model": {"name": model},
        "training": {"validation_fraction": 0.1} | training,
    }
    retrain(RunConfig.model_validate(config), store.root)
    return store


def measure(store: Store, path: Path, labels: np.ndarray, coverage: float) -> dict[str, float]:
    """Score the images of a file, and return what the prediction sets did."""
    config = ScoreConfig(
        input=str(path), coverage=coverage, energy=True, calibrated=True, max_brightness_ratio=1e6
    )
    job = score(config, store.root)
    table = store.read_table("scores", job.score_id)
    sets = np.stack([table[f"in_set_{label}"].to_numpy() for label in range(10)], axis=1)
    size = table["set_size"].to_numpy()
    (energy,) = (
        each.value
        for each in job.drift.measures
        if each.measure == "energy" and each.statistic == "ks"
    )
    return {
        "accuracy": float((table["predicted"].to_numpy() == labels).mean()),
        "covered": float(sets[np.arange(len(labels)), labels].mean()),
        "size": float(size.mean()),
        "empty": float((size == 0).mean()),
        "several": float((size > 1).mean()),
        "energy": energy,
    }


def main() -> None:
    """Print a row for each dataset, shift and coverage."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="lab")
    parser.add_argument("--datasets", default="mnist,garments")
    parser.add_argument("--coverages", default="0.9,0.95,0.99")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, help="its own default if not given")
    parser.add_argument("--shifts", default=",".join(SHIFTS))
    parser.add_argument("--best-epoch", action="store_true", help="keep that of the best val_loss")
    options = parser.parse_args()
    training = {} if options.epochs is None else {"epochs": options.epochs}
    training |= {"restore_best_weights": "val_loss"} if options.best_epoch else {}
    print(
        "| dataset | shift | stated | coverage | chance | mean size | empty | several | accuracy "
        "| energy, ks |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    draw = np.random.default_rng(0)
    for name in options.datasets.split(","):
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            store = train(options.model, name, folder, training, draw)
            (run_id,) = store.run_ids()
            data = store.manifest(run_id).steps.load_data
            test = read_dataset(store.local_dataset(data.name, data.digest)).test
            validation = pq.read_metadata(store.root / "runs" / run_id / CONFORMAL).num_rows
            for shift in options.shifts.split(","):
                images, labels = SHIFTS[shift](
                    test.images[: options.images], test.labels[: options.images], draw
                )
                path = folder / f"{shift}.parquet"
                pq.write_table(split_table(Split(images, labels)), path)
                for coverage in map(float, options.coverages.split(",")):
                    found = measure(store, path, labels, coverage)
                    low, high = margin(coverage, validation, len(labels))
                    chance = f"{low:.1%} to {high:.1%}" if shift == "none" else ""
                    print(
                        f"| {name} | {shift} | {coverage:g} | {found['covered']:.2%} | {chance} "
                        f"| {found['size']:.2f} | {found['empty']:.1%} | {found['several']:.1%} "
                        f"| {found['accuracy']:.2%} | {found['energy']:.2f} |",
                        flush=True,
                    )
            print(f"<!-- {name}: {validation:,} validation images -->", flush=True)


if __name__ == "__main__":
    main()
