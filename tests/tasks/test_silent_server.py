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
