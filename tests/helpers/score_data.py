"""Helpers for tests of scoring: inputs, complete jobs, and their results."""

import hashlib
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from kills import Killed, killing_at

from nnbuild.data.dataset import Split
from nnbuild.data.split_table import split_table
from nnbuild.evaluation.drift import MEASURES
from nnbuild.scoring import job as jobs
from nnbuild.scoring.commit import commit_job
from nnbuild.scoring.config import ScoreConfig
from nnbuild.scoring.job_context import job_context
from nnbuild.scoring.job_shards import score_input

SHAPE = (8, 8, 1)
ROWS = 230


def images(rows=ROWS):
    return np.random.default_rng(5).integers(0, 256, (rows, *SHAPE), np.uint8)


def parquet(path, pixels=None, group=50, **columns):
    pixels = images() if pixels is None else pixels
    table = split_table(Split(pixels, (np.arange(len(pixels)) % 3).astype(np.int16)))
    for name, values in columns.items():
        table = table.append_column(name, pa.array(values))
    pq.write_table(table, path, row_group_size=group)
    return path


def scored(store, **config):
    config = {"batch_size": 32, "shard_rows": 100} | {
        name: each for name, each in config.items() if each is not None
    }
    job = jobs.open_job(
        ScoreConfig.model_validate({**config, "input": str(config["input"])}), store.root
    )
    with job_context(job):
        return commit_job(job, score_input(job))


def rows(store, done):
    return store.read_table("scores", done.score_id).drop_columns("score_id")


def drift(store, score_id):
    """Return a job's rows of `drift` without their time."""
    table = store.read_table("drift", score_id).drop_columns(["score_id", "measured_at"])
    assert table.num_rows == 2 * len(MEASURES)
    return table


def files(store, score_id):
    folder = store.root / "tables" / "scores" / f"score_id={score_id}"
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def bad_parquet(path):
    """Write a file in which rows 3 and 140 are null, and row 60 has another size."""
    pixels = [each.ravel().tolist() for each in images()]
    pixels[3] = pixels[140] = None
    pixels[60] = pixels[60][:-1]
    pq.write_table(
        pa.table({"image": pa.array(pixels, pa.list_(pa.uint8()))}), path, row_group_size=50
    )
    return path


def replace(store, name, content):
    """Replace a file of the only run, or remove it if the content is None, and say so."""
    path = store.root / "runs" / store.run_ids()[0] / "manifest.json"
    manifest = json.loads(path.read_text())
    if content is None:
        (store.root / name).unlink()
        del manifest["files"][name]
    else:
        (store.root / name).write_bytes(content)
        manifest["files"][name] |= {
            "sha256": hashlib.sha256(content).hexdigest(),
            "bytes": len(content),
        }
    path.write_text(json.dumps(manifest))


def jobs_killed_anywhere(store, options):
    """Score the same input again and again, killed at one failpoint after another, and resumed.

    Yields the ID of each job.
    """
    for number in range(1, 100):
        job = jobs.open_job(ScoreConfig.model_validate(options), store.root)
        try:
            with killing_at(number), job_context(job):
                commit_job(job, score_input(job))
        except Killed:
            if job.score_id not in store.score_ids():
                assert job.score_id not in store.read_table("score_jobs")["score_id"].to_pylist()
                job = jobs.resume_job(job.score_id, store.root)
                with job_context(job):
                    commit_job(job, score_input(job))
            yield job.score_id
        else:
            return
