"""IDX files: round trips, and headers that claim too much."""

import gzip
import hashlib
import struct
import tracemalloc

import numpy as np
import pytest
from data_files import IDX_NAMES, idx_bytes, scratch, tiny, write_idx
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from nnbuild.data import idx
from nnbuild.errors import DataError

SMALL = hnp.arrays(np.uint8, hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=5))


def peak(function) -> int:
    """Return the peak memory of a call that raises DataError."""
    tracemalloc.start()
    try:
        with pytest.raises(DataError):
            function()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@settings(max_examples=40, deadline=None)
@given(SMALL, st.booleans())
def test_idx_round_trip_is_the_identity(array, gzipped):
    with scratch() as folder:
        payload = idx_bytes(array)
        (folder / "a").write_bytes(gzip.compress(payload) if gzipped else payload)
        np.testing.assert_array_equal(idx.read(folder / "a"), array)
        assert idx.read(folder / "a").shape == array.shape


@pytest.mark.parametrize(
    ("code", "kind"), [(0x09, "i1"), (0x0B, ">i2"), (0x0C, ">i4"), (0x0D, ">f4"), (0x0E, ">f8")]
)
def test_the_other_types_are_big_endian(tmp_path, code, kind):
    values = np.array([[1, -2, 3], [4, 5, -6]], kind)
    (tmp_path / "a").write_bytes(struct.pack(">HBB2I", 0, code, 2, 2, 3) + values.tobytes())
    np.testing.assert_array_equal(idx.read(tmp_path / "a"), values)


@settings(max_examples=40, deadline=None)
@given(SMALL, st.data())
def test_file_of_wrong_length_is_refused(array, data):
    payload = idx_bytes(array)
    cut = data.draw(st.integers(0, len(payload) - 1))
    extra = data.draw(st.binary(min_size=1, max_size=20))
    packed = gzip.compress(payload)
    broken = [
        payload[:cut],
        payload + extra,
        gzip.compress(payload + extra),
        packed[: len(packed) * cut // len(payload)],
    ]
    with scratch() as folder:
        for content in broken:
            (folder / "a").write_bytes(content)
            with pytest.raises(DataError, match="a: "):
                idx.read(folder / "a")


@pytest.mark.parametrize("gzipped", [False, True])
@pytest.mark.parametrize("count", [2**31, 2**32 - 1])
def test_header_of_2e9_images_costs_nothing(tmp_path, gzipped, count):
    header = struct.pack(">HBB3I", 0, 8, 3, count, 28, 28) + bytes(1000)
    (tmp_path / "a").write_bytes(gzip.compress(header) if gzipped else header)
    assert peak(lambda: idx.read(tmp_path / "a")) < 1 << 20


def test_a_size_of_zero_hides_no_others(tmp_path):
    """The product of the sizes is 0, but no array has that shape (found by a fuzzer)."""
    path = tmp_path / "file"
    path.write_bytes(struct.pack(">HBB4I", 0, 0x0D, 4, 2**32 - 1, 2**32 - 1, 0, 2**31))
    with pytest.raises(DataError, match="claims shape"):
        idx.read(path)


def test_header_costs_only_what_arrives(tmp_path):
    header = struct.pack(">HBB3I", 0, 8, 3, 60000, 28, 28) + bytes(1000)
    (tmp_path / "a").write_bytes(gzip.compress(header))
    assert peak(lambda: idx.read(tmp_path / "a")) < 2 << 20


def test_a_gzip_bomb_is_not_unpacked(tmp_path):
    bomb = gzip.compress(struct.pack(">HBB1I", 0, 8, 1, 300 << 20) + bytes(300 << 20), 1)
    assert len(bomb) < 2 << 20
    (tmp_path / "a").write_bytes(bomb)
    assert peak(lambda: idx.read(tmp_path / "a")) < 1 << 20
    understated = gzip.compress(struct.pack(">HBB1I", 0, 8, 1, 1000) + bytes(100 << 20), 1)
    (tmp_path / "a").write_bytes(understated)
    assert peak(lambda: idx.read(tmp_path / "a")) < 1 << 20


def test_flipped_bit_in_gzip_is_noticed(tmp_path):
    packed = bytearray(gzip.compress(idx_bytes(tiny().train_images)))
    packed[len(packed) // 2] ^= 1
    (tmp_path / "a").write_bytes(packed)
    with pytest.raises(DataError, match="download it again"):
        idx.read(tmp_path / "a")


def test_missing_file_or_folder_is_named(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        idx.read(tmp_path / "absent")
    with pytest.raises(DataError, match="not an ordinary file"):
        idx.read(tmp_path)


def test_an_unpacked_file_is_preferred(tmp_path):
    write_idx(tmp_path, tiny(), gzipped=True)
    assert set(idx.find(tmp_path)) == set(IDX_NAMES)
    write_idx(tmp_path, tiny())
    assert {path.name for path in idx.find(tmp_path).values()} == set(IDX_NAMES)


def test_payload_digest_is_that_of_file():
    images = tiny().train_images[..., 0]
    assert idx.payload_digest(images) == hashlib.sha256(idx_bytes(images)).hexdigest()
    assert idx.payload_digest(images[:, ::-1]) != idx.payload_digest(images)
