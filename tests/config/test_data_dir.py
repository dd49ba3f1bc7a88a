"""Test that library, flows and command line use `$NNBUILD_DATA_DIR` in the same way."""

import re
from pathlib import Path

import numpy as np
import pytest
from command_line import call

import nnbuild
from flows.retrain import retrain
from nnbuild.config.schema import RunConfig, default_data_dir, resolve
from nnbuild.errors import DataError

ROOT = Path(__file__).parents[2]


def opened(store):
    """The config of the one run in staging."""
    (run,) = nnbuild.Store(store).unfinished_runs()
    return nnbuild.Store(store).unfinished_run(run.run_id).config


@pytest.fixture
def damaged(tmp_path, monkeypatch):
    """A data folder whose MNIST is refused: whoever looks there says so."""
    np.savez(
        tmp_path / "mnist.npz",
        **{name: np.zeros(3) for name in ("x_train", "y_train", "x_test", "y_test")},
    )
    monkeypatch.setenv("NNBUILD_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def test_resolve_fills_data_dir(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NNBUILD_DATA_DIR", "data")
    assert resolve(RunConfig()).dataset.data_dir == default_data_dir() == tmp_path / "data"
    given = RunConfig.model_validate({"dataset": {"data_dir": "mine"}})
    assert resolve(given).dataset.data_dir == Path("mine")
    monkeypatch.setenv("NNBUILD_DATA_DIR", "elsewhere")
    assert resolve(RunConfig()).digest() == resolve(given).digest()
    for unset in ("", None):
        monkeypatch.delenv("NNBUILD_DATA_DIR", raising=False)
        if unset is not None:
            monkeypatch.setenv("NNBUILD_DATA_DIR", unset)
        assert resolve(RunConfig()).dataset.data_dir is None


def test_library_uses_data_dir(damaged, tmp_path):
    with pytest.raises(DataError, match=re.escape(str(damaged))):
        nnbuild.retrain(RunConfig(), tmp_path / "store")


def test_flow_uses_data_dir(damaged, tmp_path, prefect_server):
    with pytest.raises(DataError, match=re.escape(str(damaged))):
        retrain(RunConfig(), str(tmp_path / "store"))


def test_command_line_uses_data_dir(capfd, damaged, tmp_path):
    (finding,) = [
        each
        for each in call(capfd, "doctor", "--json", "--store", tmp_path / "store").json["findings"]
        if each["what"] == "mnist"
    ]
    assert finding["state"] == "fails"
    assert str(damaged) in finding["detail"]


def test_resume_keeps_data_dir(tmp_path, small_config, monkeypatch):
    monkeypatch.setenv("NNBUILD_DATA_DIR", str(tmp_path / "one"))
    run = nnbuild.open_run(small_config, tmp_path / "store")
    monkeypatch.setenv("NNBUILD_DATA_DIR", str(tmp_path / "two"))
    again = nnbuild.open_run(small_config, tmp_path / "store", resume=run.run_id)
    assert again.config.dataset.data_dir == opened(tmp_path / "store").dataset.data_dir
    assert again.config.dataset.data_dir == tmp_path / "one"


def test_data_dir_is_read_in_one_place():
    readers = [
        path.relative_to(ROOT).as_posix()
        for folder in ("nnbuild", "tasks", "flows")
        for path in (ROOT / folder).rglob("*.py")
        if re.search(r"(environ|getenv).*(NNBUILD_DATA_DIR|DATA_DIR)", path.read_text())
    ]
    assert readers == ["nnbuild/config/schema.py"]
