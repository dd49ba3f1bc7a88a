"""Each day of a dated source is ingested once, by content; a corrected day gets a new version."""

import os
import shutil
import signal
import subprocess
import sys
from datetime import date

import numpy as np
import pytest
from command_line import tree_digest
from data_files import tiny, write_npz, write_parquet
from labelled_days import LabelledDays, day, image_keys, noon

from nnbuild.data import dataset_reader
from nnbuild.data.day_versions import DatedSource
from nnbuild.data.options import ReadOptions
from nnbuild.data.pixels import is_mapped, workspace_in
from nnbuild.errors import DataError, StoreError
from nnbuild.store import Store
from nnbuild.store.filesystem import upload_folder


@pytest.fixture
def days(tmp_path):
    return LabelledDays(tmp_path)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


def ingest(days, store, number, **options):
    return DatedSource(store, days.pattern).ingest(None, day(number), noon(number), **options)


def versions(record):
    return [(each.day, each.version) for each in record.versions()]


def files_of(store):
    return {path: path.stat().st_mtime_ns for path in store.root.rglob("*.parquet")}


def test_day_is_ingested_once(days, store):
    days.write(0)
    days.write(1)
    record, _ = ingest(days, store, 1)
    before = files_of(store)
    days.write(2)
    again, _ = ingest(days, store, 2)
    assert versions(again) == [(day(number), 1) for number in range(3)]
    assert record.days == {each: again.days[each] for each in record.days}
    assert {path: files_of(store)[path] for path in before} == before


def test_unchanged_day_is_not_read(days, store, monkeypatch):
    days.write(0)
    ingest(days, store, 0)
    monkeypatch.setattr("nnbuild.data.day_versions.read_day", pytest.fail)
    assert versions(ingest(days, store, 1)[0]) == [(day(0), 1)]


def test_mapped_day_has_same_files(days, store, tmp_path, monkeypatch):
    days.write(0)
    days.write(1)
    record, _ = ingest(days, store, 1)
    monkeypatch.setenv("NNBUILD_MEMORY", "8")  # an eighth of it holds no image
    other = Store(tmp_path / "other")
    mapped, _ = ingest(days, other, 1)
    assert [each.digest for each in mapped.versions()] == [
        each.digest for each in record.versions()
    ]
    for path in files_of(store):
        twin = other.root / path.relative_to(store.root)
        assert twin.read_bytes() == path.read_bytes()
        part = dataset_reader.read_part(
            path.parents[3], "/".join(path.parts[-4:-1]), workspace_in(other)
        )
        assert is_mapped(part.train.images)
        assert part.digest == path.parent.name
    assert files_of(store).keys()
    assert list((other.root / "staging").iterdir()) == []


def test_corrected_day_gets_a_version(days, store):
    days.write(0)
    first, _ = ingest(days, store, 0)
    days.write(0, seed=9)
    second, _ = ingest(days, store, 1)
    days.write(0)
    third, _ = ingest(days, store, 2)
    assert versions(third) == [(day(0), number) for number in (1, 2, 3)]
    one, two, three = third.days[day(0)].versions
    assert one.digest == three.digest != two.digest
    assert first.newest(None, day(9)) == [one]
    assert second.newest(None, day(9)) == [two]


def test_same_size_and_time_is_noticed(days, store):
    arrays = tiny(train=30, test=1)
    path = days.folder(0) / "data.npz"
    path.parent.mkdir(parents=True)
    np.savez(path, images=arrays.train_images, labels=arrays.train_labels)
    before = path.stat()
    ingest(days, store, 0)
    np.savez(path, images=arrays.train_images[::-1], labels=arrays.train_labels)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    assert versions(ingest(days, store, 0)[0]) == [(day(0), 1), (day(0), 2)]


def test_rewritten_day_keeps_its_version(days, store):
    days.write(0)
    ingest(days, store, 0)
    days.write(0)
    assert versions(ingest(days, store, 1)[0]) == [(day(0), 1)]


def test_vanished_day_is_still_used(days, store):
    days.write(0)
    days.write(1)
    ingest(days, store, 1)
    days.remove(0)
    record, (remark,) = ingest(days, store, 2)
    assert [each.day for each in record.newest(None, day(2))] == [day(0), day(1)]
    assert "1 day is no longer" in remark
    assert str(day(0)) in remark


def test_dataset_of_days_has_every_image_once(days, store):
    for number in range(3):
        days.write(number, rows=30 + number)
    source = DatedSource(store, days.pattern)
    record, _ = source.ingest(None, day(2), noon(2))
    digest = source.create_dataset(record.newest(None, day(2)), "days")
    dataset = dataset_reader.read_dataset(store.local_dataset(source.name, digest))
    written = [
        key
        for number in range(3)
        for key in image_keys(
            np.stack([_pixels(each) for each in days.folder(number).rglob("*.png")])
        )
    ]
    read = [key for split in dataset.splits.values() for key in image_keys(split.images)]
    assert sorted(read) == sorted(written)
    assert len(dataset.test) == sum(each.test for each in record.newest(None, day(2)))


