"""Live accuracy equals a recomputation in NumPy and pandas, row by row."""

import hashlib
from datetime import UTC, date, datetime, timedelta

import numpy as np
import pandas as pd
import pytest
from command_line import call
from label_data import TRUTH, job_with_ids, label_file, labelled, watched
from score_data import ROWS, parquet, scored

from nnbuild.evaluation import calibration_error, wilson_interval
from nnbuild.live import measure, measure_slices, write
from nnbuild.logits import softmax
from nnbuild.store import Store, champion

NOW = datetime(2026, 11, 26, 12, tzinfo=UTC)


def recomputed(store):
    """Return live accuracy by day in pandas, for jobs with integer IDs that scored once."""
    run_id = champion.require(store)
    fitted = store.manifest(run_id).steps.calibrate_model
    jobs = store.read_table("score_jobs").to_pandas()
    scores = store.read_table("scores").to_pandas().merge(jobs[["score_id", "day", "temperature"]])
    labels = store.read_table("labels").to_pandas()
    newest = labels.sort_values(["observed_at", "version"]).groupby("example_id").label.last()
    truth = scores.example_id.map(newest)
    found = {}
    for day, group in scores.groupby("day"):
        logs = np.log(group.filter(regex="^prob_").to_numpy(np.float64))
        scale = fitted.temperature / group.temperature.to_numpy()[:, None]
        probabilities = softmax(logs / scale)
        confidence = probabilities.max(axis=1)
        known = truth[group.index].notna().to_numpy()
        label = truth[group.index][known].to_numpy().astype(int)
        correct = group.predicted.to_numpy()[known] == label
        found[day] = {
            "rows": len(group),
            "labelled": known.sum(),
            "accuracy": correct.mean() if known.any() else None,
            "estimated_accuracy": confidence.mean(),
            "estimated_accuracy_atc": (confidence >= fitted.confidence_threshold).mean(),
            "expected_calibration_error": calibration_error(probabilities[known], label),
            "negative_log_likelihood": -np.log(
                probabilities[known][np.arange(len(label)), label]
            ).sum()
            / max(len(label), 1),
        }
    return found


@pytest.mark.parametrize("calibrated", [False, True])
def test_live_equals_recomputation(store, tmp_path, calibrated):
    draw = np.random.default_rng(1)
    for number in range(3):
        job_with_ids(
            store,
            tmp_path,
            f"day{number}",
            first=1000 * number,
            day=f"2026-11-0{number + 1}",
            calibrated=calibrated and number == 1,
            logits=number == 2,
        )
    for part in range(3):
        ids = draw.choice([*range(ROWS), *range(1000, 1000 + ROWS)], 150)
        times = [NOW - timedelta(days=int(days)) for days in draw.integers(0, 20, 150)]
        path = tmp_path / f"l{part}.parquet"
        label_file(path, id=ids, label=draw.integers(0, 3, 150), observed_at=times)
        labelled(store, path, NOW)
    rows = {row["start"]: row for row in measure(store).rows}
    expected = recomputed(store)
    assert list(rows) == sorted(expected) == [date(2026, 11, day) for day in (1, 2, 3)]
    assert rows[date(2026, 11, 3)]["labelled"] == 0
    for day, values in expected.items():
        for name, value in values.items():
            if rows[day]["labelled"] or name in {"rows", "labelled", "estimated_accuracy"}:
                assert rows[day][name] == pytest.approx(value, abs=1e-6), (day, name)
        if (accuracy := rows[day]["accuracy"]) is not None:
            interval = rows[day]["accuracy_low"], rows[day]["accuracy_high"]
            assert interval == wilson_interval(accuracy, rows[day]["labelled"])
            gap = accuracy - rows[day]["estimated_accuracy"]
            assert rows[day]["realised_minus_estimated"] == gap


