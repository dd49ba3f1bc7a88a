"""Which work the schedule hands out, in what order, and to whom."""

import queue
import threading
from concurrent.futures import ThreadPoolExecutor, wait

import pytest

from nnbuild.data.streams import InputChunk
from nnbuild.scoring.schedule import FIRST, Schedule, place_of

SECONDS = 60
SHARD = {
    "name": "part-00000.parquet",
    "rows": 5,
    "written": 5,
    "quarantined": 0,
    "sha256": "",
    "bytes": 1,
}


def pending(shards, groups=2, rows=5):
    """Return shards of some row groups, each of some rows."""
    return [
        (shard, [InputChunk(0, number, rows * number, rows) for number in range(groups)])
        for shard in range(shards)
    ]


@pytest.mark.parametrize("whole", [0, 2, 4])
@pytest.mark.parametrize("processes", [1, 3])
def test_schedule_hands_out_each_row_once(tmp_path, whole, processes):
    schedule = Schedule(pending(4), 2, tmp_path, whole=whole)
    handed, joined, process = [], [], 0
    while (request := schedule.next_request(process, busy=False)) is not None:
        if "part" in request:
            schedule.finish(request, {"rows": 1, "rejects": []})
        elif "parts" in request:
            joined.append((request["shard"], len(request["parts"])))
        handed.append(place_of(request) if "parts" not in request else None)
        process = (process + 1) % processes
    parts = [(shard, part) for shard in range(whole, 4) for part in range(6)]
    expected = [*((shard, -1) for shard in range(whole)), *parts]
    assert sorted(each for each in handed if each is not None) == expected
    assert sorted(joined) == [(shard, 6) for shard in range(whole, 4)]


def test_busy_process_gets_no_whole_shard(tmp_path):
    schedule = Schedule(pending(2), 5, tmp_path, whole=1)
    assert schedule.next_request("one", busy=True) is None
    assert place_of(schedule.next_request("one", busy=False)) == (0, -1)
    assert place_of(schedule.next_request("two", busy=True)) == (1, 0)


def test_schedule_stops_before_an_error(tmp_path):
    schedule = Schedule(pending(4), 5, tmp_path, whole=2)
    schedule.stop((1, -1))
    assert place_of(schedule.next_request("one", busy=False)) == (0, -1)
    assert schedule.next_request("one", busy=False) is None
    assert schedule.is_wanted((0, 5))
    assert not schedule.is_wanted((1, -1))
    schedule.stop(FIRST)
    assert not schedule.is_wanted((0, 0))


@pytest.mark.parametrize("places", [[(1, 0), (3, -1)], [(3, -1), (1, 0)]])
def test_schedule_stops_at_the_first_error(tmp_path, places):
    schedule = Schedule(pending(4), 5, tmp_path)
    for place in places:
        schedule.stop(place)
    assert schedule.is_wanted((0, 1))
    assert not schedule.is_wanted((1, 0))
    handed = [schedule.next_request("one", busy=True) for _ in range(3)]
    assert [each and place_of(each) for each in handed] == [(0, 0), (0, 1), None]


def test_error_ends_the_wait_for_parts(tmp_path):
    schedule = Schedule(pending(1, groups=1), 5, tmp_path)
    assert schedule.next_request("this", busy=False) is not None
    waits, answers = threading.Event(), queue.SimpleQueue()
    wait_for_change = schedule._changed.wait

    def wait_and_say():
        waits.set()  # `stop` gets the lock only once this process has released it to wait
        wait_for_change()

    schedule._changed.wait = wait_and_say
    asking = threading.Thread(
        target=lambda: answers.put(schedule.next_request("other", busy=False)), daemon=True
    )
    asking.start()
    assert waits.wait(SECONDS)
    schedule.stop((0, 0))
    assert answers.get(timeout=10) is None


def test_parts_are_joined_in_their_order(tmp_path):
    schedule = Schedule(pending(1, groups=3), 5, tmp_path)
    requests = [schedule.next_request(each, busy=False) for each in range(3)]
    for number in (2, 0, 1):
        schedule.finish(requests[number], {"rows": number + 1, "rejects": []})
    joining = schedule.next_request(0, busy=True)
    assert [each["rows"] for each in joining["parts"]] == [1, 2, 3]


def test_empty_shard_is_joined_at_once(tmp_path):
    schedule = Schedule([(0, [])], 5, tmp_path)
    assert schedule.next_request("one", busy=True) == {
        "folder": str(tmp_path),
        "shard": 0,
        "parts": [],
    }
    assert schedule.next_request("one", busy=False) is None


def test_idle_process_waits_for_last_part(tmp_path):
    schedule = Schedule(pending(1), 5, tmp_path)
    last, first = (schedule.next_request(each, busy=False) for each in ("this", "other"))
    part = {"rows": 5, "rejects": []}
    schedule.finish(first, part)
    assert schedule.next_request("other", busy=True) is None
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(schedule.next_request, "other", busy=False)
        assert not wait([waiting], timeout=0.1).done
        schedule.finish(last, part)
        joining = waiting.result(SECONDS)
    assert len(joining["parts"]) == 2
    assert schedule.finish(joining, SHARD).rows == 5
    assert schedule.next_request("this", busy=False) is None
    assert schedule.next_request("other", busy=False) is None
