"""`nnbuild doctor --repair`: a store is repaired, and no run that can be resumed is removed."""

import os
import shlex
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from command_line import call, tree_digest
from score_data import images, parquet

from nnbuild.errors import LockedError, StoreError
from nnbuild.pipeline import repair as repairs
from nnbuild.pipeline.repair import apply, plan, repair
from nnbuild.pipeline.run import open_run, retrain, run_context
from nnbuild.scoring.config import ScoreConfig
from nnbuild.scoring.job import open_job
from nnbuild.store import Store, locks
from nnbuild.store.ids import input_lock_name, temporary_name

NOW = datetime.now(UTC)


@pytest.fixture(scope="module")
def committed(tmp_path_factory, small_folder):
    from nnbuild.config.schema import RunConfig

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


def test_repair_leaves_intact_store(store):
    before = tree_digest(store[0].root)
    assert repair(store[0], NOW) == []
    assert tree_digest(store[0].root) == before


def test_repair_rebuilds_lost_row_exactly(store):
    found, run_id = store
    before = tree_digest(found.root)
    shutil.rmtree(found.partition("runs", run_id))
    assert found.run_ids() == []
    assert actions(repair(found, NOW)) == {f"runs/{run_id}": "rebuild"}
    assert found.run_ids() == [run_id]
    assert tree_digest(found.root) == before
    assert found.read_table("runs")["run_id"].to_pylist() == [run_id]


@pytest.mark.parametrize("harm", ["missing", "changed", "manifest"])
def test_repair_incomplete_run_stays_lost(store, harm):
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
    assert found.run_ids() == []


def test_repair_keeps_run_until_discarded(store, small_config):
    found, _ = store
    waiting = open_run(small_config, found.root)
    assert actions(repair(found, NOW)) == {f"staging/{waiting.run_id}": "keep"}
    assert waiting.folder.is_dir()
    with run_context(waiting):
        assert actions(repair(found, NOW)) == {f"staging/{waiting.run_id}": "keep"}
        with pytest.raises(LockedError):
            repair(found, NOW, discard=[waiting.run_id])
    assert actions(repair(found, NOW, discard=[waiting.run_id])) == {
        f"staging/{waiting.run_id}": "clear"
    }
    assert not waiting.folder.exists()
    with pytest.raises(StoreError, match="nothing to discard"):
        repair(found, NOW, discard=[waiting.run_id])


def test_repair_suggests_resuming_the_job_of_the_store(capfd, store, tmp_path):
    found, _ = store
    config = ScoreConfig(input=str(parquet(tmp_path / "in.parquet", images(3))))
    job = open_job(config, found.root)
    (finding,) = repair(found, NOW)
    command = finding.detail.partition("`")[2].partition("`")[0]
    outcome = call(capfd, *shlex.split(command)[1:])
    assert outcome.code == 0, outcome.err
    assert found.score_ids() == [job.score_id]


def test_repair_clears_useless_leftovers(store, small_config):
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


def test_plan_next_to_a_writer_is_made(store, monkeypatch):
    """A temporary file is completed, and so renamed, between its listing and a look at it."""
    found, _ = store
    gone = found.root / "staging" / temporary_name("history.parquet")
    listed = repairs._temporary_paths
    monkeypatch.setattr(repairs, "_temporary_paths", lambda store: [*listed(store), gone])
    assert actions(repair(found, NOW)) == {}


USERS_FILES = (
    ".gitlab-ci.yml",
    ".env.production",
    ".a.b",
    ".nnbuild-notes.txt",
    ".nnbuild-0123456789ab",
    ".nnbuild-0123456789AB.txt",
    ".abcdefgh.champion.json",
    "notes.tmp",
    ".scoring-notes.lock",
    f".scoring-{'0' * 31}.lock",
    f".scoring-{'A' * 32}.lock",
    f"scoring-{'0' * 32}.lock",
)
PLACES = (".", "src", "staging", "tables", "tables/runs", "runs", "datasets/mine", "src/staging")


def with_users_files(root):
    """Create two days old files and folders of the user of every kind in all folders."""
    old = (NOW - timedelta(days=2)).timestamp()
    for place in PLACES:
        folder = root / place
        folder.mkdir(parents=True, exist_ok=True)
        for name in USERS_FILES:
            (folder / name).write_text("mine")
        (folder / ".z.d").mkdir()
        (folder / ".z.d" / ".x.y").write_text("mine")
        (folder / "score-card").mkdir()
        (folder / temporary_name("link")).symlink_to(root / ".env.production")
        os.mkfifo(folder / temporary_name("pipe"))
        (folder / input_lock_name("a" * 64)).symlink_to(root / ".env.production")
        os.mkfifo(folder / input_lock_name("b" * 64))
        (folder / input_lock_name("c" * 64)).mkdir()
        (folder / ".nnbuild-0123456789ab.folder").mkdir()
        (folder / ".nnbuild-0123456789ab.folder" / "mine").write_text("mine")
    # nnbuild never writes such files to these folders.
    (root / "src" / temporary_name("x")).write_text("mine")
    (root / "runs" / input_lock_name("d" * 64)).write_text("mine")
    for path in root.rglob("*"):
        os.utime(path, (old, old), follow_symlinks=False)


def listing(root):
    """Every path with its kind and content."""
    return {
        str(path.relative_to(root)): (
            path.lstat().st_mode,
            path.read_bytes() if path.is_file() else None,
        )
        for path in root.rglob("*")
    }


def claim(path):
    return locks.claim(path, {"score_id": "mine"}, lambda holder: LockedError(holder.process))


