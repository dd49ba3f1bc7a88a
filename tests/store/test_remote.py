"""Test stores on S3, on a loopback server: the same runs as in a folder."""

from types import SimpleNamespace

import pyarrow.dataset as ds
import pytest
from command_line import call
from run_values import values

from nnbuild.errors import StoreError
from nnbuild.pipeline.run import open_run, retrain
from nnbuild.store import Store, champion
from nnbuild.store.filesystem import upload_folder

pytest.importorskip("s3fs")
pytest.importorskip("moto")


def test_s3_run_equals_local_run(s3_store, small_config, small_run):
    there = retrain(small_config, s3_store)
    assert values(Store(s3_store), there.run_id) == values(small_run, *small_run.run_ids())
    store = Store(s3_store)
    assert store.run_ids() == [there.run_id]
    assert store.unfinished_runs() == []
    assert store.manifest(there.run_id).row.status == "succeeded"
    history = store.root / "tables" / "history"
    table = ds.dataset(
        history.path, filesystem=history.fs, format="parquet", partitioning="hive"
    ).to_table()
    assert table.num_rows == store.read_table("history").num_rows > 0


@pytest.fixture
def s3_run(s3_store, small_run) -> str:
    """ID of the run of `small_run`, which is in the store on S3, too."""
    upload_folder(small_run.root, Store(s3_store).root)
    return small_run.run_ids()[0]


def test_s3_dataset_is_uploaded_once(s3_store, s3_run, small_config):
    second = retrain(small_config, s3_store)
    store = Store(s3_store)
    assert values(store, s3_run) == values(store, second.run_id)
    data = store.manifest(second.run_id).steps.load_data
    assert data.folder == store.dataset_name(data.name, data.digest)


def refuses_after(allowed):
    """Accept only so many objects, but accept those again, as after a lost response."""
    taken = set()

    def answer(method, path):
        if method != "PUT" or path in taken:
            return None
        if len(taken) == allowed:
            return "403 Forbidden", "AccessDenied"
        taken.add(path)
        return None

    return answer


def test_s3_row_is_committed_last(s3_store, s3_service, small_config):
    """Refuse every upload after the first few: no run is visible before its last object."""
    run_id, refusals = None, 0
    for allowed in range(100):
        s3_service.answer = refuses_after(allowed)
        try:
            retrain(small_config, s3_store, resume=run_id)
            break
        except StoreError as error:
            assert run_id is None or run_id in " ".join(error.__notes__)  # noqa: PT017
            refusals += 1
        store = Store(s3_store)
        if store.run_ids():  # all that is left is to point to it
            assert champion.current(store) is None
            s3_service.answer = lambda method, path: None  # noqa: ARG005
            with pytest.raises(StoreError, match="is committed, there is nothing to resume"):
                retrain(small_config, s3_store, resume=run_id)
            break
        assert store.read_table("history").num_rows == 0
        run_id = max((each.run_id for each in store.unfinished_runs()), default=None)
    assert refusals > 5
    store = Store(s3_store)
    assert store.run_ids() == [run_id]
    assert champion.current(store) == run_id
    assert store.read_table("history", run_id).num_rows > 0
    assert (store.root / "runs" / run_id / "model.keras").exists()


def test_s3_throttling_is_retried(s3_store, s3_service, small_config, monkeypatch):
    asked = []

    def slow_down(method, path):
        asked.append((method, path))
        return (
            ("503 Slow Down", "SlowDown")
            if method == "PUT" and asked.count((method, path)) == 1
            else None
        )

    s3_service.answer = slow_down
    # The client waits for up to a second before it tries again, drawn at random.
    monkeypatch.setattr("botocore.retryhandler.random", SimpleNamespace(random=lambda: 0.01))
    run = retrain(small_config, s3_store)
    assert Store(s3_store).run_ids() == [run.run_id]
    assert all(asked.count(each) == 2 for each in asked if each[0] == "PUT")


def test_s3_command_line_works(capfd, s3_store, s3_run):
    assert call(capfd, "runs", "--store", s3_store, "--json").json["runs"][0]["run_id"] == s3_run
    output = call(capfd, "report", s3_run, "--store", s3_store, "--json").json
    assert output["report"] == f"{s3_store}/runs/{s3_run}/report.html"
    assert call(capfd, "doctor", "--store", s3_store, "--json").json["ok"]


def test_s3_bad_input_leaves_nothing(s3_store, small_config):
    run = open_run(small_config, s3_store)
    Store(s3_store).discard(run)
    assert not run.folder.exists()
    assert not Store(s3_store).root.exists()


@pytest.mark.parametrize("url", ["nonsense://bucket/store", "s3://no-such-bucket-here/store"])
def test_url_unreachable_is_one_line(capfd, s3_store, small_folder, url):
    outcome = call(
        capfd, "run", "--dataset", small_folder, "--model", "lab", "--epochs", 1, "--store", url
    )
    assert outcome.code == 2
    assert len(outcome.err.strip().splitlines()) == 1
    assert url.partition("://")[2].split("/")[0] in outcome.err or "nonsense" in outcome.err
