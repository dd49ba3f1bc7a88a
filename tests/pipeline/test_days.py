"""A run on labelled days uses each image of its window once, and can be made again."""

import collections
import shutil

import pytest
from labelled_days import LabelledDays, day, noon, train, weights

import nnbuild
from nnbuild.errors import ConfigError, DataError
from nnbuild.pipeline.days import select_days
from nnbuild.store import Store


@pytest.fixture
def days(tmp_path):
    return LabelledDays(tmp_path)


@pytest.fixture
def root(tmp_path):
    return tmp_path / "store"


def parts(root, run_id):
    return Store(root).read_table("dataset_parts", run_id).to_pylist()


def test_parts_account_for_every_image(days, root):
    for number in range(4):
        days.write(number, rows=40 + number)
    run = train(days.config(window=3), root, noon(3))
    rows = collections.Counter()
    for each in parts(root, run.run_id):
        rows[each["day"]] += each["rows"]
        assert each["version"] == 1
    assert rows == {day(number): 40 + number for number in (1, 2, 3)}
    data = Store(root).manifest(run.run_id).steps.load_data
    used = collections.Counter()
    for each in parts(root, run.run_id):
        used[each["used_for"]] += each["rows"]
    assert used["test"] == data.test
    assert used["train"] + used["validation"] == data.train
    assert used["validation"] == round(data.train * 0.2)


def test_run_of_a_past_day_is_made_again(days, root):
    for number in range(2):
        days.write(number)
    first = train(days.config(window=5), root, noon(1))
    days.write(0, seed=9)  # corrected
    days.write(2)
    second = train(days.config(window=5), root, noon(2))
    again = train(days.config(window=5, as_of=day(1)), root, noon(2, hour=13))
    store = Store(root)
    assert weights(store, again.run_id) == weights(store, first.run_id)
    assert weights(store, second.run_id) != weights(store, first.run_id)
    assert parts(root, again.run_id) == [
        each | {"run_id": again.run_id} for each in parts(root, first.run_id)
    ]
    (remark,) = store.manifest(again.run_id).steps.load_data.remarks
    assert first.run_id in remark


def test_run_is_found_after_clock_was_ahead(days, root):
    days.write(0)
    train(days.config(), root, noon(300))
    first = train(days.config(), root, noon(0))
    days.write(0, seed=9)
    train(days.config(), root, noon(1))
    window = select_days(Store(root), days.config(as_of=day(0)).dataset, noon(2))
    assert first.run_id in window.remarks[0]
    assert [each.version for each in window.versions] == [1]


def test_past_day_that_was_deleted_is_refused(days, root):
    days.write(0)
    train(days.config(), root, noon(0))
    (folder,) = (root / "datasets" / "labelled" / "days" / str(day(0))).iterdir()
    shutil.rmtree(folder)
    with pytest.raises(DataError, match=f"version 1 of {day(0)}, which is no longer in"):
        select_days(Store(root), days.config(as_of=day(0)).dataset, noon(1))


def test_past_day_without_a_run_is_as_it_was(days, root):
    store = Store(root)
    days.write(0)
    select_days(store, days.config().dataset, noon(0))
    days.write(0, seed=9)
    days.write(1)
    select_days(store, days.config().dataset, noon(1))
    past = select_days(store, days.config(as_of=day(0)).dataset, noon(1))
    assert [(each.day, each.version) for each in past.versions] == [(day(0), 1)]
    assert "as they had been ingested" in past.remarks[0]
    other = Store(root.with_name("other"))
    now = select_days(other, days.config(as_of=day(0)).dataset, noon(1))
    assert [(each.day, each.version) for each in now.versions] == [(day(0), 1)]
    assert "as they are now" in now.remarks[0]


def test_later_day_is_refused(days, root):
    with pytest.raises(ConfigError, match="after today"):
        select_days(Store(root), days.config(as_of=day(2)).dataset, noon(1))


def test_window_without_images_is_refused(days, root):
    days.write(0)
    with pytest.raises(DataError, match=f"from {day(8)} to {day(10)}"):
        select_days(Store(root), days.config(window=3).dataset, noon(10))
    assert not root.exists()


def test_refused_run_leaves_its_days(days, root):
    days.write(0)
    days.write(1, shape=(6, 6, 1))
    with pytest.raises(DataError, match=r"on 2026-10-01 and .* on 2026-10-02"):
        train(days.config(), root, noon(1))
    store = Store(root)
    assert not store.unfinished_runs()
    assert len(list(root.glob("datasets/labelled/days/*/*/dataset.json"))) == 2
    days.write(1)
    assert train(days.config(), root, noon(1)).status == "succeeded"


def test_timezone_decides_on_the_day(days, root):
    days.write(0)
    days.write(1)
    config = days.config(window=1, timezone="Pacific/Kiritimati").dataset  # 14 hours ahead
    window = select_days(Store(root), config, noon(0))
    assert [each.day for each in window.versions] == [day(1)]


def test_stopped_run_is_resumed_with_its_days(days, root):
    days.write(0)
    run = nnbuild.open_run(days.config(), root, now=noon(0))
    from nnbuild import pipeline

    loaded = pipeline.load_data(run)
    days.write(0, seed=9)
    days.write(1)
    done = nnbuild.retrain(days.config(), root, resume=run.run_id)
    assert Store(root).manifest(done.run_id).steps.load_data == loaded


def test_other_days_are_another_dataset(days, root):
    days.write(0)
    config = days.config().dataset
    first = select_days(Store(root), config, noon(0)).digest
    assert select_days(Store(root), config, noon(5)).digest == first
    days.write(1)
    assert select_days(Store(root), config, noon(5)).digest != first


def test_skipped_pictures_of_all_days_are_reported(days, root):
    for number in range(3):
        days.write(number)
        broken = next(days.folder(number).rglob("*.png"))
        broken.with_name(f"broken{number}.png").write_bytes(broken.read_bytes()[:30])
    config = days.config(window=2, on_error="skip", max_errors=0.1)
    for hour in (12, 13):  # the second run reads no picture: its days are ingested
        steps = Store(root).manifest(train(config, root, noon(2, hour)).run_id).steps
        assert steps.load_data.unreadable == 2
        checks = {each.name: each for each in steps.check_data.checks}
        assert checks["unreadable_pictures"].measured == "2"
        assert "broken1.png" in checks["unreadable_pictures"].detail
        assert "broken2.png" in checks["unreadable_pictures"].detail
    next(days.folder(2).rglob("broken2.png")).unlink()
    steps = Store(root).manifest(train(config, root, noon(2, hour=15)).run_id).steps
    assert steps.load_data.unreadable == 1
