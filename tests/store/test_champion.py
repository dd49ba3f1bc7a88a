"""The champion of each dataset: its chain, its pin, its table, and what a kill leaves behind."""

import json
import shutil
import threading
from datetime import UTC, datetime, timedelta

import pytest
from cloned_runs import clone_run
from command_line import call
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kills import killed_at

from nnbuild.errors import StoreError
from nnbuild.pipeline.repair import repair
from nnbuild.store import Store, champion, champion_history
from nnbuild.store.champion import Author
from nnbuild.store.query import query

ADA = Author("ada@host", "seen by eye")
NOW = datetime(2030, 1, 1, tzinfo=UTC)


@pytest.fixture
def two_datasets(store):
    """A store with champions of `small` and `cats`, and their runs."""
    (small,) = store.run_ids()
    cats = clone_run(store, small, dataset="cats")
    with champion_history.lock(store):
        champion.change_locked(store, cats, expected=None, note="no previous champion")
    return store, small, cats


def test_name_with_several_datasets_asks(two_datasets, capfd, tmp_path):
    store, small, cats = two_datasets
    assert champion.run_of(store, "champion:small") == small
    assert champion.run_of(store, "champion:cats") == cats
    for arguments in (
        ("score", "--input", tmp_path / "x.parquet"),
        ("export", "champion", "--format", "onnx"),
        ("report", "champion"),
        ("history", "champion"),
        ("compare", "champion", small),
        ("rollback",),
        ("champion", "--unpin"),
    ):
        outcome = call(capfd, *arguments, "--store", store.root)
        assert (outcome.code, len(outcome.err.splitlines())) == (2, 1), outcome
        assert "champion:cats, champion:small" in outcome.err
    unknown = call(capfd, "report", "champion:cat", "--store", store.root)
    assert "did you mean 'cats'" in unknown.err
    found = call(capfd, "compare", "champion:cats", "champion:small", "--store", store.root)
    assert found.code == 0
    assert cats in found.out
    target = tmp_path / "cats.onnx"
    call(capfd, "export", "champion:cats", "--format", "onnx", "--output", target)
    shown = call(capfd, "champion", "--store", store.root, "--json").json
    assert shown["champions"] == {"cats": cats, "small": small}
    assert shown["champion"] is None


def test_datasets_have_separate_chains(two_datasets):
    store, small, cats = two_datasets
    other = clone_run(store, cats, other_model=True)
    champion.promote(store, other, ADA)
    assert champion.current(store, "small") == small
    assert champion.chain(store, "cats") == [cats]
    assert champion.chain(store, "small") == []
    assert champion.pin(store, "small") is None


def test_fallback_run_is_refused(store, capfd):
    run_id = clone_run(store, store.run_ids()[0], fallback=True)
    outcome = call(capfd, "promote", run_id, "--store", store.root)
    assert (outcome.code, len(outcome.err.splitlines())) == (2, 1)
    assert "fallback dataset digits, because mnist was unavailable" in outcome.err
    with champion_history.lock(store), pytest.raises(StoreError, match="fallback"):
        champion.change_locked(store, run_id, expected=None)


def test_rollback_skips_the_same_model(store):
    (first,) = store.run_ids()
    second = clone_run(store, first, other_model=True)
    twin = clone_run(store, second)
    manifest = store.root / "runs" / twin / "manifest.json"
    content = json.loads(manifest.read_text())
    digest = store.manifest(second).model_digest
    content["files"][f"runs/{twin}/model.keras"]["sha256"] = digest
    manifest.write_text(json.dumps(content))
    for each in (second, twin):
        champion.promote(store, each, ADA)
    assert champion.rollback(store, ADA).run_id == first
    with pytest.raises(StoreError, match="it is the first one"):
        champion.rollback(store, ADA)
    champion.promote(store, second, ADA)
    champion.promote(store, twin, ADA)
    champion.rollback(store, ADA)
    assert [each.changed_by for each in champion.history(store)][-1] == "rollback"


def test_person_pins_until_unpinned(store, capfd):
    (first,) = store.run_ids()
    second = clone_run(store, first, other_model=True)
    made = call(
        capfd, "promote", second, "--note", "best\n of all", "--store", store.root, "--json"
    )
    assert made.json["pinned"] is True
    assert made.json["note"] == "best of all"
    assert "@" in made.json["who"]
    with champion_history.lock(store), pytest.raises(champion.PinnedError, match="best of all"):
        champion.change_locked(store, first, expected=second)
    assert "pinned" in call(capfd, "champion", "--store", store.root).out
    assert call(capfd, "champion", "--unpin", "--store", store.root).code == 0
    again = call(capfd, "champion", "--unpin", "--store", store.root)
    assert (again.code, len(again.err.splitlines())) == (2, 1)
    with champion_history.lock(store):
        champion.change_locked(store, first, expected=second)
    assert champion.current(store) == first


