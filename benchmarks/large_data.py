"""Train on a set of pixels that memory does not hold, and compare the mapped path with memory.

The first argument says what to measure; every run is a process of its own:

    python benchmarks/large_data.py large --images 650000 --side 64 --memory 2000 --folder DIR
    python benchmarks/large_data.py ingest --images 1000000 --side 28 --folder DIR
    python benchmarks/large_data.py ingest --form npz-floats --images 500000 --side 28 --folder DIR
    python benchmarks/large_data.py equal --models lab fast accurate --epochs 2 --folder DIR
    python benchmarks/large_data.py kill --kills 20 --folder DIR
    python benchmarks/large_data.py forms --images 400000 --side 28 --rounds 5 --folder DIR

`large` writes random pixels as Parquet and runs the pipeline on them; `ingest` writes PNGs, or
arrays in the form of `--form`, and only ingests them, with the test images held out. The peak is
`RssAnon` in /proc/PID/status, sampled every 20 ms: memory that the kernel cannot drop. Pages of
mapped files are not counted: the kernel takes them back when memory is short. `--memory` is
$NNBUILD_MEMORY, in MB: what nnbuild believes to be available. `--limit` is what the kernel allows:
the private memory of the run in MB (RLIMIT_DATA, set by `prlimit` of util-linux). An allocation
above it fails.

`equal` trains on MNIST by both paths and compares the bytes of the models and tables. `kill` ends a
mapped run with SIGKILL at moments that are spread over its length, resumes it, and compares.
`forms` compares two forms of the mapped file.
"""

import argparse
import gzip
import json
import os
import resource
import shutil
import signal
import statistics
import struct
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

MB = 1_000_000
_RUN = """
import json, sys, time
import nnbuild
config = nnbuild.RunConfig.model_validate(json.loads(sys.argv[1]))
committed = nnbuild.retrain(config, sys.argv[2], resume=sys.argv[3] or None)
print(json.dumps({"run_id": committed.run_id, "status": committed.status}))
"""


_INGEST = """
import sys
from pathlib import Path
from nnbuild.data import dataset_writer, sources
from nnbuild.data.options import ReadOptions
from nnbuild.data.pixels import Workspace
folder = Path(sys.argv[2])
options = ReadOptions(workspace=Workspace(folder / "pixels"))
dataset = sources.load(sys.argv[1], data_dir=None, cache=folder, options=options)
dataset_writer.write_dataset(dataset, folder / "dataset")
"""


def write_pictures(path: Path, images: int, side: int, batch: int = 4096) -> None:
    """Write grayscale PNGs as Parquet; they repeat after a batch, which saves encoding them."""
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image

    draw = np.random.default_rng(0)
    payloads = []
    for row in range(batch):
        file = io.BytesIO()
        noise = draw.integers(0, 16, (side, side), np.uint8) + np.uint8(row % 10 * 20)
        Image.fromarray(noise).save(file, "PNG")
        payloads.append(file.getvalue())
    labels = [row % 10 for row in range(batch)]
    table = pa.table({"image": pa.array(payloads, pa.binary()), "label": labels})
    path.mkdir(parents=True)
    with pq.ParquetWriter(
        path / "train.parquet", table.schema, use_dictionary=False, compression="none"
    ) as writer:
        for start in range(0, images, batch):
            writer.write_table(table.slice(0, images - start))


def write_arrays(path: Path, form: str, images: int, side: int) -> None:
    """Write noise of ten classes as one array of images and one of labels, a batch at a time."""
    path.mkdir(parents=True)
    labels = (np.arange(images) % 10).astype(np.uint8)
    if form == "idx":
        write_idx(path, labels, side)
    elif form == "parquet-floats":
        write_floats(path / "train.parquet", labels, side)
    else:
        write_npz(path / "set.npz", labels, side, "<f4" if form == "npz-floats" else "|u1")


