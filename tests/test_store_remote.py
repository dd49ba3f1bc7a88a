"""A store on S3: the same runs as in a folder, from a server that speaks the protocol on loopback."""

import threading
import uuid

import pyarrow.dataset as ds
import pytest
from command_line import call
from test_runs import values
from werkzeug.serving import make_server

from nnbuild.errors import StoreError
from nnbuild.runs import open_run, retrain
from nnbuild.store import Store

pytest.importorskip("s3fs")
server = pytest.importorskip("moto.server")


class Service:
    """S3 in this process, which can be told to refuse requests.

    Attributes:
        answer: given a request's method and path, the status and S3's error code to refuse it with, or None.
    """

    def __init__(self):
        self.answer = lambda method, path: None  # noqa: ARG005
        self._s3 = server.DomainDispatcherApplication(server.create_backend_app)
        self._server = make_server("127.0.0.1", 0, self, threaded=True)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def __call__(self, environ, start_response):
        refused = self.answer(environ["REQUEST_METHOD"], environ["PATH_INFO"])
        if refused is None:
            return self._s3(environ, start_response)
        status, code = refused
        environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        start_response(status, [("Content-Type", "application/xml")])
        return [f"<Error><Code>{code}</Code><Message>told to</Message></Error>".encode()]

    def close(self):
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture(scope="module")
def service():
    found = Service()
    yield found
    found.close()


@pytest.fixture
def s3_store(service, tmp_path, monkeypatch):
    """The URL of a store in an empty bucket."""
    import boto3

    monkeypatch.setenv("AWS_ENDPOINT_URL", service.url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "nothing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("NNBUILD_WORKSHOP", str(tmp_path / "workshop"))
    bucket = f"bucket-{uuid.uuid4().hex[:12]}"
    client = boto3.client("s3")
    client.create_bucket(Bucket=bucket)
    yield f"s3://{bucket}/store"
    service.answer = lambda method, path: None  # noqa: ARG005
    client.close()


def test_a_run_on_s3_is_the_run_in_a_folder(s3_store, tmp_path, small_config):
    there = retrain(small_config, s3_store)
    here = retrain(small_config, tmp_path / "store")
    assert values(Store(s3_store), there.run_id) == values(Store(tmp_path / "store"), here.run_id)
    store = Store(s3_store)
    assert store.committed() == [there.run_id]
    assert store.unfinished() == []
    assert store.manifest(there.run_id)["row"]["status"] == "succeeded"
    history = store.root / "tables" / "history"
    table = ds.dataset(history.path, filesystem=history.fs, format="parquet", partitioning="hive").to_table()
    assert table.num_rows == store.read_table("history").num_rows > 0


def test_the_dataset_is_uploaded_once_and_read_from_there(s3_store, small_config, monkeypatch, tmp_path):
    first = retrain(small_config, s3_store)
    monkeypatch.setenv("NNBUILD_WORKSHOP", str(tmp_path / "another machine"))
    second = retrain(small_config, s3_store)
    store = Store(s3_store)
    assert values(store, first.run_id) == values(store, second.run_id)
    data = store.manifest(second.run_id)["steps"]["load_data"]
    assert data["folder"] == store.dataset_name(data["name"], data["digest"])


def test_nothing_is_committed_before_the_row(s3_store, service, small_config):
    """Every upload after the first few is refused: a reader sees no run before the last object, and all of it then."""
    run_id, refusals = None, 0
    for allowed in range(100):
        left = iter(range(allowed))
        service.answer = lambda method, path, left=left: (  # noqa: ARG005
            ("403 Forbidden", "AccessDenied") if method == "PUT" and next(left, None) is None else None
        )
        try:
            retrain(small_config, s3_store, resume=run_id)
            break
        except StoreError as error:
            assert run_id is None or run_id in " ".join(error.__notes__)  # noqa: PT017
            refusals += 1
        store = Store(s3_store)
        assert store.committed() == []
        assert store.read_table("history").num_rows == 0
        run_id = max((each.run_id for each in store.unfinished()), default=None)
    assert refusals > 5
    store = Store(s3_store)
    assert store.committed() == [run_id]
    assert store.read_table("history", run_id).num_rows > 0
    assert (store.root / "runs" / run_id / "model.keras").exists()


def test_a_throttled_service_is_asked_again(s3_store, service, small_config):
    asked = []

    def slow_down(method, path):
        asked.append((method, path))
        return ("503 Slow Down", "SlowDown") if method == "PUT" and asked.count((method, path)) == 1 else None

    service.answer = slow_down
    run = retrain(small_config, s3_store)
    assert Store(s3_store).committed() == [run.run_id]
    assert all(asked.count(each) == 2 for each in asked if each[0] == "PUT")


def test_the_command_line_on_s3(capfd, s3_store, small_config):
    run = retrain(small_config, s3_store)
    assert call(capfd, "runs", "--store", s3_store, "--json").json["runs"][0]["run_id"] == run.run_id
    told = call(capfd, "report", run.run_id, "--store", s3_store, "--json").json
    assert told["report"] == f"{s3_store}/runs/{run.run_id}/report.html"
    assert call(capfd, "doctor", "--store", s3_store, "--json").json["ok"]


def test_bad_input_leaves_nothing_on_s3(s3_store, small_config):
    run = open_run(small_config, s3_store)
    Store(s3_store).discard(run)
    assert not run.folder.exists()
    assert not Store(s3_store).root.exists()


@pytest.mark.parametrize("url", ["nonsense://bucket/store", "s3://no-such-bucket-here/store"])
def test_a_url_that_leads_nowhere_is_refused_in_one_line(capfd, s3_store, small_folder, url):
    outcome = call(capfd, "run", "--dataset", small_folder, "--model", "lab", "--epochs", 1, "--store", url)
    assert outcome.code == 2
    assert len(outcome.err.strip().splitlines()) == 1
    assert url.partition("://")[2].split("/")[0] in outcome.err or "nonsense" in outcome.err
