"""Compare decoders of pictures: pixels, pictures per second, damaged files, and whole scoring jobs.

    python benchmarks/decoding.py [--pictures 500] [--rounds 7] [--rows 30000] [--pairs 3]

The candidates are decoded in turn, so that what else the machine does affects all of them. A rate
is that of processor seconds of one thread; a ratio is that to `before`, which opens every picture
twice with Pillow, once for the checksums and once for the pixels. Candidates that are not installed
are left out: pip install opencv-python-headless imagecodecs simplejpeg pyspng.

The last lines are whole jobs: PNG bytes in Parquet, scored by a dense network, with `before` and
with nnbuild's decoder in turn.
"""

import argparse
import contextlib
import hashlib
import importlib
import io
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

import nnbuild
from nnbuild.data import preprocessing

Decoder = Callable[[bytes], Any]
BEFORE, OURS = "before", "nnbuild"
SIZES = {"28 x 28 grey": (28, 28, 1), "32 x 32 RGB": (32, 32, 3), "160 x 160 RGB": (160, 160, 3)}
FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
_SLICE = 0.05  # seconds of a candidate in each round


def before(payload: bytes) -> Any:
    """Decode a picture as nnbuild did before: verify it, then open it again."""
    with Image.open(io.BytesIO(payload), formats=FORMATS) as picture:
        picture.verify()
    with Image.open(io.BytesIO(payload), formats=FORMATS) as picture:
        picture.load()
        pixels = np.asarray(picture)
    return pixels.reshape(*pixels.shape[:2], -1)


def pillow(payload: bytes) -> Any:
    """Decode a picture with Pillow, without the checksums of a PNG."""
    with Image.open(io.BytesIO(payload), formats=FORMATS) as picture:
        return np.asarray(picture)


def ours(payload: bytes) -> Any:
    """Decode a picture as nnbuild does."""
    return preprocessing.decode(payload, "picture")


def candidates(kind: str, channels: int) -> dict[str, Decoder]:
    """Return the installed decoders of a format by name."""
    found: dict[str, Decoder] = {BEFORE: before, "Pillow": pillow, OURS: ours}
    with contextlib.suppress(ImportError):
        cv2: Any = importlib.import_module("cv2")
        cv2.setNumThreads(1)
        flag = cv2.IMREAD_GRAYSCALE if channels == 1 else cv2.IMREAD_COLOR_RGB
        found["OpenCV"] = lambda payload: cv2.imdecode(np.frombuffer(payload, np.uint8), flag)
    with contextlib.suppress(ImportError):
        codecs: Any = importlib.import_module("imagecodecs")
        names = {"PNG": "png", "JPEG": "jpeg8", "WEBP": "webp", "BMP": "bmp"}
        found["imagecodecs"] = getattr(codecs, f"{names[kind]}_decode")
        if kind == "PNG":
            found["imagecodecs spng"] = codecs.spng_decode
    with contextlib.suppress(ImportError):
        if kind == "JPEG":
            simplejpeg: Any = importlib.import_module("simplejpeg")
            space = "GRAY" if channels == 1 else "RGB"
            found["simplejpeg"] = lambda payload: simplejpeg.decode_jpeg(payload, space)
    with contextlib.suppress(ImportError):
        if kind == "PNG":
            found["pyspng"] = importlib.import_module("pyspng").load
    return found


def pictures(height: int, width: int, channels: int, count: int) -> list[Image.Image]:
    """Return pictures with smooth shapes on black, as digits are."""
    random = np.random.default_rng(0)
    made = []
    for _ in range(count):
        coarse = random.integers(0, 256, (6, 6, channels), np.uint8)
        small = Image.fromarray(coarse[..., 0] if channels == 1 else coarse)
        pixels = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC)).copy()
        pixels[pixels < 110] = 0
        made.append(Image.fromarray(pixels))
    return made


def encoded(picture: Image.Image, kind: str) -> bytes:
    """Return the bytes of a picture in a format."""
    content = io.BytesIO()
    picture.save(content, kind)
    return content.getvalue()


def rates(decoders: dict[str, Decoder], payloads: list[bytes], rounds: int) -> dict[str, float]:
    """Return the median pictures per processor second of each decoder, measured in turn."""
    measured: dict[str, list[float]] = {name: [] for name in decoders}
    for _ in range(rounds):
        for name, decode in decoders.items():
            count, start = 0, time.thread_time()
            while time.thread_time() - start < _SLICE:
                for payload in payloads:
                    decode(payload)
                count += len(payloads)
            measured[name].append(count / (time.thread_time() - start))
    return {name: statistics.median(each) for name, each in measured.items()}


def compare(kind: str, size: str, options: argparse.Namespace) -> None:
    """Print the rates of all decoders of a format, and whether the pixels equal Pillow's."""
    channels = SIZES[size][2]
    payloads = [encoded(each, kind) for each in pictures(*SIZES[size], options.pictures)]
    decoders = candidates(kind, channels)
    found = rates(decoders, payloads, options.rounds)
    for name, rate in found.items():
        equal = all(
            np.array_equal(np.squeeze(decoders[name](each)), np.squeeze(pillow(each)))
            for each in payloads[:50]
        )
        print(
            f"{kind:5} {size:14} {name:17} {rate:10,.0f}/s {rate / found[BEFORE]:6.2f} x  "
            f"{'equal pixels' if equal else 'other pixels'}"
        )


