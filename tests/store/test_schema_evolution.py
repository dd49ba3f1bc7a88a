"""Test columns carried through to `scores`: their names, and types that change between jobs."""

from datetime import UTC, date, datetime
from decimal import Decimal
from itertools import combinations
from zoneinfo import ZoneInfo

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command_line import call
from data_files import scratch
from hypothesis import given, settings
from hypothesis import strategies as st
from score_data import ROWS, parquet, scored

import nnbuild
from nnbuild.errors import ConfigError, StoreError
from nnbuild.scoring import selection
from nnbuild.scoring.selection import require_distinct_names
from nnbuild.store.query import query
from nnbuild.store.schema_evolution import File, common_type, fits, unified

AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
STRUCT = pa.struct([("a", pa.float64()), ("b", pa.string())])
COMMON = {
    (pa.int64(), pa.float64()): pa.float64(),
    (pa.int32(), pa.int64()): pa.int64(),
    (pa.uint8(), pa.int8()): pa.int16(),
    (pa.uint32(), pa.int64()): pa.int64(),
    (pa.uint64(), pa.int64()): pa.decimal128(20, 0),
    (pa.int8(), pa.float32()): pa.float64(),
    (pa.float16(), pa.float32()): pa.float64(),
    (pa.null(), pa.bool_()): pa.bool_(),
    (pa.decimal128(5, 2), pa.decimal128(6, 4)): pa.decimal128(7, 4),
    (pa.int32(), pa.decimal128(5, 2)): pa.decimal128(12, 2),
    (pa.float64(), pa.decimal128(15, 2)): pa.float64(),
    (pa.float64(), pa.decimal128(16, 2)): None,
    (pa.decimal128(38, 0), pa.decimal128(38, 10)): None,
    (pa.string(), pa.large_string()): pa.string(),
    (pa.dictionary(pa.int8(), pa.string()), pa.string_view()): pa.string(),
    (pa.dictionary(pa.int8(), pa.string()), pa.dictionary(pa.int32(), pa.string())): pa.string(),
    (pa.binary(3), pa.large_binary()): pa.binary(),
    (pa.string(), pa.binary()): None,
    (pa.string(), pa.int64()): None,
    (pa.bool_(), pa.int8()): None,
    (pa.timestamp("s"), pa.timestamp("us")): pa.timestamp("us"),
    (pa.timestamp("us", "UTC"), pa.timestamp("us", "Asia/Tokyo")): pa.timestamp("us", "UTC"),
    (pa.timestamp("us", "UTC"), pa.timestamp("us")): None,
    (pa.date32(), pa.timestamp("us")): pa.timestamp("us"),
    (pa.date32(), pa.date64()): pa.date32(),
    (pa.date32(), pa.timestamp("us", "UTC")): None,
    (pa.time32("s"), pa.time64("ns")): pa.time64("ns"),
    (pa.time32("s"), pa.time32("ms")): pa.time64("us"),
    (pa.duration("s"), pa.duration("ms")): pa.duration("ms"),
    (pa.list_(pa.int64()), pa.large_list(pa.float64())): pa.list_(pa.float64()),
    (pa.list_(pa.int64()), pa.list_(pa.string())): None,
    (pa.list_(pa.int64()), pa.int64()): None,
    (pa.struct([("a", pa.int64())]), STRUCT): STRUCT,
    (pa.struct([("a", pa.string())]), STRUCT): None,
}


@pytest.mark.parametrize(("pair", "expected"), COMMON.items(), ids=str)
def test_common_type_of_two_types(pair, expected):
    assert common_type(*pair) == common_type(*reversed(pair)) == expected


def test_common_type_is_idempotent():
    kinds = {kind for pair in COMMON for kind in pair}
    for one, other in combinations(sorted(kinds, key=str), 2):
        if (common := common_type(one, other)) is not None:
            assert common_type(one, common) == common_type(common, other) == common


def file_of(folder, column):
    path = folder / "column.parquet"
    pq.write_table(pa.table({"x": column}), path)
    with pq.ParquetFile(path) as file:
        return File(file.schema_arrow, file.metadata)


INTEGERS = st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(-9, 9) | st.none(), max_size=4)


@settings(max_examples=60, deadline=None)
@given(INTEGERS, st.sampled_from([pa.float64(), pa.float32(), pa.decimal128(15, 2), pa.uint64()]))
def test_unified_integers_are_exact(values, other):
    column = pa.array(values, pa.int64())
    with scratch() as folder:
        first, second = file_of(folder, column), file_of(folder, pa.nulls(1, other))
    kind = unified([first, second])["x"]
    if kind is None:
        assert any(abs(value or 0) > 2**53 for value in values)
        return
    assert fits(first, "x", kind)
    assert [None if each is None else int(each) for each in column.cast(kind).to_pylist()] == values


