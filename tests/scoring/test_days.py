"""Backfills: each day is scored once, missing days are named, repeated calls resume."""

import os
import signal
from datetime import date

import pytest
from command_line import call, tree_digest
from hypothesis import given, settings
from hypothesis import strategies as st
from score_data import images, parquet

import nnbuild
from nnbuild.errors import ConfigError, Interrupted
from nnbuild.scoring import ScoreConfig, backfill
from nnbuild.scoring.days import partitions

FIRST, LAST = date(2026, 11, 1), date(2026, 11, 5)
ROWS = 90


@pytest.fixture
def days(tmp_path):
    """Inputs of four days of five; the dated address."""
    for day in (1, 2, 3, 5):
        folder = tmp_path / "in" / f"date=2026-11-0{day}"
        folder.mkdir(parents=True)
        parquet(folder / "part.parquet", images(ROWS) // day)
    (
        tmp_path / "in" / "date=2026-11-04"
    ).mkdir()  # a day without files is as missing as one without a folder
    return f"{tmp_path}/in/date={{date}}/"


def config(address, **more):
    return ScoreConfig.model_validate(
        {"input": address, "batch_size": 32, "shard_rows": 50, **more}
    )


def statuses(parts):
    return [each.status for each in parts]


def test_backfill_scores_each_day_once(store, days):
    told = []
    parts = backfill(config(days), FIRST, LAST, store.root, on_day_done=told.append)
    assert statuses(parts) == ["scored", "scored", "scored", "missing", "scored"]
    assert [each.day.day for each in parts] == [1, 2, 3, 4, 5]
    assert sorted(each.day for each in told) == [
        each.day for each in parts if each.status == "scored"
    ]
    jobs = store.read_table("score_jobs").to_pylist()
    assert {each["input"] for each in jobs} == {
        each.input for each in parts if each.status == "scored"
    }
    assert {each["rows"] for each in jobs} == {ROWS}
    for each in parts:
        if each.score_id:
            assert store.read_table("scores", each.score_id).num_rows == each.rows == ROWS
    again = backfill(config(days), FIRST, LAST, store.root)
    assert statuses(again) == ["skipped", "skipped", "skipped", "missing", "skipped"]
    assert [each.score_id for each in again] == [each.score_id for each in parts]
    assert len(store.score_ids()) == 4


def test_changed_day_is_scored_again(store, days, tmp_path):
    backfill(config(days), FIRST, date(2026, 11, 2), store.root)
    parquet(tmp_path / "in" / "date=2026-11-02" / "part.parquet", images(ROWS + 1))
    parts = backfill(
        config(days, batch_size=16), FIRST, date(2026, 11, 3), store.root, max_parallel=1
    )
    assert statuses(parts) == ["skipped", "scored", "scored"]
    assert parts[1].rows == ROWS + 1
    assert statuses(backfill(config(days, calibrated=True), FIRST, FIRST, store.root)) == ["scored"]


def test_failed_day_stops_no_other_day(capfd, store, days, tmp_path):
    (tmp_path / "in" / "date=2026-11-02" / "part.parquet").write_bytes(b"PAR1 no more")
    arguments = (
        "score",
        "--input",
        days,
        "--from",
        "2026-11-01",
        "--to",
        "2026-11-05",
        "--store",
        store.root,
    )
    told = call(capfd, *arguments, "--json")
    assert told.code == 1
    assert {name: told.json[name] for name in ("scored", "skipped", "missing", "failed")} == {
        "scored": 3,
        "skipped": 0,
        "missing": 1,
        "failed": 1,
    }
    assert "date=2026-11-02" in told.json["days"][1]["remark"]
    assert "1 days have no input" in told.err
    assert "date=2026-11-04" in told.err
    parquet(tmp_path / "in" / "date=2026-11-02" / "part.parquet")
    shown = call(capfd, *arguments)
    assert shown.code == 0
    assert [line.split()[1] for line in shown.out.splitlines()[1:6]] == [
        "skipped",
        "scored",
        "skipped",
        "missing",
        "skipped",
    ]


def test_signal_stops_a_resumable_backfill(store, days):
    killed = []

    def told(_):
        if not killed:
            killed.append(os.kill(os.getpid(), signal.SIGTERM))

    with pytest.raises(Interrupted, match="repeat the command to resume") as stopped:
        backfill(config(days), FIRST, LAST, store.root, max_parallel=1, on_day_done=told)
    assert stopped.value.exit_code == 143
    done = len(store.score_ids())
    assert 1 <= done < 4
    parts = backfill(config(days), FIRST, LAST, store.root, max_parallel=1)
    assert statuses(parts).count("skipped") == done
    assert len(store.score_ids()) == 4
    assert not list((store.root / "staging").glob("score-*"))


def test_rows_go_to_a_folder_a_day(store, days, tmp_path):
    parts = backfill(
        config(days, output=f"{tmp_path}/out/{{date:%Y/%m/%d}}"),
        FIRST,
        date(2026, 11, 2),
        store.root,
    )
    assert statuses(parts) == ["scored", "scored"]
    assert (tmp_path / "out" / "2026" / "11" / "02" / "_manifest.json").exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--from", "2026-11-05", "--to", "2026-11-01"], "ends before it begins"),
        (["--from", "2026-11-01"], "give --to too"),
        (["--to", "2026-11-01"], "give --from too"),
        (["--from", "yesterday", "--to", "2026-11-01"], "expected e.g. 2026-11-01"),
        (["--from", "2026-02-30", "--to", "2026-11-01"], "'2026-02-30' is not a valid day"),
        (["--from", "1026-01-01", "--to", "2026-11-01"], "expected at most 3660"),
        (["--from", "2026-11-01", "--to", "2026-11-02", "--max-parallel", "0"], "expected 1 to 64"),
        (
            ["--from", "2026-11-01", "--to", "2026-11-02", "--input", "same.parquet"],
            "put {date} in place of the day",
        ),
        (
            ["--from", "2026-11-01", "--to", "2026-11-02", "--output", "same"],
            "put {date} in place of the day",
        ),
        (
            ["--from", "2026-11-01", "--to", "2026-11-02", "--resume", "x"],
            "--resume applies to a single job",
        ),
        (["--from", "2026-11-01", "--to", "2026-11-02", "--runner", "dask"], "remove --runner"),
        (["--from", "2025-01-01", "--to", "2025-01-02"], "nothing to score"),
        (["--from", "2026-11-01", "--to", "2026-11-02", "--model", "nobody"], "neither champion"),
        ([], "give --from and --to"),
    ],
)
def test_invalid_range_is_one_line(capfd, store, days, options, says):
    before = tree_digest(store.root)
    told = call(
        capfd,
        "score",
        *([] if "--input" in options else ["--input", days]),
        *options,
        "--store",
        store.root,
    )
    assert told.code == 2, told
    assert says in told.err
    assert told.err.count("\n") == 1
    assert tree_digest(store.root) == before


@given(st.dates(date(1990, 1, 1), date(2090, 1, 1)), st.integers(0, 400))
@settings(deadline=None, max_examples=30)
def test_a_range_has_every_day_once(first, more):
    last = date.fromordinal(first.toordinal() + more)
    found = partitions(ScoreConfig(input="in/{date:%Y%m%d}/x-{date}.parquet"), first, last)
    assert len({each.config.input for each in found}) == len(found) == more + 1
    assert found[0].config.input == f"in/{first:%Y%m%d}/x-{first.isoformat()}.parquet"
    assert found[-1].day == last
    with pytest.raises(ConfigError):
        partitions(ScoreConfig(input="in/{date}"), last, date.fromordinal(first.toordinal() - 1))


def test_it_is_in_the_library(store, days):
    assert nnbuild.backfill is backfill
    with pytest.raises(ConfigError):
        nnbuild.backfill(config("x.parquet"), FIRST, LAST, store.root)
