"""Batch scoring: the same rows for every input format, batch size and interruption; atomic."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from hashlib import sha256
from pathlib import Path

import duckdb
import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command_line import call, tree_digest
from hypothesis import given, settings
from hypothesis import strategies as st
from kills import killed_at
from score_data import (
    ROWS,
    bad_parquet,
    drift,
    files,
    images,
    jobs_killed_anywhere,
    parquet,
    replace,
    rows,
    scored,
)

import nnbuild
from nnbuild.data import pixels
from nnbuild.errors import ConfigError, ContractError, DataError, Interrupted, StoreError
from nnbuild.runtime.threads import prefetch
from nnbuild.scoring import job as jobs
from nnbuild.scoring.commit import commit_job
from nnbuild.scoring.config import ScoreConfig
from nnbuild.scoring.job_context import job_context
from nnbuild.scoring.job_shards import score_input
from nnbuild.scoring.selection import parse_filter
from nnbuild.store import Store, champion
from nnbuild.store.filesystem import read_json, write_json


def test_unproven_shard_is_not_used(store, tmp_path):
    """Earlier versions committed a broken model.onnx if the export had failed."""
    run_id = champion.require(store)
    folder = store.root / "runs" / run_id
    manifest = read_json(folder / "manifest.json")
    manifest["steps"]["export_model"] |= {"path": None, "remark": "it demands more inputs"}
    write_json(folder / "manifest.json", manifest)
    (folder / "model.onnx").write_bytes(b"broken")
    path = parquet(tmp_path / "in.parquet")
    done = scored(store, input=path)
    assert (done.engine, done.engine_reason) == ("keras", "it demands more inputs")
    assert rows(store, done).equals(rows(store, scored(store, input=path, engine="keras")))
    with pytest.raises(ContractError, match="was not exported to ONNX: it demands more inputs"):
        scored(store, input=path, engine="onnx")


def test_the_engine_is_chosen_once(store, tmp_path):
    """A job with engine `auto` is recorded and found by its actual engine."""
    config = ScoreConfig(input=str(parquet(tmp_path / "in.parquet")), batch_size=32, shard_rows=100)
    job = jobs.open_job(config, store.root)
    assert job.config.engine == "onnx"
    assert jobs.open_job(config, store.root).score_id == job.score_id
    with job_context(job):
        done = commit_job(job, score_input(job))
    assert jobs.scored_before(store, config) == done.score_id
    assert jobs.scored_before(store, config.model_copy(update={"engine": "keras"})) is None


def test_rows_equal_those_of_keras(store, tmp_path):
    path = parquet(tmp_path / "in.parquet")
    by_onnx, by_keras = (
        rows(store, scored(store, input=path, engine=engine)) for engine in ("onnx", "keras")
    )
    assert by_onnx.schema.equals(by_keras.schema, check_metadata=True)
    assert by_onnx["example_id"].to_pylist() == list(range(ROWS))
    assert by_onnx["label"].equals(by_keras["label"])
    assert by_onnx["predicted"].equals(by_keras["predicted"])
    for name in ("confidence", "log_prob", "prob_0", "prob_1", "prob_2"):
        np.testing.assert_allclose(
            by_onnx[name].to_numpy(), by_keras[name].to_numpy(), rtol=1e-4, atol=1e-6
        )
    sums = sum(by_onnx[f"prob_{label}"].to_numpy().astype(np.float64) for label in range(3))
    assert np.abs(sums - 1).max() < 1e-6


def test_every_input_format_gives_same_rows(store, tmp_path):
    import gzip
    import struct

    from PIL import Image

    pixels = images()
    wanted = rows(store, scored(store, input=parquet(tmp_path / "in.parquet"))).drop_columns(
        "label"
    )
    flat = [each.ravel().tolist() for each in pixels]
    pq.write_table(
        pa.table({"image": pa.array(flat, pa.list_(pa.uint8()))}), tmp_path / "lists.parquet"
    )
    tensors = pa.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(pixels))
    pq.write_table(pa.table({"image": tensors}), tmp_path / "tensors.parquet", row_group_size=60)
    floats = pa.array([(each / 255).ravel().tolist() for each in pixels], pa.list_(pa.float64()))
    pq.write_table(pa.table({"image": floats}), tmp_path / "floats.parquet", row_group_size=60)
    (tmp_path / "pictures").mkdir()
    pngs = []
    for number, each in enumerate(pixels):
        Image.fromarray(each[..., 0]).save(tmp_path / "pictures" / f"{number:04}.png")
        pngs.append(
            {"bytes": (tmp_path / "pictures" / f"{number:04}.png").read_bytes(), "path": None}
        )
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pq.write_table(
        pa.table({"image": pa.array(pngs, kind)}), tmp_path / "hugging.parquet", row_group_size=60
    )
    header = struct.pack(">HBBIII", 0, 8, 3, len(pixels), 8, 8)
    (tmp_path / "images-idx3-ubyte.gz").write_bytes(gzip.compress(header + pixels.tobytes()))
    np.savez(tmp_path / "images.npz", images=pixels)
    (tmp_path / "parts").mkdir()
    parquet(tmp_path / "parts" / "a.parquet", pixels[:120])
    parquet(tmp_path / "parts" / "b.parquet", pixels[120:])
    forms = [
        "lists.parquet",
        "tensors.parquet",
        "floats.parquet",
        "hugging.parquet",
        "pictures",
        "images.npz",
    ]
    for form in [*forms, "images-idx3-ubyte.gz", "parts", "parts/*.parquet"]:
        found = rows(store, scored(store, input=tmp_path / form)).select(wanted.column_names)
        assert found.drop_columns("example_id").equals(wanted.drop_columns("example_id")), form
        assert found["example_id"].equals(wanted["example_id"])


@pytest.mark.parametrize("new", [False, True])
def test_array_above_the_memory_gives_same_rows(store, tmp_path, monkeypatch, new):
    np.savez_compressed(tmp_path / "images.npz", images=images())
    expected = rows(store, scored(store, input=tmp_path / "images.npz"))
    model = store.root / "runs" / store.run_ids()[0] / "model.onnx"
    chosen = {"model": str(model), "digest": sha256(model.read_bytes()).hexdigest()} if new else {}
    target = Store(tmp_path / "new") if new else store
    monkeypatch.setenv("NNBUILD_MEMORY", "1000")
    folders, temporary_file = [], pixels._temporary_file
    monkeypatch.setattr(
        pixels,
        "_temporary_file",
        lambda folder: folders.append(folder) or temporary_file(folder),
    )
    found = rows(target, scored(target, input=tmp_path / "images.npz", **chosen))
    assert folders == ([Path(tempfile.gettempdir())] if new else [store.root / "staging"])
    assert found.equals(expected)
    assert list((target.root / "staging").iterdir()) == []


@pytest.mark.parametrize(("batch_size", "shard_rows"), [(1, 1), (7, 60), (64, 10**6)])
def test_batches_and_shards_keep_the_rows(store, tmp_path, batch_size, shard_rows):
    path = parquet(tmp_path / "in.parquet")
    one = rows(store, scored(store, input=path))
    done = scored(store, input=path, batch_size=batch_size, shard_rows=shard_rows)
    other = rows(store, done)
    assert other["example_id"].equals(one["example_id"])
    np.testing.assert_allclose(
        other["log_prob"].to_numpy(), one["log_prob"].to_numpy(), rtol=1e-4, atol=1e-5
    )
    manifest = store.root / "scores" / done.score_id / "manifest.json"
    assert manifest.exists()
    row_groups = -(-ROWS // 50)
    per_shard = min(row_groups, -(-shard_rows // 50))
    assert len(files(store, done.score_id)) == -(-row_groups // per_shard)


def test_columns_on_request(store, tmp_path):
    names = [f"customer {number}" for number in range(ROWS)]
    path = parquet(tmp_path / "in.parquet", customer=names, key=np.arange(ROWS) * 10)
    table = rows(
        store, scored(store, input=path, keep=["customer"], id_column="key", logits=True, top_k=2)
    )
    assert table["customer"].to_pylist() == names
    assert table["example_id"].to_pylist() == list(range(0, 10 * ROWS, 10))
    logits = np.stack([table[f"logit_{label}"].to_numpy() for label in range(3)], axis=1)
    probabilities = np.stack([table[f"prob_{label}"].to_numpy() for label in range(3)], axis=1)
    order = np.argsort(-logits, axis=1, kind="stable")
    each = np.arange(ROWS)
    for place in range(2):
        assert np.array_equal(table[f"top_{place + 1}"].to_numpy(), order[:, place])
        assert np.array_equal(
            table[f"top_{place + 1}_prob"].to_numpy(), probabilities[each, order[:, place]]
        )
    assert table["top_1"].equals(table["predicted"])


def test_where_keeps_matching_rows(store, tmp_path):
    path = parquet(tmp_path / "in.parquet")
    everything = rows(store, scored(store, input=path))
    middle = float(np.median(everything["confidence"].to_numpy()))
    done = scored(store, input=path, where=f"confidence < {middle} and not predicted == 1")
    kept = rows(store, done)
    wanted = (everything["confidence"].to_numpy() < middle) & (
        everything["predicted"].to_numpy() != 1
    )
    assert kept.equals(everything.filter(pa.array(wanted)))
    assert (done.rows, done.written) == (ROWS, int(wanted.sum()))


def test_calibrated_divides_the_logits(store, tmp_path):
    path = parquet(tmp_path / "in.parquet")
    done = scored(store, input=path, calibrated=True, logits=True)
    table = rows(store, done)
    temperature = store.read_table("score_jobs", done.score_id)["temperature"][0].as_py()
    assert temperature == store.manifest(done.run_id).steps.calibrate_model.temperature != 1
    scaled = np.stack([table[f"logit_{label}"].to_numpy() for label in range(3)], axis=1).astype(
        np.float64
    )
    scaled /= temperature
    expected = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    expected /= expected.sum(axis=1, keepdims=True)
    found = np.stack([table[f"prob_{label}"].to_numpy() for label in range(3)], axis=1)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-30)
    np.testing.assert_allclose(
        table["log_prob"].to_numpy(), np.log(expected.max(axis=1)), rtol=1e-4, atol=1e-6
    )


def test_job_killed_anywhere_ends_the_same(store, tmp_path):
    path = parquet(tmp_path / "in.parquet", customer=np.arange(ROWS))
    options = {"input": str(path), "keep": ["customer"], "batch_size": 32, "shard_rows": 60}
    straight = scored(store, **options)
    kills = 0
    for score_id in jobs_killed_anywhere(store, options):
        kills += 1
        assert files(store, score_id) == files(store, straight.score_id)
        assert drift(store, score_id) == drift(store, straight.score_id)
        assert store.read_table("scores", score_id).num_rows == ROWS
    assert kills == 10  # each shard twice, the shards, and the three moves less the last


def test_same_job_resumes_the_killed_one(store, tmp_path, monkeypatch):
    path = parquet(tmp_path / "in.parquet")
    options = {"input": str(path), "batch_size": 32, "shard_rows": 60}
    straight = scored(store, **options)
    with killed_at("shard:done"):
        nnbuild.score(ScoreConfig(**options), store.root)
    (waiting,) = (store.root / "staging").glob("score-*")
    (waiting / "rows" / ".half.part-00003.parquet").write_bytes(b"of a process that was killed")
    before = (waiting / "rows" / "part-00000.parquet").stat().st_ino
    other = nnbuild.score(ScoreConfig(**options, top_k=1), store.root)
    assert waiting.name != f"score-{other.score_id}"  # other settings, another job
    again = nnbuild.score(ScoreConfig(**options), store.root)
    assert waiting.name == f"score-{again.score_id}"
    assert files(store, again.score_id) == files(store, straight.score_id)
    folder = store.root / "tables" / "scores" / f"score_id={again.score_id}"
    assert (folder / "part-00000.parquet").stat().st_ino == before
    assert nnbuild.score(ScoreConfig(**options), store.root).score_id != again.score_id


def test_invalid_threads_leave_store(store, tmp_path):
    config = ScoreConfig(input=str(parquet(tmp_path / "in.parquet")))
    before = tree_digest(store.root)
    with pytest.raises(ConfigError, match="threads is 0, expected at least 1"):
        nnbuild.score(config, store.root, threads=0)
    assert tree_digest(store.root) == before


@pytest.mark.parametrize("changed", ["model_digest", "code_version"])
def test_resume_with_other_code_or_model_is_refused(store, tmp_path, monkeypatch, changed):
    config = ScoreConfig(input=str(parquet(tmp_path / "in.parquet")))
    job = jobs.open_job(config, store.root)
    assert jobs.resume_job(job.score_id, store.root).record() == job.record()
    if changed == "code_version":
        monkeypatch.setattr("nnbuild.runtime.environment.code_version", lambda: "other")
    else:
        name = f"runs/{job.model.run_id}/model.onnx"
        model = onnx.load(store.root / name)
        model.doc_string = "trained again"
        replace(store, name, model.SerializeToString())
    message = f"cannot resume scoring job {job.score_id}: its {changed} changed since; start a new"
    with pytest.raises(StoreError, match=message):
        nnbuild.score(store=store.root, resume=job.score_id)


def test_signal_stops_after_a_batch(store, tmp_path):
    options = {"input": str(parquet(tmp_path / "in.parquet")), "batch_size": 32, "shard_rows": 60}
    straight = scored(store, **options)

    class Stopping:
        def scored(self, done, _total, _seconds):
            if done > 100:
                os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted) as stopped:
        nnbuild.score(ScoreConfig(**options), store.root, progress=Stopping())
    assert stopped.value.exit_code == 143
    assert "nnbuild score --resume" in stopped.value.__notes__[0]
    (waiting,) = (store.root / "staging").glob("score-*")
    assert (waiting / "rows" / "part-00000.parquet").exists()
    again = nnbuild.score(ScoreConfig(**options), store.root)
    assert waiting.name == f"score-{again.score_id}"
    assert files(store, again.score_id) == files(store, straight.score_id)


def test_the_readers(store, tmp_path):
    run_id = store.run_ids()[0]
    path = parquet(tmp_path / "in.parquet")
    first, second = (scored(store, input=path) for _ in range(2))
    assert nnbuild.read_table(store.root, "predictions", run_id=run_id).num_rows == 45
    both = nnbuild.read_table(
        store.root, "scores", run_id=run_id, columns=["predicted"]
    ).to_pandas()
    assert list(both.columns) == ["score_id", "predicted"]
    assert both["score_id"].value_counts().to_dict() == {
        first.score_id: ROWS,
        second.score_id: ROWS,
    }
    assert nnbuild.read_table(store, "score_jobs", score_id=first.score_id)["rows"].to_pylist() == [
        ROWS
    ]
    with pytest.raises(StoreError, match="no scoring job by run"):
        nnbuild.read_table(store, "scores", run_id=run_id[:-6] + "ffffff")
    with pytest.raises(StoreError, match="give run_id"):
        nnbuild.read_table(store, "history", score_id=first.score_id)


def test_an_output_folder_of_ones_own(store, tmp_path):
    path = parquet(tmp_path / "in.parquet")
    in_store = rows(store, scored(store, input=path))
    done = scored(store, input=path, output=str(tmp_path / "out"))
    assert done.output == str(tmp_path / "out")
    assert pq.read_table(tmp_path / "out").equals(in_store)
    assert (tmp_path / "out" / "_manifest.json").exists()
    assert done.score_id in store.score_ids()
    before = tree_digest(tmp_path)
    with pytest.raises(ConfigError, match="not empty"):
        scored(store, input=path, output=str(tmp_path / "out"))
    assert tree_digest(tmp_path) == before


def test_bad_row_stops_the_job(store, tmp_path):
    path = bad_parquet(tmp_path / "bad.parquet")
    before = tree_digest(store.root)
    with pytest.raises(DataError, match=r"bad\.parquet, row group 0, row 3: .*null"):
        scored(store, input=path)
    assert tree_digest(store.root) == before


def test_bad_rows_go_to_quarantine(store, tmp_path):
    done = scored(store, input=bad_parquet(tmp_path / "bad.parquet"), on_error="quarantine")
    assert (done.rows, done.quarantined) == (ROWS - 3, 3)
    assert set(range(ROWS)) - set(rows(store, done)["example_id"].to_pylist()) == {3, 60, 140}
    found = pq.read_table(
        store.root / "quarantine" / f"score_id={done.score_id}", partitioning=None
    ).to_pylist()
    assert [(each["row_group"], each["row"]) for each in found] == [(0, 3), (1, 60), (2, 140)]
    row = store.read_table("score_jobs", done.score_id).to_pylist()[0]
    assert (row["rows"], row["quarantined"]) == (ROWS - 3, 3)


def test_bad_picture_is_named(store, tmp_path):
    from PIL import Image

    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, each in enumerate(images(70)):
        Image.fromarray(each[..., 0]).save(folder / f"{number:03}.png")
    (folder / "005.png").write_bytes(b"no picture")
    Image.fromarray(images(1)[0, :, :7, 0]).save(folder / "040.png")
    before = tree_digest(store.root)
    with pytest.raises(DataError, match=r"005\.png, row group 0, row 0: not a readable picture"):
        scored(store, input=folder)
    assert tree_digest(store.root) == before
    done = scored(store, input=folder, on_error="quarantine")
    assert (done.rows, done.quarantined) == (68, 2)
    assert set(range(70)) - set(rows(store, done)["example_id"].to_pylist()) == {5, 40}


def test_corrupt_row_group_is_named(store, tmp_path):
    path = parquet(tmp_path / "in.parquet", images(), group=50)
    column = pq.read_metadata(path).row_group(2).column(0)
    content = bytearray(path.read_bytes())
    start = column.dictionary_page_offset or column.data_page_offset
    content[start : start + 40] = b"\xff" * 40
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"in\.parquet, row group 2, row 100"):
        scored(store, input=path)
    done = scored(store, input=path, on_error="quarantine")
    assert (done.rows, done.quarantined) == (ROWS - 50, 50)


def test_job_of_changed_input_is_refused(store, tmp_path):
    path = parquet(tmp_path / "in.parquet")
    job = jobs.open_job(ScoreConfig(input=str(path)), store.root)
    parquet(path, images(ROWS + 1))
    with pytest.raises(StoreError, match="its input changed since"):
        jobs.resume_job(job.score_id, store.root)


def test_the_command_line(capfd, store, tmp_path):
    path = parquet(tmp_path / "in.parquet")
    told = call(capfd, "score", "--input", path, "--store", store.root, "--json").json
    assert {"score_id", "run_id", "rows", "quarantined", "seconds", "output"} <= told.keys()
    assert told["rows"] == ROWS
    assert pq.read_table(told["output"], partitioning=None).num_rows == ROWS


def test_scoring_needs_no_tensorflow(store, tmp_path):
    path = parquet(tmp_path / "in.parquet")
    arguments = ["score", "--input", str(path), "--store", str(store.root)]
    code = f"import sys; from flows.cli.main import invoke; code = invoke({arguments!r}); "
    code += "assert not {'tensorflow', 'prefect'} & set(sys.modules); sys.exit(code)"
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


@given(st.lists(st.integers(), max_size=30), st.integers(1, 5))
@settings(deadline=None, max_examples=30)
def test_prefetch_keeps_the_order(items, depth):
    assert list(prefetch(iter(items), depth)) == items

    def failing():
        yield from items
        raise ValueError("the end")

    seen = []
    with pytest.raises(ValueError, match="the end"):
        seen.extend(prefetch(failing(), depth))
    assert seen == items


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')",
        "confidence.__class__ == 1",
        "confidence",
        "confidence < [1]",
        "lambda: 1",
        "confidence := 1",
        "",
        "1 if predicted else 2",
        "a" * 2000,
        "(" * 900 + ")" * 900,
        "confidence < 0.5; predicted == 1",
        "confidence < 100000000000000000000",
    ],
)
def test_where_is_no_python(text):
    with pytest.raises(ConfigError):
        parse_filter(text, ["confidence", "predicted"])


def test_where_suggests_nearest_column():
    with pytest.raises(ConfigError, match="did you mean 'confidence'"):
        parse_filter("confidense < 1", ["confidence", "predicted"])


def test_examples_of_the_guide_work(store, tmp_path, monkeypatch, capfd):
    folder = Path(__file__).parents[2] / "docs" / "guide"
    guide, drift = (
        (folder / name).read_text(encoding="utf-8") for name in ("scoring.md", "drift.md")
    )
    shutil.copytree(store.root, tmp_path / "nnbuild-store")
    parquet(tmp_path / "images.parquet")
    monkeypatch.chdir(tmp_path)
    nnbuild.score(ScoreConfig(input="images.parquet"), "nnbuild-store")
    programs = re.findall(r"^```python\n(.*?)^```", guide, re.DOTALL | re.MULTILINE)
    assert len(programs) == 3
    for program in programs:
        exec(compile(program, "scoring.md", "exec"), {})  # noqa: S102
    of_drift, of_sets, of_energy, query = (
        query
        for page in (drift, guide)
        for query in re.findall(r"^```sql\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    )
    more = ScoreConfig(input="images.parquet", coverage=0.8, energy=True)
    assert nnbuild.score(more, "nnbuild-store").rows == ROWS
    sizes, energies = (
        call(capfd, "sql", query, "--store", "nnbuild-store", "--json").json["rows"]
        for query in (of_sets, of_energy)
    )
    assert sum(row["count_star()"] for row in sizes) == ROWS
    assert len(energies) == ROWS // 10
    assert all(largest >= 0 for _, largest in duckdb.sql(of_drift).fetchall())
    assert sum(count for _, count in duckdb.sql(query).fetchall()) >= ROWS


def test_spark_example_of_the_guide_works(store, tmp_path, monkeypatch):
    sql = pytest.importorskip("pyspark.sql")
    guide = (Path(__file__).parents[2] / "docs" / "guide" / "scoring.md").read_text()
    (query,) = re.findall(r"^spark\..*$", guide, re.MULTILINE)
    shutil.copytree(store.root, tmp_path / "nnbuild-store")
    parquet(tmp_path / "images.parquet")
    monkeypatch.chdir(tmp_path)
    nnbuild.score(ScoreConfig(input="images.parquet"), "nnbuild-store")
    spark = sql.SparkSession.builder.master("local[1]").getOrCreate()
    exec(query, {"spark": spark})  # noqa: S102
    spark.stop()


def test_kept_views_are_filtered_as_texts(store, tmp_path):
    texts = pa.array([f"site {row % 5}" for row in range(ROWS)])
    path = parquet(tmp_path / "in.parquet", text=texts, view=texts.cast(pa.string_view()))
    done = scored(store, input=path, keep=["view"], where="view == 'site 1'")
    assert set(rows(store, done)["view"].to_pylist()) == {"site 1"}


def test_two_kept_columns_of_a_name_are_refused(store, tmp_path):
    table = pq.read_table(parquet(tmp_path / "in.parquet", a=np.arange(ROWS)))
    pq.write_table(table.append_column("a", table["a"]), tmp_path / "in.parquet")
    with pytest.raises(DataError, match="two columns are called 'a'"):
        scored(store, input=tmp_path / "in.parquet", keep=["a"])
