"""Schedules that Prefect would misread, or fail on later, are refused before it sees them."""

import math
import zoneinfo
from datetime import UTC, date, datetime
from pathlib import Path

import pytest
from command_line import call
from hypothesis import given
from hypothesis import strategies as st

from flows.cli import serve as serving
from flows.cli.serve_settings import scheduled_config
from flows.scheduled import day_of
from flows.schedules import cron_schedule, interval_schedule, require_timezone, timezones
from nnbuild.config.schema import RunConfig
from nnbuild.errors import ConfigError

NEVER = ["0 0 31 2 *", "0 0 30 2 *", "0 0 31 4,6 *", "5 4 31 2,4,6,9,11 ?", "0 0 30 feb 1"]
MALFORMED = [
    "",
    "   ",
    "@daily",
    "@reboot",
    "3",
    "0 3 * *",
    "0 0 3 * * *",
    "0 0 3 * * ? 2030",
    "0 3 * * * * * *",
    "0 3 * * Monday",
    "61 3 * * *",
    "0 24 * * *",
    "0 3 0 * *",
    "0 3 32 * *",
    "0 3 * 13 *",
    "0 3 * * 8",
    "*/0 3 * * *",
    "0 3 15W * *",
    "0 3 L-3 * *",
    "0 3 * * 1#6",
    "R 3 * * *",
    "R(0-30) 3 * * *",
    "r/5 3 * * *",
    "H H * * *",
    "H(0-5) 3 * * *",
    "٣ 3 * * *",
    "0 \uff13 * * *",
    "0\u00a03 * * *",
    "0 3 * *\u3000*",
    "0,3,*,*,*",
]
VALID = [
    "0 3 * * *",
    "  0\t3  * * *\n",
    "*/5 0-6,22 1,15 jan-mar MON",
    "0 0 29 2 *",
    "0 0 29 2 1",
    "0 3 L * *",
    "0 3 * * L5",
    "0 3 * 2 mon#5",
    "0 3 ? * 7",
    "0 0 31 1-12 *",
    "30 2 * 3 sun",
]


@pytest.mark.parametrize("cron", NEVER)
def test_cron_that_never_matches_is_refused(cron):
    with pytest.raises(ConfigError, match="never matches"):
        cron_schedule(cron, "UTC", "x")


@pytest.mark.parametrize("cron", MALFORMED)
def test_malformed_cron_is_refused(cron):
    with pytest.raises(ConfigError, match=r"five fields|not supported"):
        cron_schedule(cron, "UTC", "x")


@pytest.mark.parametrize("cron", VALID)
def test_valid_cron_is_accepted(cron):
    schedule = cron_schedule(cron, "Europe/Berlin", "x")
    assert schedule == {"cron": " ".join(cron.split()), "timezone": "Europe/Berlin", "slug": "x"}


@given(st.lists(st.text("0123456789*/,-?#LlRhWmonfeb+@. ", max_size=6), min_size=1, max_size=7))
def test_any_cron_is_accepted_or_refused(fields):
    cron = " ".join(fields)
    try:
        schedule = cron_schedule(cron, "UTC", "x")
    except ConfigError:
        return
    assert len(schedule["cron"].split(" ")) == 5


@pytest.mark.parametrize(
    "name",
    [
        "localtime",
        "Factory",
        "posixrules",
        "posix/Europe/Berlin",
        "right/UTC",
        "leapseconds",
        "europe/berlin",
        "Berlin",
        "UTC+1",
        "+01:00",
        "",
        " UTC",
        "../etc/localtime",
        "/usr/share/zoneinfo/UTC",
    ],
)
def test_unknown_timezone_is_refused(name):
    with pytest.raises(ConfigError, match="timezone"):
        require_timezone(name)


