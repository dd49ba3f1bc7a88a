"""A flow run that Prefect fails after its results are committed."""

import io
from operator import attrgetter

import httpx
import pytest
from prefect import flow
from prefect.exceptions import PrefectHTTPStatusError

from flows.cli.console import PlainConsole
from flows.cli.run import show_flow
from nnbuild.errors import RunError
from nnbuild.sweep import SweepResult
from tasks.displays import active_displays

RESULT = SweepResult(sweep_id="s", objective="val_loss", trials=(), best=None, promoted=False)


def server_error():
    """Return the error of Prefect's client for an answer with status 500."""
    request = httpx.Request("POST", "http://127.0.0.1:1/api/flow_runs/x/set_state")
    response = httpx.Response(500, request=request, text="database or disk is full")
    return PrefectHTTPStatusError.from_httpx_error(
        httpx.HTTPStatusError("Server error '500'", request=request, response=response)
    )


def show(call, result_of):
    text = io.StringIO()
    return show_flow(call, PlainConsole(file=text, stderr=True), attrgetter(result_of)), text


@pytest.mark.parametrize(
    ("method", "result_of", "result"),
    [("committed", "committed_run", "run"), ("sweep_finished", "sweep_result", RESULT)],
)
def test_error_after_the_commit_is_a_note(prefect_server, method, result_of, result):
    @flow
    def fails_at_its_end():
        for display in active_displays():
            getattr(display, method)(result)
        raise server_error()

    returned, text = show(fails_at_its_end, result_of)
    assert returned == result
    (line,) = text.getvalue().splitlines()
    assert line.startswith("Prefect's record of the run is incomplete (PrefectHTTPStatusError: ")
    assert line.endswith("; the results are committed")


@pytest.mark.parametrize("is_committed", [False, True])
def test_other_errors_are_raised(is_committed):
    def fail():
        if is_committed:
            active_displays()[0].committed("run")
            raise RunError("the run failed")
        raise server_error()

    with pytest.raises(RunError if is_committed else PrefectHTTPStatusError):
        show(fail, "committed_run")


def test_error_during_a_stop_is_raised():
    def stop():
        active_displays()[0].committed("run")
        try:
            raise KeyboardInterrupt
        finally:
            raise server_error()

    with pytest.raises(PrefectHTTPStatusError):
        show(stop, "committed_run")
