"""The state of files, summed over any division of them."""

import os
from functools import reduce
from operator import add

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nnbuild.data import file_states
from nnbuild.data.file_states import FileStates, states_of

NAMES = [*(f"{number}.png" for number in range(9)), os.fsdecode(b"caf\xe9.png")]


def write(folder):
    """Write files of several sizes; the name of one is not UTF-8."""
    for number, name in enumerate(NAMES):
        (folder / name).write_bytes(b"x" * number)
        os.utime(folder / name, ns=(0, 10**18 + number))
    return [str(folder / name) for name in NAMES]


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    return write(tmp_path_factory.mktemp("files"))


@given(st.data())
@settings(deadline=None, max_examples=30)
def test_states_do_not_depend_on_the_division(paths, data):
    order = data.draw(st.permutations(paths))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(paths)))))
    parts = [order[a:b] for a, b in zip([0, *cuts], [*cuts, len(paths)], strict=True)]
    whole = states_of(paths)
    assert reduce(add, map(states_of, parts), FileStates()) == whole
    assert FileStates.model_validate_json(whole.model_dump_json()) == whole
    assert (whole.files, whole.bytes) == (len(NAMES), sum(range(len(NAMES))))


def test_groups_of_files_have_the_same_states(paths, monkeypatch):
    whole = states_of(paths)
    monkeypatch.setattr(file_states, "_FILES_AT_ONCE", 2)
    assert states_of(paths) == whole


@pytest.mark.parametrize("name", [NAMES[0], NAMES[-1]])
def test_states_change_with_every_file(tmp_path, name):
    paths, file = write(tmp_path), tmp_path / name
    time = file.stat().st_mtime_ns
    found = [states_of(paths)]
    os.utime(file, ns=(0, time + 1))
    found.append(states_of(paths))
    file.write_bytes(b"more than before")
    os.utime(file, ns=(0, time))
    found.append(states_of(paths))
    file.unlink()
    found.append(states_of(paths))
    assert len({each.digest for each in found}) == len(found)
    assert [each.files for each in found] == [len(NAMES)] * len(found)
