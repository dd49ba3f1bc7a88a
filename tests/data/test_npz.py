"""The .npz reader reads NumPy's files, but does not trust their headers."""

import io
import os
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest
from data_files import tiny, write_npz

from nnbuild.data import npz
from nnbuild.errors import DataError

KEYS = ("x_train", "y_train", "x_test", "y_test")


def members(**changed: bytes) -> dict[str, bytes]:
    """The .npy files of a valid .npz, some of them replaced."""
    arrays = dict(zip(KEYS, tiny(), strict=True))
    return {f"{key}.npy": npy(array) for key, array in arrays.items()} | {
        f"{key}.npy": value for key, value in changed.items()
    }


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, array)
    return file.getvalue()


def claiming(shape: str, descr: str = "'|u1'", payload: bytes = b"") -> bytes:
    """An .npy file with a custom header."""
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + payload


def write(path, files: dict[str, bytes], **options):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, **options) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def refused(path) -> str:
    with pytest.raises(DataError) as caught:
        npz.read(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("kind", [np.uint8, np.int64, ">i4", np.float16, np.float64])
@pytest.mark.parametrize("order", ["C", "F"])
def test_npz_round_trip_is_the_identity(tmp_path, kind, order):
    arrays = tiny()
    images = np.asarray(arrays.train_images, kind, order=order)
    read = npz.read(write_npz(tmp_path / "a.npz", arrays, x_train=images))
    np.testing.assert_array_equal(read[0], images)
    assert read[0].dtype == images.dtype
    for given, found in zip(list(arrays)[1:], read[1:], strict=True):
        np.testing.assert_array_equal(given.squeeze(), found.squeeze())


def test_uncompressed_and_format_2_are_read(tmp_path):
    arrays = dict(zip(KEYS, tiny(), strict=True))
    np.savez(tmp_path / "a.npz", **arrays)
    file = io.BytesIO()
    np.lib.format.write_array(file, arrays["x_test"], version=(2, 0))
    write(tmp_path / "b.npz", members(x_test=file.getvalue()))
    for first, second in zip(
        npz.read(tmp_path / "a.npz"), npz.read(tmp_path / "b.npz"), strict=True
    ):
        np.testing.assert_array_equal(first, second)


def test_missing_keys_are_named(tmp_path):
    np.savez(tmp_path / "a.npz", x_train=np.zeros(3), images=np.zeros(3))
    assert "lacks y_train, x_test, y_test, it contains images.npy, x_train.npy" in refused(
        tmp_path / "a.npz"
    )


def test_pickled_objects_are_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    objects = np.array([Evil()], object)
    np.savez(tmp_path / "a.npz", **(dict(zip(KEYS, tiny(), strict=True)) | {"y_test": objects}))
    assert "pickled objects" in refused(tmp_path / "a.npz")
    write(tmp_path / "b.npz", members(x_train=claiming("(1,)", "[('a', '|O')]", b"x" * 8)))
    assert "refused" in refused(tmp_path / "b.npz")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "descr", ["'<U5'", "'|S3'", "'<M8[s]'", "'<c16'", "[('a', '<i4')]", "'|V4'"]
)
def test_what_are_no_numbers_is_refused(tmp_path, descr):
    write(tmp_path / "a.npz", members(x_train=claiming("(0,)", descr)))
    assert "expected numbers" in refused(tmp_path / "a.npz")


@pytest.mark.parametrize(
    "shape",
    ["(2147483648, 28, 28)", "(10**9,)", "(-1, -4)", "(3,)", "(2**70,)", "('a',)", "7", "()"],
)
def test_a_false_shape_is_refused(tmp_path, shape):
    write(tmp_path / "a.npz", members(x_train=claiming(shape, payload=b"\0\0\0\0")))
    refused(tmp_path / "a.npz")


@pytest.mark.parametrize(
    "content",
    [b"", b"\x93NUMPY", b"\x93NUMPY\x09\x00aa", b"junk" * 40, claiming("(1,", payload=b"a")],
)
def test_member_of_other_format_is_refused(tmp_path, content):
    write(tmp_path / "a.npz", members(y_train=content))
    refused(tmp_path / "a.npz")


def test_a_zip_bomb_is_not_unpacked(tmp_path):
    bomb = claiming(f"({300 << 20},)", payload=bytes(300 << 20))
    path = write(tmp_path / "a.npz", members(x_train=bomb), compresslevel=1)
    del bomb
    assert path.stat().st_size < 2 << 20
    tracemalloc.start()
    assert "bomb" in refused(path)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_understated_member_is_refused(tmp_path):
    path = write(tmp_path / "a.npz", members(x_train=claiming("(100000,)", payload=bytes(100000))))
    payload = path.read_bytes()
    size = struct.pack("<I", len(claiming("(100000,)")) + 100000)
    assert payload.count(size) == 2
    path.write_bytes(payload.replace(size, struct.pack("<I", 200)))
    refused(path)


def test_members_never_become_paths(tmp_path):
    inside = tmp_path / "inside"
    inside.mkdir()
    files = members() | {
        "../escaped.npy": npy(np.zeros(3)),
        "/escaped.npy": b"",
        "x_train.npy/../../a": b"",
    }
    npz.read(write(inside / "a.npz", files))
    assert [path.name for path in tmp_path.iterdir()] == ["inside"]
    assert [path.name for path in inside.iterdir()] == ["a.npz"]
    write(inside / "b.npz", {f"../{name}": content for name, content in members().items()})
    assert "lacks" in refused(inside / "b.npz")


def test_a_truncated_archive_is_refused(tmp_path):
    payload = write_npz(tmp_path / "a.npz", tiny()).read_bytes()
    for cut in range(0, len(payload), len(payload) // 40):
        (tmp_path / "cut.npz").write_bytes(payload[:cut])
        refused(tmp_path / "cut.npz")
