"""Measure how the throughput of scoring grows with the cores.

    PYTHONPATH=. python benchmarks/scoring_scale.py [--cores 1,2,4] [--rows N] [--memory]

It runs on Linux, in the root of a checkout, with numpy, pyarrow, pydantic, pillow, imagecodecs,
onnx and onnxruntime; TensorFlow and Prefect are not needed. It makes the models (seeded weights)
and the pictures itself. The inputs are:

- `raw-lab`: raw bytes in Parquet, scored by the dense network `lab`
- `png-parquet`: bytes of PNG files in Parquet, scored by `lab`
- `png-folder`: folder of PNG files, scored by `lab`
- `jpeg-folder`: folder of JPEG files, 160 x 160 in colour, resized to 64 x 64 for `lab`
- `raw-convnet`: raw bytes in Parquet, scored by the convolutional network `convnet`

For each input and number of cores n, the program measures in turn:

- one job on n cores
- n jobs in parallel, each a process on a core of its own: the most that the machine can do
- ONNX Runtime alone, on images in memory, on n cores

The n jobs score as many rows together as the one job: `--rows` for each core. By default they take
some ten seconds, beside which the half second that other processes need to start is short. With
`--same-input` the one job scores `--rows` on any number of cores. Processes are restricted to their
cores, and the seconds exclude the imports. The rates are medians over the rounds, and a ratio is
the median of the ratios within a round. With `--memory` the program repeats each job and samples
its memory: the sum of the proportional set sizes (PSS) of its processes, in which shared pages
count once.
"""

import argparse
import hashlib
import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from PIL import Image, ImageDraw

import nnbuild
from nnbuild.data.dataset import Split
from nnbuild.data.preprocessing import METADATA_KEY, Preprocessing
from nnbuild.data.split_table import split_table
from nnbuild.engines.onnx import ROWS_PER_CALL, OnnxEngine

CLASSES, POOL, GROUPS, FEW = 10, 512, 16, 64
DIGITS, PHOTOS, RESIZED = (28, 28, 1), (160, 160, 3), (64, 64, 3)
JOB, PROCESSES, ALONE = "job", "processes", "ONNX Runtime alone"
ALONE_SECONDS, SAMPLE_SECONDS = 1.0, 0.1
SHARE_OF_PROCESSES, MOST_MEMORY = 0.85, 1.5
PACKAGES = ("numpy", "pyarrow", "pillow", "imagecodecs", "onnx", "onnxruntime")


class Input(NamedTuple):
    """An input and the model that scores it.

    Attributes:
        rows: Rows of a file or folder of the input.
        copies: Copies of it for each core, unless `--rows` is given; `--scale` multiplies them.
        picture: Height, width and channels of its pictures.
        layout: `raw` or `bytes` in Parquet, or `folder` of files.
        suffix: Format of the pictures; empty for raw bytes.
        network: Network of the model.
        image: Height, width and channels of the images of the model.
        target: Expected ratio of two cores to one.
    """

    rows: int
    copies: int
    picture: tuple[int, int, int]
    layout: str
    suffix: str
    network: str
    image: tuple[int, int, int]
    target: float


INPUTS = {
    "raw-lab": Input(500_000, 8, DIGITS, "raw", "", "lab", DIGITS, 1.6),
    "png-parquet": Input(32_768, 24, DIGITS, "bytes", "png", "lab", DIGITS, 1.8),
    "png-folder": Input(10_000, 24, DIGITS, "folder", "png", "lab", DIGITS, 1.8),
    "jpeg-folder": Input(2_000, 9, PHOTOS, "folder", "jpg", "lab", RESIZED, 1.8),
    "raw-convnet": Input(65_536, 4, DIGITS, "raw", "", "convnet", DIGITS, 1.8),
}


