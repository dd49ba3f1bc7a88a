"""Shadows are compared on the labels of production, and promoted by a test that can be repeated."""

from datetime import UTC, date, datetime, timedelta

import numpy as np
import pytest
from command_line import call
from label_data import job_with_ids, label_file, labelled
from score_data import ROWS, parquet, scored

from nnbuild.errors import ConfigError, StoreError
from nnbuild.evaluation.significance import mcnemar_test
from nnbuild.live import measure, measure_shadows, paired_counts, promote_if_better, write_shadows
from nnbuild.live.shadows import PairedCounts
from nnbuild.store import Store, champion
from nnbuild.store.filesystem import read_json, write_json

NOW = datetime(2026, 11, 26, 12, tzinfo=UTC)
AUTHOR = champion.Author("ada@build-7")


@pytest.fixture
def runs(gated_runs):
    """A store whose champion is a bad run, and a challenger that is much better."""
    store, (bad, good, _) = gated_runs
    champion.promote(store, bad, AUTHOR)
    champion.unpin(store, AUTHOR)
    return store, bad, good


def predictions(store, table):
    """Return the predicted class of each example."""
    rows = store.read_table(table)
    return dict(zip(rows["example_id"].to_pylist(), rows["predicted"].to_pylist(), strict=True))


def add_labels(store, folder, labels, now=NOW, **columns):
    path = label_file(
        folder / "labels.parquet", id=list(labels), label=list(labels.values()), **columns
    )
    return labelled(store, path, now)


def recomputed(store):
    """Return the counts by day in pandas, for jobs with integer IDs."""
    scores, shadows = (
        store.read_table(name, columns=["score_id", "example_id", "predicted"]).to_pandas()
        for name in ("scores", "shadow_scores")
    )
    both = scores.merge(shadows, on=["score_id", "example_id"], suffixes=("", "_shadow"))
    jobs = store.read_table("score_jobs").to_pandas()
    both = both.merge(jobs[["score_id", "day"]]).sort_values("score_id")
    both = both.drop_duplicates("example_id")
    labels = store.read_table("labels").to_pandas().sort_values(["observed_at", "version"])
    both["truth"] = both.example_id.map(labels.groupby("example_id").label.last())
    both = both[both.truth.notna()]
    own, other = both.predicted == both.truth, both.predicted_shadow == both.truth
    return {
        day: mcnemar_test(own[rows].to_numpy(), other[rows].to_numpy())
        for day, rows in both.groupby("day").groups.items()
    }


def test_live_shadows_equal_recomputation(runs, tmp_path):
    store, bad, good = runs
    draw = np.random.default_rng(2)
    for number in range(3):
        job_with_ids(
            store, tmp_path, f"d{number}", first=150 * number, day=f"2026-11-0{number + 1}",
            shadow=good, calibrated=number == 1,
        )  # fmt: skip
    for part in range(3):
        ids = draw.choice(500, 200)
        times = [NOW - timedelta(days=int(days)) for days in draw.integers(0, 20, 200)]
        path = tmp_path / f"l{part}.parquet"
        label_file(path, id=ids, label=draw.integers(0, 3, 200), observed_at=times)
        labelled(store, path, NOW)
    rows = measure_shadows(store, paired_counts(store), now=NOW)
    expected = recomputed(store)
    assert [row["start"] for row in rows[:-1]] == sorted(expected)
    for row in rows[:-1]:
        assert (row["run_id"], row["shadow_run_id"], row["period"]) == (bad, good, "day")
        test = expected[row["start"]]._asdict()
        assert row["labelled"] == test.pop("examples")
        assert {name: row[name] for name in test} == pytest.approx(test)
        gap = row["shadow_accuracy"] - row["accuracy"]
        assert gap == pytest.approx(row["difference"])
    assert (rows[-1]["period"], rows[-1]["start"]) == ("all", date(2026, 11, 1))
    assert rows[-1]["labelled"] == sum(each.examples for each in expected.values())
    write_shadows(store, rows, "day")
    weeks = measure_shadows(store, paired_counts(store), "week", now=NOW)
    write_shadows(store, weeks, "week")
    found = store.read_table("live_shadows").to_pylist()
    key = ("period", "start")
    assert sorted(found, key=lambda row: [str(row[name]) for name in key]) == sorted(
        [*rows, *weeks[:-1]], key=lambda row: [str(row[name]) for name in key]
    )


