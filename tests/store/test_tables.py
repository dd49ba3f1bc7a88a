"""Test that every command answers or reports one line for any content of a committed store."""

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command_line import call
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from json_values import JSON
from label_data import label_file, labelled, watched
from score_data import parquet, scored

from nnbuild.errors import StoreError
from nnbuild.store import Store, champion, champion_history, schemas
from nnbuild.store.filesystem import write_json
from nnbuild.store.manifests import Row, Steps, read_manifest
from nnbuild.store.step_results import MANIFEST_STEPS

TABLES = sorted(schemas.TABLES)


@pytest.fixture(scope="module")
def sound(tmp_path_factory, _three_runs) -> Path:
    """A store in which no table is missing, with an input to score beside it."""
    folder = tmp_path_factory.mktemp("hostile")
    root = shutil.copytree(_three_runs[0], folder / "store")
    scored(Store(root), input=parquet(folder / "input.parquet"))
    labelled(Store(root), label_file(folder / "labels.parquet", id=[1, 2, 900], label=[0, 1, 2]))
    watched(Store(root))
    return root


def commands(root, runs):
    """Yield every command that reads a store; those that change it come last."""
    first, second, _ = runs
    yield "runs", "--json"
    yield ("runs",)
    yield "history", "--wide", "--csv"
    yield "history", second, "--json"
    yield "compare", first, second, "--html", root.parent / "page.html"
    yield "trends", "--json", "--html", root.parent / "page.html"
    yield "champion", "--json"
    for name in TABLES:
        yield "sql", f"select * from {name} limit 3", "--json"  # noqa: S608
    yield "score", "--input", root.parent.parent / "input.parquet", "--output", root.parent / "out"
    yield "live", "--html", root.parent / "page.html", "--json"
    yield "label", "--input", root.parent.parent / "labels.parquet"
    yield "export", second, "--format", "onnx", "--output", root.parent / "model.onnx"
    yield "report", second
    yield "promote", second
    yield ("rollback",)
    yield "doctor", "--repair"


@pytest.fixture
def harmless(capfd, sound):
    """Change a file of a copy of the store, and hear what every command says."""
    runs = Store(sound).run_ids()

    def look(change, only=None):
        folder = sound.parent / "copy"
        shutil.rmtree(folder, ignore_errors=True)
        root = shutil.copytree(sound, folder / "store")
        change(root)
        outcomes = {}
        for arguments in commands(root, runs):
            if only is None or arguments[0] in only:
                outcome = outcomes[arguments[:2]] = call(capfd, *arguments, "--store", root)
                lines = outcome.err.splitlines()
                assert outcome.code in {0, 2}, (arguments, outcome)
                assert outcome.code == 0 or len(lines) == 1, (arguments, outcome)
                assert "this should not happen" not in outcome.err, (arguments, outcome)
        return outcomes

    return look


def test_commands_sound_store_succeed(harmless):
    outcomes = harmless(lambda root: None)  # noqa: ARG005
    assert {outcome.code for outcome in outcomes.values()} <= {0, 2}
    assert {outcome.code for outcome in outcomes.values()} == {0}


