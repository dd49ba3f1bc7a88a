"""A backtest makes the runs of past nights in stores of its own."""

import json
import shutil

import pyarrow.parquet as pq
import pytest
from command_line import call, tree_digest
from labelled_days import LabelledDays, day, noon

from nnbuild.data.day_versions import DatedSource
from nnbuild.errors import ConfigError, DataError
from nnbuild.pipeline.backtest import SCHEMA, Night, backtest
from nnbuild.store import Store, champion


@pytest.fixture(scope="module")
def days(tmp_path_factory):
    days = LabelledDays(tmp_path_factory.mktemp("days"))
    for number in (0, 1, 3):
        days.write(number, rows=60)
    return days


@pytest.fixture(scope="module")
def walked(days, trained):
    """A store with a champion, its digest before, and the result of a backtest of two windows."""
    store = Store(shutil.copytree(trained, days.root / "store"))
    DatedSource(store, days.pattern).ingest(None, day(9), noon(9))
    before = tree_digest(store.root)
    seen = []
    result = backtest(
        days.config(), store, day(0), day(3), windows=[1, None], now=noon(9), on_night=seen.append
    )
    return store, before, result, seen


def test_store_is_not_touched(walked):
    store, before, _, _ = walked
    assert tree_digest(store.root) == before
    assert len(champion.history(store)) == 1


def test_every_night_has_a_row_for_each_window(walked):
    _, _, result, seen = walked
    assert [(each.window, each.day) for each in result.nights] == [
        (window, day(number)) for window in (1, None) for number in range(4)
    ]
    assert list(result.nights) == seen
    images = {(each.window, each.day): each.images for each in result.nights}
    assert [images[None, day(number)] for number in range(4)] == [60, 120, 0, 180]
    assert [images[1, day(number)] for number in range(4)] == [60, 60, 0, 60]
    for each in result.nights:
        assert (each.outcome == "skipped") == (each.day == day(2))
        if each.day == day(0):
            assert (each.outcome, each.champion_day) == ("promoted", day(0))


def test_champion_is_scored_on_the_next_day(walked):
    _, _, result, _ = walked
    nights = [each for each in result.nights if each.window == 1]
    assert [each.next_day for each in nights] == [day(1), day(3), day(3), None]
    assert {each.next_images for each in nights[:-1]} == {60}
    assert nights[0].next_correct == nights[0].run_correct  # the run is the champion
    assert nights[2].run_correct is None


def test_each_image_counts_once(walked):
    _, _, result, _ = walked
    assert {each.images for each in result.windows} == {120}
    for each in result.windows:
        own = {night.next_day: night for night in result.nights if night.window == each.window}
        correct = sum(night.next_correct for name, night in own.items() if name is not None)
        assert each.accuracy == pytest.approx(correct / 120)
    best, other = result.windows
    assert best.difference is None
    assert other.difference == pytest.approx(other.accuracy - best.accuracy)


def test_windows_are_compared_on_the_same_days(tmp_path):
    days = LabelledDays(tmp_path)
    for number in (0, 2, 3):
        days.write(number, rows=60)
    store, nights = Store(tmp_path / "store"), (day(1), day(2))
    result = backtest(days.config(), store, *nights, windows=[1, None], now=noon(9))
    following = [(each.window, each.next_day) for each in result.nights]
    assert following == [(1, None), (1, day(3)), (None, day(2)), (None, day(3))]
    for each in result.windows:  # window 1 had no champion for day 2
        (last,) = [
            night
            for night in result.nights
            if (night.window, night.next_day) == (each.window, day(3))
        ]
        assert (each.images, each.accuracy) == (60, last.next_correct / 60)


def test_correction_meanwhile_is_not_recorded_in_the_past(tmp_path):
    days = LabelledDays(tmp_path)
    for number in (0, 1):
        days.write(number, rows=40)
    store = Store(tmp_path / "store")
    store.create()
    source = DatedSource(store, days.pattern)
    source.ingest(None, day(5), noon(5))
    before = source.record()

    def correct(_night):
        days.write(0, rows=40, seed=9)

    backtest(days.config(), store, day(0), day(1), windows=[None], now=noon(5), on_night=correct)
    assert source.record() == before
    record, _ = source.ingest(None, day(6), noon(6))
    (newest, _) = record.newest(None, day(6))
    assert newest.version == 2
    assert newest.ingested_at == noon(6).isoformat()


def test_table_has_the_columns_of_a_night():
    assert list(SCHEMA.names) == list(Night.model_fields)


@pytest.mark.parametrize(
    ("first", "last", "windows"), [(3, 1, [1]), (0, 5000, [1]), (0, 1, []), (0, 1, [2, 2])]
)
def test_invalid_range_is_refused(days, tmp_path, first, last, windows):
    with pytest.raises(ConfigError):
        backtest(
            days.config(), Store(tmp_path), day(first), day(last), windows=windows, now=noon(9)
        )


def test_range_without_images_is_refused(days, tmp_path):
    with pytest.raises(DataError, match="no labelled images"):
        backtest(days.config(), Store(tmp_path), day(-9), day(-8), windows=[None, 1], now=noon(9))


def test_command_writes_table_and_page(days, tmp_path, capfd):
    arguments = ["--dataset", days.pattern, "--model", "lab", "--epochs", 1]
    arguments += ["--from", day(0), "--to", day(0), "--window", "1,all", "--store", tmp_path / "s"]
    files = ["--output", tmp_path / "nights.parquet", "--html", tmp_path / "page.html"]
    done = call(capfd, "backtest", *arguments, *files, "--json")
    assert done.code == 0, done.err
    assert len(done.json["nights"]) == 2
    table = pq.read_table(tmp_path / "nights.parquet")
    assert json.dumps(table["day"].to_pylist(), default=str) == json.dumps(
        [each["day"] for each in done.json["nights"]]
    )
    page = (tmp_path / "page.html").read_text()
    assert "All days:" in page
    assert "<svg" in page
    assert Store(tmp_path / "s").run_ids() == []
    refused = call(capfd, "backtest", *arguments, *files)
    assert refused.code == 2
    assert "exists already" in refused.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "digits", "--from", "2026-10-01", "--to", "2026-10-02"], "{date}"),
        (["--dataset", "D", "--from", "soon", "--to", "2026-10-02"], "(option --from)"),
        (["--dataset", "D", "--from", "2026-10-02", "--to", "2026-10-01"], "ends before"),
        (
            ["--dataset", "D", "--from", "2026-10-01", "--to", "2026-10-02", "--window", "1,x"],
            "(option --window)",
        ),
    ],
)
def test_bad_input_is_one_line(days, tmp_path, capfd, arguments, message):
    given = [days.pattern if each == "D" else each for each in arguments]
    refused = call(capfd, "backtest", *given, "--store", tmp_path / "store")
    assert (refused.code, refused.out, refused.err.count("\n")) == (2, "", 1)
    assert message in refused.err
