"""Tags, images, events, the webhook and the approval of a run."""

import base64
import threading
import time
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from artifact_keys import kind_of
from prefect import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
from prefect_events import events_named
from small_data import small_arrays

import nnbuild
from flows.retrain import retrain
from nnbuild import pipeline
from nnbuild.errors import CheckError, StoreError
from nnbuild.runtime import webhook
from nnbuild.store import Store, champion


@pytest.fixture(scope="module")
def notified(request, tmp_path_factory, small_folder, listener):
    """Flow runs of one store and the messages to the webhook.

    The first run is promoted, the second rejected, and the third identical to the first.
    """
    request.getfixturevalue("_prefect_harness")
    url, received = listener
    config = {
        "dataset": {"name": str(small_folder)},
        "model": {"name": "lab"},
        "training": {"epochs": 3, "threads": 2},
    }
    root = tmp_path_factory.mktemp("notified") / "store"
    received.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(webhook.VARIABLE, url)
        worse = config | {"training": {"epochs": 1, "threads": 2}, "gate": {"rule": "better"}}
        runs = [
            retrain(nnbuild.RunConfig.model_validate(each), str(root)).run_id
            for each in (config, worse, config)
        ]
    return Store(root), *runs, list(received)


def test_flow_run_has_tags(notified):
    store, first, *_ = notified
    with get_client(sync_client=True) as client:
        flow_run = client.read_flow_run(store.manifest(first).flow_run_id)
    assert {"nnbuild", "model:lab"} < set(flow_run.tags)


def test_images_are_inside_their_artifacts(notified):
    store, first, *_ = notified
    by_run = ArtifactFilter(
        flow_run_id=ArtifactFilterFlowRunId(any_=[store.manifest(first).flow_run_id])
    )
    with get_client(sync_client=True) as client:
        found = client.read_artifacts(artifact_filter=by_run)
    data = {kind_of(each.key): each.data for each in found}
    for key in ("nnbuild-loss", "nnbuild-accuracy", "nnbuild-confusion"):
        kind, picture = data[key].split(",", 1)
        assert kind == "data:image/svg+xml;base64"
        root = ET.fromstring(base64.b64decode(picture))  # noqa: S314  (our own)
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert "var(--a)" not in root.attrib.values()
        assert "--a: #" in base64.b64decode(picture).decode()


def test_events_have_the_run_and_its_metrics(notified):
    store, first, second, twin, _ = notified
    with get_client(sync_client=True) as client:
        (committed,) = events_named(client, "nnbuild.run.committed", first)
        (promoted,) = events_named(client, "nnbuild.champion.promoted", first)
        (rejected,) = events_named(client, "nnbuild.champion.rejected", second)
        (repeated,) = events_named(client, "nnbuild.run.committed", twin)
        for event in ("nnbuild.champion.promoted", "nnbuild.champion.rejected"):
            assert not events_named(client, event, twin, tries=1)
    assert repeated["payload"]["outcome"] == "kept-identical"
    assert committed["payload"]["test_accuracy"] == store.manifest(first).row.test_accuracy
    assert promoted["payload"]["reason"] == "no previous champion"
    assert promoted["payload"]["outcome"] == "promoted"
    assert rejected["payload"]["p_better"] > 0.5
    assert rejected["payload"]["outcome"] in {"rejected", "not-enough-evidence"}
    assert rejected["payload"]["champion"] == first


def test_webhook_gets_promotions_only(notified):
    _, first, _, _, received = notified
    assert [(each["event"], each["run_id"]) for each in received] == [
        ("nnbuild.champion.promoted", first)
    ]
    assert "test accuracy" in received[0]["text"]


def test_failed_check_is_an_event_with_advice(tmp_path, small_config, prefect_server, listener):
    settings = small_config.model_dump() | {"dataset": small_config.dataset.model_dump()}
    settings["dataset"]["checks"] |= {
        "max_class_imbalance": 1.0,
        "strict": True,
        "max_leakage_fraction": 0.0,
        "max_duplicate_fraction": 0.0,
    }
    settings["dataset"]["name"] = str(repeated(tmp_path))
    url, received = listener
    received.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(webhook.VARIABLE, url)
        with pytest.raises(CheckError):
            retrain(nnbuild.RunConfig.model_validate(settings), str(tmp_path / "store"))
    (run_id,) = Store(tmp_path / "store").run_ids()
    with get_client(sync_client=True) as client:
        (event,) = events_named(client, "nnbuild.data.check-failed", run_id)
    assert "duplicate" in event["payload"]["reason"]
    assert received[0]["state"] == "Failed"
    assert "There is nothing to resume" in received[0]["text"]


