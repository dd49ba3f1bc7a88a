"""Scoring in several processes: the same bytes as in one, whatever is killed."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import onnx_models
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command_line import tree_digest
from onnx import helper
from score_data import files, images, parquet, scored

from nnbuild.errors import ConfigError, DataError, Interrupted, RunError, StoreError
from nnbuild.scoring import division, processes
from nnbuild.scoring import job as jobs
from nnbuild.scoring.commit import commit_job
from nnbuild.scoring.config import ScoreConfig
from nnbuild.scoring.division import Cost, Division, division_of, processes_are_faster
from nnbuild.scoring.job_context import job_context
from nnbuild.scoring.processes import score_in_processes
from nnbuild.scoring.worker import describe_error, error_from

LARGE = 20_000
"""Rows of several parts, in row groups that are divided and in some that are not."""
SECONDS = 120


@pytest.fixture(autouse=True)
def others_first(monkeypatch):
    """Let this process score only after another has answered; it would do all of it meanwhile."""
    answered = threading.Event()
    answer = processes._Process.answer

    def answer_and_tell(self, report):
        try:
            found = answer(self, report)
        except BaseException:
            answered.set()
            raise
        if "ready" not in found:
            answered.set()
        return found

    monkeypatch.setattr(processes._Process, "answer", answer_and_tell)
    monkeypatch.setattr(processes._ThisProcess, "wait_until_ready", lambda _: answered.wait())


def config(path, **more):
    settings = {"input": str(path), "batch_size": 512, "shard_rows": 9_000, **more}
    return ScoreConfig.model_validate(settings)


def in_processes(store, settings, count=2, progress=None, *, whole=False):
    job = jobs.open_job(settings, store.root)
    with job_context(job):
        return commit_job(job, score_in_processes(job, Division(count, whole), progress))


def outputs(store, score_id):
    """Return the bytes of a job's rows and of its quarantine, and its drift."""
    quarantine = store.root / "quarantine" / f"score_id={score_id}"
    drift = store.read_table("drift", score_id).drop_columns(["score_id", "measured_at"])
    return (
        files(store, score_id),
        {each.name: each.read_bytes() for each in quarantine.glob("*")},
        drift.to_pylist(),
    )


def children():
    """Return the processes that this one has started, except the one that tracks resources."""
    every = psutil.Process().children(recursive=True)
    return [each for each in every if "nnbuild.scoring.worker" in " ".join(each.cmdline())]


class Progress:
    """Progress that calls a function once, when the first rows are there."""

    def __init__(self, act=lambda: None):
        self.act, self.counts = act, []

    def scored(self, done, _total, _seconds):
        self.counts.append(done)
        if len(self.counts) == 1:
            self.act()


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """Parquet file of several shards, with one row group that is larger than a part."""
    folder = tmp_path_factory.mktemp("large")
    numbers = np.arange(LARGE)
    return parquet(
        folder / "in.parquet",
        images(LARGE),
        group=10_000,
        customer=numbers,
        name=[f"picture {number}" for number in numbers],
    )


