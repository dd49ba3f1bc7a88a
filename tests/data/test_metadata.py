"""Columns that describe the images: the same from every source, with each image, as texts."""

from datetime import UTC, date, datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from small_data import small_arrays

from nnbuild.data import dataset_reader, dataset_writer, sources
from nnbuild.data.dataset import Split
from nnbuild.data.day_versions import DatedSource
from nnbuild.data.options import ReadOptions
from nnbuild.data.parts import join_parts
from nnbuild.data.pixels import Workspace
from nnbuild.data.split_table import split_table
from nnbuild.errors import DataError
from nnbuild.store import Store

KEEP = ("site", "day")
ROWS = 60
ARRAYS = small_arrays(classes=3, shape=(8, 8, 1), train=ROWS, test=3)
IMAGES, LABELS = ARRAYS["x_train"], ARRAYS["y_train"].astype(np.int16)
SITES = ["oslo", "bergen", None, "trømso"] * (ROWS // 4)
DAYS = [date(2026, 11, 1) + timedelta(each % 5) for each in range(ROWS)]


def expected():
    """Return site and day by the bytes of each image."""
    return {
        image.tobytes(): (site, day.isoformat())
        for image, site, day in zip(IMAGES, SITES, DAYS, strict=True)
    }


def kept_of(dataset):
    return {
        image.tobytes(): (site, day)
        for split in dataset.splits.values()
        for image, site, day in zip(
            split.images,
            split.kept["site"].to_pylist(),
            split.kept["day"].to_pylist(),
            strict=True,
        )
    }


def parquet(folder):
    table = split_table(Split(IMAGES, LABELS))
    table = table.append_column("site", pa.array(SITES)).append_column("day", pa.array(DAYS))
    path = folder / "images.parquet"
    pq.write_table(table, path, row_group_size=7)
    return path, None


def pictures(folder):
    for number, (image, label) in enumerate(zip(IMAGES, LABELS, strict=True)):
        path = folder / "pictures" / f"class-{label}" / f"{number:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[..., 0]).save(path)
    return folder / "pictures"


def names():
    return [f"class-{label}/{number:03}.png" for number, label in enumerate(LABELS)]


def table(folder):
    """A folder of pictures with a table of metadata, whose rows are in another order."""
    path = folder / "about.parquet"
    order = np.random.default_rng(1).permutation(ROWS)
    columns = {"path": names(), "site": SITES, "day": DAYS}
    pq.write_table(pa.table(columns).take(pa.array(order)), path)
    return pictures(folder), path


def csv(folder):
    path = folder / "about.csv"
    rows = zip(names(), SITES, DAYS, strict=True)
    lines = [f"{name},{site or ''},{day}\n" for name, site, day in rows]
    path.write_text("path,site,day\n" + "".join(lines), encoding="utf-8-sig")
    return pictures(folder), path


def listing(folder):
    base = pictures(folder)
    path = base / "list.csv"
    rows = zip(names(), LABELS, SITES, DAYS, strict=True)
    lines = [f"{name},{label},{site or ''},{day}\n" for name, label, site, day in rows]
    path.write_text("path,label,site,day\n" + "".join(lines))
    return path, None


def loaded(path, metadata, tmp_path, **options):
    given = ReadOptions(**{"keep": KEEP, "metadata": metadata, **options})
    return sources.load(str(path), data_dir=None, cache=tmp_path, options=given)


@pytest.mark.parametrize("source", [parquet, table, csv, listing])
def test_columns_stay_with_their_images(tmp_path, source):
    found = source(tmp_path)
    for limit in (None, 0):  # in memory, and mapped
        workspace = Workspace(tmp_path / f"pixels-{limit}", limit)
        dataset = loaded(*found, tmp_path, workspace=workspace)
        assert len(dataset.test)
        assert kept_of(dataset) == expected()
        folder = tmp_path / f"store-{limit}"
        dataset_writer.write_dataset(dataset, folder)
        stored = dataset_reader.read_dataset(folder, workspace)
        assert kept_of(stored) == expected()
        assert stored.digest == dataset.digest


def test_columns_of_days_are_joined(tmp_path):
    path, _ = parquet(tmp_path)
    day = loaded(path, None, tmp_path, part=True)
    folder = tmp_path / "name" / "days" / "2026-11-01" / day.digest
    dataset_writer.write_part(day, folder)
    part = dataset_reader.read_part(tmp_path / "name", f"days/2026-11-01/{day.digest}")
    joined = join_parts([part, day], name="name", source="days")
    assert kept_of(joined) == expected()
    assert len(joined.train.kept) == 2 * len(day.train)


def test_digest_depends_on_the_columns(tmp_path):
    path, _ = parquet(tmp_path)
    without = loaded(path, None, tmp_path, keep=())
    dataset = loaded(path, None, tmp_path)
    assert without.train.kept is None
    assert dataset.digest != without.digest
    assert dataset.test.content_digest == without.test.content_digest


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("site,day\noslo,x\n", "no column 'path'"),
        ("path,site\nclass-0/000.png,oslo\n", "no column 'day', which dataset.keep names"),
        ("path,site,day\nelse/000.png,a,b\n", "a row for none of the pictures"),
        ("path,site,day\na,b,c\na,d,e\n", "has 'a' twice"),
        ("path,site,day\n,b,c\n", "1 of 1 rows have no path"),
        ("path,site,day\na,b\n", "row 2 has 2 values, expected 3"),
        ("", "no column 'path'"),
    ],
)
def test_bad_metadata_is_refused(tmp_path, content, says):
    path = tmp_path / "about.csv"
    path.write_text(content)
    with pytest.raises(DataError, match=says):
        loaded(pictures(tmp_path), path, tmp_path)


