"""Write tiny datasets in every format that nnbuild reads, and serve files on loopback."""

import gzip
import io
import json
import struct
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

IDX_NAMES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
PARQUET_FORMS = (
    "fixed_size_binary",
    "list",
    "large_list",
    "fixed_size_list",
    "nested",
    "tensor",
    "png",
    "hugging_face",
)


@dataclass(frozen=True)
class Arrays:
    """Two splits: images uint8 of shape (n, height, width, channels), labels int64."""

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray

    def __iter__(self) -> Iterator[np.ndarray]:
        return iter((self.train_images, self.train_labels, self.test_images, self.test_labels))


def tiny(*, train=40, test=20, shape=(6, 6, 1), classes=4, seed=0) -> Arrays:
    """Return distinct random images, with every class in both splits."""
    random = np.random.default_rng(seed)
    images = random.integers(0, 256, (train + test, *shape), np.uint8)
    labels = np.arange(train + test) % classes
    return Arrays(images[:train], labels[:train], images[train:], labels[train:])


def separable(*, train=240, test=80, shape=(8, 8, 1), classes=4, seed=0) -> Arrays:
    """Return images that a network learns quickly: each class has its own bright rows."""
    height = shape[0]
    arrays = tiny(train=train, test=test, shape=shape, classes=classes, seed=seed)
    images = np.concatenate([arrays.train_images, arrays.test_images]) // 4
    labels = np.concatenate([arrays.train_labels, arrays.test_labels])
    for label in range(classes):
        band = slice(
            label * height // classes,
            max((label + 1) * height // classes, label * height // classes + 1),
        )
        images[labels == label, band] += 150
    return Arrays(images[:train], labels[:train], images[train:], labels[train:])


def idx_bytes(array: np.ndarray) -> bytes:
    array = array.astype(np.uint8)
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def _grey(images: np.ndarray) -> np.ndarray:
    return images[..., 0] if images.shape[-1] == 1 else images


def write_idx(folder: Path, arrays: Arrays, *, gzipped=False, dotted=False) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in zip(IDX_NAMES, arrays, strict=True):
        payload = idx_bytes(_grey(array) if "images" in name else array)
        variant = name.replace("-idx", ".idx") if dotted else name
        if gzipped:
            (folder / f"{variant}.gz").write_bytes(gzip.compress(payload, mtime=0))
        else:
            (folder / variant).write_bytes(payload)
    return folder


def write_npz(path: Path, arrays: Arrays, *, grey=True, **changed: np.ndarray) -> Path:
    """Write an .npz like Keras's; `changed` replaces or adds members."""
    keys = ("x_train", "y_train", "x_test", "y_test")
    members = dict(zip(keys, arrays, strict=True))
    if grey:
        members |= {key: _grey(members[key]) for key in ("x_train", "x_test")}
    np.savez_compressed(path, **(members | changed))
    return path


def png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(file, "PNG")
    return file.getvalue()


def image_column(images: np.ndarray, form: str) -> pa.Array:
    """Convert images to an Arrow array in one of PARQUET_FORMS."""
    count = len(images)
    flat = images.reshape(count, -1)
    if form == "fixed_size_binary":
        return pa.array([row.tobytes() for row in flat], pa.binary(flat.shape[1]))
    if form in {"list", "large_list", "fixed_size_list"}:
        kind = {
            "list": pa.list_(pa.int64()),
            "large_list": pa.large_list(pa.uint8()),
            "fixed_size_list": pa.list_(pa.int16(), flat.shape[1]),
        }[form]
        return pa.array(flat.tolist(), kind)
    if form == "nested":
        return pa.array(_grey(images).tolist())
    if form == "tensor":
        return pa.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(_grey(images)))
    files = [png(image) for image in images]
    if form == "png":
        return pa.array(files, pa.binary())
    rows = [{"bytes": file, "path": f"{row}.png"} for row, file in enumerate(files)]
    return pa.array(rows, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))


