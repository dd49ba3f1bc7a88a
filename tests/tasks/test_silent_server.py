"""A server that goes away during a run is waited for once, not at each report."""

from contextlib import contextmanager

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


@contextmanager
def server_gone():
    """Let every request of a synchronous client fail as that to a closed port does."""

    def refuse(_transport, request):
        raise httpx.ConnectError("[Errno 111] Connection refused", request=request)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(httpx.HTTPTransport, "handle_request", refuse)
        yield


@pytest.mark.usefixtures("prefect_server")
def test_silent_server_is_waited_for_once(sleeps):
    waited = []

    def report(key):
        sleeps.clear()
        show_table(key, [{"a": 1}], "A table")
        waited.append(len(sleeps))

    @flow
    def reporting():
        with server_gone():
            report("first-while-gone")
            report("second-while-gone")
            assert silent_server.is_silent()
        report("back-again")
        assert not silent_server.is_silent()
        with server_gone():
            report("gone-again")

    reporting()
    assert waited[0] == waited[3] > 1
    assert waited[1:3] == [0, 0]
    keys = ArtifactFilterKey(any_=["first-while-gone", "second-while-gone", "back-again"])
    with get_client(sync_client=True) as client:
        found = client.read_artifacts(artifact_filter=ArtifactFilter(key=keys))
    assert [each.key for each in found] == ["back-again"]
