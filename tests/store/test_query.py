"""Test `nnbuild sql`: answers in every format are exact, limited, and can be stopped."""

import csv
import io
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import threading
from datetime import date
from decimal import Decimal

import pandas as pd
import pyarrow.parquet as pq
import pytest
from command_line import call

from flows.cli import analytics, json_values
from nnbuild.errors import ConfigError
from nnbuild.runtime import cgroups
from nnbuild.store import Store
from nnbuild.store import query as queries
from nnbuild.store.query import Answer, Limits, distinct, query

ENDLESS = {
    "cross join": "select count(*) from range(10000000000) a, range(10000000000) b",
    "recursion": "with recursive t as (select 1 n union all select n + 1 from t) "
    "select max(n) from t",
    "stream": "select count(i) from (select i from range(100000000000) t(i) where hash(i) % 7 > 0)",
}
PAIR = "select a.run_id, b.run_id, a.seed, b.seed from runs a, runs b where a.run_id < b.run_id"


@pytest.fixture
def ask(capfd, gated_runs):
    store, _ = gated_runs
    return lambda *arguments: call(capfd, "sql", *arguments, "--store", store.root)


def from_csv(text):
    return list(csv.reader(io.StringIO(text)))


def test_query_duplicate_columns_are_kept(ask, gated_runs, tmp_path):
    store, _ = gated_runs
    expected = sorted(tuple(row.values()) for row in query(store, PAIR.replace("b.", "b.", 1)
        .replace("a.run_id, b.run_id", "a.run_id as w, b.run_id as x")
        .replace("a.seed, b.seed", "a.seed as y, b.seed as z")).to_pylist())  # fmt: skip
    assert all(row[0] != row[1] for row in expected)
    header, *rows = from_csv(ask(PAIR, "--csv").out)
    assert header == ["run_id", "run_id_1", "seed", "seed_1"]
    assert sorted((a, b, int(c), int(d)) for a, b, c, d in rows) == expected
    told = ask(PAIR, "--json").json
    assert told["columns"] == header
    assert sorted(tuple(row.values()) for row in told["rows"]) == expected
    assert ask(PAIR, "--parquet", tmp_path / "pair.parquet").code == 0
    frame = pd.read_parquet(tmp_path / "pair.parquet")
    assert sorted(frame.itertuples(index=False, name=None)) == expected
    shown = [line.split() for line in ask(PAIR).out.splitlines()]
    assert sorted((a, b, int(c), int(d)) for a, b, c, d in shown[1:]) == expected


def test_distinct_numbers_repeated_names():
    assert distinct(["a", "b", "a", "a"]) == ["a", "b", "a_1", "a_2"]
    assert distinct(["a", "a", "a_1"]) == ["a", "a_2", "a_1"]
    assert distinct(["a_1", "a", "a"]) == ["a_1", "a", "a_2"]