def test_timezones_are_readable():
    assert {"UTC", "Europe/Berlin", "Pacific/Kiritimati", "Etc/GMT-14"} <= timezones()
    assert all(zoneinfo.ZoneInfo(name).key == name for name in timezones())
    assert require_timezone("Asia/Kathmandu") == "Asia/Kathmandu"
    with pytest.raises(ConfigError, match="did you mean 'Europe/Berlin'"):
        require_timezone("Europe/Berlon")


@pytest.mark.parametrize("seconds", [math.nan, math.inf, -math.inf, 0, -1, 1e-9, 0.5, 1e10, 1e308])
def test_interval_out_of_bounds_is_refused(seconds):
    with pytest.raises(ConfigError, match="expected seconds from 1 to"):
        interval_schedule(seconds)


@pytest.mark.parametrize("seconds", [1, 15.5, 86400, 366 * 86400])
def test_interval_in_bounds_is_accepted(seconds):
    assert interval_schedule(seconds)["interval"] == seconds


PLAN = {
    "two of a name": (
        2 * '[[schedule]]\nname = "a"\ncron = "0 3 * * *"\n',
        "two schedules are called 'a'",
    ),
    "never matches": ('[[schedule]]\ncron = "0 0 31 2 *"', "schedule 1: cron '0 0 31 2 *' never"),
    "six fields": (
        '[[schedule]]\ncron = "0 3 * * *"\n[[schedule]]\ncron = "0 0 3 * * *"',
        "schedule 2: cron '0 0 3 * * *' has 6 fields",
    ),
    "timezone": (
        '[[schedule]]\ncron = "0 3 * * *"\ntimezone = "localtime"',
        "schedule 1: unknown timezone 'localtime'",
    ),
    "number": ("[[schedule]]\ncron = 5", "cron is 5, expected a text"),
    "no name": ('[[schedule]]\ncron = "0 3 * * *"\nname = ""', "name is '', expected a text"),
    "config": ('[[schedule]]\ncron = "0 3 * * *"\nconfig = 3', "config is 3, expected a table"),
    "no table": ('schedule = ["0 3 * * *"]', "schedule 1 has 0 3 * * *, expected cron"),
    "no cron": ('[[schedule]]\nname = "x"', "schedule 1 has ['name'], expected cron"),
}


@pytest.mark.parametrize(("plan", "says"), PLAN.values(), ids=PLAN)
def test_invalid_plan_is_refused(capfd, tmp_path, plan, says):
    (tmp_path / "plan.toml").write_text(plan)
    outcome = call(capfd, "serve", "--plan", tmp_path / "plan.toml", "--store", tmp_path / "store")
    assert outcome.code == 2
    assert says in outcome.err
    assert outcome.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--cron", "0 3 * * *", "--cron", "0 0 31 2 *"], "never matches"),
        (["--score-input", "in", "--score-cron", "0 0 30 2 *"], "never matches"),
        (["--score-input", "in", "--score-cron", "0 0 5 * * *"], "has 6 fields"),
        (["--score-input", "in", "--timezone", "Factory"], "unknown timezone 'Factory'"),
        (["--interval", "nan"], "--interval nan"),
        (["--interval", "1e308"], "--interval 1e+308"),
        (["--set", 'dataset.name="mnst"'], "did you mean 'mnist'"),
        (["--set", 'dataset.fallback="digits"'], "not allowed in scheduled runs"),
        (["--set", 'trial.sweep="a"', "--set", "trial.number=1"], "not allowed in scheduled runs"),
    ],
)
def test_serve_refuses_invalid_schedules(capfd, tmp_path, arguments, says):
    outcome = call(capfd, "serve", *arguments, "--store", tmp_path / "store")
    assert outcome.code == 2
    assert says in outcome.err
    assert outcome.err.count("\n") == 1


