"""Test that failing reports never change the result of a run."""

import asyncio
import http.client
import re
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import prefect.events
import pytest
from artifact_keys import kind_of
from command_line import call
from hostile_text import ESCAPE, controls
from markdown_it import MarkdownIt
from prefect import get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    FlowRunFilter,
    FlowRunFilterId,
    LogFilter,
    LogFilterFlowRunId,
)
from prefect.settings import PREFECT_API_DATABASE_CONNECTION_URL
from small_data import run_config, write_small_dataset
from socket_server import sending, server

from flows import flow_runs, hooks
from flows.cli.console import PlainConsole
from flows.cli.run import log_to_mlflow
from flows.retrain import retrain
from nnbuild.errors import StoreError
from nnbuild.report import mlflow
from nnbuild.runtime import webhook
from nnbuild.runtime.outward import Harmless, outward
from nnbuild.runtime.text import printable
from nnbuild.store import Store, champion
from tasks import artifacts as task_artifacts
from tasks import progress
from tasks.displays import attach_displays

URL = "https://user:5ecre7@host.example/x"
FAULTS = [
    RuntimeError(f"no answer from {URL}"),
    OSError(28, f"no space for {URL}"),
    http.client.BadStatusLine(f"garbage {ESCAPE}\n{URL}"),
    KeyError(URL),
    StoreError(f"store {URL} is gone"),
    asyncio.CancelledError(),
    StopIteration(URL),
    ExceptionGroup("several", [ValueError(URL)]),
]


def raising(error, calls, name):
    def fail(*_, **__):
        calls.append(name)
        raise error

    return fail


@pytest.mark.parametrize("error", FAULTS, ids=lambda each: type(each).__name__)
def test_any_failure_is_one_clean_warning(error):
    warnings = []
    with outward("the report", warnings.append):
        raise error
    (warning,) = warnings
    assert warning.startswith("the report failed: ")
    assert type(error).__name__ in warning or isinstance(error, StoreError)
    assert "5ecre7" not in warning
    assert not controls(warning, allowed="")


def test_warning_that_fails_is_left_out():
    with outward("the report", lambda _: 1 // 0):
        raise RuntimeError


@pytest.mark.parametrize("request_to_stop", [KeyboardInterrupt, SystemExit])
def test_request_to_stop_is_passed_on(request_to_stop):
    with pytest.raises(request_to_stop), outward("the report", print):
        raise request_to_stop


def test_display_failure_is_final():
    warnings, calls = [], []
    shown = Harmless(
        SimpleNamespace(note=raising(OSError(5, "gone"), calls, "note")), warnings.append
    )
    shown.note("a")
    shown.note("b")
    assert calls == ["note"]
    assert len(warnings) == 1


def test_console_closed_goes_quiet(tmp_path):
    class Closed:
        write = flush = raising(BrokenPipeError(), [], "write")

        def isatty(self):
            return False

    console = PlainConsole(file=Closed(), stderr=True)
    console.print_line("a")
    assert console.quiet


class FailingDisplay:
    """A display whose every method fails."""

    def __init__(self, error, calls):
        self._fault = error, calls

    def __getattr__(self, name):
        return raising(*self._fault, f"display.{name}")


EVERYTHING = [  # each place that says something beyond the run's own files
    (task_artifacts, "create_table_artifact"),
    (task_artifacts, "create_markdown_artifact"),
    (task_artifacts, "create_image_artifact"),
    (progress, "create_progress_artifact"),
    (prefect.events, "emit_event"),
    (webhook, "post"),
    (flow_runs, "get_client"),
]


@pytest.mark.parametrize(
    "error", [FAULTS[2], StoreError(f"{URL} is gone"), asyncio.CancelledError(URL)], ids=repr
)
def test_run_report_failure_is_committed(
    tmp_path, small_folder, prefect_server, monkeypatch, caplog, error
):
    calls = []
    for module, name in EVERYTHING:
        monkeypatch.setattr(module, name, raising(error, calls, name))
    monkeypatch.setenv(webhook.VARIABLE, "http://127.0.0.1:9/x")
    with attach_displays(FailingDisplay(error, calls)):
        state = retrain(run_config(small_folder), str(tmp_path), return_state=True)
    assert state.is_completed()
    committed = state.result()
    assert champion.current(Store(tmp_path)) == committed.run_id
    assert {name for _, name in EVERYTHING} <= set(calls)
    assert sum(each.startswith("display.") for each in calls) == 1
    assert caplog.text.count("the run is not affected") >= len(EVERYTHING)
    assert "5ecre7" not in caplog.text


def test_hook_failure_reaches_others(monkeypatch, tmp_path):
    calls = []
    monkeypatch.setattr(hooks, "flow_run_logger", raising(RuntimeError(URL), calls, "log"))
    monkeypatch.setattr(prefect.events, "emit_event", raising(RuntimeError(URL), calls, "event"))
    monkeypatch.setattr(webhook, "post", lambda _, message, **__: calls.append(message["text"]))
    monkeypatch.setenv(webhook.VARIABLE, "http://127.0.0.1:9/x")
    run = SimpleNamespace(id="1", name="n", parameters={"store": str(tmp_path)})
    state = SimpleNamespace(name="Failed", message=f"cannot read {URL}: {ESCAPE}")
    hooks.on_run_failure(None, run, state)
    hooks.on_scoring_failure(None, run, state)
    assert calls[:2] == ["log", "event"]
    for text in (calls[2], calls[5]):
        assert text.startswith("n: failed: cannot read https://***@host.example/x: ")
        assert not controls(text, allowed="")


@pytest.mark.parametrize("error", FAULTS, ids=lambda each: type(each).__name__)
def test_mlflow_that_fails_is_a_warning(store, monkeypatch, capsys, error):
    monkeypatch.setattr(mlflow, "log_run", raising(error, [], "log_run"))
    assert (
        log_to_mlflow(store, store.run_ids()[0], "sqlite:///x.db", PlainConsole(stderr=True))
        is None
    )
    err = capsys.readouterr().err
    assert err.startswith("MLflow failed: ")
    assert "5ecre7" not in err
    assert err.count("\n") == 1


@pytest.fixture(scope="module")
def told(request, tmp_path_factory):
    """Run a flow with hostile names and a secret webhook that answers garbage."""
    request.getfixturevalue("_prefect_harness")
    hostile = f"x|`y` <img src=x onerror=alert(1)> [l](u) {ESCAPE}\u202e"
    folder = tmp_path_factory.mktemp("outward")
    data = write_small_dataset(folder / "data", classes=3, shape=(8, 8, 1), train=120, test=45)
    data = data.rename(folder / f"{hostile}\n.npz")
    root = folder / hostile
    with pytest.MonkeyPatch.context() as patch, server(sending(b"5ecre7 garbage\r\n\r\n")) as hook:
        url, requests = hook
        patch.setenv(webhook.VARIABLE, url.replace("://", "://user:p4ssw0rd@") + "/5ecre7")
        state = retrain(run_config(data), str(root), return_state=True)
    flow_run_id = Store(root).manifest(state.result().run_id).flow_run_id
    by_run = FlowRunFilter(id=FlowRunFilterId(any_=[flow_run_id]))
    artifacts = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[flow_run_id]))
    with get_client(sync_client=True) as client:
        for _ in range(100):  # logs arrive a moment after they were written
            logs = client.read_logs(LogFilter(flow_run_id=LogFilterFlowRunId(any_=[flow_run_id])))
            if any("Finished in state" in each.message for each in logs if not each.task_run_id):
                break
            time.sleep(0.1)
        return SimpleNamespace(
            state=state,
            root=root,
            data=data,
            requests=requests,
            logs=logs,
            flow_run=client.read_flow_run(flow_run_id),
            tasks=client.read_task_runs(flow_run_filter=by_run),
            artifacts={
                kind_of(each.key): each for each in client.read_artifacts(artifact_filter=artifacts)
            },
        )


