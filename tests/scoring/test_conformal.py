"""Columns of certainty: prediction sets with a coverage, and the energy."""

import io

import numpy as np
import pyarrow.parquet as pq
import pytest
from command_line import call, tree_digest
from scipy.special import logsumexp
from score_data import ROWS, files, images, parquet, replace, rows, scored

from nnbuild.errors import ConfigError, ContractError
from nnbuild.evaluation.conformal import CONFORMAL, probability_threshold
from nnbuild.scoring import job as jobs
from nnbuild.scoring.commit import commit_job
from nnbuild.scoring.config import ScoreConfig
from nnbuild.scoring.job_context import job_context
from nnbuild.scoring.job_shards import score_input

COVERAGE = 0.8
SETS = ["set_size", "in_set_0", "in_set_1", "in_set_2"]


def conformal(store):
    return f"runs/{store.run_ids()[0]}/{CONFORMAL}"


def array(table, *names):
    return np.stack([table[name].to_numpy() for name in names], axis=1)


@pytest.mark.parametrize("calibrated", [False, True])
@pytest.mark.parametrize("top_k", [None, 2])
def test_sets_are_those_of_the_probabilities(store, tmp_path, calibrated, top_k):
    path = parquet(tmp_path / "in.parquet", note=np.arange(ROWS))
    done = scored(
        store, input=path, coverage=COVERAGE, calibrated=calibrated, top_k=top_k, keep=("note",)
    )
    table = rows(store, done)
    kind = "calibrated" if calibrated else "plain"
    own = pq.read_table(store.root / conformal(store))[kind].to_numpy()
    expected = array(table, "prob_0", "prob_1", "prob_2") >= probability_threshold(own, COVERAGE)
    assert np.array_equal(array(table, *SETS[1:]), expected)
    assert np.array_equal(table["set_size"].to_numpy(), expected.sum(axis=1))
    assert [str(table.schema.field(name).type) for name in SETS] == ["int16", *["bool"] * 3]
    assert table["note"].to_pylist() == list(range(ROWS))
    assert table.num_rows == ROWS


def test_validation_file_has_true_classes(store):
    manifest = store.manifest(store.run_ids()[0])
    table = pq.read_table(store.root / conformal(store))
    assert conformal(store) in manifest.files
    own = table["plain"].to_numpy()
    assert (np.diff(own) >= 0).all()
    loss = manifest.steps.calibrate_model.validation["loss"]
    assert -np.log(own).mean() == pytest.approx(loss, rel=1e-5)


def test_energy_is_of_raw_logits(store, tmp_path):
    path = parquet(tmp_path / "in.parquet")
    plain, calibrated = (
        rows(store, scored(store, input=path, energy=True, logits=True, calibrated=each))
        for each in (False, True)
    )
    logits = array(plain, "logit_0", "logit_1", "logit_2").astype(np.float64)
    energy = plain["energy"].to_numpy()
    np.testing.assert_array_max_ulp(energy, -logsumexp(logits, axis=1).astype(np.float32), 1)
    assert np.array_equal(energy, calibrated["energy"].to_numpy())


def test_options_add_columns_only(store, tmp_path):
    path = parquet(tmp_path / "in.parquet")
    plain = scored(store, input=path)
    more = scored(store, input=path, coverage=COVERAGE, energy=True)
    assert rows(store, more).drop_columns([*SETS, "energy"]).equals(rows(store, plain))
    assert more.drift == plain.drift
    assert files(store, scored(store, input=path).score_id) == files(store, plain.score_id)


def test_resumed_job_has_same_bytes(store, tmp_path):
    settings = {"coverage": COVERAGE, "energy": True, "where": "set_size > 1"}
    path = str(parquet(tmp_path / "in.parquet"))
    whole = scored(store, input=path, **settings)
    config = ScoreConfig(input=path, batch_size=32, shard_rows=100, **settings)
    job = jobs.open_job(config, store.root)
    score_input(job)
    (job.folder / "done" / "part-00001.parquet.json").unlink()
    resumed = jobs.resume_job(job.score_id, store.root)
    with job_context(resumed):
        done = commit_job(resumed, score_input(resumed))
    assert files(store, done.score_id) == files(store, whole.score_id)
    assert (rows(store, done)["set_size"].to_numpy() > 1).all()


def test_other_settings_are_another_job(store, tmp_path):
    config = ScoreConfig(input=str(parquet(tmp_path / "in.parquet")))
    first = scored(store, input=config.input)
    assert jobs.scored_before(store, config) == first.score_id
    for change in ({"coverage": COVERAGE}, {"energy": True}):
        assert jobs.scored_before(store, config.model_copy(update=change)) is None
    manifest = store.root / "scores" / first.score_id / "manifest.json"
    text = manifest.read_text()
    older = text.replace('"coverage": null,', "").replace('"energy": false,', "")
    assert older != text
    manifest.write_text(older)  # as earlier versions wrote it
    assert jobs.scored_before(store, config) == first.score_id


@pytest.mark.parametrize("name", ["set_size", "in_set_7", "energy", "Energy"])
def test_names_of_columns_are_reserved(store, tmp_path, name):
    path = parquet(tmp_path / "in.parquet", **{name: np.arange(ROWS)})
    with pytest.raises(ConfigError, match="own in jobs with other settings"):
        scored(store, input=path, keep=(name,))


def test_bad_coverage_is_one_line(capfd, store, tmp_path):
    path, run = parquet(tmp_path / "in.parquet", images(10)), store.run_ids()[0]
    model = store.root / "runs" / run / "model.onnx"
    digest = store.manifest(run).files[f"runs/{run}/model.onnx"].sha256
    before = tree_digest(store.root)
    for options, text in (
        (["--coverage", "0.9999"], "at least 9,999 validation images"),
        (["--coverage", "1"], "less than 1"),
        (["--coverage", "0.9", "--model", model, "--digest", digest], "score a run"),
    ):
        failed = call(capfd, "score", "--input", path, "--store", store.root, *options)
        assert failed.code == 2
        assert text in failed.err
        assert len(failed.err.strip().splitlines()) <= 2, failed.err
    assert tree_digest(store.root) == before


def test_run_without_file_asks_to_retrain(store, tmp_path):
    path = parquet(tmp_path / "in.parquet")
    replace(store, conformal(store), None)
    with pytest.raises(ConfigError, match="retrain, or remove coverage"):
        scored(store, input=path, coverage=COVERAGE)
    assert scored(store, input=path).rows == ROWS


def test_changed_file_is_refused(store, tmp_path):
    path = store.root / conformal(store)
    table = pq.read_table(path)
    changed = io.BytesIO()
    pq.write_table(table.slice(1), changed)
    path.write_bytes(changed.getvalue())
    with pytest.raises(ContractError, match="was changed"):
        scored(store, input=parquet(tmp_path / "in.parquet"), coverage=COVERAGE)