EXACT = {
    "sum(1)": "1",
    "sum(9007199254740993)": "9007199254740993",
    "170141183460469231731687303715884105727::hugeint": "170141183460469231731687303715884105727",
    "1.50::decimal(4, 2)": "1.50",
    "123456789012345678901234.5678::decimal(38, 4)": "123456789012345678901234.5678",
    "[1, null, 3]": "[1, null, 3]",
    "{'a': 1, 'b': [1.5, null]}": '{"a": 1, "b": [1.5, null]}',
    "map {'x': [date '2026-11-26'], 'y': []}": '{"x": ["2026-11-26"], "y": []}',
    "map {1: 2::hugeint}": '{"1": 2}',
    "array_value(1, 2)": "[1, 2]",
    "null": "null",
    "'nan'::double": "null",
    "['inf'::double, 1.0]": "[null, 1.0]",
    "true": "true",
    "timestamp '2026-11-26 03:00:00'": '"2026-11-26T03:00:00"',
    "timestamp '2026-11-26 03:00:00.25'": '"2026-11-26T03:00:00.250000"',
    "timestamp_ns '2026-11-26 03:00:00.123456789'": '"2026-11-26T03:00:00.123456789"',
    "timestamptz '2026-11-26 03:00:00+02'": '"2026-11-26T01:00:00+00:00"',
    "timestamp 'infinity'": '"infinity"',
    "timestamp '290000-01-01 00:00:00'": '"+290000-01-01T00:00:00"',
    "date '294247-01-10'": '"+294247-01-10"',
    "date '-infinity'": '"-infinity"',
    "date '0044-03-15 (BC)'": '"-0043-03-15"',
    "[date '294247-01-10', null]": '["+294247-01-10", null]',
    "time '24:00:00'": '"24:00:00"',
    "time '03:04:05.5'": '"03:04:05.500000"',
    "interval '14 months 3 days 1.5 seconds'": '"P14M3DT1.5S"',
    "interval '0 days'": '"PT0S"',
    "'\\xAB\\x00'::blob": '"ab00"',
    "'101'::bit": '"101"',
    "timetz '10:00:00+02'": '"10:00:00+02"',
    "['101'::bit, null]": '["101", null]',
    "{'b': 340282366920938463463374607431768211455::uhugeint}": (
        '{"b": "340282366920938463463374607431768211455"}'
    ),
    "{'size': {'c\"d': [timetz '12:00:00+02']}, 'e': 1.5, 'f': 'x'::enum('x')}": (
        '{"size": {"c\\"d": ["12:00:00+02"]}, "e": 1.5, "f": "x"}'
    ),
    "{'a': 123456789012345678901234567890::bignum}": '{"a": "123456789012345678901234567890"}',
    "map {'a': '101'::bit}": '{"a": "101"}',
    "map {'101'::bit: 1}": '{"101": 1}',
    "array_value('101'::bit, '11'::bit)": '["101", "11"]',
    "row('101'::bit, 2)": '"(101, 2)"',
    "row('a', 2)": '{"element1": "a", "element2": 2}',
    "{'a': union_value(n := '101'::bit)}": '{"a": "101"}',
    "1::variant": '"1"',
    "{'a': [1, 'x'::variant]}": '{"a": ["1", "x"]}',
    "'a'::enum('a', 'b')": '"a"',
    "union_value(n := 2)": '"2"',
    "chr(10) || 'ü\"'": '"\\n\\u00fc\\""',
}


@pytest.mark.parametrize(("expression", "expected"), EXACT.items())
def test_query_values_are_exact(gated_runs, expression, expected):
    store, _ = gated_runs
    with Answer(store, f"select {expression} as x") as answer:
        ((value,),) = [row for batch in answer for row in json_values.rows(batch)]
    assert json_values.dumps(json_values.plain(value)) == expected
    read = json.loads(expected, parse_float=Decimal)
    text = analytics._csv_value(value)
    if isinstance(read, (list, dict)):
        assert text == expected
    elif read is not None and not isinstance(read, bool):
        assert str(text) == str(read)


def test_query_json_is_valid_line(ask):
    told = ask(f"select {', '.join(EXACT)}", "--json")
    assert len(told.out.splitlines()) == 1
    assert len(told.json["rows"][0]) == len(EXACT)
    assert ask("select 1 where false", "--json").json == {"columns": ["1"], "rows": []}
    assert ask("select 1 as a where false", "--csv").out.split() == ["a"]
    assert ask("select 1 where false").out.strip() == "no rows"


def test_parquet_small_sums_are_int64(ask, tmp_path):
    path = tmp_path / "sums.parquet"
    statement = (
        "select sum(i) as small, sum(i::hugeint * 1000000000000000000) as large, "
        "i % 3 as g from range(100000) t(i) group by g"
    )
    assert ask(statement, "--parquet", path).code == 0
    table = pq.read_table(path)
    assert [str(field.type) for field in table.schema] == ["int64", "decimal128(38, 0)", "int64"]
    for row in table.to_pylist():
        assert row["large"] == row["small"] * 10**18
    assert [each.name for each in tmp_path.iterdir()] == ["sums.parquet"]


