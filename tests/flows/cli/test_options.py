"""Options: their defaults, choices and names agree with the settings that they set."""

import os
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
from command_line import call

import nnbuild
from flows.cli.app import load_commands
from flows.cli.run import _SETTING_OF_OPTION
from flows.cli.serve import _DEFAULT_PRUNE_CRON, _DEFAULT_SCORE_CRON
from flows.schedules import DEFAULT_CRON
from nnbuild.config.schema import RunConfig, default_data_dir
from nnbuild.scoring import ScoreConfig
from nnbuild.sweep import SweepConfig, sweep_config

COMMANDS = load_commands().commands
FIRST = ["run", "score", "label", "sweep", "serve"]


def options(command):
    return {each.name: each for each in COMMANDS[command].params}


def default_of(setting):
    value = RunConfig()
    for name in setting.split("."):
        value = getattr(value, name)
    return value


def literals(annotation):
    """The texts of a field that has choices; () for any other."""
    found = [each for each in get_args(annotation) if isinstance(each, str)]
    return tuple(found) or tuple(
        text for each in get_args(annotation) if each is not None for text in literals(each)
    )


def field_of(setting):
    kind = RunConfig
    *sections, name = setting.split(".")
    for section in sections:
        kind = kind.model_fields[section].annotation
    return kind.model_fields[name]


RUN_OPTIONS = sorted(_SETTING_OF_OPTION)
SCORE_OPTIONS = sorted(ScoreConfig.model_fields.keys() - {"input", "keep"})


@pytest.mark.parametrize("name", RUN_OPTIONS)
@pytest.mark.parametrize("command", ["run", "sweep"])
def test_run_option_default_is_the_settings(command, name):
    option = options(command).get(name)
    if option is not None:
        assert option.default == default_of(_SETTING_OF_OPTION[name])


@pytest.mark.parametrize("name", SCORE_OPTIONS)
def test_score_option_default_is_the_settings(name):
    assert options("score")[name].default == ScoreConfig.model_fields[name].default


@pytest.mark.parametrize("name", ["objective", "seeds", "storage"])
def test_sweep_option_default_is_the_settings(name):
    assert options("sweep")[name].default == SweepConfig.model_fields[name].default


def test_sweep_trials_default_is_the_searchs():
    config = sweep_config({"search": {"training.epochs": "1..3"}}, RunConfig())
    assert options("sweep")["trials"].default == config.trials


def test_shown_defaults_are_true(monkeypatch, tmp_path):
    assert options("serve")["cron"].show_default == DEFAULT_CRON
    assert options("serve")["score_cron"].show_default == _DEFAULT_SCORE_CRON
    assert options("serve")["prune_cron"].show_default == _DEFAULT_PRUNE_CRON
    monkeypatch.setenv("NNBUILD_DATA_DIR", str(tmp_path))
    assert default_data_dir() == tmp_path
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NNBUILD_STORE", raising=False)
    assert options("runs")["store"].show_default == "$NNBUILD_STORE or ./nnbuild-store"
    assert nnbuild.Store().root == tmp_path / "nnbuild-store"


def refuses(capfd, command, option, choices):
    outcome = call(capfd, command, option, "nonsense")
    expected = ", ".join(map(repr, choices))
    assert outcome.code == 2
    assert outcome.err == (
        f"nnbuild: Invalid value for '{option}': 'nonsense' is not one of {expected}; "
        f"see nnbuild {command} --help\n"
    )


@pytest.mark.parametrize("name", ["fallback", "dtype_policy"])
def test_run_choices_are_the_settings(capfd, name):
    choices = literals(field_of(_SETTING_OF_OPTION[name]).annotation)
    refuses(capfd, "run", f"--{name.replace('_', '-')}", choices)


@pytest.mark.parametrize("name", ["engine", "on_error"])
def test_score_choices_are_the_settings(capfd, name):
    choices = literals(ScoreConfig.model_fields[name].annotation)
    refuses(capfd, "score", f"--{name.replace('_', '-')}", choices)


def test_sweep_choices_are_the_settings(capfd):
    refuses(
        capfd, "sweep", "--objective", literals(SweepConfig.model_fields["objective"].annotation)
    )


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_help_cuts_no_text_short(capfd, command):
    assert "…" not in call(capfd, command, "--help").out


def test_bad_number_is_named(capfd):
    outcome = call(capfd, "run", "--epochs", "many")
    assert "'--epochs': 'many' should be a valid integer" in outcome.err


def program(*arguments, **environment):
    """Return what the command prints in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "flows.cli.main", *arguments],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | environment,
        cwd=Path(__file__).parents[3],
    ).stdout


def test_help_lists_run_and_score_first():
    shown = program("--help")  # in this process the order is that of the tests' imports
    places = [shown.index(f"│ {name} ") for name in FIRST]
    assert places == sorted(places)
    assert all(shown.index(f"│ {name} ") > places[-1] for name in COMMANDS.keys() - set(FIRST))


def test_version_is_that_of_the_command(capfd):
    shown = call(capfd, "--version")
    assert shown.code == 0
    assert shown.out == call(capfd, "version").out
    assert shown.out.startswith(f"{nnbuild.__version__}+")


def test_bash_completion_offers_commands():
    environment = {"COMP_WORDS": "nnbuild sco", "COMP_CWORD": "1"}
    assert program(_NNBUILD_COMPLETE="complete_bash", **environment).split() == ["score"]