def write_npz(path: Path, labels: Any, side: int, kind: str) -> None:
    """Write images of a type and their labels as a compressed .npz."""
    about = {"descr": kind, "fortran_order": False, "shape": (len(labels), side, side)}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        with file.open("x_train.npy", "w", force_zip64=True) as member:
            np.lib.format.write_array_header_1_0(member, about)
            for pixels in noise(len(labels), side):
                member.write((pixels if kind == "|u1" else as_floats(pixels)).tobytes())
        with file.open("y_train.npy", "w") as member:
            np.lib.format.write_array(member, labels)


def write_idx(path: Path, labels: Any, side: int) -> None:
    """Write gzipped IDX files of training images, and ten images to test on."""
    for name, count in (("train", len(labels)), ("t10k", 10)):
        with gzip.open(path / f"{name}-images-idx3-ubyte.gz", "wb", 1) as file:
            file.write(struct.pack(">HBB3I", 0, 8, 3, count, side, side))
            for pixels in noise(count, side):
                file.write(pixels.tobytes())
        content = struct.pack(">HBBI", 0, 8, 1, count) + labels[:count].tobytes()
        (path / f"{name}-labels-idx1-ubyte").write_bytes(content)


def write_floats(path: Path, labels: Any, side: int) -> None:
    """Write lists of floats as Parquet, in row groups of a million rows as pandas does."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    batches = [
        pa.FixedSizeListArray.from_arrays(pa.array(as_floats(pixels).reshape(-1)), side * side)
        for pixels in noise(len(labels), side)
    ]
    table = pa.table({"image": pa.chunked_array(batches), "label": labels})
    pq.write_table(table, path, compression="zstd", use_dictionary=False, row_group_size=1 << 20)


def noise(images: int, side: int, batch: int = 4096) -> Iterator[Any]:
    """Yield batches of random images of 16 levels, brighter by class."""
    draw = np.random.default_rng(0)
    for start in range(0, images, batch):
        rows = np.arange(start, min(start + batch, images))
        pixels = draw.integers(0, 16, (len(rows), side, side), np.uint8)
        yield pixels + (rows % 10 * 20).astype(np.uint8)[:, None, None]


def as_floats(pixels: Any) -> Any:
    """Return pixels as floats from 0 to 1."""
    return (pixels / 255).astype(np.float32)


def write_set(path: Path, images: int, side: int, channels: int, batch: int = 4096) -> None:
    """Write random images of ten classes as Parquet, a row group at a time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    draw = np.random.default_rng(0)
    size = side * side * channels
    shape = {"height": side, "width": side, "channels": channels}
    schema = pa.schema(
        [("image", pa.binary(size)), ("label", pa.int16())],
        {name: str(value) for name, value in shape.items()},
    )
    path.mkdir(parents=True)
    counts = {"train": images, "test": max(1000, images // 50)}
    for name, count in counts.items():
        with pq.ParquetWriter(path / f"{name}.parquet", schema, compression="zstd") as writer:
            for start in range(0, count, batch):
                rows = min(batch, count - start)
                labels = draw.integers(0, 10, rows, np.int16)
                # Brighter by class, so that there is something to learn, and 16 levels of noise.
                noise = draw.integers(0, 16, (rows, size), np.uint8)
                pixels = noise + (labels * 20).astype(np.uint8)[:, None]
                image = pa.FixedSizeBinaryArray.from_buffers(
                    pa.binary(size), rows, [None, pa.py_buffer(np.ascontiguousarray(pixels))]
                )
                label = pa.Array.from_buffers(pa.int16(), rows, [None, pa.py_buffer(labels)])
                writer.write_table(pa.Table.from_arrays([image, label], schema=schema))


def limited(megabytes: int | None) -> list[str]:
    """Return the beginning of a command whose private memory the kernel limits.

    The limit counts memory that is reserved and never used, such as a gigabyte for Arrow's own
    allocator, 8 MB for the stack of each thread, and 64 MB for each arena of the C library. Without
    the threshold, that library keeps large buffers in its arenas, which they fragment.
    """
    if megabytes is None:
        return []
    settings = [
        "ARROW_DEFAULT_MEMORY_POOL=system",
        "MALLOC_ARENA_MAX=2",
        "MALLOC_MMAP_THRESHOLD_=1000000",
    ]
    return ["env", *settings, "prlimit", f"--data={megabytes * MB}", f"--stack={1 << 20}", "--"]


def memory_of(arguments: argparse.Namespace) -> str:
    """Describe the memory of a measurement."""
    limit = "" if arguments.limit is None else f", limit {arguments.limit} MB"
    return f"memory {arguments.memory} MB{limit}"


def start(
    config: dict[str, Any],
    store: Path,
    memory: int | None,
    resume: str = "",
    limit: int | None = None,
) -> subprocess.Popen[str]:
    """Start a run in a process of its own."""
    environment = dict(os.environ)
    environment.pop("NNBUILD_MEMORY", None)
    if memory is not None:
        environment["NNBUILD_MEMORY"] = str(memory * MB)
    arguments = [sys.executable, "-c", _RUN, json.dumps(config), str(store), resume]
    return subprocess.Popen(
        [*limited(limit), *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL if limit is None else None,
        text=True,
    )


def watch(process: subprocess.Popen[str]) -> dict[str, float]:
    """Wait for a run, and return its peaks in MB, its seconds and its processor seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began, peaks = time.perf_counter(), {"RssAnon": 0, "VmRSS": 0, "VmData": 0}
    while process.poll() is None:
        for name, value in _status(process.pid).items():
            peaks[name] = max(peaks[name], value)
        time.sleep(0.02)
    seconds = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {name: value * 1024 / MB for name, value in peaks.items()} | {
        "seconds": seconds,
        "processor": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        "exit": process.returncode,
    }


def _status(pid: int) -> dict[str, int]:
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return {}
    fields = (line.split() for line in lines)
    known = {"RssAnon:", "VmRSS:", "VmData:"}
    return {each[0][:-1]: int(each[1]) for each in fields if each[0] in known}


def manifest_of(store: Path) -> dict[str, Any]:
    """Return the manifest of the only run of a store."""
    (path,) = (store / "runs").glob("*/manifest.json")
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return value


def digests(store: Path) -> dict[str, str]:
    """Return the digests of what a run learnt and predicted."""
    files = manifest_of(store)["files"]
    ends = ("model.keras", "model.onnx")
    tables = ("evaluation", "calibration", "predictions")
    return {
        name.replace(manifest_of(store)["run_id"], ""): entry["sha256"]
        for name, entry in files.items()
        if name.endswith(ends) or any(f"tables/{each}/" in name for each in tables)
    }


def measure_set(arguments: argparse.Namespace, network: dict[str, Any]) -> None:
    """Write a set, run the pipeline on it, and print the peaks and the times of the steps."""
    source, store = arguments.folder / "source", arguments.folder / "store"
    if not source.exists():
        write_set(source, arguments.images, arguments.side, arguments.channels)
    size = arguments.images * arguments.side**2 * arguments.channels
    config = {"dataset": {"name": str(source)}, "gate": {"enabled": False}, **network}
    peaks = watch(start(config, store, arguments.memory, limit=arguments.limit))
    print(f"{arguments.images:,} images of {size / MB:,.0f} MB, {memory_of(arguments)}")
    print({name: round(value, 1) for name, value in peaks.items()})
    steps = manifest_of(store)["seconds"]
    print({name: round(value, 1) for name, value in steps.items()})
    rate = arguments.images / steps["load_data"]
    print(f"pixels in {manifest_of(store)['steps']['fit_model']['pixels']}; ingest {rate:,.0f}/s")
    shutil.rmtree(store)


def measure_ingest(arguments: argparse.Namespace) -> None:
    """Write images in a form, ingest them, and print the rate and the peaks."""
    source, target = arguments.folder / arguments.form, arguments.folder / "ingested"
    if not source.exists() and arguments.form == "png":
        write_pictures(source, arguments.images, arguments.side)
    elif not source.exists():
        write_arrays(source, arguments.form, arguments.images, arguments.side)
    target.mkdir()
    environment = os.environ | {"NNBUILD_MEMORY": str(arguments.memory * MB)}
    command = [*limited(arguments.limit), sys.executable, "-c", _INGEST, str(source), str(target)]
    peaks = watch(subprocess.Popen(command, env=environment, text=True))
    rates = [arguments.images / peaks[name] for name in ("seconds", "processor")]
    print(f"{arguments.images:,} pictures, {arguments.form}, {memory_of(arguments)}:", end=" ")
    print(f"{rates[0]:,.0f} pictures/s, {rates[1]:,.0f} per processor second")
    print({name: round(value, 1) for name, value in peaks.items()})
    shutil.rmtree(target)


def write_some_of_mnist(folder: Path, images: int) -> Path:
    """Write the first training images of MNIST, and a sixth as many test images, as one .npz."""
    from nnbuild.data import sources
    from nnbuild.runtime.environment import cache_folder

    data_dir = os.environ.get("NNBUILD_DATA_DIR")
    dataset = sources.load(
        "mnist",
        data_dir=None if data_dir is None else Path(data_dir),
        cache=cache_folder(),
    )
    counts = {"train": images, "test": images // 6}
    arrays = {
        f"{kind}_{split}": values[: counts[split]]
        for split, examples in dataset.splits.items()
        for kind, values in (("x", examples.images), ("y", examples.labels))
    }
    np.savez(folder / "some_of_mnist.npz", **arrays)
    return folder / "some_of_mnist.npz"


def compare_paths(arguments: argparse.Namespace) -> None:
    """Train on MNIST by both paths in turn, and compare their bytes and the seconds of the fit."""
    name = "mnist"
    if arguments.images is not None:
        name = str(write_some_of_mnist(arguments.folder, arguments.images))
    too_little = (arguments.images or 60_000) * 28 * 28 // MB  # the pixels may take an eighth of it
    for model in arguments.models:
        config = network_of(model, arguments.epochs, name)
        seconds: dict[str, list[float]] = {"memory": [], "mapped file": []}
        seen: dict[str, dict[str, str]] = {}
        for _ in range(arguments.rounds):
            for path, memory in (("memory", None), ("mapped file", too_little)):
                store = arguments.folder / "equal"
                watch(start(config, store, memory))
                fit = manifest_of(store)["steps"]["fit_model"]
                if fit["pixels"] != path:
                    raise SystemExit(f"the pixels were in {fit['pixels']}, expected {path}")
                seconds[path].append(fit["seconds"])
                seen[path] = digests(store)
                shutil.rmtree(store)
        medians = {path: statistics.median(each) for path, each in seconds.items()}
        same = "same bytes" if seen["memory"] == seen["mapped file"] else "OTHER BYTES"
        speed = medians["memory"] / medians["mapped file"]
        shown = ", ".join(f"{path} {each:.2f} s" for path, each in medians.items())
        print(f"{model}: {same} of {len(seen['memory'])} files; {shown}; speed {speed:.2f}")


def network_of(model: str, epochs: int, dataset: str = "mnist") -> dict[str, Any]:
    """Return the config of a run, on MNIST by default."""
    return {
        "dataset": {"name": dataset},
        "model": {"name": model},
        "training": {"epochs": epochs, "threads": 2},
        "gate": {"enabled": False},
    }


def kill_and_resume(arguments: argparse.Namespace) -> None:
    """Kill one mapped run again and again, each time later, and compare it with another one."""
    config = network_of("lab", arguments.epochs)
    whole, store = arguments.folder / "whole", arguments.folder / "killed"
    length = watch(start(config, whole, 100))["seconds"]
    run_id, kills = "", 0
    while kills < arguments.kills:
        process = start(config, store, 100, run_id)
        try:
            process.wait(length * (0.3 + 0.7 * kills / arguments.kills))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
        else:
            print(f"the run ended before kill {kills + 1}; the next one begins again")
            check(whole, store)
            shutil.rmtree(store)
        staged = sorted((store / "staging").glob("[0-9]*")) if store.exists() else []
        run_id = staged[-1].name if staged else ""
    watch(start(config, store, 100, run_id))
    check(whole, store)
    print(f"{kills} kills; staging: {[each.name for each in (store / 'staging').iterdir()]}")


def compare_forms(arguments: argparse.Namespace) -> None:
    """Compare a raw file with Arrow IPC: writing it in batches, and random rows of it."""
    size, batch = arguments.side**2 * arguments.channels, 4096
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (batch, size), np.uint8)
    times = arguments.images // batch
    blocks = [np.sort(draw.integers(0, times * batch, 8192)) for _ in range(20)]
    for form in (RawFile, ArrowFile):
        file = form(arguments.folder / form.__name__, size)
        written = fastest(lambda file=file: file.write(images, times), arguments.rounds)
        read = fastest(lambda file=file: file.read(blocks), arguments.rounds)
        rates = times * batch * size / written / MB, 20 * 8192 * size / read / MB
        print(f"{form.__name__}: written {rates[0]:,.0f} MB/s, random rows {rates[1]:,.0f} MB/s")
        file.path.unlink()


def fastest(function: Callable[[], None], rounds: int) -> float:
    """Return the shortest seconds of some calls."""
    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


class RawFile:
    """Pixels and nothing else."""

    def __init__(self, path: Path, size: int) -> None:
        self.path, self._size = path, size

    def write(self, images: Any, times: int) -> None:
        """Write some images several times."""
        with self.path.open("wb") as file:
            for _ in range(times):
                file.write(images.data)

    def read(self, blocks: list[Any]) -> None:
        """Read rows by their numbers, a block at a time."""
        pixels = np.memmap(self.path, np.uint8, "r").reshape(-1, self._size)
        for rows in blocks:
            np.take(pixels, rows, axis=0)


class ArrowFile(RawFile):
    """A record batch for each batch of images."""

    def write(self, images: Any, times: int) -> None:
        """Write some images several times."""
        import pyarrow as pa

        kind = pa.binary(self._size)
        image = pa.FixedSizeBinaryArray.from_buffers(
            kind, len(images), [None, pa.py_buffer(images)]
        )
        batch = pa.record_batch([image], ["image"])
        with (
            pa.OSFile(str(self.path), "wb") as file,
            pa.ipc.new_file(file, batch.schema) as writer,
        ):
            for _ in range(times):
                writer.write_batch(batch)

    def read(self, blocks: list[Any]) -> None:
        """Read rows by their numbers, a block at a time."""
        import pyarrow as pa

        with pa.memory_map(str(self.path)) as file:
            table = pa.ipc.open_file(file).read_all()
            for rows in blocks:
                table.take(pa.Array.from_buffers(pa.int64(), len(rows), [None, pa.py_buffer(rows)]))


def check(whole: Path, store: Path) -> None:
    """Print whether two runs have the same bytes."""
    print("same bytes" if digests(whole) == digests(store) else "OTHER BYTES")


def main() -> None:
    """Run one of the measurements."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("what", choices=("large", "ingest", "equal", "kill", "forms"))
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--images", type=int, help="default: 20,000; all of MNIST for `equal`")
    parser.add_argument("--side", type=int, default=32)
    parser.add_argument("--channels", type=int, default=3)
    parser.add_argument("--memory", type=int, default=200)
    parser.add_argument("--limit", type=int)
    parser.add_argument(
        "--form", choices=("png", "npz", "npz-floats", "idx", "parquet-floats"), default="png"
    )
    parser.add_argument("--models", nargs="+", default=["lab"])
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--kills", type=int, default=3)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    if arguments.images is None and arguments.what != "equal":
        arguments.images = 20_000
    if arguments.what == "equal":
        compare_paths(arguments)
    elif arguments.what == "kill":
        kill_and_resume(arguments)
    elif arguments.what == "ingest":
        measure_ingest(arguments)
    elif arguments.what == "forms":
        compare_forms(arguments)
    else:
        training = {"epochs": 1, "threads": 2, "batch_size": 256}
        measure_set(arguments, {"model": {"name": "lab"}, "training": training})


if __name__ == "__main__":
    main()