def test_unified_far_times_are_exact(tmp_path):
    nanoseconds = file_of(tmp_path, pa.array([1], pa.timestamp("ns")))
    near = file_of(tmp_path, pa.array([datetime(2026, 1, 1)]))  # noqa: DTZ001
    far = file_of(tmp_path, pa.array([datetime(2500, 1, 1)]))  # noqa: DTZ001
    assert unified([near, nanoseconds])["x"] == pa.timestamp("ns")
    assert unified([far, nanoseconds])["x"] is None


def test_unified_nested_integers_are_exact(tmp_path):
    floats = file_of(tmp_path, pa.array([[1.5]]))
    assert unified([file_of(tmp_path, pa.array([[2]])), floats])["x"] == pa.list_(pa.float64())
    assert unified([file_of(tmp_path, pa.array([[2**60]])), floats])["x"] is None


def job(store, tmp_path, **columns):
    path = parquet(tmp_path / "day.parquet", **columns)
    return scored(store, input=path, keep=tuple(columns)).score_id


DAYS = {
    "a missing value": (pa.array([7] * ROWS), pa.array([1.5] * ROWS)),
    "only missing values": (pa.nulls(ROWS), pa.array(["a"] * ROWS)),
    "wider": (pa.array([7] * ROWS, pa.int8()), pa.array([70_000] * ROWS, pa.int32())),
    "unsigned": (pa.array([2**64 - 1] * ROWS, pa.uint64()), pa.array([-1] * ROWS)),
    "money": (pa.array([Decimal("1.50")] * ROWS), pa.array([12] * ROWS)),
    "dictionary": (pa.array(["a"] * ROWS).dictionary_encode(), pa.array(["b"] * ROWS)),
    "long text": (pa.array(["a"] * ROWS, pa.large_string()), pa.array(["b"] * ROWS)),
    "zones": (
        pa.array([AT] * ROWS, pa.timestamp("ms", "UTC")),
        pa.array([AT.astimezone(ZoneInfo("Asia/Tokyo"))] * ROWS),
    ),
    "dates": (pa.array([date(2026, 1, 1)] * ROWS), pa.array([AT.replace(tzinfo=None)] * ROWS)),
    "lists": (pa.array([[1]] * ROWS), pa.array([[1.5, None]] * ROWS)),
    "structs": (pa.array([{"a": 1}] * ROWS), pa.array([{"a": 1.5, "b": "x"}] * ROWS)),
}


@pytest.mark.parametrize("days", DAYS.values(), ids=DAYS)
def test_scores_wider_column_is_one_column(store, tmp_path, days):
    ids = [job(store, tmp_path, cust=values) for values in days]
    table = nnbuild.read_table(store, "scores", columns=["cust"])
    kind = common_type(*(values.type for values in days))
    assert table["cust"].type == kind
    expected = [each for values in days for each in values.cast(kind).to_pylist()]
    assert table["cust"].to_pylist() == expected
    told = query(store, "select score_id, cust from scores order by score_id, example_id")
    assert told["score_id"].to_pylist() == [ids[0]] * ROWS + [ids[1]] * ROWS
    assert [str(each) for each in told["cust"].to_pylist()] == [str(each) for each in expected]
    assert store.read_table("scores", ids[0])["cust"].type in (
        days[0].type,
        common_type(*[days[0].type] * 2),
    )


UNLIKE = {
    "text": pa.array(["a"] * ROWS),
    "true": pa.array([True] * ROWS),
    "list": pa.array([[1]] * ROWS),
    "struct": pa.array([{"a": 1}] * ROWS),
    "time": pa.array([AT] * ROWS),
    "bytes": pa.array([b"\xff"] * ROWS),
}


def test_scores_other_type_is_refused_early(store, tmp_path, capfd):
    first = job(store, tmp_path, cust=[1] * ROWS)
    for values in UNLIKE.values():
        path = parquet(tmp_path / "next.parquet", cust=values)
        arguments = ("score", "--input", path, "--keep", "cust", "--store", store.root)
        outcome = call(capfd, *arguments)
        assert (outcome.code, outcome.out, len(outcome.err.splitlines())) == (2, "", 1)
        for word in (
            "cust",
            str(values.type).split("<")[0],
            "int64",
            first,
            "rename",
            "set output",
        ):
            assert word in outcome.err
    assert list((store.root / "staging").glob("score-*")) == []
    apart = call(capfd, *arguments, "--output", tmp_path / "apart")
    assert apart.code == 0
    assert query(store, "select sum(cust)::int as s from scores").to_pylist() == [{"s": ROWS}]


def test_commit_inexact_values_are_refused(store, tmp_path):
    job(store, tmp_path, cust=[1.5] * ROWS)
    with pytest.raises(StoreError, match=r"cust.* int64 here and double .*discard"):
        job(store, tmp_path, cust=[2**53 + 1] * ROWS)
    assert len(store.score_ids()) == 1
    assert job(store, tmp_path, other=[2**60] * ROWS) in store.score_ids()
    assert store.read_table("scores")["cust"].type == pa.float64()