def test_promote_champion_pins_it(store):
    (only,) = store.run_ids()
    assert champion.pin(store, "small") is None
    champion.promote(store, only, ADA)
    assert champion.pin(store, "small").who == "ada@host"
    with pytest.raises(StoreError, match="already the pinned champion"):
        champion.promote(store, only, ADA)


def test_race_has_one_winner(store):
    (present,) = store.run_ids()
    others = [clone_run(store, present) for _ in range(2)]
    won, lost = [], []
    start = threading.Barrier(8)

    def race(number):
        start.wait()
        try:
            with champion_history.lock(store):
                champion.change_locked(store, others[number % 2], expected=present)
            won.append(number)
        except champion.ChampionChangedError:
            lost.append(number)

    threads = [threading.Thread(target=race, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(won), len(lost)) == (1, 7)


def rows(store):
    """Return the table `champions` as `champion.json` should have it."""
    return [
        (
            row["dataset"],
            row["run_id"],
            row["previous"],
            row["changed_by"],
            row["who"],
            row["pinned"],
        )
        for row in store.read_table("champions").sort_by("changed_at").to_pylist()
    ]


def changes(store):
    return [
        (dataset, each.run_id, each.previous, each.changed_by, each.who, each.pinned)
        for dataset, history in champion_history.histories(store).items()
        for each in history
    ]


@given(steps=st.lists(st.sampled_from(["gate", "promote", "rollback", "unpin"]), max_size=12))
@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_table_equals_pointer_after_any_steps(trained, tmp_path_factory, steps):
    folder = tmp_path_factory.mktemp("steps")
    store = Store(shutil.copytree(trained, folder / "store"))
    first = store.run_ids()[0]
    runs = [first, *(clone_run(store, first, other_model=True) for _ in range(2))]
    past = {}
    for number, step in enumerate(steps):
        at = NOW - timedelta(days=number % 3)  # the clock is set back now and then
        before = champion.current(store)
        try:
            if step == "gate":
                with champion_history.lock(store):
                    champion.change_locked(store, runs[number % 3], expected=before, now=at)
            elif step == "promote":
                champion.promote(store, runs[number % 3], ADA, now=at)
            else:
                {"rollback": champion.rollback, "unpin": champion.unpin}[step](store, ADA, now=at)
        except StoreError:
            assert champion.current(store) == before
        past[champion.history(store)[-1].changed_at] = champion.current(store)
    assert rows(store) == changes(store)
    for moment, expected in past.items():
        when = f"changed_at <= timestamptz '{moment.isoformat()}'"
        sql = f"select arg_max(run_id, changed_at) as run_id from champions where {when}"  # noqa: S608
        assert query(store, sql)["run_id"].to_pylist() == [expected]
    assert repair(store, NOW) == []


@pytest.mark.parametrize("healed_by", ["change", "repair"])
def test_killed_change_is_recorded(store, healed_by):
    second = clone_run(store, store.run_ids()[0], other_model=True)
    with killed_at("champion:changed"):
        champion.promote(store, second, ADA)
    assert champion.current(store) == second
    assert len(rows(store)) == len(changes(store)) - 1
    if healed_by == "change":
        champion.unpin(store, ADA)
    else:
        (finding,) = repair(store, NOW)
        assert (finding.path, finding.action) == ("tables/champions", "rebuild")
    assert rows(store) == changes(store)
    assert repair(store, NOW) == []


@pytest.mark.parametrize("damage", [None, b"{", b'{"datasets": {"small": [{}]}}'])
def test_pointer_is_rebuilt_from_table(two_datasets, capfd, damage):
    store, *_ = two_datasets
    before = champion_history.histories(store)
    path = store.root / champion_history.FILE
    path.unlink() if damage is None else path.write_bytes(damage)
    outcome = call(capfd, "champion", "--store", store.root)
    assert len(outcome.err.splitlines()) == (damage is not None)
    (finding,) = repair(store, NOW)
    assert (finding.path, finding.action) == (champion_history.FILE, "rebuild")
    assert champion_history.histories(store) == before
    assert repair(store, NOW) == []


def test_damaged_table_is_rebuilt(two_datasets):
    store, *_ = two_datasets
    before = rows(store)
    path = next((store.root / "tables" / "champions").rglob("*.parquet"))
    path.write_bytes(b"PAR1")
    repair(store, NOW)
    assert rows(store) == before


def test_old_pointer_is_one_line(store, capfd):
    (store.root / champion_history.FILE).write_text('{"changes": []}')
    outcome = call(capfd, "champion", "--store", store.root)
    assert (outcome.code, len(outcome.err.splitlines())) == (2, 1)
    assert "doctor --repair" in outcome.err


def test_unnamed_user_has_a_number(monkeypatch):
    import getpass

    from nnbuild.runtime.environment import user

    def fail():
        raise KeyError

    monkeypatch.setattr(getpass, "getuser", fail)
    name, _, host = user().partition("@")
    assert name.isdigit()
    assert host
