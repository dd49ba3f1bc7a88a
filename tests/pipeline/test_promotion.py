"""The promotion gate: the decision, its numbers, and a champion that is always a committed run."""

import threading

import numpy as np
import pytest
from command_line import call, tree_digest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_data import run_config

from nnbuild.config.schema import RunConfig
from nnbuild.config.sections import GateConfig
from nnbuild.errors import StoreError
from nnbuild.evaluation import promotion
from nnbuild.evaluation.significance import mcnemar_test
from nnbuild.pipeline.run import open_run, retrain
from nnbuild.runtime import fault_injection
from nnbuild.store import Store, champion

RIGHT = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60)


@given(RIGHT)
@settings(deadline=None, max_examples=50)
def test_mcnemar_equals_exact_binomial(pairs):
    from scipy.stats import binomtest

    first, second = (np.array(each) for each in zip(*pairs, strict=True))
    found, mirrored = mcnemar_test(first, second), mcnemar_test(second, first)
    differing = found.only_champion + found.only_challenger
    assert found.difference == pytest.approx(second.mean() - first.mean())
    assert found.low <= found.difference <= found.high
    assert (found.p_worse, found.p_better) == (mirrored.p_better, mirrored.p_worse)
    if differing:
        exact = binomtest(found.only_champion, differing, alternative="greater").pvalue
        assert found.p_worse == pytest.approx(exact)
    else:
        assert found.p_worse == found.p_better == 1


def candidate(accuracy=0.95, error=0.01):
    metrics = {"accuracy": accuracy, "expected_calibration_error": error}
    return promotion.Candidate("challenger", metrics)


def paired(both=800, only_challenger=0, only_champion=0, neither=200, label=0, **changes):
    """Return a comparison by the counts of the four outcomes, all of one class."""
    counts = (both, only_challenger, only_champion, neither)
    challenger, champion = (
        np.repeat(bits, counts) for bits in ([True, True, False, False], [True, False, True, False])
    )
    labels = np.full(len(champion), label, np.int16)
    return promotion.PairedResult("champion", labels, challenger, champion, **changes)


def config(**settings):
    return GateConfig.model_validate(settings)


def test_equal_challenger_by_rule():
    same = paired(only_challenger=20, only_champion=20)
    assert promotion.decide(candidate(), same, config()).outcome == "promoted"
    strict = promotion.decide(candidate(), same, config(rule="better"))
    assert strict.outcome == "rejected"
    assert "not significantly better" in strict.reason


def test_worse_and_better_challenger():
    for rule in ("not-worse", "better"):
        rules = config(rule=rule, max_recall_drop=1)
        worse = promotion.decide(candidate(), paired(only_champion=50), rules)
        better = promotion.decide(candidate(), paired(only_challenger=50), rules)
        assert (worse.outcome, better.outcome) == ("rejected", "promoted")
        assert worse.paired.only_champion == 50


@pytest.mark.parametrize(
    ("challenger", "settings", "says"),
    [
        (candidate(0.9), {"min_accuracy": 0.95}, "below the minimum"),
        (candidate(error=0.2), {"max_calibration_error": 0.1}, "calibration error"),
        (candidate(), {}, "recall of class 3"),
    ],
)
def test_decision_names_broken_threshold(challenger, settings, says):
    lower = paired(only_champion=200, label=3)
    decision = promotion.decide(challenger, lower, config(**settings))
    assert decision.outcome == "rejected"
    assert says in decision.reason


def test_incomparable_champion_stays():
    other = promotion.Incomparable("champion", "it was evaluated on other test images")
    decision = promotion.decide(candidate(), other, config())
    assert decision.outcome == "skipped"
    assert decision.reason.startswith(other.reason)
    assert promotion.decide(candidate(0.1), other, config(min_accuracy=0.5)).outcome == "rejected"


def test_gate_promotes_better_runs_only(gated_runs):
    store, (first, second, third) = gated_runs
    rows = {row["run_id"]: row for row in store.read_table("runs").to_pylist()}
    assert [rows[each]["promoted"] for each in (first, second, third)] == [True, True, False]
    assert champion.current(store) == second
    assert [each.run_id for each in champion.history(store)] == [first, second]
    decisions = {row["run_id"]: row for row in store.read_table("decisions").to_pylist()}
    assert decisions[first]["champion"] is None
    assert [decisions[each]["outcome"] for each in (first, second, third)] == [
        "promoted",
        "promoted",
        "rejected",
    ]
    assert store.manifest(third).steps.decide.outcome == "rejected"
    assert decisions[third]["champion"] == second
    assert decisions[third]["examples"] == 45
    assert decisions[third]["reason"]
    page = (store.root / "runs" / third / "report.html").read_text()
    assert "Not promoted" in page
    assert second in page