MANY = settings(
    max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@MANY
@given(data=st.data())
def test_json_any_other_value_is_named(harmless, data):
    def change(root):
        kinds = ["runs/*/manifest.json"] * 3 + ["champion.json", "datasets/*/*/dataset.json"]
        kinds += ["scores/*/manifest.json", "runs/*/reference.json"]
        path = max(root.glob(data.draw(st.sampled_from(kinds))))
        value = holder = json.loads(path.read_text())
        while True:
            keys = sorted(holder) if isinstance(holder, dict) else range(len(holder))
            key = data.draw(st.sampled_from(list(keys)))
            inner = holder[key]
            if not (isinstance(inner, (dict, list)) and inner and data.draw(st.booleans())):
                break
            holder = inner
        if data.draw(st.booleans()):
            del holder[key]
        else:
            holder[key] = data.draw(JSON)
        path.write_text(json.dumps(value))

    harmless(change)


def spoil(path, harm, data):
    content = path.read_bytes()
    if harm == "cut":
        path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
        return
    table = pq.ParquetFile(path).read()
    name = data.draw(st.sampled_from(table.column_names))
    place, field = table.column_names.index(name), table.schema.field(name)
    if harm == "column missing":
        table = table.drop_columns([name])
    elif harm == "other type":
        table = table.set_column(place, name, pa.array(["x"] * len(table)))
    elif harm == "nulls":
        table = table.set_column(place, field.with_nullable(True), pa.nulls(len(table), field.type))  # noqa: FBT003
    elif harm == "no rows":
        table = table.slice(0, 0)
    pq.write_table(table, path)


@MANY
@given(data=st.data())
def test_parquet_damaged_is_named(harmless, data):
    def change(root):
        files = sorted(root.glob("tables/*/*/*.parquet"))
        path = data.draw(st.sampled_from(files))
        harm = data.draw(
            st.sampled_from(["cut", "swapped", "column missing", "other type", "nulls", "no rows"])
        )
        if harm == "swapped":
            shutil.copyfile(data.draw(st.sampled_from(files)), path)
        else:
            spoil(path, harm, data)

    harmless(change)


def test_nulls_are_refused_by_the_schema(store):
    """A damaged file may allow nulls itself; the schema of the table does not."""
    path = next((store.root / "tables" / "history").rglob("*.parquet"))
    table = pq.ParquetFile(path).read()
    field = table.schema.field("epoch").with_nullable(True)  # noqa: FBT003
    nulls = pa.nulls(len(table), field.type)
    pq.write_table(table.set_column(table.column_names.index("epoch"), field, nulls), path)
    with pytest.raises(StoreError, match="has nulls in column 'epoch'"):
        store.read_table("history")


FIELDS = {
    ("row", "status"): "its row has no status",
    ("row", "seed"): "its row has no seed",
    ("steps", "load_data", "class_names"): "its steps.load_data has no class_names",
    ("steps", "fit_model"): "its steps has no fit_model",
    ("config", "training", "validation_fraction"): "config.training has no validation_fraction",
    ("machine",): "it has no machine",
    ("files",): "it has no files",
}
WRONG = {
    ("row", "seed"): "7",
    ("row", "test_accuracy"): None,
    ("row", "started_at"): "0001-01-01T00:00:00+14:00",
    ("row", "epochs"): 2**40,
    ("steps", "load_data", "image_shape"): [8, 8],
    ("steps", "load_data", "class_names"): ["one"],
    ("steps", "decide", "figures"): {"low": "much"},
    ("seconds", "fit_model"): "long",
    ("packages", "numpy"): 2,
    ("files", "../../secret"): {"sha256": "0" * 64, "bytes": 1},
    ("run_id",): "20200101T000000000Z-000000",
}


@pytest.mark.parametrize("names", [*FIELDS, *WRONG], ids=".".join)
def test_manifest_damaged_names_field(gated_runs, names):
    store, (run_id, *_) = gated_runs
    path = store.root / "runs" / run_id / "manifest.json"
    manifest = holder = json.loads(path.read_text())
    *above, name = names
    for each in above:
        holder = holder[each]
    if names in FIELDS:
        del holder[name]
        expected = FIELDS[names]
    else:
        holder[name] = WRONG[names]
        expected = "manifest of run" if name == "run_id" else name
    path.write_text(json.dumps(manifest))
    with pytest.raises(StoreError) as caught:
        read_manifest(path)
    assert expected in str(caught.value)
    assert str(path) in str(caught.value)
    assert "restore it" in str(caught.value)


def test_manifest_unknown_fields_are_kept(gated_runs):
    store, (run_id, *_) = gated_runs
    path = store.root / "runs" / run_id / "manifest.json"
    manifest = json.loads(path.read_text())
    for holder in (manifest, manifest["row"], manifest["steps"]["fit_model"], manifest["machine"]):
        holder["of_tomorrow"] = {"a": 1}
    path.write_text(json.dumps(manifest))
    assert store.manifest(run_id).to_json() == manifest


def test_manifest_rewritten_keeps_bytes(gated_runs):
    store, run_ids = gated_runs
    for run_id in run_ids:
        path = store.root / "runs" / run_id / "manifest.json"
        before = path.read_bytes()
        write_json(path, store.manifest(run_id).to_json())
        assert path.read_bytes() == before


def test_manifest_steps_match_pipeline():
    assert list(Steps.model_fields) == list(MANIFEST_STEPS)


RUN = "20260101T000000000Z-000000"
CHANGE = {
    "run_id": RUN,
    "previous": None,
    "changed_at": "2026-01-01T00:00:00Z",
    "changed_by": "gate",
}


def test_manifest_row_matches_schema():
    assert list(Row.model_fields) == schemas.RUNS.names


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ([CHANGE | {"changed_by": "rollback"}], "rollback"),
        ([CHANGE | {"run_id": "x"}], "run ID"),
        ([CHANGE | {"changed_at": 5}], "small.0.changed_at"),
        ([CHANGE, CHANGE | {"previous": RUN}], "order of time"),
        ([CHANGE | {"previous": RUN}], "expected None"),
        ([{}], "run_id"),
        ({}, "small"),
        (None, "small"),
    ],
)  # fmt: skip
def test_champion_damaged_names_field(store, changes, word):
    (store.root / champion_history.FILE).write_text(json.dumps({"datasets": {"small": changes}}))
    for read in (champion.history, champion.require):
        with pytest.raises(StoreError, match=word):
            read(store)
