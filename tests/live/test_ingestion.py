"""Labels: each file once, every label kept, the newest counts, counts add up."""

import codecs
import gzip
import os
import random
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command_line import call
from kills import killed_at
from label_data import TRUTH, job_with_ids, label_file, labelled, labels_of
from score_data import ROWS, images, parquet, scored

from nnbuild.errors import DataError, LockedError, StoreError
from nnbuild.live import label_files
from nnbuild.store import locks
from nnbuild.store.query import query

NOW = datetime(2026, 11, 26, 12, tzinfo=UTC)


def counts(done):
    return done.labelled, done.corrected, done.repeated, done.quarantined


def simulated(rows):
    """Return the counts and the labels that count, by plain Python, one row after the other."""
    current, found = {}, {"labelled": 0, "corrected": 0, "repeated": 0}
    for example, label, at in rows:
        known = current.get(example)
        if known is None:
            found["labelled"] += 1
        elif at >= known[1] and label != known[0]:
            found["corrected"] += 1
        else:
            found["repeated"] += 1
        if known is None or at >= known[1]:
            current[example] = (label, at)
    return found, {example: label for example, (label, _) in current.items()}


def test_label_order_equals_plain_python(store, tmp_path):
    job_with_ids(store, tmp_path)
    draw = random.Random(3)  # noqa: S311
    rows = [
        (draw.randrange(40), draw.randrange(3), NOW - timedelta(days=draw.randrange(6)))
        for _ in range(600)
    ]
    expected, current = simulated(rows)
    found = dict.fromkeys(expected, 0)
    start = 0
    while start < len(rows):
        part = rows[start : start + draw.randrange(1, 150)]
        start += len(part)
        ids, labels, times = zip(*part, strict=True)
        path = label_file(tmp_path / f"l{start}.parquet", id=ids, label=labels, observed_at=times)
        done = labelled(store, path, NOW)
        assert done.rows == sum(counts(done)) == len(part)
        found = {name: found[name] + getattr(done, name) for name in found}
    assert found == expected
    assert len(labels_of(store)) == len(rows)
    newest = query(
        store,
        "select example_id, arg_max(label, {'o': observed_at, 'v': version}) as label, "
        "count(*) as n, max(version) as v from labels group by example_id",
    ).to_pylist()
    assert {row["example_id"]: row["label"] for row in newest} == current
    assert all(row["n"] == row["v"] for row in newest)


def test_file_is_ingested_once_by_content(store, tmp_path):
    job_with_ids(store, tmp_path)
    path = label_file(tmp_path / "l.parquet", id=list(range(ROWS)), label=TRUTH)
    assert counts(labelled(store, path)) == (ROWS, 0, 0, 0)
    path.rename(tmp_path / "again.parquet")
    assert labelled(store, tmp_path / "again.parquet").rows == 0
    other = label_file(path, id=[1, 2], label=[TRUTH[1], TRUTH[2]])
    assert counts(labelled(store, other)) == (0, 0, 2, 0)
    assert len(labels_of(store)) == ROWS + 2


def test_days_with_equal_labels_are_all_observed(store, tmp_path):
    job_with_ids(store, tmp_path)
    for day, label in enumerate([0, 1, 0], start=1):
        label_file(tmp_path / f"2026-11-0{day}.parquet", id=[1], label=[label])
    address = tmp_path / "{date}.parquet"
    assert counts(labelled(store, address, NOW)) == (1, 2, 0, 0)
    assert labelled(store, address, NOW).rows == 0
    newest = max(labels_of(store), key=lambda row: row["observed_at"])
    assert (newest["label"], newest["observed_at"].day) == (0, 3)


@pytest.mark.parametrize(
    "point",
    ["label:staged", "label:ready", "label:quarantine", "label:labels", "label:label_jobs"],
)
def test_killed_ingestion_is_done_once(store, tmp_path, monkeypatch, point):
    job_with_ids(store, tmp_path)
    path = label_file(tmp_path / "l.parquet", id=[*range(ROWS), 999], label=[*TRUTH, 1])
    with killed_at(point):
        labelled(store, path)
    if point != "label:label_jobs":
        assert store.read_table("labels").num_rows == 0
    monkeypatch.undo()
    done = labelled(store, path)
    assert done.quarantined == 1
    assert len(labels_of(store)) == ROWS
    assert store.read_table("label_jobs")["labelled"].to_pylist() == [ROWS]
    assert not list((store.root / "staging" / "labels").glob("*"))


def test_second_ingestion_at_once_is_refused(store, tmp_path):
    job_with_ids(store, tmp_path)
    path = label_file(tmp_path / "l.parquet", id=[1], label=[1])
    staging = store.root / "staging" / "labels"
    staging.mkdir(parents=True)
    with locks.lock(staging), pytest.raises(LockedError, match="is adding labels"):
        labelled(store, path)


