"""The alarm of the champion: raised once for each excursion, with the metrics, over all looks."""

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta

import numpy as np
import pytest
from kills import Killed
from label_data import TRUTH, job_with_ids, label_file, labelled
from score_data import ROWS

from nnbuild.errors import DataError
from nnbuild.live import LiveConfig, alarm, measure, watch
from nnbuild.live.performance import Arrivals
from nnbuild.store import champion

NOW = datetime(2026, 11, 26, 12, tzinfo=UTC)
CONFIG = LiveConfig(margin=0.01, rate=0.05)


def arrivals(accuracies, labelled=500):
    days = [date(2026, 11, 1) + timedelta(days=number) for number in range(len(accuracies))]
    hits = [round(labelled * each) for each in accuracies]
    return Arrivals(days, [labelled] * len(days), hits)


def test_alarm_of_a_drop_says_since_when():
    good = alarm.assess((9800, 10_000), arrivals([0.98] * 10), CONFIG)
    assert not good.dropped
    assert good.since is None
    bad = alarm.assess((9800, 10_000), arrivals([0.98] * 10 + [0.9] * 10), CONFIG)
    assert bad.dropped
    assert date(2026, 11, 11) <= bad.since <= date(2026, 11, 13)
    assert bad.floor < 0.98 - CONFIG.margin
    assert bad.threshold == 40


def test_reference_of_few_images_is_uncertain():
    """A drop below an accuracy that 45 images have measured is hard to prove."""
    found = alarm.assess((45, 45), arrivals([0.95] * 5), CONFIG)
    assert found.floor < 0.93
    assert not found.dropped


def test_looks_are_days_of_arrival():
    one_day = Arrivals([date(2026, 11, 1)] * 20, [100] * 20, [99] * 10 + [80] * 10)
    assert alarm.assess((9800, 10_000), one_day, CONFIG).dropped


@pytest.fixture
def scored_store(store, tmp_path):
    job_with_ids(store, tmp_path)
    return store


def wrong_labels(store):
    table = store.read_table("scores")
    return [(label + 1) % 3 for label in table["predicted"].to_pylist()]


def right_labels(store):
    return store.read_table("scores")["predicted"].to_pylist()


def test_alarm_is_raised_once_for_each_excursion(scored_store, tmp_path):
    store, ids = scored_store, list(range(ROWS))
    states = []
    for number, labels in enumerate((right_labels, wrong_labels, wrong_labels, right_labels)):
        times = [NOW + timedelta(days=number)] * ROWS
        path = tmp_path / f"{number}.parquet"
        label_file(path, id=ids, label=labels(store), observed_at=times)
        labelled(store, path, NOW + timedelta(days=number))
        looked = watch(CONFIG, store.root, now=NOW + timedelta(days=number))
        states.append([each.run_id for each in looked.raised])
    run_id = champion.require(store)
    assert states == [[], [run_id], [], []]
    events = store.read_table("live_alarms")
    assert events["event"].to_pylist() == ["dropped", "recovered"]
    label_file(tmp_path / "again.parquet", id=ids, label=wrong_labels(store))
    labelled(store, tmp_path / "again.parquet", NOW + timedelta(days=9))
    assert watch(CONFIG, store.root, now=NOW + timedelta(days=9)).raised
    assert store.read_table("live")["labelled"].to_pylist() == [ROWS]


def alarm_of(store):
    """Return an alarm that is to be raised for a run of a store."""
    run_id = store.run_ids()[0]
    return alarm.Alarm(run_id, True, None, 9, 0.5, 0.9, 0.8, 300.0, 200.0)  # noqa: FBT003


def test_alarm_survives_a_clock_that_is_set_back(store):
    dropped = alarm_of(store)
    recovered = replace(dropped, dropped=False)
    raised = [
        alarm.record(store, [found], now=NOW - timedelta(hours=number))
        for number, found in enumerate([dropped, recovered, recovered, dropped, dropped])
    ]
    assert raised == [[dropped], [], [], [dropped], []]
    table = store.read_table("live_alarms").sort_by("at")
    assert table["event"].to_pylist() == ["dropped", "recovered", "dropped"]


def test_alarm_of_a_process_that_dies_before_its_record_is_raised_again(store):
    dropped = alarm_of(store)
    reported = []

    def report_and_die(found):
        reported.append(found)
        raise Killed

    with pytest.raises(Killed):
        alarm.record(store, [dropped], now=NOW, on_raised=report_and_die)
    for _ in range(2):
        alarm.record(store, [dropped], now=NOW, on_raised=reported.append)
    assert reported == [dropped, dropped]
    assert store.read_table("live_alarms")["event"].to_pylist() == ["dropped"]


def test_corrected_label_keeps_the_day_of_the_first(scored_store, tmp_path):
    store = scored_store
    for number, label in enumerate((0, 1)):
        path = label_file(tmp_path / f"{number}.parquet", id=[3], label=[label])
        labelled(store, path, NOW + timedelta(days=number))
    found = measure(store).arrivals[champion.require(store)]
    assert (found.days, found.labelled) == ([NOW.date()], [1])


def test_drop_is_reported_by_event_and_webhook(
    prefect_server, scored_store, tmp_path, listener, monkeypatch
):
    from prefect import get_client
    from prefect_events import events_named

    from flows.scheduled import scheduled_label
    from nnbuild.live import LabelConfig

    url, received = listener
    monkeypatch.setenv("NNBUILD_WEBHOOK", url)
    store, run_id = scored_store, champion.require(scored_store)
    config = LabelConfig(input=str(tmp_path / "labels*.parquet"))
    assert scheduled_label(config, CONFIG, str(store.root)).files == 0
    label_file(tmp_path / "labels.parquet", id=list(range(ROWS)), label=wrong_labels(store))
    broken = tmp_path / "labels-broken.parquet"
    broken.write_bytes(b"PAR1")
    with pytest.raises(DataError, match=broken.name):  # which silences no alarm
        scheduled_label(config, CONFIG, str(store.root))
    broken.unlink()
    scheduled_label(config, CONFIG, str(store.root))
    with get_client(sync_client=True) as client:
        events = events_named(client, "nnbuild.live.dropped", run_id)
    assert [each["resource"]["nnbuild.store"] for each in events] == [str(store.root)]
    assert events[0]["payload"]["accuracy"] == 0
    messages = [each for each in received if each["event"] == "nnbuild.live.dropped"]
    assert len(messages) == 1
    assert messages[0]["labelled"] == ROWS
    assert messages[0]["text"].startswith("DROPPED since")


def test_truth_is_not_needed_for_the_reference(scored_store):
    assert len(TRUTH) == ROWS
    assert watch(CONFIG, scored_store.root, now=NOW).raised == []
    assert np.isfinite(scored_store.read_table("live")["estimated_accuracy"][0].as_py())