def repeated(folder):
    """Return a dataset with three different training images."""
    arrays = small_arrays(classes=3, shape=(8, 8, 1), train=60, test=30)
    arrays["x_train"][:] = arrays["x_train"][np.arange(60) % 3]
    np.savez(folder / "repeated.npz", **arrays)
    return folder / "repeated.npz"


def answer_when_paused(flow_runs_before, run_input, root, seen):
    """Resume a flow run as the UI does, as soon as its form is there; note what a person sees."""
    with get_client(sync_client=True) as client:
        for _ in range(600):
            for each in client.read_flow_runs():
                if each.id in flow_runs_before or not each.state or not each.state.is_paused():
                    continue
                # Prefect pauses a flow run before it stores the form, whose description is last.
                key = each.state.state_details.run_input_keyset["description"]
                for form in client.filter_flow_run_input(each.id, key, 1, set()):
                    (run,) = Store(root).unfinished_runs()
                    seen["run_id"] = run.run_id
                    seen["page"] = (root / "staging" / run.run_id / "report.html").read_text()
                    seen["form"] = form.decoded_value
                    client.resume_flow_run(each.id, run_input=run_input)
                    return
            time.sleep(0.1)


@pytest.mark.parametrize("promote", [True, False])
def test_person_has_the_last_word(
    tmp_path, small_config, prefect_server, listener, monkeypatch, promote
):
    url, received = listener
    received.clear()
    monkeypatch.setenv(webhook.VARIABLE, url)
    monkeypatch.setenv("NNBUILD_STORE_URL", "https://files.test/nn")
    seen = {}
    config = nnbuild.RunConfig.model_validate(
        small_config.model_dump() | {"gate": {"approval": "manual"}}
    )
    with get_client(sync_client=True) as client:
        before = {each.id for each in client.read_flow_runs()}
    person = threading.Thread(
        target=answer_when_paused,
        args=(before, {"promote": promote, "comment": "seen"}, tmp_path, seen),
    )
    person.start()
    committed = retrain(config, str(tmp_path))
    person.join()
    store = Store(tmp_path)
    (decision,) = store.read_table("decisions", committed.run_id).to_pylist()
    assert decision["promoted"] is promote
    assert decision["reason"].endswith("by a person: seen")
    assert champion.current(store) == (committed.run_id if promote else None)
    assert "has to approve it" in seen["page"]
    page = (store.root / "runs" / committed.run_id / "report.html").read_text()
    assert "by a person: seen" in page
    row = store.manifest(committed.run_id).row
    for word in (
        f"Test accuracy of this run: {100 * row.test_accuracy:.2f} %",
        "no previous champion",
        f"(https://files.test/nn/staging/{committed.run_id}/report.html)",
    ):
        assert word in seen["form"].replace("\\", "")
    asked = received[0]
    assert asked["event"] == "nnbuild.run.approval-requested"
    assert asked["run_id"] == committed.run_id
    assert asked["test_accuracy"] == row.test_accuracy
    assert "24 h" in asked["text"]
    with get_client(sync_client=True) as client:
        (event,) = events_named(client, "nnbuild.run.approval-requested", committed.run_id)
    assert event["payload"]["reason"] == "no previous champion"
    assert store.manifest(committed.run_id).steps.decide.seconds_waited > 0


def test_no_answer_is_a_rejection(tmp_path, small_config, prefect_server):
    gate = {"approval": "manual", "approval_seconds": 1}
    retrain(
        nnbuild.RunConfig.model_validate(small_config.model_dump() | {"gate": gate}), str(tmp_path)
    )
    store = Store(tmp_path)
    assert champion.current(store) is None
    assert "no answer within 1 s" in store.read_table("decisions").to_pylist()[0]["reason"]
    with get_client(sync_client=True) as client:
        state = client.read_flow_run(store.manifest(store.run_ids()[0]).flow_run_id).state
    assert state.name == "Completed"
    assert "not promoted" in state.message


def test_manual_gate_without_prefect_waits(tmp_path, small_config):
    config = nnbuild.RunConfig.model_validate(
        small_config.model_dump() | {"gate": {"approval": "manual"}}
    )
    committed = nnbuild.retrain(config, tmp_path)
    store = Store(tmp_path)
    assert (
        f"nnbuild promote {committed.run_id}"
        in store.read_table("decisions").to_pylist()[0]["reason"]
    )
    assert champion.current(store) is None
    run = nnbuild.open_run(config, tmp_path)
    with pytest.raises(StoreError, match="no decision that waits"):
        pipeline.record_approval(run, promote=True)
