"""Options: their defaults, choices and names agree with the settings that they set."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
from command_line import call

import nnbuild
from flows.cli.app import load_commands
from flows.cli.serve_settings import DEFAULT_PRUNE_CRON, DEFAULT_SCORE_CRON
from flows.cli.settings import SETTING_OF_OPTION, option_of
from flows.schedules import DEFAULT_CRON
from nnbuild.config.schema import RunConfig, default_data_dir
from nnbuild.scoring import ScoreConfig
from nnbuild.sweep import SweepConfig, sweep_config

ROOT = Path(__file__).parents[3]
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


RUN_OPTIONS = sorted(SETTING_OF_OPTION)
SCORE_OPTIONS = sorted(ScoreConfig.model_fields.keys() - {"input", "keep"})


@pytest.mark.parametrize("name", RUN_OPTIONS)
@pytest.mark.parametrize("command", ["run", "sweep"])
def test_run_option_default_is_the_settings(command, name):
    option = options(command).get(name)
    if option is not None:
        assert option.default == default_of(SETTING_OF_OPTION[name])


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
    assert options("serve")["score_cron"].show_default == DEFAULT_SCORE_CRON
    assert options("serve")["prune_cron"].show_default == DEFAULT_PRUNE_CRON
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
    choices = literals(field_of(SETTING_OF_OPTION[name]).annotation)
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


def strings_of_the_library():
    """Every string of the library that is not a docstring, with its file."""
    for path in sorted((ROOT / "nnbuild").rglob("*.py")):
        tree = ast.parse(path.read_text())
        documentation = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            is_text = isinstance(node, ast.Constant) and isinstance(node.value, str)
            if is_text and id(node) not in documentation:
                yield path.relative_to(ROOT).as_posix(), node.value


def test_library_names_no_option():
    allowed = {"nnbuild/store/commands.py", "nnbuild/sweep/runner.py"}  # it starts a Dask worker
    found = {path for path, text in strings_of_the_library() if re.search(r"--[a-z]", text)}
    assert found <= allowed


def test_settings_of_errors_have_options():
    found = {
        keyword.value.value
        for path in sorted((ROOT / "nnbuild").rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        for keyword in node.keywords
        if keyword.arg == "setting" and isinstance(keyword.value, ast.Constant)
    }
    assert {"dataset.name", "keep", "storage"} <= found
    commands = COMMANDS.values()
    assert [each for each in found if not any(option_of(one, each) for one in commands)] == []


@pytest.mark.parametrize(
    ("command", "setting", "option"),
    [
        ("run", "dataset.name", "--dataset"),
        ("score", "id_column", "--id"),
        ("score", "label_column", "--label-column"),
        ("label", "label_column", "--label"),
        ("live", "column", "--slice"),
        ("serve", "drift_psi", None),
        ("sql", "statement", None),
    ],
)
def test_option_of_a_setting_is_the_commands(command, setting, option):
    assert option_of(COMMANDS[command], setting) == option


@pytest.mark.usefixtures("prefect_server")  # otherwise the command starts one for this process
def test_error_appends_the_option(capfd, tmp_path):
    outcome = call(capfd, "run", "--dataset", "minst", "--store", str(tmp_path / "store"))
    assert outcome.code == 2
    assert outcome.err.endswith("did you mean 'mnist'? (option --dataset)\n")
    outcome = call(capfd, "serve", "--score-input", "in", "--score-set", "drift_psi=-1")
    assert outcome.err.startswith("nnbuild: drift_psi -1: ")


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