def test_shadow_does_not_change_live(runs, tmp_path):
    store, _, good = runs
    job_with_ids(store, tmp_path)
    labels = predictions(store, "scores")
    job_with_ids(store, tmp_path, "again", first=1000, day="2026-11-03", shadow=good)
    add_labels(store, tmp_path, labels | {1000 + key: label for key, label in labels.items()})
    alone, both = measure(store, now=NOW).rows
    metrics = [name for name, value in alone.items() if isinstance(value, int | float)]
    assert alone["labelled"] == ROWS
    assert [both[name] for name in metrics] == pytest.approx([alone[name] for name in metrics])


def test_example_counts_once(runs, tmp_path):
    """Rescoring an input is no new evidence, whatever identifies its rows."""
    store, bad, good = runs
    path = parquet(tmp_path / "rows.parquet")
    for _ in range(2):
        scored(store, input=path, shadow=good)
        job_with_ids(store, tmp_path, "ids", first=1000, shadow=good)
    add_labels(store, tmp_path, {row: row % 3 for row in [*range(50), *range(1000, 1100)]})
    assert sum(each.labelled for each in paired_counts(store)[bad, good].values()) == 150


def test_filtered_jobs_are_not_compared(runs, tmp_path):
    store, _, good = runs
    job_with_ids(store, tmp_path, shadow=good, where="predicted != 0")
    add_labels(store, tmp_path, predictions(store, "scores"))
    assert paired_counts(store) == {}


def test_better_shadow_is_promoted(runs, tmp_path):
    store, bad, good = runs
    job_with_ids(store, tmp_path, shadow=good)
    add_labels(store, tmp_path, predictions(store, "shadow_scores"))
    decision = promote_if_better(store, good, AUTHOR._replace(note="nightly"), now=NOW)
    assert (decision.outcome, decision.champion, decision.needed) == ("promoted", bad, None)
    assert decision.evidence >= decision.threshold == pytest.approx(20)
    change = champion.history(store)[-1]
    assert (change.run_id, change.changed_by, change.pinned) == (good, "promote", False)
    assert change.who == AUTHOR.who
    assert change.note == f"nightly; {decision.reason}"
    again = promote_if_better(store, good, AUTHOR, now=NOW)
    assert again.outcome == "kept-identical"
    assert champion.history(store)[-1] == change


def test_worse_shadow_is_rejected(runs, tmp_path):
    store, bad, good = runs
    job_with_ids(store, tmp_path, shadow=good)
    add_labels(store, tmp_path, predictions(store, "scores"))
    decision = promote_if_better(store, good, AUTHOR)
    assert decision.outcome == "rejected"
    assert "less accurate in production" in decision.reason
    assert champion.current(store) == bad


def test_few_labels_are_not_enough(runs, tmp_path):
    store, bad, good = runs
    assert promote_if_better(store, good, AUTHOR).reason.startswith("no labelled image")
    job_with_ids(store, tmp_path, shadow=good)
    own, theirs = predictions(store, "scores"), predictions(store, "shadow_scores")
    different = [key for key in own if own[key] != theirs[key]][:2]
    add_labels(store, tmp_path, {key: theirs[key] for key in different})
    decision = promote_if_better(store, good, AUTHOR)
    assert decision.outcome == "not-enough-evidence"
    assert decision.counts == PairedCounts(2, 0, 0, 2)
    assert 4 < decision.needed < 20
    assert f"about {decision.needed} images would be needed" in decision.reason
    add_labels(store, tmp_path, {key: own[key] for key in different}, NOW + timedelta(days=1))
    assert promote_if_better(store, good, AUTHOR).needed is None  # corrected: it is behind
    assert champion.current(store) == bad


