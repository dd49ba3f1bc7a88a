"""Train on photos of many sizes and formats, and compare the logits of a file on all paths.

    python benchmarks/photos.py [--photos 1000] [--sizes 300] [--side 32] [--alone 20]

The photos are of five formats, and some are turned by EXIF. A run trains on them, with one setting
for the size and one for the channels, and evaluates its test photos. These are then scored as a
folder, as bytes in a Parquet file, and some of them alone. The program prints pictures per second,
and the largest difference of a logit, and of an evaluated probability; it ends with status 1 if
any picture has other pixels or another class on another path.
"""

import argparse
import math
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

import nnbuild

CLASSES = ("rings", "stripes")
FORMATS = ("png", "jpg", "webp", "bmp", "gif")
_ORIENTATION = 0x0112
_STORED = {  # how to store a picture so that the orientation turns it upright
    3: Image.Transpose.ROTATE_180,
    6: Image.Transpose.ROTATE_90,
    8: Image.Transpose.ROTATE_270,
}


def photo(size: tuple[int, int], label: int, random: np.random.Generator) -> Image.Image:
    """Return a noisy picture of rings or of stripes, in colour."""
    height, width = size
    rows, columns = np.mgrid[0:height, 0:width]
    distance = np.hypot(rows - height / 2, columns - width / 2) if label == 0 else columns
    wave = 128 + 100 * np.sin(distance / min(size) * 8 * math.pi)
    noise = random.integers(-25, 26, (height, width, 3))
    tint = random.uniform(0.6, 1, 3)
    return Image.fromarray(np.clip(wave[..., None] * tint + noise, 0, 255).astype(np.uint8))


def sizes_of(count: int, random: np.random.Generator) -> list[tuple[int, int]]:
    """Return a number of different heights and widths, 24 to 400 pixels."""
    sizes: dict[tuple[int, int], None] = {}
    while len(sizes) < count:
        height, width = random.integers(24, 401, 2)
        sizes[int(height), int(width)] = None
    return list(sizes)


def write_photos(folder: Path, count: int, sizes: int, seed: int = 0) -> None:
    """Write photos to folders by split and class; a fifth of them are for testing."""
    random = np.random.default_rng(seed)
    known = sizes_of(sizes, random)
    for number in range(count):
        label, suffix = number % 2, FORMATS[number % len(FORMATS)]
        split = "test" if number // 10 % 5 == 0 else "train"
        target = folder / split / CLASSES[label] / f"{number:05}.{suffix}"
        target.parent.mkdir(parents=True, exist_ok=True)
        picture, options = photo(known[number % sizes], label, random), {}
        orientation = (1, 3, 6, 8)[number // 7 % 4]
        if orientation in _STORED and suffix in {"png", "jpg", "webp"}:
            picture = picture.transpose(_STORED[orientation])
            exif = Image.Exif()
            exif[_ORIENTATION] = orientation
            options["exif"] = exif
        if number % 13 == 0 and suffix == "png":
            picture.putalpha(Image.linear_gradient("L").resize(picture.size))
        picture.save(target, **options)


def write_bytes(folder: Path, path: Path) -> None:
    """Write the files of a folder as bytes in a Parquet file, in the order of scoring."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    images = pa.array([file.read_bytes() for file in files], pa.binary())
    names = pa.array([file.relative_to(folder).as_posix() for file in files])
    pq.write_table(pa.table({"image": images, "path": names}), path, row_group_size=100)


def scored(store: nnbuild.Store, source: Path, run_id: str) -> dict[str, dict[str, Any]]:
    """Score an input, and return its rows by the path of the picture."""
    keep = ("path",) if source.suffix == ".parquet" else ()
    config = nnbuild.ScoreConfig(
        input=str(source), model=run_id, logits=True, keep=keep, calibrated=False
    )
    done = nnbuild.score(config, store.root)
    rows = store.read_table("scores", done.score_id).to_pylist()
    return {row["path"]: row for row in rows}


def values(row: dict[str, Any], kind: str) -> np.ndarray:
    """Return the logits or the probabilities of a row."""
    return np.array([row[f"{kind}_{label}"] for label in range(len(CLASSES))])


def differences(
    expected: dict[str, dict[str, Any]], found: dict[str, dict[str, Any]], kind: str
) -> float:
    """Return the largest difference of the rows with the same path.

    Raises:
        SystemExit: A picture is missing, or has another class.
    """
    if missing := found.keys() - expected.keys():
        sys.exit(f"{min(missing)} was scored on one path only")
    if other := [name for name in found if found[name]["predicted"] != expected[name]["predicted"]]:
        sys.exit(f"{other[0]} has another class on another path")
    return max(
        float(np.abs(values(expected[name], kind) - values(found[name], kind)).max())
        for name in found
    )


def compare(
    store: nnbuild.Store, run_id: str, test: Path, parquet: Path, alone: int
) -> Iterator[tuple[str, float, float]]:
    """Yield each path with its largest difference from the folder, and its pictures per second."""
    start = time.perf_counter()
    folder = scored(store, test, run_id)
    yield "folder", 0.0, len(folder) / (time.perf_counter() - start)
    start = time.perf_counter()
    found = scored(store, parquet, run_id)
    rate = len(found) / (time.perf_counter() - start)
    yield "bytes in Parquet", differences(folder, found, "logit"), rate
    single: dict[str, dict[str, Any]] = {}
    start = time.perf_counter()
    for name in list(folder)[:: max(1, len(folder) // alone)]:
        ((_, row),) = scored(store, test / name, run_id).items()
        single[name] = row
    rate = len(single) / (time.perf_counter() - start)
    yield "each alone", differences(folder, single, "logit"), rate
    evaluated = store.read_table("predictions", run_id).to_pylist()
    # A dataset has the classes one after another, each in the order of the paths, like the folder.
    by_path = dict(zip(folder, evaluated, strict=True))
    yield "evaluation", differences(folder, by_path, "prob"), math.nan


def main() -> None:
    """Make the photos, train on them, and print the comparison."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photos", type=int, default=1000, help="number of photos")
    parser.add_argument("--sizes", type=int, default=300, help="number of different sizes")
    parser.add_argument("--side", type=int, default=32, help="height and width of the images")
    parser.add_argument("--alone", type=int, default=20, help="photos to score alone")
    parser.add_argument("--folder", type=Path, help="folder to keep the photos and the store in")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        photos = folder / "photos"
        write_photos(photos, options.photos, options.sizes)
        write_bytes(photos / "test", folder / "test.parquet")
        config = nnbuild.RunConfig.model_validate(
            {
                "dataset": {
                    "name": str(photos),
                    "image_size": [options.side, options.side],
                    "channels": 3,
                },
                "model": {"name": "lab"},
                "training": {"epochs": 3},
            }
        )
        start = time.perf_counter()
        run = nnbuild.retrain(config, folder / "store")
        print(f"trained on {options.photos} photos in {time.perf_counter() - start:.1f} s")
        store = nnbuild.Store(folder / "store")
        paths = compare(store, run.run_id, photos / "test", folder / "test.parquet", options.alone)
        for name, difference, rate in paths:
            print(f"{name:17} largest difference {difference:.3g}  {rate:8.1f} pictures/s")


if __name__ == "__main__":
    main()
