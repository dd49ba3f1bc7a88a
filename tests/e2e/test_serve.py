"""`nnbuild serve` with a real server: due runs start one at a time and end as they should."""

import itertools
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from uuid import UUID

import psutil
import pytest
from command_line import call
from label_data import job_with_ids, label_file
from prefect import get_client
from prefect.client.schemas.objects import StateType
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Running
from real_server import ROOT, until
from score_data import ROWS, images, parquet
from socket_server import sending, server

import nnbuild
from flows import automations, deployments
from flows.cli.serve import deployment_name
from flows.scheduled import (
    run_to_resume,
    scheduled_label,
    scheduled_prune,
    scheduled_retrain,
    scheduled_score,
)
from nnbuild.config.schema import RunConfig
from nnbuild.pipeline.run import resumable
from nnbuild.store import Store, champion

FINAL = {"COMPLETED", "FAILED", "CANCELLED", "CRASHED"}


@pytest.fixture
def real_prefect(real_prefect):
    """The server of the file, without what the tests before have scheduled."""
    yield real_prefect
    real_prefect.delete_deployments()


def options(dataset, store, *, epochs, interval=None):
    """Return options of `serve`; without an interval no retraining is due."""
    schedule = ["--cron", "0 3 1 1 *"] if interval is None else ["--interval", interval]
    settings = {
        "dataset.name": f'"{dataset}"',
        "model.name": '"lab"',
        "training.epochs": epochs,
        "training.threads": 2,
    }
    pairs = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    return [*pairs, "--store", store, *schedule, "--unchanged", "run"]


def state_of(real_prefect, name, run_id):
    """Return the state of a scoring run."""
    return next(
        each["state"]
        for each in real_prefect.flow_runs(name, "scheduled-score")
        if each["id"] == run_id
    )


def deployment_of(real_prefect, name, flow):
    """Return the deployment of a flow, which `serve` registers after it has said that it serves."""
    (found,) = until(
        lambda: real_prefect.ask(
            "/deployments/filter",
            deployments={"name": {"any_": [name]}},
            flows={"name": {"any_": [flow]}},
        ),
        120,
        f"deployment of {flow}",
    )
    return found


def when(text):
    return datetime.fromisoformat(text)


def fitting(store, *others):
    """Return an unfinished run with at least one epoch, other than those given."""
    return next(
        (
            each.run_id
            for each in store.unfinished_runs()
            if each.run_id not in others and store.staged_history(each.run_id)
        ),
        None,
    )


