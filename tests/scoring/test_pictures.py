"""The column `path` of scored pictures, in the scores and in the quarantine."""

import json
import os
from datetime import date

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from bad_inputs import png
from command_line import call
from kills import killed_at
from score_data import bad_parquet, images, parquet, rows, scored

import nnbuild
from nnbuild.data import streams
from nnbuild.data.formats import open_stream
from nnbuild.data.streams import StreamOptions
from nnbuild.errors import AlreadyScoredError, ConfigError, DataError, Interrupted, StoreError
from nnbuild.scoring import ScoreConfig
from nnbuild.scoring import job as jobs
from nnbuild.scoring.commit import commit_job
from nnbuild.scoring.division import Division
from nnbuild.scoring.job_context import job_context
from nnbuild.scoring.job_shards import score_input
from nnbuild.scoring.processes import score_in_processes

NAMES = ["a-1/x.png", "a.b/x.png", "a/x.png", "a/é.png", "b/c/d.png"]  # sorted as text


def write(folder, names=NAMES):
    for name, image in zip(names, images(len(names)), strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(png(image[..., 0]))
    return folder


def quarantined(store, score_id):
    folder = store.root / "quarantine" / f"score_id={score_id}"
    return ds.dataset(folder, partitioning=None).to_table().to_pylist()


@pytest.mark.parametrize("keep", [(), ("path",)])
def test_scored_pictures_have_a_path(store, tmp_path, keep):
    folder = write(tmp_path / "pictures")
    table = rows(store, scored(store, input=folder, keep=keep))
    assert table.column_names.count("path") == 1
    by_path = dict(zip(table["path"].to_pylist(), table["predicted"].to_pylist(), strict=True))
    assert list(by_path) == sorted(NAMES)
    alone = rows(store, scored(store, input=write(tmp_path / "other", NAMES[:3])))
    assert {name: by_path[name] for name in NAMES[:3]} == dict(
        zip(alone["path"].to_pylist(), alone["predicted"].to_pylist(), strict=True)
    )


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("*", NAMES),
        ("**/*.png", NAMES),
        ("a*/*.png", NAMES[:4]),
        ("a-*", NAMES[:1]),
        ("b/*/*.png", ["b/c/d.png"]),
        ("b/c/d.png", ["b/c/d.png"]),
    ],
)
def test_selected_pictures_score_as_in_folder(store, tmp_path, address, expected):
    def by_path(source):
        table = rows(store, scored(store, input=source)).drop_columns("example_id")
        return {each.pop("path"): each for each in table.to_pylist()}

    everything = by_path(write(tmp_path / "pictures"))
    selected = by_path(tmp_path / "pictures" / address)
    fixed = address.partition("*")[0].rpartition("/")[0] if "*" in address else "b/c"
    assert {f"{fixed}/{name}".lstrip("/"): row for name, row in selected.items()} == {
        name: everything[name] for name in expected
    }


def test_glob_without_pictures_is_missing(store, tmp_path):
    write(tmp_path / "pictures")
    (tmp_path / "pictures" / "notes.txt").write_text("x")
    with pytest.raises(DataError, match="no such input"):
        scored(store, input=f"{tmp_path}/pictures/*.gif")
    with pytest.raises(DataError, match="no such input"):
        scored(store, input=f"{tmp_path}/pictures/*.txt")
    with pytest.raises(DataError, match=r"not pictures: notes\.txt"):
        scored(store, input=f"{tmp_path}/pictures/*")


def test_rejected_pictures_keep_paths(store, tmp_path, monkeypatch):
    monkeypatch.setattr(streams, "PICTURES_PER_BATCH", 4)
    names = [f"{number}.png" for number in range(11)]
    folder = write(tmp_path / "pictures", names)
    bad = ["0.png", "4.png", "5.png", "notes.txt"]
    for name in bad:
        (folder / name).write_bytes(b"no picture")
    done = scored(store, input=folder, on_error="quarantine", batch_size=3, shard_rows=4)
    table = rows(store, done)
    order = sorted({*names, *bad})
    assert table["path"].to_pylist() == [name for name in order if name not in bad]
    assert [order[each] for each in table["example_id"].to_pylist()] == table["path"].to_pylist()
    found = quarantined(store, done.score_id)
    assert sorted(each["path"] for each in found) == bad
    assert all(each["file"] == str(folder / each["path"]) for each in found)


def test_quarantined_parquet_has_no_path(store, tmp_path):
    path = bad_parquet(tmp_path / "in.parquet")
    done = scored(store, input=path, on_error="quarantine")
    assert [each["path"] for each in quarantined(store, done.score_id)] == [None] * 3


