"""The command line on good input; `test_bad_input.py` has the rest."""

import io
import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from command_line import call

from flows.cli.app import load_commands
from flows.cli.console import print_table
from nnbuild.config import loading
from nnbuild.errors import ConfigError
from nnbuild.store import Store

KEYS = {
    *("run_id", "status", "dataset", "test_accuracy", "test_loss", "promoted", "seconds"),
    *("history", "predictions", "report", "model"),
}


@pytest.fixture(scope="module")
def finished(request, tmp_path_factory, small_folder):
    """A run that the command line made, and its store."""
    request.getfixturevalue("_prefect_harness")
    root = tmp_path_factory.mktemp("cli") / "store"
    arguments = [
        "run",
        "--dataset",
        small_folder,
        "--model",
        "lab",
        "--epochs",
        2,
        "--batch-size",
        16,
        "--json",
    ]
    program = [sys.executable, "-m", "flows.cli.main", *map(str, arguments), "--store", str(root)]
    done = subprocess.run(
        program, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[3]
    )
    return done, root


def test_run_prints_its_outputs(finished):
    done, root = finished
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told.keys() >= KEYS
    assert told["status"] == "succeeded"
    assert set(told["seconds"]) == {"fit", "score", "whole"}
    for place in ("history", "predictions", "model", "report"):
        assert Path(told[place]).exists()
    assert Store(root).run_ids() == [told["run_id"]]


def test_log_has_one_line_per_epoch(finished):
    done, _ = finished
    lines = done.stderr.splitlines()
    assert [line.split()[:2] for line in lines if line.startswith("epoch")] == [
        ["epoch", "1/2"],
        ["epoch", "2/2"],
    ]
    assert len(lines) == 3, done.stderr
    assert "\x1b" not in done.stderr
    assert "\r" not in done.stderr


def test_runs_and_history_show_the_run(capfd, finished):
    _, root = finished
    run_id = Store(root).run_ids()[0]
    listed = call(capfd, "runs", "--store", root)
    assert run_id in listed.out
    assert call(capfd, "runs", "--store", root, "--json").json["runs"][0]["run_id"] == run_id
    tidy = pd.read_csv(io.StringIO(call(capfd, "history", run_id, "--store", root, "--csv").out))
    assert list(tidy.columns) == ["run_id", "epoch", "metric", "value", "logged_at"]
    wide = pd.read_csv(io.StringIO(call(capfd, "history", "--wide", "--store", root, "--csv").out))
    assert list(wide["epoch"]) == [1, 2]
    assert {
        "loss",
        "accuracy",
        "val_loss",
        "val_accuracy",
        "learning_rate",
        "epoch_seconds",
    } <= set(wide.columns)
    expected = tidy[(tidy.metric == "loss") & (tidy.epoch == 2)]["value"].item()
    assert wide["loss"][1] == expected
    assert len(call(capfd, "history", "--store", root, "--json").json["history"]) == len(tidy)
    assert "val_accuracy" in call(capfd, "history", run_id, "--store", root).out


def test_no_command_prints_help(capfd):
    shown = call(capfd)
    assert shown.code == 2
    assert "Train and score" in shown.out
    assert not shown.err


@pytest.mark.parametrize("terminal", [True, False])
def test_table_is_not_squeezed(capfd, monkeypatch, terminal):
    monkeypatch.setattr("sys.stdout.isatty", lambda: terminal)
    monkeypatch.setenv("COLUMNS", "80")
    row = {f"setting_{number}": 0.12345 for number in range(20)} | {"config": "x" * 900}
    print_table([row], list(row), "nothing")
    lines = capfd.readouterr().out.splitlines()
    assert lines[1].count("0.12345") == 20
    assert len(lines) == (1 + 900 // 60 if terminal else 2)
    assert sum(line.count("x") for line in lines[1:]) == 900


def test_empty_store_is_no_error(capfd, tmp_path):
    Store(tmp_path / "new").create()
    for command in ("runs", "history"):
        shown = call(capfd, command, "--store", tmp_path / "new")
        assert shown.code == 0
        assert "nnbuild run" in shown.out


def test_doctor_checks_store_and_data(capfd, tmp_path):
    found = call(capfd, "doctor", "--store", tmp_path, "--json")
    assert found.code == 0, found.out
    whats = {each["what"] for each in found.json["findings"]}
    assert {"Python", "store", "mnist", "Prefect", "tensorflow", "keras"} <= whats
    (tmp_path / "file").write_text("")
    broken = call(capfd, "doctor", "--store", tmp_path / "file")
    assert broken.code == 1
    assert "is a file" in broken.out


def commands():
    return sorted(load_commands().commands)


@pytest.mark.parametrize("command", commands())
def test_command_help_has_example(capfd, command):
    shown = call(capfd, command, "--help")
    assert shown.code == 0
    assert f"nnbuild {command}" in shown.out
    assert "Example" in shown.out
    words = "".join(
        character for character in shown.out if character.isalnum() or character in "[]"
    )
    for parameter in load_commands().commands[command].params:
        told = "".join(each for each in parameter.help or "" if each.isalnum() or each in "[]")
        assert told in words, f"{parameter.name}: what is in brackets is taken for markup"


def test_options_are_documented():
    page = Path(__file__).parents[3] / "docs" / "reference" / "command-line.md"
    text = page.read_text(encoding="utf-8")
    for name, command in load_commands().commands.items():
        assert f"## nnbuild {name}" in text
        for parameter in command.params:
            for option in parameter.opts:
                if option.startswith("--"):
                    assert f"`{option}" in text, (name, option)


def test_options_override_file_and_set(tmp_path):
    from flows.cli.settings import load_config

    path = tmp_path / "run.toml"
    path.write_text(
        'seed = 5\n[model]\nname = "lab"\n[training]\nepochs = 3\nlearning_rate = 0.5\n'
    )
    config = load_config(
        {"training": {"epochs": 7}}, path, ["training.learning_rate=0.25", "dataset.name=digits"]
    )
    assert (config.seed, config.model.name, config.training.epochs) == (5, "lab", 7)
    assert (config.training.learning_rate, config.dataset.name) == (0.25, "digits")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('dataset = "digits"\n', "line 1: dataset is 'digits'"),
        ("[[training]]\nepochs = 5\n", "training is "),
        ("[training]\nepochs = 2.5\n", "line 2: training.epochs is 2.5"),
        ("[training]\nepoch = 2\n", "line 2: unknown key 'training.epoch'"),
        ("[sweep]\ntrials = 2\n", "line 1: unknown key 'sweep'; a file with a sweep is for"),
    ],
)
def test_file_is_checked_also_where_options_overlay_it(tmp_path, text, says):
    from flows.cli.settings import load_config

    path = tmp_path / "run.toml"
    path.write_text(text)
    options = {"dataset": {"name": "mnist"}, "training": {"epochs": 1}}
    with pytest.raises(ConfigError) as caught:
        load_config(options, path, [])
    assert str(caught.value).startswith(str(path))
    assert says in str(caught.value)


def test_file_may_need_an_option(tmp_path):
    """A rate of fine-tuning alone has no effect, and is refused."""
    from flows.cli.settings import load_config

    path = tmp_path / "run.toml"
    path.write_text('[model]\nname = "a:b"\n[training]\nfine_tuning_rate = 0.001\n')
    config = load_config({}, path, ["training.freeze_epochs=1"])
    assert config.training.fine_tuning_rate == 0.001


def test_byte_order_mark_is_skipped(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text("seed = 3\n", encoding="utf-8-sig")
    assert loading.read_toml(path) == {"seed": 3}
