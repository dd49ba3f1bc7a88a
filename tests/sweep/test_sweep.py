"""Sweeps: trials are runs, the best by validation goes to the gate, and nothing runs twice."""

import errno
from pathlib import Path

import psutil
import pytest
from command_line import call, tree_digest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey

from flows.sweep import sweep as sweep_flow
from nnbuild.config.schema import RunConfig
from nnbuild.errors import ConfigError, Interrupted, PrunedError, StoreError
from nnbuild.runtime import fault_injection
from nnbuild.store import Store, champion
from nnbuild.store.step_results import Decided
from nnbuild.sweep import TrialResult, make_sweep, open_sweep, sweep_config, sweep_context
from nnbuild.sweep.space import Dimension, dimension, grid_values, points
from nnbuild.sweep.study import Study
from nnbuild.sweep.trial import ObjectiveReporter


@pytest.fixture
def base(small_config) -> RunConfig:
    return RunConfig.model_validate(
        small_config.model_dump() | {"training": {"epochs": 1, "batch_size": 16, "threads": 2}}
    )


def test_points_are_all_combinations():
    assert points({"a": (1, 2), "b": ("x", "y")}) == [
        {"a": 1, "b": "x"},
        {"a": 1, "b": "y"},
        {"a": 2, "b": "x"},
        {"a": 2, "b": "y"},
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0.001,1e-2", (0.001, 0.01)),
        ("lab,convnet", ("lab", "convnet")),
        ("2, 4", (2, 4)),
        ("true", (True,)),
        ('["a,b"]', ("a,b",)),
    ],
)
def test_grid_values_parses_text(text, expected):
    assert grid_values("key", text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("log:1e-4..1e-1", Dimension(low=1e-4, high=0.1, log=True)),
        ("1..8", Dimension(low=1, high=8)),
        ("0.1..0.5", Dimension(low=0.1, high=0.5)),
        ("adam,sgd", Dimension(choices=("adam", "sgd"))),
    ],
)
def test_dimension_parses_text(text, expected):
    assert dimension("key", text) == expected


@pytest.mark.parametrize(
    "text", ["", "log:", "log:a..b", "log:0..1", "3..1", "1..1", "1..x", "1..inf"]
)
def test_dimension_invalid_text_raises(text):
    with pytest.raises(ConfigError):
        dimension("key", text)


def runs_of(store):
    return {row["run_id"]: row for row in store.read_table("runs").to_pylist()}


def test_only_best_trial_goes_to_gate(tmp_path, base):
    store = Store(tmp_path / "store")
    # The largest learning rate diverges, the smallest learns nothing in one epoch.
    grid = {"model.name": ["regularized"], "training.optimizer": ["sgd"], "model.l2": [10.0]}
    grid["training.learning_rate"] = [1e-6, 0.01, 100.0]
    config = sweep_config({"grid": grid, "seeds": 2}, base)
    swept = make_sweep(config, store.root)
    assert len(swept.trials) == 3
    finished = [trial for trial in swept.trials if trial.state == "finished"]
    failed = [trial for trial in swept.trials if trial.state == "failed"]
    assert failed
    assert "loss became" in failed[0].error
    runs = runs_of(store)
    assert set(runs) == {run for trial in swept.trials for run in trial.runs}
    assert store.unfinished_runs() == []
    values = [trial.value for trial in finished]
    assert values == sorted(values, reverse=True)
    for trial in finished:
        assert [runs[run]["seed"] for run in trial.runs] == [base.seed, base.seed + 1]
        found = [
            row["value"]
            for run in trial.runs
            for row in store.read_table("history", run).to_pylist()
            if row["metric"] == "val_accuracy"
        ]
        assert trial.value == pytest.approx(sum(found) / 2)
        for run in trial.runs:
            tag = RunConfig.model_validate_json(runs[run]["config"]).trial
            assert (tag.sweep, tag.number) == (swept.sweep_id, trial.number)
    assert swept.best == finished[0].runs[0] == champion.current(store)
    assert swept.promoted
    decisions = store.read_table("decisions").to_pylist()
    asked = [
        row["run_id"] for row in decisions if "only the best by validation" not in row["reason"]
    ]
    assert asked == [swept.best]
    # The same call again loads all results.
    assert make_sweep(config, store.root) == swept
    assert runs_of(store) == runs
    assert make_sweep(None, store.root, sweep_id=swept.sweep_id) == swept


class StopsIn:
    """Progress callback that stops like a signal in the nth epoch."""

    def __init__(self, number):
        self.left = number

    def step(self, *_): ...

    def epoch(self, *_):
        self.left -= 1
        if self.left == 0:
            raise Interrupted("stopped by signal 15", 15)