def test_report_rebuild_keeps_champion(gated_runs):
    from nnbuild.report import rebuild

    store, (_, _, third) = gated_runs
    path = store.root / "runs" / third / "report.html"
    before = path.read_bytes()
    rebuild(store, third)
    assert path.read_bytes() == before


def test_promote_and_rollback(capfd, gated_runs):
    store, (first, second, third) = gated_runs
    assert call(capfd, "champion", "--store", store.root, "--json").json["champion"] == second
    assert call(capfd, "rollback", "--store", store.root, "--json").json["champion"] == first
    assert call(capfd, "promote", third, "--store", store.root, "--json").json["champion"] == third
    assert call(capfd, "rollback", "--store", store.root, "--json").json["champion"] == first
    assert (
        call(capfd, "promote", second, "--store", store.root, "--json").json["champion"] == second
    )
    changes = call(capfd, "champion", "--store", store.root, "--json").json["changes"]
    assert [each["by"] for each in changes][:4] == ["promote", "rollback", "promote", "rollback"]
    before = tree_digest(store.root)
    for arguments, says in [
        (("promote", second), "already"),
        (("promote", "20200101T000000000Z-abcdef"), "no committed run"),
        (("promote", "../../etc"), "invalid run ID"),
    ]:
        outcome = call(capfd, *arguments, "--store", store.root)
        assert (outcome.code, len(outcome.err.splitlines())) == (2, 1)
        assert says in outcome.err
    assert tree_digest(store.root) == before


def test_rollback_empty_store_raises(capfd, tmp_path):
    Store(tmp_path / "store").create()
    outcome = call(capfd, "rollback", "--store", tmp_path / "store")
    assert (outcome.code, len(outcome.err.splitlines())) == (2, 1)
    assert "no champion" in outcome.err


def test_champion_race_has_one_winner(gated_runs):
    store, runs = gated_runs
    standing = champion.current(store)
    others = [each for each in runs if each != standing]
    won, lost = [], []
    start = threading.Barrier(8)

    def race(number):
        start.wait()
        try:
            champion.change(store, others[number % 2], expected=standing, by="promote")
            won.append(number)
        except champion.ChampionChangedError:
            lost.append(number)

    threads = [threading.Thread(target=race, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(won), len(lost)) == (1, 7)
    champion.change(store, standing, expected=champion.current(store), by="promote")


def test_outdated_decision_is_repeated(tmp_path, small_folder):
    from nnbuild import pipeline
    from nnbuild.pipeline import commit
    from nnbuild.pipeline.reporting import write_report
    from nnbuild.pipeline.run import run_context

    store = Store(tmp_path)
    run = open_run(run_config(small_folder, seed=3), tmp_path)
    with run_context(run):
        data = pipeline.load_data(run)
        fitted = pipeline.fit_model(
            run, data, pipeline.compile_model(run, data, pipeline.build_model(run, data))
        )
        pipeline.check_data(run, data)
        pipeline.export_model(run, data, fitted)
        pipeline.evaluate_model(run, data, fitted)
        pipeline.calibrate_model(run, data, fitted)
        pipeline.score_test_set(run, data, fitted)
        assert pipeline.decide(run, data).promote  # there is no champion yet
        write_report(run, data)
        good = {"training": {"epochs": 30, "learning_rate": 0.02}}
        other = retrain(run_config(small_folder, **good), tmp_path)
        commit.commit_run(run)
    assert champion.current(store) == other.run_id
    decision = store.read_table("decisions", run.run_id).to_pylist()[0]
    assert decision["champion"] == other.run_id
    assert not decision["promoted"]


class _Killed(BaseException):
    """Simulated SIGKILL, which no handler of the program may catch."""


@pytest.mark.parametrize(
    "at", ["commit:laid-out", "commit:decisions", "commit:runs", "champion:changed"]
)
def test_killed_promotion_is_finished(tmp_path, small_folder, monkeypatch, at):
    def point(name):
        if name == at:
            raise _Killed

    monkeypatch.setattr(fault_injection, "failpoint", point)
    with pytest.raises(_Killed):
        retrain(run_config(small_folder), tmp_path)
    monkeypatch.setattr(fault_injection, "failpoint", lambda _: None)
    store = Store(tmp_path)
    waiting = store.unfinished_runs()
    if waiting:
        run_id = retrain(store=tmp_path, resume=waiting[0].run_id).run_id
    else:
        (run_id,) = store.run_ids()
        with pytest.raises(StoreError, match="is committed"):
            open_run(RunConfig(), tmp_path, resume=run_id)
    assert champion.current(store) == run_id
    assert [each.run_id for each in champion.history(store)] == [run_id]
    assert list((tmp_path / "staging").iterdir()) == []
