"""Progress reports neither delay the work nor stop it."""

import threading

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings
from real_server import until
from socket_server import server

from tasks import progress
from tasks.displays import attach_displays
from tasks.progress import BackgroundReporter, ProgressBar, ProgressReporter, Throttle


def test_reporter_never_delays_the_work(prefect_server):
    received, answer = [], threading.Event()

    def slow():
        answer.wait(60)
        received.append("slow")

    @flow
    def work():
        reporter = BackgroundReporter()
        reporter.submit(slow)
        reporter.submit(lambda: received.append("dropped"))
        received.append("worked on")
        answer.set()
        reporter.flush(lambda: received.append("last"))

    work()
    assert received == ["worked on", "slow", "last"]


def test_report_that_fails_is_a_warning(prefect_server, caplog):
    @flow
    def work():
        reporter = BackgroundReporter()
        reporter.submit(lambda: 1 // 0)
        reporter.flush(lambda: None)
        return "done"

    assert work() == "done"
    assert (
        "the progress report failed: ZeroDivisionError: integer division or modulo by zero"
        in caplog.text
    )


def test_bar_is_created_and_updated(prefect_server):
    @flow
    def work():
        reporter, bar = BackgroundReporter(), ProgressBar("nnbuild-test", "a test")
        reporter.submit(lambda: bar.show(10))
        reporter.flush(lambda: bar.show(100))

    work()
    with get_client(sync_client=True) as client:
        (artifact,) = client.read_artifacts(
            artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=["nnbuild-test"]))
        )
    assert artifact.data == 100


def test_silent_server_delays_no_flush(prefect_server, caplog, monkeypatch):
    """The server accepts a report and never answers: the last reports are dropped."""
    monkeypatch.setattr(progress, "SECONDS_TO_FLUSH", 0.2)
    received = []

    @flow
    def work():
        reporter = BackgroundReporter()
        with server(lambda _, stopped: stopped.wait(60)) as (url, requests):
            with temporary_settings({PREFECT_API_URL: f"{url}/api", PREFECT_CLIENT_MAX_RETRIES: 0}):
                reporter.submit(ask)
            until(lambda: requests, 60, "request")
            reporter.flush(lambda: received.append("last"))
            reporter.flush(lambda: received.append("very last"))

    def ask():
        with get_client({"timeout": 60}, sync_client=True) as client:
            client.read_flows(limit=1)

    work()
    assert received == []
    assert caplog.text.count("did not take the progress report within 0.2 s") == 1


def test_reporter_outside_of_a_run_is_silent():
    reporter, reports = BackgroundReporter(), []
    reporter.submit(lambda: reports.append("submitted"))
    reporter.flush(lambda: reports.append("last"))
    assert reports == []


@pytest.fixture
def now(monkeypatch):
    """A clock that the test sets."""
    clock = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    return clock


def test_throttle_is_due_once_per_interval(now):
    throttle = Throttle(2.0)
    due = []
    for now[0] in (101.0, 102.0, 102.5, 103.0, 104.0, 104.6):
        due.append(throttle.is_due())
    assert due == [False, False, True, False, False, True]


class RecordingDisplay:
    """A display that records the names of its calls, and its remarks."""

    def __init__(self):
        self.calls = []

    def __getattr__(self, name):
        return lambda *values: self.calls.append(values[0] if name == "note" else name)


def test_displays_get_the_heading_first(caplog):
    display = RecordingDisplay()
    reporter = ProgressReporter(heading="trial 3")
    with attach_displays(display):
        for done in (1, 2):
            reporter.step(1, 1, done, 2, {"loss": 0.5})
        reporter.epoch(1, 1, {"loss": 0.5}, 0.1)
    reporter.finish()
    assert display.calls == ["trial 3", "step", "step", "epoch"]
    assert not caplog.text


@pytest.mark.parametrize("throttled", [True, False])
def test_bar_follows_the_rows(now, monkeypatch, throttled):
    """The last report is always sent, whenever it comes."""
    sent = []
    monkeypatch.setattr(progress, "in_prefect_run", lambda: True)
    monkeypatch.setattr(BackgroundReporter, "_start", lambda _, report: report())
    monkeypatch.setattr(ProgressBar, "show", lambda _, percent: sent.append(percent))
    reporter = ProgressReporter(ProgressBar("nnbuild-test", "a test"))
    for done in (10, 20, 40):
        now[0] += 0.1 if throttled else 3.0
        reporter.scored(done, 40, 1.0)
    assert sent == ([100.0] if throttled else [25.0, 50.0, 100.0])