def test_processes_write_the_same_bytes(store, large):
    settings = {
        "keep": ["customer"],
        "id_column": "name",
        "coverage": 0.8,
        "energy": True,
        "top_k": 2,
        "where": "customer < 15000",
    }
    one = scored(store, **config(large, **settings).model_dump())
    assert 0 < one.written < one.rows == LARGE
    for count in (2, 8):
        progress = Progress()
        done = in_processes(store, config(large, **settings), count, progress)
        assert outputs(store, done.score_id) == outputs(store, one.score_id)
        assert (done.rows, done.written) == (one.rows, one.written)
        assert progress.counts == sorted(progress.counts)
        assert progress.counts[-1] == LARGE
    assert not children()


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Settings for a Parquet file of ten shards, with one row that has no image."""
    pixels = [each.ravel().tolist() for each in images(LARGE // 2)]
    pixels[7_000] = None
    table = pa.table({"image": pa.array(pixels, pa.list_(pa.uint8()))})
    path = tmp_path_factory.mktemp("many") / "in.parquet"
    pq.write_table(table, path, row_group_size=1000)
    return config(path, shard_rows=1000, on_error="quarantine")


def test_whole_shards_have_the_same_bytes(store, many):
    one = scored(store, **many.model_dump())
    assert (one.rows, one.quarantined) == (LARGE // 2 - 1, 1)
    for count in (2, 3):
        progress = Progress()
        done = in_processes(store, many, count, progress, whole=True)
        assert outputs(store, done.score_id) == outputs(store, one.score_id)
        assert progress.counts == sorted(progress.counts)
        assert progress.counts[-1] == LARGE // 2
    assert not children()


def test_stopped_whole_shards_are_resumed(store, many):
    one = scored(store, **many.model_dump())
    stop = Progress(lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted):
        in_processes(store, many, progress=stop, whole=True)
    (folder,) = (store.root / "staging").glob("score-*")
    assert not list(folder.glob("unfinished-*"))
    done = in_processes(store, many, whole=True)
    assert folder.name == f"score-{done.score_id}"
    assert outputs(store, done.score_id) == outputs(store, one.score_id)


def test_this_process_scores_meanwhile(store, large, monkeypatch):
    one = scored(store, **config(large).model_dump())
    monkeypatch.undo()
    here = threading.Event()
    answer, wait = processes._ThisProcess.answer, processes._Process.wait_until_ready
    monkeypatch.setattr(
        processes._ThisProcess, "answer", lambda each, report: (answer(each, report), here.set())[0]
    )
    monkeypatch.setattr(
        processes._Process, "wait_until_ready", lambda each: (here.wait(), wait(each))[1]
    )
    done = in_processes(store, config(large))
    assert outputs(store, done.score_id) == outputs(store, one.score_id)


def test_processes_share_small_files(store, tmp_path):
    pixels = images(900)
    (tmp_path / "in").mkdir()
    for number in range(30):
        parquet(tmp_path / "in" / f"{number:02}.parquet", pixels[30 * number :][:30])
    settings = config(tmp_path / "in", shard_rows=400)
    one = scored(store, **settings.model_dump())
    done = in_processes(store, settings)
    assert outputs(store, done.score_id) == outputs(store, one.score_id)


def test_processes_copy_columns_with_dictionaries(store, tmp_path):
    """Each small file has values of its own in its column of categories."""
    folder = tmp_path / "small"
    folder.mkdir()
    pixels = images(3_000)
    for number in range(60):
        part = slice(50 * number, 50 * number + 50)
        cities = pa.array([f"city {number + row % 3}" for row in range(50)]).dictionary_encode()
        nested = pa.StructArray.from_arrays([cities], ["name"])
        parquet(folder / f"{number:02}.parquet", pixels[part], city=cities, place=nested)
    settings = config(folder, keep=["city", "place"], shard_rows=1_000)
    one = scored(store, **settings.model_dump())
    several = in_processes(store, settings)
    assert outputs(store, several.score_id) == outputs(store, one.score_id)


def test_processes_score_pictures_alike(store, tmp_path):
    from PIL import Image

    (tmp_path / "in").mkdir()
    for number, each in enumerate(images(40)):
        Image.fromarray(each[..., 0]).save(tmp_path / "in" / f"{number:02}.png")
    (tmp_path / "in" / "20.png").write_bytes(b"no picture")
    settings = config(tmp_path / "in", on_error="quarantine", shard_rows=10)
    one = scored(store, **settings.model_dump())
    digests = set()
    for whole in (False, True):
        done = in_processes(store, settings, whole=whole)
        assert outputs(store, done.score_id) == outputs(store, one.score_id)
        assert (done.rows, done.quarantined) == (39, 1)
        digests |= set(store.read_table("score_jobs")["input_digest"].to_pylist())
    assert len(digests) == 1


def test_processes_keep_the_quarantine(store, tmp_path):
    pixels = [each.ravel().tolist() for each in images(LARGE)]
    for number in (3, 11_000, 19_999):
        pixels[number] = None
    table = pa.table({"image": pa.array(pixels, pa.list_(pa.uint8()))})
    path = tmp_path / "bad.parquet"
    pq.write_table(table, path, row_group_size=10_000, use_dictionary=False, compression="none")
    with pytest.raises(DataError, match=r"bad\.parquet, row group 0, row 3: .*null"):
        in_processes(store, config(path), 3)
    settings = config(path, on_error="quarantine")
    one = scored(store, **settings.model_dump())
    done = in_processes(store, settings, 3)
    assert outputs(store, done.score_id) == outputs(store, one.score_id)
    assert (done.rows, done.quarantined) == (LARGE - 3, 3)
    assert not children()


def test_processes_reject_rest_of_damaged_group(store, tmp_path, large):
    path = tmp_path / "in.parquet"
    options = {"use_dictionary": False, "data_page_size": 2**14, "row_group_size": 10_000}
    pq.write_table(pq.read_table(large, columns=["image"]), path, **options)
    column = pq.read_metadata(path).row_group(1).column(0)
    middle = column.data_page_offset + column.total_compressed_size // 2
    content = bytearray(path.read_bytes())
    content[middle : middle + 2**15] = b"\xff" * 2**15  # longer than a page, header included
    path.write_bytes(content)
    settings = config(path, on_error="quarantine")
    one = scored(store, **settings.model_dump())
    done = in_processes(store, settings)
    assert outputs(store, done.score_id) == outputs(store, one.score_id)
    assert 0 < done.quarantined < 10_000


def test_processes_load_no_large_library(store, large):
    loaded = set()

    def look():
        for each in children():
            loaded.update(part for maps in each.memory_maps() for part in Path(maps.path).parts)

    in_processes(store, config(large), progress=Progress(look))
    assert {"pyarrow", "onnxruntime"} <= loaded
    assert not {"pandas", "tensorflow", "prefect", "scipy", "sklearn"} & loaded


def test_processes_share_the_memory_of_the_model(store, tmp_path):
    random, wide = np.random.default_rng(0), 4096
    sizes = [64, wide, wide, 3]
    weights = [
        onnx_models.tensor(random.normal(size=pair) / wide, f"weights_{number}")
        for number, pair in enumerate(pairwise(sizes))
    ]
    nodes, first = onnx_models.dense()
    nodes = nodes[:2]
    for number, weight in enumerate(weights):
        source, target = f"rows_{number}" if number else "rows", f"rows_{number + 1}"
        nodes.append(helper.make_node("MatMul", [source, weight.name], [target]))
    nodes[-1].output[0] = "logits"
    model = onnx_models.model(nodes, [first[0], *weights])
    path = tmp_path / "wide.onnx"
    onnx.save(model, path)
    private = []

    def look():
        for process in children():
            private.extend(each.memory_full_info().uss for each in process.children())

    settings = config(
        parquet(tmp_path / "in.parquet", images(1_200), group=100),
        model=str(path),
        digest=hashlib.sha256(path.read_bytes()).hexdigest(),
        shard_rows=300,
    )
    in_processes(store, settings, 3, Progress(look))
    assert len(private) == 2
    assert max(private) < 4 * wide * wide


@pytest.mark.parametrize("whole", [False, True])
def test_bad_input_leaves_nothing(store, tmp_path, whole):
    path = tmp_path / "bad.parquet"
    pixels = [each.ravel().tolist() for each in images(60)]
    pixels[50] = pixels[10] = None
    table = pa.table({"image": pa.array(pixels, pa.list_(pa.uint8()))})
    pq.write_table(table, path, row_group_size=5)
    before = tree_digest(store.root)
    with pytest.raises(DataError, match="row group 2, row 10"):  # whoever sees its row first
        in_processes(store, config(path, shard_rows=5), 4, whole=whole)
    assert tree_digest(store.root) == before
    assert not children()


def test_killed_process_leaves_resumable_job(store, large):
    one = scored(store, **config(large).model_dump())

    def kill_one():
        min(children(), key=lambda each: each.pid).children()[0].kill()

    with pytest.raises(RunError, match=r"was killed or died.*set threads to a smaller") as caught:
        in_processes(store, config(large), progress=Progress(kill_one))
    assert "nnbuild score --resume" in caught.value.__notes__[0]
    assert "\n" not in str(caught.value)
    assert not children()
    done = in_processes(store, config(large))
    assert caught.value.__notes__[0].split()[-3] == done.score_id
    assert outputs(store, done.score_id) == outputs(store, one.score_id)


def test_signal_stops_processes(store, large):
    one = scored(store, **config(large).model_dump())
    stop = Progress(lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted) as caught:
        in_processes(store, config(large), progress=stop)
    assert caught.value.exit_code == 143
    assert not children()
    (folder,) = (store.root / "staging").glob("score-*")
    assert not list(folder.glob("unfinished-*"))
    done = in_processes(store, config(large))
    assert folder.name == f"score-{done.score_id}"
    assert outputs(store, done.score_id) == outputs(store, one.score_id)


def test_failing_progress_ends_processes(store, large):
    def fail():
        raise KeyError("of the caller")

    with pytest.raises(KeyError):
        in_processes(store, config(large), progress=Progress(fail))
    assert not children()


PROGRAM = """
import json, os, signal, sys, threading
import psutil
from nnbuild.scoring import job as jobs
from nnbuild.scoring.job_context import job_context
from nnbuild.scoring.config import ScoreConfig
from nnbuild.scoring import processes
from nnbuild.scoring.division import Division

