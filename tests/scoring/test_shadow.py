"""A shadow scores the same rows as the model, into a table of its own, and changes nothing else."""

import hashlib

import numpy as np
import pytest
from command_line import call
from score_data import ROWS, bad_parquet, files, jobs_killed_anywhere, parquet, rows, scored

import nnbuild
from nnbuild.errors import AlreadyScoredError, ConfigError, ContractError, StoreError
from nnbuild.scoring import job as jobs
from nnbuild.scoring.commit import commit_job
from nnbuild.scoring.config import ScoreConfig
from nnbuild.scoring.division import Division
from nnbuild.scoring.job_context import job_context
from nnbuild.scoring.job_shards import progress_of, score_input, shard_context
from nnbuild.scoring.processes import score_in_processes
from nnbuild.scoring.shards import make_shards
from nnbuild.store import champion
from nnbuild.store.filesystem import read_json, write_json


def shadow_rows(store, done):
    return store.read_table("shadow_scores", done.score_id).drop_columns("score_id")


def shadow_files(store, score_id):
    folder = store.root / "tables" / "shadow_scores" / f"score_id={score_id}"
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"where": "confidence < 0.9", "keep": ("customer",)},
        {"top_k": 2, "logits": True, "energy": True, "id_column": "customer"},
        {"calibrated": True, "coverage": 0.8, "id_column": "name"},
        {"batch_size": 7, "shard_rows": 60, "where": "customer > 100", "keep": ("customer",)},
    ],
)
def test_shadow_rows_are_those_of_its_model(gated_runs, tmp_path, options):
    store, (_, good, other) = gated_runs
    names = [f"n{number}" for number in range(ROWS)]
    path = parquet(tmp_path / "in.parquet", customer=list(range(ROWS)), name=names)
    alone = scored(store, input=path, **options)
    done = scored(store, input=path, shadow=other, **options)
    assert (alone.shadow_run_id, done.run_id, done.shadow_run_id) == (None, good, other)
    assert files(store, done.score_id) == files(store, alone.score_id)
    ours, theirs = rows(store, done), shadow_rows(store, done)
    assert theirs["champion_predicted"].equals(ours["predicted"])
    unfiltered = {name: each for name, each in options.items() if name != "where"}
    direct = rows(store, scored(store, input=path, model=other, **unfiltered))
    direct = direct.filter(np.isin(direct["example_id"], ours["example_id"]))
    kept = [*options.get("keep", ())]
    assert 0 < len(ours) <= ROWS
    assert theirs.drop_columns("champion_predicted").equals(direct.drop_columns(kept))


def test_path_of_a_picture_is_kept(gated_runs, tmp_path):
    from PIL import Image

    store, _ = gated_runs
    (tmp_path / "in").mkdir()
    for number in range(3):
        pixels = np.full((8, 8), 80 * number, np.uint8)
        Image.fromarray(pixels).save(tmp_path / "in" / f"{number}.png")
    done = scored(store, input=tmp_path / "in", shadow="newest", max_brightness_ratio=1000)
    assert shadow_rows(store, done)["path"].to_pylist() == ["0.png", "1.png", "2.png"]


def test_quarantined_rows_are_in_neither(gated_runs, tmp_path):
    store, _ = gated_runs
    path = bad_parquet(tmp_path / "in.parquet")
    done = scored(store, input=path, shadow="newest", on_error="quarantine")
    ids = rows(store, done)["example_id"]
    assert (done.quarantined, len(ids)) == (3, ROWS - 3)
    assert shadow_rows(store, done)["example_id"].equals(ids)


def test_input_is_read_once(gated_runs, tmp_path, monkeypatch):
    store, _ = gated_runs
    options = {"input": parquet(tmp_path / "in.parquet"), "shard_rows": 60, "batch_size": 32}
    counts = []
    for shadow in (None, "newest"):
        config = ScoreConfig.model_validate(
            {**options, "input": str(options["input"]), "shadow": shadow}
        )
        job = jobs.open_job(config, store.root)
        read, calls = job.source.read, []
        monkeypatch.setattr(
            job.source, "read", lambda *given, r=read, c=calls: c.append(given) or r(*given)
        )
        with job_context(job):
            commit_job(job, score_input(job))
        counts.append(calls)
    assert counts[0] == counts[1]


