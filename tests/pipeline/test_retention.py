"""Retention: old runs go, and nothing that is kept loses anything, however often it is killed."""

import shutil
from datetime import timedelta

import pytest
from command_line import tree_digest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kills import Killed, killing_at
from labelled_days import LabelledDays, day, noon, train, weights
from store_contents import NOW, StoreFiller, require_intact, size

from nnbuild.errors import StoreError
from nnbuild.pipeline import repair
from nnbuild.pipeline.days import select_days
from nnbuild.pipeline.retention import RetentionConfig, delete, prune
from nnbuild.pipeline.run import open_run, run_context
from nnbuild.runtime import fault_injection
from nnbuild.store import Store, champion, champion_history, deletion
from nnbuild.store.ids import temporary_name

ADA = champion.Author("ada@build-7")


@pytest.fixture
def filler(trained, tmp_path):
    return StoreFiller(tmp_path / "filled", Store(trained))


def pruned(store, keep, **options):
    dry_run = options.pop("dry_run", False)
    return prune(store, RetentionConfig(keep=keep, **options), now=NOW, dry_run=dry_run)


def paths_of(store, *ids):
    """Return what the store still has of runs or jobs."""
    return [str(path) for path in store.root.rglob("*") if any(each in path.name for each in ids)]


def fill(filler, nights=8):
    """Add nights of which every third one is promoted, each second one with new data."""
    runs = []
    for night in range(nights):
        runs.append(filler.run(days_old=nights - night, data=night // 2))
        if night % 3 == 0:
            filler.promote(runs[-1])
    return runs


def test_prune_keeps_newest_runs(filler):
    runs = [filler.run(days_old=10 - night, data=night) for night in range(6)]
    done = pruned(filler.store, 2)
    assert list(done.runs) == runs[:4]
    assert filler.store.run_ids() == runs[4:]
    assert len(done.parts) == 4
    assert paths_of(filler.store, *runs[:4]) == []
    for each in runs[4:]:
        require_intact(filler.store, each)


def test_prune_keep_days_keeps_more(filler):
    runs = [filler.run(days_old=10 - night) for night in range(6)]
    assert list(pruned(filler.store, 1, keep_days=7).runs) == runs[:3]


def test_prune_each_dataset_has_quota(filler):
    weekly = [filler.run(days_old=days, dataset="weekly") for days in (30, 20)]
    failed = [filler.run(days_old=days, status="failed") for days in (29, 19)]
    nightly = [filler.run(days_old=days) for days in (3, 2, 1)]
    assert set(pruned(filler.store, 1).runs) == {weekly[0], failed[0], *nightly[:2]}


def test_prune_keeps_champions(filler):
    runs = fill(filler)
    done = pruned(filler.store, 2)
    assert filler.store.run_ids() == [runs[0], runs[3], runs[6], runs[7]]
    assert set(done.kept) == {runs[0], runs[3]}
    assert champion.rollback(filler.store, ADA).run_id == runs[3]
    assert champion.rollback(filler.store, ADA).run_id == runs[0]


def test_prune_keeps_as_many_champions(filler):
    runs = [filler.run(days_old=10 - night) for night in range(6)]
    for each in runs:
        filler.promote(each)
    filler.promote(runs[0])
    assert set(pruned(filler.store, 1).kept) == {runs[0]}
    assert filler.store.run_ids() == [runs[0], runs[5]]
    assert champion.rollback(filler.store, ADA).run_id == runs[5]


def test_prune_keeps_rollback_to_other_model(filler):
    """Past champions with the same model do not count: a rollback skips them."""
    first = filler.run(days_old=20)
    same = [filler.run(days_old=19 - night, like=first) for night in range(3)]
    other = filler.run(days_old=30)
    for each in (other, first, *same):
        filler.promote(each)
    assert set(pruned(filler.store, 1).kept) == {other, first, *same[:2]}
    assert champion.rollback(filler.store, ADA).run_id == other


def test_prune_keeps_anchor_of_gate(filler):
    anchors = [filler.run(days_old=20 - night) for night in range(2)]
    for each in (filler.run(days_old=5, anchor=each) for each in anchors):
        filler.promote(each)
    filler.run(days_old=1)
    done = pruned(filler.store, 1, dry_run=True)
    assert set(anchors) <= set(done.kept)
    assert "the gate compares runs with" in done.kept[anchors[1]]
    with pytest.raises(StoreError, match="the gate compares runs with"):
        delete(filler.store, [anchors[1]], now=NOW)


def test_prune_deletes_days_before_windows(tmp_path):
    """Days that only deleted runs used go; news and days of kept runs stay."""
    days, root = LabelledDays(tmp_path), tmp_path / "store"
    config = days.config(window=2)
    days.write(0)
    runs = []
    for number in range(1, 5):
        days.write(number)
        runs.append(train(config, root, noon(number)).run_id)
    store = Store(root)
    days.write(3, seed=99)  # corrected: not used yet
    select_days(store, config.dataset, noon(4, hour=13))
    weights_before = weights(store, runs[3])
    champions = {each.run_id for each in champion.currents(store).values()}
    kept = {runs[3], *champions}
    done = prune(store, RetentionConfig(keep=1), now=noon(5))
    oldest = min(runs.index(each) for each in set(store.run_ids()) | kept)
    left = [name for name in deletion.dataset_names(root) if "/days/" in name]
    found = sorted({name.split("/")[3] for name in left})
    assert found == [str(day(number)) for number in range(oldest, 5)]
    assert sum(str(day(3)) in name for name in left) == 2  # the used and the corrected version
    assert len([part for part in done.parts if "/days/" in part]) == oldest
    again = train(days.config(window=2, as_of=day(4)), root, noon(6))
    assert weights(store, again.run_id) == weights_before
    wide = train(days.config(window=9), root, noon(6, hour=14))  # ingested from the source again
    assert {each.day for each in store.manifest(wide.run_id).steps.load_data.days} == {
        day(number) for number in range(5)
    }


def test_prune_keeps_models_of_jobs(filler):
    runs = [filler.run(days_old=10 - night) for night in range(4)]
    jobs = [filler.job(run_id, days_old=1) for run_id in (runs[0], runs[1])]
    assert list(pruned(filler.store, 1).runs) == [runs[2]]
    done = pruned(filler.store, 1, scores=True)
    assert (list(done.jobs), list(done.runs)) == ([jobs[0]], [runs[0]])
    assert paths_of(filler.store, jobs[0]) == []
    assert filler.store.read_table("scores", jobs[1]).num_rows == 45


def test_prune_keeps_newest_shadow(filler):
    runs = [filler.run(days_old=10 - night) for night in range(5)]
    filler.promote(runs[0])
    for shadow in (runs[1], runs[2]):
        filler.job(runs[0], shadow=shadow)
    done = pruned(filler.store, 1)
    assert list(done.runs) == [runs[1], runs[3]]
    assert done.kept[runs[2]] == f"it is the shadow of champion {runs[0]}"


def test_prune_keeps_weights_of_warm_start(filler):
    first = filler.run(days_old=9)
    second = filler.run(days_old=8, start=first)
    third = filler.run(days_old=7, start=second)
    assert pruned(filler.store, 1).kept == {second: f"run {third} was trained from its weights"}
    assert filler.store.run_ids() == [second, third]


def test_prune_sweep_is_one_run(filler):
    filler.sweep("old")
    filler.sweep("best")
    old = [filler.run(days_old=20, sweep="old") for _ in range(3)]
    best = [filler.run(days_old=10, sweep="best") for _ in range(3)]
    nights = [filler.run(days_old=days) for days in (2, 1)]
    filler.promote(best[0])
    assert pruned(filler.store, 4).runs == ()
    later = NOW + timedelta(days=30)
    done = prune(filler.store, RetentionConfig(keep=2), now=later)
    assert list(done.runs) == old
    assert done.sweeps == ("old",)
    assert filler.store.run_ids() == [*best, *nights]
    assert not (filler.store.root / "staging" / "sweep-old").exists()
    assert (filler.store.root / "staging" / "sweep-best" / "sweep.json").exists()


@pytest.mark.parametrize("trial", [0, 1, 2])
def test_prune_sweep_stays_whole_for_weights(filler, trial):
    """A later run has started from the weights of one of its trials."""
    filler.sweep("mine")
    trials = [filler.run(days_old=20 - number, sweep="mine") for number in range(3)]
    later = filler.run(days_old=1, start=trials[trial])
    done = prune(filler.store, RetentionConfig(keep=1), now=NOW + timedelta(days=30))
    assert (done.runs, done.sweeps) == ((), ())
    assert filler.store.run_ids() == [*trials, later]
    assert (filler.store.root / "staging" / "sweep-mine" / "sweep.json").exists()


def test_prune_spares_links_and_temporary(filler, tmp_path):
    """A run that was moved to another disk loses its link only; what is being written stays."""
    old, _ = (filler.run(days_old=days, data=int(days)) for days in (3, 1))
    store, elsewhere = filler.store, tmp_path / "elsewhere"
    (store.root / "runs" / old).rename(elsewhere)
    (store.root / "runs" / old).symlink_to(elsewhere)
    half = store.root / "datasets" / "small" / temporary_name(f"{1:064x}")
    shutil.copytree(store.dataset_folder("small", f"{1:064x}"), half)
    before = size(store.root)
    done = pruned(store, 1)
    assert list(done.runs) == [old]
    assert (elsewhere / "model.keras").exists()
    assert not (store.root / "runs" / old).is_symlink()
    assert half.is_dir()
    assert before - size(store.root) == done.bytes


def test_prune_keeps_data_of_unfinished(filler, small_config):
    """A run that has begun may rely on any dataset; once it has loaded one, on that one."""
    from nnbuild.pipeline.data import load_data

    old = filler.run(days_old=3, data=1)
    filler.run(days_old=1, data=2)
    waiting = open_run(small_config, filler.store.root)
    with run_context(waiting):
        before = pruned(filler.store, 1, dry_run=True)
        assert (list(before.runs), before.parts) == ([old], ())
        load_data(waiting)
        after = pruned(filler.store, 1)
        assert after.parts == (f"datasets/small/{1:064x}",)
    assert waiting.folder.is_dir()


def test_prune_restores_relied_on_data(filler, small_config, monkeypatch):
    """A run that finds a dataset just before it is removed gets it back."""
    filler.run(days_old=3, data=1)
    filler.run(days_old=1, data=2)
    begun = []

    def begin(name):
        if name == "prune:datasets":
            begun.append(open_run(small_config, filler.store.root))
            begun.append(run_context(begun[0]))
            begun[1].__enter__()

    monkeypatch.setattr(fault_injection, "failpoint", begin)
    done = pruned(filler.store, 1)
    begun[1].__exit__(None, None, None)
    assert (len(done.runs), done.parts) == (1, ())
    assert filler.store.has_dataset("small", f"{1:064x}")
    monkeypatch.undo()
    assert pruned(filler.store, 1).parts == (f"datasets/small/{1:064x}",)


ID = st.integers(0, 2)
RUN = st.fixed_dictionaries(
    {
        "days_old": st.integers(0, 60),
        "data": ID,
        "dataset": st.sampled_from(["small", "other"]),
        "status": st.sampled_from(["succeeded", "succeeded", "failed"]),
        "sweep": st.sampled_from([None, None, "one", "two"]),
    }
)


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    runs=st.lists(RUN, min_size=1, max_size=8),
    promoted=st.lists(st.integers(0, 7), max_size=4),
    jobs=st.lists(st.integers(0, 7), max_size=3),
    keep=st.integers(1, 4),
    keep_days=st.none() | st.integers(1, 50),
    scores=st.booleans(),
)
def test_prune_any_store(trained, tmp_path_factory, runs, promoted, jobs, keep, keep_days, scores):
    filler = StoreFiller(tmp_path_factory.mktemp("any") / "store", Store(trained))
    store, ids = filler.store, [filler.run(**each) for each in runs]
    for each in promoted:
        if runs[each % len(ids)]["status"] == "succeeded":
            filler.promote(ids[each % len(ids)])
    for each in jobs:
        filler.job(ids[each % len(ids)], days_old=each)
    current = {each.run_id for each in champion.currents(store).values()}
    changes, every_job = champion_history.recorded(store), set(store.score_ids())
    before, digest = size(store.root), tree_digest(store.root)
    options = {"keep_days": keep_days, "scores": scores}
    planned = pruned(store, keep, dry_run=True, **options)
    assert tree_digest(store.root) == digest
    done = pruned(store, keep, **options)
    assert done == planned
    assert before - size(store.root) == done.bytes
    assert set(store.run_ids()) == set(ids) - set(done.runs)
    assert set(store.score_ids()) == every_job - set(done.jobs)
    left = paths_of(store, *done.runs, *done.jobs)
    assert all("tables/champions" in path for path in left)
    assert not current & set(done.runs)
    assert champion_history.recorded(store) == champion_history.histories(store) == changes
    for each in store.run_ids():
        require_intact(store, each)
    needed = {row["run_id"] for row in store.read_table("score_jobs").to_pylist()}
    assert needed <= set(store.run_ids())
    referenced = {
        f"datasets/{row['dataset']}/{row['dataset_digest']}"
        for row in store.read_table("runs").to_pylist()
    }
    assert set(deletion.dataset_names(store.root)) == referenced
    assert len(done.runs) == 0 or len(store.run_ids()) >= min(keep, len(ids))
    again = pruned(store, keep, **options)
    assert (again.runs, again.jobs, again.parts, again.bytes) == ((), (), (), 0)
    assert repair.plan(store, NOW) == []


@pytest.mark.parametrize("heal", ["prune", "doctor"])
def test_prune_killed_anywhere_is_completed(filler, tmp_path, heal):
    runs = fill(filler, 4)
    filler.job(runs[1], days_old=9)
    filler.job(runs[3])
    filler.sweep("left")
    store, later = filler.store, NOW + timedelta(days=30)
    config = RetentionConfig(keep=1, scores=True)
    pristine = shutil.copytree(store.root, tmp_path / "pristine")
    expected = prune(store, config, now=later)
    straight = {path.relative_to(store.root) for path in store.root.rglob("*") if path.is_file()}
    for number in range(1, 200):
        root = shutil.copytree(pristine, tmp_path / f"killed-{number}")
        broken = Store(root)
        try:
            with killing_at(number, "prune"):
                prune(broken, config, now=later)
        except Killed:
            pass
        else:
            break
        for each in broken.run_ids():  # readers see whole runs
            require_intact(broken, each)
        assert set(expected.kept) <= set(broken.run_ids())
        before = size(root)
        if heal == "doctor":
            planned = repair.plan(broken, later)
            assert {each.finding.action for each in planned} <= {"finish"}
            repair.apply(planned)
            assert repair.plan(broken, later) == []
        planned = prune(broken, config, now=later, dry_run=True)
        done = prune(broken, config, now=later)
        assert planned.bytes == done.bytes
        if heal == "prune" and not (done.runs or done.parts):
            assert before - size(root) >= done.bytes
        found = {path.relative_to(root) for path in root.rglob("*") if path.is_file()}
        assert found == straight
        shutil.rmtree(root)
    assert number > 10


def test_prune_spares_promoted_since_kill(filler):
    """A run whose row is still there may have become the champion."""
    runs = [filler.run(days_old=10 - night) for night in range(4)]
    with pytest.raises(Killed), killing_at(1, "prune"):
        pruned(filler.store, 1)
    filler.promote(runs[0])
    assert list(pruned(filler.store, 1).runs) == runs[1:3]
    require_intact(filler.store, runs[0])


# One run or job


def test_delete_one_run_and_its_data(filler):
    runs = [filler.run(days_old=10 - night, data=night // 2) for night in range(4)]
    before = size(filler.store.root)
    done = delete(filler.store, [runs[1]], now=NOW)
    assert (done.runs, done.parts) == ((runs[1],), ())
    done_too = delete(filler.store, [runs[0]], now=NOW)
    assert done_too.parts == (f"datasets/small/{0:064x}",)
    assert before - size(filler.store.root) == done.bytes + done_too.bytes
    assert filler.store.run_ids() == runs[2:]


def test_delete_job_leaves_run(filler):
    run_id = filler.run()
    job = filler.job(run_id)
    with pytest.raises(StoreError, match=f"made the model of scoring jobs {job}"):
        delete(filler.store, [run_id], now=NOW)
    done = delete(filler.store, [job], now=NOW)
    assert (done.runs, done.jobs, done.parts) == ((), (job,), ())
    assert paths_of(filler.store, job) == []
    require_intact(filler.store, run_id)


def test_delete_refuses_what_is_needed(filler, small_config):
    runs = [filler.run(days_old=10 - night) for night in range(3)]
    for each in runs:
        filler.promote(each)
    waiting = open_run(small_config, filler.store.root)
    digest = tree_digest(filler.store.root)
    refusals = {
        runs[2]: "it is the champion of small; promote another run or roll back first",
        runs[1]: "a past champion of small, to which a rollback leads",
        waiting.run_id: "is not finished; resume it, or discard it by",
        "20200101T000000000Z-000000": "no committed run or scoring job",
        "../../etc": "no committed run or scoring job",
    }
    for each, message in refusals.items():
        with pytest.raises(StoreError, match=message) as raised:
            delete(filler.store, [runs[0], each], now=NOW)
        assert "\n" not in str(raised.value)
    assert tree_digest(filler.store.root) == digest
    assert delete(filler.store, [runs[0]], now=NOW).runs == (runs[0],)


def test_delete_keeps_weights_of_warm_start(filler):
    first = filler.run(days_old=9)
    second = filler.run(days_old=8, start=first)
    with pytest.raises(StoreError, match=f"run {second} was trained from its weights; delete that"):
        delete(filler.store, [first], now=NOW)
    assert delete(filler.store, [first, second], now=NOW).runs == (first, second)


def test_delete_sweep_is_refused(filler):
    filler.sweep("mine")
    with pytest.raises(StoreError, match="mine is a sweep, expected the ID of a run"):
        delete(filler.store, ["mine"], now=NOW)