def test_pinned_champion_stays(runs, tmp_path):
    store, bad, good = runs
    job_with_ids(store, tmp_path, shadow=good)
    add_labels(store, tmp_path, predictions(store, "shadow_scores"))
    champion.promote(store, bad, AUTHOR)
    decision = promote_if_better(store, good, AUTHOR)
    assert decision.outcome == "skipped"
    assert "without the pin: promoted" in decision.reason
    assert champion.current(store) == bad
    with pytest.raises(champion.PinnedError, match=f"champion {bad} of .* has been pinned"):
        champion.replace(store, good, AUTHOR, expected=bad)


def test_champion_that_changed_meanwhile_stays(runs):
    store, bad, good = runs
    with pytest.raises(champion.ChampionChangedError, match="decide again"):
        champion.replace(store, good, AUTHOR, expected=good)
    assert champion.current(store) == bad


def test_unfit_challenger_is_refused(runs, tmp_path):
    store, bad, good = runs
    path = store.root / "runs" / good / "manifest.json"
    manifest = read_json(path)
    manifest["steps"]["load_data"]["image_shape"] = [9, 9, 1]
    write_json(path, manifest)
    with pytest.raises(ConfigError, match="cannot be compared with the champion: its images are"):
        promote_if_better(store, good, AUTHOR)
    with pytest.raises(StoreError, match="no committed run"):
        promote_if_better(store, bad[:-6] + "ffffff", AUTHOR)


def test_promote_command_reports_its_decision(runs, tmp_path, capfd):
    store, bad, good = runs
    command = ["promote", good, "--if-better", "--store", store.root]
    outcome = call(capfd, *command, "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.json["outcome"] == "not-enough-evidence"
    assert (outcome.json["champion"], outcome.json["labelled"]) == (bad, 0)
    assert f"--shadow {good}" in outcome.json["next"]
    job_with_ids(store, tmp_path, shadow=good)
    add_labels(store, tmp_path, predictions(store, "shadow_scores"))
    page = tmp_path / "live.html"
    live = call(capfd, "live", "--html", page, "--store", store.root, "--json")
    assert [row["period"] for row in live.json["shadows"]] == ["day", "all"]
    assert good in page.read_text()
    assert f"Shadow {good}: accuracy 100" in call(capfd, "live", "--store", store.root).out
    text = call(capfd, *command)
    assert (text.code, text.out.splitlines()[0][:37]) == (
        0,
        "promoted: more accurate in production",
    )
    assert call(capfd, *command, "--json").json["outcome"] == "kept-identical"
    newest = call(capfd, "promote", "newest", "--if-better", "--store", store.root, "--json")
    assert newest.json["run_id"] == store.run_ids()[-1]
    refused = call(capfd, "promote", "newest", "--store", store.root)
    assert (refused.code, len(refused.err.strip().splitlines())) == (2, 1)


def test_remote_store_promotes_a_shadow(runs, tmp_path, s3_store):
    import s3fs

    store, bad, good = runs
    job = {"input": str(parquet(tmp_path / "in.parquet")), "shadow": good}
    s3fs.S3FileSystem(skip_instance_cache=True).put(f"{store.root}/", s3_store, recursive=True)
    remote = Store(s3_store)
    assert scored(remote, **job).shadow_run_id == good
    assert len(remote.read_table("shadow_scores")) == ROWS
    add_labels(remote, tmp_path, predictions(remote, "shadow_scores"))
    rows = measure_shadows(remote, paired_counts(remote))
    write_shadows(remote, rows, "day")
    assert len(remote.read_table("live_shadows")) == 2
    decision = promote_if_better(remote, good, AUTHOR)
    assert (decision.outcome, decision.champion) == ("promoted", bad)
    assert champion.current(remote) == good