def test_killed_job_with_shadow_ends_the_same(gated_runs, tmp_path):
    store, _ = gated_runs
    path = parquet(tmp_path / "in.parquet")
    options = {"input": str(path), "batch_size": 32, "shard_rows": 100, "shadow": "newest"}
    straight = scored(store, **options)
    kills = 0
    for score_id in jobs_killed_anywhere(store, options):
        kills += 1
        assert files(store, score_id) == files(store, straight.score_id)
        assert shadow_files(store, score_id) == shadow_files(store, straight.score_id)
    assert kills > 8
    assert len(store.read_table("shadow_scores")) == len(store.read_table("scores"))


def test_damaged_shadow_file_is_made_again(gated_runs, tmp_path):
    store, _ = gated_runs
    path = parquet(tmp_path / "in.parquet")
    options = {"input": str(path), "batch_size": 32, "shard_rows": 100, "shadow": "newest"}
    straight = scored(store, **options)
    job = jobs.open_job(ScoreConfig.model_validate(options), store.root)
    score_input(job)
    (job.folder / "shadow" / "part-00001.parquet").write_bytes(b"cut")
    assert len(progress_of(job)[1]) == 1
    with job_context(job):
        commit_job(job, score_input(job))
    assert shadow_files(store, job.score_id) == shadow_files(store, straight.score_id)


def test_newest_is_no_past_champion(gated_runs, tmp_path):
    store, (_, _, other) = gated_runs
    path = parquet(tmp_path / "in.parquet")
    assert scored(store, input=path, shadow="newest").shadow_run_id == other
    champion.promote(store, other, champion.Author("ada"))
    done = scored(store, input=path, shadow="newest")
    assert (done.run_id, done.shadow_run_id) == (other, None)  # all three were champions


def test_stopped_job_keeps_its_newest(gated_runs, tmp_path):
    """The run that is the newest when a job is repeated does not matter, a chosen one does."""
    store, (_, _, other) = gated_runs
    options = {"input": str(parquet(tmp_path / "in.parquet")), "shadow": "newest"}
    waiting = jobs.open_job(ScoreConfig.model_validate(options), store.root)
    (folder,) = store.root.glob(f"runs/{other}")
    manifest = read_json(folder / "manifest.json")
    manifest["steps"]["decide"]["passed_over"] = True
    write_json(folder / "manifest.json", manifest)
    again = jobs.open_job(ScoreConfig.model_validate(options), store.root)
    assert (again.score_id, again.config.shadow) == (waiting.score_id, other)
    without = jobs.open_job(ScoreConfig.model_validate(options | {"shadow": None}), store.root)
    assert without.score_id != waiting.score_id


def test_new_shadow_does_not_score_again(gated_runs, tmp_path):
    store, (first, _, other) = gated_runs
    config = ScoreConfig(input=str(parquet(tmp_path / "in.parquet")), shadow=other)
    done = nnbuild.score(config, store.root)
    changed = config.model_copy(update={"shadow": first})
    with pytest.raises(AlreadyScoredError, match=done.score_id):
        nnbuild.score(changed, store.root, once=True)
    assert nnbuild.scoring.job.scored_before(store, changed) == done.score_id


@pytest.mark.parametrize("case", ["itself", "output", "file", "missing", "classes", "images"])
def test_unfit_shadow_is_refused(gated_runs, tmp_path, case):
    store, (first, good, other) = gated_runs
    config = {"input": str(parquet(tmp_path / "in.parquet")), "shadow": other}
    if case in {"classes", "images"}:
        path = store.root / "runs" / other / "manifest.json"
        manifest = read_json(path)
        data = manifest["steps"]["load_data"]
        if case == "classes":
            data["class_names"] = ["a", "b", "c"]
        else:
            data["image_shape"] = [9, 8, 1]
        write_json(path, manifest)
    model = store.root / "runs" / good / "model.onnx"
    file = {"model": str(model), "digest": hashlib.sha256(model.read_bytes()).hexdigest()}
    more, kind, text = {
        "itself": ({"shadow": good}, ConfigError, "is the model of the job itself"),
        "output": ({"output": str(tmp_path / "out")}, ConfigError, "remove output"),
        "file": (file, ConfigError, "a model file has no shadow"),
        "missing": ({"shadow": first[:-6] + "ffffff"}, StoreError, "no committed run"),
        "classes": ({}, ConfigError, r"classes are 3 \(a, b, c\)"),
        "images": ({}, ConfigError, "images are 9×8×1, those of run .* 8×8×1"),
    }[case]
    before = set(store.root.rglob("*"))
    with pytest.raises(kind, match=text):
        nnbuild.score(ScoreConfig.model_validate(config | more), store.root)
    assert set(store.root.rglob("*")) == before