def test_due_runs_are_committed_one_at_a_time(real_prefect, tmp_path, small_folder):
    """Two runs are due at once; each has a process of its own."""
    store = Store(tmp_path / "store")
    name = deployment_name(store)
    dark = parquet(tmp_path / "date=2026-11-01.parquet", images() // 8)
    scoring = (
        "--score-input",
        f"{dark.parent}/*.parquet",
        "--score-set",
        "drift_psi=0.1",
        "--retrain-on-drift",
    )
    with real_prefect.serving(*options(small_folder, store.root, epochs=2), *scoring):
        retraining = deployment_of(real_prefect, name, "scheduled-retrain")
        scores = deployment_of(real_prefect, name, "scheduled-score")
        assert scores["parameters"]["config"]["drift_psi"] == 0.1
        assert scores["enforce_parameter_schema"]
        asked = [
            # Otherwise the first one would supersede the second.
            real_prefect.start(retraining, parameters={"catch_up": True})
            for _ in range(2)
        ]
        named = lambda state: [  # noqa: E731
            each for each in real_prefect.flow_runs(name) if each["state"]["name"] == state
        ]
        until(lambda: len(named("Completed")) == 2, 400, "second run that is completed")
        for state in ("Completed", "Skipped"):  # the second run finds nothing new
            begun = real_prefect.start(scores)
            until(
                lambda begun=begun, state=state: (
                    state_of(real_prefect, name, begun)["name"] == state
                ),
                240,
                state,
            )
        answers = lambda: [  # noqa: E731
            each
            for each in real_prefect.flow_runs(name)
            if each["parameters"]["catch_up"] and each["id"] not in asked
        ]
        until(answers, 180, "retraining that answers the drift")
    assert len(store.score_ids()) == 1
    assert store.read_table("drift")["exceeded"].to_pylist().count(True) > 1
    runs = real_prefect.flow_runs(name)
    begun = sorted(
        (each for each in runs if each["start_time"]), key=lambda each: each["start_time"]
    )
    ended = [each for each in begun if each["state"]["type"] in FINAL]
    completed = [each for each in ended if each["state"]["name"] == "Completed"]
    assert {*asked} <= {each["id"] for each in completed}
    # The process may be stopped between a commit and the end of its run.
    torn = [each for each in ended[-1:] if each["state"]["type"] != "COMPLETED"]
    assert len(completed) <= len(store.run_ids()) <= len(completed) + len(torn)
    for one, next_one in itertools.pairwise(ended):
        assert when(one["end_time"]) <= when(next_one["start_time"]) + timedelta(milliseconds=50)
    assert not [each for each in runs if each["state"]["type"] in {"RUNNING", "PENDING"}]
    assert champion.current(store) in store.run_ids()


def test_loss_of_accuracy_starts_a_retraining(real_prefect, store, tmp_path, small_folder):
    """A person starts the labelling; its labels contradict every prediction of the champion."""
    job_with_ids(store, tmp_path)
    predicted = store.read_table("scores")["predicted"].to_pylist()
    wrong = [(label + 1) % 3 for label in predicted]
    label_file(tmp_path / "l.parquet", id=list(range(ROWS)), label=wrong)
    (dropped,) = store.run_ids()
    name = deployment_name(store)
    arguments = options(small_folder, store.root, epochs=1)
    labelling = ("--label-input", tmp_path / "l.parquet", "--label-cron", "0 6 1 1 *")
    with real_prefect.serving(*arguments, *labelling, "--retrain-on-loss"):
        real_prefect.start(deployment_of(real_prefect, name, "scheduled-label"))

        def answers():
            return [
                each
                for each in real_prefect.flow_runs(name)
                if each["parameters"]["catch_up"] and each["state"]["type"] in FINAL
            ]

        (answer,) = until(answers, 400, "end of the retraining that answers the loss")
    assert answer["state"]["name"] == "Completed", answer["state"]
    (alarm,) = store.read_table("live_alarms").to_pylist()
    assert (alarm["run_id"], alarm["event"], alarm["accuracy"]) == (dropped, "dropped", 0)
    assert store.read_table("live", dropped)["labelled"].to_pylist() == [ROWS]
    assert len(store.run_ids()) == 2


def test_cancelled_fit_is_not_resumed(real_prefect, tmp_path, small_folder):
    store = Store(tmp_path / "store")
    name = deployment_name(store)
    with real_prefect.serving(
        *options(small_folder, store.root, epochs=50_000, interval=20)
    ) as serving:
        run_id = until(lambda: fitting(store), 180, "run in its fit")
        running = next(
            each for each in real_prefect.flow_runs(name) if each["state"]["type"] == "RUNNING"
        )
        cancelling = {"type": "CANCELLING", "name": "Cancelling"}
        real_prefect.ask(f"/flow_runs/{running['id']}/set_state", state=cancelling, force=False)
        until(
            lambda: not any(each.held for each in store.unfinished_runs()),
            120,
            "end of the cancelled fit",
        )
        state = lambda: next(  # noqa: E731
            each for each in real_prefect.flow_runs(name) if each["id"] == running["id"]
        )["state"]
        until(lambda: state()["type"] in FINAL, 120, "final state")
        assert state()["type"] == "CANCELLED"
        epochs = store.staged_history(run_id)
        next_id = until(lambda: fitting(store, run_id), 120, "next run in its fit")
        assert store.staged_history(run_id) == epochs
        assert [each.held for each in store.unfinished_runs()] == [False, True]
        serving.terminate()
        until(
            lambda: not any(each.held for each in store.unfinished_runs()),
            120,
            "end of the fit after SIGTERM",
        )
    assert {each["state"]["type"] for each in real_prefect.flow_runs(name)} <= {*FINAL, "SCHEDULED"}
    unfinished = [store.unfinished_run(each) for each in (run_id, next_id)]
    assert [each.was_cancelled for each in unfinished] == [True, False]
    assert resumable(store, unfinished[0].config)[0].run_id == next_id
    yearly = ["--set", f'dataset.name="{small_folder}"', "--cron", "0 3 1 1 *"]
    with real_prefect.serving(*yearly, "--store", store.root):

        def slugs():
            answer = real_prefect.ask("/deployments/filter", deployments={"name": {"any_": [name]}})
            return [schedule["slug"] for each in answer for schedule in each["schedules"]]

        until(lambda: slugs() == ["cron-1"], 120, "deployment without the interval")


def test_killed_and_missed_runs_are_made_up(real_prefect, tmp_path, small_folder):
    store = Store(tmp_path / "store")
    name = deployment_name(store)
    arguments = options(small_folder, store.root, epochs=150, interval=20)
    with real_prefect.serving(*arguments) as serving:
        run_id = until(lambda: fitting(store), 180, "run in its fit")
        children = psutil.Process(serving.pid).children(recursive=True)
        (process,) = [each for each in children if "prefect.engine" in each.cmdline()]
        process.kill()
        until(lambda: run_id in store.run_ids(), 180, "end of the run that was killed")
        names = lambda: {each["state"]["name"] for each in real_prefect.flow_runs(name)}  # noqa: E731
        until(lambda: {"Crashed", "Completed"} <= names(), 120, "row of the run that resumed it")
    stopped = datetime.now(UTC)
    # The runner fetches a run seconds before it is due, and ends it when it stops itself.
    fetched = {
        each["id"] for each in real_prefect.flow_runs(name) if each["state"]["type"] in FINAL
    }

    def missed(until_then):
        return [
            each
            for each in real_prefect.flow_runs(name)
            if stopped < when(each["expected_start_time"]) < until_then
            and each["id"] not in fetched
        ]

    until(lambda: len(missed(datetime.now(UTC))) > 1, 120, "second run that is missed")
    again = datetime.now(UTC)

    def first():
        """Return the first run that began after the restart: a missed one, or the next due one."""
        begun = [each for each in real_prefect.flow_runs(name) if each["start_time"]]
        later = [each for each in begun if when(each["start_time"]) > again]
        return min(later, key=lambda each: when(each["start_time"]), default=None)

    # On a busy machine more runs would fall due than end, and the missed ones could wait for ever.
    with real_prefect.serving(*options(small_folder, store.root, epochs=150, interval=3600)):
        until(
            lambda: (
                first()
                and all(each["state"]["type"] in FINAL for each in [first(), *missed(again)])
            ),
            300,
            "end of what was missed",
        )
    assert first()["state"]["name"] == "Completed"
    assert {each["state"]["name"] for each in missed(again) if each["id"] != first()["id"]} == {
        "Skipped"
    }


STOPPED_IN_A_START = """
import os, signal, sys
from prefect.settings import Settings
from pydantic import BaseModel, field_serializer

class Heard(BaseModel):
    it: int = 0

    @field_serializer("it")
    def hear(self, it: int) -> int:
        os.kill(os.getpid(), signal.SIGTERM)
        return it

def environment(settings, *arguments, **options):
    if signal.getsignal(signal.SIGTERM) not in {signal.SIG_DFL, signal.SIG_IGN}:
        Heard().model_dump()
    return before(settings, *arguments, **options)

before, Settings.to_environment_variables = Settings.to_environment_variables, environment
from flows.cli.main import main
main(sys.argv[1:])
"""
"""Serves, and receives SIGTERM while a run is started: inside pydantic, which wraps exceptions."""


def test_sigterm_while_a_run_starts_stops_serve(real_prefect, tmp_path, small_folder):
    store = Store(tmp_path / "store")
    arguments = map(str, options(small_folder, store.root, epochs=1, interval=5))
    command = [sys.executable, "-c", STOPPED_IN_A_START, "serve", *arguments]
    ended = subprocess.run(
        command,
        cwd=ROOT,
        env=real_prefect.environment,
        timeout=120,
        check=False,
        capture_output=True,
    )
    assert ended.returncode == 0
    assert b"Traceback" not in ended.stderr
    started = [
        each
        for each in real_prefect.flow_runs(deployment_name(store))
        if each["state"]["type"] != "SCHEDULED"
    ]
    assert [each["state"]["message"] for each in started] == [
        "nnbuild serve was stopped; the next run resumes from what is in the store."
    ]


def test_stopped_serve_closes_only_its_own_runs(real_prefect, tmp_path, small_folder):
    """Its own run waits for an approval; that of another `serve` of the store is running."""
    store = Store(tmp_path / "store")
    name = deployment_name(store)
    manual = ("--set", 'gate.approval="manual"')
    with (
        real_prefect.serving(*options(small_folder, store.root, epochs=1), *manual),
        temporary_settings({PREFECT_API_URL: real_prefect.url}),
        get_client(sync_client=True) as client,
    ):
        retraining = deployment_of(real_prefect, name, "scheduled-retrain")
        own = real_prefect.start(retraining)

        def state_names():
            return {each["id"]: each["state"]["name"] for each in real_prefect.flow_runs(name)}

        until(lambda: state_names()[own] == "Paused", 240, "run that waits for an approval")
        other = client.create_flow_run_from_deployment(UUID(retraining["id"]), state=Running())
    assert state_names() == {own: "Crashed", str(other.id): "Running"}


def test_crash_detection_is_installed_once(real_prefect):
    """A replaced automation would forget the runs that it watches, when `serve` starts again."""
    monitored = (scheduled_retrain, scheduled_score, scheduled_label, scheduled_prune)
    assert [each.name for each in monitored] == automations.FLOWS
    expected = automations.crash_detection()
    names = {each.name for each in expected}

    def installed():
        return {
            each["name"]: each["id"]
            for each in real_prefect.ask("/automations/filter")
            if each["name"] in names
        }

    with (
        temporary_settings({PREFECT_API_URL: real_prefect.url}),
        get_client(sync_client=True) as client,
    ):
        automations.install_crash_detection(client)
        before = installed()
        assert before.keys() == names
        automations.install_crash_detection(client)
        assert installed() == before
        other = expected[0].model_copy(update={"description": "another one"})
        automations.install(client, other)
        assert installed()[other.name] != before[other.name]
        assert (
            len(
                [
                    each
                    for each in real_prefect.ask("/automations/filter")
                    if each["name"] == other.name
                ]
            )
            == 1
        )
        automations.install(client, expected[0])


def test_webhook_is_notified_of_a_crashed_run(real_prefect, listener, monkeypatch):
    url, received = listener
    monkeypatch.setenv("NNBUILD_WEBHOOK", url)
    monkeypatch.setattr(automations, "SILENCE_SECONDS", 10)
    with (
        temporary_settings({PREFECT_API_URL: real_prefect.url}),
        get_client(sync_client=True) as client,
    ):
        automations.install_crash_detection(client)
        dead = client.create_flow_run(scheduled_retrain, state=Running())
        messages = until(
            lambda: [each for each in received if each.get("flow_run_id") == str(dead.id)],
            120,
            "message",
        )
        until(
            lambda: client.read_flow_run(dead.id).state.type == StateType.CRASHED,
            120,
            "final state",
        )
        monkeypatch.undo()
        automations.install_crash_detection(client)
        actions = [
            action.type
            for name in (automations.SILENT, automations.NOT_STARTED)
            for each in client.read_automations_by_name(name)
            for action in each.actions
        ]
    assert len(messages) == 1
    assert messages[0]["event"] == "nnbuild.run.stopped"
    assert messages[0]["text"].startswith(f"{dead.name}: crashed: No heartbeat for 10 s.")
    assert actions == ["change-flow-run-state"] * 2


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--cron", "61 3 * * *"], "expected five fields"),
        (["--timezone", "Europe/Berlon"], "Europe/Berlon"),
        (["--cron", "0 3 * * *", "--interval", "5"], "give one of them"),
        (["--interval", "-5"], "expected seconds from 1"),
        (["--set", 'dataset.fallback="digits"'], "not allowed in scheduled runs"),
        (["--set", 'model.name="convnt"'], "did you mean 'convnet'"),
        (["--collision", "both"], "'enqueue', 'cancel-new'"),
        (["--plan", "none.toml"], "none.toml"),
        (["--score-cron", "0 5 * * *"], "without --score-input"),
        (["--retrain-on-drift"], "give --score-input"),
        (["--score-input", "in", "--score-cron", "often"], "expected five fields"),
        (["--score-input", "in", "--score-set", "top_k=0"], "top_k 0"),
        (["--shadow", "newest"], "without --score-input"),
        (["--score-input", "in", "--shadow", "oldest"], "shadow 'oldest'"),
        (["--label-cron", "0 6 * * *"], "without --label-input"),
        (["--retrain-on-loss"], "give that too"),
        (["--label-input", "in", "--label-set", "margin=2"], "margin 2"),
        (["--label-input", "in", "--label-set", "colour=2"], "colour 2"),
        ([], "no Prefect server is configured"),
    ],
)
def test_invalid_options_are_one_line(capfd, tmp_path, arguments, says, monkeypatch):
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    with temporary_settings(
        restore_defaults={PREFECT_API_URL}
    ):  # other tests have configured a server
        outcome = call(capfd, "serve", *arguments, "--store", tmp_path / "store")
    assert outcome.code == 2, outcome.err
    assert says in outcome.err
    assert outcome.err.count("\n") == 1
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("answer", "seconds", "says"),
    [
        (lambda _, stopped: stopped.wait(60), 1, "no answer within 1 s"),
        (sending(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n"), 60, "401"),
        (sending(b"HTTP/1.1 504 Gateway Timeout\r\nContent-Length: 0\r\n\r\n"), 4, "504"),
    ],
    ids=["silent", "refuses", "proxy"],
)
def test_serve_without_usable_server_gives_up(capfd, tmp_path, monkeypatch, answer, seconds, says):
    monkeypatch.setattr(deployments, "SECONDS_FOR_SERVER", seconds)
    with server(answer) as (url, requests), temporary_settings({PREFECT_API_URL: f"{url}/api"}):
        printed = call(capfd, "serve", "--interval", "60", "--store", tmp_path / "store")
    assert printed.code == 2
    assert f"the Prefect server at {url}/api cannot be used (" in printed.err
    assert says in printed.err
    assert printed.err.count("\n") == 1
    # A server behind a proxy may be starting.
    assert (len(requests) > 1) == (says == "504")


def test_only_a_run_of_the_same_config_resumes(tmp_path, small_config):
    store = Store(tmp_path)
    assert run_to_resume(store, small_config) is None
    run = nnbuild.open_run(small_config, tmp_path)
    other = RunConfig.model_validate(small_config.model_dump() | {"seed": 8})
    assert run_to_resume(store, small_config) == run.run_id
    assert run_to_resume(store, other) is None
    with nnbuild.run_context(run):
        assert run_to_resume(store, small_config) is None


def test_hang_that_ignores_signals_is_killed():
    program = (
        "import signal, time\n"
        "from nnbuild.runtime.signals import hard_timeout\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "with hard_timeout(0.2, grace=0.3):\n"
        "    while True: time.sleep(1)\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, timeout=120, check=False)
    assert ended.returncode == -14