@pytest.mark.parametrize("value", ["interval 1 day", "[interval 1 day]", "union_value(n := [1])"])
def test_parquet_unsupported_type_is_refused(ask, tmp_path, value):
    outcome = ask(f"select 1 as a, {value} as b", "--parquet", tmp_path / "x.parquet")
    if value.startswith("union"):
        assert outcome.code == 0  # as text
        return
    assert (outcome.code, outcome.out, len(outcome.err.splitlines())) == (2, "", 1)
    assert "'b'" in outcome.err
    assert "varchar" in outcome.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [("sql", "select 1", "--parquet"), ("trends", "--html")])
def test_output_dash_is_refused(capfd, gated_runs, tmp_path, monkeypatch, arguments):
    store, _ = gated_runs
    monkeypatch.chdir(tmp_path)
    outcome = call(capfd, *arguments, "-", "--store", store.root)
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err == (
        "nnbuild: - is not the name of an output file; for standard output give /dev/stdout "
        f"(option {arguments[-1]})\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_query_parent_folders_are_no_columns(capfd, gated_runs, tmp_path):
    store, runs = gated_runs
    above = tmp_path / "env=prod" / "run_id=7" / "score_id=8" / "epoch=9"
    root = shutil.copytree(store.root, above / "store")
    found = call(capfd, "sql", "select run_id from runs order by 1", "--store", root, "--json").json
    assert [row["run_id"] for row in found["rows"]] == sorted(runs)
    described = call(capfd, "sql", "describe history", "--store", root, "--json").json["rows"]
    names = [row["column_name"] for row in described]
    assert names == Store(root).read_table("history").column_names
    assert query(Store(root), "select max(epoch) as e from history").to_pylist() == [{"e": 30}]


def test_printed_table_reports_omitted_rows(ask):
    outcome = ask("select * from range(25)", "--limit", 3)
    assert outcome.out.split() == ["range", "0", "1", "2"]
    assert "3 rows are shown, 22 left out" in outcome.err
    assert ask("select * from range(3)", "--limit", 3).err == ""


def test_printed_table_any_length_ends(ask, monkeypatch):
    monkeypatch.setattr(analytics, "_SECONDS_TO_COUNT", 0.05)
    outcome = ask("select * from range(1000000000000)", "--limit", 2)
    assert outcome.code == 0
    assert "at least" in outcome.err
    assert len(ask("select repeat('x', 5000000)").out) < 30_000


@pytest.mark.parametrize(
    ("statement", "options", "message"),
    [
        (ENDLESS["cross join"], ("--timeout", 0.3), "0.3 seconds"),
        (ENDLESS["stream"], ("--timeout", 0.3), "0.3 seconds"),
        ("select string_agg(i::text, ',') from range(100000000) t(i)", (), "GiB of memory"),
        ("select i from range(10000000000) t(i) order by random()", (), "GiB of memory"),
        ("select repeat('x', 4000000000)", (), "GiB of memory"),
        ("select list(i) from range(1000000000) t(i)", ("--csv",), "GiB of memory"),
        ("select repeat('x', 10000000000)", (), "4294967295"),
        ("select 1", ("--timeout", 0), "above 0"),
        ("select 1", ("--timeout", "nan"), "above 0"),
        ("select 1", ("--memory", 1.5), "fraction"),
        ("select 1", ("--memory", "nan"), "fraction"),
    ],
)
def test_query_over_limit_is_one_line(ask, monkeypatch, statement, options, message):
    if "memory" in message:
        monkeypatch.setattr(queries, "total_memory", lambda: 2**28)
    outcome = ask(statement, *options)
    assert (outcome.code, outcome.out, len(outcome.err.splitlines())) == (2, "", 1)
    assert message in outcome.err


def test_timeout_excludes_reader_time(gated_runs):
    store, _ = gated_runs
    pause = threading.Event()
    with Answer(store, "select * from range(10000)", Limits(timeout=2)) as answer:
        rows = 0
        for batch in answer:
            pause.wait(0.5)
            rows += batch.num_rows
    assert rows == 10_000


@pytest.fixture
def interrupted(monkeypatch):
    """Send this process a signal as soon as a query computes."""

    def interrupt(number):
        begun = threading.Event()
        open_query = queries._with_arrow_types
        monkeypatch.setattr(
            queries, "_with_arrow_types", lambda it: (begun.set(), open_query(it))[1]
        )

        def send():
            begun.wait(60)
            threading.Event().wait(0.3)  # DuckDB begins after that
            os.kill(os.getpid(), number)

        threading.Thread(target=send, daemon=True).start()

    # A shell that runs the tests in its background has Ctrl-C ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield interrupt
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("statement", ENDLESS.values(), ids=ENDLESS)
def test_query_signal_stops_it(ask, interrupted, tmp_path, number, statement):
    interrupted(number)
    outcome = ask(statement, "--parquet", tmp_path / "x.parquet")
    assert (outcome.code, outcome.out) == (128 + number, "")
    assert outcome.err == f"nnbuild: stopped by signal {number:d}\n"
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_query_stuck_ends_with_process(ask, interrupted, monkeypatch):
    codes = []

    def leave(code):
        codes.append(code)
        raise SystemExit(code)

    monkeypatch.setattr(analytics.os, "_exit", leave)
    monkeypatch.setattr(queries, "_STOP_SECONDS", 0.05)
    interrupted(signal.SIGINT)
    with pytest.raises(SystemExit):
        ask("select list_sort(range(8000000))[1]")
    assert codes == [130]


IN_TERMINAL = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)  # ignored in what a shell starts with `&`
os.login_tty(int(sys.argv[1]))  # a session of its own, whose foreground group Ctrl-C reaches
os.execv(sys.executable, [sys.executable, "-m", "flows.cli.main", *sys.argv[2:]])
"""


def test_query_ctrl_c_leaves_nothing(gated_runs, tmp_path):
    store, _ = gated_runs
    controller, terminal = pty.openpty()
    arguments = ["sql", "select * from range(100000000000)", "--csv", "--store", str(store.root)]
    with subprocess.Popen(
        [sys.executable, "-c", IN_TERMINAL, str(terminal), *arguments],
        pass_fds=[terminal],
        env=os.environ | {"TMPDIR": str(tmp_path)},
    ) as process:
        os.close(terminal)
        tail = os.read(controller, 5)
        os.write(controller, b"\x03")
        while True:
            try:
                tail = (tail + os.read(controller, 65536))[-1000:]
            except OSError:  # nobody has the terminal open any more
                break
        assert process.wait(30) == 130
    os.close(controller)
    assert tail.endswith(b"nnbuild: stopped by signal 2\r\n")
    assert b"Traceback" not in tail
    assert list(tmp_path.iterdir()) == []


def test_json_dates_are_iso(gated_runs, capfd):
    store, _ = gated_runs
    for row in call(capfd, "runs", "--json", "--store", store.root).json["runs"]:
        assert "T" in row["started_at"]
    assert json_values.plain({"at": date(2026, 1, 2), "n": float("nan"), "b": b"\xff"}) == {
        "at": "2026-01-02",
        "n": None,
        "b": "ff",
    }


def test_memory_growth_limited_in_block():
    with cgroups.memory_growth_limited(2**26), pytest.raises(MemoryError):
        bytearray(2**31)
    assert len(bytearray(2**28)) == 2**28


def test_pivot_needs_the_values(gated_runs):
    store, _ = gated_runs
    with pytest.raises(ConfigError, match=r"PIVOT without its values.*ON column IN"):
        query(store, "pivot runs on model using count(*)")
    pivoted = query(store, "pivot runs on model in ('lab') using count(*) group by status")
    assert pivoted.to_pylist() == [{"status": "succeeded", "lab": 3}]


def test_limits_invalid_are_refused():
    assert Limits(memory=1).memory_bytes == cgroups.total_memory()
    for wrong in ({"memory": 0}, {"memory": -1}, {"timeout": -1}):
        with pytest.raises(ConfigError):
            Limits(**wrong)