@pytest.mark.parametrize(
    ("moment", "timezone", "day"),
    [
        ((2026, 11, 26, 11, 35), "Pacific/Kiritimati", (2026, 11, 27)),
        ((2026, 11, 26, 9, 59), "Pacific/Kiritimati", (2026, 11, 26)),
        ((2026, 11, 26, 11, 35), "Pacific/Pago_Pago", (2026, 11, 26)),
        ((2026, 11, 26, 10, 59), "Pacific/Pago_Pago", (2026, 11, 25)),
        ((2026, 3, 28, 23, 0), "Europe/Berlin", (2026, 3, 29)),
        ((2026, 3, 29, 21, 59), "Europe/Berlin", (2026, 3, 29)),
        ((2026, 3, 29, 22, 0), "Europe/Berlin", (2026, 3, 30)),
        ((2026, 10, 25, 22, 59), "Europe/Berlin", (2026, 10, 25)),
        ((2026, 10, 25, 23, 0), "Europe/Berlin", (2026, 10, 26)),
        ((2026, 1, 1, 0, 30), "America/St_Johns", (2025, 12, 31)),
        ((2026, 11, 26, 23, 59), "UTC", (2026, 11, 26)),
    ],
)
def test_day_depends_on_the_timezone(moment, timezone, day):
    assert day_of(datetime(*moment, tzinfo=UTC), timezone) == date(*day)


@pytest.fixture
def served(monkeypatch):
    """A function that returns the plans that `serve` would register."""
    import flows.deployments

    plans = []
    monkeypatch.setattr(
        flows.deployments,
        "serve_until_stopped",
        lambda *arguments, **_: plans.extend(arguments[1:3]),
    )

    def serve(store, **changes):
        serving.serve(**changes, store=str(store))
        return plans

    return serve


@pytest.fixture
def plan_file(tmp_path):
    """A plan of two schedules: the first one has a dataset and a timezone of its own."""
    path = tmp_path / "plan.toml"
    path.write_text(
        """
        [[schedule]]
        cron = "0 3 * * *"
        timezone = "Pacific/Kiritimati"
        config = { dataset = { name = "digits" }, model = { name = "tiny" } }
        [[schedule]]
        cron = "0 5 * * 0"
        config = { model = { name = "fast" } }
        """
    )
    return path


def test_manual_run_of_a_plan_uses_its_first_schedule(served, tmp_path, plan_file):
    retraining, _ = served(tmp_path, plan=plan_file)
    first, _ = retraining.schedules
    assert retraining.parameters == first["parameters"]
    config = retraining.parameters["config"]
    assert (config["dataset"]["name"], config["model"]["name"]) == ("digits", "tiny")


@pytest.mark.parametrize(
    "changes",
    [{}, {"interval": 60.0}, {"cron": ["0 3 * * *"]}],
    ids=["default", "interval", "cron"],
)
def test_manual_run_gets_the_timezone_of_the_schedule(served, tmp_path, changes):
    retraining, _ = served(tmp_path, timezone="Pacific/Kiritimati", **changes)
    assert retraining.parameters["config"]["dataset"]["timezone"] == "Pacific/Kiritimati"
    assert retraining.parameters == retraining.schedules[0]["parameters"]


def test_timezone_of_the_dataset_takes_precedence(served, tmp_path, plan_file):
    settings = ['dataset.timezone="Asia/Kathmandu"']
    retraining, _ = served(tmp_path, plan=plan_file, settings=settings, timezone="Europe/Berlin")
    runs = [retraining.parameters, *(each["parameters"] for each in retraining.schedules)]
    assert {each["config"]["dataset"]["timezone"] for each in runs} == {"Asia/Kathmandu"}


def test_manual_run_of_a_plan_uses_the_common_settings(served, tmp_path, plan_file):
    retraining, _ = served(tmp_path, plan=plan_file, settings=["seed=5"])
    assert [each["parameters"]["config"]["seed"] for each in retraining.schedules] == [5, 5]
    config = retraining.parameters["config"]
    assert (config["seed"], config["dataset"]["name"]) == (5, "mnist")
    assert config["dataset"]["timezone"] == "Pacific/Kiritimati"


