"""A server that goes away during a run is waited for once, not at each report."""

from contextlib import contextmanager
from types import SimpleNamespace

import httpx
import pytest
from prefect import flow, get_client
from prefect.client import base
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey

from tasks import silent_server
from tasks.artifacts import show_table


@pytest.fixture
def sleeps(monkeypatch):
    """Seconds that Prefect's client would have slept before it tries a request again."""
    seconds = []
    monkeypatch.setattr(base.time, "sleep", seconds.append)
    return seconds


def refused(_transport, request):
    """Fail as a request to a closed port does."""
    raise httpx.ConnectError("[Errno 111] Connection refused", request=request)


def bad_gateway(_transport, request):
    """Answer as a proxy in front of a server that is gone."""
    return httpx.Response(502, request=request)


@contextmanager
def answering(answer):
    """Let every request of a synchronous client have this answer."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(httpx.HTTPTransport, "handle_request", answer)
        yield


@pytest.mark.parametrize("answer", [refused, bad_gateway])
@pytest.mark.usefixtures("prefect_server")
def test_silent_server_is_waited_for_once(sleeps, answer):
    waited, ending = [], answer.__name__.replace("_", "-")

    def report(key):
        sleeps.clear()
        show_table(f"{key}-{ending}", [{"a": 1}], "A table")
        waited.append(len(sleeps))

    @flow
    def reporting():
        with answering(answer):
            report("first-while-gone")
            report("second-while-gone")
            assert silent_server.is_silent()
        report("back-again")
        assert not silent_server.is_silent()
        with answering(answer):
            report("gone-again")
        report("back-again-for-the-next-test")

    reporting()
    assert waited[0] == waited[3] > 1
    assert waited[1] <= 1  # Prefect also sleeps after the last answer of a proxy
    assert waited[2] == 0
    with get_client(sync_client=True) as client:
        keys = ArtifactFilterKey(like_=f"%-{ending}")
        found = client.read_artifacts(artifact_filter=ArtifactFilter(key=keys))
    assert [each.key.startswith("back-again") for each in found] == [True, True]


@pytest.mark.usefixtures("prefect_server")
def test_server_that_answers_nothing_is_left_alone(sleeps, monkeypatch):
    clock, asked = [0.0], []

    def no_answer(_transport, request):
        asked.append(clock[0])
        clock[0] += 60.0
        raise httpx.ReadTimeout("timed out", request=request)

    @flow
    def reporting():
        monkeypatch.setattr(silent_server, "_silence", silent_server._Silence())
        monkeypatch.setattr(silent_server, "time", SimpleNamespace(monotonic=lambda: clock[0]))
        with answering(no_answer):
            show_table("first-table", [{"a": 1}], "A table")
            tries, lost = len(asked), clock[0]
            assert tries > 1
            show_table("at-once", [{"a": 1}], "A table")
            clock[0] = 2 * lost - 1.0
            show_table("too-early", [{"a": 1}], "A table")
            assert len(asked) == tries
            clock[0] = 2 * lost
            show_table("later", [{"a": 1}], "A table")
            assert len(asked) == tries + 1
            assert silent_server.is_silent()
        clock[0] += 60.0
        show_table("asked-again", [{"a": 1}], "A table")
        assert not silent_server.is_silent()

    reporting()
    assert sleeps