def test_text_ids_and_paths_are_labelled(store, tmp_path):
    from PIL import Image

    keys = [f"k{row:03d}" for row in range(ROWS)]
    done = scored(store, input=parquet(tmp_path / "in.parquet", key=keys), id_column="key")
    table = store.read_table("scores", done.score_id)
    assert table.schema.field("example_key").type == pa.string()
    assert table["example_key"].to_pylist() == keys
    assert table["example_id"].to_pylist() == list(range(ROWS))
    (tmp_path / "pictures").mkdir()
    for number, pixels in enumerate(images(4)):
        Image.fromarray(pixels[..., 0]).save(tmp_path / "pictures" / f"{number}.png")
    scored(store, input=tmp_path / "pictures")
    (tmp_path / "l.csv").write_text("id,label\nk000,1\n3.png,2\n0.png,0\nk999,1\n0,1\n")
    done = labelled(store, tmp_path / "l.csv")
    assert counts(done) == (3, 0, 0, 2)
    assert [row["example_key"] for row in labels_of(store)] == ["k000", "3.png", "0.png"]


def test_csv_ids_with_leading_zeros_are_texts(store, tmp_path):
    keys = [f"{row:05d}" for row in range(ROWS)]
    scored(store, input=parquet(tmp_path / "in.parquet", key=keys), id_column="key")
    (tmp_path / "l.csv").write_text("id,label\n00007,1\n7,1\n")
    assert counts(labelled(store, tmp_path / "l.csv")) == (1, 0, 0, 1)


def test_row_numbers_need_a_job_if_ambiguous(store, tmp_path):
    first = scored(store, input=parquet(tmp_path / "one.parquet"))
    path = label_file(tmp_path / "l.parquet", example_id=[0, 1], label=[1, 1])
    assert counts(labelled(store, path)) == (2, 0, 0, 0)
    second = scored(store, input=parquet(tmp_path / "two.parquet", group=40))
    path = label_file(tmp_path / "l2.parquet", example_id=[0, 2], label=[1, 1])
    done = labelled(store, path)
    assert counts(done) == (0, 0, 0, 2)
    assert list(done.reasons) == [
        "several inputs have a row with this ID; name its job in a column score_id"
    ]
    jobs = [second.score_id, first.score_id, "20260101T000000000Z-000000"]
    path = label_file(tmp_path / "l3.parquet", id=[0, 2, 5], label=[1, 1, 1], score_id=jobs)
    done = labelled(store, path)
    assert counts(done) == (2, 0, 0, 1)
    assert list(done.reasons) == ["no scoring job 20260101T000000000Z-000000"]
    owners = [row["score_id"] for row in labels_of(store)]
    assert owners == [first.score_id, first.score_id, second.score_id, first.score_id]


def test_own_ids_come_before_row_numbers(store, tmp_path):
    for group in (30, 40):
        scored(store, input=parquet(tmp_path / f"rows{group}.parquet", group=group))
    job_with_ids(store, tmp_path)
    path = label_file(tmp_path / "l.parquet", id=[1, 2], label=[1, 1])
    assert counts(labelled(store, path)) == (2, 0, 0, 0)
    assert [row["score_id"] for row in labels_of(store)] == [None, None]


def test_quarantined_rows_are_tried_again(store, tmp_path):
    path = label_file(tmp_path / "l.parquet", id=[0, 1, 7000], label=[1, 1, 1])
    assert counts(labelled(store, path)) == (0, 0, 0, 3)
    assert counts(labelled(store, path)) == (0, 0, 0, 3)
    assert store.read_table("label_jobs").num_rows == 1
    job_with_ids(store, tmp_path)
    assert counts(labelled(store, path)) == (2, 0, 0, 1)
    assert counts(labelled(store, path)) == (0, 0, 0, 1)
    assert len(labels_of(store)) == 2


def test_bad_rows_are_quarantined_with_reasons(store, tmp_path):
    job_with_ids(store, tmp_path)
    rows = [
        "0,1,2026-11-01",
        ",1,2026-11-01",
        "1,,2026-11-01",
        "2,9,2026-11-01",
        "3,cat,2026-11-01",
        "4,1.0,2026-11-01T10:00:00+02:00",
        "5,1,soon",
        "6,1,",
        "7,1,2099-01-01",
        "8,1,0001-01-01",
        "9,1,-infinity",
        "999999999999999999999,1,2026-11-01",
    ]
    (tmp_path / "l.csv").write_text("\n".join(["id,label,observed_at", *rows, ""]))
    done = labelled(store, tmp_path / "l.csv")
    assert counts(done) == (2, 0, 0, 10)
    assert done.reasons == {
        "no ID": 1,
        "no label": 1,
        "unknown class": 2,
        "time of the observation is not a time": 2,
        "observed in the future": 1,
        "observed before 1900": 2,
        "no scored row has this ID": 1,
    }
    assert labels_of(store)[1]["observed_at"] == datetime(2026, 11, 1, 8, tzinfo=UTC)