def test_timezone_is_that_of_planned_schedules_without_one(served, tmp_path, plan_file):
    retraining, _ = served(tmp_path, plan=plan_file, timezone="Europe/Berlin")
    zones = ["Pacific/Kiritimati", "Europe/Berlin"]
    configs = [each["parameters"]["config"] for each in retraining.schedules]
    assert [each["timezone"] for each in retraining.schedules] == zones
    assert [each["dataset"]["timezone"] for each in configs] == zones


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--cron", "0 4 * * *"], "--cron and --plan exclude each other"),
        (["--interval", "60"], "--interval and --plan exclude each other"),
        (["--timezone", "Europe/Berlon"], "nnbuild: unknown timezone 'Europe/Berlon'"),
    ],
    ids=lambda argument: argument[0],
)
def test_serve_refuses_options_that_a_plan_would_ignore(
    capfd, tmp_path, plan_file, arguments, says
):
    plan_file.write_text(plan_file.read_text().replace('5 * * 0"', "5 * * 0\"\ntimezone = 'UTC'"))
    outcome = call(capfd, "serve", "--plan", plan_file, *arguments, "--store", tmp_path / "store")
    assert outcome.code == 2
    assert says in outcome.err
    assert outcome.err.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["--retrain-on-drift", "--score-input", "in"],
        ["--retrain-on-loss", "--label-input", "in"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_serve_refuses_to_answer_by_one_of_several_datasets(capfd, tmp_path, plan_file, arguments):
    outcome = call(capfd, "serve", "--plan", plan_file, *arguments, "--store", tmp_path / "store")
    assert outcome.code == 2
    assert f"{arguments[0]} retrains on one dataset" in outcome.err
    assert "('digits', 'mnist')" in outcome.err
    assert outcome.err.count("\n") == 1


def test_plan_of_one_dataset_may_retrain_on_drift(served, tmp_path, plan_file):
    plan_file.write_text(
        plan_file.read_text().replace("{ model", '{ dataset.name = "digits", model')
    )
    retraining, _ = served(tmp_path, plan=plan_file, retrain_on_drift=True, score_input="in")
    runs = [retraining.parameters, *(each["parameters"] for each in retraining.schedules)]
    assert {each["config"]["dataset"]["name"] for each in runs} == {"digits"}


def test_scoring_gets_its_timezone(served, tmp_path):
    _, scores = served(tmp_path, timezone="Pacific/Kiritimati", score_input="in/date={date}")
    assert scores.parameters["timezone"] == "Pacific/Kiritimati"
    assert [each["timezone"] for each in scores.schedules] == ["Pacific/Kiritimati"]


def test_paths_of_a_deployment_are_absolute(served, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    settings = ['dataset.name="mine"', 'dataset.data_dir="data"']
    retraining, _ = served(tmp_path, interval=60.0, settings=settings)
    dataset = retraining.parameters["config"]["dataset"]
    assert dataset["name"] == str(tmp_path / "mine")
    assert dataset["data_dir"] == str(tmp_path / "data")
    assert "fallback" not in dataset
    assert [each["slug"] for each in retraining.schedules] == ["interval"]


def test_scheduled_paths_hold_in_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()
    config = RunConfig.model_validate(
        {
            "dataset": {
                "name": "./pictures",
                "data_dir": "data",
                "keep": ["site"],
                "metadata": "about.csv",
            },
            "gate": {"golden": "golden.parquet"},
        }
    )
    scheduled = scheduled_config(config)
    dataset = scheduled.dataset
    paths = [dataset.name, dataset.data_dir, dataset.metadata, scheduled.gate.golden]
    expected = [tmp_path / name for name in ("pictures", "data", "about.csv", "golden.parquet")]
    assert [Path(each) for each in paths] == expected
    named = RunConfig.model_validate({"gate": {"golden": "digits"}})
    assert scheduled_config(named).gate.golden == "digits"