def damaged(payload: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield damaged forms of a PNG, by name."""
    yield "truncated", payload[: len(payload) * 4 // 5]
    yield "without end", payload[:-12]
    checksum = bytearray(payload)
    checksum[-17] ^= 1
    yield "other checksum", bytes(checksum)
    pixel = bytearray(payload)
    pixel[len(payload) // 2] ^= 1
    yield "other pixel", bytes(pixel)


def compare_damage() -> None:
    """Print which damaged PNGs each decoder accepts."""
    (picture,) = pictures(64, 64, 1, 1)
    for name, decode in candidates("PNG", 1).items():
        accepted = []
        for problem, payload in damaged(encoded(picture, "PNG")):
            with contextlib.suppress(Exception):
                if decode(payload) is not None:
                    accepted.append(problem)
        print(f"PNG   damaged        {name:17} accepts {', '.join(accepted) or 'none'}")


def compare_threads(options: argparse.Namespace) -> None:
    """Print how much more two threads decode than one, in elapsed seconds."""
    for kind, size in (
        ("PNG", "28 x 28 grey"),
        ("PNG", "160 x 160 RGB"),
        ("JPEG", "160 x 160 RGB"),
    ):
        payloads = [encoded(each, kind) for each in pictures(*SIZES[size], options.pictures)] * 4
        for name, decode in candidates(kind, SIZES[size][2]).items():
            seconds = {1: [], 2: []}
            for _ in range(options.rounds):
                for threads, measured in seconds.items():
                    parts = [payloads[number::threads] for number in range(threads)]
                    with ThreadPoolExecutor(threads) as pool:
                        start = time.perf_counter()
                        list(pool.map(lambda part, decode=decode: [decode(x) for x in part], parts))
                        measured.append(time.perf_counter() - start)
            ratio = statistics.median(seconds[1]) / statistics.median(seconds[2])
            print(f"{kind:5} {size:14} {name:17} two threads {ratio:5.2f} x one")


def write_parquet(path: Path, rows: int) -> None:
    """Write PNG bytes of 28 x 28 pixels, as Hugging Face does."""
    payloads = [encoded(each, "PNG") for each in pictures(28, 28, 1, 1000)]
    images = pa.array(
        [{"bytes": payloads[row % 1000], "path": None} for row in range(rows)],
        pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
    )
    table = pa.table({"image": images, "label": pa.array(np.zeros(rows, np.int64))})
    pq.write_table(table, path, row_group_size=10_000)


def write_model(path: Path) -> str:
    """Write a dense network of the size of `lab` as ONNX, and return its digest."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(0)
    sizes, nodes, weights, last = (784, 25, 15, 10), [], [], "flat"
    nodes.append(helper.make_node("Cast", ["pixels"], ["floats"], to=TensorProto.FLOAT))
    nodes.append(helper.make_node("Flatten", ["floats"], ["flat"]))
    for number, (inside, outside) in enumerate(itertools.pairwise(sizes)):
        kernel = (random.standard_normal((inside, outside)) / inside).astype(np.float32)
        weights.append(numpy_helper.from_array(kernel, f"kernel_{number}"))
        target = "logits" if outside == 10 else f"dense_{number}"
        nodes.append(helper.make_node("MatMul", [last, f"kernel_{number}"], [target]))
        last = target
        if target != "logits":
            nodes.append(helper.make_node("Relu", [target], [f"relu_{number}"]))
            last = f"relu_{number}"
    graph = helper.make_graph(
        nodes,
        "lab",
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["batch", 28, 28, 1])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 10])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save_model(model, path)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def score(source: Path, model: Path, digest: str, root: Path, decode: Any) -> float:
    """Return the processor seconds of a whole scoring job with a decoder."""
    current = preprocessing.decode
    preprocessing.decode = decode
    try:
        config = nnbuild.ScoreConfig(
            input=str(source), model=str(model), digest=digest, threads=1, calibrated=False
        )
        start = time.process_time()
        nnbuild.score(config, root)
        return time.process_time() - start
    finally:
        preprocessing.decode = current


def compare_jobs(options: argparse.Namespace) -> None:
    """Print the rates of whole jobs with the decoder of before and with nnbuild's."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source, model = folder / "png.parquet", folder / "lab.onnx"
        write_parquet(source, options.rows)
        digest = write_model(model)
        decoders = {BEFORE: lambda payload, *_: before(payload), OURS: preprocessing.decode}
        seconds: dict[str, list[float]] = {each: [] for each in decoders}
        for pair in range(options.pairs):
            for each, decode in decoders.items():
                root = folder / f"store-{pair}-{each}"
                seconds[each].append(score(source, model, digest, root, decode))
        ratio = statistics.median(
            one / other for one, other in zip(seconds[BEFORE], seconds[OURS], strict=True)
        )
        for each, measured in seconds.items():
            rate = options.rows / statistics.median(measured)
            print(f"whole job, PNG in Parquet, {each:8} {rate:10,.0f} rows per processor second")
        print(f"whole job, PNG in Parquet, nnbuild {ratio:.2f} x before")


def main() -> None:
    """Print the comparison of decoders, and of whole jobs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pictures", type=int, default=500, help="pictures per format")
    parser.add_argument("--rounds", type=int, default=7, help="rounds of measurement")
    parser.add_argument("--rows", type=int, default=30_000, help="rows of a whole job")
    parser.add_argument("--pairs", type=int, default=3, help="pairs of whole jobs")
    options = parser.parse_args()
    print(f"{os.cpu_count()} processors, Pillow {Image.__version__}")
    for size in SIZES:
        for kind in FORMATS:
            compare(kind, size, options)
    compare_damage()
    compare_threads(options)
    compare_jobs(options)


if __name__ == "__main__":
    main()