class Network:
    """ONNX graph under construction, with seeded weights."""

    def __init__(self, shape: tuple[int, int, int]) -> None:
        self._random, self._scale = np.random.default_rng(0), 1 / 255
        self._shape, self._nodes, self._weights = shape, [], []
        self._last = "pixels"

    def add(self, operation: str, *constants: NDArray[Any], **attributes: Any) -> None:
        """Append a node that takes the last value and constants."""
        number = len(self._nodes)
        names = [f"constant_{number}_{position}" for position in range(len(constants))]
        self._weights += map(numpy_helper.from_array, constants, names)
        node = helper.make_node(operation, [self._last, *names], [f"value_{number}"], **attributes)
        self._nodes.append(node)
        self._last = node.output[0]

    def kernel(self, shape: tuple[int, ...], inputs: int) -> NDArray[np.float32]:
        """Return random weights; the first ones include the factor of the rescaling layer."""
        weights = self._random.normal(size=shape) * self._scale / np.sqrt(inputs)
        self._scale = 1.0
        return weights.astype(np.float32)

    def add_dense(self, inputs: int, *units: int) -> None:
        """Append dense layers with relu between them, after the values of an image as a row."""
        self.add("Reshape", np.array([-1, inputs], np.int64))
        for position, count in enumerate(units):
            if position:
                self.add("Relu")
            self.add("MatMul", self.kernel((inputs, count), inputs))
            self.add("Add", np.zeros(count, np.float32))
            inputs = count

    def add_convolution(self, inputs: int, filters: int) -> None:
        """Append a convolution of 3 x 3 with relu, and pooling of 2 x 2."""
        kernel = self.kernel((filters, inputs, 3, 3), 9 * inputs)
        self.add("Conv", kernel, np.zeros(filters, np.float32))
        self.add("Relu")
        self.add("MaxPool", kernel_shape=[2, 2], strides=[2, 2], auto_pad="SAME_UPPER")

    def content(self, rows_per_call: int, preprocessing: Preprocessing | None) -> bytes:
        """Return the content of the model file."""
        self._nodes[-1].output[0] = "logits"
        pixels = helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["n", *self._shape])
        logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", CLASSES])
        graph = helper.make_graph(self._nodes, "logits", [pixels], [logits], self._weights)
        opset = helper.make_opsetid("", 17)
        model = helper.make_model(graph, opset_imports=[opset], ir_version=8)
        properties = {ROWS_PER_CALL: str(rows_per_call)}
        if preprocessing is not None:
            properties[METADATA_KEY] = preprocessing.model_dump_json()
        helper.set_model_props(model, properties)
        onnx.checker.check_model(model)
        return model.SerializeToString()


def model_of(source: Input) -> bytes:
    """Return a model with the layers and the images per call of nnbuild's own export."""
    size = int(np.prod(source.image))
    resized = source.picture != source.image
    preprocessing = Preprocessing(image_size=source.image[:2], channels=3) if resized else None
    network = Network(source.image)
    network.add("Cast", to=TensorProto.FLOAT)
    if source.network == "lab":
        network.add_dense(size, 25, 15, CLASSES)
        return network.content(32 if resized else 512, preprocessing)
    network.add("Transpose", perm=[0, 3, 1, 2])
    network.add_convolution(1, 32)
    network.add_convolution(32, 64)
    network.add("Transpose", perm=[0, 2, 3, 1])
    network.add_dense(6 * 6 * 64, CLASSES)
    return network.content(16, preprocessing)


