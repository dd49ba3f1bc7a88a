"""Whose label it is: of a class by name, of an image in every job, and once."""

import shutil
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pytest
from data_files import separable, write_picture_folder
from label_data import TRUTH, job_with_ids, label_file, labelled, labels_of
from score_data import ROWS, parquet, scored
from small_data import run_config

from nnbuild.live import measure, measure_slices
from nnbuild.live.label_files import LabelConfig, open_file, read
from nnbuild.pipeline.retention import delete
from nnbuild.pipeline.run import retrain
from nnbuild.store import Store

NOW = datetime(2026, 11, 26, 12, tzinfo=UTC)
NAMES = ("ant", "cat", "dog")
IDS = list(range(ROWS))


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory):
    """Return a store, a run of the classes cat and dog, and one of ant, cat and dog."""
    folder = tmp_path_factory.mktemp("renumbered")
    store, runs = Store(folder / "store"), []
    for number, names in enumerate((NAMES[1:], NAMES)):
        arrays = separable(classes=len(names), seed=number)
        path = write_picture_folder(folder / f"data{number}", arrays, names)
        runs.append(retrain(run_config(path), store.root).run_id)
    return store.root, runs


@pytest.mark.parametrize("last", [0, 1])
@pytest.mark.parametrize("labels_first", [False, True])
def test_classes_are_compared_by_name(two_runs, tmp_path, last, labels_first):
    root, runs = two_runs
    store = Store(shutil.copytree(root, tmp_path / "store"))
    path = parquet(tmp_path / "in.parquet", customer=IDS)
    names = [NAMES[1 + row % 2] for row in IDS]
    labels = label_file(tmp_path / "l.parquet", id=IDS, label=names)
    for number in (1 - last, last):
        scored(store, input=path, id_column="customer", model=runs[number])
        if labels_first or number == last:
            labelled(store, labels, NOW)
    again = label_file(tmp_path / "again.parquet", id=[*IDS, 0], label=[*names, "dog"])
    done = labelled(store, again, NOW)
    assert (done.repeated, done.corrected) == (ROWS, 1)
    names[0] = "dog"
    accuracies = {row["run_id"]: row["accuracy"] for row in measure(store).rows}
    jobs = {row["run_id"]: row["score_id"] for row in store.read_table("score_jobs").to_pylist()}
    assert set(accuracies) == set(jobs) == set(runs)
    for run_id, score_id in jobs.items():
        rows = store.read_table("scores", score_id).to_pylist()
        expected = np.mean([row["predicted_name"] == names[row["example_id"]] for row in rows])
        assert 0 < accuracies[run_id] == pytest.approx(expected)


def test_labels_outlive_the_job_that_they_were_found_by(store, tmp_path):
    path = parquet(tmp_path / "in.parquet")
    first = scored(store, input=path)
    labels = label_file(tmp_path / "l.parquet", id=IDS, label=TRUTH)
    assert labelled(store, labels, NOW).labelled == ROWS
    scored(store, input=path)
    scored(store, input=path)
    delete(store, [first.score_id], now=NOW)
    (row,) = measure(store).rows
    assert (row["rows"], row["labelled"]) == (2 * ROWS, 2 * ROWS)
    other = label_file(tmp_path / "o.parquet", id=[0, 1], label=[TRUTH[0], (TRUTH[1] + 1) % 3])
    done = labelled(store, other, NOW)
    assert (done.labelled, done.corrected, done.repeated) == (0, 1, 1)
    assert sorted(each["version"] for each in labels_of(store)) == [*[1] * ROWS, 2, 2]


def test_evidence_is_of_each_image_once(store, tmp_path):
    first = job_with_ids(store, tmp_path)
    labelled(store, label_file(tmp_path / "l.parquet", id=IDS, label=TRUTH), NOW)
    once = measure(store).arrivals
    ((run_id, steps),) = once.items()
    assert run_id == first.run_id
    assert sum(steps.labelled) == ROWS
    job_with_ids(store, tmp_path, day="2026-11-03")
    job_with_ids(store, tmp_path, "again", calibrated=True)
    assert measure(store).arrivals == once


def test_filtered_jobs_are_no_evidence(store, tmp_path):
    job_with_ids(store, tmp_path, where="confidence < 0.5")
    labelled(store, label_file(tmp_path / "l.parquet", id=IDS, label=TRUTH), NOW)
    performance = measure(store)
    (row,) = performance.rows
    assert 0 < row["labelled"] < ROWS
    assert performance.arrivals == {}


def test_quarantined_label_does_not_undo_a_correction(store, tmp_path):
    folder = tmp_path / "labels"
    folder.mkdir()
    label_file(folder / "old.parquet", id=[5], label=[(TRUTH[5] + 1) % 3])
    assert labelled(store, folder, NOW).quarantined == 1
    job_with_ids(store, tmp_path)
    label_file(folder / "zcorrection.parquet", id=[5], label=[TRUTH[5]])
    assert labelled(store, folder / "zcorrection.parquet", NOW + timedelta(hours=1)).labelled == 1
    assert labelled(store, folder, NOW + timedelta(hours=2)).repeated == 1
    moments = {each["source"][-14:]: each["observed_at"] for each in labels_of(store)}
    assert sorted(moments.values()) == [NOW, NOW + timedelta(hours=1)]


@pytest.mark.parametrize("kind", [pa.float32(), pa.float64()])
def test_large_whole_floats_are_ids(tmp_path, kind):
    largest = 24 if kind == pa.float32() else 53
    numbers = [7, 10**7, 2**largest, *([10**10, 2_026_112_700_000_001] if largest == 53 else [])]
    column = pa.array([*map(float, numbers), None, 0.5], kind)
    path = label_file(tmp_path / "l.parquet", id=column, label=[0] * len(column))
    config = LabelConfig(input=str(path))
    rows = read(open_file(path, None, config), config, NOW)
    assert rows["key"].to_pylist() == [*map(str, numbers), None, "0.5"]


def test_column_of_some_jobs_is_sliced(store, tmp_path):
    half = ["a", "b"] * (ROWS // 2)
    kept = parquet(tmp_path / "kept.parquet", customer=IDS, part=half)
    scored(store, input=kept, id_column="customer", keep=["part"])
    scored(store, input=parquet(tmp_path / "other.parquet"))  # by row number, without the column
    counts = {}
    for row in measure_slices(store, "part"):
        counts[row["value"]] = counts.get(row["value"], 0) + row["rows"]
    assert counts == {"a": ROWS // 2, "b": ROWS // 2, None: ROWS}