def write_parquet(
    path: Path,
    images: np.ndarray,
    labels: np.ndarray,
    form="fixed_size_binary",
    *,
    names=None,
    shape=None,
    **options,
) -> Path:
    """Write a Parquet file, with class names as Hugging Face's metadata and shape as nnbuild's."""
    table = pa.table({"image": image_column(images, form), "label": pa.array(labels, pa.int64())})
    metadata = {}
    if names is not None:
        features = {
            "image": {"_type": "Image"},
            "label": {"names": list(names), "_type": "ClassLabel"},
        }
        metadata["huggingface"] = json.dumps({"info": {"features": features}})
    if shape is not None:
        metadata |= dict(zip(("height", "width", "channels"), map(str, shape), strict=True))
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table.replace_schema_metadata(metadata), path, **options)
    return path


def write_parquet_folder(folder: Path, arrays: Arrays, form="fixed_size_binary", **options) -> Path:
    write_parquet(
        folder / "train.parquet", arrays.train_images, arrays.train_labels, form, **options
    )
    write_parquet(folder / "test.parquet", arrays.test_images, arrays.test_labels, form, **options)
    return folder


def write_pictures(folder: Path, images: np.ndarray, labels: np.ndarray, names=None) -> Path:
    """Write <class>/<row>.png, where the class is the label or its name."""
    for row, (image, label) in enumerate(zip(images, labels, strict=True)):
        place = folder / (names[label] if names else str(label))
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{row:05}.png").write_bytes(png(image))
    return folder


def write_picture_folder(folder: Path, arrays: Arrays, names=None) -> Path:
    write_pictures(folder / "train", arrays.train_images, arrays.train_labels, names)
    write_pictures(folder / "test", arrays.test_images, arrays.test_labels, names)
    return folder


def write_every_form(folder: Path, arrays: Arrays) -> dict[str, Path]:
    """Write the same data in every format that nnbuild reads; return the paths by format."""
    shape = arrays.train_images.shape[1:]
    paths = {
        "idx": write_idx(folder / "idx", arrays),
        "idx.gz": write_idx(folder / "idx-gz", arrays, gzipped=True),
        "idx dotted": write_idx(folder / "idx-dotted", arrays, dotted=True),
        "npz": write_npz(folder / "data.npz", arrays),
        "npz with channels": write_npz(folder / "channels.npz", arrays, grey=False),
        "pictures": write_picture_folder(folder / "pictures", arrays),
    }
    for form in PARQUET_FORMS:
        paths[f"parquet {form}"] = write_parquet_folder(folder / form, arrays, form, shape=shape)
    return paths


@contextmanager
def scratch() -> Iterator[Path]:
    """Create a temporary folder for an example of Hypothesis."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


@dataclass
class Server:
    """A web server on the loopback interface.

    Attributes:
        files: Served files by path; may be changed.
        ranges: Whether it supports the Range header.
        cut: Number of bytes of a body after which it closes the connection; None for never.
        cuts: Number of connections to close.
        requests: Path and Range header of each request so far.
        redirect: URL to redirect all requests to; None for none.
        address: URL of the server.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    ranges: bool = True
    cut: int | None = None
    cuts: int = 1_000_000
    requests: list[tuple[str, str | None]] = field(default_factory=list)
    redirect: str | None = None
    address: str = ""

    def respond(self, handler: BaseHTTPRequestHandler) -> None:
        requested = handler.headers.get("Range")
        self.requests.append((handler.path, requested))
        handler.close_connection = True
        if self.redirect is not None:
            handler.send_response(302)
            handler.send_header("Location", self.redirect)
            handler.end_headers()
            return
        body = self.files.get(handler.path)
        if body is None:
            handler.send_error(404)
            return
        start = 0
        if requested and self.ranges:
            start = int(requested.removeprefix("bytes=").rstrip("-"))
        if start >= len(body) > 0:
            handler.send_error(416)
            return
        handler.send_response(206 if start else 200)
        handler.send_header("Content-Length", str(len(body) - start))
        if start:
            handler.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        handler.end_headers()
        rest = body[start:]
        if self.cut is not None and self.cuts > 0 and len(rest) > self.cut:
            self.cuts -= 1
            rest = rest[: self.cut]
        handler.wfile.write(rest)


@contextmanager
def serving(files: Mapping[str, bytes] | None = None, **options) -> Iterator[Server]:
    """Serve files on loopback while the block runs."""
    server = Server(dict(files or {}), **options)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            server.respond(self)

        def log_message(self, *_):
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    server.address = f"http://127.0.0.1:{http.server_address[1]}"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        thread.join()
        http.server_close()