BAD_FILES = {
    "columns": ({"number": [1], "label": [1]}, "no column of IDs"),
    "no-label": ({"id": [1], "prediction": [1]}, "no column of labels"),
    "list-id": ({"id": [[1]], "label": [1]}, "column 'id' is list"),
    "bool-label": ({"id": [1], "label": [True]}, "column 'label' is bool"),
    "time": ({"id": [1], "label": [1], "observed_at": [5]}, "column 'observed_at' is int64"),
    "far-day": (
        {"id": [1], "label": [1], "observed_at": pa.array([2**30], pa.date32())},
        "not readable as labels",
    ),
    "job-number": ({"id": [1], "label": [1], "score_id": [5]}, "column 'score_id' is int64"),
    "job-list": ({"id": [1], "label": [1], "score_id": [["x"]]}, "column 'score_id' is list"),
}


@pytest.mark.parametrize(("columns", "message"), BAD_FILES.values(), ids=BAD_FILES)
def test_bad_label_file_is_refused_in_one_line(capfd, store, tmp_path, columns, message):
    path = label_file(tmp_path / "l.parquet", **columns)
    outcome = call(capfd, "label", "--input", path, "--store", store.root)
    assert (outcome.code, outcome.out) == (2, "")
    assert message in outcome.err
    assert len(outcome.err.splitlines()) == 1


def test_bad_file_does_not_hold_up_others(capfd, store, tmp_path):
    job_with_ids(store, tmp_path)
    for number in (1, 2, 3):
        label_file(tmp_path / f"l{number}.parquet", id=[number], label=[1])
    (tmp_path / "l2.parquet").write_bytes(b"PAR1")
    outcome = call(capfd, "label", "--input", tmp_path / "l*.parquet", "--store", store.root)
    assert (outcome.code, len(outcome.err.splitlines())) == (2, 1)
    assert "l2.parquet: not readable" in outcome.err
    assert [row["example_id"] for row in labels_of(store)] == [1, 3]


def test_retry_adds_only_files_that_changed(store, tmp_path):
    for number in (1, 9999):
        label_file(tmp_path / f"l{number}.parquet", id=[number], label=[1])
    for _ in range(2):
        assert counts(labelled(store, tmp_path / "l*.parquet")) == (0, 0, 0, 2)
    job_with_ids(store, tmp_path)
    assert counts(labelled(store, tmp_path / "l*.parquet")) == (1, 0, 0, 1)
    assert store.read_table("label_jobs")["quarantined"].to_pylist() == [1, 1, 0]


def test_column_that_is_there_twice_is_refused(capfd, store, tmp_path):
    (tmp_path / "l.csv").write_text("id,label,id\n1,1,2\n")
    two = pa.table([pa.array([1])] * 3, names=["id", "label", "label"])
    pq.write_table(two, tmp_path / "l.parquet")
    for name, column in (("l.csv", "id"), ("l.parquet", "label")):
        outcome = call(capfd, "label", "--input", tmp_path / name, "--store", store.root)
        assert (outcome.code, len(outcome.err.splitlines())) == (2, 1)
        assert f"2 columns are called '{column}'" in outcome.err


@pytest.mark.parametrize("encoded", [codecs.BOM_UTF8 + b"id,label\r\n1,1\r\n", b"id,label\r1,1\r"])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_csv_of_other_programs_is_read(store, tmp_path, encoded, pack):
    job_with_ids(store, tmp_path)
    (tmp_path / "l.csv").write_bytes(pack(encoded))
    assert counts(labelled(store, tmp_path / "l.csv")) == (1, 0, 0, 0)


def test_packed_file_has_a_limit(store, tmp_path, monkeypatch):
    monkeypatch.setattr(label_files, "_MAX_BYTES", 10_000)
    (tmp_path / "l.csv.gz").write_bytes(gzip.compress(b"id,label\n" + b"0" * 10_000))
    with pytest.raises(DataError, match="has more than 10000 bytes"):
        labelled(store, tmp_path / "l.csv.gz")


LINK, PIPE, FOLDER = "link.csv", "pipe.csv", "folder.csv"