def test_slices_equal_recomputation(store, tmp_path):
    draw = np.random.default_rng(2)
    for number, day in enumerate(("2026-11-01", "2026-11-02")):
        sites = [["a", None, "ü"][each] for each in draw.integers(0, 3, ROWS)]
        ids = list(range(1000 * number, 1000 * number + ROWS))
        path = parquet(tmp_path / f"{number}.parquet", customer=ids, site=sites)
        scored(store, input=path, id_column="customer", keep=("site",), day=day)
    ids = draw.choice([*range(ROWS), *range(1000, 1000 + ROWS)], 200, replace=False)
    truth = pd.Series(draw.integers(0, 3, 200), ids)
    labelled(store, label_file(tmp_path / "l.parquet", id=ids, label=truth.to_numpy()))
    scores = store.read_table("scores").to_pandas()
    scores["correct"] = (scores.example_id.map(truth) == scores.predicted).where(
        scores.example_id.isin(ids)
    )
    found = {
        (row["start"].day, row["value"]): (row["rows"], row["labelled"], row["accuracy"])
        for row in measure_slices(store, "site")
    }
    groups = scores.groupby([scores.example_id // 1000 + 1, "site"], dropna=False)
    expected = {
        (day, site if isinstance(site, str) else None): (
            len(group),
            group.correct.count(),
            pytest.approx(group.correct.dropna().astype(float).mean()),
        )
        for (day, site), group in groups
    }
    assert len(found) == 6
    assert found == expected


def test_slices_by_many_values_are_refused(capfd, store, tmp_path):
    path = parquet(tmp_path / "in.parquet", serial=list(range(ROWS)))
    scored(store, input=path, keep=("serial",), day="2026-11-01")
    wrong = call(capfd, "live", "--slice", "serial", "--store", store.root)
    assert (wrong.code, len(wrong.err.splitlines())) == (2, 1)
    assert f"'serial' has {ROWS} values" in wrong.err


def test_live_weeks_begin_on_monday(store, tmp_path):
    for number, day in enumerate(("2026-11-01", "2026-11-02", "2026-11-08")):
        job_with_ids(store, tmp_path, f"d{number}", first=1000 * number, day=day)
    weeks = measure(store, "week").rows
    assert [(row["start"], row["rows"]) for row in weeks] == [
        (date(2026, 10, 26), ROWS),
        (date(2026, 11, 2), 2 * ROWS),
    ]


def test_labels_of_one_input_apply_to_its_jobs(store, tmp_path):
    """Row numbers identify rows in the jobs of one input; a newer label by ID still wins."""
    path = parquet(tmp_path / "rows.parquet")
    first = scored(store, input=path)
    scored(store, input=path, logits=True)
    other = scored(store, input=parquet(tmp_path / "other.parquet", group=40), day="2026-11-01")
    labels = label_file(
        tmp_path / "l.parquet", id=[0, 1], label=[0, 1], score_id=[first.score_id] * 2
    )
    labelled(store, labels)
    labelled_rows = {row["start"]: row["labelled"] for row in measure(store).rows}
    assert labelled_rows.pop(date(2026, 11, 1)) == 0
    assert list(labelled_rows.values()) == [4]
    label_file(labels, id=[5], label=[0], score_id=[other.score_id])
    labelled(store, labels)
    assert {row["labelled"] for row in measure(store).rows} == {1, 4}


def test_label_by_id_and_by_job_newest_counts(store, tmp_path):
    job = job_with_ids(store, tmp_path)
    predicted = store.read_table("scores")["predicted"].to_pylist()
    wrong = (predicted[7] + 1) % 3
    old, new = NOW - timedelta(days=3), NOW - timedelta(days=1)
    path = tmp_path / "l.parquet"
    label_file(path, id=[7], label=[wrong], observed_at=[old], score_id=[job.score_id])
    labelled(store, path, NOW)
    assert measure(store).rows[0]["accuracy"] == 0
    label_file(path, id=[7], label=[predicted[7]], observed_at=[new])
    labelled(store, path, NOW)
    assert measure(store).rows[0]["accuracy"] == 1
    assert measure(store).rows[0]["labelled"] == 1


def test_column_named_like_our_own_is_harmless(store, tmp_path):
    columns = {name: [0] * ROWS for name in ("truth", "total", "part", "arrived", "calibrated")}
    path = parquet(tmp_path / "in.parquet", customer=list(range(ROWS)), **columns)
    scored(store, input=path, id_column="customer", keep=tuple(columns), day="2026-11-01")
    job_with_ids(store, tmp_path, first=5000, day="2026-11-02")
    labelled(store, label_file(tmp_path / "l.parquet", id=[0, 5000], label=[0, 0]))
    first, second = measure(store).rows
    same = ("rows", "labelled", "estimated_accuracy", "accuracy")
    # DuckDB's threads add in any order.
    assert [first[name] for name in same] == [pytest.approx(second[name]) for name in same]


def test_wildcards_in_the_path_of_a_store(store, tmp_path):
    """DuckDB would expand them: such files, like those of a remote store, are read by Arrow."""
    job_with_ids(store, tmp_path)
    other = Store(store.root.rename(tmp_path / "st[1]re*"))
    path = label_file(tmp_path / "l.parquet", id=list(range(ROWS)), label=TRUTH)
    assert labelled(other, path).labelled == ROWS
    (row,) = measure(other).rows
    expected = recomputed(other)[row["start"]]
    assert row["accuracy"] == pytest.approx(expected["accuracy"])
    assert row["estimated_accuracy"] == pytest.approx(expected["estimated_accuracy"])


def test_live_table_is_replaced(capfd, store, tmp_path):
    job_with_ids(store, tmp_path)
    at = ("--store", store.root)
    found = call(capfd, "live", "--json", *at).json
    assert [row["labelled"] for row in found["rows"]] == [0]
    assert found["alarms"] == []
    assert store.read_table("live").num_rows == 1
    labelled(store, label_file(tmp_path / "l.parquet", id=list(range(ROWS)), label=TRUTH))
    assert call(capfd, "live", "--by", "week", "--html", tmp_path / "live.html", *at).code == 0
    assert store.read_table("live")["period"].to_pylist() == ["day", "week"]
    found = call(capfd, "live", "--json", *at).json
    rows = store.read_table("live").to_pandas().query("period == 'day'")
    assert [row["accuracy"] for row in found["rows"]] == rows.accuracy.tolist()
    assert found["alarms"][0]["labelled"] == ROWS
    page = (tmp_path / "live.html").read_text()
    assert "must fail" in page
    assert "<svg" in page


def test_live_without_scores_is_empty(capfd, store):
    found = call(capfd, "live", "--json", "--store", store.root).json
    assert (found["rows"], found["alarms"]) == ([], [])


def test_pages_show_live_accuracy(capfd, store, tmp_path):
    for number in range(2):
        first, day = 1000 * number, f"2026-11-0{number + 1}"
        job_with_ids(store, tmp_path, f"d{number}", first=first, day=day)
    labelled(store, label_file(tmp_path / "l.parquet", id=list(range(ROWS)), label=TRUTH))
    watched(store)
    run_id = champion.require(store)
    assert call(capfd, "report", run_id, "--store", store.root).code == 0
    report = (store.root / "runs" / run_id / "report.html").read_text()
    assert "Is it right on new images?" in report
    assert "must fail" in report
    found = call(
        capfd, "trends", "--html", tmp_path / "trends.html", "--json", "--store", store.root
    )
    assert [row["start"] for row in found.json["live"]] == ["2026-11-01", "2026-11-02"]
    assert f"Live accuracy, run {run_id[-6:]}" in (tmp_path / "trends.html").read_text()


def test_exact_for_tiny_probabilities(store, tmp_path):
    """A probability that float32 rounds to 0 counts as the smallest number above 0."""
    job = job_with_ids(store, tmp_path)
    part = store.root / "tables" / "scores" / f"score_id={job.score_id}" / "part-00000.parquet"
    import pyarrow.parquet as pq

    schema = pq.read_schema(part)
    table = pd.read_parquet(part)
    table["predicted"] = np.int16(0)
    table["log_prob"] = np.float32(0)
    for label in range(3):
        table[f"prob_{label}"] = np.float32(label == 0)
    import pyarrow as pa

    pq.write_table(pa.Table.from_pandas(table, schema=schema, preserve_index=False), part)
    labelled(store, label_file(tmp_path / "l.parquet", id=[0, 1], label=[0, 1]))
    row = measure(store).rows[0]
    assert np.isfinite(row["negative_log_likelihood"])
    assert row["accuracy"] == 0.5
    write(store, measure(store), "day")


def test_input_that_a_model_file_scored_first(store, tmp_path):
    """Labels of an input belong to the first job that scored it, whatever its model."""
    model = store.root / "runs" / champion.require(store) / "model.onnx"
    digest = hashlib.sha256(model.read_bytes()).hexdigest()
    path = parquet(tmp_path / "rows.parquet")
    scored(store, input=path, model=str(model), digest=digest)
    scored(store, input=path)
    labelled(store, label_file(tmp_path / "l.parquet", id=[0, 1], label=[0, 1]))
    assert [row["labelled"] for row in measure(store).rows] == [2]