def _pixels(path):
    from PIL import Image

    return np.asarray(Image.open(path))[..., np.newaxis]


def test_dataset_of_days_adds_a_list(days, store):
    days.write(0)
    source = DatedSource(store, days.pattern)
    record, _ = source.ingest(None, day(0), noon(0))
    digest = source.create_dataset(record.newest(None, day(0)), "days")
    folder = store.dataset_folder(source.name, digest)
    assert [each.name for each in folder.iterdir()] == ["dataset.json"]
    assert source.create_dataset(record.newest(None, day(0)), "days") == digest


def test_days_may_lack_classes(days, store):
    names = ["a", "b", "c", "d"]
    days.write(0, names=names)
    days.write(1, names=names)
    for name in ("a", "c", "d"):
        shutil.rmtree(days.folder(1) / name)
    source = DatedSource(store, days.pattern)
    record, _ = source.ingest(None, day(1), noon(1))
    digest = source.create_dataset(record.newest(None, day(1)), "days")
    dataset = dataset_reader.read_dataset(store.local_dataset(source.name, digest))
    assert dataset.class_names == tuple(names)
    counts = np.bincount(np.concatenate([dataset.train.labels, dataset.test.labels]))
    assert counts.tolist() == [10, 20, 10, 10]


def test_new_class_is_refused_or_accepted(days, store):
    days.write(0, names=["a", "b", "c", "d"])
    ingest(days, store, 0)
    days.write(1, names=["a", "b", "c", "e"])
    with pytest.raises(DataError, match=f"date={day(1)}.*class e.*dataset.new_classes"):
        ingest(days, store, 1)
    assert versions(ingest(days, store, 0)[0]) == [(day(0), 1)]
    assert versions(ingest(days, store, 1, new_classes=True)[0]) == [(day(0), 1), (day(1), 1)]


def test_damaged_day_is_named(days, store):
    days.write(0)
    days.write(1)
    next(days.folder(1).rglob("*.png")).write_bytes(b"\x89PNG")
    with pytest.raises(DataError, match=f"date={day(1)}"):
        ingest(days, store, 1)
    assert versions(DatedSource(store, days.pattern).record()) == [(day(0), 1)]


def test_day_that_is_being_written_is_refused(days, store, monkeypatch):
    days.write(0)
    load = DatedSource.ingest.__globals__["read_day"].__globals__["sources"].load

    def slow(*arguments, **options):
        dataset = load(*arguments, **options)
        days.write(0, rows=44)
        return dataset

    monkeypatch.setattr("nnbuild.data.sources.load", slow)
    with pytest.raises(DataError, match="changed while it was read"):
        ingest(days, store, 0)


@pytest.mark.parametrize("form", ["npz", "parquet", "folder"])
def test_day_may_have_any_format(tmp_path, store, form):
    arrays = tiny(train=24, test=12)
    root = tmp_path / "src"
    root.mkdir()
    if form == "npz":
        write_npz(root / f"{day(0)}.npz", arrays)
        pattern = f"{root}/{{date}}.npz"
    elif form == "parquet":
        write_parquet(root / f"{day(0)}.parquet", arrays.train_images, arrays.train_labels)
        pattern = f"{root}/{{date}}.parquet"
    else:
        write_parquet(
            root / f"{day(0):%Y/%m/%d}" / "a.parquet", arrays.train_images, arrays.train_labels
        )
        pattern = f"{root}/{{date:%Y/%m/%d}}"
    record, _ = DatedSource(store, pattern).ingest(None, day(0), noon(0))
    (version,) = record.versions()
    assert version.rows == (36 if form == "npz" else 24)
    assert version.test == 12 if form == "npz" else 0 < version.test < 24


def test_other_options_are_another_source(days, store):
    days.write(0)
    plain, scaled = (
        DatedSource(store, days.pattern, ReadOptions(pixel_max=each)) for each in (None, 200.0)
    )
    plain.ingest(None, day(0), noon(0))
    assert not scaled.record().days
    assert plain.record().days


def test_empty_source_creates_no_store(days, store):
    (days.root / "labelled").mkdir()
    record, remarks = ingest(days, store, 0)
    assert (record.days, remarks) == ({}, [])
    assert not store.exists()


def test_damaged_record_is_one_line(days, store):
    days.write(0)
    ingest(days, store, 0)
    (path,) = store.root.glob("datasets/*/days/*.json")
    path.write_text("{")
    with pytest.raises(StoreError, match="not valid JSON"):
        ingest(days, store, 0)


def test_clock_that_was_set_back_keeps_the_order(days, store):
    days.write(0)
    ingest(days, store, 5)
    days.write(0, seed=9)
    record, _ = DatedSource(store, days.pattern).ingest(None, day(0), noon(0))
    first, second = record.versions()
    assert first.ingested_at <= second.ingested_at


