"""What is told beside the work cannot hold it up, nor stop it."""

import threading

from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings
from real_server import until
from socket_server import server

from tasks import progress
from tasks.progress import Aside, ProgressBar


def test_the_work_waits_for_nobody_and_the_last_thing_comes_last(prefect_server):
    heard, answer = [], threading.Event()

    def slow():
        answer.wait(60)
        heard.append("slow")

    @flow
    def work():
        aside = Aside()
        aside.say(slow)
        aside.say(lambda: heard.append("left out"))
        heard.append("worked on")
        answer.set()
        aside.conclude(lambda: heard.append("last"))

    work()
    assert heard == ["worked on", "slow", "last"]


def test_what_cannot_be_told_is_a_warning(prefect_server, caplog):
    @flow
    def work():
        aside = Aside()
        aside.say(lambda: 1 // 0)
        aside.conclude(lambda: None)
        return "done"

    assert work() == "done"
    assert (
        "the progress report failed: ZeroDivisionError: integer division or modulo by zero"
        in caplog.text
    )


def test_a_bar_is_drawn_from_the_thread_and_moved(prefect_server):
    @flow
    def work():
        aside, bar = Aside(), ProgressBar("nnbuild-test", "a test")
        aside.say(lambda: bar.show(10))
        aside.conclude(lambda: bar.show(100))

    work()
    with get_client(sync_client=True) as client:
        (drawn,) = client.read_artifacts(
            artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=["nnbuild-test"]))
        )
    assert drawn.data == 100


def test_silent_server_holds_up_no_conclusion(prefect_server, caplog, monkeypatch):
    """It accepts a report and never answers: the last reports are left out."""
    monkeypatch.setattr(progress, "SECONDS_TO_CONCLUDE", 0.2)
    heard = []

    @flow
    def work():
        reporter = Aside()
        with server(lambda _, stopped: stopped.wait(60)) as (url, requests):
            with temporary_settings({PREFECT_API_URL: f"{url}/api", PREFECT_CLIENT_MAX_RETRIES: 0}):
                reporter.say(ask)
            until(lambda: requests, 60, "request")
            reporter.conclude(lambda: heard.append("last"))
            reporter.conclude(lambda: heard.append("very last"))

    def ask():
        with get_client({"timeout": 60}, sync_client=True) as client:
            client.read_flows(limit=1)

    work()
    assert heard == []
    assert caplog.text.count("did not take the progress report within 0.2 s") == 1


def test_outside_a_run_nothing_is_told():
    aside = Aside()
    aside.say(lambda: 1 // 0)
    aside.conclude(lambda: 1 // 0)
