"""Files of users are read within bounds, and without waiting for anything."""

import pytest

from nnbuild.runtime.cgroups import memory_growth_limited
from nnbuild.runtime.regular_files import read_regular


def test_large_bound_needs_no_memory(tmp_path):
    (tmp_path / "a").write_bytes(b"content")
    with memory_growth_limited(64 << 20):
        assert read_regular(tmp_path / "a", 2**34) == b"content"


@pytest.mark.parametrize("size", [0, 10, 3 << 20])
def test_file_up_to_bound_is_read(tmp_path, size):
    (tmp_path / "a").write_bytes(bytes(size))
    assert read_regular(tmp_path / "a", size) == bytes(size)
    (tmp_path / "a").write_bytes(bytes(size + 1))
    with pytest.raises(ValueError, match=f"has {size + 1} bytes, more than {size}"):
        read_regular(tmp_path / "a", size)
