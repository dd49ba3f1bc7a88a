"""A run that would only repeat an earlier one is recognised before anything is trained."""

import subprocess
import sys

import numpy as np
import pytest
from labelled_days import LabelledDays, day, noon, train
from small_data import run_config, small_arrays, write_small_dataset

from nnbuild.config.schema import RunConfig
from nnbuild.errors import ConfigError, DataError
from nnbuild.pipeline.unchanged import unchanged_since
from nnbuild.store import Store


@pytest.fixture
def days(tmp_path):
    days = LabelledDays(tmp_path)
    for number in range(3):
        days.write(number)
    return days


@pytest.fixture(scope="session")
def _committed(tmp_path_factory):
    """Three labelled days, and a store with a run on them."""
    root = tmp_path_factory.mktemp("days")
    days = LabelledDays(root)
    for number in range(3):
        days.write(number)
    run = train(days.config(window=3), root / "store", noon(2))
    return days, Store(root / "store"), run.run_id


@pytest.fixture
def committed(_committed):
    """The same, in the state of after that run."""
    days, store, run_id = _committed
    yield days, store, run_id
    for number in range(12):
        days.write(number) if number < 3 else days.remove(number, missing_ok=True)
    for record in store.root.glob("datasets/labelled/days/*.json"):
        record.unlink()


def skipped(store, config, number):
    same = unchanged_since(store, config, noon(number))
    return None if same is None else same.reason


def test_few_new_images_are_no_news(committed):
    days, store, run_id = committed
    config = days.config(window=3, min_new=100)
    assert skipped(store, config, 2) == (
        f"no new labelled images since run {run_id}; dataset.min_new is 100"
    )
    days.write(3, rows=60)
    assert skipped(store, config, 3) == (
        f"60 new labelled images since run {run_id}; dataset.min_new is 100"
    )
    days.write(4, rows=40)
    assert skipped(store, config, 4) is None


def test_any_new_image_is_news(committed):
    days, store, run_id = committed
    config = days.config(window=3)
    assert skipped(store, config, 2) == f"no new labelled images since run {run_id}"
    assert skipped(store, config, 3) is not None  # the first day has left the window
    assert skipped(store, config, 11) is not None  # all have
    days.write(3, rows=4)
    assert skipped(store, config, 3) is None


def test_correction_is_news(committed):
    days, store, _ = committed
    moved = next(days.folder(1).glob("0/*.png"))
    moved.unlink()
    assert skipped(store, days.config(window=3), 2) is None
    reason = skipped(store, days.config(window=3, min_new=1), 2)
    assert reason is not None  # no image is new
    assert reason.startswith("no new")


def test_late_day_is_news(tmp_path):
    days = LabelledDays(tmp_path)
    days.write(0)
    days.write(2)
    store = Store(tmp_path / "store")
    train(days.config(window=3), store.root, noon(2))
    assert skipped(store, days.config(window=3, min_new=40), 2) is not None
    days.write(1)
    assert skipped(store, days.config(window=3, min_new=40), 2) is None


@pytest.mark.parametrize(
    "changed",
    [{"seed": 8}, {"gate": {"min_accuracy": 0.9}}, {"training": {"epochs": 2}}],
    ids=lambda changed: next(iter(changed)),
)
def test_other_settings_are_news(committed, changed):
    days, store, _ = committed
    config = days.config(window=3, min_new=100)
    settings = config.model_dump()
    settings |= {
        name: settings[name] | value if isinstance(value, dict) else value
        for name, value in changed.items()
    }
    assert skipped(store, RunConfig.model_validate(settings), 2) is None


def test_other_code_is_news(committed, monkeypatch):
    days, store, _ = committed
    monkeypatch.setattr("nnbuild.runtime.environment.code_version", lambda: "other")
    assert skipped(store, days.config(window=3), 2) is None


def test_past_day_always_runs(committed):
    days, store, _ = committed
    assert skipped(store, days.config(window=3, as_of=day(2)), 2) is None


def test_clock_that_was_set_back_is_refused(committed):
    days, store, _ = committed
    skipped(store, days.config(window=3), 2)
    with pytest.raises(ConfigError, match=f"clock says {day(-30)}"):
        skipped(store, days.config(window=3), -30)


def test_damaged_day_is_reported(committed):
    days, store, _ = committed
    days.write(3)
    next(days.folder(3).rglob("*.png")).write_bytes(b"\x89PNG")
    with pytest.raises(DataError, match=str(day(3))):
        skipped(store, days.config(window=3), 3)


def test_plain_dataset_is_compared_by_content(tmp_path, monkeypatch):
    source = write_small_dataset(tmp_path, classes=3, shape=(8, 8, 1), train=120, test=45)
    store = Store(tmp_path / "store")
    config = run_config(source)
    assert skipped(store, config, 0) is None
    run = train(config, store.root, noon(0))
    with monkeypatch.context() as patch:
        patch.setattr("nnbuild.pipeline.data.load", pytest.fail)  # its files have not changed
        assert run.run_id in skipped(store, config, 1)
    source.write_bytes(source.read_bytes())  # the same content, at another time
    assert run.run_id in skipped(store, config, 1)
    np.savez(source, **small_arrays(classes=3, shape=(8, 8, 1), train=120, test=45, seed=99))
    assert skipped(store, config, 1) is None
    source.unlink()
    assert skipped(store, config, 1) is None  # the run says what is wrong


def test_check_needs_no_tensorflow(committed):
    days, store, _ = committed
    program = (
        "import sys\n"
        "from datetime import datetime\n"
        "from nnbuild.config.schema import RunConfig\n"
        "from nnbuild.pipeline.unchanged import unchanged_since\n"
        "from nnbuild.store import Store\n"
        "config = RunConfig.model_validate_json(sys.argv[1])\n"
        "now = datetime.fromisoformat(sys.argv[3])\n"
        "print(unchanged_since(Store(sys.argv[2]), config, now).reason)\n"
        "assert not {'tensorflow', 'keras', 'prefect'} & set(sys.modules)\n"
    )
    config = days.config(window=3).model_dump_json()
    arguments = [sys.executable, "-c", program, config, store.root, noon(2).isoformat()]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("no new labelled images")