def picture(shape: tuple[int, int, int], random: np.random.Generator) -> Image.Image:
    """Return strokes: white on black like digits, or in colours on a noisy gradient."""
    height, width, channels = shape
    if channels == 1:
        large = Image.new("L", (4 * width, 4 * height))
        pen = ImageDraw.Draw(large)
        points = [tuple(map(int, each)) for each in random.integers(width, 3 * width, (4, 2))]
        pen.line(points, fill=255, width=width // 3, joint="curve")
        return large.resize((width, height), Image.Resampling.BOX)
    ramp = np.linspace(0, 160, width)[None, :, None] * random.uniform(0.3, 1, 3)
    noisy = ramp + random.integers(0, 40, (height, width, 3))
    scene = Image.fromarray(noisy.astype(np.uint8))
    pen = ImageDraw.Draw(scene)
    for _ in range(5):
        left, top, right, bottom = np.sort(random.integers(0, width, (2, 2)), 0).ravel()
        colour = tuple(map(int, random.integers(0, 256, 3)))
        pen.ellipse([int(each) for each in (left, top, right, bottom)], fill=colour)
    return scene


def pictures_of(source: Input, count: int) -> list[Image.Image]:
    """Return different pictures, which an input repeats."""
    random = np.random.default_rng(0)
    return [picture(source.picture, random) for _ in range(count)]


def encoded(image: Image.Image, suffix: str) -> bytes:
    """Return the content of a picture's file."""
    content = io.BytesIO()
    image.save(content, {"png": "PNG", "jpg": "JPEG"}[suffix], quality=90)
    return content.getvalue()


def write_raw(path: Path, pictures: list[Image.Image], rows: int) -> None:
    """Write raw bytes with a little noise to a Parquet file, one row group at a time."""
    random, writer = np.random.default_rng(0), None
    pixels = np.stack([np.asarray(each) for each in pictures])[..., None]
    step = rows_per_group(rows)
    for start in range(0, rows, step):
        numbers = np.arange(start, min(start + step, rows))
        images = pixels[numbers % len(pixels)]
        images ^= random.integers(0, 8, images.shape, np.uint8)
        table = split_table(Split(images, (numbers % CLASSES).astype(np.int64)))
        writer = writer or pq.ParquetWriter(
            path, table.schema, compression="zstd", use_dictionary=False
        )
        writer.write_table(table, row_group_size=step)
    if writer is not None:
        writer.close()


def rows_per_group(rows: int) -> int:
    """Return the rows of a row group: at least `GROUPS` of them in a file, to share among cores."""
    return min(65_536, -(-rows // GROUPS))


def write_bytes(path: Path, payloads: list[bytes], rows: int) -> None:
    """Write the content of files to a Parquet file, in the layout of Hugging Face."""
    images = [{"bytes": payloads[row % len(payloads)], "path": f"{row}"} for row in range(rows)]
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    table = pa.table({"image": pa.array(images, kind)})
    pq.write_table(table, path, use_dictionary=False, row_group_size=rows_per_group(rows))


def write_part(folder: Path, source: Input, pictures: list[Image.Image], rows: int) -> None:
    """Write the rows for one core to a new folder."""
    folder.mkdir(parents=True)
    if source.layout == "raw":
        write_raw(folder / "part.parquet", pictures, rows)
        return
    payloads = [encoded(each, source.suffix) for each in pictures]
    if source.layout == "bytes":
        write_bytes(folder / "part.parquet", payloads, rows)
        return
    for row in range(rows):
        (folder / f"{row:06}.{source.suffix}").write_bytes(payloads[row % len(payloads)])


def link_copies(part: Path, folder: Path, copies: int) -> None:
    """Make a folder with a number of copies of a part, which take no space."""
    for number in range(copies):
        shutil.copytree(part, folder / f"part-{number:02}", copy_function=os.link)


@contextmanager
def pinned(cores: Sequence[int]) -> Iterator[None]:
    """Restrict this process, and those that it starts meanwhile, to some cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def usable_cores() -> list[int]:
    """Return the logical cores of this process, the first one of each physical core first."""

    def position(core: int) -> int:
        path = Path(f"/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list")
        try:
            text = path.read_text()
        except OSError:
            return 0
        bounds = [[int(each) for each in part.split("-")] for part in text.strip().split(",")]
        return sum(core - first for first, *_ in bounds if first < core)

    return sorted(os.sched_getaffinity(0), key=lambda core: (position(core) > 0, core))


class Worker:
    """Process on some cores that gets ready, waits for the signal, and reports its result."""

    def __init__(self, cores: Sequence[int], kind: str, *arguments: object) -> None:
        command = [sys.executable, __file__, "--worker", kind, *map(str, arguments)]
        with pinned(cores):
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    @property
    def process_id(self) -> int:
        """Return the ID of the process."""
        return self._process.pid

    def _line(self) -> str:
        line = self._process.stdout.readline()
        if not line:
            sys.exit(f"a process ended early with code {self._process.wait()}")
        return line

    def wait_until_ready(self) -> None:
        """Wait until its imports are done."""
        self._line()

    def start(self) -> None:
        """Signal it to start."""
        self._process.stdin.write("start\n")
        self._process.stdin.flush()

    def result(self) -> tuple[int, float]:
        """Return its rows and seconds, after it ended."""
        result = json.loads(self._line())
        self._process.wait()
        return result["rows"], result["seconds"]


def wait_for_start() -> None:
    """Report that this process is ready, and wait for the signal."""
    print("ready", flush=True)
    sys.stdin.readline()


def score_in_worker(model: str, source: str, few: str) -> tuple[int, float]:
    """Score an input after a small one, and return its rows and seconds."""
    digest = hashlib.sha256(Path(model).read_bytes()).hexdigest()
    with tempfile.TemporaryDirectory(dir=Path(model).parent) as store:
        config = nnbuild.ScoreConfig(input=source, model=model, digest=digest)
        nnbuild.score(config.model_copy(update={"input": few}), store)
        wait_for_start()
        start_time = time.perf_counter()
        rows = nnbuild.score(config, store).rows
        return rows, time.perf_counter() - start_time


def infer_in_worker(model: str, images: str) -> tuple[int, float]:
    """Run a model on images in memory, and return the rows and seconds."""
    engine, pixels, done = OnnxEngine(Path(model)), np.load(images), 0
    per_core = max(1, min(4096, 2**24 // pixels[0].size))
    rows = np.arange(per_core * len(os.sched_getaffinity(0))) % len(pixels)
    batch = pixels[rows]
    engine.logits(batch)
    wait_for_start()
    start_time = time.perf_counter()
    while time.perf_counter() - start_time < ALONE_SECONDS:
        engine.logits(batch)
        done += len(batch)
    return done, time.perf_counter() - start_time


class PeakMemory(threading.Thread):
    """Thread that samples the memory of a process and its descendants until the block ends.

    Attributes:
        peak: Largest sum of their proportional set sizes, in bytes.
    """

    def __init__(self, process: int) -> None:
        super().__init__(daemon=True)
        self.peak, self._process, self._ended = 0, process, threading.Event()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self.join()

    def run(self) -> None:
        """Sample until the block ends."""
        while not self._ended.wait(SAMPLE_SECONDS):
            self.peak = max(self.peak, sum(map(pss_of, family_of(self._process))))


def family_of(process: int) -> list[int]:
    """Return the IDs of a process and of its descendants."""
    family = [process]
    for member in family:
        for children in Path(f"/proc/{member}/task").glob("*/children"):
            with suppress(OSError):
                family += map(int, children.read_text().split())
    return family


def pss_of(process: int) -> int:
    """Return the proportional set size of a process in bytes; 0 if it has ended."""
    with suppress(OSError):
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return 1024 * int(line.split()[1])
    return 0


def rate_of(workers: Sequence[Worker], *, memory: bool = False) -> tuple[float, int]:
    """Start processes together, and measure them until the last one ends.

    Args:
        workers: The processes.
        memory: Whether to sample the memory of the first one.

    Returns:
        Their rows per second, and the peak of the memory in bytes; 0 if it is not sampled.
    """
    with ExitStack() as stack:
        for each in workers:
            stack.enter_context(each)
        for each in workers:
            each.wait_until_ready()
        sampler = PeakMemory(workers[0].process_id)
        if memory:
            stack.enter_context(sampler)
        for each in workers:
            each.start()
        results = [each.result() for each in workers]
    rate = sum(rows for rows, _ in results) / max(seconds for _, seconds in results)
    return rate, sampler.peak


class Bench:
    """The files of an input, and the measurements on them.

    Args:
        folder: New folder for the files.
        source: The input.
        rows: Rows of a part.
        copies: Copies of a part for each core.
        same_input: Whether a job on several cores scores the rows of one.
        memory: Whether to sample the memory of jobs.
    """

    def __init__(
        self,
        folder: Path,
        source: Input,
        rows: int,
        copies: int,
        *,
        same_input: bool,
        memory: bool,
    ) -> None:
        self._folder, self._source, self._copies = folder, source, copies
        self._same, self._memory = same_input, memory
        self._part, self._few = folder / "part", folder / "few"
        self._model, self._images = folder / "model.onnx", folder / "images.npy"
        pictures = pictures_of(source, min(POOL, rows))
        write_part(self._part, source, pictures, rows)
        write_part(self._few, source, pictures[:FEW], FEW)
        self._model.write_bytes(model_of(source))
        size = (source.image[1], source.image[0])
        images = [np.asarray(each.resize(size)) for each in pictures]
        np.save(self._images, np.stack(images).reshape(-1, *source.image))

    def _input(self, cores: int) -> Path:
        """Return the folder with the rows for a number of cores."""
        folder = self._folder / "inputs" / str(cores)
        if not folder.exists():
            link_copies(self._part, folder, self._copies * cores)
        return folder

    def _worker(self, cores: Sequence[int], folder: Path) -> Worker:
        return Worker(cores, "score", self._model, folder, self._few)

    def measure(self, kind: str, cores: Sequence[int]) -> tuple[float, int]:
        """Return the rows per second of a kind on some cores, and its peak memory in bytes."""
        if kind == ALONE:
            return rate_of([Worker(cores, "infer", self._model, self._images)])
        if kind == PROCESSES:
            return rate_of([self._worker([each], self._input(1)) for each in cores])
        folder = self._input(1 if self._same else len(cores))
        rate, _ = rate_of([self._worker(cores, folder)])
        if not self._memory:
            return rate, 0
        return rate, rate_of([self._worker(cores, folder)], memory=True)[1]  # sampling takes time


Key = tuple[int, str]
"""Number of cores, and kind of measurement."""


class Measured(NamedTuple):
    """Measurements of an input, one for each round.

    Attributes:
        rates: Rows per second.
        peaks: Peak memory of a job in bytes, by number of cores; 0 if it was not sampled.
    """

    rates: dict[Key, list[float]]
    peaks: dict[int, list[int]]


def measure(bench: Bench, cores: list[int], counts: list[int], rounds: int) -> Measured:
    """Measure all kinds on all numbers of cores in turn, round by round."""
    rates: dict[Key, list[float]] = {
        (count, kind): [] for count in counts for kind in (JOB, PROCESSES, ALONE)
    }
    peaks: dict[int, list[int]] = {count: [] for count in counts}
    for _ in range(rounds):
        for (count, kind), of_kind in rates.items():
            if count == 1 and kind == PROCESSES:  # one job in one process
                of_kind.append(rates[1, JOB][-1])
                continue
            rate, peak = bench.measure(kind, cores[:count])
            of_kind.append(rate)
            if kind == JOB:
                peaks[count].append(peak)
    return Measured(rates, peaks)


def summary(measured: Measured, counts: list[int]) -> list[dict[str, Any]]:
    """Return the medians, and the medians of the ratios, for each number of cores."""
    rates, peaks = measured

    def ratio(first: Key, second: Key) -> float:
        pairs = zip(rates[first], rates[second], strict=True)
        return statistics.median(one / other for one, other in pairs)

    return [
        {
            "cores": count,
            "job_rows_per_second": statistics.median(rates[count, JOB]),
            "processes_rows_per_second": statistics.median(rates[count, PROCESSES]),
            "alone_rows_per_second": statistics.median(rates[count, ALONE]),
            "job_vs_first": ratio((count, JOB), (counts[0], JOB)),
            "job_vs_processes": ratio((count, JOB), (count, PROCESSES)),
            "job_vs_alone": ratio((count, JOB), (count, ALONE)),
            "job_peak_bytes": statistics.median(peaks[count]),
        }
        for count in counts
    ]


def print_table(name: str, rows: int, results: list[dict[str, Any]]) -> None:
    """Print the rates and ratios of an input, and the ratios with a target."""
    first = results[0]["cores"]
    base = f"vs. {first} core{'s' * (first > 1)}"
    sampled = results[0]["job_peak_bytes"] > 0
    print(f"\n{name}, {rows:,} rows for each core; rows/s{', MB' * sampled}")
    print(
        f"cores        job  n processes  ONNX alone  {base}  vs. n processes  vs. ONNX alone"
        + "  job memory" * sampled
    )
    for each in results:
        memory = f"{each['job_peak_bytes'] / 1e6:12,.0f}" if sampled else ""
        print(
            f"{each['cores']:5} {each['job_rows_per_second']:10,.0f} "
            f"{each['processes_rows_per_second']:12,.0f} {each['alone_rows_per_second']:11,.0f} "
            f"{each['job_vs_first']:{len(base) + 1}.2f} {each['job_vs_processes']:16.2f} "
            f"{each['job_vs_alone']:15.3f}{memory}"
        )
    by_count = {each["cores"]: each for each in results}
    if {1, 2} <= by_count.keys():
        ratio, target = by_count[2]["job_vs_first"], INPUTS[name].target
        print(f"2 cores vs. 1: {ratio:.2f}, target at least {target}")
    if sampled and {2, 8} <= by_count.keys():
        ratio = by_count[8]["job_peak_bytes"] / by_count[2]["job_peak_bytes"]
        print(f"memory at 8 cores vs. 2: {ratio:.2f}, target at most {MOST_MEMORY}")
    last = results[-1]
    if last["cores"] > 1:
        print(
            f"{last['cores']} cores vs. {last['cores']} processes: "
            f"{last['job_vs_processes']:.0%}, target at least {SHARE_OF_PROCESSES:.0%}",
            flush=True,
        )


def core_counts(text: str) -> list[int]:
    """Parse numbers of cores, such as 1,2,4."""
    counts = sorted({int(each) for each in text.split(",")})
    available = len(os.sched_getaffinity(0))
    if not 1 <= counts[0] <= counts[-1] <= available:
        raise argparse.ArgumentTypeError(
            f"expected numbers from 1 to {available}, the cores of this process; got {text}"
        )
    return counts


def input_names(text: str) -> list[str]:
    """Parse names of inputs, such as raw-lab,png-folder."""
    names = text.split(",")
    if unknown := [each for each in names if each not in INPUTS]:
        raise argparse.ArgumentTypeError(f"unknown {unknown[0]!r}; expected {', '.join(INPUTS)}")
    return names


def positive(text: str) -> int:
    """Parse a number above 0."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text}")
    return number


def parsed_options() -> argparse.Namespace:
    """Return the options of the command line."""
    available = len(os.sched_getaffinity(0))
    powers = [1 << power for power in range(available.bit_length()) if 1 << power < available]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--cores",
        type=core_counts,
        default=[*powers, available],
        help="numbers of cores; powers of two up to those of this process by default",
    )
    parser.add_argument("--rows", type=positive, help="rows for each core; by input by default")
    parser.add_argument("--scale", type=positive, default=1, help="factor of the rows")
    parser.add_argument("--memory", action="store_true", help="sample the memory of the jobs")
    parser.add_argument("--rounds", type=positive, default=3, help="number of rounds")
    parser.add_argument(
        "--inputs", type=input_names, default=list(INPUTS), help="names of inputs; all by default"
    )
    parser.add_argument(
        "--same-input", action="store_true", help="score the same rows on any number of cores"
    )
    parser.add_argument("--folder", type=Path, help="folder for the temporary files")
    parser.add_argument("--json", action="store_true", help="print the results as a last line")
    return parser.parse_args()


def main() -> None:
    """Measure the inputs, and print the results."""
    if not hasattr(os, "sched_setaffinity"):
        sys.exit("this system cannot restrict a process to cores; run it on Linux")
    if sys.argv[1:2] == ["--worker"]:
        kind, *arguments = sys.argv[2:]
        work = {"score": score_in_worker, "infer": infer_in_worker}[kind]
        rows, seconds = work(*arguments)
        print(json.dumps({"rows": rows, "seconds": seconds}), flush=True)
        return
    options, cores = parsed_options(), usable_cores()
    versions = {name: version(name) for name in PACKAGES}
    print(
        f"{len(cores)} cores, medians of {options.rounds} rounds; "
        + ", ".join(f"{name} {each}" for name, each in versions.items()),
        flush=True,
    )
    results = {}
    for name in options.inputs:
        source = INPUTS[name]
        rows, copies = (options.rows, 1) if options.rows else (source.rows, source.copies)
        copies *= options.scale
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            bench = Bench(
                Path(folder),
                source,
                rows,
                copies,
                same_input=options.same_input,
                memory=options.memory,
            )
            measured = measure(bench, cores, options.cores, options.rounds)
        results[name] = summary(measured, options.cores)
        print_table(name, rows * copies, results[name])
    if options.json:
        settings = {"rounds": options.rounds, "rows": options.rows, "scale": options.scale}
        settings["same"] = options.same_input
        print(json.dumps({"versions": versions, "settings": settings, "inputs": results}))


if __name__ == "__main__":
    main()
