"""The promotion gate: the decision, its numbers, and a champion that is always a committed run."""

import shutil

import numpy as np
import pytest
from command_line import call, tree_digest
from hypothesis import given, settings
from hypothesis import strategies as st
from kills import killed_at
from small_data import run_config

from nnbuild import pipeline
from nnbuild.config.schema import RunConfig
from nnbuild.config.sections import GateConfig
from nnbuild.data import registry
from nnbuild.data.download import UnavailableError
from nnbuild.errors import StoreError
from nnbuild.evaluation import promotion
from nnbuild.evaluation.noninferiority import lower_bound, p_value
from nnbuild.evaluation.significance import holm_correction, mcnemar_test
from nnbuild.pipeline.run import open_run, retrain, run_context, train_and_evaluate
from nnbuild.runtime import fault_injection
from nnbuild.store import Store, champion
from nnbuild.store.step_results import Decided

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


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_rejects_step_by_step(p_values):
    corrected = holm_correction(p_values)
    for level in (0.01, 0.05, 0.3):
        rejected = set()
        for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
            if p_values[index] * (len(p_values) - rank) > level:
                break
            rejected.add(index)
        assert rejected == {i for i, each in enumerate(corrected) if each <= level}


def candidate(accuracy=0.95, error=0.01):
    metrics = {"accuracy": accuracy, "expected_calibration_error": error}
    return promotion.Candidate("challenger", metrics)


def paired(only_challenger=0, only_champion=0, *, examples=1000, label=0, **changes):
    """Return a comparison by the numbers of images that only one run classifies correctly."""
    changes = {"run_id": "champion", **changes}
    counts = (only_challenger, only_champion, examples - only_challenger - only_champion)
    challenger, champion = (
        np.repeat(each, counts) for each in ([True, False, True], [False, True, True])
    )
    labels = np.full(examples, label, np.int16)
    return promotion.PairedResult(labels=labels, challenger=challenger, other=champion, **changes)


def config(**settings):
    return GateConfig.model_validate(settings)


def decide(champion, challenger=None, *, anchor=None, golden=None, **settings):
    return promotion.decide(
        challenger or candidate(), champion, config(**settings), anchor=anchor, golden=golden
    )


@given(st.integers(1, 400), st.data())
@settings(deadline=None, max_examples=60)
def test_rules_say_what_they_mean(examples, data):
    won = data.draw(st.integers(0, examples))
    lost = data.draw(st.integers(0, examples - won))
    margin = data.draw(st.sampled_from([0.005, 0.02, 0.1]))
    result = paired(won, lost, examples=examples)
    decision = decide(result, margin=margin, max_recall_drop=1)
    assert decision.bound == lower_bound(won, lost, examples, 0.05)
    if decision.bound >= -margin:
        assert decision.outcome == "promoted"
    elif p_value(lost, won, examples, difference=margin, significance=0.05) <= 0.05:
        assert decision.outcome == "rejected"
    else:
        assert decision.outcome == "not-enough-evidence"
        assert decision.needed is None or decision.needed > examples
    strict = decide(result, margin=margin, max_recall_drop=1, rule="better")
    significant = mcnemar_test(result.other, result.challenger).p_better < 0.05
    assert strict.outcome == ("promoted" if significant else "rejected")