def test_shadow_without_onnx_uses_keras(gated_runs, tmp_path):
    store, (_, _, other) = gated_runs
    path = parquet(tmp_path / "in.parquet")
    expected = shadow_rows(store, scored(store, input=path, shadow=other))
    manifest = read_json(store.root / "runs" / other / "manifest.json")
    manifest["steps"]["export_model"] |= {"path": None, "remark": "unknown operator"}
    write_json(store.root / "runs" / other / "manifest.json", manifest)
    done = scored(store, input=path, shadow=other)
    assert done.engine == "onnx"
    found = shadow_rows(store, done)
    assert found["predicted"].equals(expected["predicted"])
    np.testing.assert_allclose(found["log_prob"], expected["log_prob"], rtol=1e-4, atol=1e-5)


def test_shadow_that_breaks_the_contract_is_named(gated_runs, tmp_path):
    store, (_, _, other) = gated_runs
    config = ScoreConfig(input=str(parquet(tmp_path / "in.parquet")), shadow=other)
    job = jobs.open_job(config, store.root)
    context = shard_context(job)

    class Broken:
        name = "broken"

        def logits(self, images):
            whole = context.engine().logits(images)
            whole[len(images) + 1, 0] = np.nan
            return whole

    _, pending = progress_of(job)
    with pytest.raises(ContractError, match=f"shadow {other}: "):
        list(make_shards(context._replace(engine=Broken), pending, job.folder))


def test_days_with_a_shadow(gated_runs, tmp_path, capfd):
    store, (_, _, other) = gated_runs
    for day in ("2026-11-01", "2026-11-03"):
        (tmp_path / f"date={day}").mkdir()
        parquet(tmp_path / f"date={day}" / "a.parquet")
    outcome = call(
        capfd,
        "score", "--input", f"{tmp_path}/date={{date}}/", "--from", "2026-11-01", "--to",
        "2026-11-03", "--shadow", "newest", "--store", store.root, "--json",
    )  # fmt: skip
    assert (outcome.code, outcome.json["scored"], outcome.json["missing"]) == (0, 2, 1)
    assert set(store.read_table("score_jobs")["shadow_run_id"].to_pylist()) == {other}
    assert len(store.read_table("shadow_scores")) == 2 * ROWS


def test_score_command_with_a_shadow(gated_runs, tmp_path, capfd):
    store, (_, good, other) = gated_runs
    path = parquet(tmp_path / "in.parquet")
    command = ["score", "--input", path, "--store", store.root, "--shadow"]
    outcome = call(capfd, *command, other, "--json")
    assert (outcome.code, outcome.json["shadow_run_id"]) == (0, other)
    refused = call(capfd, *command, good)
    assert refused.code == 2
    assert len(refused.err.strip().splitlines()) == 1
    assert f"shadow {good}: it is the model of the job itself" in refused.err
    query = (
        "select count(*) as n from scores s join shadow_scores h using (score_id, example_id) "
        "where s.predicted = h.champion_predicted"
    )
    assert call(capfd, "sql", query, "--store", store.root, "--json").json["rows"] == [{"n": ROWS}]


@pytest.mark.parametrize("whole", [False, True])
def test_processes_score_with_a_shadow(gated_runs, tmp_path, whole):
    store, (_, _, other) = gated_runs
    path = parquet(tmp_path / "in.parquet")
    options = {"input": str(path), "batch_size": 16, "shard_rows": 50, "shadow": other}
    options |= {"where": "confidence < 0.9"}
    straight = scored(store, **options)
    job = jobs.open_job(ScoreConfig.model_validate(options), store.root)
    assert len(jobs.shards_of(job)) > 2
    with job_context(job):
        commit_job(job, score_in_processes(job, Division(2, whole)))
    assert files(store, job.score_id) == files(store, straight.score_id)
    assert shadow_files(store, job.score_id) == shadow_files(store, straight.score_id)