def test_read_mixed_types_as_text(store, tmp_path, monkeypatch):
    monkeypatch.setattr(selection, "_differences", lambda *_: iter(()))
    for values in (pa.array([2**60 + 1] * ROWS), pa.array([1.5] * ROWS), *UNLIKE.values()):
        job(store, tmp_path, cust=values, other=pa.array([1] * ROWS))
    told = query(store, "select score_id, cust, other from scores order by score_id, example_id")
    table = store.read_table("scores", columns=["score_id", "cust", "other"])
    assert told.to_pydict() == table.to_pydict()
    assert table["cust"].type == pa.string()
    assert table["other"].type == pa.int64()
    assert table["cust"].to_pylist()[:: ROWS] == [
        str(2**60 + 1), "1.5", "a", "true", "[1]", "{'a': 1}", "2026-01-02 03:04:05+00", "\\xFF",
    ]  # fmt: skip
    counted = query(store, "select count(*) as n from scores where cust = 'a'").to_pylist()
    assert counted == [{"n": ROWS}]


def test_query_unsupported_types_are_cast(store, tmp_path):
    job(
        store,
        tmp_path,
        half=pa.array([1.5] * ROWS, pa.float16()),
        big=pa.array([Decimal("1." + "1" * 50)] * ROWS),
    )
    found = query(store, "select half, big from scores limit 1").to_pylist()
    assert found == [{"half": 1.5, "big": "1." + "1" * 50}]


@pytest.mark.parametrize(
    ("kept", "output"),
    [
        (["score_id"], None),
        (["SCORE_ID"], None),
        (["Label"], None),
        (["PROB_0"], None),
        (["\u017fcore_id"], None),  # folds to s
        (["a", "A"], None),
        (["straße", "STRASSE"], None),
        (["é", "e\u0301"], None),
        (["TOP_1"], None),
        (["top_3_prob"], None),
        (["logit_0"], None),
        (["prob_10"], None),
        (["Day"], "out/day=2026-11-26"),
        (["day"], "s3://bucket/day=2026-11-26/out"),
    ],
)
def test_kept_ambiguous_names_are_refused(kept, output):
    with pytest.raises(ConfigError, match=f"cannot keep column {kept[-1]!r}: "):
        require_distinct_names(kept, ["label", "prob_0"], output)


def test_kept_other_names_are_accepted(store, tmp_path):
    require_distinct_names(
        ["labels", "day", "prob", "score", "a b", "Ä"], ["label", "prob_0"], "out"
    )
    require_distinct_names(["top_1", "logit_0"], ["label", "prob_0"], "out")
    require_distinct_names(["top", "top_1_name", "prob_x", "logit"], ["label"], None)
    job(store, tmp_path, **{"run_id": [1] * ROWS, "a.b": [1] * ROWS, 'q"': [1] * ROWS})
    found = query(store, 'select run_id, "a.b", "q""" from scores limit 1').to_pylist()
    assert found == [{"run_id": 1, "a.b": 1, 'q"': 1}]
    with pytest.raises(
        ConfigError, match=r"cannot keep column 'A\.B': scoring job .* has it as 'a.b'"
    ):
        job(store, tmp_path, **{"A.B": [1] * ROWS})


def test_command_reserved_names_are_refused(store, tmp_path, capfd):
    for name in ("score_id", "Label"):
        path = parquet(tmp_path / "in.parquet", **{name: ["x"] * ROWS})
        outcome = call(capfd, "score", "--input", path, "--keep", name, "--store", store.root)
        assert (outcome.code, outcome.out, len(outcome.err.splitlines())) == (2, "", 1)
        assert "rename" in outcome.err
    assert store.score_ids() == []


def test_read_kept_key_is_hidden(store, tmp_path):
    score_id = job(store, tmp_path, cust=[1] * ROWS)
    for path in (store.root / "tables" / "scores" / f"score_id={score_id}").iterdir():
        table = pq.ParquetFile(path).read()
        pq.write_table(table.append_column("score_id", pa.array(["x"] * len(table))), path)
    assert set(nnbuild.read_table(store, "scores")["score_id"].to_pylist()) == {score_id}
    assert query(store, "select distinct score_id from scores").to_pylist() == [
        {"score_id": score_id}
    ]


def test_read_columns_by_name(store, tmp_path):
    job(store, tmp_path, cust=[1] * ROWS)
    job(store, tmp_path, other=[1] * ROWS)
    found = store.read_table("scores", columns=["other", "cust"])
    assert found.column_names == ["score_id", "other", "cust"]
    assert found["other"].null_count == found["cust"].null_count == ROWS
    with pytest.raises(StoreError, match="no column 'othr'; did you mean 'other'"):
        store.read_table("scores", columns=["othr"])