config, root, action = sys.argv[1:]

class Progress:
    def scored(self, *_):
        print(json.dumps([each.pid for each in psutil.Process().children(recursive=True)]))
        sys.stdout.flush()
        if action == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        os.killpg(0, signal.SIGINT)  # what a terminal does at Ctrl-C

processes._ThisProcess.wait_until_ready = lambda _: threading.Event().wait()
job = jobs.open_job(ScoreConfig.model_validate_json(config), root)
with job_context(job):
    processes.score_in_processes(job, Division(3), Progress())
"""


@pytest.mark.parametrize(("action", "says"), [("kill", ""), ("interrupt", "stopped by signal 2")])
def test_no_process_outlives_its_parent(store, large, action, says):
    one = scored(store, **config(large).model_dump())
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM, config(large).model_dump_json(), store.root, action],
        check=False,
        capture_output=True,
        text=True,
        start_new_session=True,
        timeout=SECONDS,
    )
    started = json.loads(ended.stdout.splitlines()[0])
    assert len(started) == 3  # the one that opened the job, and two that it forked
    assert says in ended.stderr
    assert ended.returncode == (-signal.SIGKILL if action == "kill" else 1)
    processes_left = [psutil.Process(pid) for pid in started if psutil.pid_exists(pid)]
    assert not psutil.wait_procs(processes_left, timeout=SECONDS)[1]
    done = in_processes(store, config(large))
    assert outputs(store, done.score_id) == outputs(store, one.score_id)
    assert not list((store.root / "staging").glob("score-*"))


@pytest.mark.parametrize(
    "error",
    [
        DataError("a row"),
        ConfigError("a setting", setting="threads", value="3"),
        StoreError("the store", setting="store", value="here"),
        OSError(28, "No space left on device", "/a/file"),
        MemoryError("no memory"),
    ],
)
def test_described_error_is_made_again(error):
    again = error_from(json.loads(json.dumps(describe_error(error))))
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert vars(again) == vars(error)


def test_unknown_error_is_one_line():
    again = error_from(describe_error(ZeroDivisionError("a\nb")))
    assert type(again) is RunError
    assert str(again) == "a scoring process failed: ZeroDivisionError: a b"


@pytest.mark.parametrize("cost", [Cost(1e-5, 1e-6), Cost(1e-6, 1e-5)])
def test_processes_pay_for_many_rows_only(cost):
    assert not processes_are_faster(cost, 1000, 2)
    assert not processes_are_faster(cost, 1000, 64)
    worth = [rows for rows in 10 ** np.arange(3, 9) if processes_are_faster(cost, rows, 16)]
    assert worth == sorted(worth)
    assert worth
    assert processes_are_faster(cost, 10**9, 64)


def test_processes_score_raw_images_on_two_cores():
    """Threads took 9.0 to 9.4 s for eight million rows of such a cost, two processes 7.8 to 8.4."""
    assert processes_are_faster(Cost(0.7e-6, 0.9e-6), 8_000_000, 2)
    assert not processes_are_faster(Cost(0.7e-6, 0.9e-6), 1_000_000, 2)


def test_few_rows_stay_in_this_process(store, tmp_path, monkeypatch):
    monkeypatch.setattr(division, "processors", lambda: 8)
    job = jobs.open_job(config(parquet(tmp_path / "in.parquet")), store.root)
    assert division_of(job) == Division(1)


def test_only_short_shards_are_made_whole(store, large, monkeypatch):
    monkeypatch.setattr(division, "processors", lambda: 2)
    monkeypatch.setattr(division, "processes_are_faster", lambda *_: True)
    job = jobs.open_job(config(large), store.root)
    for seconds, whole in ((1e9, True), (0.0, False)):
        monkeypatch.setattr(division, "_SECONDS_PER_SHARD", seconds)
        assert division_of(job) == Division(2, whole)


def test_keras_stays_in_this_process(store, large, monkeypatch):
    monkeypatch.setattr(division, "processors", lambda: 8)
    monkeypatch.setattr(division, "processes_are_faster", lambda *_: True)
    for threads, count in ((None, 8), (3, 3), (99, 8)):
        job = jobs.open_job(config(large, threads=threads, shard_rows=10), store.root)
        assert division_of(job).processes == min(count, 4)
    job = jobs.open_job(config(large, engine="keras"), store.root)
    assert division_of(job) == Division(1)