def test_path_is_null_for_other_inputs(store, tmp_path, capfd):
    scored(store, input=parquet(tmp_path / "in.parquet", images(2)))
    scored(store, input=write(tmp_path / "pictures"))
    table = nnbuild.read_table(str(store.root), "scores")
    assert sorted(filter(None, table["path"].to_pylist())) == sorted(NAMES)
    assert table["path"].null_count == 2
    query = "select path, count(*) as n from scores group by path order by path nulls last"
    outcome = call(capfd, "sql", "--json", "--store", store.root, query)
    expected = [{"path": name, "n": 1} for name in sorted(NAMES)] + [{"path": None, "n": 2}]
    assert outcome.json["rows"] == expected


def test_path_column_of_input_can_be_kept(store, tmp_path):
    path = parquet(tmp_path / "in.parquet", images(2))
    pq.write_table(pq.read_table(path).append_column("path", pa.array(["p", "q"])), path)
    assert "path" not in rows(store, scored(store, input=path)).column_names
    scored(store, input=path, keep=["path"])
    scored(store, input=write(tmp_path / "pictures", NAMES[:1]))
    paths = nnbuild.read_table(str(store.root), "scores")["path"].to_pylist()
    assert sorted(filter(None, paths)) == [NAMES[0], "p", "q"]


@pytest.mark.parametrize(
    "columns", [{"keep": ["path", "customer"]}, {"id_column": "customer"}, {"keep": ["Path"]}]
)
def test_other_picture_columns_are_refused(store, tmp_path, columns):
    folder = write(tmp_path / "pictures", NAMES[:1])
    with pytest.raises(DataError, match=r"only has the column path, not (customer|Path)"):
        scored(store, input=folder, **columns)


def test_output_named_path_is_refused(store, tmp_path):
    folder = write(tmp_path / "pictures", NAMES[:1])
    with pytest.raises(ConfigError, match=r"the folder path=….* or choose another output"):
        scored(store, input=folder, output=str(tmp_path / "path=1" / "out"))


def test_path_selects_rows(store, tmp_path):
    folder = write(tmp_path / "pictures")
    done = scored(store, input=folder, where="path == 'a/x.png'")
    assert rows(store, done)["path"].to_pylist() == ["a/x.png"]


def test_names_not_in_utf8_are_escaped(store, tmp_path):
    folder = write(tmp_path / "pictures", ["a.png", "z.png"])
    (folder / "a.png").rename(folder / os.fsdecode(b"caf\xe9.png"))
    (folder / os.fsdecode(b"bad\xe9.png")).write_bytes(b"no picture")
    done = scored(store, input=folder, on_error="quarantine")
    assert rows(store, done)["path"].to_pylist() == [r"caf\udce9.png", "z.png"]
    assert [each["path"] for each in quarantined(store, done.score_id)] == [r"bad\udce9.png"]
    again = ScoreConfig(input=str(folder), on_error="quarantine")
    with pytest.raises(AlreadyScoredError):
        nnbuild.score(again, store.root, once=True)


class _StopAt:
    def __init__(self, rows):
        self.rows = rows

    def scored(self, done, *_):
        if done >= self.rows:
            raise Interrupted("stopped", 15)


def test_resumed_job_has_every_path(store, tmp_path, monkeypatch):
    monkeypatch.setattr(streams, "PICTURES_PER_BATCH", 2)
    config = ScoreConfig(input=str(write(tmp_path / "pictures")), shard_rows=2, keep=("path",))
    with pytest.raises(Interrupted):
        nnbuild.score(config, store.root, progress=_StopAt(1))
    (waiting,) = (store.root / "staging").glob("score-*")
    same = config.model_copy(update={"keep": ()})  # writes the same rows, so it is the same job
    done = nnbuild.score(same, store.root)
    assert f"score-{done.score_id}" == waiting.name
    assert rows(store, done)["path"].to_pylist() == sorted(NAMES)


def test_backfilled_days_have_paths_once(store, tmp_path):
    for day in (1, 2):
        write(tmp_path / f"2026-11-0{day}", [f"{day}.png"])
    config = ScoreConfig(input=str(tmp_path / "{date}"))
    days = date(2026, 11, 1), date(2026, 11, 2)
    first = nnbuild.backfill(config, *days, store.root)
    assert [each.status for each in first] == ["scored", "scored"]
    table = nnbuild.read_table(str(store.root), "scores")
    assert sorted(table["path"].to_pylist()) == ["1.png", "2.png"]
    again = config.model_copy(update={"keep": ("path",)})
    found = nnbuild.backfill(again, *days, store.root)
    assert [(each.status, each.score_id) for each in found] == [
        ("skipped", each.score_id) for each in first
    ]


def test_manifest_names_the_path_column(store, tmp_path):
    done = scored(store, input=write(tmp_path / "pictures", NAMES[:1]))
    manifest = json.loads((store.root / "scores" / done.score_id / "manifest.json").read_text())
    assert manifest["config"]["keep"] == ["path"]
    (part,) = (store.root / "tables" / "scores" / f"score_id={done.score_id}").iterdir()
    assert pq.read_schema(part).names[-1] == "path"


