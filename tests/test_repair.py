"""`nnbuild doctor --repair`: accidents are mended, and nothing that can still become a run is removed."""

import os
import shutil
from datetime import UTC, datetime, timedelta

import pytest
from command_line import call, tree_digest

from nnbuild.errors import LockedError, StoreError
from nnbuild.repair import repair
from nnbuild.runs import open_run, retrain, working_on
from nnbuild.store import Store
from nnbuild.store.names import temporary_name

NOW = datetime.now(UTC)


@pytest.fixture(scope="module")
def committed(tmp_path_factory, small_folder):
    from nnbuild.config import RunConfig

    root = tmp_path_factory.mktemp("repair") / "store"
    settings = {
        "dataset": {"name": str(small_folder)},
        "model": {"name": "lab"},
        "training": {"epochs": 1},
    }
    return root, retrain(RunConfig.model_validate(settings), root).run_id


@pytest.fixture
def store(committed, tmp_path):
    return Store(shutil.copytree(committed[0], tmp_path / "store")), committed[1]


def actions(found):
    return {each.path: each.action for each in found}


def test_a_store_in_order_is_left_alone(store):
    before = tree_digest(store[0].root)
    assert repair(store[0], NOW) == []
    assert tree_digest(store[0].root) == before


def test_a_lost_row_is_written_again_to_the_byte(store):
    found, run_id = store
    before = tree_digest(found.root)
    shutil.rmtree(found.partition("runs", run_id))
    assert found.committed() == []
    assert actions(repair(found, NOW)) == {f"runs/{run_id}": "rebuild"}
    assert found.committed() == [run_id]
    assert tree_digest(found.root) == before
    assert found.read_table("runs")["run_id"].to_pylist() == [run_id]


@pytest.mark.parametrize("harm", ["missing", "changed", "manifest"])
def test_a_run_that_is_not_whole_gets_no_row(store, harm):
    found, run_id = store
    shutil.rmtree(found.partition("runs", run_id))
    part = next(found.partition("predictions", run_id).iterdir())
    if harm == "missing":
        part.unlink()
    elif harm == "changed":
        part.write_bytes(part.read_bytes()[:-1] + b"!")
    else:
        (found.root / "runs" / run_id / "manifest.json").write_text("{")
    assert actions(repair(found, NOW)) == {f"runs/{run_id}": "lost"}
    assert found.committed() == []


def test_what_can_be_resumed_stays_until_it_is_given_up(store, small_config):
    found, _ = store
    waiting = open_run(small_config, found.root)
    assert actions(repair(found, NOW)) == {f"staging/{waiting.run_id}": "keep"}
    assert waiting.folder.is_dir()
    with working_on(waiting):
        assert actions(repair(found, NOW)) == {f"staging/{waiting.run_id}": "keep"}
        with pytest.raises(LockedError):
            repair(found, NOW, discard=[waiting.run_id])
    assert actions(repair(found, NOW, discard=[waiting.run_id])) == {
        f"staging/{waiting.run_id}": "clear"
    }
    assert not waiting.folder.exists()
    with pytest.raises(StoreError, match="nothing to discard"):
        repair(found, NOW, discard=[waiting.run_id])


def test_what_nobody_can_go_on_with_is_cleared(store, small_config):
    found, _ = store
    waiting = open_run(small_config, found.root)
    (waiting.folder / "run.json").write_text("{")
    job = found.root / "staging" / f"score-{waiting.run_id}"
    job.mkdir()
    aside = found.root / "staging" / temporary_name("history.parquet")
    young = found.root / temporary_name("champion.json")
    for path in (aside, young):
        path.write_bytes(b"half")
    old = (NOW - timedelta(hours=2)).timestamp()
    os.utime(aside, (old, old))
    assert set(actions(repair(found, NOW)).values()) == {"clear"}
    assert not waiting.folder.exists()
    assert not job.exists()
    assert not aside.exists()
    assert young.exists()


def test_the_command(capfd, store):
    found, run_id = store
    shutil.rmtree(found.partition("runs", run_id))
    told = call(capfd, "doctor", "--repair", "--store", found.root, "--json").json
    assert [each["action"] for each in told["findings"]] == ["rebuild"]
    assert "in order" in call(capfd, "doctor", "--repair", "--store", found.root).out
    outcome = call(capfd, "doctor", "--repair", "--discard", run_id, "--store", found.root)
    assert (outcome.code, len(outcome.err.splitlines())) == (2, 1)