def test_stopped_search_ends_the_same(tmp_path, base):
    search = {"training.learning_rate": "log:1e-4..1e-1", "training.optimizer": "adam,sgd"}
    config = sweep_config({"search": search, "trials": 2}, base)
    through = make_sweep(config, tmp_path / "through")
    with pytest.raises(Interrupted) as stopped:
        make_sweep(config, tmp_path / "stopped", progress=StopsIn(2))
    assert any("nnbuild sweep --id" in note for note in stopped.value.__notes__)
    again = make_sweep(config, tmp_path / "stopped")

    def summary(swept):
        return [(trial.number, trial.values, trial.state, trial.value) for trial in swept.trials]

    assert summary(again) == summary(through)
    assert len(Store(tmp_path / "stopped").run_ids()) == 2
    # More trials of the same search are added to it.
    more = make_sweep(config.model_copy(update={"trials": 3}), tmp_path / "stopped")
    assert {trial.number for trial in more.trials} == {0, 1, 2}
    assert len(Store(tmp_path / "stopped").run_ids()) == 3


def test_trial_below_median_is_pruned(tmp_path, base):
    config = sweep_config(
        {"search": {"training.learning_rate": "log:1e-4..1e-1"}, "trials": 9}, base
    )
    sweep = open_sweep(config, tmp_path / "store")
    with sweep_context(sweep):
        study = Study(sweep)
        for accuracy in (0.5, 0.6, 0.7, 0.8, 0.9):  # Optuna's pruner lets the first five finish
            trial = study.ask()
            should_prune = study.pruning(trial.number)
            assert not any(should_prune(epoch, accuracy) for epoch in (1, 2, 3))
            study.record(ended(trial, "finished", accuracy))
        good, bad = study.ask(), study.ask()
        assert not study.pruning(good.number)(1, 0.95)
        reporter = ObjectiveReporter(None, "val_accuracy", study.pruning(bad.number))
        reporter.epoch(1, 1, {"val_accuracy": 0.1}, 0.0)  # the last epoch is never pruned
        with pytest.raises(PrunedError, match=r"pruned at epoch 2 of 3: val_accuracy 0\.1"):
            reporter.epoch(2, 3, {"val_accuracy": 0.1}, 0.0)
        study.record(ended(bad, "pruned", None))
        assert study.pruning(bad.number) is None
        assert [trial.number for trial in study.begun()] == list(range(7))
        assert study.begun()[5] == good


def test_storage_is_not_open_while_trial_trains(tmp_path, base):
    config = sweep_config({"search": {"training.learning_rate": "log:1e-4..1e-1"}}, base)
    sweep = open_sweep(config, tmp_path / "store")
    with sweep_context(sweep):
        study = Study(sweep)
        study.pruning(study.ask().number)(1, 0.5)
        assert (sweep.folder / "study.db").exists()
        opened = {Path(each.path).name for each in psutil.Process().open_files()}
        assert "study.db" not in opened
        assert len(study.begun()) == 1


def ended(trial, state, value):
    return TrialResult(**trial.model_dump(), state=state, value=value, runs=())


def test_pruned_trial_is_failed_run(tmp_path, base, monkeypatch):
    monkeypatch.setattr(
        Study, "pruning", lambda _, number: lambda epoch, _: number == 0 and epoch == 1
    )
    longer = base.model_copy(update={"training": base.training.model_copy(update={"epochs": 2})})
    config = sweep_config({"search": {"training.learning_rate": "0.01,0.02"}, "trials": 2}, longer)
    swept = make_sweep(config, tmp_path)
    assert [(trial.number, trial.state) for trial in swept.trials] == [
        (1, "finished"),
        (0, "pruned"),
    ]
    runs = runs_of(Store(tmp_path))
    (pruned,) = swept.trials[1].runs
    assert (runs[pruned]["status"], runs[pruned]["epochs"]) == ("failed", 1)
    assert runs[pruned]["error"].startswith("pruned at epoch 1 of 2")
    assert make_sweep(config, tmp_path) == swept


@pytest.mark.parametrize("start", [make_sweep, sweep_flow])
def test_failed_commit_revokes_decision(tmp_path, base, monkeypatch, prefect_server, start):
    commits = []

    def full(name):
        commits.extend([name] if name == "commit:linked" else [])
        if len(commits) > 1:  # the first one is the worse trial's, without the gate
            raise OSError(errno.ENOSPC, "No space left on device")

    config = sweep_config({"grid": {"training.learning_rate": [1e-5, 0.01]}}, base)
    with monkeypatch.context() as patch:
        patch.setattr(fault_injection, "failpoint", full)
        with pytest.raises(StoreError, match="No space left"):
            start(config, str(tmp_path))
    store = Store(tmp_path)
    (waiting,) = store.unfinished_runs()
    assert store.unfinished_run(waiting.run_id).load_result(Decided) is None
    assert champion.current(store) is None
    assert start(config, str(tmp_path)).promoted
    assert champion.current(store) == waiting.run_id