def test_webhook_garbage_changes_nothing(told):
    assert told.state.is_completed()
    assert champion.current(Store(told.root)) == told.state.result().run_id
    assert len(told.requests) == 1
    assert any("did not take the message" in each.message for each in told.logs)


def test_secret_of_the_webhook_is_nowhere(told):
    database = Path(re.sub(r"^.*?///", "", str(PREFECT_API_DATABASE_CONNECTION_URL.value())))
    files = [*told.root.rglob("*"), *database.parent.glob(f"{database.name}*")]
    with closing(sqlite3.connect(database)) as connection:
        assert connection.execute("select count(*) from flow_run").fetchone()[0]
    for path in (each for each in files if each.is_file()):
        content = path.read_bytes()
        assert b"p4ssw0rd" not in content, path
        assert b"5ecre7" not in content, path


def test_prefect_names_are_clean(told):
    names = [told.flow_run.name, *told.flow_run.tags, *(each.name for each in told.tasks)]
    for text in [*names, *(each.message for each in told.logs)]:
        assert not controls(text, allowed=""), text
    assert any(printable(ESCAPE) in each.message for each in told.logs)


def test_artifacts_show_names_literally(told):
    for key in ("nnbuild-report", "nnbuild-files"):
        markdown = told.artifacts[key].data
        assert not controls(markdown)
        page = MarkdownIt("commonmark").enable("table").render(markdown)
        assert not re.search("<(img|a|em|script)[ >]", page)
        columns = {len(line.split("<td>")) for line in page.split("</tr>") if "<td>" in line}
        assert columns == {3}
        assert "&lt;img src=x onerror=alert(1)&gt;" in page
    for artifact in told.artifacts.values():
        assert not controls(artifact.description or "")


def test_commands_show_names_literally(told, capfd):
    run_id = told.state.result().run_id
    for command in (("runs",), ("history", run_id), ("champion",), ("report", run_id), ("trends",)):
        outcome = call(capfd, *command, "--store", told.root)
        assert outcome.code == 0
        assert not controls(outcome.out + outcome.err)
    outcome = call(
        capfd, "run", "--dataset", told.data.with_name("none\x1b[31m"), "--store", told.root
    )
    assert outcome.code == 2
    assert outcome.err.count("\n") == 1
    assert not controls(outcome.err)
