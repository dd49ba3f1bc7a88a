"""Each row is scored once or rejected once, whatever a column contains or a batch raises."""

import decimal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command_line import call, tree_digest
from data_files import scratch
from hypothesis import given, settings
from hypothesis import strategies as st
from score_data import ROWS, SHAPE, images, parquet, rows, scored

from nnbuild.data.file_tree import File
from nnbuild.data.parquet_stream import ParquetStream
from nnbuild.data.streams import Columns, RejectedRows, StreamOptions
from nnbuild.errors import DataError

FIRST_TOO_LARGE = 2**63

ids = st.one_of(
    st.integers(0, 100),
    st.sampled_from([2**63 - 1, 2**63, 2**64 - 1]),
)
labels = {
    pa.uint64(): st.integers(0, 2**64 - 1),
    pa.int64(): st.integers(-(2**63), 2**63 - 1),
    pa.int8(): st.integers(-128, 127),
    pa.string(): st.text(max_size=3),
    pa.float64(): st.floats(),
}
kept = {
    pa.string(): st.text(max_size=5),
    pa.binary(): st.binary(max_size=5),
    pa.decimal128(10, 2): st.decimals(-(10**7), 10**7, places=2),
    pa.timestamp("us", "Europe/Berlin"): st.integers(-(10**15), 10**15),
    pa.list_(pa.int32()): st.lists(st.integers(0, 9), max_size=3),
    pa.struct([("a", pa.int64())]): st.fixed_dictionaries({"a": st.integers(0, 9)}),
    pa.dictionary(pa.int8(), pa.string()): st.sampled_from(["x", "y", ""]),
}
pictures = st.one_of(
    st.none(),
    st.lists(st.integers(0, 255), min_size=63, max_size=65),
    st.just([7] * 64),
    st.just([300] * 64),
)


def column(data, kind, values, count):
    found = data.draw(st.lists(st.none() | values, min_size=count, max_size=count))
    return pa.array(found, kind)


def accounted(path, columns, batch_rows):
    """Return the scored and the rejected rows, after checking that each occurs once."""
    source = ParquetStream(str(path), [File(path, path.name)], StreamOptions(SHAPE, columns))
    good, bad = [], []
    for chunk in source.chunks():
        for each in source.read(chunk, batch_rows):
            if isinstance(each, RejectedRows):
                assert each.row_group == chunk.group
                bad += range(each.row, each.row + each.rows)
            else:
                lengths = {len(part) for part in each if part is not None}
                assert lengths == {len(each.images)}
                good += each.example_ids.tolist()
    total = pq.read_metadata(path).num_rows
    assert len(good) + len(bad) == total
    assert len(set(bad)) == len(bad)
    assert set(bad) <= set(range(total))
    return good, bad


@given(st.data())
@settings(deadline=None, max_examples=60)
def test_every_row_is_counted_once(data):
    count = data.draw(st.integers(1, 12))
    label, other = data.draw(st.sampled_from(list(labels))), data.draw(st.sampled_from(list(kept)))
    table = pa.table(
        {
            "image": pa.array(
                data.draw(st.lists(pictures, min_size=count, max_size=count)),
                pa.list_(pa.int16()),
            ),
            "id": column(data, pa.uint64(), ids, count),
            "label": column(data, label, labels[label], count),
            "more": column(data, other, kept[other], count),
        }
    )
    group, batch = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 12))
    with scratch() as folder:
        path = folder / "in.parquet"
        pq.write_table(table, path, row_group_size=group)
        good, bad = accounted(path, Columns("id", ("more",)), batch)
    found = table["id"].to_pylist()
    for row in set(range(count)) - set(bad):
        assert found[row] is not None
        assert found[row] < FIRST_TOO_LARGE
    assert good == [each for row, each in enumerate(found) if row not in set(bad)]