@pytest.mark.parametrize("name", [LINK, PIPE, FOLDER])
def test_entry_that_is_no_file_is_refused(capfd, store, tmp_path, name):
    (tmp_path / LINK).symlink_to(LINK)
    os.mkfifo(tmp_path / PIPE)
    (tmp_path / FOLDER).mkdir()
    outcome = call(capfd, "label", "--input", tmp_path / name, "--store", store.root)
    assert (outcome.code, outcome.out, len(outcome.err.splitlines())) == (2, "", 1)
    assert name in outcome.err


DAMAGED = ["", "PAR1", "\x1f\x8b1", "id,label\n1,2,3\n", "id,label\n1,caf\xe9\n"]


@pytest.mark.parametrize("content", DAMAGED)
def test_damaged_label_file_is_refused(capfd, store, tmp_path, content):
    path = tmp_path / "l.csv"
    path.write_text(content, encoding="latin-1")
    outcome = call(capfd, "label", "--input", path, "--store", store.root)
    assert (outcome.code, len(outcome.err.splitlines())) == (2, 1)
    assert "not readable as labels" in outcome.err


def test_label_command_reports_counts(capfd, store, tmp_path):
    job_with_ids(store, tmp_path)
    at = ("--store", store.root)
    (tmp_path / "none.csv").write_text("id,label\n")
    label_file(tmp_path / "l.parquet", customer=[1, 2, 900], answer=[1, 1, 1])
    found = call(capfd, "label", "--input", tmp_path / "none.csv", "--json", *at).json
    assert (found["labelled"], found["quarantined"], found["new_files"]) == (0, 0, 1)
    command = ["label", "--input", tmp_path / "l.parquet", "--id", "customer", "--label", "answer"]
    found = call(capfd, *command, "--json", *at).json
    assert {name: found[name] for name in ("labelled", "corrected", "repeated", "quarantined")} == {
        "labelled": 2,
        "corrected": 0,
        "repeated": 0,
        "quarantined": 1,
    }
    shown = call(capfd, *command, *at).out
    assert "quarantined 1: no scored row has this ID" in shown
    outcome = call(capfd, *command[:-1], "truth", *at)
    assert "no column 'truth'" in outcome.err
    assert "(option --label)" in outcome.err
    assert call(capfd, "label", "--input", tmp_path / "zz*", *at).code == 2


def test_dated_addresses_give_days(store, tmp_path):
    job_with_ids(store, tmp_path)
    for day, label in (("2026-11-02", 1), ("2026-11-01", 2), ("tomorrow", 0)):
        (tmp_path / f"date={day}").mkdir()
        label_file(tmp_path / f"date={day}" / "l.parquet", id=[1], label=[label])
    done = labelled(store, tmp_path / "date={date}" / "*.parquet")
    assert (done.files, counts(done)) == (2, (1, 1, 0, 0))
    assert [row["observed_at"].day for row in labels_of(store)] == [1, 2]
    done = labelled(store, tmp_path / "date={date:%Y-%m}-{date:%d}")
    assert (done.files, done.new_files) == (2, 0)


def test_class_names_are_labels(tmp_path):
    from PIL import Image

    from nnbuild.config.schema import RunConfig
    from nnbuild.pipeline.run import retrain
    from nnbuild.store import Store

    for split, each in (("train", 12), ("test", 6)):
        for number in range(2 * each):
            folder = tmp_path / "data" / split / ("cat", "dog")[number % 2]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(images(24)[number, ..., 0]).save(folder / f"{number}.png")
    config = RunConfig.model_validate(
        {
            "dataset": {"name": str(tmp_path / "data")},
            "model": {"name": "lab"},
            "training": {"epochs": 1},
        }
    )
    store = Store(tmp_path / "store")
    run_id = retrain(config, store.root).run_id
    classes = store.read_table("classes", run_id).to_pydict()
    assert classes == {"run_id": [run_id] * 2, "label": [0, 1], "name": ["cat", "dog"]}
    for name in ("predictions", "scores"):
        if name == "scores":
            scored(store, input=tmp_path / "data" / "test" / "cat")
        rows = store.read_table(name).to_pylist()
        assert [row["predicted_name"] for row in rows] == [
            ("cat", "dog")[row["predicted"]] for row in rows
        ]
    (tmp_path / "l.csv").write_text("path,label\n0.png,dog\n2.png,cat\n4.png,1\n6.png,cow\n")
    assert counts(labelled(store, tmp_path / "l.csv")) == (3, 0, 0, 1)
    assert [row["label"] for row in labels_of(store)] == [1, 0, 1]


def test_label_without_store_is_refused(tmp_path):
    with pytest.raises(StoreError, match="no store at"):
        labelled(type("Nowhere", (), {"root": tmp_path / "none"}), tmp_path)