def test_repair_clears_stale_locks(capfd, store):
    root = store[0].root
    stale, held = (root / "staging" / input_lock_name(digit * 64) for digit in "ab")
    stale.parent.mkdir(exist_ok=True)
    stale.write_text('{"pid": "1"}')
    given = ("doctor", "--repair", "--store", root)
    with claim(held):
        dry = call(capfd, *given, "--dry-run")
        assert stale.name in dry.out
        assert held.name not in dry.out
        assert stale.exists()
        assert call(capfd, *given).out == dry.out
        assert not stale.exists()
        with pytest.raises(LockedError), claim(held):
            pass
    assert repair(store[0], NOW) == []


def test_repair_keeps_lock_held_since_plan(store):
    path = store[0].root / "staging" / input_lock_name("a" * 64)
    path.parent.mkdir(exist_ok=True)
    path.touch()
    planned = plan(store[0], NOW)
    assert [each.finding.action for each in planned] == ["clear"]
    with claim(path):
        apply(planned)
        assert path.exists()
    apply(planned)  # the claim has removed its file by now


@pytest.mark.parametrize("options", [(), ("--dry-run",)])
def test_repair_without_store_raises(capfd, tmp_path, options):
    with_users_files(tmp_path)
    before = listing(tmp_path)
    outcome = call(capfd, "doctor", "--repair", *options, "--store", tmp_path)
    assert (outcome.code, outcome.out, len(outcome.err.splitlines())) == (2, "", 1)
    assert "store.json" in outcome.err
    assert listing(tmp_path) == before


def test_repair_keeps_files_of_the_user(store):
    found, _ = store
    with_users_files(found.root)
    before = listing(found.root)
    assert repair(found, NOW) == []
    assert listing(found.root) == before


def test_repair_follows_no_links(store, tmp_path):
    found, _ = store
    outside = tmp_path / "outside"
    (outside / "runs").mkdir(parents=True)
    leftover = outside / "runs" / temporary_name("x.json")
    leftover.write_text("mine")
    os.utime(leftover, (0, 0))
    (found.root / "tables" / "link").symlink_to(outside)
    (found.root / "quarantine").symlink_to(outside / "runs")
    (found.root / "staging" / "20260101T000000000Z-abcdef").symlink_to(outside / "runs")
    (found.root / "staging" / "score-20260101T000000000Z-abcdef").symlink_to(outside / "runs")
    assert repair(found, NOW) == []
    assert leftover.exists()


def damage(store, run_id, small_config):
    """Damage a store so that every action has something to do."""
    shutil.rmtree(store.partition("runs", run_id))
    open_run(small_config, store.root)
    unreadable = open_run(small_config, store.root)
    (unreadable.folder / "run.json").write_text("{")
    (store.root / "staging" / f"score-{run_id}").mkdir()
    leftover = store.root / "runs" / run_id / temporary_name("report.html")
    leftover.write_text("half")
    os.utime(leftover, (0, 0))


def test_dry_run_changes_nothing(capfd, store, small_config):
    found, run_id = store
    damage(found, run_id, small_config)
    before = listing(found.root)
    given = ("doctor", "--repair", "--store", found.root)
    dry = call(capfd, *given, "--dry-run")
    assert dry.code == 0
    assert listing(found.root) == before
    dry_json = call(capfd, *given, "--dry-run", "--json").json
    assert dry_json["dry_run"]
    assert {each["action"] for each in dry_json["findings"]} == {"clear", "keep", "rebuild"}
    assert listing(found.root) == before
    assert call(capfd, *given).out == dry.out
    assert found.run_ids() == [run_id]
    assert [each.action for each in repair(found, NOW)] == ["keep"]


def test_dry_run_without_repair_raises(capfd, store):
    outcome = call(capfd, "doctor", "--dry-run", "--store", store[0].root)
    assert (outcome.code, len(outcome.err.splitlines())) == (2, 1)
    assert "--repair" in outcome.err


def test_failed_repair_names_progress(capfd, store, small_config, monkeypatch):
    found, run_id = store
    damage(found, run_id, small_config)
    real = shutil.rmtree

    def failing(path, *arguments, **named):
        if "score-" in str(path):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *arguments, **named)

    monkeypatch.setattr(shutil, "rmtree", failing)
    outcome = call(capfd, "doctor", "--repair", "--store", found.root)
    assert (outcome.code, len(outcome.err.splitlines())) == (2, 1)
    assert f"staging/score-{run_id} (1 of 4 repairs were made)" in outcome.err
    assert "rebuild" in outcome.out


def test_repair_remote_keeps_files_of_user(s3_store, small_config):
    run = open_run(small_config, s3_store)
    found = Store(s3_store)
    with_users_files(found.local_root)
    leftover = run.folder / temporary_name("run.json")
    leftover.write_text("half")
    os.utime(leftover, (0, 0))
    copy = found.local_root / "datasets" / "digits" / temporary_name("digest")
    copy.mkdir(parents=True)
    os.utime(copy, (0, 0))
    before = listing(found.local_root)
    done = {each.path for each in repair(found, NOW) if each.action == "clear"}
    left = {name: each for name, each in before.items() if not name.startswith(tuple(done))}
    assert {f"staging/{run.run_id}/{leftover.name}", f"datasets/digits/{copy.name}"} <= done
    assert all(Path(each).name.startswith(".nnbuild-") for each in done)
    assert listing(found.local_root) == left


def test_doctor_repairs_and_reports(capfd, store):
    found, run_id = store
    shutil.rmtree(found.partition("runs", run_id))
    told = call(capfd, "doctor", "--repair", "--store", found.root, "--json").json
    assert [each["action"] for each in told["findings"]] == ["rebuild"]
    assert "needs no repair" in call(capfd, "doctor", "--repair", "--store", found.root).out
    outcome = call(capfd, "doctor", "--repair", "--discard", run_id, "--store", found.root)
    assert (outcome.code, len(outcome.err.splitlines())) == (2, 1)
