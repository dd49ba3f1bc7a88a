"""Drift of scored images: measured from the reference of the run, and reported."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from command_line import call, tree_digest
from prefect import get_client
from prefect_events import events_named
from real_server import until
from score_data import ROWS, images, parquet, replace, scored
from score_flow import artifacts, config

import nnbuild
from flows.score import score
from nnbuild.errors import ContractError
from nnbuild.evaluation.drift import MEASURES, REFERENCE, Summary, summarise
from nnbuild.report import rebuild
from nnbuild.scoring import job as jobs
from nnbuild.scoring.config import ScoreConfig
from nnbuild.scoring.job_context import job_context
from nnbuild.scoring.job_shards import score_input
from nnbuild.store.analysis import drift_by_job, trends
from nnbuild.store.filesystem import file_digest
from nnbuild.training.shuffling import split_rows


def reference(store):
    return json.loads((store.root / "runs" / store.run_ids()[0] / REFERENCE).read_text())


def validation(store):
    """The images of the reference."""
    manifest = store.manifest(store.run_ids()[0])
    data = manifest.steps.load_data
    table = pq.read_table(store.dataset_folder(data.name, data.digest) / "train.parquet")
    pixels = np.frombuffer(b"".join(table["image"].to_pylist()), np.uint8).reshape(-1, 8, 8, 1)
    fraction = manifest.settings.training.validation_fraction
    return pixels[split_rows(len(pixels), fraction, manifest.settings.seed)[1]]


def drift(store, done):
    return (
        store.read_table("drift", done.score_id)
        .drop_columns(["score_id", "measured_at"])
        .to_pylist()
    )


def strip(store):
    """Remove the reference of the run, as in runs made before references were stored."""
    path = store.root / "runs" / store.run_ids()[0] / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["files"][f"runs/{store.run_ids()[0]}/{REFERENCE}"]
    path.write_text(json.dumps(manifest))


@pytest.mark.parametrize("calibrated", [False, True])
def test_reference_images_do_not_drift(store, tmp_path, calibrated):
    path = parquet(tmp_path / "validation.parquet", validation(store))
    done = scored(store, input=path, calibrated=calibrated, logits=True)
    found = drift(store, done)
    assert {(each["measure"], each["statistic"]) for each in found} == {
        (m, s) for m in MEASURES for s in ("psi", "ks")
    }
    assert max(each["value"] for each in found) == 0, (
        found
    )  # the counts are the same, by ONNX as by Keras
    assert done.drift.exceeded == ()
    assert (
        {each["rows"] for each in found}
        == {each["reference_rows"] for each in found}
        == {done.rows}
    )


def test_darker_images_drift(store, tmp_path):
    done = scored(
        store, input=parquet(tmp_path / "in.parquet", images() // 4), drift_psi=0.5, drift_ks=0.4
    )
    found = drift(store, done)
    assert {each["run_id"] for each in found} == {done.run_id}
    assert "brightness" in done.drift.exceeded
    assert found == [{"run_id": done.run_id, **each.model_dump()} for each in done.drift.measures]
    for each in found:
        assert each["exceeded"] == (each["value"] > each["threshold"])
        assert each["threshold"] >= {"psi": 0.5, "ks": 0.4}[each["statistic"]]
        assert (each["rows"], each["reference_rows"]) == (ROWS, reference(store)["rows"])
    assert nnbuild.read_table(store, "drift", run_id=done.run_id).num_rows == len(found)


def test_drift_counts_rows_not_written(store, tmp_path):
    path = parquet(tmp_path / "in.parquet")
    whole = drift(store, scored(store, input=path))
    assert drift(store, scored(store, input=path, where="predicted == 1")) == whole
    assert drift(store, scored(store, input=path, output=str(tmp_path / "out"))) == whole
    assert drift(store, scored(store, input=path, batch_size=7, shard_rows=10**6)) == whole


def test_no_reference_is_reported(capfd, store, tmp_path):
    path, run_id = parquet(tmp_path / "in.parquet"), store.run_ids()[0]
    model = store.root / "runs" / run_id / "model.onnx"
    digest = store.manifest(run_id).files[f"runs/{run_id}/model.onnx"].sha256
    of_file = call(
        capfd, "score", "--input", path, "--model", model, "--digest", digest, "--store", store.root
    )
    assert "a model file has none" in of_file.out
    strip(store)
    told = call(capfd, "score", "--input", path, "--store", store.root, "--json").json
    assert told["drift"]["measures"] == []
    assert "before references were stored" in told["drift"]["remark"]
    assert store.read_table("drift").num_rows == 0
    assert not (store.root / "tables" / "drift").exists()


def test_reference_without_energy_leaves_it_out(store, tmp_path):
    (run_id,) = store.run_ids()
    older = reference(store)
    del older["energy_edges"], older["plain"]["energy"], older["calibrated"]["energy"]
    replace(store, f"runs/{run_id}/{REFERENCE}", json.dumps(older).encode())
    done = scored(store, input=parquet(tmp_path / "in.parquet"))
    assert list(dict.fromkeys(each.measure for each in done.drift.measures)) == [*MEASURES[:-1]]


def test_energy_of_unlike_images_drifts(store, tmp_path):
    flat = np.full((ROWS, 8, 8, 1), 128, np.uint8)
    done = scored(store, input=parquet(tmp_path / "in.parquet", flat), max_brightness_ratio=1e6)
    assert "energy" in done.drift.exceeded


def test_command_line_reports_drift(capfd, store, tmp_path):
    path = parquet(tmp_path / "in.parquet", images() // 4)
    shown = call(capfd, "score", "--input", path, "--store", store.root).out
    assert any(
        line.startswith("drift ") and "EXCEEDED: psi of" in line for line in shown.splitlines()
    )
    told = call(
        capfd,
        "score",
        "--input",
        path,
        "--store",
        store.root,
        "--drift-psi",
        "99",
        "--drift-ks",
        "1",
        "--json",
    )
    assert told.json["drift"]["exceeded"] == []
    assert len(told.json["drift"]["measures"]) == 2 * len(MEASURES)


def test_changed_reference_is_refused(store, tmp_path):
    path = parquet(tmp_path / "in.parquet")
    (store.root / "runs" / store.run_ids()[0] / REFERENCE).write_text("{}")
    before = tree_digest(store.root)
    with pytest.raises(ContractError, match="was changed: "):
        scored(store, input=path)
    assert tree_digest(store.root) == before


def test_largest_index_is_in_the_trends(store, tmp_path):
    assert [row["drift"] for row in trends(store)] == [None]
    done = [
        scored(store, input=parquet(tmp_path / f"{by}.parquet", images() // by)) for by in (1, 6, 3)
    ]
    values = [each.value for job in done for each in job.drift.measures if each.statistic == "psi"]
    assert [row["drift"] for row in trends(store)] == [max(values)]


def test_report_and_trends_show_every_job(capfd, store, tmp_path):
    (run_id,) = store.run_ids()
    page = store.root / "runs" / run_id / "report.html"
    before = rebuild(store, run_id).read_bytes()
    assert drift_by_job(store) == []
    done = [
        scored(store, input=parquet(tmp_path / f"{name}.parquet", pixels))
        for name, pixels in (("same", validation(store)), ("dark", images() // 4))
    ]
    jobs = drift_by_job(store, run_id)
    assert [job["score_id"] for job in jobs] == [each.score_id for each in done]
    assert drift_by_job(store, "another") == []
    for job, each in zip(jobs, done, strict=True):
        assert job["exceeded"] == ", ".join(each.drift.exceeded)
        assert job["ks"] == max(
            found.value for found in each.drift.measures if found.statistic == "ks"
        )
    assert b"new data" not in before
    assert b"in 1 of 2 scoring jobs" in rebuild(store, run_id).read_bytes()
    assert file_digest(page) == store.manifest(run_id).files[f"runs/{run_id}/report.html"].sha256
    told = call(
        capfd, "trends", "--json", "--store", store.root, "--html", tmp_path / "trends.html"
    ).json
    assert [job["psi"] for job in told["scoring_jobs"]] == [job["psi"] for job in jobs]
    shown = call(capfd, "trends", "--store", store.root).out
    for each in done:
        assert each.score_id in shown
        assert each.score_id in (tmp_path / "trends.html").read_text()


def test_reference_is_of_validation_images(store):
    kept = reference(store)
    plain, calibrated = Summary.from_json(kept["plain"]), Summary.from_json(kept["calibrated"])
    assert plain.predicted.sum() == kept["rows"] == len(validation(store))
    assert np.array_equal(plain.brightness, calibrated.brightness)
    assert not np.array_equal(plain.confidence, calibrated.confidence)


def test_flow_publishes_table_and_event(store, tmp_path, prefect_server):
    done = score(config(parquet(tmp_path / "drifting.parquet", images() // 4)), str(store.root))
    found, _ = artifacts("score-champion-drifting.parquet")
    assert {row["measure"] for row in json.loads(found["nnbuild-drift"])} == set(MEASURES)
    with get_client(sync_client=True) as client:

        def of_job():
            found = events_named(client, "nnbuild.drift.exceeded", done.run_id)
            return [each for each in found if each["payload"]["score_id"] == done.score_id]

        (event,) = until(of_job, 30, "event of the drift")
    assert event["payload"]["exceeded"] == ", ".join(done.drift.exceeded)
    assert event["payload"]["rows"] == done.rows == ROWS
    assert event["resource"]["prefect.resource.id"] == f"nnbuild.run.{done.run_id}"


@pytest.mark.parametrize(("size", "step"), [(1023, 1), (1024, 8), (1030, 8)])
def test_drift_counts_every_eighth_image_of_a_large_batch(store, tmp_path, size, step):
    pixels = images(size)
    path = parquet(tmp_path / "in.parquet", pixels, group=size)
    job = jobs.open_job(ScoreConfig(input=str(path), batch_size=2048), store.root)
    with job_context(job):
        (shard,) = score_input(job)
    sample = pixels[::step]
    expected = summarise(sample, np.zeros(size, np.int16), np.ones(size, np.float32), 3).as_json()
    for measure in ("brightness", "ink"):
        assert shard.summary[measure] == expected[measure]
    assert sum(shard.summary["energy"]) == len(sample)
    assert sum(shard.summary["predicted"]) == sum(shard.summary["confidence"]) == size