def test_clock_that_was_ahead_hides_no_day(days, store):
    days.write(0)
    DatedSource(store, days.pattern).ingest(None, day(0), noon(300))
    days.write(0, seed=9)
    days.write(1)
    record, _ = ingest(days, store, 1)
    known, newest = record.known_at(noon(2), None, day(1))
    assert [(each.day, each.version) for each in known] == [(day(0), 2), (day(1), 1)]
    assert newest == 0


def test_clock_that_is_behind_changes_nothing(days, store):
    for number in (0, 5):
        days.write(number)
    ingest(days, store, 5)
    before = tree_digest(store.root)
    days.write(0, seed=9)
    ingest(days, store, 3)
    assert tree_digest(store.root) == before


def test_versions_known_at_a_moment(days, store):
    for number in (0, 2):
        days.write(number)
    ingest(days, store, 2)
    days.write(1)  # late
    days.write(2, seed=9)  # corrected
    record, _ = ingest(days, store, 4)
    known, newest = record.known_at(noon(3), None, day(2))
    assert [(each.day, each.version) for each in known] == [(day(0), 1), (day(2), 1)]
    assert newest == 0
    now, newest = record.known_at(noon(1), None, day(2))  # nothing had been searched for by then
    assert [(each.day, each.version) for each in now] == [(day(0), 1), (day(1), 1), (day(2), 2)]
    assert newest == 3
    assert record.newest(date(2026, 10, 2), day(1)) == [now[1]]


def test_day_that_was_not_searched_for_is_not_late(days, store):
    days.write(0)
    ingest(days, store, 0)
    days.write(1)
    record, _ = ingest(days, store, 9)
    known, newest = record.known_at(noon(2), None, day(1))
    assert [each.day for each in known] == [day(0), day(1)]
    assert newest == 1
    (path,) = store.root.rglob("days/*.json")
    before = path.read_bytes()
    DatedSource(store, days.pattern).ingest(None, day(5), noon(9), is_past=True)
    assert path.read_bytes() == before


def test_new_images_of_a_correction(days, store):
    days.write(0, rows=40)
    source = DatedSource(store, days.pattern)
    source.ingest(None, day(0), noon(0))
    moved = sorted(days.folder(0).glob("0/*.png"))[:3]
    for path in moved:  # their labels were wrong
        path.rename(days.folder(0) / "1" / path.name)
    record, _ = source.ingest(None, day(1), noon(1))
    before, after = record.versions()
    assert source.new_images(after, before) == 3
    assert source.new_images(after, None) == 40
    assert source.new_images(after, after) == 0


def test_killed_ingestion_is_repeated(days, store):
    """What a process that died was writing is removed, and no version is lost or counted twice."""
    days.write(0)
    days.write(1)
    program = (
        "import sys\n"
        "from datetime import date, datetime\n"
        "from nnbuild.data.day_versions import DatedSource\n"
        "from nnbuild.store import Store\n"
        "last = date.fromisoformat(sys.argv[3])\n"
        "now = datetime.fromisoformat(sys.argv[4])\n"
        "DatedSource(Store(sys.argv[1]), sys.argv[2]).ingest(None, last, now)\n"
    )
    arguments = [store.root, days.pattern, day(1).isoformat(), noon(1).isoformat()]
    for point in ("ingest:written", "ingest:published", "ingest:recorded"):
        killed = subprocess.run(
            [sys.executable, "-c", program, *map(str, arguments)],
            env=os.environ | {"NNBUILD_FAULT": point},
            check=False,
        )
        assert killed.returncode == -signal.SIGKILL
    record, _ = ingest(days, store, 1)
    assert versions(record) == [(day(0), 1), (day(1), 1)]
    folders = {path.name for path in store.root.glob("datasets/*/days/*/*") if path.is_dir()}
    assert folders == {each.digest for each in record.versions()}


def test_source_and_store_may_be_remote(s3_store, days, monkeypatch, tmp_path):
    days.write(0)
    days.write(1)
    store = Store(s3_store)
    remote = Store(s3_store.replace("/store", "/labelled")).root
    for number in (0, 1):
        upload_folder(days.folder(number), remote / f"date={day(number)}")
    source = DatedSource(store, f"{remote}/date={{date}}/")
    record, _ = source.ingest(None, day(1), noon(1))
    digest = source.create_dataset(record.newest(None, day(1)), "days")
    assert source.name == "labelled"
    assert [each.rows for each in record.versions()] == [40, 40]
    monkeypatch.setenv("NNBUILD_STAGING_DIR", str(tmp_path / "another machine"))
    other = Store(s3_store)
    dataset = dataset_reader.read_dataset(other.local_dataset(source.name, digest))
    assert len(dataset.train) + len(dataset.test) == 80
    with monkeypatch.context() as patch:
        patch.setattr("nnbuild.data.day_versions.read_day", pytest.fail)  # nothing has changed
        again, _ = DatedSource(other, source.pattern).ingest(None, day(1), noon(1))
    assert again == record
