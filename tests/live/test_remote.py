"""Labels and live accuracy on S3, with a server on loopback: the same rows as in folders."""

from datetime import UTC, datetime

import pytest
from command_line import call
from kills import killed_at
from label_data import TRUTH, job_with_ids, label_file, labelled, labels_of
from score_data import ROWS

from nnbuild.live import LiveConfig, measure, watch
from nnbuild.store import Store
from nnbuild.store.filesystem import upload_folder

pytest.importorskip("s3fs")
pytest.importorskip("moto")

NOW = datetime(2026, 11, 26, 12, tzinfo=UTC)
FILES = {
    "date=2026-11-02/a.parquet": ([*range(ROWS), 9999], [*TRUTH, 1]),
    "date=2026-11-03/b.parquet": ([3, 4, 5], [0, 2, 2]),
}


def refused(method, path):
    return "403 Forbidden", "AccessDenied"


def accepted(method, path):
    return None


@pytest.fixture
def remote(store, s3_store, tmp_path):
    """A store on S3 with a champion and a job, the same in a folder, and the URL of labels."""
    job_with_ids(store, tmp_path)
    there = Store(s3_store)
    upload_folder(store.root, there.root)
    url = s3_store.removesuffix("store") + "labels"
    for name, (ids, labels) in FILES.items():
        path = tmp_path / "labels" / name
        path.parent.mkdir(parents=True)
        label_file(path, id=ids, label=labels)
    upload_folder(tmp_path / "labels", there.root.parent / "labels")
    return there, url


def without_source(rows):
    return [{name: row[name] for name in row if name != "source"} for row in rows]


def live_rows(store):
    return measure(store, now=NOW).rows


def test_s3_labels_equal_local_ones(store, remote, tmp_path):
    there, url = remote
    here = labelled(store, tmp_path / "labels" / "date={date}" / "*.parquet", NOW)
    assert (here.labelled, here.corrected, here.quarantined) == (ROWS, 1, 1)
    assert labelled(there, f"{url}/date={{date}}/*.parquet", NOW) == here
    assert without_source(labels_of(there)) == without_source(labels_of(store))
    assert labels_of(there)[0]["source"] == f"{url}/date=2026-11-02/a.parquet"
    assert labelled(there, f"{url}/", NOW).rows == 1  # the same files; one row is tried again
    for address in (f"{url}/*/b.parquet", f"{url}/date=2026-11-03/b.parquet"):
        assert (labelled(there, address).files, labelled(there, address).new_files) == (1, 0)


def test_s3_live_equals_local(store, remote, tmp_path, capfd):
    there, url = remote
    labelled(store, tmp_path / "labels", NOW)
    labelled(there, url, NOW)
    (found,), (expected,) = live_rows(there), live_rows(store)
    for name, value in expected.items():  # DuckDB's threads add in any order
        assert found[name] == (pytest.approx(value) if isinstance(value, float) else value), name
    first, second = (watch(LiveConfig(), each.root, now=NOW) for each in (store, there))
    assert [each.run_id for each in first.raised] == [each.run_id for each in second.raised]
    for name in ("live", "live_alarms", "label_jobs"):
        assert there.read_table(name).num_rows == store.read_table(name).num_rows
    shown = call(capfd, "live", "--by", "week", "--store", there.root, "--json").json
    assert [row["labelled"] for row in shown["rows"]] == [ROWS]


@pytest.mark.parametrize("point", ["label:staged", "label:ready", "label:labels"])
def test_s3_killed_ingestion_is_done_once(remote, monkeypatch, point):
    there, url = remote
    with killed_at(point):
        labelled(there, url)
    assert there.read_table("labels").num_rows == 0
    monkeypatch.undo()
    assert labelled(there, url).quarantined == 1
    assert len(labels_of(there)) == ROWS + 3
    assert there.read_table("label_jobs")["labelled"].to_pylist() == [ROWS, 0]


def test_s3_that_refuses_is_one_line(remote, s3_service, capfd):
    there, url = remote

    def refuses(methods, part):
        return lambda method, path: (
            refused(method, path) if method in methods and part in path else None
        )

    for methods, part in (({"PUT"}, "/tables/"), ({"GET"}, "b.parquet")):
        s3_service.answer = refuses(methods, part)
        outcome = call(capfd, "label", "--input", url, "--store", there.root)
        s3_service.answer = accepted
        assert (outcome.code, outcome.out, len(outcome.err.splitlines())) == (2, "", 1), outcome
    assert labelled(there, url).files == 2
    assert len(labels_of(there)) == ROWS + 3
    s3_service.answer = refuses({"PUT"}, "/live/")
    outcome = call(capfd, "live", "--store", there.root)
    assert (outcome.code, len(outcome.err.splitlines())) == (2, 1), outcome
    s3_service.answer = accepted
    assert call(capfd, "live", "--store", there.root).code == 0


@pytest.mark.parametrize("name", ["", "/*.csv", "/l.csv"])
def test_s3_that_does_not_answer_is_one_line(store, s3_store, capfd, monkeypatch, name):
    from s3fs import S3FileSystem

    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr(S3FileSystem, "_cache", {})
    url = s3_store.removesuffix("store") + f"labels{name}"
    outcome = call(capfd, "label", "--input", url, "--store", store.root)
    assert (outcome.code, outcome.out, len(outcome.err.splitlines())) == (2, "", 1), outcome
    assert "Could not connect" in outcome.err


@pytest.mark.parametrize("url", ["s3://no-such-bucket-here/labels/*.csv", "nonsense://b/l.csv"])
def test_s3_address_without_labels_is_one_line(store, s3_store, capfd, url):
    outcome = call(capfd, "label", "--input", url, "--store", store.root)
    assert (outcome.code, outcome.out, len(outcome.err.splitlines())) == (2, "", 1), outcome