def test_equal_challenger_by_test_set_size():
    small, large = (paired(n // 40, n // 40, examples=n) for n in (400, 40_000))
    decision = decide(small)
    assert decision.outcome == "not-enough-evidence"
    assert decision.needed == 13_000
    assert "400 test images, about 13,000 would be needed" in decision.reason
    assert decide(large).outcome == "promoted"
    assert decide(large, rule="better").outcome == "rejected"


def test_unclear_challenger_with_enough_images():
    decision = decide(paired(30, 70, examples=10_000))
    assert (decision.outcome, decision.needed) == ("not-enough-evidence", None)
    assert "not enough evidence in 10,000 test images" in decision.reason


@pytest.mark.parametrize("rule", ["not-worse", "better"])
def test_identical_challenger_is_kept(rule):
    decision = decide(paired(identical=True, examples=100_000), rule=rule, min_accuracy=1)
    assert decision.outcome == "kept-identical"
    assert decision.reason.startswith("the same predictions as the champion's")
    assert decision.reason.endswith("for every test image")
    partly = decide(paired(identical=True, examples=1200, left_out=3), rule=rule)
    assert partly.reason.endswith("for each of the 1,200 compared test images")


@pytest.mark.parametrize(
    ("challenger", "settings", "says"),
    [
        (candidate(0.9), {"min_accuracy": 0.95}, "below the minimum"),
        (candidate(error=0.2), {"max_calibration_error": 0.1}, "calibration error"),
        (candidate(), {}, "recall of class 3"),
        (candidate(), {"max_recall_drop": 1}, "less accurate than the champion by more than 0.5"),
        (candidate(), {"rule": "better", "max_recall_drop": 1}, "not significantly better"),
    ],
)
def test_decision_names_first_objection(challenger, settings, says):
    decision = decide(paired(only_champion=200, label=3), challenger, **settings)
    assert decision.outcome == "rejected"
    assert says in decision.reason


def test_recall_is_tested_over_all_classes():
    """Lose 4 of 20 images of one class: significant among 2 classes, but not among 200."""

    def lose_four(classes):
        labels = np.repeat(np.arange(classes, dtype=np.int16), 20)
        challenger, other = np.ones(20 * classes, bool), np.ones(20 * classes, bool)
        challenger[:8] = False
        return promotion.PairedResult("champion", labels, challenger, other)

    few, many = (decide(lose_four(each), margin=0.5) for each in (2, 200))
    assert (few.outcome, many.outcome) == ("rejected", "promoted")
    assert few.recall_label == many.recall_label == 0
    assert few.recall_drop == many.recall_drop == 0.4
    assert few.recall_p < 0.05 < many.recall_p


def test_small_drop_of_rare_class_passes():
    labels = np.repeat(np.array([0, 1], np.int16), [10_000, 3])
    challenger, other = np.ones(10_003, bool), np.ones(10_003, bool)
    challenger[-1] = False
    decision = decide(promotion.PairedResult("champion", labels, challenger, other))
    assert decision.outcome == "promoted"
    assert decision.recall_drop == pytest.approx(1 / 3)


@pytest.mark.parametrize("name", ["anchor", "golden"])
@pytest.mark.parametrize("rule", ["not-worse", "better"])
@pytest.mark.parametrize(
    ("other", "outcome"),
    [
        (paired(100, 100, examples=100_000), "promoted"),
        (paired(2, 2, examples=100), "not-enough-evidence"),
        (paired(0, 50, examples=1000), "rejected"),
    ],
)
def test_other_comparison_can_refuse(name, rule, other, outcome):
    better = paired(400, 100, examples=10_000)
    decision = decide(better, rule=rule, **{name: other})
    assert decision.outcome == outcome
    bound = decision.anchor_bound if name == "anchor" else decision.golden_bound
    assert (bound >= -0.005) == (outcome == "promoted")
    if outcome != "promoted":
        assert ("the anchor" if name == "anchor" else "images of gate.golden") in decision.reason
        is_known = name == "anchor" and outcome == "not-enough-evidence"
        assert (decision.needed is not None) == is_known


def test_rejection_beats_missing_evidence():
    unclear, worse = paired(2, 2, examples=100), paired(0, 50, examples=1000)
    assert decide(unclear, golden=worse).outcome == "rejected"
    assert decide(unclear, candidate(0.1), min_accuracy=0.5).outcome == "rejected"


def test_anchor_moves_to_clearly_better_only():
    first = decide(None)
    assert (first.outcome, first.next_anchor) == ("promoted", "challenger")
    for won, next_anchor in ((120, "champion"), (200, "challenger")):
        result = paired(won, 100, examples=20_000)
        assert decide(result).next_anchor == next_anchor
        past = paired(won, 100, examples=20_000, run_id="past")
        expected = "past" if next_anchor == "champion" else next_anchor
        decision = decide(result, anchor=past)
        assert (decision.next_anchor, decision.anchor) == (expected, "past")
    assert decide(paired(0, 100)).next_anchor is None


def test_anchor_stops_a_walk_downhill():
    """Lose a little each night, always too little to be told from the champion of the day."""
    examples, lost = 10_000, 20
    night = paired(5, 5 + lost, examples=examples)
    assert decide(night).outcome == "promoted"
    outcomes = [
        decide(night, anchor=paired(5, 5 + lost * nights, examples=examples)).outcome
        for nights in range(1, 10)
    ]
    assert outcomes[0] == "promoted"
    assert set(outcomes[4:]) == {"rejected"}


def test_incomparable_champion_stays():
    other = promotion.Incomparable("champion", "it was evaluated on other test images")
    decision = decide(other)
    assert decision.outcome == "skipped"
    assert decision.reason.startswith(other.reason)
    assert decide(other, candidate(0.1), min_accuracy=0.5).outcome == "rejected"


def test_incomparable_anchor_is_reported():
    anchor = promotion.Incomparable("first", "its model is damaged")
    decision = decide(paired(400, 100, examples=10_000), anchor=anchor)
    assert (decision.outcome, decision.anchor) == ("promoted", None)
    assert decision.reason.endswith("; not compared with anchor first: its model is damaged")
    assert decision.next_anchor == "challenger"


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
    # The third run has the weights of the first, so there is no other model to go back to.
    assert call(capfd, "rollback", "--store", store.root).code == 2
    assert (
        call(capfd, "promote", second, "--store", store.root, "--json").json["champion"] == second
    )
    assert call(capfd, "rollback", "--store", store.root, "--json").json["champion"] == third
    call(capfd, "promote", second, "--store", store.root)
    changes = call(capfd, "champion", "--store", store.root, "--json").json["changes"]
    assert [each["changed_by"] for each in changes][:4] == [
        "promote",
        "rollback",
        "promote",
        "promote",
    ]
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


def test_outdated_decision_is_repeated(tmp_path, small_folder):
    from nnbuild.pipeline import commit
    from nnbuild.pipeline.reporting import write_report

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


def test_fallback_run_leaves_champion(tmp_path, monkeypatch):
    monkeypatch.delenv("NNBUILD_DATA_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(registry, "_download", _refuse_download)
    settings = {"model": {"name": "lab"}, "training": {"epochs": 1}}
    fell_back = RunConfig.model_validate(settings | {"dataset": {"fallback": "digits"}})
    meant = RunConfig.model_validate(settings | {"dataset": {"name": "digits"}})
    store = Store(tmp_path / "store")
    first, expected, last = (
        retrain(each, store.root).run_id for each in (fell_back, meant, fell_back)
    )
    for run_id in (first, last):
        decision = store.read_table("decisions", run_id).to_pylist()[0]
        assert (decision["outcome"], decision["promoted"]) == ("skipped", False)
        assert "fallback dataset digits, because mnist" in decision["reason"]
        assert not store.manifest(run_id).row.promoted
    assert store.manifest(expected).row.promoted
    assert [each.run_id for each in champion.history(store)] == [expected]


def _refuse_download(*_):
    raise UnavailableError("no network in this test")


def test_shared_name_of_other_folder_is_remarked(store, tmp_path, small_folder):
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    copied = shutil.copy(small_folder, folder)
    for source, word in ((small_folder, None), (copied, "elsewhere")):
        run = open_run(run_config(source), store.root)
        decided = Decided(
            champion=champion.current(store),
            promote=False,
            reason="",
            champion_metrics={},
            figures={},
        )
        remark = pipeline.shared_name(run, decided)
        assert (remark is None) if word is None else (word in remark)


def test_pinned_champion_stays_but_is_compared(gated_runs, small_folder):
    store, (first, *_) = gated_runs
    champion.promote(store, first, champion.Author("ada@host", "for the audit"))
    good = run_config(small_folder, training={"epochs": 30, "learning_rate": 0.02})
    run_id = retrain(good, store.root).run_id
    decision = store.read_table("decisions", run_id).to_pylist()[0]
    assert (decision["outcome"], decision["promoted"]) == ("skipped", False)
    assert decision["examples"] == 45
    for word in (first, "ada@host", "for the audit", "without the pin: promoted"):
        assert word in decision["reason"]
    assert champion.current(store) == first
    champion.unpin(store, champion.Author("ada@host"))
    run_id = retrain(good, store.root).run_id
    assert champion.current(store) == run_id
    assert champion.history(store)[-1].note == store.manifest(run_id).steps.decide.reason


def test_pin_after_decision_holds(store, small_folder, monkeypatch):
    """A person may pin the champion while a run that would replace it is being committed."""
    (first,) = store.run_ids()

    def pin(name):
        if name == "write_report:begin" and champion.pin(store, "small") is None:
            champion.promote(store, first, champion.Author("ada@host"))

    monkeypatch.setattr(fault_injection, "failpoint", pin)
    good = run_config(small_folder, training={"epochs": 30, "learning_rate": 0.02})
    run_id = retrain(good, store.root).run_id
    assert champion.current(store) == first
    assert store.read_table("decisions", run_id)["outcome"].to_pylist() == ["skipped"]


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory, small_folder):
    """Root of a store with a run that has come to the gate; do not modify it."""
    root = tmp_path_factory.mktemp("evaluated") / "store"
    run = open_run(run_config(small_folder), root)
    with run_context(run):
        train_and_evaluate(run)
    return root


@pytest.mark.parametrize(
    "at",
    [
        "commit:laid-out",
        "commit:decisions",
        "commit:runs",
        "champion:changed",
        "champion:recorded",
    ],
)
def test_killed_promotion_is_finished(evaluated, tmp_path, at):
    store = Store(shutil.copytree(evaluated, tmp_path / "store"))
    (run_id,) = [each.run_id for each in store.unfinished_runs()]
    with killed_at(at):
        retrain(store=store.root, resume=run_id)
    if store.unfinished_runs():
        assert retrain(store=store.root, resume=run_id).run_id == run_id
    else:
        with pytest.raises(StoreError, match="is committed"):
            open_run(RunConfig(), store.root, resume=run_id)
    assert champion.current(store) == run_id
    assert [each.run_id for each in champion.history(store)] == [run_id]
    assert store.read_table("champions")["run_id"].to_pylist() == [run_id]
    assert list((store.root / "staging").iterdir()) == []
