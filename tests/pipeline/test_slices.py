"""Columns of the source in a run: in `predictions`, in `slices`, in the gate and in the report."""

import json
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command_line import call
from pydantic import ValidationError
from small_data import run_config, small_arrays

from nnbuild.config.schema import RunConfig
from nnbuild.config.sections import DatasetConfig
from nnbuild.data.dataset import Split
from nnbuild.data.split_table import split_table
from nnbuild.errors import DataError
from nnbuild.pipeline.data import source_fingerprint
from nnbuild.pipeline.run import retrain
from nnbuild.store import Store

ROWS = 240


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    arrays = small_arrays(classes=3, shape=(8, 8, 1), train=ROWS, test=3)
    split = Split(arrays["x_train"], arrays["y_train"].astype(np.int16))
    table = split_table(split)
    table = table.append_column("site", pa.array(["north", "south", None] * (ROWS // 3)))
    table = table.append_column("serial", pa.array(range(ROWS)))
    path = tmp_path_factory.mktemp("sliced") / "images.parquet"
    pq.write_table(table, path)
    return path


def config(source, keep=("site",), **changed):
    dataset = {"name": str(source), "keep": list(keep)}
    return run_config(source, **{"dataset": dataset, **changed})


@pytest.fixture(scope="module")
def store(source, tmp_path_factory):
    root = tmp_path_factory.mktemp("store") / "store"
    for seed in (1, 2):
        retrain(config(source, seed=seed, gate={"slices": ["site"]}), root)
    return Store(root)


def test_table_equals_predictions(store):
    for run_id in store.run_ids():
        predictions = store.read_table("predictions", run_id).to_pandas()
        slices = store.read_table("slices", run_id).to_pandas()
        assert set(slices["column_name"]) == {"site"}
        grouped = predictions.groupby("site", dropna=False)
        right = (predictions["label"] == predictions["predicted"]).groupby(
            predictions["site"], dropna=False
        )
        known = slices[slices["value"].notna()].set_index("value")
        for site, count in grouped.size().items():
            if isinstance(site, str):
                assert known.loc[site, "rows"] == count
                assert known.loc[site, "accuracy"] == pytest.approx(right.mean()[site])
        assert slices["rows"].sum() == len(predictions)
    first, second = (store.read_table("slices", each) for each in store.run_ids())
    assert first["p_worse"].null_count == len(first)
    assert second["p_corrected"].null_count == 0
    assert second["compared"].to_pylist() == second["rows"].to_pylist()


def test_command_shows_slices(capfd, store):
    run_id = store.run_ids()[0]
    shown = call(capfd, "slices", run_id, "--by", "site", "--json", "--store", store.root)
    found = json.loads(shown.out.splitlines()[-1])
    assert found["run_id"] == run_id
    assert [each["value"] for each in found["slices"]] == ["north", "south", None]
    wrong = call(capfd, "slices", run_id, "--by", "sites", "--store", store.root)
    assert (wrong.code, len(wrong.err.splitlines())) == (2, 1)
    assert "did you mean 'site'?" in wrong.err


def test_command_without_columns_is_refused(capfd, trained):
    wrong = call(capfd, "slices", "--store", trained)
    assert (wrong.code, len(wrong.err.splitlines())) == (2, 1)
    assert "retrain with dataset.keep" in wrong.err


def test_report_shows_slices(store):
    run_id = store.run_ids()[1]
    page = (store.root / "runs" / run_id / "report.html").read_text()
    assert "For which images is it wrong?" in page
    texts = " ".join(re.sub(r"<[^>]+>|[\u2068\u2069]", "", page).split())
    assert "site north" in texts
    assert "site without a value" in texts


def test_command_names_column_of_many_values(capfd, source, tmp_path, monkeypatch):
    monkeypatch.setattr("nnbuild.evaluation.slices.MAX_VALUES", 5)
    retrain(config(source, ["serial"]), tmp_path / "store")
    for by in ((), ("--by", "serial")):
        wrong = call(capfd, "slices", "--store", tmp_path / "store", *by)
        assert (wrong.code, len(wrong.err.splitlines())) == (2, 1)
        assert "no slices by 'serial'" in wrong.err


def test_metadata_are_part_of_the_source(tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").touch()
    about = tmp_path / "about.csv"
    dataset = DatasetConfig(name=str(tmp_path / "pictures"), keep=("site",), metadata=about)
    states = {source_fingerprint(dataset)}
    for text in ("path,site\n", "path,site\na.png,oslo\n"):
        about.write_text(text)
        states.add(source_fingerprint(dataset))
    assert len(states) == 3


def test_gate_column_of_many_values_is_refused(source, tmp_path, monkeypatch):
    monkeypatch.setattr("nnbuild.pipeline.data.MAX_VALUES", 5)
    with pytest.raises(DataError, match=r"gate\.slices: the column 'serial' has .* at most 5"):
        retrain(config(source, ["serial"], gate={"slices": ["serial"]}), tmp_path / "store")


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"gate": {"slices": ["site"]}}, "gate.slices has 'site', which dataset.keep does not"),
        ({"dataset": {"keep": ["site", "SITE"]}}, "the same column in SQL"),
        ({"dataset": {"keep": ["Prob_3"]}}, "a column of nnbuild's own"),
        ({"dataset": {"metadata": "about.csv"}}, "set keep"),
        ({"dataset": {"metadata": "s3://a/b.csv", "keep": ["site"]}}, "expected a local path"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, says):
    with pytest.raises(ValidationError, match=says):
        RunConfig.model_validate(settings)