@pytest.fixture
def arguments(small_folder, tmp_path):
    given = [
        "sweep",
        "--dataset",
        small_folder,
        "--model",
        "lab",
        "--epochs",
        1,
        "--set",
        "training.threads=2",
    ]
    return [*given, "--store", tmp_path / "store"]


def test_command_reports_and_resumes_by_id(capfd, arguments, tmp_path, prefect_server):
    toml = tmp_path / "sweep.toml"
    toml.write_text(
        "[training]\nbatch_size = 16\n[sweep]\nseeds = 1\n"
        "[sweep.grid]\ntraining.learning_rate = [1e-5, 0.01]\n"
    )
    found = call(capfd, *arguments, "--config", toml, "--id", "rates", "--json")
    assert found.code == 0, found.err
    told = found.json
    assert (told["status"], told["sweep_id"], told["promoted"]) == ("succeeded", "rates", True)
    assert {trial["values"]["training.learning_rate"] for trial in told["trials"]} == {1e-5, 0.01}
    assert told["best"] == told["trials"][0]["runs"][0]
    row = runs_of(Store(tmp_path / "store"))[told["best"]]
    assert row["promoted"]
    assert row["flow_run_id"] is None
    with get_client(sync_client=True) as client:
        shown = client.read_artifacts(
            artifact_filter=ArtifactFilter(key=ArtifactFilterKey(like_="nnbuild-sweep-"))
        )
    # The server is shared: other tests have sweeps on it, too.
    assert any(told["best"] in str(each.data) for each in shown)
    again = call(capfd, "sweep", "--id", "rates", "--store", tmp_path / "store")
    assert again.code == 0, again.err
    assert f"best by val_accuracy: {told['best']}, promoted" in again.out
    assert len(Store(tmp_path / "store").run_ids()) == 2
    other = call(capfd, *arguments, "--id", "rates", "--grid", "training.learning_rate=0.1,0.2")
    assert other.code == 2
    assert "begun with other settings" in other.err


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_sweep_on_dask_equals_local(arguments, capfd, tmp_path, prefect_server):
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=1,
        threads_per_worker=1,
        processes=True,
        dashboard_address=None,
        silence_logs=50,
        host="127.0.0.1",
    ) as cluster:
        grid = ["--grid", "training.learning_rate=0.001,0.01", "--json"]
        there = call(
            capfd, *arguments, *grid, "--runner", "dask", "--address", cluster.scheduler_address
        )
    assert there.code == 0, there.err
    here = make_sweep(
        open_sweep(None, tmp_path / "store", there.json["sweep_id"]).config, tmp_path / "here"
    )
    assert [(each["number"], each["value"]) for each in there.json["trials"]] == [
        (each.number, each.value) for each in here.trials
    ]
    assert there.json["promoted"]


def test_sweep_in_s3_store(s3_store, base):
    config = sweep_config({"search": {"training.learning_rate": "0.001,0.01"}, "trials": 2}, base)
    swept = make_sweep(config, s3_store)
    store = Store(s3_store)
    assert set(store.run_ids()) == {run for trial in swept.trials for run in trial.runs}
    assert champion.current(store) == swept.best
    assert make_sweep(None, s3_store, sweep_id=swept.sweep_id) == swept


def test_sweep_bad_data_leaves_no_store(capfd, tmp_path, prefect_server):
    before = tree_digest(tmp_path)
    grid = ["--grid", "training.learning_rate=0.1,0.2"]
    found = call(
        capfd, "sweep", "--dataset", tmp_path / "none.npz", *grid, "--store", tmp_path / "new"
    )
    assert found.code == 2
    assert len(found.err.splitlines()) == 1
    assert "none.npz" in found.err
    assert tree_digest(tmp_path) == before


def test_objective_is_of_final_network(tmp_path, monkeypatch, base):
    """The averaged weights are final, so the history and the objective are theirs."""
    # A short fit would limit the momentum.
    monkeypatch.setattr("nnbuild.models.compile._momentum", lambda momentum, _: momentum)
    training = base.training.model_copy(
        update={"epochs": 3, "ema_decay": 0.999, "learning_rate": 0.01}
    )
    config = sweep_config(
        {"grid": {"model.dropout": [0.0]}}, base.model_copy(update={"training": training})
    )
    (trial,) = make_sweep(config, tmp_path).trials
    history = Store(tmp_path).read_table("history", trial.runs[0]).to_pylist()
    last = [row["value"] for row in history if row["metric"] == "val_accuracy"][-1]
    assert trial.value == pytest.approx(last)
