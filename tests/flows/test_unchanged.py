"""A run with nothing new is skipped: on a schedule, and on labelled days by `nnbuild run` too."""

from datetime import UTC, datetime

import pytest
from command_line import call
from labelled_days import FIRST, LabelledDays, train
from prefect import get_client

from flows.deployment_check import SKIPPED
from flows.scheduled import scheduled_retrain
from nnbuild.store import Store


def today(shift=0):
    """Return the number of a day from today on, as `LabelledDays` counts."""
    return (datetime.now(UTC).date() - FIRST).days + shift


@pytest.fixture
def days(tmp_path):
    days = LabelledDays(tmp_path)
    for shift in (-2, -1):
        days.write(today(shift))
    return days


def test_scheduled_run_without_news_is_skipped(days, tmp_path, prefect_server, monkeypatch):
    store = Store(tmp_path / "store")
    sent = []
    monkeypatch.setattr("tasks.events.emit_event", lambda *values, **_: sent.append(values))
    config = days.config(min_new=40)
    run = train(config, store.root, datetime.now(UTC))
    parameters = {"config": config.model_dump(), "store": str(store.root)}
    state = scheduled_retrain(**parameters, return_state=True)
    assert (state.type.value, state.name) == ("COMPLETED", SKIPPED)
    assert f"no new labelled images since run {run.run_id}; dataset.min_new is 40" in state.message
    assert not sent
    with get_client(sync_client=True) as client:
        flow_run = client.read_flow_run(state.state_details.flow_run_id)
        assert flow_run.name.startswith("lab-labelled-")
    days.write(today(), rows=40)
    ended = scheduled_retrain(**parameters, return_state=True)
    assert ended.name == "Completed"
    assert len(store.run_ids()) == 2
    assert sent


def test_command_without_news_is_skipped(days, tmp_path, capfd, monkeypatch):
    store = Store(tmp_path / "store")
    config = days.config(window=5)
    path = tmp_path / "run.toml"
    path.write_text(
        f"seed = 3\n[dataset]\nname = '{days.pattern}'\nwindow = 5\n[model]\nname = 'lab'\n"
        "[training]\nepochs = 1\nbatch_size = 16\nthreads = 2\nvalidation_fraction = 0.2\n"
    )
    run = train(config, store.root, datetime.now(UTC))
    monkeypatch.setattr("flows.cli.run.start_prefect", pytest.fail)
    arguments = ("run", "--config", path, "--store", store.root)
    skipped = call(capfd, *arguments, "--json")
    assert skipped.code == 0
    assert skipped.json == {
        "run_id": None,
        "status": "skipped",
        "outcome": "skipped",
        "reason": f"no new labelled images since run {run.run_id}",
        "last_run": run.run_id,
    }
    printed = call(capfd, *arguments)
    assert printed.out.count("\n") == 1
    assert "--unchanged run" in printed.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--as-of", "2020-01-01"], "no run on labelled days for as_of 2020-01-01"),
        (["--as-of", "yesterday"], "'yesterday' is not a valid day"),
        (["--dataset", "DAYS", "--as-of", "2999-01-01"], "(option --as-of)"),
        (["--dataset", "DAYS", "--as-of", "2020-01-01"], "no labelled images until 2020-01-01"),
        (["--dataset", "/x/{date:%m}"], "does not say which day"),
        (["--dataset", "digits", "--set", "dataset.window=3"], "window has no effect"),
        (["--dataset", "DAYS", "--set", "dataset.window=0"], "dataset.window is 0"),
        (["--dataset", "DAYS", "--set", "dataset.timezone=Mars"], "not a known timezone"),
    ],
)
def test_bad_input_is_one_line(days, tmp_path, capfd, arguments, message):
    given = [each.replace("DAYS", days.pattern) for each in arguments]
    refused = call(capfd, "run", *given, "--store", tmp_path / "store")
    assert (refused.code, refused.out) == (2, "")
    assert message in refused.err
    assert refused.err.count("\n") == 1