@given(
    st.sets(st.integers(0, 49)),
    st.sampled_from(
        [ValueError, pa.ArrowInvalid, KeyError, OverflowError, AssertionError, OSError]
    ),
    st.sampled_from(["_pixels", "_ids", "_labels"]),
)
@settings(deadline=None, max_examples=30)
def test_error_rejects_only_its_rows(broken, error, step):
    with scratch() as folder, pytest.MonkeyPatch.context() as patch:
        path = parquet(folder / "in.parquet", images(50), group=20, key=np.arange(50))
        real = getattr(ParquetStream, step)

        def breaking(source, found, *others):
            start = found["key"][0].as_py()
            if broken & set(range(start, start + len(found))):
                raise error("in a batch")
            return real(source, found, *others)

        patch.setattr(ParquetStream, step, breaking)
        good, bad = accounted(path, Columns("key"), 16)
    assert set(bad) == broken
    assert good == [row for row in range(50) if row not in broken]


@pytest.mark.parametrize("ending", [[], ["--on-error", "quarantine"]])
def test_id_above_int64_is_refused(capfd, store, tmp_path, ending):
    found = np.arange(ROWS, dtype=np.uint64) + np.uint64(2**63 - 200)
    path = parquet(tmp_path / "in.parquet", id=found)
    before = tree_digest(store.root)
    given = ["score", "--input", path, "--id", "id", *ending, "--store", store.root, "--json"]
    outcome = call(capfd, *given)
    if not ending:
        assert outcome.code == 2
        assert "column 'id' contains 922337203685477" in outcome.err
        assert "above int64" not in outcome.err
        assert "expected an int64 of at most 9223372036854775807" in outcome.err
        assert len(outcome.err.splitlines()) == 1
        assert tree_digest(store.root) == before
        return
    assert (outcome.code, outcome.json["rows"], outcome.json["quarantined"]) == (0, 200, ROWS - 200)
    table = store.read_table("scores", outcome.json["score_id"])
    assert table["example_id"].to_pylist() == found[:200].tolist()
    assert not list((store.root / "staging").iterdir())


def test_large_id_needs_no_statistics(store, tmp_path):
    path = tmp_path / "in.parquet"
    table = pq.read_table(parquet(path)).append_column(
        "id", pa.array([1] * (ROWS - 1) + [2**63], pa.uint64())
    )
    pq.write_table(table, path, write_statistics=False)
    before = tree_digest(store.root)
    with pytest.raises(
        DataError, match=rf"row {ROWS - 1}: column 'id' contains 9223372036854775808"
    ):
        scored(store, input=path, id_column="id")
    assert tree_digest(store.root) == before


def test_label_above_int64_is_unknown(store, tmp_path):
    path = tmp_path / "in.parquet"
    table = pq.read_table(parquet(path)).drop_columns("label")
    found = pa.array([2**64 - 1, 2] * (ROWS // 2), pa.uint64())
    pq.write_table(table.append_column("label", found), path)
    done = scored(store, input=path)
    assert done.rows == ROWS
    assert rows(store, done)["label"].to_pylist()[:2] == [None, 2]


def test_short_row_group_is_rejected(tmp_path, monkeypatch):
    path = parquet(tmp_path / "in.parquet", images(50), group=50)
    real = ParquetStream._batches

    def short(source, chunk, batch_rows):
        yield from list(real(source, chunk, batch_rows))[:-1]

    monkeypatch.setattr(ParquetStream, "_batches", short)
    good, bad = accounted(path, Columns(), 20)
    assert (len(good), bad) == (40, list(range(40, 50)))


def test_long_row_group_is_cut(tmp_path, monkeypatch):
    path = parquet(tmp_path / "in.parquet", images(50), group=50)
    real = ParquetStream._batches

    def long(source, chunk, batch_rows):
        batches = list(real(source, chunk, batch_rows))
        yield from [*batches, batches[0]]

    monkeypatch.setattr(ParquetStream, "_batches", long)
    assert len(accounted(path, Columns(), 20)[0]) == 50


def test_kept_decimal_is_copied(store, tmp_path):
    path = parquet(tmp_path / "in.parquet", price=[decimal.Decimal("1.25")] * ROWS)
    assert set(rows(store, scored(store, input=path, keep=["price"]))["price"].to_pylist()) == {
        decimal.Decimal("1.25")
    }
