"""A run whose pixels memory does not hold ends with the bytes of one in memory, however it went."""

import errno
import os
import shutil
import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from run_values import values

from nnbuild.config.schema import RunConfig
from nnbuild.errors import StoreError
from nnbuild.pipeline import repair
from nnbuild.pipeline.run import retrain
from nnbuild.runtime import fault_injection
from nnbuild.store import Store

RUN = """
import sys
from pathlib import Path
from nnbuild.config.schema import RunConfig
from nnbuild.pipeline.run import retrain
retrain(RunConfig.model_validate_json(sys.argv[1]), sys.argv[2])
"""


@pytest.fixture(scope="module")
def expected(tmp_path_factory, small_folder):
    """Return the results of a run in memory."""
    return results(tmp_path_factory.mktemp("memory") / "store", config_of(small_folder))


def config_of(folder):
    return RunConfig.model_validate(
        {
            "dataset": {"name": str(folder)},
            "model": {"name": "lab"},
            "training": {"epochs": 2, "batch_size": 16, "threads": 2},
            "seed": 7,
        }
    )


def results(root, config, resume=None):
    committed = retrain(None if resume else config, root, resume=resume)
    return values(Store(root), committed.run_id)


@pytest.fixture
def no_memory(monkeypatch):
    monkeypatch.setenv("NNBUILD_MEMORY", "8")


def pixels_of(store):
    return store.manifest(store.run_ids()[0]).steps.fit_model.pixels


@pytest.mark.usefixtures("no_memory")
def test_mapped_run_equals_memory(tmp_path, small_folder, expected):
    assert results(tmp_path / "store", config_of(small_folder)) == expected
    store = Store(tmp_path / "store")
    assert pixels_of(store) == "mapped file"
    assert list((store.root / "staging").iterdir()) == []
    assert not list(store.root.rglob("*.pixels"))


def test_killed_map_is_made_again(tmp_path, small_folder, expected, monkeypatch):
    store, config = Store(tmp_path / "store"), config_of(small_folder)
    killed = subprocess.run(
        [sys.executable, "-c", RUN, config.model_dump_json(), str(store.root)],
        env=os.environ | {"NNBUILD_MEMORY": "8", "NNBUILD_FAULT": "map:batch"},
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    (waiting,) = store.unfinished_runs()
    folder = store.root / "staging" / waiting.run_id / "pixels"
    assert [each.suffix for each in folder.iterdir()] == [".pixels"]
    monkeypatch.setenv("NNBUILD_MEMORY", "8")
    assert results(store.root, config, waiting.run_id) == expected
    assert list((store.root / "staging").iterdir()) == []


@pytest.mark.usefixtures("no_memory")
@pytest.mark.parametrize("point", ["map:batch", "map:written"])
def test_full_disk_while_mapping_is_resumable(tmp_path, small_folder, expected, monkeypatch, point):
    store, config = Store(tmp_path / "store"), config_of(small_folder)

    def full(name):
        if name == point:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(fault_injection, "failpoint", full)
        with pytest.raises(StoreError, match="No space left on device; free some space") as caught:
            retrain(config, store.root)
    assert "\n" not in str(caught.value)
    (waiting,) = store.unfinished_runs()
    assert results(store.root, config, waiting.run_id) == expected


@pytest.mark.usefixtures("no_memory")
def test_map_truncated_in_fit_is_resumable(tmp_path, small_folder, expected, monkeypatch):
    store, config = Store(tmp_path / "store"), config_of(small_folder)

    def truncate(name):
        for path in store.root.rglob("*.pixels") if name == "checkpoint:end" else ():
            os.truncate(path, 10)

    with monkeypatch.context() as patch:
        patch.setattr(fault_injection, "failpoint", truncate)
        with pytest.raises(StoreError, match=r"pixels: truncated to 10 of .*resume") as caught:
            retrain(config, store.root)
    assert "\n" not in str(caught.value)
    (waiting,) = store.unfinished_runs()
    assert results(store.root, config, waiting.run_id) == expected


def test_source_that_changes_later_changes_nothing(tmp_path, small_folder, expected, monkeypatch):
    source = Path(shutil.copy(small_folder, tmp_path))

    def change(name):
        if name == "fit_model:begin":
            source.write_bytes(b"other content")

    monkeypatch.setattr(fault_injection, "failpoint", change)
    assert results(tmp_path / "store", config_of(source)) == expected
    assert source.read_bytes() == b"other content"


@pytest.mark.usefixtures("no_memory")
def test_discarded_run_leaves_no_pixels(tmp_path, small_folder, monkeypatch):
    store = Store(tmp_path / "store")

    def full(name):
        if name == "build_model:begin":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(fault_injection, "failpoint", full)
        with pytest.raises((StoreError, OSError)):
            retrain(config_of(small_folder), store.root)
    assert list(store.root.rglob("*.pixels"))
    (waiting,) = store.unfinished_runs()
    repair.repair(store, datetime.now(UTC), discard=[waiting.run_id])
    assert not list(store.root.rglob("*.pixels"))
