"""Scheduled pruning: the flow, its deployment, and the options of `serve`."""

import pytest
from command_line import call
from prefect import get_client
from store_contents import StoreFiller

from flows.deployments import _deployment
from flows.scheduled import scheduled_prune
from flows.schedules import Plan, cron_schedule
from nnbuild.pipeline.retention import RetentionConfig
from nnbuild.store import Store


def test_scheduled_prune_deletes_old_runs(trained, tmp_path, prefect_server):
    filler = StoreFiller(tmp_path / "filled", Store(trained))
    runs = [filler.run(days_old=days) for days in (400, 399, 398)]
    pruned = scheduled_prune(RetentionConfig(keep=1), str(filler.store.root), flow_run_days=1)
    assert (list(pruned.runs), filler.store.run_ids()) == (runs[:2], runs[2:])
    with get_client(sync_client=True) as client:
        tables = client.read_artifacts()
    assert any(
        str(each.key).startswith("nnbuild-pruned-") and runs[0] in str(each.data) for each in tables
    )


def test_deployment_has_form(prefect_server):
    config = RetentionConfig(keep=30, scores=True)
    parameters = {"config": config.model_dump(mode="json"), "store": "/srv/store"}
    plan = Plan([cron_schedule("0 7 * * *", "UTC", "prune-1")], parameters)
    made = _deployment(scheduled_prune, "store-1", plan, "enqueue", "Deletes old runs.")
    schema = made._parameter_openapi_schema.definitions["RetentionConfig"]
    assert set(schema["properties"]) == {"keep", "keep_days", "scores"}
    assert made.flow_name == "scheduled-prune"


SCORED = ("--score-input", "/srv/in/date={date}/", "--prune-set", "scores=true")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--prune", 0), "'0' should be greater than or equal to 1"),
        (("--prune-cron", "0 7 * * *"), "have no effect without --prune"),
        (("--prune-prefect", 30), "have no effect without --prune"),
        (("--prune", 5, "--prune-set", "keep_days=0"), "keep_days is 0: input should be greater"),
        (("--prune", 5, "--prune-set", "keeps=1"), "keeps is 1: extra inputs are not permitted"),
        (("--prune", 5, "--prune-cron", "0 7 * *"), "has 4 fields"),
        (("--prune", 5, *SCORED), "--prune 5 keeps fewer scoring jobs than the 7 days"),
    ],
)
def test_bad_option_is_one_line(capfd, tmp_path, arguments, message):
    told = call(capfd, "serve", *arguments, "--store", tmp_path / "store")
    assert (told.code, len(told.err.splitlines())) == (2, 1)
    assert message in told.err
    assert not (tmp_path / "store").exists()


def test_serve_passes_settings_on(capfd, tmp_path, monkeypatch):
    served = []
    monkeypatch.setattr(
        "flows.deployments.serve_until_stopped", lambda *_, pruning, **__: served.append(pruning)
    )
    arguments = ("--prune", 5, *SCORED, "--prune-set", "keep_days=7", "--prune-prefect", 30)
    told = call(capfd, "serve", *arguments, "--store", tmp_path / "store")
    assert told.code == 0, told.err
    (plan,) = served
    assert plan.schedules == [{"cron": "0 7 * * *", "timezone": "UTC", "slug": "prune-1"}]
    assert plan.parameters == {
        "config": {"keep": 5, "keep_days": 7, "scores": True},
        "store": str(tmp_path / "store"),
        "flow_run_days": 30,
        "timeout_seconds": None,
    }
    call(capfd, "serve", "--store", tmp_path / "store")
    assert served[1:] == [None]