@pytest.mark.parametrize("names", [NAMES, [*NAMES, os.fsdecode(b"caf\xe9.png")]])
def test_identity_changes_with_the_names(tmp_path, names):
    folder = write(tmp_path / "pictures", names)
    before = open_stream(str(folder), StreamOptions((28, 28, 1))).identity()
    assert open_stream(f"{folder}/*", StreamOptions((28, 28, 1))).identity() == before
    (folder / names[-1]).rename(folder / "new.png")
    after = open_stream(str(folder), StreamOptions((28, 28, 1))).identity()
    assert [each[0] for each in (*before, *after)] == [f"{len(names)} pictures"] * 2
    assert before != after


def stopped_job(store, folder, monkeypatch):
    """Stop a job after the first of its shards of two pictures; return its settings and its ID."""
    monkeypatch.setattr(streams, "PICTURES_PER_BATCH", 2)
    config = ScoreConfig(input=str(folder), shard_rows=2)
    with pytest.raises(Interrupted):
        nnbuild.score(config, store.root, progress=_StopAt(3))
    (waiting,) = (store.root / "staging").glob("score-*")
    (done,) = (waiting / "done").iterdir()
    assert done.name == "part-00000.parquet.json"
    return config, waiting.name.removeprefix("score-")


def test_picture_changed_after_it_was_scored_ends_the_job(store, tmp_path, monkeypatch):
    folder = write(tmp_path / "pictures")
    config, score_id = stopped_job(store, folder, monkeypatch)
    os.utime(folder / NAMES[0], ns=(0, 10**18))
    with pytest.raises(StoreError, match=f"{score_id}: its input changed since; start a new one"):
        nnbuild.score(store=store.root, resume=score_id)
    done = nnbuild.score(config, store.root)
    assert done.score_id != score_id
    assert rows(store, done)["path"].to_pylist() == sorted(NAMES)


def test_picture_changed_before_it_is_scored_is_scored_as_it_is(store, tmp_path, monkeypatch):
    folder = write(tmp_path / "pictures")
    config, score_id = stopped_job(store, folder, monkeypatch)
    changed = folder / max(NAMES)
    changed.write_bytes(png(255 - images(1)[0, ..., 0]))
    done = nnbuild.score(config, store.root)
    assert done.score_id == score_id
    whole = scored(store, input=folder, shard_rows=2)
    assert rows(store, done).equals(rows(store, whole))
    assert recorded_input(store, done) == recorded_input(store, whole)


def recorded_input(store, done):
    """Return the identity of the input in a job's manifest and in its row."""
    manifest = json.loads((store.root / "scores" / done.score_id / "manifest.json").read_text())
    row = store.read_table("score_jobs", done.score_id).to_pylist()[0]
    return manifest["input"], row["input_digest"]


def test_pictures_are_scored_once_until_one_changes(store, tmp_path):
    folder = write(tmp_path / "pictures")
    config = ScoreConfig(input=str(folder))
    first = nnbuild.score(config, store.root, once=True)
    with pytest.raises(AlreadyScoredError):
        nnbuild.score(config.model_copy(update={"shard_rows": 2}), store.root, once=True)
    os.utime(folder / NAMES[2], ns=(0, 10**18))
    second = nnbuild.score(config, store.root, once=True)
    (before, _), (after, _) = recorded_input(store, first), recorded_input(store, second)
    assert before[0][:2] == after[0][:2]
    assert before != after


def test_picture_removed_before_it_is_read_cannot_be_scored(store, tmp_path):
    folder = write(tmp_path / "pictures")
    config = ScoreConfig(input=str(folder), on_error="quarantine")
    job = jobs.open_job(config, store.root)
    (folder / NAMES[0]).unlink()
    with job_context(job):
        done = commit_job(job, score_input(job))
    assert (done.rows, done.quarantined) == (len(NAMES) - 1, 1)
    assert [each["path"] for each in quarantined(store, done.score_id)] == [NAMES[0]]


@pytest.mark.parametrize("processes", [1, 2])
def test_picture_repaired_after_a_kill_leaves_quarantine(store, tmp_path, processes):
    folder = write(tmp_path / "pictures")
    (folder / NAMES[0]).write_bytes(b"no picture")
    config = ScoreConfig(input=str(folder), on_error="quarantine")
    with killed_at("shard:written"):
        nnbuild.score(config, store.root, threads=1)
    (waiting,) = (store.root / "staging").glob("score-*")
    assert list((waiting / "quarantine").iterdir())
    write(folder, NAMES[:1])
    job = jobs.resume_job(waiting.name.removeprefix("score-"), store.root)
    with job_context(job):
        if processes == 1:
            shards = score_input(job)
        else:
            shards = score_in_processes(job, Division(processes, whole_shards=False))
        done = commit_job(job, shards)
    assert (done.rows, done.quarantined) == (len(NAMES), 0)
    assert not (store.root / "quarantine" / f"score_id={done.score_id}").exists()
