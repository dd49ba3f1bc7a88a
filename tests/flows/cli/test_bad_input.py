"""What a user can get wrong: one line that helps, exit 2, and the store as it was."""

import json
import sys
from pathlib import Path

import pytest
from bad_inputs import Case, every_case
from command_line import Outcome, call, tree_digest
from small_data import write_small_dataset

from nnbuild.config.schema import RunConfig
from nnbuild.pipeline.run import retrain
from nnbuild.store import Store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a committed run."""
    folder = tmp_path_factory.mktemp("bad")
    data = write_small_dataset(folder / "small", classes=3, shape=(8, 8, 1), train=60, test=15)
    config = {
        "dataset": {"name": str(data)},
        "model": {"name": "lab"},
        "training": {"epochs": 1, "threads": 2},
    }
    retrain(RunConfig.model_validate(config), folder / "store")
    return folder / "store"


@pytest.fixture(autouse=True)
def no_data_of_ones_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing of this machine is found by accident."""
    monkeypatch.delenv("NNBUILD_DATA_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("nnbuild.data.download._opener", _offline)
    monkeypatch.setattr("tasks.retrain.load.retries", 0)


def _offline():
    raise OSError("the tests reach no network")


def assert_one_line(outcome: Outcome, says: str) -> None:
    assert outcome.code == 2, outcome
    lines = outcome.err.splitlines()
    assert len(lines) == 1, outcome.err
    assert lines[0].startswith("nnbuild: ")
    assert says in lines[0]
    assert outcome.out == ""


@pytest.mark.parametrize("case", every_case(), ids=lambda case: case.name)
def test_mistake_is_one_line(capfd, monkeypatch, tmp_path, store, prefect_server, case: Case):
    monkeypatch.chdir(tmp_path)
    arguments = case.prepare(tmp_path)
    before = tree_digest(store)
    monkeypatch.setenv("NNBUILD_STORE", str(store))
    assert_one_line(call(capfd, *arguments), case.says)
    assert tree_digest(store) == before
    sys.modules.pop(f"user_{case.name}", None)


def _file(folder: Path) -> Path:
    (folder / "file").write_text("")
    return folder / "file"


def _of_another_version(folder: Path) -> Path:
    (folder / "store.json").write_text(json.dumps({"schema_version": "99"}))
    return folder


def _with_a_broken_marker(folder: Path) -> Path:
    (folder / "store.json").write_text("{")
    return folder


def _below_a_file(folder: Path) -> Path:
    return _file(folder) / "store"


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (_file, "is a file"),
        (_of_another_version, "schema version 99"),
        (_with_a_broken_marker, "is not valid JSON"),
        (_below_a_file, "store"),
        (lambda _: "gopher://store", "cannot be opened"),
    ],
)
@pytest.mark.parametrize(
    "command", [("run", "--dataset", "digits"), ("runs",), ("history",)], ids=lambda each: each[0]
)
def test_unusable_store_is_refused(capfd, tmp_path, prefect_server, make, says, command):
    root = make(tmp_path)
    before = tree_digest(tmp_path)
    assert_one_line(call(capfd, *command, "--store", root), says)
    assert tree_digest(tmp_path) == before


@pytest.mark.skipif(
    not Path("/sys").is_dir(), reason="no file system that refuses everybody's folders"
)
def test_unwritable_store_is_refused(capfd, prefect_server):
    assert_one_line(
        call(capfd, "run", "--dataset", "digits", "--store", "/sys/nnbuild-store"),
        "cannot write to store",
    )
    assert not Path("/sys/nnbuild-store").exists()


def test_bad_input_leaves_no_new_store(capfd, tmp_path, prefect_server):
    missing = tmp_path / "none.npz"
    assert_one_line(
        call(capfd, "run", "--dataset", missing, "--store", tmp_path / "new"), "none.npz"
    )
    assert not (tmp_path / "new").exists()


def test_committed_run_cannot_resume(capfd, store):
    run_id = Store(store).run_ids()[0]
    assert_one_line(call(capfd, "run", "--resume", run_id, "--store", store), "is committed")


def test_cases_are_many_and_distinct():
    names = [case.name for case in every_case()]
    assert len(set(names)) == len(names) >= 80
