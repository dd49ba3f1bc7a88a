"""Fuzz the parsers of IDX files, manifests and pictures.

They may raise nothing but nnbuild's own errors.

    pip install atheris
    python benchmarks/fuzz.py {idx,manifest,picture} [--seconds 60] [--seed 1]

The fuzzer is guided by coverage. The last lines of its output are libFuzzer's statistics: the
number of inputs, and of those that reached new code. The exit code is 0 if no input caused another
error.
"""

import argparse
import contextlib
import gzip
import io
import json
import os
import resource
import struct
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import atheris
from PIL import Image

with atheris.instrument_imports(include=["nnbuild.data", "nnbuild.store", "gzip", "json", "PIL"]):
    from nnbuild.data import idx, preprocessing
    from nnbuild.errors import NnbuildError
    from nnbuild.store.manifests import read_manifest, runs_table


# The peak that the kernel reports includes the parent process's, and pytest's can be large.
_INHERITED_MB = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def read_idx(path: Path) -> None:
    """Read an IDX file, and check that the array is no larger than the file can encode."""
    array = idx.read(path)
    size = path.stat().st_size
    if array.nbytes > 1032 * size + 64:  # deflate compresses by at most 1032 to 1
        raise RuntimeError(f"the array has {array.nbytes} bytes, but the file only {size}")


def read_run(path: Path) -> None:
    """Read a manifest, and build the row of `runs` from it."""
    runs_table(read_manifest(path))


def read_picture(path: Path) -> None:
    """Decode a picture as it is and as an image of a fixed shape, and check the shape."""
    payload = path.read_bytes()
    with contextlib.suppress(NnbuildError):
        preprocessing.decode(payload, path)
    settings = preprocessing.Preprocessing(image_size=(8, 8), channels=3)
    image = preprocessing.decode(payload, path, settings)
    if image.shape != (8, 8, 3):
        raise RuntimeError(f"the image has the shape {image.shape}")


def picture_seeds() -> list[bytes]:
    """Return pictures of all formats, with a palette, transparency, 16 bits and EXIF."""
    gray, exif = Image.linear_gradient("L").resize((9, 7)), Image.Exif()
    exif[0x0112] = 6
    pictures: list[tuple[Image.Image, str, dict[str, object]]] = [
        (gray, "PNG", {}),
        (gray.convert("RGB"), "PNG", {"exif": exif}),
        (gray.convert("P"), "PNG", {"transparency": 3}),
        (gray.convert("I;16"), "PNG", {}),
        (gray.convert("RGB"), "JPEG", {"exif": exif}),
        (gray.convert("CMYK"), "JPEG", {}),
        (gray, "BMP", {}),
        (gray, "PPM", {}),
        (gray.convert("RGBA"), "WEBP", {}),
        (gray, "GIF", {}),
    ]
    contents = []
    for picture, kind, options in pictures:
        content = io.BytesIO()
        picture.save(content, kind, **options)
        contents.append(content.getvalue())
    return contents


def idx_seeds() -> list[bytes]:
    """Return an IDX file of images, one of floats, and the first one compressed with gzip."""
    images = struct.pack(">HBBIII", 0, 8, 3, 2, 3, 3) + bytes(18)
    return [images, struct.pack(">HBBI", 0, 0x0D, 1, 2) + bytes(8), gzip.compress(images)]


def manifest_seeds() -> list[bytes]:
    """Return the manifests of two failed runs: one that diverged, and one without data."""
    times = dict.fromkeys(("started_at", "finished_at"), "2026-11-01T03:00:00+00:00")
    texts = dict.fromkeys(
        ("dataset", "dataset_digest", "model", "flow_run_id", "code_version", "config"), "text"
    )
    row = {
        "status": "failed",
        "error": "diverged",
        **times,
        **texts,
        "seed": 1,
        "epochs": 1,
        "promoted": False,
        "test_accuracy": None,
        "test_loss": 0.5,
    }
    config = {
        "seed": 1,
        "dataset": {"name": "digits", "fallback": None},
        "training": {"validation_fraction": 0.2},
    }
    diverged = {
        "run_id": "20261101T030000000Z-abcdef",
        "row": row,
        "config": config,
        "config_digest": "text",
        "steps": {},
        "seconds": {"fit_model": 1.5},
        "files": {"runs/x": {"sha256": "0" * 64, "bytes": 1}},
        "code_version": "text",
        "packages": {"keras": "3", "prefect": None},
        "machine": {"system": "text", "python": "3", "processors": 2},
        "flow_run_id": None,
    }
    without_data = {**diverged, "row": {**row, "dataset": None, "dataset_digest": None}}
    return [json.dumps(each).encode() for each in (diverged, without_data)]


TARGETS: dict[str, tuple[Callable[[Path], None], Callable[[], list[bytes]]]] = {
    "idx": (read_idx, idx_seeds),
    "manifest": (read_run, manifest_seeds),
    "picture": (read_picture, picture_seeds),
}


def main() -> None:
    """Fuzz until the time is up; libFuzzer ends the process."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parser", choices=TARGETS, help="parser to fuzz")
    parser.add_argument("--seconds", type=int, default=60, help="duration")
    parser.add_argument("--seed", type=int, default=1, help="seed of the fuzzer")
    options = parser.parse_args()
    read, seeds = TARGETS[options.parser]
    folder = Path(tempfile.mkdtemp())
    path = folder / "20261101T030000000Z-abcdef" / "input"  # the parser checks the folder's name
    path.parent.mkdir()
    (folder / "corpus").mkdir()
    for number, content in enumerate(seeds()):
        path.write_bytes(content)
        read(path)  # the fuzzer learns nothing from a seed that the parser rejects
        (folder / "corpus" / str(number)).write_bytes(content)

    def try_one(content: bytes) -> None:
        path.write_bytes(content)
        with contextlib.suppress(NnbuildError):
            read(path)

    arguments = [
        f"-max_total_time={options.seconds}",
        f"-seed={options.seed}",
        f"-rss_limit_mb={_INHERITED_MB + 4096}",
        "-max_len=4096",
    ]
    arguments += ["-print_final_stats=1", "-verbosity=1", f"-artifact_prefix={folder}{os.sep}"]
    atheris.Setup([sys.argv[0], *arguments, str(folder / "corpus")], try_one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