@pytest.mark.parametrize("source", [table, csv])
def test_metadata_among_the_pictures(tmp_path, source):
    folder, path = source(tmp_path)
    inside = path.rename(folder / "class-0" / path.name)
    assert kept_of(loaded(folder, inside, tmp_path)) == expected()


def test_metadata_of_one_file_is_refused(tmp_path):
    path, _ = parquet(tmp_path)
    with pytest.raises(DataError, match="not a folder of pictures"):
        loaded(path, path, tmp_path)


def test_days_have_their_metadata(tmp_path):
    """A day whose metadata are corrected is a new version; the other day is not read again."""
    for day in ("2026-11-01", "2026-11-02"):
        folder, about = csv(tmp_path)
        folder.rename(tmp_path / day)
        about.rename(tmp_path / f"{day}.csv")
    options = ReadOptions(keep=KEEP, metadata=tmp_path / "{date}.csv")
    source = DatedSource(Store(tmp_path / "store"), f"{tmp_path}/{{date}}/", options)
    last, now = date(2026, 11, 2), datetime(2026, 11, 3, tzinfo=UTC)
    first, _ = source.ingest(None, last, now)
    text = about.with_name("2026-11-02.csv").read_text(encoding="utf-8-sig")
    about.with_name("2026-11-02.csv").write_text(text.replace("oslo", "voss"))
    second, _ = source.ingest(None, last, now)
    assert [each.version for each in first.newest(None, last)] == [1, 1]
    assert [each.version for each in second.newest(None, last)] == [1, 2]


def test_source_without_columns_is_refused(tmp_path):
    path = tmp_path / "small.npz"
    np.savez(path, **ARRAYS)
    with pytest.raises(DataError, match=r"has no columns to keep, and dataset\.keep"):
        loaded(path, None, tmp_path)
    with pytest.raises(DataError, match=r"set dataset\.metadata to a table"):
        loaded(pictures(tmp_path), None, tmp_path)


def test_column_of_lists_is_refused(tmp_path):
    lists = split_table(Split(IMAGES, LABELS)).append_column("site", pa.array([[1]] * ROWS))
    pq.write_table(lists, tmp_path / "lists.parquet")
    with pytest.raises(DataError, match="expected texts, numbers, dates or truth values"):
        loaded(tmp_path / "lists.parquet", None, tmp_path, keep=("site",))
