"""Feeds the parsers of IDX files and manifests what a coverage-guided fuzzer makes up: only nnbuild's errors may come out.

    pip install atheris
    python benchmarks/fuzz.py {idx,manifest} [--seconds 60] [--seed 1]

The last lines are libFuzzer's: how many inputs were tried and how many of them reached new code. Exit 0: none did harm.
"""

import argparse
import contextlib
import gzip
import json
import os
import resource
import struct
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["nnbuild.data", "nnbuild.store", "gzip", "json"]):
    from nnbuild.data import idx
    from nnbuild.errors import NnbuildError
    from nnbuild.store.manifests import read_manifest, runs_table


# The kernel counts the memory of the process that started this one, which pytest's can be large.
_INHERITED_MB = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def read_idx(path: Path) -> None:
    """An array no larger than the file can hold."""
    array = idx.read(path)
    if array.nbytes > 1032 * path.stat().st_size + 64:  # deflate's best is 1032 to 1
        raise RuntimeError(f"{array.nbytes} bytes out of {path.stat().st_size}")


def read_run(path: Path) -> None:
    """A manifest, and the row that it stands for."""
    runs_table(read_manifest(path))


def idx_seeds() -> list[bytes]:
    """An IDX file of images, one of floats, and the first one gzipped."""
    images = struct.pack(">HBBIII", 0, 8, 3, 2, 3, 3) + bytes(18)
    return [images, struct.pack(">HBBI", 0, 0x0D, 1, 2) + bytes(8), gzip.compress(images)]


def manifest_seeds() -> list[bytes]:
    """Return manifests of two failed runs: one that diverged, and one that never had data."""
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
    without = {**diverged, "row": {**row, "dataset": None, "dataset_digest": None}}
    return [json.dumps(each).encode() for each in (diverged, without)]


TARGETS: dict[str, tuple[Callable[[Path], None], Callable[[], list[bytes]]]] = {
    "idx": (read_idx, idx_seeds),
    "manifest": (read_run, manifest_seeds),
}


def main() -> None:
    """Fuzz until the time is over; libFuzzer ends the process."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parser", choices=TARGETS)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    read, seeds = TARGETS[given.parser]
    folder = Path(tempfile.mkdtemp())
    path = folder / "20261101T030000000Z-abcdef" / "input"  # the folder's name is checked as well
    path.parent.mkdir()
    (folder / "corpus").mkdir()
    for number, content in enumerate(seeds()):
        path.write_bytes(content)
        read(path)  # a seed that is refused would teach the fuzzer nothing
        (folder / "corpus" / str(number)).write_bytes(content)

    def try_one(content: bytes) -> None:
        path.write_bytes(content)
        with contextlib.suppress(NnbuildError):
            read(path)

    options = [
        f"-max_total_time={given.seconds}",
        f"-seed={given.seed}",
        f"-rss_limit_mb={_INHERITED_MB + 4096}",
        "-max_len=4096",
    ]
    options += ["-print_final_stats=1", "-verbosity=1", f"-artifact_prefix={folder}{os.sep}"]
    atheris.Setup([sys.argv[0], *options, str(folder / "corpus")], try_one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
